/* log - the log of a member on its own disk: files that are written a batch (batch.h) at a time.
 *
 * What is handed over while a write is under way goes into the next one: with many writers many entries share a flush.
 * The model, its states and what may go wrong stand in log.c; how the files are read, in log_load.c.
 *
 * log_open, log_load, log_start, log_do, log_done, log_release, log_stop and log_close on one thread (the member's loop);
 * log_tend on any other, one at a time, not during log_close. */
#ifndef DUST_RAFT_LOG_H
#define DUST_RAFT_LOG_H

#include <raft.h>
#include <stdbool.h>
#include <stdint.h>

#include "raft/termfile.h"
#include "vfs/err.h"
#include "vfs/metrics.h"

#define LOG_ENTRY_MAX ((size_t)1 << 20) /* bytes; one fits into a batch */

struct log;

/* Entries to be put on disk: they are at index and following, and nothing behind them. The caller's, and so are the
 * entries, until log_done gives it back. */
struct log_op {
    uint64_t index;
    const struct raft_entry *entries;
    unsigned n; /* not 0 */
    bool anew;  /* nothing is before them: a snapshot that was installed, durably, ends there */
    int status; /* DUST_OK: on disk, with all that was handed over before; DUST_FULL, DUST_IO, DUST_NOMEM, DUST_TOOBIG */
    struct log_op *next;
};

/* What was read: entries start .. start + n - 1, as libraft takes them over (raft_malloc; memory by the batch). */
struct log_content {
    struct raft_entry *entries;
    size_t n;
    uint64_t start;
};

/* For the files in this folder, which exists. DUST_OK, DUST_NOMEM. */
int log_open(struct log **out, const char *dir, struct err *e);

/* Read what follows on a snapshot of that index and term (0, 0: there is none). key: of the batches. forgiving: what is
 * missing in the middle is no failure, but the end of what is given, to save what can be saved; such a log is not started.
 * DUST_OK; DUST_CORRUPT: something is missing; DUST_IO, DUST_NOMEM. Once; nothing is changed on disk. */
int log_load(struct log *l, const uint8_t key[BATCH_KEY_SIZE], uint64_t index, uint64_t term, bool forgiving,
    struct log_content *out, struct err *e);
void log_content_free(struct log_content *c);

/* Begin a log in this folder, where there is none, with this one entry, durably. DUST_OK; DUST_EXISTS; DUST_CORRUPT,
 * DUST_IO, DUST_FULL, DUST_NOMEM. Blocking; life as for log_start. */
int log_begin(const char *dir, const uint8_t key[BATCH_KEY_SIZE], uint64_t life, const struct raft_entry *entry,
    struct err *e);

/* Before log_start: where the times of its writes are added up. */
void log_measure(struct log *l, struct times *flushes);

/* Let it be written to, in a life of its own (termfile.h: no other opening had this number). After log_load. Flushes what
 * was read. wake(ctx) is called by whoever wrote when there is something for log_done, and when the log's thread has ended; it
 * must not wait. DUST_OK; DUST_CORRUPT: this life, or a later one, is in the files; DUST_IO, DUST_FULL, DUST_NOMEM. */
int log_start(struct log *l, uint64_t life, void (*wake)(void *), void *ctx, struct err *e);

/* Put it on disk, behind what was handed over before. After one that failed all fail. here: by this thread, before this
 * returns, if nothing is being written, and writes have been quick lately (a millisecond); with wake called as well. */
void log_do(struct log *l, struct log_op *op, bool here);

/* Those that are done, in order, or NULL. Each has its status. */
struct log_op *log_done(struct log *l);

/* Why the first one failed. */
void log_failure(struct log *l, struct err *e);

/* Entries up to here are not needed any more. */
void log_release(struct log *l, uint64_t index);

/* Bytes on disk of the batches in files that are needed still: each takes whole blocks, so that these are many more than
 * those of the entries if entries came one by one. Cheap. */
uint64_t log_disk_bytes(struct log *l);

/* Should log_tend be called? Cheap. */
bool log_wants(struct log *l);

/* Make a file ahead of need, or remove those that are too many. Blocking. DUST_OK, DUST_IO, DUST_FULL, DUST_NOMEM: the log
 * can do without, and may be asked again. */
int log_tend(struct log *l, struct err *e);

/* Have the thread end after the write that is under way, if one is. What waits is not done, and not given back. wake is
 * called when it has ended. */
void log_stop(struct log *l);

/* Has it ended, or never begun? */
bool log_stopped(struct log *l);

void log_close(struct log *l); /* NULL is fine. Waits for the thread. */

/* Was a log ever begun in this folder: is there a file with a batch in it, whole or not? DUST_OK; DUST_IO, DUST_NOMEM: that
 * cannot be told. Blocking. */
int log_exists(const char *dir, bool *exists, struct err *e);

#endif
