/* guard - keeps libraft 0.15 honest, by standing between it and its raft_io.
 *
 * Stock libraft 0.15.0 can lose acknowledged entries. Each way it does so is visible at the raft_io boundary,
 * and can be closed there: amend or swallow a message that would say too much, put off one that libraft
 * cannot handle at this moment, stop for good when the disk has failed. Why each rule is sound is told in
 * guard.c; tests/sim/guard_sim.c fails without it.
 *
 * Use: one `struct guard` inside the wrapper of raft_io, initialised after raft_init() and before
 * raft_start(). Every call is made on the loop thread; none blocks; none calls back except through the
 * `deliver` it is given. What the wrapper must do:
 *
 * - raft_start: guard_started(), at once.
 * - send: if guard_send() says no, complete with 0, later; send AppendEntries in parts, with guard_split_*().
 * - receiving: guard_recv() in place of libraft's callback.
 * - tick: guard_release(); then, if guard_tick() says so, libraft's callback.
 * - append: if guard_append_begin() says no, keep the request, write nothing, return 0.
 * - written: if guard_append_done(status) says so, libraft's callback, then guard_release(); else keep the
 *   request.
 * - snapshot_put: as append, with guard_put_begin() and guard_put_done(), for snapshots taken and installed
 *   alike.
 * - truncate: nothing; guard_recv() has made sure that nothing else is being written.
 * - set_term, set_vote: on failure guard_metadata_failed(), and return 0.
 * - fsm->snapshot: RAFT_BUSY unless guard_snapshot_ok().
 * - on becoming leader: raft_barrier(), at once. No change of membership, and no confirmed read, before
 *   guard_settled(). A leader never demotes or removes itself: it transfers its leadership first.
 * - after each turn of the loop: guard_status(). DUST_IO: the member is dead. DUST_AGAIN: it must be closed
 *   and started anew with its log cut. In both cases raft_close(), from a turn of its own. Then complete the
 *   requests that were kept, with RAFT_CANCELED, *newest first* (libraft cuts its log at each, and runs off
 *   its end if the oldest comes first), and only then the close.
 *
 * A dead member has promised nothing that it does not keep; it is safe to start it again from its folder,
 * once the disk is sound.
 *
 * Limits: the guard sees one instance; it cannot help a member whose folder was lost, or put back from a
 * copy, and which starts under its old id. It writes some fields of struct raft: term and vote before a lone
 * voter's election, configuration_uncommitted_index after a snapshot was installed, the election timer at the
 * start, and, while a message is delivered, last_stored and the own role (guard.c, rules 6, 8, 10 and 11). */
#ifndef DUST_RAFT_GUARD_H
#define DUST_RAFT_GUARD_H

#include <raft.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"

/* Hand a message, and the ownership of its payload, to the recv callback that libraft gave to io->start. */
typedef void (*guard_deliver_fn)(void *ctx, struct raft_message *m);

enum guard_fault {
    GUARD_SOUND = 0,
    GUARD_APPEND_FAILED,   /* a write of the log failed */
    GUARD_INSTALL_FAILED,  /* a received snapshot could not be stored, or not be restored */
    GUARD_METADATA_FAILED, /* term or vote could not be stored */
};

/* How often each rule was applied; for dust_metrics. */
struct guard_counts {
    uint64_t clamped;       /* results that claimed more than was proven or stored */
    uint64_t held;          /* results held until an entry of our own term was stored */
    uint64_t stripped;      /* AppendEntries that would have truncated a busy log, cut down to heartbeats */
    uint64_t put_off;       /* InstallSnapshots and TimeoutNows held until the disk was idle */
    uint64_t skipped;       /* AppendEntries made to begin later, where our log does */
    uint64_t dropped;       /* messages swallowed or ignored */
    uint64_t second_votes;  /* of these: requests for a second vote in one term */
    uint64_t terms_told;    /* refusals of a pre-vote into which our term was put */
    uint64_t votes_lent;    /* votes decided by a member that is no voter in its own eyes */
    uint64_t own_terms;     /* terms begun for a member that is the only voter */
    uint64_t ticks_skipped; /* ticks not passed to a follower with writes in flight */
    uint64_t early;         /* results on which less than all that the leader has stored could be committed */
};

struct guard_held; /* a result held back: guard.c */

/* The fields are the guard's own; `enabled` and `counts` may be read by anyone. */
struct guard {
    struct raft *r;
    bool enabled; /* false: watches and counts what is in flight, but changes nothing */
    enum guard_fault fault;
    raft_index cut_index; /* not 0: the instance must be started anew, its log cut from this index on */

    /* As follower: log[1..match_index] is known to equal the log of the leader of match_term. */
    raft_term match_term;
    raft_index match_index;

    /* What the message being delivered says of its leader's log; leader_term 0: nothing is being delivered.
     */
    struct {
        raft_term leader_term;
        raft_index prev_index, last_index; /* prev_index <= last_index */
        raft_term prev_term, last_term;
        bool snapshot; /* it is an InstallSnapshot */
    } claim;

    unsigned n_appends;       /* appends in flight */
    unsigned n_puts;          /* snapshot_puts in flight: 0 or 1 */
    raft_index install_index; /* not 0: the put in flight, or just done, installs a snapshot up to here */
    bool install_done;        /* it is just done: guard_release() has to look what came of it */

