/* The loop thread of one member: its start and end, and its heartbeat.
 *
 * Order within one turn of the loop: messages and disk completions are handled as they come; `prepare`, just before the
 * loop sleeps, looks at what has changed (state, term, commit index), proposes what was collected, and sends what is
 * due. So all that arrived together is proposed together, and leaves in one message.
 *
 * Failure. A member whose log cannot be written latches itself dead (guard): it stops taking part, its writers get an
 * error that says why, its readers go on; it begins anew when the disk is well (again.c). */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "raft/codes.h"
#include "raft/node_impl.h"
#include "vfs/clock.h"

#define CLOSE_LIMIT_MS 3000u
#define LOOP_RETRY_MS 300u

/* ---- state ---- */

bool node_is_leader(const struct node *n)
{
    return n->running && !n->stopping && n->raft.state == RAFT_LEADER && !guard_dead(&n->io.guard);
}

bool node_knows(const struct node *n, raft_id id)
{
    return inside_server(&n->raft, id) != NULL;
}

raft_id node_leader(const struct node *n, const char **address)
{
    raft_id id = 0;
    const char *a = NULL;

    if (n->running && !n->stopping) {
        raft_leader((struct raft *)&n->raft, &id, &a);
    }
    if (address != NULL) {
        *address = a;
    }
    return a != NULL ? id : 0;
}

int64_t node_last_heard_ms(const struct node *n, const char *address)
{
    int64_t ms = peers_last_heard_ms(n->peers, address);

    return ms < 0 && node_is_leader(n) ? (int64_t)(node_now(n) - n->changed_ms) : ms;
}

void node_set_up(struct node *n)
{
    pthread_mutex_lock(&n->mutex);
    if (!n->up && n->state == NODE_STARTING) {
        n->state = NODE_RUNNING;
        n->up = true;
        pthread_cond_broadcast(&n->cond);
    }
    pthread_mutex_unlock(&n->mutex);
}

void node_fail(struct node *n, const struct err *e)
{
    bool first;

    pthread_mutex_lock(&n->mutex);
    first = n->state == NODE_STARTING || n->state == NODE_RUNNING;
    if (first) {
        n->failure = *e;
        n->state = NODE_FAILED;
        n->up = true;
        pthread_cond_broadcast(&n->cond);
    }
    pthread_mutex_unlock(&n->mutex);
    if (first) {
        report_err(&n->db->report, e);
        turn_close(&n->db->turn);
        submit_fail(n, DUST_UNKNOWN, e->text);
        change_fail(n, e->code, e->text);
        ask_fail(n, e->code, e->text);
        read_fail(n, e->code, e->text);
    }
}

/* Look at what libraft has come to. */
static void watch(struct node *n)
{
    raft_id leader = node_leader(n, NULL);
    struct err e;

    if (!n->running || n->stopping) {
        return;
    }
    switch (guard_status(&n->io.guard, &e)) {
    case DUST_OK:
        break;
    case DUST_AGAIN:
        again_cut(n);
        return;
    default:
        if (n->io.raft_io.errmsg[0] != '\0') {
            err_add(&e, " (%s)", n->io.raft_io.errmsg);
        }
        again_later(n, &e);
        return;
    }
    if (n->raft.state == RAFT_UNAVAILABLE) {
        err_set(&e, DUST_IO, "this member cannot go on: %s", raft_errmsg(&n->raft));
        again_later(n, &e);
        return;
    }
    if (n->fsm.stuck) {
        again_later(n, &n->fsm.stuck_on);
        return;
    }
    store_set_durable(n->db->store, n->raft.last_stored, &n->noted);
    if (n->raft.last_applied != n->seen_applied && !n->fsm.paused && n->state != NODE_FAILED) {
        n->seen_applied = n->raft.last_applied;
        store_set_applied(n->db->store, n->raft.last_applied);
        grant_applied(n);
    }
    if (n->raft.current_term != n->seen_term || n->raft.state != n->seen_state || leader != n->seen_leader) {
        n->seen_term = n->raft.current_term;
        n->seen_state = n->raft.state;
        n->seen_leader = leader;
        n->changed_ms = node_now(n);
        metrics_add(&n->db->metrics, METRIC_LEADER_CHANGES, 1);
        submit_leader_changed(n);
        grant_leader_changed(n);
    }
}

