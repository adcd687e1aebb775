/* What the parts of guard_sim share: the world, and what happens in it. One thread. */
#ifndef DUST_SIM_GUARD_WORLD_H
#define DUST_SIM_GUARD_WORLD_H

#undef NDEBUG
#include <assert.h>
#include <raft.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "raft/guard.h"

#define MEMBERS_MAX 5
#define PAYLOAD_MAX 192  /* bytes of an entry: 8 for a command, a configuration of five for the longest */
#define BATCH_MAX 3      /* commands submitted at once */
#define SEED_SECONDS 120 /* a seed that takes longer is taken to hang */
#define HEAL_MS 240000   /* virtual time allowed for coming to agree at the end */
#define REASON_MAX 240

#define ELECTION_MS 1000
#define HEARTBEAT_MS 100
#define INSTALL_MS 5000

/* ---- Options and results ---- */

struct options {
    uint64_t seed_from, n_seeds;
    unsigned long n_steps;
    unsigned n_members;
    unsigned n_jobs;
    bool disk_failures;
    bool guard;
    bool expect_violations;
    bool ci;
    bool quiet; /* do not print the failing seeds */
    bool verbose;
};

/* What one seed has seen; counted by the child in memory shared with the parent. */
struct tally {
    uint64_t elections, acknowledged, crashes, faults, log_cuts, snapshots, installs, transfers, changes;
    struct guard_counts guard;
};

enum verdict { RUNNING = 0, PASSED, UNSAFE, STUCK, CRASHED };

struct outcome {
    enum verdict verdict;
    char reason[REASON_MAX];
    struct tally tally;
};


struct stored_entry {
    raft_term term;
    unsigned short type;
    size_t len; /* <= PAYLOAD_MAX */
    uint8_t payload[PAYLOAD_MAX];
};

/* A snapshot's content: the FSM is a hash over all commands applied and their indexes. */
struct fsm_state {
    raft_index index;
    uint64_t hash;
};

struct stored_snapshot {
    raft_index index; /* 0: none */
    raft_term term;
    raft_index conf_index;
    unsigned n_servers;
    struct {
        raft_id id;
        int role;
    } servers[MEMBERS_MAX];
    struct fsm_state state;
};

/* What would be found after a crash. entries[i] is the entry of index first + i. */
struct disk {
    raft_term term;
    raft_id vote;
    struct stored_snapshot snapshot;
    raft_index first;
    size_t n, cap;
    struct stored_entry *entries;
};

/* An append or a truncate under way, or an append's request kept back after a failure. */
struct op {
    struct op *next;
    uint64_t seq;
    bool truncate;
    raft_index index; /* of the first entry; from where to cut */
    unsigned n;
    const struct raft_entry *entries; /* libraft's, until the callback */
    struct raft_io_append *req;
    raft_io_append_cb cb;
};

struct put {
    bool pending;
    bool install;
    uint64_t seq;
    unsigned trailing;
    const struct raft_snapshot *snapshot; /* libraft's, until the callback */
    struct raft_io_snapshot_put *req;
    raft_io_snapshot_put_cb cb;
};

struct member {
    struct raft_io io; /* first: libraft hands this back */
    struct raft raft;
    struct raft_fsm fsm;
    struct guard guard;
    struct sim *sim;
    unsigned id; /* 1..n_members; its address is the number as text */
    char address[8];
    bool up;
    unsigned generation; /* counts the starts: completions of a former life are void */
    unsigned long down_until;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb close_cb;
    raft_term barrier_term; /* term in which the barrier was submitted */
    raft_index cut_index;   /* handed from the guard to the next life: leave out the log from here on */
    struct fsm_state state;
    struct fsm_state frozen; /* the state of which an asynchronous snapshot is being taken */
    struct raft_transfer *transfer;

    struct disk disk;
    uint64_t seq;
    raft_index next_index; /* of the next append: raft_uv's append_next_index */
    struct op *ops, **ops_tail;
    struct op *kept; /* appends whose callback the guard withheld, newest first */
    struct put put;
    bool barrier_open; /* an append was made since the last truncate or put: a further truncate would not be
                          lost */
    struct raft_io_snapshot_get *get;
    raft_io_snapshot_get_cb get_cb;
    struct raft_io_async_work *work;
    raft_io_async_work_cb work_cb;
};

/* The completion of a send; it never happens from within the send. */
struct completion {
    struct completion *next;
    struct member *member;
    unsigned generation;
    struct raft_io_send *req;
    raft_io_send_cb cb;
    int status;
};

/* A message under way. The payloads are our own copies, in `entries` and `snapshot`. */
struct message {
    struct message *next;
    struct raft_message m;
    struct stored_entry *entries;
    struct stored_snapshot snapshot;
    struct completion *completion; /* of an InstallSnapshot: pending until it has arrived or is lost */
};