    /* As leader: at most one result for each server, of held_term. n_held <= held_cap */
    struct guard_held *held;
    unsigned n_held, held_cap;
    raft_term held_term;

    /* As leader of ends_term: the last index of each of our appends, ascending, those committed left out in
     * time. n_ends <= ends_cap */
    raft_index *ends;
    unsigned n_ends, ends_cap;
    raft_term ends_term;

    /* An InstallSnapshot waiting for the disk; install.type 0: none. Owns its payload and install_address. */
    struct raft_message install;
    char *install_address;

    /* A TimeoutNow waiting for the disk, and for the entries that it speaks of; timeout_now.type 0: none. Owns its
     * address. */
    struct raft_message timeout_now;
    char *timeout_now_address;
    raft_time timeout_now_since;

    struct guard_counts counts;
};

/* Set up *g for r. Cannot fail. With a libraft whose log cannot be looked into (those that define
 * RAFT_VERSION_NUMBER) the guard is not enabled; tests switch it off through g->enabled. */
void guard_init(struct guard *g, struct raft *r);

/* Free what is held, when the instance has been closed. g may be all zeroes. */
void guard_deinit(struct guard *g);

/* In io->send, on the caller's own copy of the message: amends *m in place. True: transmit it. False: do not;
 * complete the request with status 0, and not from within send. */
bool guard_send(struct guard *g, struct raft_message *m);

/* A message has arrived, well formed. Takes over its payload, as libraft would: hands it to deliver, keeps
 * it, or frees it. Entries are one array from raft_malloc(), their data one chunk from raft_malloc() that
 * each names as its batch. m->server_id and m->server_address are the sender; the address need not outlive
 * the call. deliver is called 0 or 1 times. Not to be called from within deliver. */
void guard_recv(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx);

/* Deliver what was held and may now go. To be called after every completed append and snapshot_put, after
 * libraft's own callback, and on every tick; never from within deliver. */
void guard_release(struct guard *g, guard_deliver_fn deliver, void *ctx);

/* raft_start() has just returned 0: to be called before anything else. The only voter is made to step down;
 * the next tick makes it leader again (the wrapper may give it that tick at once). */
void guard_started(struct guard *g, guard_deliver_fn deliver, void *ctx);

/* Whether to pass this tick on to libraft. May call io->set_term and io->set_vote. */
bool guard_tick(struct guard *g);

/* Around io->append. begin: false if the member has stopped: keep the request, write nothing. done: with the
 * status of the write, before libraft's callback; false: do not call that callback, but keep the request for
 * the end (see the top). While the instance is being closed it is false for each that failed or was
 * cancelled. */
bool guard_append_begin(struct guard *g);
bool guard_append_done(struct guard *g, int status);

/* Around io->snapshot_put, in the same way. The failed put of a snapshot that libraft took itself is passed
 * on. */
bool guard_put_begin(struct guard *g);
bool guard_put_done(struct guard *g, int status);

/* set_term or set_vote has failed: the member is dead. The caller returns 0 to libraft, which frees garbage
 * if told of a failure in mid-election; nothing it does afterwards leaves the member. */
void guard_metadata_failed(struct guard *g);

/* DUST_OK, or *e filled and DUST_IO: dead, or DUST_AGAIN: close, and start anew with the log cut. */
int guard_status(const struct guard *g, struct err *e);
bool guard_dead(const struct guard *g);

/* From which entry on the log is to be cut, 0 if it is not. In the `load` of the new instance: drop the
 * entries from here on and call the inner `truncate` for it. If that does not reach the disk, no harm is
 * done. */
raft_index guard_cut_index(const struct guard *g);

/* Whether the FSM may give libraft a snapshot now: no configuration beyond it could get into it. */
bool guard_snapshot_ok(const struct guard *g);

/* Whether this member leads and has committed an entry of its own term: what is committed is known, and a
 * change of membership is allowed. */
bool guard_settled(const struct guard *g);

/* An outgoing AppendEntries in parts, each a proper AppendEntries of its own, so that no message is longer
 * than a link can bear and a heartbeat never waits behind the whole tail of the log. To a server that libraft
 * is only probing there is just the first part: libraft does not count on the rest, and would send it all
 * again with every heartbeat.
 *
 * The iterator may be kept and used up slowly: the entries live until the send is completed. It refers to
 * nothing else. */
struct guard_split {
    struct raft_append_entries whole;
    unsigned next; /* entries handed out so far, 0 <= next <= whole.n_entries */
    unsigned n_entries_max;
    size_t size_max; /* bytes of payload */
    bool first_only;
    bool done;
};

/* Start on *m, an AppendEntries that guard_send() let pass. A part has at most n_entries_max entries and
 * size_max bytes of payload, but at least one entry. Both limits are greater than 0. */
void guard_split_init(struct guard_split *s, const struct guard *g, const struct raft_message *m,
    unsigned n_entries_max, size_t size_max);

/* The next part into *part; its entries point into the whole. False: there are no more. The first call always
 * yields a part (a heartbeat has no entries). */
bool guard_split_next(struct guard_split *s, struct raft_append_entries *part);

#endif
