/* node - this process's part in a cluster: one loop thread per database, on which everything of Raft happens.
 *
 * SQL threads reach it in three ways only: the calls below, which queue a job under a mutex and wake the loop
 * (uv_async_send); `database.rep`, which it fills in; and the page store and the turn, which it changes. Nothing of
 * libuv or libraft is ever called from an SQL thread.
 *
 *   STARTING ──▶ RUNNING ──▶ STOPPING ──▶ STOPPED
 *       └──────────┴──▶ FAILED (not for this member: reads go on, writes are refused, the reason is kept)
 */
#ifndef DUST_RAFT_NODE_H
#define DUST_RAFT_NODE_H

#include "raft/key.h"
#include "raft/member.h"
#include "raft/outcome.h"
#include "vfs/database.h"

struct node;

enum node_mode {
    NODE_RESUME,    /* a member already: its identity is in `self` */
    NODE_BOOTSTRAP, /* the first member of a new cluster; `self` says who, the database is laid out */
    NODE_JOIN       /* ask `join` to be taken in; fills in `self` */
};

struct node_options {
    enum node_mode mode;
    struct member self;
    struct address join[16]; /* members to ask */
    unsigned n_join;
    uint32_t election_ms;
    uint32_t join_timeout_ms; /* until it is taken in */
    uint32_t join_stall_ms;   /* from then on: without anything new */
    struct keys keys; /* of the cluster; none: it has none, and listens on loopback only */
    bool standby;     /* join as a standby, not a voter */
    uint32_t n_pages; /* NODE_BOOTSTRAP: of the database as it stands, which gets dust's marks */
};

/* Start the loop thread and all that runs on it, and wait until the member is up (NODE_JOIN: taken in, its database
 * caught up, and a voter if it is to be one). Fills in db->rep. On failure nothing is left running.
 * DUST_EXISTS: address in use. DUST_NOLEADER: nobody answered in time. DUST_CORRUPT, DUST_VERSION, DUST_IO, … */
int node_start(struct node **out, struct database *db, const struct node_options *opt, struct err *e);

/* Stop the thread and free all. NULL is fine. Any thread but the loop's. */
void node_stop(struct node *n);

/* Stop the thread, but keep the object: what is asked of it from now on gets an error. For a database on which
 * connections are still open. */
void node_halt(struct node *n);

/* A short copy of where things stand. Any thread. */
struct node_view {
    uint64_t id, leader_id, term, applied, stored, commit;
    char address[ADDRESS_TEXT_MAX], leader[ADDRESS_TEXT_MAX];
    const char *role; /* leader, follower, candidate, standby, joining, recovering, stopped, failed */
    bool ready;       /* a leader is known and takes transactions */
    bool promotion_due; /* a standby as yet, that asks to be made the voter that it joined as */
    uint64_t turn_holder;
    unsigned in_flight;
    uint64_t log_bytes, snapshot_index;
    uint64_t messages_in, messages_out, bytes_in, bytes_out, dropped;
    char key[KEYS_MAX * (KEY_HINT_TEXT + 2)]; /* hints of the keys that it has; or "none" */
    struct err failure;
};
void node_view(struct node *n, struct node_view *out);

struct node_member {
    uint64_t id;
    char address[ADDRESS_TEXT_MAX];
    int role; /* RAFT_VOTER, RAFT_STANDBY, RAFT_SPARE */
    bool is_self, is_leader, has_match;
    uint64_t match_index, lag;
    int64_t last_contact_ms; /* -1: unknown */
    char state[16];
};
/* The members as this one knows them; *list is to be freed by the caller. */
int node_members(struct node *n, struct node_member **list, unsigned *count, struct err *e);

struct node_entry {
    uint64_t index, term, origin;
    const char *kind;
    struct vid id, parent;
    uint32_t n_pages;
    uint64_t bytes;
    char *sql; /* may be NULL */
};
/* Entries that this member's log holds, from `from` on, at most `max`. To be freed with node_log_free. */
int node_log(struct node *n, uint64_t from, unsigned max, struct node_entry **list, unsigned *count, struct err *e);
void node_log_free(struct node_entry *list, unsigned count);

/* What became of transaction `id`; `after`: an index applied before it was made, 0 if not known. Waits for the leader,
 * and for the turn, at most timeout_ms each. DUST_NOLEADER, DUST_BUSY, DUST_UNKNOWN: not to be had now. SQL threads. */
int node_outcome(struct node *n, const struct vid *id, uint64_t after, uint32_t timeout_ms, enum outcome *out,
    struct err *e);

enum node_change { CHANGE_REMOVE, CHANGE_PROMOTE, CHANGE_DEMOTE, CHANGE_TRANSFER };

/* Change the cluster, through the leader, wherever it is. Waits at most timeout_ms. */
int node_change(struct node *n, enum node_change what, uint64_t id, uint32_t timeout_ms, struct err *e);

/* Has this member been told that it is none any more? Any thread. */
bool node_was_removed(struct node *n);

/* If this member leads, let another one lead, so that the cluster need not wait for an election when this process ends.
 * Waits at most timeout_ms (or about an election timeout). */
void node_hand_over(struct node *n, uint32_t timeout_ms);

/* Wait until this member has applied everything committed before the call (as the leader knows it). */
int node_catch_up(struct node *n, uint32_t timeout_ms, struct err *e);

/* Bring app.db to the newest agreed version (see database_checkpoint); waits until that is safe in the log. */
int node_checkpoint(struct node *n, struct err *e);

#endif
