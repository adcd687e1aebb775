/* raft_io: libraft's own storage underneath, our peers for every message (recv.c, send.c), and the guard in between.
 *
 * libraft's uv implementation fills the table; the functions here take the place of some of its entries, in the same
 * table, and call the originals. What the guard must see passes here: sends, receipts, ticks, appends, snapshots, term
 * and vote.
 *
 * A request that the guard withholds (the member is dead), or that libuv's storage forgets (it does after some errors),
 * is given back to libraft as cancelled when the instance is closed, newest first: see guard.h.
 *
 * A closed libraft calls its close callback from ours; libuv's storage may call ours twice. So it is only noted, and
 * libraft hears of it once, when the loop has ended (io_close_done). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "raft/node_impl.h"
#include "raft/segments.h"
#include "raft/smallfile.h"
#include "raft/torn.h"
#include "vfs/clock.h"

#define STACK_BYTES 16384u
#define RESERVED 16u
#define STUCK_TICKS (10000u / TICK_MS)

struct append_req {
    struct raft_io_append req;
    struct raft_io_append *theirs;
    raft_io_append_cb cb;
    struct node *node;
    const struct raft_entry *entries; /* libraft's, until the callback */
    unsigned n_entries;
    raft_index last_index; /* of these */
    uint64_t begun;        /* n->ticks */
    uint64_t begun_us, bytes;
    struct append_req *older;   /* the next one not given back */
    struct append_req *delayed; /* the next one to be written */
};

struct put_req {
    struct raft_io_snapshot_put req;
    struct raft_io_snapshot_put *theirs;
    raft_io_snapshot_put_cb cb;
    struct node *node;
    raft_index installs; /* it takes the place of the log, up to here; 0: it does not */
};

/* libraft does not survive that an append cannot be begun. So there is memory for as many as follow each other while
 * there is none to be had; and for the one snapshot_put that may be under way. */
struct reserve {
    struct append_req appends[RESERVED];
    bool used[RESERVED];
    struct put_req put;
};

static struct append_req *append_req_new(struct node *n)
{
    struct append_req *a = calloc(1, sizeof *a);

    for (unsigned i = 0; a == NULL && i < RESERVED; i++) {
        if (!n->io.reserve->used[i]) {
            n->io.reserve->used[i] = true;
            a = &n->io.reserve->appends[i];
            memset(a, 0, sizeof *a);
        }
    }
    return a;
}

static void append_req_free(struct node *n, struct append_req *a)
{
    for (unsigned i = 0; i < RESERVED; i++) {
        if (a == &n->io.reserve->appends[i]) {
            n->io.reserve->used[i] = false;
            return;
        }
    }
    free(a);
}

struct node *io_node(struct raft_io *raft_io)
{
    /* raft_io is the first member of struct io, which is part of struct node */
    return (struct node *)((char *)raft_io - offsetof(struct node, io) - offsetof(struct io, raft_io));
}

static void deliver(void *ctx, struct raft_message *m)
{
    struct node *n = ctx;

    n->io.recv(&n->io.raft_io, m);
}

/* ---- the transport that libraft's storage wants to see: it is never used ---- */

static int t_init(struct raft_uv_transport *t, raft_id id, const char *address)
{
    (void)t;
    (void)id;
    (void)address;
    return 0;
}

static int t_listen(struct raft_uv_transport *t, raft_uv_accept_cb cb)
{
    (void)t;
    (void)cb;
    return 0;
}

static int t_connect(struct raft_uv_transport *t, struct raft_uv_connect *req, raft_id id, const char *address,
    raft_uv_connect_cb cb)
{
    (void)t;
    (void)req;
    (void)id;
    (void)address;
    (void)cb;
    return RAFT_NOCONNECTION;
}

static void t_close(struct raft_uv_transport *t, raft_uv_transport_close_cb cb)
{
    cb(t);
}

void io_deliver(struct node *n, struct raft_message *m)
{
    guard_recv(&n->io.guard, m, deliver, n);
}

/* ---- disk ---- */

static void on_tick(struct raft_io *raft_io)
{
    struct node *n = io_node(raft_io);

    guard_release(&n->io.guard, deliver, n);
    if (guard_tick(&n->io.guard) && n->state != NODE_FAILED) { /* it applies nothing: somebody else has to lead */
        n->io.tick(raft_io);
    }
}

static void on_recv(struct raft_io *raft_io, struct raft_message *m)
{
    (void)raft_io;
    (void)m; /* the transport below never delivers anything */
}

static int io_start(struct raft_io *raft_io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct node *n = io_node(raft_io);

    n->io.tick = tick;
    n->io.recv = recv;
    return n->io.start(raft_io, ms, on_tick, on_recv);
}

