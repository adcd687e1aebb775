/* The guard's receiving side: what libraft must not hear yet, and what it hears instead. The rules, which are named
 * here by their numbers, are told in guard.c. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "raft/guard_impl.h"

/* ---- Receiving ----------------------------------------------------------------------------------------- */

static void deliver_claim(struct guard *g, struct raft_message *m, guard_deliver_fn deliver, void *ctx)
{
    deliver(ctx, m);
    guard_learn(g);
    g->claim.leader_term = 0;
}

/* The index from which libraft would cut its log on this message, 0 if it would not. */
static raft_index truncation(const struct raft *r, const struct raft_append_entries *a)
{
    unsigned i;

    if (a->term < r->current_term) {
        return 0;
    }
    if (a->prev_log_index != 0 && !inside_has(r, a->prev_log_index, a->prev_log_term)) {
        return 0;
    }
    for (i = 0; i < a->n_entries; i++) {
        raft_term term = inside_term(r, a->prev_log_index + 1 + i);

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
    raft_index start = inside_snapshot_index(g->r), n;

    if (a->term < g->r->current_term || a->prev_log_index > inside_offset(g->r) || inside_offset(g->r) == 0 ||
        a->prev_log_index == start) {
        return; /* libraft knows the entry at prev_log_index, or that it does not have it yet */
    }
    g->counts.skipped++;
    n = start - a->prev_log_index; /* > 0: prev_log_index <= offset <= start */
    if (n >= a->n_entries) {
        a->prev_log_term = n == a->n_entries ? a->entries[n - 1].term : inside_snapshot_term(g->r);
        guard_message_free(m);
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
        guard_message_free(m);
        g->counts.stripped++;
    } else if (cut > g->r->commit_index && inside_has_change(g->r, cut)) {
        g->cut_index = cut;
        guard_message_free(m);
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
        guard_message_free(m);
        return;
    }
    guard_forget_install(g);
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
    if (busy(g) || inside_taking_snapshot(g->r)) {
        put_off(g, m);
        return;
    }
    if (s->last_index > g->r->commit_index && inside_term(g->r, s->last_index) > s->last_term) {
        g->cut_index = s->last_index;
        guard_message_free(m);
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
    struct raft_server *self = inside_server(g->r, g->r->id);
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
    return inside_term(r, r->last_stored) != r->current_term;
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

/* The highest index that a majority of voters has, once this result is taken into account. O(n^2) in their
 * number. */
static raft_index majority_index(const struct raft *r, raft_id id, raft_index result_index)
{
    const struct raft_configuration *c = &r->configuration;
    raft_index best = 0;
    unsigned i, j;

    for (i = 0; i < c->n; i++) {
        raft_index index =
            c->servers[i].id == id && result_index > inside_match(r, i) ? result_index : inside_match(r, i);
        unsigned n_voters = 0, n_have = 0;

        for (j = 0; j < c->n; j++) {
            if (c->servers[j].role == RAFT_VOTER) {
                n_voters++;
                n_have += inside_match(r, j) >= index || (c->servers[j].id == id && result_index >= index);
            }
        }
        if (index > best && n_have > n_voters / 2) {
            best = index;
        }
    }
    return best;
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

/* Whether all that the leader has is stored here (rule 5). */
static bool ready_to_campaign(const struct guard *g, const struct raft_timeout_now *t)
{
    return !busy(g) && inside_last_index(g->r) >= t->last_log_index;
}

/* Without memory it is lost, and the leader goes on when its time is up. */
static void hold_timeout_now(struct guard *g, const struct raft_message *m)
{
    guard_forget_timeout_now(g);
    g->timeout_now_address = strdup(m->server_address);
    if (g->timeout_now_address == NULL) {
        g->counts.dropped++;
        return;
    }
    g->timeout_now = *m;
    g->timeout_now.server_address = g->timeout_now_address;
    g->timeout_now_since = g->r->io->time(g->r->io);
    g->counts.put_off++;
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

    if (r->state == RAFT_LEADER && result->rejected == 0 && result->term == r->current_term && must_hold(r)) {
        /* (libraft ignores others; and so the array stays bounded.) */
        if (inside_server(r, m->server_id) != NULL) {
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
        guard_message_free(m);
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
        if (g->install.type != 0 || inside_sole_voter(g->r)) {
            g->counts.dropped++;
            return;
        }
        if (!ready_to_campaign(g, &m->timeout_now)) {
            hold_timeout_now(g, m);
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
        guard_fail(g, GUARD_INSTALL_FAILED);
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
        const struct raft_server *from = inside_server(r, g->held[i].server_id);
        struct raft_message m;

        if (from != NULL) {
            memset(&m, 0, sizeof m);
            m.type = RAFT_IO_APPEND_ENTRIES_RESULT;
            m.server_id = from->id;
            m.server_address = from->address;
            m.append_entries_result = g->held[i].result;
            deliver_result(g, &m, deliver, ctx);
        }
    }
}

static void release_timeout_now(struct guard *g, guard_deliver_fn deliver, void *ctx)
{
    struct raft_message m = g->timeout_now;
    char *address = g->timeout_now_address;
    bool late;

    if (m.type == 0) {
        return;
    }
    late = g->r->io->time(g->r->io) - g->timeout_now_since >= g->r->election_timeout || g->install.type != 0 ||
           stopped(g) || g->r->current_term != m.timeout_now.term || g->r->state != RAFT_FOLLOWER;
    if (!late && !ready_to_campaign(g, &m.timeout_now)) {
        return;
    }
    g->timeout_now.type = 0;
    g->timeout_now_address = NULL;
    if (late || inside_sole_voter(g->r)) {
        g->counts.dropped++;
    } else {
        deliver(ctx, &m);
    }
    free(address);
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
    if (g->install.type != 0 && !busy(g) && !inside_taking_snapshot(g->r)) {
        struct raft_message m = g->install;
        char *address = g->install_address;

        g->install.type = 0;
        g->install_address = NULL;
        recv_install_snapshot(g, &m, deliver, ctx);
        free(address);
    }
    release_timeout_now(g, deliver, ctx);
}
