/* node_impl - the parts of a node, one struct for each file that owns it. Only for raft/. All of it belongs to the loop
 * thread unless a comment says otherwise. */
#ifndef DUST_RAFT_NODE_IMPL_H
#define DUST_RAFT_NODE_IMPL_H

#include <pthread.h>
#include <raft.h>
#include <raft/uv.h>
#include <stdatomic.h>
#include <string.h>
#include <uv.h>

#include "raft/ask.h"
#include "raft/call.h"
#include "raft/guard.h"
#include "raft/heads.h"
#include "raft/inside.h"
#include "raft/member.h"
#include "raft/node.h"
#include "raft/outcome.h"
#include "raft/peer.h"
#include "raft/promise.h"
#include "raft/read.h"
#include "raft/roster.h"
#include "raft/starts.h"
#include "raft/wire.h"
#include "vfs/assembly.h"
#include "vfs/entry.h"
#include "vfs/txn.h"

#define TICK_MS 20u
#define BEACON_MS 100u
#define RESEND_MS 300u
#define RESEND_MAX_MS 5000u
#define SLICE_MS 20u       /* how long a member keeps the turn when another one wants it */
#define GATHER_MS 1000u    /* how long a new leader waits to hear what is in flight */
#define MAX_MEMBERS ROSTER_MAX /* in one cluster */
#define PROPOSED_MAX 256   /* transactions that a leader remembers as proposed; a power of two */
#define PARTS_AHEAD 8      /* parts of a large transaction on their way at a time */

struct node;

enum node_state { NODE_STARTING, NODE_RUNNING, NODE_STOPPING, NODE_STOPPED, NODE_FAILED };

/* ---- io.c: raft_io over the storage and our peers ---- */
struct io {
    struct raft_io raft_io;
    struct storage *storage;
    struct guard guard;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb closed; /* libraft's, called once after the loop has drained */
    struct err load_err; /* why load, or start, has failed, if we know better than libraft */
    int (*start)(struct raft_io *, unsigned, raft_io_tick_cb, raft_io_recv_cb);
    struct {
        raft_id id;
        raft_index told; /* the commit index last told to this member */
    } told[MAX_MEMBERS];
    uint64_t refused;     /* messages that were garbage, or not for us */
    raft_index cut_index; /* leave out the log from here on when it is loaded; 0: nothing */
    struct append_req *appends; /* not given back to libraft yet, newest first */
    struct reserve *reserve;    /* memory for when there is none */
    struct append_req *delayed, **delayed_tail; /* to be written by io_write, oldest first */
    raft_index noticed; /* the commit index when `notice` was last started */
    struct put_req *kept_put;
    int write_code; /* of the last write of the log that failed, 0: none did */
};

/* ---- fsm.c: what agreed entries do ---- */
struct fsm {
    struct raft_fsm raft_fsm;
    raft_index skip_until; /* entries up to here are in app.db already */
    /* A transaction in parts, being put together. */
    raft_index assembling_from; /* the entry of part 0 */
    bool assembling, own; /* own: it is the oldest speculative version, whose pages are here */
    struct vid id, parent;
    uint32_t next_part;
    struct assembly parts; /* not used for its own */
    uint32_t slot;
    bool has_slot;
    struct heads heads;
    uint64_t log_bytes; /* applied since the last snapshot */
    uint64_t snapshot_log_bytes; /* of these, up to the snapshot that is being taken */
    raft_index missed_from; /* an entry was not applied, though it should have been: it, or part 0 of its transaction */
    bool stuck;          /* an entry could not be applied for want of space or memory: nothing is, until begun anew */
    struct err stuck_on; /* … and why */
    bool paused;         /* nothing is applied while a repair is under way; then the instance is begun anew */
    uint64_t urgent; /* members whose transactions were applied in this turn of the loop */
};

/* ---- submit.c: this member's transactions on their way, and the leader's side of it ---- */
struct inflight { /* beside its commit */
    struct job job;
    struct inflight *next;
    struct sealed *sealed;
    struct vid id, parent;
    uint64_t seq;
    uint64_t after; /* index applied when it was made */
    uint64_t begun_us; /* when it was handed over */
    struct commit *commit;
    uint32_t sent, applied; /* parts */
};

