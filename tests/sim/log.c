/* raft_io over a log in memory, in the place of libraft's own storage (raft_uv_init and its kin; segments_last and
 * segments_truncated, which look into its files).
 *
 * Appends, truncates and snapshot_puts are queued and done one after the other, each taking its time; a crash loses
 * what was not done, or a part of it. Term and vote are stored at once. As with raft_uv, a truncate that comes behind a
 * pending snapshot_put is lost, and nobody hears of one that fails; after a failed append all that follow fail; and a
 * close lets the write that has begun finish and cancels the others, the oldest first.
 *
 * With each instance go a timer on its loop, for libraft's ticks, and a hold on the loop until it is closed. */
#include "tests/sim/log.h"

#include <raft/uv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/loop.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"
#include "vfs/err.h"

struct op {
    struct op *next;
    struct storage *storage;
    enum { OP_APPEND, OP_TRUNCATE, OP_PUT } what;
    raft_index index; /* of the first entry; from where to cut */
    unsigned n;
    const struct raft_entry *entries; /* libraft's, until the callback */
    struct raft_io_append *append;
    raft_io_append_cb append_cb;
    unsigned trailing;
    const struct raft_snapshot *snapshot; /* libraft's, until the callback */
    struct raft_io_snapshot_put *put;
    raft_io_snapshot_put_cb put_cb;
    int status;
};

struct storage {
    struct machine *machine;
    unsigned life;
    struct raft_io *io;
    struct loop *loop;
    struct loop_timer *timer;
    raft_io_tick_cb tick;
    raft_io_close_cb closed;
    bool closing, hung_up, errored;
    raft_index next_index; /* of the next append */
    struct op *ops, **ops_tail;
    bool busy; /* the first of ops is being done */
    bool put_pending, barrier_open;
    unsigned works; /* snapshot_get, async_work under way */
};

struct log_snapshots log_snapshots;

/* ---- what an operation does ---- */

static void entry_put(struct log *l, const struct raft_entry *e)
{
    struct log_entry *to;

    if (l->n == l->room) {
        l->room = l->room == 0 ? 64 : 2 * l->room;
        l->entries = must(realloc(l->entries, l->room * sizeof *l->entries));
    }
    to = &l->entries[l->n++];
    *to =
        (struct log_entry){.term = e->term, .type = e->type, .len = e->buf.len, .bytes = must(malloc(e->buf.len + 1))};
    memcpy(to->bytes, e->buf.base, e->buf.len);
}

static void cut(struct log *l, size_t n)
{
    while (l->n > n) {
        free(l->entries[--l->n].bytes);
    }
}

static void drop_first(struct log *l, size_t n)
{
    n = n < l->n ? n : l->n;
    for (size_t i = 0; i < n; i++) {
        free(l->entries[i].bytes);
    }
    memmove(l->entries, l->entries + n, (l->n - n) * sizeof *l->entries);
    l->n -= n;
    l->first += n;
}

static void put_snapshot(struct log *l, const struct raft_snapshot *s, unsigned trailing)
{
    struct log_snapshot *to = &l->snapshot;

    *to = (struct log_snapshot){.index = s->index, .term = s->term, .conf_index = s->configuration_index};
    for (unsigned i = 0; i < s->configuration.n; i++) {
        struct log_server *server = &to->servers[to->n_servers++];

        server->id = s->configuration.servers[i].id;
        server->role = s->configuration.servers[i].role;
        snprintf(server->address, sizeof server->address, "%s", s->configuration.servers[i].address);
    }
    for (unsigned i = 0; i < s->n_bufs; i++) {
        if (to->len + s->bufs[i].len > sizeof to->bytes) {
            violation("a snapshot's descriptor is too long");
        }
        memcpy(to->bytes + to->len, s->bufs[i].base, s->bufs[i].len);
        to->len += s->bufs[i].len;
    }
    if (trailing == 0) { /* installed */
        cut(l, 0);
        l->first = s->index + 1;
        tally()->installs++;
        return;
    }
    tally()->snapshots++;
    if (s->index > trailing && s->index - trailing + 1 > l->first) {
        drop_first(l, (size_t)(s->index - trailing + 1 - l->first));
    }
}

