/* libraft's disk.
 *
 * Entries go to the log's thread, which tells of them by an event of the loop (on_wake). Snapshots are written, read, and
 * files of the log made and removed, in libuv's thread pool. Term and vote are written where libraft asks for it.
 *
 * A snapshot that is installed takes the place of the log: what is appended after it waits until it is durable, and begins
 * the log anew. If a crash comes in between, the log's entries do not lead to the snapshot, and are void (log_load.c); or
 * they do, since they are the same: then they stay, as Raft has it (figure 13, step 6).
 *
 *   opened ──load──▶ loaded ──start──▶ running ──close──▶ closing ──the thread has ended, no job is left──▶ closed
 *      └──close──────────┴──────────────────────────────────────────────────────────────────────────────────▲ */
#include "raft/storage.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/codes.h"
#include "raft/servers.h"
#include "raft/snapshot.h"

#define TEND_AGAIN_MS 1000u /* after one that failed */

/* A request of libraft's that is done in the thread pool. */
struct job {
    uv_work_t work;
    struct storage *storage;
    struct err err;
    int result;
    union {
        struct {
            struct raft_io_snapshot_put *req;
            raft_io_snapshot_put_cb cb;
            const struct raft_snapshot *snapshot;
            unsigned trailing;
        } put;
        struct {
            struct raft_io_snapshot_get *req;
            raft_io_snapshot_get_cb cb;
            struct raft_snapshot *snapshot;
        } get;
        struct {
            struct raft_io_async_work *req;
            raft_io_async_work_cb cb;
        } async;
    };
};

struct storage {
    struct raft_io *io;
    uv_loop_t *loop;
    char *dir;
    struct termfile term;
    struct log *log;
    struct times *flushes; /* of the log; or NULL */
    raft_index next; /* of the next entries to be appended */
    bool anew;       /* … and they have nothing before them */
    bool forgiving;
    bool started, closing;
    uv_async_t wake;
    uv_timer_t timer;
    raft_io_tick_cb tick;
    unsigned jobs; /* in the thread pool */

    struct job put;  /* one at a time */
    bool installing; /* … and what is appended waits for it */
    struct log_op *held, **held_tail;

    bool tending;
    uv_work_t tend;
    int tended;
    uint64_t tend_ms; /* not before */
};

static int failed(struct storage *s, const struct err *e)
{
    snprintf(s->io->errmsg, sizeof s->io->errmsg, "%.*s", (int)sizeof s->io->errmsg - 1, e->text);
    return code_to_raft(e->code);
}

static void close_handles(struct storage *s)
{
    if (s->started && s->closing && s->jobs == 0 && log_stopped(s->log) && !uv_is_closing((uv_handle_t *)&s->wake)) {
        uv_close((uv_handle_t *)&s->wake, NULL);
        uv_close((uv_handle_t *)&s->timer, NULL);
    }
}

/* ---- the thread pool ---- */

static void tend_run(uv_work_t *work)
{
    struct storage *s = work->data;

    s->tended = log_tend(s->log, NULL);
}

static void tend_done(uv_work_t *work, int status)
{
    struct storage *s = work->data;

    s->jobs--;
    s->tending = false;
    s->tend_ms = status != 0 || s->tended != DUST_OK ? uv_now(s->loop) + TEND_AGAIN_MS : 0;
    close_handles(s);
}

static void tend(struct storage *s)
{
    if (s->tending || s->closing || uv_now(s->loop) < s->tend_ms || !log_wants(s->log)) {
        return;
    }
    s->tend.data = s;
    s->tending = uv_queue_work(s->loop, &s->tend, tend_run, tend_done) == 0;
    s->jobs += s->tending;
}

/* Begin one like this, of which the request is filled in. */
static int job_begin(struct raft_io *io, const struct job *like, uv_work_cb run, uv_after_work_cb done)
{
    struct storage *s = io->impl;
    struct job *j = malloc(sizeof *j);

    if (j == NULL) {
        return RAFT_NOMEM;
    }
    *j = *like;
    j->storage = s;
    j->work.data = j;
    s->jobs++;
    uv_queue_work(s->loop, &j->work, run, done);
    return 0;
}

static void job_end(struct job *j)
{
    struct storage *s = j->storage;

    free(j);
    s->jobs--;
    close_handles(s);
}

static void get_run(uv_work_t *work)
{
    struct job *j = work->data;

    j->result = snapshot_load(&j->get.snapshot, j->storage->dir, j->storage->term.key, &j->err);
}

static void get_done(uv_work_t *work, int status)
{
    struct job *j = work->data;

    (void)status;
    if (j->result == DUST_OK && j->get.snapshot == NULL) {
        j->result = err_set(&j->err, DUST_CORRUPT, "the snapshot in %s is gone", j->storage->dir);
    }
    j->get.cb(j->get.req, j->get.snapshot, j->result == DUST_OK ? 0 : failed(j->storage, &j->err));
    job_end(j);
}