struct submit {
    struct inflight *first;        /* in the order of staging */
    _Atomic unsigned count;        /* any thread reads */
    uint64_t sent_at_ms;           /* when something was last sent or applied */
    uint32_t resend_ms;            /* it is sent again so long after: longer each time, until something is applied */
    uint64_t lost_seq, lost_ms;    /* from which one it was last sent again because it had been lost, and when */
    uint64_t again_ms;             /* when a large one was last sent again since the leader refused a part */
    /* as the leader */
    bool ready; /* every entry of earlier terms is applied */
    raft_term barrier_term;
    struct vid tail; /* the last transaction proposed */
    struct vid *proposed; /* ring of ids proposed and not yet applied (or long ago) */
    unsigned n_proposed;
    struct vid stream;    /* a transaction whose parts are being proposed */
    uint32_t stream_next; /* 0: none */
    uint64_t taken_ms;    /* when a part was last taken */
    struct raft_buffer *batch;
    unsigned n_batch, room;
    size_t batch_bytes;
    uint64_t batch_us;  /* when the first of these came */
};

/* ---- grant.c: the turn between members ---- */
struct wish {
    raft_id id;
    bool wants;
    unsigned active; /* transactions in flight */
    bool reported;   /* in this term */
    uint64_t since;  /* order of asking */
    uint64_t held;   /* number of the grant it says it holds */
    uint64_t heard_ms;
    uint64_t clock_ms; /* its own, as it told it */
    uint64_t echo_ms;  /* ours: it was in our term at some moment after our clock showed this; 0: not known */
};

struct grant {
    /* as a member */
    raft_term term; /* of the leader that the rest is about */
    bool leader_ready;
    uint64_t leader_clock_ms; /* as it told it last; 0: not in this term */
    uint64_t number;  /* of the grant that we hold, 0 for none */
    uint64_t offered; /* a grant that waits for its base version to be the head */
    struct vid base;
    bool recalled;
    bool told_want; /* whether the last TURN_WISH said that we want the turn */
    _Atomic uint64_t fresh_ms; /* all that was committed then, as the leader said, is applied; any thread reads */
    uint64_t told_ms;          /* when it said so the next time, 0: applied already, or not told */
    raft_index told_commit;
    struct roster roster; /* what the leader says of the members */
    /* as the leader */
    raft_id holder; /* 0: nobody */
    uint64_t last_number;
    uint64_t granted_ms, recalled_ms, sent_ms;
    uint64_t ticked_ms; /* the last tick */
    bool recalling;
    bool released;         /* the holder gave it back with `release_tail`, which is not ours yet */
    struct vid release_tail;
    uint64_t gather_until_ms;
    struct wish wish[MAX_MEMBERS];
    uint64_t order;
};

/* ---- change.c: membership, as the leader; one change at a time ---- */

#define CHANGE_JOIN 100 /* beside enum node_change */

struct change {
    bool busy;
    int what; /* enum node_change, or CHANGE_JOIN */
    raft_id subject;
    struct asker asker;
    struct raft_change req;
    struct raft_transfer transfer;
    raft_id demoted[MAX_MEMBERS]; /* as we were asked, the last ones: their own joins do not promote them any more */
    unsigned n_demoted;
};

/* ---- join.c ---- */
struct join {
    /* as the leader */
    char joiner[ADDRESS_TEXT_MAX];
    uint64_t joiner_boot;
    struct {
        char address[ADDRESS_TEXT_MAX];
        uint64_t boot;
        raft_id id;
    } joined[MAX_MEMBERS]; /* answers to repeat when a joiner asks again */
    unsigned n_joined;
    /* as a joiner */
    bool joining;
    unsigned ask;
    uint64_t asked_ms, joined_ms;
    uint64_t moved_ms; /* when something last came, and what: */
    raft_index seen_log;
    uint32_t seen_page;
    struct err join_err;   /* the last refusal, for the message when time is up */
    raft_index join_index; /* what was committed when we were taken in */
};

/* ---- transfer.c, give.c: pages for a member that is too far behind ---- */
#define SESSIONS_MAX 8

struct transfer;

