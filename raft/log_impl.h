/* log_impl - the inside of the log: log.c (writing), log_load.c (reading), log_file.c (the files). */
#ifndef DUST_RAFT_LOG_IMPL_H
#define DUST_RAFT_LOG_IMPL_H

#include <pthread.h>

#include "raft/log.h"
#include "vfs/place.h"

#ifndef LOG_FILE_BYTES /* the simulation has smaller ones, and fewer */
#define LOG_FILE_BYTES ((size_t)4 << 20)
#endif
#define LOG_FILE_MAX ((size_t)64 << 20) /* of one that was made by a later version, say */
#ifndef LOG_FREE_MAX
#define LOG_FREE_MAX 8u /* files that are kept for use again */
#endif
#ifndef LOG_FILES_MIN
#define LOG_FILES_MIN 5u /* most of what lone entries fill until the log is cut (fsm.c): so many are made at once … */
#endif
#define LOG_BUSY_BYTES ((size_t)256 << 10) /* … when so much has been written: not for somebody who hardly writes */

struct log_file {
    struct log_file *next;
    unsigned number;
    int fd;          /* to write; -1: not open */
    size_t bytes;    /* of the file */
    size_t used;     /* of these; a multiple of BATCH_BLOCK */
    uint64_t last;   /* no entry in it has a higher index */
};

struct log_files {
    struct log_file *live, **live_tail; /* with entries of the log, oldest first; the last one is written to */
    struct log_file *current;           /* the last of these, or NULL */
    struct log_file *idle;              /* made, and not in use */
    unsigned n_idle;
    struct log_file *doomed; /* to be removed */
    unsigned last_number;
};

struct log {
    char *dir;
    struct file_place place; /* what that led to */
    uint8_t key[BATCH_KEY_SIZE];
    uint64_t life;  /* log_start's, or log_begin's */
    uint64_t seq;   /* of the last batch */
    size_t last_at; /* where that lies in the current file, after log_load */
    bool anew;      /* what is on disk does not lead to the snapshot: the next batch has to say so */
    uint8_t *buf;   /* of a batch; aligned */

    uint64_t flush_us;     /* how long one has taken lately, on average */
    struct times *flushes; /* or NULL */
    void (*wake)(void *);
    void *ctx;
    pthread_t thread;
    bool begun;

    pthread_mutex_t mutex;
    pthread_cond_t cond;
    /* under the mutex */
    struct log_files files; /* log_load has them without it: there is no thread yet */
    struct log_op *queue, **queue_tail, *done, **done_tail;
    uint64_t floor;
    bool writing; /* whoever has set it has key, seq, anew, buf, flush_us and files.current to itself */
    bool stop, stopped;
    struct err failure;
};

/* ---- log_file.c ---- */

/* A file `log-NUMBER` that was written to all its length, so that a write to it changes nothing but its content. Blocking.
 * DUST_OK, DUST_IO, DUST_FULL, DUST_NOMEM. */
int log_file_make(struct log_file **out, const char *dir, unsigned number, struct err *e);

/* Look at a file that is there: f->bytes is set, of whole blocks. DUST_OK; DUST_CORRUPT: it cannot be one; DUST_IO, DUST_NOMEM. */
int log_file_look(struct log_file *f, const char *dir, struct err *e);

/* Open it for writing, if it is not; close it, if it is open. */
int log_file_open(struct log_file *f, const char *dir, struct err *e);
void log_file_close(struct log_file *f);

/* Read bytes of it; all of them. The rest is as below. */
int log_file_read(struct log_file *f, const char *dir, uint8_t *p, size_t n, size_t at, struct err *e);

/* Write whole blocks at this offset, durably. DUST_OK, DUST_IO, DUST_FULL. */
int log_file_write(struct log_file *f, const uint8_t *p, size_t n, size_t at, struct err *e);

void log_file_remove(struct log_file *f, const char *dir); /* and free */
void log_file_free(struct log_file *f);
void log_files_free(struct log_files *s);

/* `log-NUMBER`? */
bool log_file_number(const char *name, unsigned *number);

#endif
