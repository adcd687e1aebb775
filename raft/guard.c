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
#include "raft/guard.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct guard_held {
    raft_id server_id;
    struct raft_append_entries_result result;
};

/* ---- What we look at inside libraft -------------------------------------------------------------------- */

#ifndef RAFT_VERSION_NUMBER /* canonical's, up to 0.15: the log is part of struct raft */

#define SEES_INSIDE true
#define PROGRESS_PROBE 0 /* raft_progress.state: PROGRESS__PROBE, src/progress.h */

static bool is_pre_vote(const struct raft_request_vote_result *v)
{
    return v->pre_vote == raft_tribool_true;
}

/* The in-memory log as libraft keeps it: a ring of entries for offset + 1, offset + 2, ... */
static raft_index log_last_index(const struct raft *r)
{
    const struct raft_log *l = &r->log;

    return l->offset + (l->front <= l->back ? l->back - l->front : l->size - l->front + l->back);
}

/* All up to here has been cut off, and is covered by the snapshot: offset <= snapshot index. */
static raft_index log_offset(const struct raft *r)
{
    return r->log.offset;
}

/* The entry at i, NULL if it is not in memory (cut off, or covered by a snapshot only). */
static const struct raft_entry *log_entry(const struct raft *r, raft_index i)
{
    const struct raft_log *l = &r->log;

    if (i <= l->offset || i > log_last_index(r)) {
        return NULL;
    }
    return &l->entries[(l->front + (size_t)(i - 1 - l->offset)) % l->size];
}

static raft_index log_snapshot_index(const struct raft *r)
{
    return r->log.snapshot.last_index;
}

static raft_term log_snapshot_term(const struct raft *r)
{
    return r->log.snapshot.last_term;
}

/* Whether libraft is taking or storing a snapshot (asynchronous work included, of which raft_io sees
 * nothing). */
static bool taking_snapshot(const struct raft *r)
{
    return r->snapshot.pending.term != 0 || r->snapshot.put.data != NULL;
}

/* As leader: up to where the i-th server's log is known to equal ours. */
static raft_index match_of(const struct raft *r, unsigned i)
{
    return r->leader_state.progress[i].match_index;
}

/* Whether the leader sends to this server one message a heartbeat only, without counting on it. */
static bool probing(const struct raft *r, raft_id id)
{
    unsigned i;

    if (r->state != RAFT_LEADER || r->leader_state.progress == NULL) {
        return false;
    }
    for (i = 0; i < r->configuration.n; i++) {
        if (r->configuration.servers[i].id == id) {
            return r->leader_state.progress[i].state == PROGRESS_PROBE;
        }
    }
    return false;
}

#else /* cowsql's: the log is opaque; the guard is not enabled */

#define SEES_INSIDE false

static bool is_pre_vote(const struct raft_request_vote_result *v)
{
    return v->pre_vote;
}

static raft_index log_last_index(const struct raft *r)
{
    (void)r;
    return 0;
}

static raft_index log_offset(const struct raft *r)
{
    (void)r;
    return 0;
}

static const struct raft_entry *log_entry(const struct raft *r, raft_index i)
{
    (void)r;
    (void)i;
    return NULL;
}

static raft_index log_snapshot_index(const struct raft *r)
{
    (void)r;
    return 0;
}

static raft_term log_snapshot_term(const struct raft *r)
{
    (void)r;
    return 0;
}

static bool taking_snapshot(const struct raft *r)
{
    (void)r;
    return false;
}

static raft_index match_of(const struct raft *r, unsigned i)
{
    (void)r;
    (void)i;
    return 0;
}

static bool probing(const struct raft *r, raft_id id)
{
    (void)r;
    (void)id;
    return false;
}

#endif

/* The term of the entry at i, 0 if it is not known. */
static raft_term log_term(const struct raft *r, raft_index i)
{
    const struct raft_entry *entry;

    if (i != 0 && i == log_snapshot_index(r)) {
        return log_snapshot_term(r);
    }
    entry = log_entry(r, i);
    return entry == NULL ? 0 : entry->term;
}

