/* termfile - what a member has to remember of itself besides its log: its term, whom it voted for in it (Raft, figure 2),
 * and how often its log was opened; and the key of the log's batches.
 *
 * The file is `term` in the log's folder, three blocks of 4096 bytes. The first is written when the log is made: it has
 * the key. The others are written in turn, so that a write that fails, or is torn, leaves the one before.
 *
 * Format, little-endian: "dustkey1" 8, key 32, zeros 8, BLAKE2b-128 of what stands before 16. And: "dustterm" 8, count of
 * these 8, term 8, vote 8 (0: none), life 8, zeros 8, BLAKE2b-128 of what stands before, keyed, 16.
 *
 * On one thread at a time; reads, writes and flushes the disk. */
#ifndef DUST_RAFT_TERMFILE_H
#define DUST_RAFT_TERMFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "raft/batch.h"
#include "vfs/err.h"

#define TERMFILE_BLOCK 4096u
#define TERMFILE_SIZE (3 * TERMFILE_BLOCK)

struct termfile {
    bool open;
    int fd;
    uint64_t count;
    uint64_t term, vote; /* vote: 0 for none in this term */
    uint64_t life;       /* how often the log was opened to be written to */
    uint8_t key[BATCH_KEY_SIZE];
};

/* Read `term` in this folder, or make it if it is not there and `make` is set. DUST_OK; DUST_NOTFOUND; DUST_CORRUPT: it
 * cannot be made out; DUST_IO, DUST_FULL, DUST_NOMEM. */
int termfile_open(struct termfile *t, const char *dir, bool make, struct err *e);
void termfile_close(struct termfile *t); /* zeroed is fine */

/* Have these durable instead. Otherwise t is as before, and which of them the file will be found with is not known.
 * DUST_OK, DUST_IO, DUST_FULL. */
int termfile_set(struct termfile *t, uint64_t term, uint64_t vote, uint64_t life, struct err *e);

/* Read what a file holds, of any origin. False: it cannot be made out; *t is as before. Pure; *t is filled save for open and
 * fd. */
bool termfile_decode(struct termfile *t, const uint8_t *data, size_t len);

#endif
