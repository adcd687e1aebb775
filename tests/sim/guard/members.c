/* guard_sim: the life of a member. */
#include "tests/sim/guard/world.h"

void member_start(struct member *m)
{
    struct sim *s = m->sim;
    unsigned i;

    m->io = io_methods;
    m->generation++;
    m->seq = 0;
    m->ops = NULL;
    m->ops_tail = &m->ops;
    m->kept = NULL;
    m->put.pending = false;
    m->barrier_open = true;
    m->get = NULL;
    m->work = NULL;
    m->transfer = NULL;
    m->barrier_term = 0;
    m->state = (struct fsm_state){0};
    m->fsm = (struct raft_fsm){
        .version = 1, .data = m, .apply = fsm_apply, .snapshot = fsm_snapshot, .restore = fsm_restore};
    if (s->async_snapshots) {
        m->fsm.version = 3;
        m->fsm.snapshot_finalize = fsm_snapshot_finalize;
        m->fsm.snapshot_async = fsm_snapshot_async;
    }
    memset(&m->raft, 0, sizeof m->raft);
    if (raft_init(&m->raft, &m->io, &m->fsm, m->id, m->address) != 0) {
        violation(s, "member %u: raft_init fails: %s", m->id, raft_errmsg(&m->raft));
    }
    guard_init(&m->guard, &m->raft);
    m->guard.enabled = s->opt->guard;
    raft_set_election_timeout(&m->raft, ELECTION_MS);
    raft_set_heartbeat_timeout(&m->raft, HEARTBEAT_MS);
    raft_set_install_snapshot_timeout(&m->raft, INSTALL_MS);
    raft_set_snapshot_threshold(&m->raft, s->snapshots ? s->threshold : 1u << 30);
    raft_set_snapshot_trailing(&m->raft, s->trailing);
    raft_set_pre_vote(&m->raft, s->pre_vote);
    if (m->disk.term == 0 && (m->id == 1 || !s->grow)) {
        struct raft_configuration c;

        raft_configuration_init(&c);
        for (i = 1; i <= (s->grow ? 1 : s->opt->n_members); i++) {
            raft_configuration_add(&c, i, s->members[i]->address, RAFT_VOTER);
        }
        raft_bootstrap(&m->raft, &c);
        raft_configuration_close(&c);
    }
    if (raft_start(&m->raft) != 0) {
        violation(s, "member %u: raft_start fails: %s", m->id, raft_errmsg(&m->raft));
    }
    m->up = true;
    guard_started(&m->guard, hand_to_raft, m);
}

static void on_closed(struct raft *r)
{
    (void)r;
}

void counts_add(struct guard_counts *to, const struct guard_counts *n)
{
    to->clamped += n->clamped;
    to->held += n->held;
    to->stripped += n->stripped;
    to->put_off += n->put_off;
    to->skipped += n->skipped;
    to->dropped += n->dropped;
    to->second_votes += n->second_votes;
    to->terms_told += n->terms_told;
    to->votes_lent += n->votes_lent;
    to->own_terms += n->own_terms;
    to->ticks_skipped += n->ticks_skipped;
    to->early += n->early;
}

/* Give libraft back all that it waits for, and its memory. The disk is left as it is.
 *
 * Without the guard libraft is in no state to be closed; the process forgets it, and ends soon. */
void member_close(struct member *m)
{
    struct sim *s = m->sim;
    struct op *op, *newest_first = m->kept;
    unsigned i;

    m->up = false;
    m->down_until = s->step + 20 + random_below(s, 400);
    for (i = 1; i <= s->opt->n_members; i++) {
        if (i != m->id) {
            link_reset(s, m->id, i);
        }
    }
    counts_add(&s->outcome->tally.guard, &m->guard.counts);
    if (!s->opt->guard) {
        m->generation++;
        return;
    }
    raft_close(&m->raft, on_closed);
    while (m->ops != NULL) {
        op = op_pop(m);
        if (op->truncate) {
            free(op);
        } else {
            op->next = newest_first;
            newest_first = op;
        }
    }
    while ((op = newest_first) != NULL) {
        newest_first = op->next;
        op->cb(op->req, RAFT_CANCELED);
        free(op);
    }
    m->kept = NULL;
    if (m->work != NULL) {
        m->work_cb(m->work, RAFT_CANCELED);
    }
    if (m->put.pending) {
        struct raft_buffer *bufs = m->put.snapshot->bufs;

        m->put.pending = false;
        m->put.cb(m->put.req, RAFT_CANCELED);
        if (m->put.install) {
            raft_free(bufs); /* libraft forgets it; the leak checker does not */
        }
    }
    if (m->get != NULL) {
        m->get_cb(m->get, NULL, RAFT_CANCELED);
    }
    run_completions(s);
    m->close_cb(&m->io);
    guard_deinit(&m->guard);
    m->generation++;
}

/* The power fails: of what is under way on the disk some has happened, in order. */
void member_crash(struct member *m)
{
    struct sim *s = m->sim;
    struct op *op = m->ops;
    bool put_done = !m->put.pending;

    for (;;) {
        bool put_next = !put_done && (op == NULL || m->put.install || chance(s, 5000));

        if (put_next && op != NULL && op->seq < m->put.seq) {
            put_next = false;
        }
        if ((op == NULL && !put_next) || chance(s, 4000)) {
            break;
        }
        if (put_next) {
            disk_put(m, &m->put);
            put_done = true;
        } else {
            op_apply(m, op);
            op = op->next;
        }
    }
    s->outcome->tally.crashes++;
    member_close(m);
}

/* The guard has stopped the member: close it in an orderly way, to be started anew. */
static void member_stop(struct member *m)
{
    if (guard_dead(&m->guard)) {
        m->sim->outcome->tally.faults++;
    } else {
        m->cut_index = guard_cut_index(&m->guard);
        m->sim->outcome->tally.log_cuts++;
    }
    member_close(m);
}

static void on_barrier(struct raft_barrier *req, int status)
{
    (void)status;
    free(req);
}

/* Look at each member after a step, as the wrapper's loop does after each turn. */
void watch(struct sim *s)
{
    unsigned i;

    run_completions(s);
    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up) {
            continue;
        }
        if (guard_status(&m->guard, NULL) != DUST_OK) {
            member_stop(m);
            continue;
        }
        if (raft_state(&m->raft) == RAFT_UNAVAILABLE) {
            if (s->opt->guard) {
                stuck(s, "member %u: libraft has shut itself down: %s", m->id, raft_errmsg(&m->raft));
            }
            member_crash(m);
            continue;
        }
        if (raft_state(&m->raft) != RAFT_LEADER) {
            continue;
        }
        note_leader(m);
        if (s->opt->guard && m->barrier_term != m->raft.current_term) {
            struct raft_barrier *req = must(calloc(1, sizeof *req));

            m->barrier_term = m->raft.current_term;
            if (raft_barrier(&m->raft, req, on_barrier) != 0) {
                free(req);
            }
        }
    }
    run_completions(s);
}