/* Whether the log has this entry. (A term of 0 is that of no entry.) */
static bool log_has(const struct raft *r, raft_index i, raft_term term)
{
    return term != 0 && log_term(r, i) == term;
}

/* Whether a configuration entry is in the log at `from` or beyond. */
static bool log_has_change(const struct raft *r, raft_index from)
{
    raft_index i, last = log_last_index(r);

    for (i = from; i <= last; i++) {
        const struct raft_entry *entry = log_entry(r, i);

        if (entry != NULL && entry->type == RAFT_CHANGE) {
            return true;
        }
    }
    return false;
}

static struct raft_server *own_server(struct raft *r)
{
    unsigned i;

    for (i = 0; i < r->configuration.n; i++) {
        if (r->configuration.servers[i].id == r->id) {
            return &r->configuration.servers[i];
        }
    }
    return NULL;
}

/* Whether libraft would make itself leader without asking anybody. */
static bool sole_voter(struct raft *r)
{
    const struct raft_server *self = own_server(r);
    unsigned i, n_voters = 0;

    for (i = 0; i < r->configuration.n; i++) {
        n_voters += r->configuration.servers[i].role == RAFT_VOTER;
    }
    return n_voters == 1 && self != NULL && self->role == RAFT_VOTER;
}

/* ---- Life ---------------------------------------------------------------------------------------------- */

void guard_init(struct guard *g, struct raft *r)
{
    *g = (struct guard){.r = r, .enabled = SEES_INSIDE};
}

/* Free the payload of a received message: entries are one array, their data one batch (see raft_uv's
 * decoder). */
static void message_free(struct raft_message *m)
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

static void forget_install(struct guard *g)
{
    if (g->install.type != 0) {
        message_free(&g->install);
        g->install.type = 0;
    }
    free(g->install_address);
    g->install_address = NULL;
}

void guard_deinit(struct guard *g)
{
    forget_install(g);
    free(g->held);
    g->held = NULL;
    g->n_held = g->held_cap = 0;
    free(g->ends);
    g->ends = NULL;
    g->n_ends = g->ends_cap = 0;
}

static bool stopped(const struct guard *g)
{
    return g->fault != GUARD_SOUND || g->cut_index != 0;
}

/* Something is being written. */
static bool busy(const struct guard *g)
{
    return g->n_appends > 0 || g->n_puts > 0;
}

static bool installing(const struct guard *g)
{
    return g->n_puts > 0 && g->install_index != 0;
}