static void count_append(struct node *n, const struct append_req *a, int status)
{
    struct metrics *m = &n->db->metrics;

    if (status != 0) {
        metrics_add(m, METRIC_LOG_FAILURES, !n->stopping);
        return;
    }
    metrics_add(m, METRIC_LOG_WRITES, 1);
    metrics_add(m, METRIC_LOG_ENTRIES, a->n_entries);
    metrics_add(m, METRIC_LOG_BYTES, a->bytes);
    times_add(&m->times[TIMING_LOG_WRITE], clock_us() - a->begun_us);
}

static void on_append(struct raft_io_append *req, int status)
{
    struct append_req *a = (struct append_req *)req;
    struct node *n = a->node;

    count_append(n, a, status);
    if (status == 0) {
        promise_stored(&n->promise, a->last_index); /* before anybody is told */
    } else if (!n->stopping) {
        n->io.write_code = status == RAFT_NOSPACE ? DUST_FULL : DUST_IO;
    }
    /* When the storage is closed it cancels the oldest first, which libraft does not survive. */
    if (n->stopping || !guard_append_done(&n->io.guard, status)) {
        return;
    }
    for (struct append_req **p = &n->io.appends; *p != NULL; p = &(*p)->older) {
        if (*p == a) {
            *p = a->older;
            break;
        }
    }
    a->cb(a->theirs, status);
    append_req_free(n, a);
    guard_release(&n->io.guard, deliver, n);
}

/* Drop the entries from cut_index on. The memory of a batch goes when no entry is left in it. */
static void cut_entries(struct node *n, raft_index start, struct raft_entry *entries[], size_t *n_entries)
{
    raft_index cut = n->io.cut_index;
    size_t keep = cut > start ? (size_t)(cut - start) : 0;

    if (cut == 0 || keep >= *n_entries) {
        n->io.cut_index = 0;
        return;
    }
    for (size_t i = keep; i < *n_entries; i++) {
        bool shared = (*entries)[i].batch != NULL && ((keep > 0 && (*entries)[keep - 1].batch == (*entries)[i].batch) ||
                                                         (i > keep && (*entries)[i - 1].batch == (*entries)[i].batch));

        if ((*entries)[i].batch == NULL) {
            raft_free((*entries)[i].buf.base);
        } else if (!shared) {
            raft_free((*entries)[i].batch);
        }
    }
    *n_entries = keep;
    if (keep == 0) {
        raft_free(*entries);
        *entries = NULL;
    }
}

/* The log is never shorter than what is noted as promised. */
static int truncate_from(struct node *n, raft_index index)
{
    int rv;

    if (!promise_lower(&n->promise, index - 1)) {
        guard_metadata_failed(&n->io.guard);
        return 0; /* nothing is written any more */
    }
    rv = n->io.truncate(&n->io.raft_io, index);
    if (rv == 0) {
        truncation_begin(n, index);
    }
    return rv;
}

static int io_truncate(struct raft_io *raft_io, raft_index index)
{
    return truncate_from(io_node(raft_io), index);
}

void io_started(struct node *n)
{
    if (n->io.cut_index != 0) {
        truncate_from(n, n->io.cut_index);
        n->io.cut_index = 0;
    }
    guard_started(&n->io.guard, deliver, n);
}

static raft_index last_loaded(const struct raft_snapshot *snapshot, raft_index start, size_t n_entries)
{
    raft_index last = start + n_entries - 1; /* start >= 1 */

    return snapshot != NULL && snapshot->index > last ? snapshot->index : last;
}

/* Before libraft's storage tidies its files. */
static int check_segments(struct node *n, struct err *e)
{
    char dir[4096];
    uint64_t last;
    int rv;

    snprintf(dir, sizeof dir, "%s/raft", n->db->dir);
    rv = segments_last(dir, &last, e);
    return rv == DUST_OK ? promise_check_log(&n->promise, n->db->dir, last, e) : rv == DUST_VERSION ? DUST_OK : rv;
}

/* When its folder cannot be listed, libraft frees two pointers that it has not set: what lies on the stack. */
static __attribute__((noinline)) void clean_stack(void)
{
    volatile uint8_t below[STACK_BYTES];

    for (size_t i = 0; i < sizeof below; i++) {
        below[i] = 0;
    }
}