static int get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    return job_begin(io, &(struct job){.get = {.req = req, .cb = cb}}, get_run, get_done);
}

static void async_run(uv_work_t *work)
{
    struct job *j = work->data;

    j->result = j->async.req->work(j->async.req);
}

static void async_done(uv_work_t *work, int status)
{
    struct job *j = work->data;

    (void)status;
    j->async.cb(j->async.req, j->result);
    job_end(j);
}

static int async_work(struct raft_io *io, struct raft_io_async_work *req, raft_io_async_work_cb cb)
{
    return job_begin(io, &(struct job){.async = {.req = req, .cb = cb}}, async_run, async_done);
}

/* ---- snapshots ---- */

static void put_run(uv_work_t *work)
{
    struct job *j = work->data;

    j->result = snapshot_save(j->storage->dir, j->storage->term.key, j->put.snapshot, &j->err);
}

/* What waited goes on; if the snapshot could not be stored, libraft is told, and whoever owns us begins anew. */
static void end_install(struct storage *s, bool stored)
{
    struct log_op *op = s->held, *next;

    s->installing = false;
    s->held = NULL;
    s->held_tail = &s->held;
    for (; op != NULL && !s->closing; op = next) {
        struct storage_append *a = (struct storage_append *)op;

        next = op->next;
        if (stored) {
            log_do(s->log, op, false);
        } else {
            a->done(a, RAFT_IOERR);
        }
    }
}

static void put_done(uv_work_t *work, int status)
{
    struct job *j = work->data;
    struct storage *s = j->storage;
    raft_index index = j->put.snapshot->index;
    bool installed = s->installing, stored = j->result == DUST_OK;

    (void)status;
    s->jobs--;
    if (stored && j->put.trailing != 0 && index > j->put.trailing) {
        log_release(s->log, index - j->put.trailing);
        tend(s);
    }
    if (installed) {
        end_install(s, stored);
    }
    j->put.cb(j->put.req, stored ? 0 : failed(s, &j->err)); /* which may begin the next one */
    close_handles(s);
}

void storage_put(struct storage *s, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    s->put = (struct job){.storage = s, .work.data = &s->put,
        .put = {.req = req, .cb = cb, .snapshot = snapshot, .trailing = trailing}};
    if (trailing == 0) {
        s->installing = true;
        s->anew = true;
        s->next = snapshot->index + 1;
    }
    s->jobs++;
    uv_queue_work(s->loop, &s->put.work, put_run, put_done);
}

/* ---- the log ---- */

static void on_wake(uv_async_t *wake)
{
    struct storage *s = wake->data;
    struct log_op *op = log_done(s->log), *next;

    for (; op != NULL && !s->closing; op = next) {
        struct storage_append *a = (struct storage_append *)op; /* op is its first member */

        next = op->next;
        if (op->status != DUST_OK && s->io->errmsg[0] == '\0') {
            struct err e;

            log_failure(s->log, &e);
            failed(s, &e);
        }
        a->done(a, code_to_raft(op->status));
    }
    tend(s);
    close_handles(s);
}

static void wake_loop(void *ctx)
{
    struct storage *s = ctx;

    uv_async_send(&s->wake);
}

void storage_append(
    struct storage *s, struct storage_append *a, const struct raft_entry *entries, unsigned n, bool here)
{
    a->op = (struct log_op){.index = s->next, .entries = entries, .n = n, .anew = s->anew};
    s->next += n;
    s->anew = false;
    if (s->installing) {
        *s->held_tail = &a->op;
        s->held_tail = &a->op.next;
    } else {
        log_do(s->log, &a->op, here);
    }
}

void storage_truncate(struct storage *s, raft_index index)
{
    s->next = index;
}

uint64_t storage_disk_bytes(struct storage *s)
{
    return log_disk_bytes(s->log);
}

void storage_measure(struct storage *s, struct times *flushes)
{
    s->flushes = flushes;
}

void storage_forgive(struct storage *s)
{
    s->forgiving = true;
}

int storage_load(struct storage *s, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot, raft_index *start,
    struct raft_entry *entries[], size_t *n, struct err *e)
{
    struct log_content content = {0};
    int rv = snapshot_load(snapshot, s->dir, s->term.key, e);

    if (rv == DUST_OK) {
        rv = log_open(&s->log, s->dir, e);
    }
    if (rv == DUST_OK) {
        raft_index index = *snapshot != NULL ? (*snapshot)->index : 0;
        raft_term of = *snapshot != NULL ? (*snapshot)->term : 0;

        rv = log_load(s->log, s->term.key, index, of, s->forgiving, &content, e);
    }
    if (rv != DUST_OK) {
        snapshot_free(*snapshot);
        *snapshot = NULL;
        failed(s, e);
        return rv;
    }
    *term = s->term.term;
    *vote = s->term.vote;
    *start = content.start;
    *entries = content.entries;
    *n = content.n;
    s->next = content.start + content.n;
    return DUST_OK;
}