struct give {
    struct session {
        raft_id to; /* 0: none */
        uint64_t req, used_ms;
        uint32_t slot;
        struct snap snap;
        struct head_info head;
        raft_index index; /* up to here all is in it */
    } session[SESSIONS_MAX];
};

/* ---- idle.c: checkpoints when writes stop ---- */
struct idle {
    bool folding; /* work is in the thread pool */
    uint64_t since_ms, seen_seq; /* the agreed version at the last look, and since when it has been so */
    uv_work_t work;
};

/* ---- again.c: the instance begun anew ---- */
struct again {
    bool waiting;        /* for the disk: no instance, no peers */
    bool looking;        /* work is in the thread pool */
    uint64_t next_ms;    /* when to look */
    unsigned tries;
    struct err result;
    uv_work_t work;
};

/* ---- away.c: files that were moved away ---- */
struct away {
    bool looking; /* work is in the thread pool */
    struct err result;
    uv_work_t work;
};

/* ---- repair.c: damaged pages ---- */
struct repair {
    uint64_t tried_ms;
    bool scrubbing;
    uint32_t next_pgno; /* to be looked at */
    uv_work_t work;
};

struct node {
    struct database *db;
    struct node_options opt;
    struct member self;
    char address[ADDRESS_TEXT_MAX]; /* ours, as others know it */
    uint64_t boot;                  /* of this start (starts.h) */
    uint64_t started_ms;            /* when; by clock_ms */
    bool accepted;                  /* node_accept has done its work */
    struct starts starts;           /* of the others */
    struct err unopened;            /* why the last message that was not opened was not … */
    uint64_t unopened_ms;           /* … and when; 0: there was none */

    pthread_t thread;
    uv_loop_t loop;
    uv_async_t async;
    uv_timer_t timer;
    uv_prepare_t prepare;
    uv_timer_t limit;  /* how long closing may take */
    uv_timer_t gather; /* what was collected has waited long enough (submit.c) */
    uv_timer_t notice; /* tell followers the commit index when nothing else does */

    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct job *jobs, **jobs_tail; /* under mutex */
    bool signalled;                /* under mutex: the loop knows that there are jobs */
    struct outcomes outcomes;      /* under mutex */
    struct job *deferred;          /* to be run before the loop sleeps */
    _Atomic int state;  /* enum node_state; changed under mutex */
    _Atomic bool removed; /* from the cluster, and told so */
    struct err failure; /* under mutex; why the state is NODE_FAILED, or why it waits (again.c) */
    bool up;        /* under mutex: node_start may return */
    bool loop_done; /* under mutex: jobs are queued, but nobody is woken for them; true before a loop begins, too */
    bool has_async;
    struct job halt;
    bool halted;    /* under mutex: the thread has ended; jobs are run by whoever posts them */
    bool restart;   /* begin again when the loop has drained (again.c) */
    struct again again;

    struct raft raft;
    bool raft_open; /* raft_init done */
    bool running;   /* raft_start done */
    bool stopping;
    bool raft_closed;
    raft_term seen_term;
    int seen_state;
    raft_id seen_leader;
    raft_index seen_applied;
    uint64_t changed_ms; /* when state, term or leader last changed */
    bool leader_lost;    /* lost.c */
    uint64_t ticks;

    struct peers *peers;
    struct io io;
    struct promise promise;
    struct fsm fsm;
    struct submit submit;
    struct grant grant;
    struct ask ask;
    struct read read;
    struct change change;
    struct join join;
    struct give give;
    struct transfer *transfer;
    uint64_t fetches; /* sessions begun as a receiver */
    struct send_req *send_reserve;
    struct repair repair;
    struct away away;
    struct idle idle;
    struct vid noted; /* what `member` on disk says app.db is at, or was brought to */
};