/* Where app.db stands in the log has to be known before libraft applies anything, which raft_start may do already. */
static int io_load(struct raft_io *raft_io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
    raft_index *start, struct raft_entry *entries[], size_t *n_entries)
{
    struct node *n = io_node(raft_io);
    struct err *e = &n->io.load_err;
    int rv;

    if (check_segments(n, e) != DUST_OK) {
        return RAFT_CORRUPT;
    }
    clean_stack();
    rv = n->io.load(raft_io, term, voted_for, snapshot, start, entries, n_entries);
    if (rv != 0) {
        return rv;
    }
    if (promise_check_log(&n->promise, n->db->dir, last_loaded(*snapshot, *start, *n_entries), e) != DUST_OK ||
        promise_check_vote(&n->promise, n->db->dir, *term, *voted_for, e) != DUST_OK) {
        return RAFT_CORRUPT; /* the process keeps what was loaded: it is lost to libraft, and small */
    }
    cut_entries(n, *start, entries, n_entries);
    e->code = DUST_OK;
    if (fsm_find_start(n, *snapshot, *start, *entries, *n_entries, e) != DUST_OK || node_accept(n, e) != DUST_OK) {
        return RAFT_CORRUPT; /* as above */
    }
    return 0;
}

static int io_append(struct raft_io *raft_io, struct raft_io_append *req, const struct raft_entry entries[],
    unsigned n_entries, raft_io_append_cb cb)
{
    struct node *n = io_node(raft_io);
    struct append_req *a = append_req_new(n);

    if (a == NULL) {
        return RAFT_NOMEM;
    }
    a->theirs = req;
    a->cb = cb;
    a->node = n;
    a->older = n->io.appends;
    n->io.appends = a;
    if (!guard_append_begin(&n->io.guard)) {
        return 0;
    }
    a->entries = entries;
    a->n_entries = n_entries;
    a->begun = n->ticks;
    a->begun_us = clock_us();
    for (unsigned i = 0; i < n_entries; i++) {
        a->bytes += entries[i].buf.len;
    }
    a->last_index = inside_last_index(&n->raft); /* libraft has put them into its log in memory just now */
    *n->io.delayed_tail = a;
    n->io.delayed_tail = &a->delayed;
    if (!n->io.delaying) {
        io_write_now(n);
    }
    return 0;
}

/* The disk has failed, and libraft has not been told: the instance is closed, and begun anew when the disk is well. */
static void disk_failed(struct node *n, const struct err *e)
{
    n->io.write_code = e->code == DUST_FULL ? DUST_FULL : DUST_IO;
    again_later(n, e);
}

/* libraft's storage forgets what waits behind a write that could not be begun, and nobody hears of it: the member would
 * take part as if it wrote, and never finish. Ticks are counted, not time: a process that was stopped is not a slow disk. */
void io_tick(struct node *n)
{
    const struct append_req *oldest = n->io.appends;
    struct err e;

    if (guard_dead(&n->io.guard)) {
        return;
    }
    if (truncation_failed(n, &e)) {
        disk_failed(n, &e);
        return;
    }
    while (oldest != NULL && oldest->older != NULL) {
        oldest = oldest->older;
    }
    if (oldest != NULL && n->ticks - oldest->begun >= STUCK_TICKS) {
        err_set(&e, DUST_IO, "a write of the log in %s/raft has not come to an end for %u s", n->db->dir,
            STUCK_TICKS * TICK_MS / 1000);
        disk_failed(n, &e);
    }
}

/* A write that cannot even be begun is one that has failed: its callback says so, as for any other. */
void io_write_now(struct node *n)
{
    struct append_req *a = n->io.delayed, *next;

    n->io.delaying = false;
    if (n->io.truncation.index != 0) {
        return; /* not before the log is cut (truncation.c) */
    }
    n->io.delayed = NULL;
    n->io.delayed_tail = &n->io.delayed;
    for (; a != NULL; a = next) {
        int rv = n->io.append(&n->io.raft_io, &a->req, a->entries, a->n_entries, on_append);

        next = a->delayed;
        if (rv != 0) {
            on_append(&a->req, rv);
        }
    }
}

static void on_put(struct raft_io_snapshot_put *req, int status)
{
    struct put_req *p = (struct put_req *)req;
    struct node *n = p->node;

    if (n->stopping || !guard_put_done(&n->io.guard, status)) {
        n->io.kept_put = p;
        return;
    }
    if (status == 0 && p->installs != 0) {
        promise_stored(&n->promise, p->installs);
    }
    p->cb(p->theirs, status);
    guard_release(&n->io.guard, deliver, n);
}

