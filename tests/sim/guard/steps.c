/* guard_sim: what happens next. */
#include "tests/sim/guard/world.h"

/* A failed append, as raft_uv's. With the guard, that was the last thing this instance did: whether the write
 * reached the disk is left to chance, and what comes behind it is lost if it did not. Without, raft_uv goes
 * on, with the indexes moved up. */
static void fail_append(struct member *m, const struct op *failed)
{
    struct op *op;

    if (!m->sim->opt->guard) {
        m->next_index -= failed->n;
        for (op = m->ops; op != NULL && !op->truncate; op = op->next) {
            op->index -= failed->n;
        }
        return;
    }
    if (chance(m->sim, 5000)) {
        op_apply(m, failed);
        for (op = m->ops; op != NULL && chance(m->sim, 5000); op = op->next) {
            op_apply(m, op);
        }
    }
}

static void finish_op(struct member *m)
{
    struct op *op = op_pop(m);
    int status = 0;

    if (op->truncate) {
        op_apply(m, op);
        free(op);
        return;
    }
    if (write_fails(m, 100)) {
        status = chance(m->sim, 5000) ? RAFT_NOSPACE : RAFT_IOERR;
        fail_append(m, op);
    } else {
        op_apply(m, op);
    }
    if (!guard_append_done(&m->guard, status)) {
        op->next = m->kept;
        m->kept = op;
        return;
    }
    op->cb(op->req, status);
    free(op);
    guard_release(&m->guard, hand_to_raft, m);
}

static void finish_put(struct member *m)
{
    struct put put = m->put;
    int status = 0;

    if (write_fails(m, 500)) {
        status = RAFT_IOERR;
        if (put.install && m->sim->opt->guard && chance(m->sim, 5000)) {
            disk_put(m, &put);
        }
    } else {
        disk_put(m, &put);
    }
    if (!guard_put_done(&m->guard, status)) {
        return; /* stays pending; member_close() cancels it */
    }
    m->put.pending = false;
    put.cb(put.req, status);
    guard_release(&m->guard, hand_to_raft, m);
}

static void finish_get(struct member *m)
{
    struct raft_io_snapshot_get *req = m->get;

    m->get = NULL;
    m->get_cb(req, snapshot_make(m->sim, &m->disk.snapshot), 0);
}

static void finish_work(struct member *m)
{
    struct raft_io_async_work *work = m->work;

    m->work = NULL;
    m->work_cb(work, work->work(work));
}

/* Let one thing that this member's disk or thread pool is doing come to its end. */
static void step_disk(struct member *m)
{
    struct sim *s = m->sim;
    bool put_may = m->put.pending && (m->ops == NULL || m->ops->seq > m->put.seq);
    bool op_may = m->ops != NULL && !(m->put.pending && m->put.install && m->ops->seq > m->put.seq);

    if (!m->up || (s->weather.slow_member == m->id && chance(s, 9000))) {
        return;
    }
    if (m->get != NULL && chance(s, 3000)) {
        finish_get(m);
    } else if (m->work != NULL && chance(s, 3000)) {
        finish_work(m);
    } else if (put_may && (!op_may || chance(s, 2000))) {
        if (chance(s, 3000)) {
            finish_put(m);
        }
    } else if (op_may) {
        finish_op(m);
    }
}

struct submission {
    struct raft_apply req; /* first */
    struct member *leader;
    unsigned n;
    uint64_t commands[BATCH_MAX];
};

static void on_applied(struct raft_apply *req, int status, void *result)
{
    struct submission *sub = (struct submission *)req;
    unsigned i;

    (void)result;
    for (i = 0; status == 0 && i < sub->n; i++) {
        note_acknowledged(sub->leader, req->index + i, sub->commands[i]);
    }
    free(sub);
}

static void submit(struct member *m)
{
    struct sim *s = m->sim;
    struct submission *sub = must(calloc(1, sizeof *sub));
    struct raft_buffer bufs[BATCH_MAX];
    unsigned i;

    sub->leader = m;
    sub->n = 1 + random_below(s, BATCH_MAX);
    for (i = 0; i < sub->n; i++) {
        sub->commands[i] = ++s->n_commands;
        bufs[i].len = sizeof sub->commands[i];
        bufs[i].base = must(raft_malloc(bufs[i].len));
        memcpy(bufs[i].base, &sub->commands[i], bufs[i].len);
    }
    if (raft_apply(&m->raft, &sub->req, bufs, sub->n, on_applied) != 0) {
        for (i = 0; i < sub->n; i++) {
            raft_free(bufs[i].base);
        }
        free(sub);
    }
}

static void on_transferred(struct raft_transfer *req)
{
    struct member *m = req->data;

    if (m->transfer == req) {
        m->transfer = NULL;
    }
    free(req);
}

static void transfer(struct member *m)
{
    struct sim *s = m->sim;
    struct raft_transfer *req = must(calloc(1, sizeof *req));

    req->data = m;
    if (raft_transfer(&m->raft, req, 1 + random_below(s, s->opt->n_members), on_transferred) != 0) {
        free(req);
        return;
    }
    m->transfer = req;
    s->outcome->tally.transfers++;
}