static void on_async(uv_async_t *async)
{
    node_run_jobs(async->data);
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct node *n = prepare->data;

    watch(n);
    if (n->running && !n->stopping) {
        submit_look(n);
        watch(n);
        grant_look(n);
        read_look(n);
        send_commit(n, false);
    }
    node_run_deferred(n);
    io_write(n); /* last: what was appended, nothing else has written before the loop sleeps */
}

static void on_timer(uv_timer_t *timer)
{
    struct node *n = timer->data;

    n->ticks++;
    if (n->stopping) {
        return;
    }
    if (n->join.joining) {
        join_tick(n);
    }
    if (n->running) {
        lost_tick(n);
        watch(n);
        submit_tick(n);
        grant_tick(n);
        fsm_tick(n);
        idle_tick(n);
        repair_tick(n);
        away_tick(n);
        if (!n->stopping) {
            io_tick(n);
        }
    }
    again_tick(n);
    ask_tick(n);
    change_tick(n);
    read_tick(n);
    join_promote_tick(n);
    give_tick(n);
    transfer_tick(n);
}

/* ---- start ---- */

/* A folder that is refused is left as it was. So only now is this start counted, and nobody has heard of it yet. */
int node_accept(struct node *n, struct err *e)
{
    struct head_info file;
    int rv = DUST_OK;

    if (n->accepted || n->opt.mode != NODE_RESUME) {
        return DUST_OK;
    }
    if (n->db->sums == NULL) {
        store_agreed(n->db->store, &file);
        rv = database_sums_open(n->db, &file.id, file.n_pages, e);
    }
    if (rv == DUST_OK) {
        n->self.starts = STARTS_OF(n->boot);
        rv = member_save(n->db->dir, &n->self, e);
    }
    n->accepted = rv == DUST_OK;
    return rv;
}

int node_begin_raft(struct node *n, struct err *e)
{
    struct raft_configuration conf;
    int rv;

    rv = io_init(n, e);
    if (rv != DUST_OK) {
        return rv;
    }
    fsm_init(n);
    snprintf(n->address, sizeof n->address, "%s", n->self.address);
    rv = raft_init(&n->raft, &n->io.raft_io, &n->fsm.raft_fsm, n->self.id, n->address);
    if (rv != 0) {
        return err_set(e, code_of_raft(rv),
            "the log in %s/raft cannot be opened: %s (if other members are well: remove this one there, delete its "
            "files here, and join anew)",
            n->db->dir, raft_errmsg(&n->raft));
    }
    n->raft_open = true;
    guard_init(&n->io.guard, &n->raft);
    raft_set_election_timeout(&n->raft, n->opt.election_ms);
    raft_set_heartbeat_timeout(&n->raft, n->opt.election_ms / 10 > 0 ? n->opt.election_ms / 10 : 1);
    raft_set_install_snapshot_timeout(&n->raft, 5 * n->opt.election_ms);
    /* The first snapshot of a new cluster is taken at once and leaves out entry 1: what the database held at the start
     * is in no log, so whoever joins has to begin with a snapshot. Trailing is never 0: that means a snapshot installed,
     * which takes the place of the log (storage.h). */
    raft_set_snapshot_threshold(&n->raft, n->opt.mode == NODE_BOOTSTRAP ? 2 : 1u << 16);
    raft_set_snapshot_trailing(&n->raft, n->opt.mode == NODE_BOOTSTRAP ? 1 : 2048);
    raft_set_pre_vote(&n->raft, true);
    raft_set_max_catch_up_rounds(&n->raft, 1000);
    raft_set_max_catch_up_round_duration(&n->raft, 600000);
    if (n->opt.mode == NODE_BOOTSTRAP) {
        raft_configuration_init(&conf);
        rv = raft_configuration_add(&conf, n->self.id, n->address, RAFT_VOTER);
        if (rv == 0) {
            rv = raft_bootstrap(&n->raft, &conf);
        }
        raft_configuration_close(&conf);
        if (rv != 0) {
            return err_set(e, code_of_raft(rv), "cannot begin a log in %s/raft: %s",
                n->db->dir, n->io.raft_io.errmsg[0] != '\0' ? n->io.raft_io.errmsg : raft_strerror(rv));
        }
    }
    rv = raft_start(&n->raft);
    if (rv != 0 && n->io.load_err.code != DUST_OK) {
        *e = n->io.load_err;
        return e->code;
    }
    if (rv != 0) {
        return err_set(e, code_of_raft(rv),
            "the log in %s/raft cannot be read: %s (if other members are well: remove this one there, delete its files "
            "here, and join anew)",
            n->db->dir, raft_errmsg(&n->raft));
    }
    store_set_applied(n->db->store, n->fsm.skip_until);
    io_started(n);
    away_begin(n);
    n->running = true;
    watch(n);
    return DUST_OK;
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h)) {
        uv_close(h, NULL);
    }
}