static int io_snapshot_put(struct raft_io *raft_io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct node *n = io_node(raft_io);
    struct put_req *p = &n->io.reserve->put; /* one at a time */
    int rv;

    p->theirs = req;
    p->cb = cb;
    p->node = n;
    p->installs = trailing == 0 ? snapshot->index : 0;
    if (p->installs != 0 && !promise_lower(&n->promise, p->installs)) {
        guard_metadata_failed(&n->io.guard);
    }
    if (!guard_put_begin(&n->io.guard)) {
        n->io.kept_put = p;
        return 0;
    }
    rv = n->io.snapshot_put(raft_io, trailing, &p->req, snapshot, on_put);
    if (rv != 0) {
        if (guard_put_done(&n->io.guard, rv)) {
            return rv;
        }
        n->io.kept_put = p;
    }
    return 0;
}

static int io_set_term(struct raft_io *raft_io, raft_term term)
{
    struct node *n = io_node(raft_io);

    if (guard_dead(&n->io.guard)) {
        return 0;
    }
    if (n->io.set_term(raft_io, term) != 0) {
        guard_metadata_failed(&n->io.guard);
    } else {
        promise_term(&n->promise, term);
    }
    return 0;
}

static int io_set_vote(struct raft_io *raft_io, raft_id id)
{
    struct node *n = io_node(raft_io);

    if (guard_dead(&n->io.guard)) {
        return 0; /* it may be of a term that could not be stored, and would go with the one before */
    }
    if (n->io.set_vote(raft_io, id) != 0) {
        guard_metadata_failed(&n->io.guard);
    } else {
        promise_vote(&n->promise, id);
    }
    return 0;
}

static void ignore_close(struct raft_io *raft_io)
{
    (void)raft_io;
}

static void io_close(struct raft_io *raft_io, raft_io_close_cb cb)
{
    struct node *n = io_node(raft_io);

    n->io.closed = cb;
    n->io.close(raft_io, ignore_close);
}

int io_init(struct node *n, struct err *e)
{
    struct raft_io *io = &n->io.raft_io;
    char dir[4096];
    int rv;

    snprintf(dir, sizeof dir, "%s/raft", n->db->dir);
    mkdir(dir, 0700);
    rv = folder_flush(n->db->dir, e); /* libraft flushes what is in its folder, and nobody else the folder's own name */
    if (rv == DUST_OK) {
        rv = torn_mend(dir, e);
    }
    if (rv == DUST_OK) {
        rv = promise_open(&n->promise, n->db->dir, e);
    }
    if (rv == DUST_OK) {
        rv = segments_mend(dir, n->promise.index, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    n->io.transport = (struct raft_uv_transport){
        .data = n, .init = t_init, .listen = t_listen, .connect = t_connect, .close = t_close};
    n->io.reserve = calloc(1, sizeof *n->io.reserve);
    if (n->io.reserve == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = raft_uv_init(io, &n->loop, dir, &n->io.transport);
    if (rv != 0) {
        return err_set(e, DUST_IO, "cannot use %s for the log: %s", dir, io->errmsg);
    }
    n->io.raft_io_open = true;
    n->io.delayed_tail = &n->io.delayed;
    raft_uv_set_auto_recovery(io, false);
    raft_uv_set_snapshot_compression(io, false);
    io->version = 2; /* it has async_work, though it says 1 */
    n->io.load = io->load;
    n->io.start = io->start;
    n->io.append = io->append;
    n->io.snapshot_put = io->snapshot_put;
    n->io.close = io->close;
    n->io.set_term = io->set_term;
    n->io.set_vote = io->set_vote;
    n->io.truncate = io->truncate;
    io->send = send_message;
    io->load = io_load;
    io->start = io_start;
    io->append = io_append;
    io->snapshot_put = io_snapshot_put;
    io->close = io_close;
    io->set_term = io_set_term;
    io->set_vote = io_set_vote;
    io->truncate = io_truncate;
    return DUST_OK;
}

static void cancel_all(struct node *n)
{
    struct put_req *p = n->io.kept_put;

    n->io.delayed = NULL;
    n->io.delayed_tail = &n->io.delayed;
    while (n->io.appends != NULL) {
        struct append_req *a = n->io.appends;

        n->io.appends = a->older;
        a->cb(a->theirs, RAFT_CANCELED);
        append_req_free(n, a);
    }
    n->io.kept_put = NULL;
    if (p != NULL) {
        p->cb(p->theirs, RAFT_CANCELED);
    }
}

void io_close_done(struct node *n)
{
    cancel_all(n);
    if (n->io.closed != NULL) {
        raft_io_close_cb cb = n->io.closed;

        n->io.closed = NULL;
        cb(&n->io.raft_io);
    }
    if (n->io.raft_io_open) {
        raft_uv_close(&n->io.raft_io);
        n->io.raft_io_open = false;
    }
    free(n->io.reserve);
    n->io.reserve = NULL;
}