static void on_changed(struct raft_change *req, int status)
{
    struct member *m = req->data;

    if (status == 0) {
        m->sim->outcome->tally.changes++;
    }
    free(req);
}

static const struct raft_server *server_of(const struct raft_configuration *c, raft_id id)
{
    unsigned i;

    for (i = 0; i < c->n; i++) {
        if (c->servers[i].id == id) {
            return &c->servers[i];
        }
    }
    return NULL;
}

/* Change the membership in some way; towards "all are voters" when the bad times are over. One voter is
 * always left, and the leader does not demote or remove itself: if it did, and crashed, it would be a member
 * that is no voter in its own eyes, has the longest log, and does not campaign. */
static void change_membership(struct member *m)
{
    struct sim *s = m->sim;
    const struct raft_configuration *c = &m->raft.configuration;
    raft_id id = 1 + random_below(s, s->opt->n_members);
    const struct raft_server *server = server_of(c, id);
    struct raft_change *req;
    unsigned i, n_voters = 0;
    int rv;

    for (i = 0; i < c->n; i++) {
        n_voters += c->servers[i].role == RAFT_VOTER;
    }
    if (!guard_settled(&m->guard) ||
        (server != NULL && server->role == RAFT_VOTER && (n_voters == 1 || s->healing || id == m->id))) {
        return;
    }
    req = must(calloc(1, sizeof *req));
    req->data = m;
    if (server == NULL) {
        rv = raft_add(&m->raft, req, id, s->members[id]->address, on_changed);
    } else if (s->grow && !s->healing && chance(s, 2000)) {
        rv = raft_remove(&m->raft, req, id, on_changed);
    } else if (server->role == RAFT_VOTER || (server->role == RAFT_SPARE && !s->healing && chance(s, 3000))) {
        rv = raft_assign(&m->raft, req, id, RAFT_STANDBY, on_changed);
    } else {
        rv = raft_assign(&m->raft, req, id, RAFT_VOTER, on_changed);
    }
    if (rv != 0) {
        free(req);
    }
}

static void step_client(struct member *m)
{
    struct sim *s = m->sim;

    if (!m->up || raft_state(&m->raft) != RAFT_LEADER) {
        return;
    }
    if (s->transfers && chance(s, 150)) {
        transfer(m);
    } else if (s->changes && chance(s, s->healing ? 5000 : s->grow ? 1000 : 300)) {
        change_membership(m);
    } else if (raft_last_index(&m->raft) - m->raft.commit_index < s->window) {
        submit(m);
    }
}

static void step_time(struct sim *s)
{
    unsigned i;

    s->now += 10 + random_below(s, 60);
    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up || (!s->healing && chance(s, 2000))) {
            continue;
        }
        guard_release(&m->guard, hand_to_raft, m);
        if (guard_tick(&m->guard)) {
            m->tick(&m->io);
        }
    }
}

static void new_weather(struct sim *s)
{
    struct weather *w = &s->weather;

    w->until = s->step + 200 + random_below(s, 1500);
    w->crash = random_below(s, 4) == 0 ? 40 : random_below(s, 15);
    w->cut = random_below(s, 80);
    w->heal = 20 + random_below(s, 80);
    w->isolate = random_below(s, 20);
    w->deliver = 40 + random_below(s, 30);
    w->disk = 5 + random_below(s, 20);
    w->submit = 2 + random_below(s, 10);
    w->slow_member = random_below(s, 2) == 0 ? 0 : 1 + random_below(s, s->opt->n_members);
}

/* Something bad, or the end of it. True if that was this step. */
static bool step_weather(struct sim *s, unsigned a, unsigned b)
{
    const struct weather *w = &s->weather;
    struct member *m = s->members[a];
    unsigned i;

    if (s->step >= w->until) {
        new_weather(s);
    }
    if (!m->up && s->step > m->down_until) {
        member_start(m);
        return true;
    }
    if (m->up && chance(s, w->crash)) {
        member_crash(m);
        return true;
    }
    if (a != b && chance(s, w->cut)) {
        link_cut(s, a, b, true);
    }
    if (a != b && chance(s, w->heal)) {
        link_cut(s, a, b, false);
    }
    if (chance(s, w->isolate)) {
        for (i = 1; i <= s->opt->n_members; i++) {
            if (i != a) {
                link_cut(s, a, i, true);
            }
        }
        return true;
    }
    return false;
}

void step(struct sim *s)
{
    unsigned a = 1 + random_below(s, s->opt->n_members);
    unsigned b = 1 + random_below(s, s->opt->n_members);
    const struct weather *w = &s->weather;
    unsigned k = random_below(s, 100);

    s->step++;
    if (!s->healing && step_weather(s, a, b)) {
        /* that was it */
    } else if (k < w->deliver) {
        deliver(s, a, b);
    } else if (k < w->deliver + w->disk) {
        step_disk(s->members[a]);
    } else if (k < w->deliver + w->disk + w->submit) {
        step_client(s->members[a]);
    } else {
        step_time(s);
    }
    watch(s);
    if (s->step % 256 == 0) {
        check_logs(s);
    }
}