static void peers_closed(void *arg)
{
    struct node *n = arg;

    n->peers = NULL;
    pthread_mutex_lock(&n->mutex);
    n->loop_done = true;
    pthread_mutex_unlock(&n->mutex);
    if (n->has_async) {
        n->has_async = false;
        close_handle((uv_handle_t *)&n->async, NULL);
    }
    close_handle((uv_handle_t *)&n->timer, NULL);
    close_handle((uv_handle_t *)&n->gather, NULL);
    close_handle((uv_handle_t *)&n->notice, NULL);
    close_handle((uv_handle_t *)&n->prepare, NULL);
}

static void raft_has_closed(struct raft *r)
{
    struct node *n = r->data;

    n->raft_closed = true;
}

/* A disk that hangs keeps the loop from ending. It ends without the disk, so that peers and programs hear no more of this
 * instance; what is being written is waited for then (io_close_done). */
static void on_limit(uv_timer_t *timer)
{
    struct node *n = timer->data;

    report(&n->db->report, DUST_IO, "a write of the log in %s/raft has not come to an end for %u ms; it is waited for",
        n->db->dir, CLOSE_LIMIT_MS);
    uv_walk(&n->loop, close_handle, NULL);
}

/* The loop ends when all handles are closed. */
void node_close_all(struct node *n)
{
    uv_timer_start(&n->limit, on_limit, CLOSE_LIMIT_MS, CLOSE_LIMIT_MS);
    if (n->raft_open) {
        n->raft.data = n;
        guard_deinit(&n->io.guard);
        raft_close(&n->raft, raft_has_closed);
    }
    if (n->peers != NULL) {
        peers_close(n->peers, peers_closed, n);
    } else {
        peers_closed(n);
    }
}

/* From here on nothing new is begun. */
static void shut_down(struct node *n)
{
    bool closing = n->stopping;

    n->restart = false;
    n->stopping = true;
    turn_close(&n->db->turn);
    submit_fail(n, DUST_UNKNOWN, "this member was stopped before the cluster had answered");
    change_fail(n, DUST_CLOSED, "this member is shutting down");
    ask_fail(n, DUST_CLOSED, "this member is shutting down");
    read_fail(n, DUST_CLOSED, "this member is shutting down");
    give_deinit(n);
    transfer_deinit(n);
    if (!closing) {
        node_close_all(n);
    }
}

