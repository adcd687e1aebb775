/* log - libraft's storage of one machine, in memory: what its disk holds of term, vote, snapshot and entries. */
#ifndef DUST_SIM_LOG_H
#define DUST_SIM_LOG_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct machine;

struct log_entry {
    raft_term term;
    unsigned short type;
    size_t len;
    uint8_t *bytes;
};

struct log_server {
    raft_id id;
    int role;
    char address[40];
};

struct log_snapshot {
    raft_index index; /* 0: none */
    raft_term term;
    raft_index conf_index;
    unsigned n_servers;
    struct log_server servers[16];
    size_t len;
    uint8_t bytes[128];
};

/* What would be found after a crash. entries[i] is the entry of index first + i. */
struct log {
    raft_term term;
    raft_id vote;
    struct log_snapshot snapshot;
    raft_index first;
    size_t n, room;
    struct log_entry *entries;
    struct storage *storage; /* of the instance that runs; NULL: none */
};

/* The process has ended; power: of the writes under way some are done, in order, else all or none of what had begun. */
void log_crash(struct machine *m, bool power);
void log_wipe(struct machine *m);

/* The entry at this index on the disk, NULL: not there (any more). */
const struct log_entry *log_entry_at(const struct machine *m, raft_index index);

/* By seed: how soon libraft takes snapshots, and how much it keeps behind them. */
struct log_snapshots {
    unsigned threshold, trailing; /* 0: as dust says */
};
extern struct log_snapshots log_snapshots;

#endif