enum note_kind {
    NOTE_SUBMIT = 1,  /* id0 = transaction, num0 = part; data = the entry */
    NOTE_REFUSED,     /* id0 = transaction, id1 = the leader's tail, num1 = the part that it waits for, 0: not of that one */
    NOTE_TURN_STATE,  /* see grant.c */
    NOTE_TURN_WISH,   /* see grant.c */
    NOTE_JOIN,        /* text = address of the joiner, num0 and req = its boot nonce, num1 = standby */
    NOTE_JOIN_REPLY,  /* code, text = reason; num0 id, num1 page size, data = cluster id */
    NOTE_CHANGE,      /* num0 what, num1 member; num2: nobody asked for it, a join does, and req is 0 */
    NOTE_CHANGE_REPLY, /* code, text */
    NOTE_FETCH,       /* see fetch.c */
    NOTE_FETCH_REPLY,
    NOTE_INDEX,       /* see read.c */
    NOTE_INDEX_REPLY,
    NOTE_REMOVED,     /* you are not a member */
    NOTE_CONFIRM,     /* see read.c */
    NOTE_CONFIRMED,
    NOTE_COPY,        /* num0 = a start of the receiver: another one is a copy (roll.c) */
};

static inline uint64_t node_now(const struct node *n)
{
    return uv_now(&n->loop);
}

/* It is being shut down for good, not begun again. */
static inline bool node_is_ending(const struct node *n)
{
    return n->stopping && !n->restart;
}

/* again.c */
void again_cut(struct node *n);                               /* the guard wants the log cut */
void again_later(struct node *n, const struct err *e);        /* the disk has failed: begin anew when it is well */
void again_tick(struct node *n);                              /* while it is not */
void again_now(struct node *n);                               /* what the instance has applied is not all */
void again_forget_instance(struct node *n);                   /* the one that has been closed */

/* away.c */
void away_begin(struct node *n); /* an instance has been started */
void away_tick(struct node *n);  /* are app.db and the folder where they were? */

/* node.c */
void node_close_all(struct node *n); /* the loop ends when all is closed */
void node_fail(struct node *n, const struct err *e);
void node_set_up(struct node *n);
bool node_is_leader(const struct node *n);
bool node_knows(const struct node *n, raft_id id); /* is it in the configuration? */
raft_id node_leader(const struct node *n, const char **address);
/* How long a member has been silent, -1 if that is unknown. A leader expects everybody to speak, from its election on.
 * */
int64_t node_last_heard_ms(const struct node *n, const char *address);
int node_begin_raft(struct node *n, struct err *e);
int node_accept(struct node *n, struct err *e); /* the log and app.db have been found to belong together */

/* send.c */
int send_init(struct node *n, struct err *e);
void send_deinit(struct node *n);
int send_message(struct raft_io *raft_io, struct raft_io_send *req, const struct raft_message *message,
    raft_io_send_cb cb); /* raft_io.send */
void send_note(struct node *n, const char *address, raft_id to, const struct note *note);
void send_commit(struct node *n, bool everybody); /* tell followers the commit index */

/* recv.c */
void recv_message(void *ctx, void *data, size_t len); /* peers_options.recv, stale, refused */
void recv_stale(void *ctx, void *data, size_t len);
void recv_refused(void *ctx, const struct err *why);

/* io.c */
struct node *io_node(struct raft_io *raft_io);
int io_init(struct node *n, struct err *e);
void io_close_done(struct node *n);
void io_tick(struct node *n);
void io_write(struct node *n); /* what libraft has appended in this turn of the loop; what goes to others has left by now */
void io_started(struct node *n); /* raft_start has returned */
void io_deliver(struct node *n, struct raft_message *m);
void io_elapse(struct node *n); /* libraft looks at its clock now, not at its next tick */

/* lost.c */
uint64_t lost_quiet_ms(const struct node *n); /* nobody gives up a leader that it has heard since */
void lost_tick(struct node *n);

/* fsm.c */
void fsm_init(struct node *n);
void fsm_restart(struct node *n); /* the instance is begun again: nothing is applied twice */
void fsm_deinit(struct node *n);
raft_index fsm_covered(const struct node *n); /* up to here all that the log holds is in the agreed version */
void fsm_tick(struct node *n); /* adapts when the next snapshot is taken */
int fsm_find_start(struct node *n, const struct raft_snapshot *snapshot, raft_index start,
    const struct raft_entry *entries, size_t n_entries, struct err *e);
/* Put into effect the entries beyond what app.db has, agreed or not; *count: of transactions. For salvage.c. */
int fsm_replay(struct node *n, raft_index start, const struct raft_entry *entries, size_t n_entries, uint64_t *count,
    struct err *e);
