/* guard_sim: raft_io, and the FSM. */
#include "tests/sim/guard/world.h"

/* ---- raft_io ---- */

static struct member *member_of(struct raft_io *io)
{
    return (struct member *)io;
}

static int io_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io;
    (void)id;
    (void)address;
    return 0;
}

static void io_close(struct raft_io *io, raft_io_close_cb cb)
{
    member_of(io)->close_cb = cb;
}

static int io_load(struct raft_io *io, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot,
    raft_index *start_index, struct raft_entry **entries, size_t *n_entries)
{
    struct member *m = member_of(io);
    const struct disk *d = &m->disk;

    *term = d->term;
    *vote = d->vote;
    *snapshot = d->snapshot.index > 0 ? snapshot_make(m->sim, &d->snapshot) : NULL;
    *start_index = d->first;
    *n_entries = d->n;
    if (m->cut_index >= d->first && m->cut_index < d->first + d->n) {
        struct op *op = op_push(m);

        op->truncate = true;
        op->index = m->cut_index;
        *n_entries = m->cut_index - d->first;
    }
    m->cut_index = 0;
    *entries = entries_make(d->entries, *n_entries);
    m->next_index = d->first + *n_entries;
    return 0;
}

static int io_start(struct raft_io *io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct member *m = member_of(io);

    (void)ms;
    m->tick = tick;
    m->recv = recv;
    return 0;
}

static int io_bootstrap(struct raft_io *io, const struct raft_configuration *c)
{
    struct member *m = member_of(io);
    struct raft_entry entry = {.term = 1, .type = RAFT_CHANGE};
    struct op op = {.index = 1, .n = 1, .entries = &entry};

    if (raft_configuration_encode(c, &entry.buf) != 0) {
        return RAFT_NOMEM;
    }
    m->disk.term = 1;
    disk_append(m, &op);
    raft_free(entry.buf.base);
    return 0;
}

static int io_recover(struct raft_io *io, const struct raft_configuration *c)
{
    (void)io;
    (void)c;
    return RAFT_INVALID;
}

bool write_fails(struct member *m, unsigned per_10000)
{
    return m->sim->opt->disk_failures && !m->sim->healing && chance(m->sim, per_10000);
}

/* The end of set_term and set_vote: true if the write has failed and libraft is to be told so. */
static bool metadata_fails(struct member *m)
{
    if (!write_fails(m, 20)) {
        return false;
    }
    if (m->sim->opt->guard) {
        guard_metadata_failed(&m->guard);
        return false;
    }
    return true;
}

static int io_set_term(struct raft_io *io, raft_term term)
{
    struct member *m = member_of(io);

    if (metadata_fails(m)) {
        return RAFT_IOERR;
    }
    if (!guard_dead(&m->guard)) {
        m->disk.term = term;
        m->disk.vote = 0;
    }
    return 0;
}

static int io_set_vote(struct raft_io *io, raft_id id)
{
    struct member *m = member_of(io);

    if (metadata_fails(m)) {
        return RAFT_IOERR;
    }
    if (!guard_dead(&m->guard)) {
        m->disk.vote = id;
    }
    return 0;
}

static int io_send(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *message, raft_io_send_cb cb)
{
    struct member *m = member_of(io);
    struct sim *s = m->sim;
    struct completion *c = completion_new(m, req, cb);
    struct raft_message copy = *message;
    struct guard_split split;

    if (!guard_send(&m->guard, &copy)) {
        complete_later(s, c, 0);
        return 0;
    }
    if (copy.server_id == 0 || !s->members[copy.server_id]->up || s->links[m->id][copy.server_id].cut) {
        complete_later(s, c, RAFT_NOCONNECTION);
        return 0;
    }
    if (copy.type == RAFT_IO_INSTALL_SNAPSHOT) {
        link_push(m, &copy, c);
        return 0;
    }
    if (copy.type == RAFT_IO_APPEND_ENTRIES && s->opt->guard) {
        guard_split_init(&split, &m->guard, message, s->part_entries, s->part_size);
        while (guard_split_next(&split, &copy.append_entries)) {
            link_push(m, &copy, NULL);
        }
    } else {
        link_push(m, &copy, NULL);
    }
    complete_later(s, c, 0);
    return 0;
}

