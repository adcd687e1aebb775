/* The guard around libraft 0.15: what it must not say, what it must not hear yet, and when it must stop.
 *
 * Owns nothing but counters, the results and the one InstallSnapshot that it holds back, and what it has
 * learnt about the leader of the current term. It looks into `struct raft`, whose fields are public, and acts
 * through the messages. Loop thread only; nothing here blocks, or asserts on what a peer or the disk does.
 *
 * Raft rests on a few sentences. This is where libraft 0.15 breaks each, and what is done about it. With any
 * of the rules marked (+) taken out, tests/sim/guard_sim.c fails within a few thousand seeds; the others were
 * found by reading. Rules 1 to 9 are for safety, 10 and 11 for progress.
 *
 * 1. "A successful reply means: my log, on disk, equals yours up to here." (+)
 *
 * libraft replies with last_stored, which also counts entries of former leaders that the present one has
 * never seen, and sends such a reply to a new leader when an old write completes. So a result is cut down to
 * min(match_index, last_stored). match_index is proven, not assumed: an AppendEntries of the current term
 * names two entries of its leader's log, the one before its own and the last of its own, and if our log has
 * an entry of that index and that term, then by the Log Matching Property it equals the leader's up to there,
 * whatever libraft made of the message. An installed snapshot proves its last index in the same way. Within
 * one term a leader only appends, so what is proven stays proven; with a new term match_index starts from 0.
 * A result cut down to 0 is still sent: it is true, and tells the leader that we live.
 *
 * For the same reason leader_commit is cut down to the last index that the message speaks of: libraft commits
 * up to min(leader_commit, last_stored), which is right only if all up to leader_commit has been compared.
 *
 * 2. "A leader commits by counting only entries of its own term." (+)
 *
 * libraft counts for last_stored, of whatever term, and appends nothing when elected. So the caller appends a
 * barrier, and as leader we hold successful results until the entry at last_stored is of our own term. From
 * then on every count is for an entry of our own. Results are cumulative within a term, so one for each
 * server, that of the highest index, says all that those left out would have said, in whatever order they
 * came. A rejection is not held: it moves next_index and counts for nothing. Losing a held result (out of
 * memory) is like losing a message: the next heartbeat brings another.
 *
 * 3. "What is not on disk has not happened." (+)
 *
 * libraft's leader, when its write fails, cuts the entries off, stays leader and uses their indexes again in
 * the same term, though followers may have stored them. So a failed append is the end of this instance: the
 * callback is withheld, nothing is sent or heard any more, and the caller closes it. The same holds for a
 * snapshot that could not be installed (libraft has already forgotten the log that it was to replace) and for
 * a term or a vote that could not be stored (libraft would campaign, or free garbage). A snapshot of our own
 * that could not be stored is harmless.
 *
 * 4. "What replaces part of the log does so alone." (+)
 *
 * raft_uv loses a truncate that comes while a snapshot_put is pending. libraft counts an entry as stored
 * twice, or crashes, if it is truncated and received again before its first write is reported. So while
 * anything is being written, an AppendEntries that would truncate is stripped of its entries: what is left is
 * a heartbeat that its leader might have sent, and the leader sends the entries again. An InstallSnapshot is
 * held until the disk is idle and no snapshot is being taken; libraft would drop it, and the leader would
 * wait for install_snapshot_timeout. Only the newest is held: the leader of an older one has given up on it.
 *
 * 5. "A configuration holds from when its entry is in the log; who campaigns has on disk what it shows." (+)
 *
 * A follower whose writes complete after it has become a candidate never takes up a configuration among them;
 * a snapshot that is being installed would be restored under a leader's feet. So, while writes are in flight,
 * a follower gets no ticks and no TimeoutNow, and no RequestVote is sent. While a snapshot is being installed
 * no vote is asked of it either.
 *
 * libraft's leader says TimeoutNow, once, when it has sent all of its log; it may not be stored here then, and our parts of
 * an AppendEntries may come later still. So it is held until all is stored, but not for longer than the leader waits.
 *
 * 6. "A configuration that is cut off the log no longer holds." (+)
 *
 * libraft rolls back by looking up the previous configuration's entry, which may be long gone (a NULL
 * pointer), and after a restart it does not roll back at all. By the time io->truncate is called it is too
 * late. So an AppendEntries that would cut off a configuration is not delivered: the instance is to be closed
 * and started anew with its log cut there, when it finds the right one by itself. The same is done if a
 * snapshot arrives for an index at which we have an entry of a *later* term: libraft takes that for "already
 * there" and acknowledges it.
 *
 * A snapshot must not contain a configuration from beyond it: none is taken while one lies ahead in the log.
 * (configuration_uncommitted_index does not tell: it is 0 after a restart.) After an installation libraft
 * forgets to reset configuration_uncommitted_index, and would refuse every change of membership from then on:
 * we do it.
 *
 * 7. "One vote a term."
 *
 * While a transfer of leadership is pending libraft votes for the transferee even if it has voted for another
 * in the same term. Such a request is dropped.
 *
 * 8. "Each leader has a term of its own." (+)
 *
 * A member that is the only voter makes itself leader without a new term: at raft_start(), on a tick, on
 * TimeoutNow. But in that term it, or another, may have sent entries that it has lost; the same index and
 * term then stand for two different entries, and a standby keeps the wrong one for ever. So it is given a new
 * term, and its own vote in it, before the tick that makes it leader; at the start it is first made to step
 * down; and TimeoutNow is dropped.
 *
 * 9. "Entries that I have already are not appended again." (+)
 *
 * If a leader begins at entry 1 (which it does if it was told last_log_index 0, as a member says that is
 * installing a snapshot), and our log begins later, behind a snapshot, libraft takes the entries that it has
 * cut off for new ones, puts them at the end of its log, and crashes. If it begins elsewhere before our log
 * does, the two never find each other: we refuse, it sends its snapshot, which is older than ours, and so on.
 * What a snapshot covers is committed, so every later leader has the same: the message is made to begin at
 * our snapshot's last entry.
 *
 * 10. "What a majority has stored is committed."
 *
 * libraft only ever asks whether a majority has stored all that the leader itself has stored. A leader whose
 * disk is a little faster than the others', and which is never given a pause, commits nothing at all. So
 * while a result is delivered, last_stored, of which libraft makes no other use then, is lowered to what a
 * majority has stored; libraft counts again for itself. It is lowered only to the end of one of the leader's
 * own appends in this term: what was submitted by one raft_apply() is committed as one, as its single
 * callback, called for the first of its entries, lets everybody believe.
 *
 * 11. "Somebody can always be elected." (+)
 *
 * A refusal of a pre-vote carries the term that was asked for, so a candidate of an old term, with the only
 * log that is long enough, never learns that its term is old, and nobody is elected any more: we put in our
 * own term.
 *
 * A member that is no voter in its own configuration refuses to vote. But that configuration may be one that
 * was never agreed, and its vote the one that is missing. Who asks takes it for a voter; so it votes as one.
 * Nor does such a member ever forget its leader, and it refuses to vote because it has one: if it has not
 * heard from it for an election timeout, the request is marked as one that may disrupt a leader.
 *
 * A leader sends a new configuration while it is storing it. If it crashes before that is done, and a member
 * that is no voter in it has stored it, then that one does not campaign, and does not vote for those whose
 * logs are shorter; with two voters, that is the end. So no configuration is sent before it is on the
 * leader's own disk.
 *
 * What this costs: a follower that truncates waits for its own disk first; one whose disk hangs does not
 * campaign; after a change of membership each follower is sent the entries behind it once more. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "raft/guard_impl.h"

/* ---- Life ---------------------------------------------------------------------------------------------- */