struct link {
    bool cut;
    struct message *head, **tail;
};

/* What is known to have happened at one index. */
struct fact {
    uint64_t command;      /* applied by someone; 0: none */
    uint64_t hash;         /* the FSM's hash after it */
    unsigned by;           /* who applied it first */
    uint64_t acknowledged; /* the command acknowledged to a client; 0: none */
};

/* How bad the times are; chosen anew now and then. Chances are in 10,000 a step. */
struct weather {
    unsigned long until;
    unsigned crash, cut, heal, isolate;
    unsigned deliver, disk, submit; /* weights; the rest of 100 is time passing */
    unsigned slow_member;           /* its disk is nine times slower; 0: none */
};

struct sim {
    const struct options *opt;
    struct outcome *outcome;
    uint64_t rng;
    raft_time now;
    unsigned long step;
    bool healing;
    uint64_t n_commands;
    struct member *members[MEMBERS_MAX + 1];
    struct link links[MEMBERS_MAX + 1][MEMBERS_MAX + 1];
    struct completion *completions, **completions_tail;
    struct fact *facts;
    size_t n_facts;
    raft_index last_acknowledged;
    unsigned *leaders; /* by term: who led; 0: nobody */
    size_t n_leaders;
    struct weather weather;

    /* Varied by seed. */
    bool pre_vote, snapshots, async_snapshots, changes, grow, transfers;
    unsigned threshold, trailing;
    unsigned window; /* a client submits while fewer entries than this are uncommitted */
    unsigned part_entries;
    size_t part_size;
};

/* ---- world.c: chance, and how a run ends ---- */

uint64_t random64(struct sim *s);
unsigned random_below(struct sim *s, unsigned n);
bool chance(struct sim *s, unsigned per_10000);
uint64_t mix(uint64_t h, uint64_t x);
void __attribute__((format(printf, 2, 3), noreturn)) violation(struct sim *s, const char *fmt, ...);
void __attribute__((format(printf, 2, 3), noreturn)) stuck(struct sim *s, const char *fmt, ...);
void *must(void *p);

/* ---- facts.c: what is known to have happened, and whether it may have ---- */

void note_applied(struct member *m, raft_index index, uint64_t command);
void note_restored(struct member *m, const struct fsm_state *state, raft_index index);
void note_acknowledged(struct member *leader, raft_index index, uint64_t command);
void note_leader(struct member *m);

/* ---- copies.c: configurations, entries and snapshots, copied in and out of libraft's memory ---- */

void configuration_make(
    struct sim *s, struct raft_configuration *c, const struct stored_snapshot *from);
void configuration_store(struct stored_snapshot *to, const struct raft_configuration *c);
void entry_store(struct stored_entry *to, const struct raft_entry *from);
struct raft_entry *entries_make(const struct stored_entry *from, size_t n);
void state_make(struct raft_buffer *buf, const struct fsm_state *state);
void snapshot_store(struct stored_snapshot *to, const struct raft_snapshot *from);
struct raft_snapshot *snapshot_make(struct sim *s, const struct stored_snapshot *from);

/* ---- disk.c: what would be found after a crash, and what is under way to it ---- */

void disk_append(struct member *m, const struct op *op);
void disk_put(struct member *m, const struct put *p);
void op_apply(struct member *m, const struct op *op);
struct op *op_push(struct member *m);
struct op *op_pop(struct member *m);
void check_logs(struct sim *s);

/* ---- links.c: messages under way ---- */

struct completion *completion_new(struct member *m, struct raft_io_send *req, raft_io_send_cb cb);
void complete_later(struct sim *s, struct completion *c, int status);
void run_completions(struct sim *s);
void link_reset(struct sim *s, unsigned a, unsigned b);
void link_cut(struct sim *s, unsigned a, unsigned b, bool cut);
void link_push(struct member *from, const struct raft_message *m, struct completion *completion);
void hand_to_raft(void *ctx, struct raft_message *message);
void deliver(struct sim *s, unsigned a, unsigned b);

/* ---- io.c: raft_io, and the FSM ---- */

extern const struct raft_io io_methods;
bool write_fails(struct member *m, unsigned per_10000);
int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result);
int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs);
int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs);
int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs);
int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf);

/* ---- members.c: the life of a member ---- */

void member_start(struct member *m);
void counts_add(struct guard_counts *to, const struct guard_counts *n);
void member_close(struct member *m);
void member_crash(struct member *m);
void watch(struct sim *s);

/* ---- steps.c: what happens next ---- */

void step(struct sim *s);

#endif