static int io_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[],
    unsigned n, raft_io_append_cb cb)
{
    struct member *m = member_of(io);
    struct op *op;

    if (guard_append_begin(&m->guard)) {
        op = op_push(m);
        op->index = m->next_index;
        m->next_index += n;
        m->barrier_open = true;
    } else {
        op = must(calloc(1, sizeof *op));
        op->next = m->kept;
        m->kept = op;
    }
    op->n = n;
    op->entries = entries;
    op->req = req;
    op->cb = cb;
    return 0;
}

static int io_truncate(struct raft_io *io, raft_index index)
{
    struct member *m = member_of(io);
    bool lost = m->put.pending && !m->barrier_open; /* raft_uv: there is no segment to hang the barrier on */

    if (!lost) {
        struct op *op = op_push(m);

        op->truncate = true;
        op->index = index;
    }
    m->next_index = index;
    m->barrier_open = false;
    return 0;
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct member *m = member_of(io);

    guard_put_begin(
        &m->guard); /* (a member that has stopped keeps the request; nothing more is finished anyway) */
    assert(!m->put.pending);
    m->put = (struct put){.pending = true,
        .install = trailing == 0,
        .seq = ++m->seq,
        .trailing = trailing,
        .snapshot = snapshot,
        .req = req,
        .cb = cb};
    m->barrier_open = false;
    if (trailing == 0) {
        m->next_index = snapshot->index + 1;
    }
    return 0;
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct member *m = member_of(io);

    if (m->get != NULL) {
        return RAFT_BUSY;
    }
    m->get = req;
    m->get_cb = cb;
    return 0;
}

static int io_async_work(struct raft_io *io, struct raft_io_async_work *req, raft_io_async_work_cb cb)
{
    struct member *m = member_of(io);

    assert(m->work == NULL);
    m->work = req;
    m->work_cb = cb;
    return 0;
}

static raft_time io_time(struct raft_io *io)
{
    return member_of(io)->sim->now;
}

static int io_random(struct raft_io *io, int min, int max)
{
    return min + (int)random_below(member_of(io)->sim, (unsigned)(max - min));
}

const struct raft_io io_methods = {
    .version = 2,
    .init = io_init,
    .close = io_close,
    .load = io_load,
    .start = io_start,
    .bootstrap = io_bootstrap,
    .recover = io_recover,
    .set_term = io_set_term,
    .set_vote = io_set_vote,
    .send = io_send,
    .append = io_append,
    .truncate = io_truncate,
    .snapshot_put = io_snapshot_put,
    .snapshot_get = io_snapshot_get,
    .time = io_time,
    .random = io_random,
    .async_work = io_async_work,
};

/* ---- The FSM ---- */

int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct member *m = fsm->data;
    uint64_t command;

    memcpy(&command, buf->base, sizeof command);
    note_applied(m, m->raft.last_applied + 1, command);
    *result = NULL;
    return 0;
}

/* The state in two buffers, as an FSM may do. */
static int fsm_give(struct raft_buffer *bufs[], unsigned *n_bufs, const struct fsm_state *state)
{
    struct raft_buffer *b = must(raft_calloc(2, sizeof *b));

    b[0].len = sizeof state->index;
    b[0].base = must(raft_malloc(b[0].len));
    memcpy(b[0].base, &state->index, b[0].len);
    b[1].len = sizeof state->hash;
    b[1].base = must(raft_malloc(b[1].len));
    memcpy(b[1].base, &state->hash, b[1].len);
    *bufs = b;
    *n_bufs = 2;
    return 0;
}

int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct member *m = fsm->data;

    if (!guard_snapshot_ok(&m->guard)) {
        return RAFT_BUSY;
    }
    m->sim->outcome->tally.snapshots++;
    if (fsm->version < 3) {
        return fsm_give(bufs, n_bufs, &m->state);
    }
    m->frozen = m->state;
    return 0;
}

int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct member *m = fsm->data;

    return fsm_give(bufs, n_bufs, &m->frozen);
}

int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    unsigned i;

    (void)fsm;
    for (i = 0; i < *n_bufs; i++) {
        raft_free((*bufs)[i].base);
    }
    raft_free(*bufs);
    *bufs = NULL;
    *n_bufs = 0;
    return 0;
}

int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct member *m = fsm->data;
    struct fsm_state state;

    assert(buf->len == sizeof state);
    memcpy(&state, buf->base, sizeof state);
    note_restored(m, &state, state.index);
    raft_free(buf->base);
    return 0;
}
