/* ondisk - what is on a machine's disk for certain of its log: what a power loss would leave at least.
 *
 * It is read with the product's own functions. So that this need not be done for each question, what was read is kept,
 * and each batch that becomes durable is added to it; now and then all is read anew. */
#ifndef DUST_SIM_ONDISK_H
#define DUST_SIM_ONDISK_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "raft/batch.h"

struct file;
struct machine;

struct ondisk_entry {
    uint64_t term, hash;
};

struct ondisk {
    bool known; /* what follows is what the disk holds; otherwise it has to be read */
    uint8_t key[BATCH_KEY_SIZE];
    uint64_t term, vote; /* as of when all was read */
    uint64_t seq;      /* of the last batch */
    uint64_t snapshot; /* its index; 0: there is none */
    const struct file *snapshot_file; /* that this was read from */
    uint64_t first;                   /* entries[i] is the entry of index first + i */
    size_t n, room;
    struct ondisk_entry *entries;
};

/* All that libraft on this machine has been told to be on its disk has to be there: entries, term and vote; and what is
 * there can be read, whether the machine runs or not. */
void ondisk_check(struct machine *m);

/* The machine puts the entry at this index into effect: it has to be on the disks of a majority of the voters, or a
 * snapshot that stands for it. */
void ondisk_check_majority(const struct machine *m, raft_index index);

/* A synchronous write to a file of the log, at this offset, has come to its end; `content` is the file's. */
void ondisk_written(struct machine *m, const uint8_t *content, size_t size, size_t at);

/* What the disk holds has changed in another way. */
void ondisk_forget(struct machine *m);

#endif
