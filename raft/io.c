/* raft_io: the storage underneath (storage.h), our peers for every message (recv.c, send.c), and the guard in between.
 *
 * What the guard must see passes here: sends, receipts, ticks, appends, snapshots, term and vote.
 *
 * A request that the guard withholds (the member is dead), or that was under way, is given back to libraft as cancelled
 * when the instance is closed, newest first: see guard.h. libraft hears that it is closed when the loop has ended
 * (io_close_done). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "raft/codes.h"
#include "raft/node_impl.h"
#include "raft/smallfile.h"
#include "raft/storage.h"
#include "vfs/clock.h"

#define RESERVED 16u
#define STUCK_TICKS (10000u / TICK_MS)

struct append_req {
    struct storage_append storage;
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

void io_elapse(struct node *n)
{
    on_tick(&n->io.raft_io);
}

/* To whatever says that something here is damaged: what its owner can do. */
static int damaged(int rv, struct err *e)
{
    if (rv == DUST_CORRUPT) {
        err_add(e, ". Its files were changed, or decayed. If other members are well: remove this one there, delete its files "
                   "here, and join anew; if not: dust_recover()");
    }
    return rv;
}

static int io_start(struct raft_io *raft_io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct node *n = io_node(raft_io);
    int rv;

    n->io.tick = tick;
    n->io.recv = recv;
    rv = n->io.start(raft_io, ms, on_tick, recv);
    if (rv != 0) { /* libraft does not say why */
        err_set(&n->io.load_err, code_of_raft(rv), "%s",
            raft_io->errmsg[0] != '\0' ? raft_io->errmsg : "the log cannot be written to");
        damaged(n->io.load_err.code, &n->io.load_err);
    }
    return rv;
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

static void on_append(struct storage_append *storage, int status)
{
    struct append_req *a = (struct append_req *)storage; /* its first member */
    struct node *n = a->node;

    count_append(n, a, status);
    if (status == 0) {
        promise_stored(&n->promise, a->last_index); /* before anybody is told */
    } else if (!n->stopping) {
        n->io.write_code = code_of_raft(status) == DUST_FULL ? DUST_FULL : DUST_IO;
    }
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
static void truncate_from(struct node *n, raft_index index)
{
    if (!promise_lower(&n->promise, index - 1)) {
        guard_metadata_failed(&n->io.guard);
        return; /* nothing is written any more */
    }
    storage_truncate(n->io.storage, index);
}

static int io_truncate(struct raft_io *raft_io, raft_index index)
{
    truncate_from(io_node(raft_io), index);
    return 0;
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

/* Where app.db stands in the log has to be known before libraft applies anything, which raft_start may do already. */
static int io_load(struct raft_io *raft_io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot,
    raft_index *start, struct raft_entry *entries[], size_t *n_entries)
{
    struct node *n = io_node(raft_io);
    struct err *e = &n->io.load_err;
    int rv;

    rv = damaged(storage_load(n->io.storage, term, voted_for, snapshot, start, entries, n_entries, e), e);
    if (rv != DUST_OK) {
        return code_to_raft(rv);
    }
    rv = promise_check_log(&n->promise, n->db->dir, last_loaded(*snapshot, *start, *n_entries), e);
    if (rv == DUST_OK) {
        rv = promise_check_vote(&n->promise, n->db->dir, *term, *voted_for, e);
    }
    if (damaged(rv, e) != DUST_OK) {
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
    return 0;
}

/* The disk has failed, and libraft has not been told: the instance is closed, and begun anew when the disk is well. */
static void disk_failed(struct node *n, const struct err *e)
{
    n->io.write_code = e->code == DUST_FULL ? DUST_FULL : DUST_IO;
    again_later(n, e);
}

/* A member whose disk hangs would take part as if it wrote, and never finish. Ticks are counted, not time: a process that
 * was stopped is not a slow disk. */
void io_tick(struct node *n)
{
    const struct append_req *oldest = n->io.appends;
    struct err e;

    if (guard_dead(&n->io.guard)) {
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

void io_write(struct node *n)
{
    struct append_req *a = n->io.delayed, *next;
    bool lone = a != NULL && a->delayed == NULL && a->n_entries == 1 &&
                atomic_load(&n->submit.count) <= 1; /* else those of others go on being made meanwhile */

    if (!n->running || n->stopping) {
        return; /* they are given back as cancelled */
    }
    n->io.delayed = NULL;
    n->io.delayed_tail = &n->io.delayed;
    for (; a != NULL; a = next) {
        next = a->delayed;
        a->storage.done = on_append;
        storage_append(n->io.storage, &a->storage, a->entries, a->n_entries, lone);
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
    storage_put(n->io.storage, trailing, &p->req, snapshot, on_put);
    return 0;
}

static int io_set_term(struct raft_io *raft_io, raft_term term)
{
    struct node *n = io_node(raft_io);

    if (guard_dead(&n->io.guard)) {
        return 0;
    }
    if (!storage_set_term(n->io.storage, term)) {
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
    if (!storage_set_vote(n->io.storage, id)) {
        guard_metadata_failed(&n->io.guard);
    } else {
        promise_vote(&n->promise, id);
    }
    return 0;
}

static void io_close(struct raft_io *raft_io, raft_io_close_cb cb)
{
    struct node *n = io_node(raft_io);

    n->io.closed = cb;
    storage_close(n->io.storage);
}

int io_init(struct node *n, struct err *e)
{
    struct raft_io *io = &n->io.raft_io;
    char dir[4096];
    int rv;

    snprintf(dir, sizeof dir, "%s/raft", n->db->dir);
    mkdir(dir, 0700);
    rv = folder_flush(n->db->dir, e); /* the folder's own name */
    if (rv == DUST_OK) {
        rv = promise_open(&n->promise, n->db->dir, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    n->io.reserve = calloc(1, sizeof *n->io.reserve);
    if (n->io.reserve == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = damaged(storage_init(&n->io.storage, io, &n->loop, dir, e), e);
    if (rv != DUST_OK) {
        return rv;
    }
    storage_measure(n->io.storage, &n->db->metrics.times[TIMING_LOG_FLUSH]);
    n->io.delayed_tail = &n->io.delayed;
    n->io.start = io->start;
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
    storage_join(n->io.storage);
    cancel_all(n);
    if (n->io.closed != NULL) {
        raft_io_close_cb cb = n->io.closed;

        n->io.closed = NULL;
        cb(&n->io.raft_io);
    }
    storage_deinit(n->io.storage);
    n->io.storage = NULL;
    free(n->io.reserve);
    n->io.reserve = NULL;
}