/* The first cause stays. */
static void fail(struct guard *g, enum guard_fault fault)
{
    if (g->fault == GUARD_SOUND) {
        g->fault = fault;
    }
    g->n_held = 0;
    forget_install(g);
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

/* Draw conclusions from the message being delivered. Called when it has been delivered, and before each
 * result sent meanwhile, when libraft has changed its log but we are still inside. */
static void learn(struct guard *g)
{
    const struct raft *r = g->r;
    raft_index match;

    if (g->claim.leader_term == 0 || g->claim.leader_term != r->current_term) {
        return;
    }
    match = proven(g);
    if (g->claim.prev_index > match && log_has(r, g->claim.prev_index, g->claim.prev_term)) {
        match = g->claim.prev_index;
    }
    /* (Two snapshots are both of committed entries, so the older is of a prefix of the newer.) */
    if (g->claim.last_index > match &&
        (log_has(r, g->claim.last_index, g->claim.last_term) ||
            (g->claim.snapshot && log_snapshot_index(r) >= g->claim.last_index))) {
        match = g->claim.last_index;
    }
    g->match_index = match;
}

static bool is_pre_vote_refusal(const struct raft_message *m)
{
    return m->type == RAFT_IO_REQUEST_VOTE_RESULT && is_pre_vote(&m->request_vote_result) &&
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

        learn(g);
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

/* ---- Receiving ----------------------------------------------------------------------------------------- */

static void deliver_claim(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    deliver(ctx, m);
    learn(g);
    g->claim.leader_term = 0;
}

/* The index from which libraft would cut its log on this message, 0 if it would not. */
static raft_index truncation(const struct raft *r, const struct raft_append_entries *a)
{
    unsigned i;

    if (a->term < r->current_term) {
        return 0;
    }
    if (a->prev_log_index != 0 && !log_has(r, a->prev_log_index, a->prev_log_term)) {
        return 0;
    }
    for (i = 0; i < a->n_entries; i++) {
        raft_term term = log_term(r, a->prev_log_index + 1 + i);

        if (term == 0) {
            return 0;
        }
        if (term != a->entries[i].term) {
            return a->prev_log_index + 1 + i;
        }
    }
    return 0;
}

/* Let the message begin where our log does, if it begins before (rule 9). */
static void skip_known(struct guard *g, struct raft_message *m)
{
    struct raft_append_entries *a = &m->append_entries;
    raft_index start = log_snapshot_index(g->r), n;

    if (a->term < g->r->current_term || a->prev_log_index > log_offset(g->r) || log_offset(g->r) == 0 ||
        a->prev_log_index == start) {
        return; /* libraft knows the entry at prev_log_index, or that it does not have it yet */
    }
    g->counts.skipped++;
    n = start - a->prev_log_index; /* > 0: prev_log_index <= offset <= start */
    if (n >= a->n_entries) {
        a->prev_log_term = n == a->n_entries ? a->entries[n - 1].term : log_snapshot_term(g->r);
        message_free(m);
    } else {
        a->prev_log_term = a->entries[n - 1].term;
        a->n_entries -= (unsigned)n;
        memmove(a->entries, a->entries + n, a->n_entries * sizeof *a->entries); /* all are of one batch */
    }
    a->prev_log_index = start;
}

static void recv_append_entries(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    struct raft_append_entries *a = &m->append_entries;
    raft_index cut;

    skip_known(g, m);
    cut = truncation(g->r, a);
    if (cut != 0 && busy(g)) {
        message_free(m);
        g->counts.stripped++;
    } else if (cut > g->r->commit_index && log_has_change(g->r, cut)) {
        g->cut_index = cut;
        message_free(m);
        return;
    }
    /* (A cut at or below commit_index must never be asked for; libraft shuts itself down if it is.) */

    if (a->leader_commit > a->prev_log_index + a->n_entries) {
        a->leader_commit = a->prev_log_index + a->n_entries;
    }
    g->claim.leader_term = a->term;
    g->claim.prev_index = a->prev_log_index;
    g->claim.prev_term = a->prev_log_term;
    g->claim.last_index = a->prev_log_index + a->n_entries;
    g->claim.last_term = a->n_entries > 0 ? a->entries[a->n_entries - 1].term : a->prev_log_term;
    g->claim.snapshot = false;
    deliver_claim(g, m, deliver, ctx);
}

/* Keep *m until guard_release(), if it is not from an older leader than the one kept already. Without memory
 * it is lost, and the leader sends another after its timeout. */
static void put_off(struct guard *g, struct raft_message *m)
{
    bool older = g->install.type != 0 && g->install.install_snapshot.term > m->install_snapshot.term;
    char *address = older ? NULL : strdup(m->server_address);

    if (address == NULL) {
        g->counts.dropped++;
        message_free(m);
        return;
    }
    forget_install(g);
    g->install = *m;
    g->install_address = address;
    g->install.server_address = address;
    g->counts.put_off++;
}

static void recv_install_snapshot(
    struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    const struct raft_install_snapshot *s = &m->install_snapshot;

    if (s->term < g->r->current_term) { /* libraft will say so, and nothing else */
        deliver(ctx, m);
        return;
    }
    if (busy(g) || taking_snapshot(g->r)) {
        put_off(g, m);
        return;
    }
    if (s->last_index > g->r->commit_index && log_term(g->r, s->last_index) > s->last_term) {
        g->cut_index = s->last_index;
        message_free(m);
        return;
    }
    g->claim.leader_term = s->term;
    g->claim.prev_index = 0;
    g->claim.prev_term = 0;
    g->claim.last_index = s->last_index;
    g->claim.last_term = s->last_term;
    g->claim.snapshot = true;
    deliver_claim(g, m, deliver, ctx);
}

/* Whether this is a request for a vote that is already given to another (rule 7). */
static bool second_vote(const struct raft *r, const struct raft_request_vote *v)
{
    return !v->pre_vote && v->term == r->current_term && r->voted_for != 0 &&
           r->voted_for != v->candidate_id && r->transfer != NULL && r->transfer->id == v->candidate_id;
}

/* Whether the leader that libraft remembers has not been heard for so long that it is none. */
static bool leader_lost(const struct raft *r)
{
    return r->state == RAFT_FOLLOWER && r->io->time(r->io) - r->election_timer_start >= r->election_timeout;
}

static void recv_request_vote(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    struct raft_server *self = own_server(g->r);
    int role;

    if (installing(g)) {
        g->counts.dropped++;
        return;
    }
    if (second_vote(g->r, &m->request_vote)) {
        g->counts.dropped++;
        g->counts.second_votes++;
        return;
    }
    if (leader_lost(g->r)) {
        m->request_vote.disrupt_leader = true;
    }
    if (self == NULL || self->role == RAFT_VOTER) {
        deliver(ctx, m);
        return;
    }
    role = self->role;
    self->role = RAFT_VOTER;
    deliver(ctx, m);
    self->role = role; /* libraft changes no configuration on such a message */
    g->counts.votes_lent++;
}

/* Whether an own entry is yet to be stored before results may count (rule 2). */
static bool must_hold(const struct raft *r)
{
    return log_term(r, r->last_stored) != r->current_term;
}

static void hold(struct guard *g, raft_id id, const struct raft_append_entries_result *result)
{
    unsigned i;

    if (g->held_term != g->r->current_term) {
        g->held_term = g->r->current_term;
        g->n_held = 0;
    }
    g->counts.held++;
    for (i = 0; i < g->n_held; i++) {
        if (g->held[i].server_id == id) {
            if (result->last_log_index > g->held[i].result.last_log_index) {
                g->held[i].result = *result;
            }
            return;
        }
    }
    if (g->n_held == g->held_cap) {
        unsigned cap = g->held_cap == 0 ? 8 : 2 * g->held_cap;
        struct guard_held *p = realloc(g->held, cap * sizeof *p);

        if (p == NULL) {
            g->counts.dropped++;
            return;
        }
        g->held = p;
        g->held_cap = cap;
    }
    g->held[g->n_held++] = (struct guard_held){.server_id = id, .result = *result};
}

static bool known_server(const struct raft *r, raft_id id, const char **address)
{
    unsigned i;

    for (i = 0; i < r->configuration.n; i++) {
        if (r->configuration.servers[i].id == id) {
            *address = r->configuration.servers[i].address;
            return true;
        }
    }
    return false;
}

/* The highest index that a majority of voters has, once this result is taken into account. O(n^2) in their
 * number. */
static raft_index majority_index(const struct raft *r, raft_id id, raft_index result_index)
{
    const struct raft_configuration *c = &r->configuration;
    raft_index best = 0;
    unsigned i, j;

    for (i = 0; i < c->n; i++) {
        raft_index index =
            c->servers[i].id == id && result_index > match_of(r, i) ? result_index : match_of(r, i);
        unsigned n_voters = 0, n_have = 0;

        for (j = 0; j < c->n; j++) {
            if (c->servers[j].role == RAFT_VOTER) {
                n_voters++;
                n_have += match_of(r, j) >= index || (c->servers[j].id == id && result_index >= index);
            }
        }
        if (index > best && n_have > n_voters / 2) {
            best = index;
        }
    }
    return best;
}

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
    g->ends[g->n_ends++] = log_last_index(r);
}

/* The last of these ends that is not beyond `limit`, 0 if there is none. */
static raft_index last_end(const struct guard *g, raft_index limit)
{
    unsigned i;

    if (g->ends_term != g->r->current_term) {
        return 0;
    }
    for (i = g->n_ends; i > 0; i--) {
        if (g->ends[i - 1] <= limit) {
            return g->ends[i - 1];
        }
    }
    return 0;
}

/* Hand over a result that may count (rule 10). */
static void deliver_result(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    struct raft *r = g->r;
    raft_index stored = r->last_stored, mark = stored;

    if (r->state == RAFT_LEADER && m->append_entries_result.rejected == 0 &&
        m->append_entries_result.term == r->current_term) {
        raft_index majority = majority_index(r, m->server_id, m->append_entries_result.last_log_index);

        if (majority < stored && majority > r->commit_index) {
            raft_index end = last_end(g, majority);

            if (end > r->commit_index) {
                mark = end;
                g->counts.early++;
            }
        }
    }
    r->last_stored = mark;
    deliver(ctx, m);
    assert(r->last_stored == mark);
    r->last_stored = stored;
}

static void recv_result(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    const struct raft_append_entries_result *result = &m->append_entries_result;
    const struct raft *r = g->r;
    const char *address;

    if (r->state == RAFT_LEADER && result->rejected == 0 && result->term == r->current_term && must_hold(r)) {
        /* (libraft ignores others; and so the array stays bounded.) */
        if (known_server(r, m->server_id, &address)) {
            hold(g, m->server_id, result);
        }
        return;
    }
    deliver_result(g, m, deliver, ctx);
}

void guard_recv(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    assert(g->claim.leader_term == 0); /* not from within deliver */
    if (!g->enabled) {
        deliver(ctx, m);
        return;
    }
    if (stopped(g)) {
        g->counts.dropped++;
        message_free(m);
        return;
    }
    switch (m->type) {
    case RAFT_IO_APPEND_ENTRIES:
        recv_append_entries(g, m, deliver, ctx);
        return;
    case RAFT_IO_INSTALL_SNAPSHOT:
        recv_install_snapshot(g, m, deliver, ctx);
        return;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        recv_result(g, m, deliver, ctx);
        return;
    case RAFT_IO_TIMEOUT_NOW:
        if (busy(g) || g->install.type != 0 || sole_voter(g->r)) {
            g->counts.dropped++;
            return;
        }
        break;
    case RAFT_IO_REQUEST_VOTE:
        recv_request_vote(g, m, deliver, ctx);
        return;
    }
    deliver(ctx, m);
}

/* ---- Releasing what was held --------------------------------------------------------------------------- */

/* libraft's callback for an installation has been called: see what came of it. */
static void settle_install(struct guard *g)
{
    struct raft *r = g->r;

    if (r->last_applied < g->install_index) {
        /* The FSM refused it: libraft has neither the old state nor the new. */
        fail(g, GUARD_INSTALL_FAILED);
    } else {
        r->configuration_uncommitted_index = 0; /* its entry is gone with the log */
    }
    g->install_index = 0;
    g->install_done = false;
}

static void release_results(struct guard *g, guard_deliver_fn deliver, void *ctx)
{
    struct raft *r = g->r;
    unsigned i, n = g->n_held;

    if (n == 0) {
        return;
    }
    if (r->state != RAFT_LEADER || g->held_term != r->current_term) {
        g->n_held = 0;
        return;
    }
    if (must_hold(r)) {
        return;
    }
    g->n_held = 0; /* nothing is held from here on: delivering cannot add to the array */
    for (i = 0; i < n && !stopped(g) && r->state == RAFT_LEADER && r->current_term == g->held_term; i++) {
        struct raft_message m;

        memset(&m, 0, sizeof m);
        m.type = RAFT_IO_APPEND_ENTRIES_RESULT;
        m.server_id = g->held[i].server_id;
        m.append_entries_result = g->held[i].result;
        if (known_server(r, m.server_id, &m.server_address)) {
            deliver_result(g, &m, deliver, ctx);
        }
    }
}

void guard_release(struct guard *g, guard_deliver_fn deliver, void *ctx)
{
    if (!g->enabled || g->r->state == RAFT_UNAVAILABLE) {
        return;
    }
    if (g->install_done) {
        settle_install(g);
    }
    if (stopped(g)) {
        return;
    }
    release_results(g, deliver, ctx);
    if (g->install.type != 0 && !busy(g) && !taking_snapshot(g->r)) {
        struct raft_message m = g->install;
        char *address = g->install_address;

        g->install.type = 0;
        g->install_address = NULL;
        recv_install_snapshot(g, &m, deliver, ctx);
        free(address);
    }
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

    if (now - r->election_timer_start < r->follower_state.randomized_election_timeout || !sole_voter(r)) {
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
        fail(g, GUARD_APPEND_FAILED);
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
            fail(g, GUARD_INSTALL_FAILED);
        }
        g->install_done = true;
    }
    return !stopped(g);
}