void guard_init(struct guard *g, struct raft *r)
{
    *g = (struct guard){.r = r, .enabled = true};
}

void guard_message_free(struct raft_message *m)
{
    if (m->type == RAFT_IO_APPEND_ENTRIES && m->append_entries.entries != NULL) {
        if (m->append_entries.n_entries > 0) {
            raft_free(m->append_entries.entries[0].batch);
        }
        raft_free(m->append_entries.entries);
        m->append_entries.entries = NULL;
        m->append_entries.n_entries = 0;
    } else if (m->type == RAFT_IO_INSTALL_SNAPSHOT) {
        raft_configuration_close(&m->install_snapshot.conf);
        raft_free(m->install_snapshot.data.base);
        m->install_snapshot.data.base = NULL;
    }
}

void guard_forget_timeout_now(struct guard *g)
{
    g->timeout_now.type = 0;
    free(g->timeout_now_address);
    g->timeout_now_address = NULL;
}

void guard_forget_install(struct guard *g)
{
    if (g->install.type != 0) {
        guard_message_free(&g->install);
        g->install.type = 0;
    }
    free(g->install_address);
    g->install_address = NULL;
}

void guard_deinit(struct guard *g)
{
    guard_forget_install(g);
    guard_forget_timeout_now(g);
    free(g->held);
    g->held = NULL;
    g->n_held = g->held_cap = 0;
    free(g->ends);
    g->ends = NULL;
    g->n_ends = g->ends_cap = 0;
}

