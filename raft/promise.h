/* promise - what this member has promised to the others: its term, its vote, and up to where its log is on disk.
 *
 * That the last batches of the log are damaged looks, in its files, as if they had never been written (log_load.c): a byte
 * that decayed, or was changed, in what had been stored and acknowledged long ago cannot be told from a write that a crash
 * cut off; nor a newer block of `term` from none. A log that has forgotten what it had acknowledged may vote for a leader
 * that never had it, and an acknowledged transaction is lost. So what has been promised is noted down, in a file beside the
 * log, and looked at when the log is loaded: one that has less is refused, and left as it is.
 *
 * The file is written after the log is (or term, or vote), and not flushed: nothing waits for it. After the end of a
 * process, kill -9 included, it says exactly what had been promised; after a power loss it may be behind. It must never
 * be ahead. So what is taken back (entries that a new leader replaces, a log that an installed snapshot replaces) is
 * noted before, and flushed.
 *
 * Format of `promise`, 64 bytes, little-endian: "dustprom" 8, term 8, vote 8 (0: none), index 8, zeros 16, and the
 * BLAKE2b-128 of what stands before, 16. Anything else is no promise, and nothing is compared with it.
 *
 * All on the loop thread. */
#ifndef DUST_RAFT_PROMISE_H
#define DUST_RAFT_PROMISE_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/err.h"

struct promise {
    bool open;
    int fd;
    uint64_t term, vote, index; /* vote: 0 for none in this term; index: of the last entry on disk, or of the snapshot */
};

/* Open, or make, `promise` in this folder. Nothing is done if it is open. DUST_IO, DUST_FULL, DUST_REFUSED. */
int promise_open(struct promise *p, const char *dir, struct err *e);

/* Zeroed is fine. */
void promise_close(struct promise *p);

/* What can be read from dir/raft is a log that ends at `index`; this term and this vote. DUST_CORRUPT: that is less than
 * what had been promised; *e names dir. */
int promise_check_log(const struct promise *p, const char *dir, uint64_t index, struct err *e);
int promise_check_vote(const struct promise *p, const char *dir, uint64_t term, uint64_t vote, struct err *e);

/* On disk are: the log up to `index`; this term, with no vote in it; this vote. False: it could not be written, and what
 * is noted may stay behind. */
bool promise_stored(struct promise *p, uint64_t index);
bool promise_term(struct promise *p, uint64_t term);
bool promise_vote(struct promise *p, uint64_t vote);

/* The log is about to end at `index`, or before. Flushes. False: it must not. */
bool promise_lower(struct promise *p, uint64_t index);

#endif