static void op_do(struct log *l, const struct op *op)
{
    switch (op->what) {
    case OP_APPEND:
        if (op->index != l->first + l->n) {
            violation("a log on disk ends at %llu, and %llu is written next", l->first + l->n - 1, op->index);
        }
        for (unsigned i = 0; i < op->n; i++) {
            entry_put(l, &op->entries[i]);
        }
        break;
    case OP_TRUNCATE:
        if (op->index < l->first) {
            violation("a log is truncated at %llu, before its first entry", op->index);
        }
        if (op->index < l->first + l->n) {
            cut(l, (size_t)(op->index - l->first));
        }
        break;
    case OP_PUT:
        put_snapshot(l, op->snapshot, op->trailing);
        break;
    }
}

const struct log_entry *log_entry_at(const struct machine *m, raft_index index)
{
    const struct log *l = &m->log;

    return index >= l->first && index < l->first + l->n ? &l->entries[index - l->first] : NULL;
}

void log_crash(struct machine *m, bool power)
{
    struct storage *s = m->log.storage;

    if (s != NULL && !s->errored) {
        for (struct op *op = s->ops; op != NULL && chance(power ? 4000 : 6000); op = op->next) {
            op_do(&m->log, op);
        }
    }
    m->log.storage = NULL;
}

void log_wipe(struct machine *m)
{
    cut(&m->log, 0);
    free(m->log.entries);
    m->log = (struct log){.first = 1};
}

/* ---- the queue ---- */

static struct op *op_pop(struct storage *s)
{
    struct op *op = s->ops;

    s->ops = op->next;
    if (s->ops == NULL) {
        s->ops_tail = &s->ops;
    }
    return op;
}

static void maybe_closed(struct storage *s)
{
    if (s->closing && !s->busy && s->works == 0 && s->ops == NULL && !s->hung_up) {
        s->hung_up = true;
        s->closed(s->io);
        loop_hold(s->loop, -1);
    }
}

/* On the loop. */
static void op_report(void *arg)
{
    struct op *op = arg;
    struct storage *s = op->storage;

    if (op->what == OP_APPEND) {
        op->append_cb(op->append, op->status);
    } else if (op->what == OP_PUT) {
        s->put_pending = false;
        op->put_cb(op->put, op->status);
    }
    free(op);
    maybe_closed(s);
}

static void begin_op(struct storage *s);

static void op_done(void *arg)
{
    struct op *op = arg;
    struct storage *s = op->storage;
    struct machine *m = s->machine;

    if (m->log.storage != s || m->life != s->life) {
        return; /* crashed meanwhile */
    }
    if (m->paused_ns > world.now_ns && chance(5000)) { /* the disk may go on without the process */
        event_at(m->paused_ns, op_done, op);
        return;
    }
    op_pop(s);
    s->busy = false;
    if (op->what == OP_TRUNCATE && files_write_fails(m)) {
        tally()->failed_truncates++;
    } else if (op->what != OP_TRUNCATE && (s->errored || files_write_fails(m))) {
        op->status = chance(5000) ? RAFT_NOSPACE : RAFT_IOERR;
        if (!s->errored && op->what == OP_APPEND) {
            s->errored = true;
            if (chance(5000)) {
                op_do(&m->log, op); /* it has reached the disk all the same */
            }
        }
    } else if (!s->errored) {
        op_do(&m->log, op);
    }
    trace('d', m->number, op->index << 8 | (unsigned)op->status);
    loop_post(s->loop, op_report, op);
    if (s->closing) {
        while (s->ops != NULL) {
            op = op_pop(s);
            op->status = RAFT_CANCELED;
            loop_post(s->loop, op_report, op);
        }
    }
    begin_op(s);
}

static void begin_op(struct storage *s)
{
    uint64_t ns;

    if (s->busy || s->ops == NULL) {
        return;
    }
    s->busy = true;
    ns = s->ops->what == OP_PUT ? chance_between(500 * US_NS, 4 * MS_NS) : chance_between(60 * US_NS, 600 * US_NS);
    event_at(world.now_ns + ns * s->machine->slow, op_done, s->ops);
}

static struct op *op_push(struct storage *s, int what)
{
    struct op *op = must(calloc(1, sizeof *op));

    op->storage = s;
    op->what = what;
    *s->ops_tail = op;
    s->ops_tail = &op->next;
    return op;
}

/* ---- raft_io ---- */