void guard_fail(struct guard *g, enum guard_fault fault)
{
    if (g->fault == GUARD_SOUND) {
        g->fault = fault;
    }
    g->n_held = 0;
    guard_forget_install(g);
    guard_forget_timeout_now(g);
}

/* ---- Proof: up to where our log equals the leader's (rule 1) ------------------------------------------- */

static raft_index proven(struct guard *g)
{
    if (g->match_term != g->r->current_term) {
        g->match_term = g->r->current_term;
        g->match_index = 0;
    }
    return g->match_index;
}

void guard_learn(struct guard *g)
{
    const struct raft *r = g->r;
    raft_index match;

    if (g->claim.leader_term == 0 || g->claim.leader_term != r->current_term) {
        return;
    }
    match = proven(g);
    if (g->claim.prev_index > match && inside_has(r, g->claim.prev_index, g->claim.prev_term)) {
        match = g->claim.prev_index;
    }
    /* (Two snapshots are both of committed entries, so the older is of a prefix of the newer.) */
    if (g->claim.last_index > match &&
        (inside_has(r, g->claim.last_index, g->claim.last_term) ||
            (g->claim.snapshot && inside_snapshot_index(r) >= g->claim.last_index))) {
        match = g->claim.last_index;
    }
    g->match_index = match;
}

static bool is_pre_vote_refusal(const struct raft_message *m)
{
    return m->type == RAFT_IO_REQUEST_VOTE_RESULT && m->request_vote_result.pre_vote == raft_tribool_true &&
           !m->request_vote_result.vote_granted;
}

bool guard_send(struct guard *g, struct raft_message *m)
{
    if (!g->enabled) {
        return true;
    }
    /* libraft answers a leader that it has meanwhile forgotten: id 0, address NULL. */
    if (stopped(g) || m->server_id == 0 || m->server_address == NULL) {
        g->counts.dropped++;
        return false;
    }
    if (m->type == RAFT_IO_REQUEST_VOTE && busy(g)) {
        g->counts.dropped++;
        return false;
    }
    if (m->type == RAFT_IO_APPEND_ENTRIES_RESULT && m->append_entries_result.rejected == 0) {
        raft_index limit;

        guard_learn(g);
        limit = proven(g);
        if (limit > g->r->last_stored) {
            limit = g->r->last_stored;
        }
        if (m->append_entries_result.last_log_index > limit) {
            m->append_entries_result.last_log_index = limit;
            g->counts.clamped++;
        }
    }
    if (is_pre_vote_refusal(m) && m->request_vote_result.term < g->r->current_term) {
        m->request_vote_result.term = g->r->current_term;
        g->counts.terms_told++;
    }
    return true;
}

/* ---- Time ---------------------------------------------------------------------------------------------- */

void guard_started(struct guard *g, guard_deliver_fn deliver, void *ctx)
{
    struct raft *r = g->r;
    struct raft_message m;

    if (!g->enabled || r->state != RAFT_LEADER) {
        return;
    }
    /* What a leader hears if there is a later term: it stores that and steps down. */
    memset(&m, 0, sizeof m);
    m.type = RAFT_IO_APPEND_ENTRIES_RESULT;
    m.server_id = r->id;
    m.server_address = r->address;
    m.append_entries_result.term = r->current_term + 1;
    deliver(ctx, &m);
    r->election_timer_start = 0; /* the next tick elects it again */
}

/* A follower that is the only voter is about to make itself leader: in a term of its own (rule 8). What
 * libraft does when it sees a later term, and when it votes for itself. */
static void begin_own_term(struct guard *g)
{
    struct raft *r = g->r;
    raft_time now = r->io->time(r->io);

    if (now - r->election_timer_start < r->follower_state.randomized_election_timeout || !inside_sole_voter(r)) {
        return;
    }
    if (r->io->set_term(r->io, r->current_term + 1) != 0 || r->io->set_vote(r->io, r->id) != 0) {
        guard_metadata_failed(g); /* (a wrapper that keeps to guard.h has done that, and returned 0) */
        return;
    }
    r->current_term++;
    r->voted_for = r->id;
    g->counts.own_terms++;
}