static int start_on_loop(struct node *n, struct err *e)
{
    struct peers_options po = {.bind = n->self.bind, .address = n->address, .keys = &n->opt.keys, .recv = recv_message,
        .stale = recv_stale, .refused = recv_refused, .ctx = n};
    int rv;

    uv_timer_init(&n->loop, &n->timer);
    uv_timer_init(&n->loop, &n->gather);
    uv_timer_init(&n->loop, &n->notice);
    uv_timer_init(&n->loop, &n->limit);
    uv_unref((uv_handle_t *)&n->limit); /* nobody waits for it */
    uv_prepare_init(&n->loop, &n->prepare);
    n->timer.data = n->prepare.data = n->notice.data = n->limit.data = n;
    rv = uv_async_init(&n->loop, &n->async, on_async);
    if (rv != 0) {
        return err_set(e, DUST_IO, "cannot make an event loop: %s", uv_strerror(rv));
    }
    n->async.data = n;
    n->has_async = true;
    pthread_mutex_lock(&n->mutex);
    n->loop_done = false;
    n->signalled = false;
    pthread_mutex_unlock(&n->mutex);
    if (n->again.waiting) {
        uv_timer_start(&n->timer, on_timer, TICK_MS, TICK_MS);
        return DUST_OK;
    }
    if (n->up && database_in_place(n->db, e) != DUST_OK) { /* another folder would be read, and written to */
        return DUST_MOVED;
    }
    rv = peers_open(&n->peers, &n->loop, &po, e);
    if (rv != DUST_OK) {
        return rv;
    }
    if (n->opt.mode != NODE_RESUME) {
        snprintf(n->self.bind, sizeof n->self.bind, "%s", peers_bound_address(n->peers));
        if (n->self.address[0] == '\0') { /* not told to advertise another one */
            snprintf(n->self.address, sizeof n->self.address, "%s", n->self.bind);
        }
    }
    snprintf(n->address, sizeof n->address, "%s", n->self.address);
    uv_prepare_start(&n->prepare, on_prepare);
    uv_timer_start(&n->timer, on_timer, TICK_MS, TICK_MS);
    if (n->opt.mode == NODE_JOIN) {
        n->join.joining = true;
        join_tick(n);
        return DUST_OK;
    }
    if (n->opt.mode == NODE_BOOTSTRAP) {
        /* In this order: cut short after any step, resume() in ext/registry.c finishes it. */
        rv = member_save(n->db->dir, &n->self, e);
        if (rv == DUST_OK) {
            rv = database_begin(n->db, &n->self.cluster, n->opt.n_pages, e);
        }
        if (rv != DUST_OK) {
            return rv;
        }
    }
    rv = node_begin_raft(n, e);
    if (rv == DUST_OK) {
        node_set_up(n);
    }
    return rv;
}