void guard_metadata_failed(struct guard *g)
{
    fail(g, GUARD_METADATA_FAILED);
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
            "%s: this member has stopped, so as not to promise what it cannot keep; see to its disk, then "
            "start it again",
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
    return !stopped(g) && g->install.type == 0 && !log_has_change(g->r, g->r->last_applied + 1);
}

bool guard_settled(const struct guard *g)
{
    const struct raft *r = g->r;

    if (r->state != RAFT_LEADER || stopped(g)) {
        return false;
    }
    return !g->enabled || log_term(r, r->commit_index) == r->current_term;
}

/* ---- Long sends in parts ------------------------------------------------------------------------------- */

/* How many of the entries may be sent: none from a configuration on that is not yet on our own disk (rule
 * 10). */
static unsigned n_sendable(const struct raft *r, const struct raft_append_entries *a)
{
    unsigned i;

    for (i = 0; i < a->n_entries; i++) {
        if (a->entries[i].type == RAFT_CHANGE && a->prev_log_index + 1 + i > r->last_stored) {
            break;
        }
    }
    return i;
}

void guard_split_init(struct guard_split *s, const struct guard *g, const struct raft_message *m,
    unsigned n_entries_max, size_t size_max)
{
    assert(m->type == RAFT_IO_APPEND_ENTRIES && n_entries_max > 0 && size_max > 0);
    *s = (struct guard_split){
        .whole = m->append_entries,
        .n_entries_max = n_entries_max,
        .size_max = size_max,
        .first_only = g->enabled && probing(g->r, m->server_id),
    };
    if (g->enabled) {
        s->whole.n_entries = n_sendable(g->r, &m->append_entries);
    }
}

bool guard_split_next(struct guard_split *s, struct raft_append_entries *part)
{
    const struct raft_append_entries *w = &s->whole;
    size_t size = 0;
    unsigned n = 0;

    if (s->done) {
        return false;
    }
    while (s->next + n < w->n_entries && n < s->n_entries_max) {
        size += w->entries[s->next + n].buf.len;
        if (n > 0 && size > s->size_max) {
            break;
        }
        n++;
    }
    *part = *w;
    part->n_entries = n;
    part->entries = n > 0 ? w->entries + s->next : NULL;
    if (s->next > 0) {
        part->prev_log_index = w->prev_log_index + s->next;
        part->prev_log_term = w->entries[s->next - 1].term;
    }
    if (part->leader_commit > part->prev_log_index + n) {
        part->leader_commit = part->prev_log_index + n;
    }
    s->next += n;
    s->done = s->first_only || s->next == w->n_entries;
    return true;
}