bool guard_tick(struct guard *g)
{
    if (!g->enabled) {
        return true;
    }
    if (stopped(g)) {
        return false;
    }
    if (g->r->state == RAFT_FOLLOWER && busy(g)) {
        g->counts.ticks_skipped++;
        return false;
    }
    if (g->r->state == RAFT_FOLLOWER) {
        begin_own_term(g);
    }
    return !stopped(g);
}

/* ---- The disk ------------------------------------------------------------------------------------------ */

/* The leader appends: remember where, as long as it is not committed (rule 10). Without memory it is not
 * remembered, and only the ends before and after it can be used. */
static void remember_end(struct guard *g)
{
    const struct raft *r = g->r;
    unsigned n_old = 0;

    if (r->state != RAFT_LEADER) {
        return;
    }
    if (g->ends_term != r->current_term) {
        g->ends_term = r->current_term;
        g->n_ends = 0;
    }
    while (n_old < g->n_ends && g->ends[n_old] <= r->commit_index) {
        n_old++;
    }
    if (n_old > 0) {
        g->n_ends -= n_old;
        memmove(g->ends, g->ends + n_old, g->n_ends * sizeof *g->ends);
    }
    if (g->n_ends == g->ends_cap) {
        unsigned cap = g->ends_cap == 0 ? 64 : 2 * g->ends_cap;
        raft_index *p = realloc(g->ends, cap * sizeof *p);

        if (p == NULL) {
            return;
        }
        g->ends = p;
        g->ends_cap = cap;
    }
    g->ends[g->n_ends++] = inside_last_index(r);
}

bool guard_append_begin(struct guard *g)
{
    g->n_appends++;
    remember_end(g);
    return !g->enabled || !stopped(g);
}

bool guard_append_done(struct guard *g, int status)
{
    assert(g->n_appends > 0);
    g->n_appends--;
    if (!g->enabled) {
        return true;
    }
    if (g->r->state == RAFT_UNAVAILABLE) { /* closing */
        return status == 0;
    }
    if (status != 0) {
        guard_fail(g, GUARD_APPEND_FAILED);
    }
    return !stopped(g);
}

bool guard_put_begin(struct guard *g)
{
    assert(g->n_puts == 0);
    g->n_puts++;
    g->install_index = g->claim.leader_term != 0 && g->claim.snapshot ? g->claim.last_index : 0;
    return !g->enabled || !stopped(g);
}

bool guard_put_done(struct guard *g, int status)
{
    assert(g->n_puts > 0);
    g->n_puts--;
    if (!g->enabled || g->r->state == RAFT_UNAVAILABLE) {
        return true;
    }
    if (g->install_index != 0) {
        if (status != 0) {
            guard_fail(g, GUARD_INSTALL_FAILED);
        }
        g->install_done = true;
    }
    return !stopped(g);
}

void guard_metadata_failed(struct guard *g)
{
    guard_fail(g, GUARD_METADATA_FAILED);
}

/* ---- Questions ----------------------------------------------------------------------------------------- */

int guard_status(const struct guard *g, struct err *e)
{
    static const char *const what[] = {
        [GUARD_SOUND] = "",
        [GUARD_APPEND_FAILED] = "a write to the log failed",
        [GUARD_INSTALL_FAILED] = "a snapshot could not be installed",
        [GUARD_METADATA_FAILED] = "the term or the vote could not be stored",
    };

    if (g->fault != GUARD_SOUND) {
        return err_set(e, DUST_IO,
            "%s: this member takes no part for now, so as not to promise what it cannot keep; it comes back by itself when its "
            "disk is well and has space",
            what[g->fault]);
    }
    if (g->cut_index != 0) {
        return err_set(e, DUST_AGAIN,
            "the log is to be cut from entry %llu on, where a change of membership was not agreed",
            g->cut_index);
    }
    return DUST_OK;
}

bool guard_dead(const struct guard *g)
{
    return g->fault != GUARD_SOUND;
}

raft_index guard_cut_index(const struct guard *g)
{
    return g->cut_index;
}

bool guard_snapshot_ok(const struct guard *g)
{
    if (!g->enabled) {
        return true;
    }
    return !stopped(g) && g->install.type == 0 && !inside_has_change(g->r, g->r->last_applied + 1);
}

bool guard_settled(const struct guard *g)
{
    const struct raft *r = g->r;

    if (r->state != RAFT_LEADER || stopped(g)) {
        return false;
    }
    return !g->enabled || inside_term(r, r->commit_index) == r->current_term;
}