static void run_loop(struct node *n)
{
    struct err e;

    if (start_on_loop(n, &e) != DUST_OK) {
        if ((n->again.tries != 0 || n->up) &&
            (e.code == DUST_IO || e.code == DUST_FULL || e.code == DUST_EXISTS || e.code == DUST_NOMEM ||
                e.code == DUST_MOVED)) {
            again_later(n, &e);
        } else {
            node_fail(n, &e);
            shut_down(n);
        }
    }
    node_run_jobs(n);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    close_handle((uv_handle_t *)&n->limit, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    io_close_done(n);
    node_run_deferred(n);
    uv_loop_close(&n->loop);
}

/* It may be that memory or descriptors are scarce: that passes. False: this member is to stop. */
static bool new_loop(struct node *n)
{
    while (uv_loop_init(&n->loop) != 0) {
        struct timespec until = deadline_in_ms(LOOP_RETRY_MS);
        bool stop;

        pthread_mutex_lock(&n->mutex);
        if (n->state != NODE_STOPPING) {
            pthread_cond_timedwait(&n->cond, &n->mutex, &until);
        }
        stop = n->state == NODE_STOPPING;
        pthread_mutex_unlock(&n->mutex);
        if (stop) {
            return false;
        }
    }
    return true;
}

static void *loop_thread(void *arg)
{
    struct node *n = arg;

    run_loop(n);
    while (n->restart) {
        again_forget_instance(n);
        if (!new_loop(n)) {
            break;
        }
        run_loop(n);
    }
    pthread_mutex_lock(&n->mutex);
    n->halted = true;
    n->stopping = true;
    if (n->state != NODE_FAILED) {
        n->state = NODE_STOPPED;
    }
    n->up = true;
    pthread_cond_broadcast(&n->cond);
    pthread_mutex_unlock(&n->mutex);
    node_run_jobs(n);
    return NULL;
}

static void found_damage(void *ctx)
{
    node_wake(ctx);
}

static void turn_changed(void *ctx)
{
    grant_poke(ctx);
}

static void node_free(struct node *n)
{
    read_deinit(n);
    submit_deinit(n);
    send_deinit(n);
    fsm_deinit(n);
    promise_close(&n->promise);
    pthread_cond_destroy(&n->cond);
    pthread_mutex_destroy(&n->mutex);
    free(n);
}

int node_start(struct node **out, struct database *db, const struct node_options *opt, struct err *e)
{
    struct node *n = calloc(1, sizeof *n);
    int rv;

    if (n == NULL || sodium_init() < 0) {
        free(n);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    n->db = db;
    n->opt = *opt;
    n->self = opt->self;
    n->jobs_tail = &n->jobs;
    n->loop_done = true;
    n->boot = STARTS_BOOT(n->self.starts + (opt->mode == NODE_RESUME), randombytes_random() | 1u);
    n->started_ms = clock_ms();
    starts_load(&n->starts, &n->self);
    db->origin = n->self.id;
    n->noted = n->self.file_version;
    store_set_durable(db->store, 0, &n->noted);
    read_init(n);
    pthread_mutex_init(&n->mutex, NULL);
    cond_init_monotonic(&n->cond);
    rv = submit_init(n, e);
    if (rv == DUST_OK) {
        rv = send_init(n, e);
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    if (uv_loop_init(&n->loop) != 0) {
        rv = err_set(e, DUST_NOMEM, "cannot make an event loop");
        goto fail;
    }
    db->rep = (struct replicator){.ctx = n, .room = sizeof(struct inflight), .submit = submit_from_sql,
        .confirm_read = read_confirm, .took_effect = node_took_effect, .found_damage = found_damage, .turn_changed = turn_changed};
    if (pthread_create(&n->thread, NULL, loop_thread, n) != 0) {
        uv_loop_close(&n->loop);
        rv = err_set(e, DUST_NOMEM, "cannot start a thread");
        goto fail;
    }
    pthread_mutex_lock(&n->mutex);
    while (!n->up) {
        pthread_cond_wait(&n->cond, &n->mutex);
    }
    if (n->state == NODE_FAILED) {
        if (e != NULL) {
            *e = n->failure;
        }
        rv = n->failure.code;
    }
    pthread_mutex_unlock(&n->mutex);
    if (rv != DUST_OK) {
        node_stop(n);
        db->rep = (struct replicator){0};
        return rv;
    }
    *out = n;
    return DUST_OK;

fail:
    db->rep = (struct replicator){0};
    node_free(n);
    return rv;
}

static void stop_run(struct node *n, struct job *job)
{
    (void)job;
    shut_down(n);
}

void node_halt(struct node *n)
{
    pthread_mutex_lock(&n->mutex);
    if (n->state == NODE_RUNNING) {
        n->state = NODE_STOPPING;
        pthread_cond_broadcast(&n->cond);
    }
    pthread_mutex_unlock(&n->mutex);
    n->halt.run = stop_run;
    node_post(n, &n->halt);
    pthread_join(n->thread, NULL);
}

void node_stop(struct node *n)
{
    if (n != NULL) {
        node_halt(n);
        node_free(n);
    }
}