static struct storage *storage_of(struct raft_io *io)
{
    return io->impl;
}

static int l_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)id;
    (void)address;
    loop_hold(storage_of(io)->loop, 1);
    return 0;
}

static void on_timer(void *arg)
{
    struct storage *s = arg;

    if (!s->closing) {
        s->tick(s->io);
    }
}

static int l_start(struct raft_io *io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct storage *s = storage_of(io);

    (void)recv;
    s->tick = tick;
    s->timer = loop_every(s->loop, ms, on_timer, s);
    return 0;
}

static void report_closed(void *arg)
{
    maybe_closed(arg);
}

static void l_close(struct raft_io *io, raft_io_close_cb cb)
{
    struct storage *s = storage_of(io);
    struct op *kept = NULL;

    s->closing = true;
    s->closed = cb;
    if (s->timer != NULL) {
        loop_timer_stop(s->timer);
    }
    if (s->busy) {
        kept = op_pop(s);
    }
    while (s->ops != NULL) {
        struct op *op = op_pop(s);

        op->status = RAFT_CANCELED;
        loop_post(s->loop, op_report, op);
    }
    if (kept != NULL) {
        kept->next = NULL;
        s->ops = kept;
        s->ops_tail = &kept->next;
    }
    loop_post(s->loop, report_closed, s);
}

static int l_load(struct raft_io *io, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot,
    raft_index *start, struct raft_entry *entries[], size_t *n_entries)
{
    struct storage *s = storage_of(io);
    struct log *l = &s->machine->log;
    size_t bytes = 0;
    uint8_t *batch;

    *term = l->term;
    *vote = l->vote;
    *snapshot = NULL;
    if (l->snapshot.index != 0) {
        struct raft_snapshot *p = must(raft_calloc(1, sizeof *p));

        p->index = l->snapshot.index;
        p->term = l->snapshot.term;
        p->configuration_index = l->snapshot.conf_index;
        raft_configuration_init(&p->configuration);
        for (unsigned i = 0; i < l->snapshot.n_servers; i++) {
            raft_configuration_add(&p->configuration, l->snapshot.servers[i].id, l->snapshot.servers[i].address,
                l->snapshot.servers[i].role);
        }
        p->n_bufs = 1;
        p->bufs = must(raft_malloc(sizeof *p->bufs));
        p->bufs[0].len = l->snapshot.len;
        p->bufs[0].base = must(raft_malloc(l->snapshot.len));
        memcpy(p->bufs[0].base, l->snapshot.bytes, l->snapshot.len);
        *snapshot = p;
    }
    if (l->n > 0 && l->first + l->n - 1 < l->snapshot.index) { /* behind the snapshot */
        cut(l, 0);
    }
    if (l->n == 0) {
        l->first = l->snapshot.index + 1;
    }
    *start = l->first;
    *n_entries = l->n;
    *entries = NULL;
    s->next_index = l->first + l->n;
    if (l->n == 0) {
        return 0;
    }
    for (size_t i = 0; i < l->n; i++) {
        bytes += (l->entries[i].len + 7) / 8 * 8;
    }
    *entries = must(raft_calloc(l->n, sizeof **entries));
    batch = must(raft_malloc(bytes + 8));
    bytes = 0;
    for (size_t i = 0; i < l->n; i++) {
        (*entries)[i].term = l->entries[i].term;
        (*entries)[i].type = l->entries[i].type;
        (*entries)[i].buf.base = batch + bytes;
        (*entries)[i].buf.len = l->entries[i].len;
        (*entries)[i].batch = batch;
        memcpy(batch + bytes, l->entries[i].bytes, l->entries[i].len);
        bytes += (l->entries[i].len + 7) / 8 * 8;
    }
    return 0;
}

static int l_bootstrap(struct raft_io *io, const struct raft_configuration *c)
{
    struct storage *s = storage_of(io);
    struct raft_entry e = {.term = 1, .type = RAFT_CHANGE};
    char path[FILES_PATH_MAX];

    if (s->machine->log.term != 0) {
        return RAFT_CANTBOOTSTRAP;
    }
    if (raft_configuration_encode(c, &e.buf) != 0) {
        return RAFT_NOMEM;
    }
    s->machine->log.term = 1;
    entry_put(&s->machine->log, &e);
    raft_free(e.buf.base);
    snprintf(path, sizeof path, "%s-dust/raft/open-1", s->machine->path); /* what dust knows a log by */
    files_touch(s->machine, path);
    return 0;
}