/* Who joins has no term yet; who was ever in a cluster has one. */
static int bootstrap(struct raft_io *io, const struct raft_configuration *c)
{
    struct storage *s = io->impl;
    struct raft_entry entry = {.term = 1, .type = RAFT_CHANGE};
    struct err e;
    int rv;

    if (s->term.term != 0) {
        return RAFT_CANTBOOTSTRAP;
    }
    if (servers_encode(c, &entry.buf) != DUST_OK) {
        return RAFT_NOMEM;
    }
    rv = termfile_set(&s->term, 1, 0, s->term.life + 1, &e);
    rv = rv == DUST_OK ? log_begin(s->dir, s->term.key, s->term.life, &entry, &e) : rv;
    raft_free(entry.buf.base);
    return rv == DUST_OK ? 0 : failed(s, &e);
}

static int recover(struct raft_io *io, const struct raft_configuration *c)
{
    (void)io;
    (void)c;
    return RAFT_INVALID; /* dust_recover() does it another way */
}

/* ---- term and vote ---- */

static bool set(struct storage *s, raft_term term, raft_id vote)
{
    struct err e;
    bool done = termfile_set(&s->term, term, vote, s->term.life, &e) == DUST_OK;

    if (!done) {
        failed(s, &e);
    }
    return done;
}

bool storage_set_term(struct storage *s, raft_term term)
{
    return set(s, term, 0);
}

bool storage_set_vote(struct storage *s, raft_id vote)
{
    return set(s, s->term.term, vote);
}

/* ---- life ---- */

static int init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io;
    (void)id;
    (void)address;
    return 0;
}

static void on_timer(uv_timer_t *timer)
{
    struct storage *s = timer->data;

    if (!s->closing) {
        tend(s);
        s->tick(s->io);
    }
}

static int start(struct raft_io *io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct storage *s = io->impl;
    struct err e;
    int rv;

    (void)recv; /* messages come another way */
    s->tick = tick;
    rv = termfile_set(&s->term, s->term.term, s->term.vote, s->term.life + 1, &e);
    if (rv != DUST_OK) {
        return failed(s, &e);
    }
    if (uv_async_init(s->loop, &s->wake, on_wake) != 0) {
        return RAFT_NOMEM;
    }
    uv_timer_init(s->loop, &s->timer);
    s->wake.data = s->timer.data = s;
    s->started = true;
    log_measure(s->log, s->flushes);
    rv = log_start(s->log, s->term.life, wake_loop, s, &e);
    if (rv != DUST_OK) {
        return failed(s, &e);
    }
    uv_timer_start(&s->timer, on_timer, ms, ms);
    return 0;
}

void storage_close(struct storage *s)
{
    s->closing = true;
    if (s->started) {
        log_stop(s->log);
        close_handles(s);
    }
}

static raft_time now(struct raft_io *io)
{
    return uv_now(((struct storage *)io->impl)->loop);
}

static int between(struct raft_io *io, int min, int max)
{
    (void)io;
    return max > min ? min + (int)randombytes_uniform((uint32_t)(max - min)) : min;
}

int storage_init(struct storage **out, struct raft_io *io, uv_loop_t *loop, const char *dir, struct err *e)
{
    struct storage *s = calloc(1, sizeof *s);
    bool begun;
    int rv;

    if (s == NULL || (s->dir = strdup(dir)) == NULL) {
        free(s);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    s->io = io;
    s->loop = loop;
    s->held_tail = &s->held;
    rv = storage_begun(dir, &begun, e);
    if (rv == DUST_OK) {
        rv = termfile_open(&s->term, dir, !begun, e);
    }
    if (rv == DUST_NOTFOUND) {
        rv = err_set(e, DUST_CORRUPT, "the log in %s is damaged: its file `term` is missing", dir);
    }
    if (rv != DUST_OK) {
        storage_deinit(s);
        return rv;
    }
    *io = (struct raft_io){.version = 2, .data = io->data, .impl = s, .init = init, .bootstrap = bootstrap, .recover = recover,
        .start = start, .snapshot_get = get, .time = now, .random = between, .async_work = async_work};
    *out = s;
    return DUST_OK;
}

void storage_join(struct storage *s)
{
    if (s != NULL) {
        log_close(s->log);
        s->log = NULL;
    }
}

void storage_deinit(struct storage *s)
{
    if (s == NULL) {
        return;
    }
    storage_join(s);
    termfile_close(&s->term);
    free(s->dir);
    free(s);
}

int storage_begun(const char *dir, bool *begun, struct err *e)
{
    int rv = snapshot_exists(dir, begun, e);

    return rv == DUST_OK && !*begun ? log_exists(dir, begun, e) : rv;
}