/* Note in *m that app.db is brought to this version; it may be at what was noted before for a while yet. */
void fsm_note(struct node *n, struct member *m, const struct vid *id, raft_index index);
void fsm_adopt(struct node *n, const struct head_info *head); /* app.db was replaced by a transfer */

/* submit.c */
int submit_init(struct node *n, struct err *e);
void submit_deinit(struct node *n);
void submit_pump(struct node *n);
void submit_again(struct node *n); /* send everything once more: a new leader, or a loss */
void submit_look(struct node *n); /* propose what was collected, unless more of it is worth waiting for */
void submit_from_sql(void *ctx, struct sealed *sealed, const struct version *v, struct commit *commit); /* replicator.h */
void submit_received(struct node *n, const struct wire_head *from, const struct note *note);
void submit_refused(struct node *n, const struct note *note);
void submit_applied(struct node *n, const struct vid *id, uint32_t part, bool last);
void submit_settled(struct node *n); /* the agreed version came another way: those up to it have taken effect */
void submit_void(struct node *n); /* the speculative versions are gone */
void submit_fail(struct node *n, int code, const char *text);
void submit_leader_changed(struct node *n);
void submit_tick(struct node *n);

/* grant.c */
void grant_poke(struct node *n); /* any thread */
void grant_look(struct node *n);
void grant_applied(struct node *n); /* something was */
/* How long ago, at most, a majority of the voters was in this leader's term. */
uint64_t grant_majority_age_ms(const struct node *n);
void grant_tick(struct node *n);
void grant_leader_changed(struct node *n);
void grant_ready(struct node *n);
void grant_state(struct node *n, const struct wire_head *from, const struct note *note);
void grant_wish(struct node *n, raft_id from, const struct note *note);
uint64_t grant_awaited(struct node *n); /* member that waits for its base version, 0 for none */

/* change.c */
/* Begin a change, or tell the asker that another one is under way (false). change_over ends it. */
bool change_begin(struct node *n, struct asker *a, int what, raft_id subject);
void change_over(struct node *n, int code, const char *text);
void change_done(struct raft_change *req, int status);
void change_lead(struct node *n, struct asker *a, int what, raft_id id); /* this member leads */
void change_received(struct node *n, const struct wire_head *from, const struct note *note);
void change_removed(struct node *n, raft_id from); /* we are told that we are no member */
void change_diverged(struct node *n, raft_index index, const struct vid *theirs); /* our history is another one */
void change_forgotten(struct node *n, raft_index had); /* … that our log has lost entries that it had stored */
void change_fail(struct node *n, int code, const char *text);
void change_tick(struct node *n);

/* join.c */
void join_over(struct node *n, int code, const char *text); /* CHANGE_JOIN has ended */
void join_received(struct node *n, const struct note *note);
void join_reply_received(struct node *n, const struct note *note);
void join_tick(struct node *n);         /* while joining */
void join_promote_tick(struct node *n); /* always */
void join_promote_answered(struct node *n, const struct note *note);

/* roll.c */
bool roll_call(struct node *n, const struct wire_head *h);       /* a message has come: false: its sender is a copy */
void roll_roster(struct node *n, const struct roster *r);        /* the leader has said which starts it has heard of */
void roll_copied(struct node *n, const struct wire_head *from, const struct note *note); /* … that we are a copy */
void roll_refused(struct node *n, const struct err *why); /* this folder is not the member any more */

/* idle.c */
void idle_tick(struct node *n);

/* repair.c */
void repair_tick(struct node *n);

/* give.c */
void give_received(struct node *n, const struct wire_head *from, const struct note *note);
void give_tick(struct node *n);
void give_deinit(struct node *n);

/* transfer.c */
bool transfer_wanted(struct node *n, struct raft_message *m, raft_id from, const char *address); /* takes m if true */
void transfer_received(struct node *n, const struct note *note); /* an answer */
/* Pull all pages that differ from the leader, because some here are damaged. False: not now. */
bool transfer_repair(struct node *n, raft_id from, const char *address);
uint32_t transfer_page(const struct node *n);  /* the next one to come, 0: none is awaited */
bool transfer_folding(const struct node *n); /* all have come, and are put into app.db */
void transfer_tick(struct node *n);
void transfer_deinit(struct node *n);

#endif