static int l_recover(struct raft_io *io, const struct raft_configuration *c)
{
    (void)io;
    (void)c;
    return RAFT_INVALID;
}

static int l_set_term(struct raft_io *io, raft_term term)
{
    struct storage *s = storage_of(io);

    if (files_write_fails(s->machine)) {
        return RAFT_IOERR;
    }
    s->machine->log.term = term;
    s->machine->log.vote = 0;
    return 0;
}

static int l_set_vote(struct raft_io *io, raft_id id)
{
    struct storage *s = storage_of(io);

    if (files_write_fails(s->machine)) {
        return RAFT_IOERR;
    }
    s->machine->log.vote = id;
    return 0;
}

static int l_append(
    struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[], unsigned n, raft_io_append_cb cb)
{
    struct storage *s = storage_of(io);
    struct op *op;

    if (s->errored) {
        return RAFT_IOERR;
    }
    op = op_push(s, OP_APPEND);
    op->index = s->next_index;
    s->next_index += n;
    s->barrier_open = true;
    op->n = n;
    op->entries = entries;
    op->append = req;
    op->append_cb = cb;
    begin_op(s);
    return 0;
}

static int l_truncate(struct raft_io *io, raft_index index)
{
    struct storage *s = storage_of(io);
    bool lost = s->put_pending && !s->barrier_open;

    if (!lost) {
        op_push(s, OP_TRUNCATE)->index = index;
        begin_op(s);
    }
    s->next_index = index;
    s->barrier_open = false;
    return 0;
}

static int l_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct storage *s = storage_of(io);
    struct op *op = op_push(s, OP_PUT);

    op->trailing = trailing;
    op->snapshot = snapshot;
    op->put = req;
    op->put_cb = cb;
    op->index = snapshot->index;
    s->put_pending = true;
    s->barrier_open = false;
    if (trailing == 0) {
        s->next_index = snapshot->index + 1;
    }
    begin_op(s);
    return 0;
}

struct getting {
    struct storage *storage;
    struct raft_io_snapshot_get *req;
    raft_io_snapshot_get_cb cb;
};

static void get_run(void *arg)
{
    struct getting *g = arg;

    task_sleep(chance_between(100 * US_NS, MS_NS) * g->storage->machine->slow);
}

static void get_done(void *arg)
{
    struct getting *g = arg;
    struct log *l = &g->storage->machine->log;
    struct raft_snapshot *snapshot = must(raft_calloc(1, sizeof *snapshot));
    struct storage *s = g->storage;

    s->works--;
    snapshot->index = l->snapshot.index;
    snapshot->term = l->snapshot.term;
    snapshot->configuration_index = l->snapshot.conf_index;
    raft_configuration_init(&snapshot->configuration);
    for (unsigned i = 0; i < l->snapshot.n_servers; i++) {
        raft_configuration_add(&snapshot->configuration, l->snapshot.servers[i].id, l->snapshot.servers[i].address,
            l->snapshot.servers[i].role);
    }
    snapshot->n_bufs = 1;
    snapshot->bufs = must(raft_malloc(sizeof *snapshot->bufs));
    snapshot->bufs[0].len = l->snapshot.len;
    snapshot->bufs[0].base = must(raft_malloc(l->snapshot.len + 1));
    memcpy(snapshot->bufs[0].base, l->snapshot.bytes, l->snapshot.len);
    g->cb(g->req, snapshot, 0);
    free(g);
    maybe_closed(s);
}

static int l_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct storage *s = storage_of(io);
    struct getting *g = must(calloc(1, sizeof *g));

    *g = (struct getting){.storage = s, .req = req, .cb = cb};
    s->works++;
    loop_work(s->loop, get_run, get_done, g);
    return 0;
}

struct working {
    struct storage *storage;
    struct raft_io_async_work *req;
    raft_io_async_work_cb cb;
    int status;
};

static void async_run(void *arg)
{
    struct working *w = arg;

    w->status = w->req->work(w->req);
}

static void async_done(void *arg)
{
    struct working *w = arg;
    struct storage *s = w->storage;

    s->works--;
    w->cb(w->req, w->status);
    free(w);
    maybe_closed(s);
}

static int l_async_work(struct raft_io *io, struct raft_io_async_work *req, raft_io_async_work_cb cb)
{
    struct storage *s = storage_of(io);
    struct working *w = must(calloc(1, sizeof *w));

    *w = (struct working){.storage = s, .req = req, .cb = cb};
    s->works++;
    loop_work(s->loop, async_run, async_done, w);
    return 0;
}

static raft_time l_time(struct raft_io *io)
{
    return loop_now_ms(storage_of(io)->loop);
}

static int l_random(struct raft_io *io, int min, int max)
{
    (void)io;
    return min + (int)chance_below((uint64_t)(max - min));
}

/* ---- in libraft's place ---- */

int __wrap_raft_uv_init(
    struct raft_io *io, struct uv_loop_s *loop, const char *dir, struct raft_uv_transport *transport);
int __wrap_segments_last(const char *dir, uint64_t *last, struct err *e);
int __wrap_segments_truncated(const char *dir, uint64_t index, bool *done, struct err *e);
void __wrap_raft_uv_close(struct raft_io *io);
void __wrap_raft_uv_set_auto_recovery(struct raft_io *io, bool on);
int __wrap_raft_uv_set_snapshot_compression(struct raft_io *io, bool on);
void __wrap_raft_set_snapshot_threshold(struct raft *r, unsigned n);
void __real_raft_set_snapshot_threshold(struct raft *r, unsigned n);
void __wrap_raft_set_snapshot_trailing(struct raft *r, unsigned n);
void __real_raft_set_snapshot_trailing(struct raft *r, unsigned n);

int __wrap_segments_last(const char *dir, uint64_t *last, struct err *e)
{
    const struct log *l = &machine_of_path(dir)->log;

    (void)e;
    *last = l->first + l->n - 1;
    *last = *last < l->snapshot.index ? l->snapshot.index : *last;
    return DUST_OK;
}

int __wrap_segments_truncated(const char *dir, uint64_t index, bool *done, struct err *e)
{
    const struct log *l = &machine_of_path(dir)->log;

    (void)e;
    *done = l->first + l->n <= index;
    return DUST_OK;
}

int __wrap_raft_uv_init(
    struct raft_io *io, struct uv_loop_s *loop, const char *dir, struct raft_uv_transport *transport)
{
    struct storage *s = must(calloc(1, sizeof *s));

    (void)transport;
    s->machine = machine_of_path(dir);
    s->life = s->machine->life;
    s->io = io;
    s->loop = loop_of(loop);
    s->ops_tail = &s->ops;
    s->barrier_open = true;
    s->machine->log.storage = s;
    *io = (struct raft_io){.version = 1,
        .data = io->data,
        .impl = s,
        .init = l_init,
        .close = l_close,
        .load = l_load,
        .start = l_start,
        .bootstrap = l_bootstrap,
        .recover = l_recover,
        .set_term = l_set_term,
        .set_vote = l_set_vote,
        .append = l_append,
        .truncate = l_truncate,
        .snapshot_put = l_snapshot_put,
        .snapshot_get = l_snapshot_get,
        .time = l_time,
        .random = l_random,
        .async_work = l_async_work};
    return 0;
}

void __wrap_raft_uv_close(struct raft_io *io)
{
    struct storage *s = storage_of(io);

    if (s->machine->log.storage == s) {
        s->machine->log.storage = NULL;
    }
    /* never freed: events to come may know it */
}

void __wrap_raft_uv_set_auto_recovery(struct raft_io *io, bool on)
{
    (void)io;
    (void)on;
}

int __wrap_raft_uv_set_snapshot_compression(struct raft_io *io, bool on)
{
    (void)io;
    (void)on;
    return 0;
}

/* A cluster's first snapshot is taken at once (2): that is left as it is. */
void __wrap_raft_set_snapshot_threshold(struct raft *r, unsigned n)
{
    __real_raft_set_snapshot_threshold(r, log_snapshots.threshold != 0 && n > 2 ? log_snapshots.threshold : n);
}

void __wrap_raft_set_snapshot_trailing(struct raft *r, unsigned n)
{
    __real_raft_set_snapshot_trailing(r, log_snapshots.trailing != 0 && n > 1 ? log_snapshots.trailing : n);
}
