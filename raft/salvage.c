#include "raft/salvage.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "raft/log.h"
#include "raft/node_impl.h"
#include "raft/servers.h"
#include "raft/snapshot.h"
#include "raft/storage.h"

/* ---- who the others are ---- */

static void note_member(struct salvage *s, uint64_t self, uint64_t id, const char *address, int role)
{
    if (role != RAFT_VOTER) {
        return;
    }
    s->voters++;
    if (id == self) {
        s->is_voter = true;
    } else if (s->n_others < SALVAGE_OTHERS_MAX) {
        snprintf(s->others[s->n_others++], ADDRESS_TEXT_MAX, "%s", address);
    }
}

static void note_members(struct salvage *s, uint64_t self, const struct raft_configuration *c)
{
    s->voters = s->n_others = 0;
    s->is_voter = false;
    for (unsigned i = 0; i < c->n; i++) {
        note_member(s, self, c->servers[i].id, c->servers[i].address, c->servers[i].role);
    }
}

/* One that is not of a form that we know is left out: the one before counts. */
static void note_change(struct salvage *s, uint64_t self, const struct raft_buffer *buf)
{
    struct raft_configuration c;

    if (servers_decode(buf->base, buf->len, &c) == DUST_OK) {
        note_members(s, self, &c);
        raft_configuration_close(&c);
    }
}

static void note_configuration(struct salvage *s, uint64_t self, const struct raft_snapshot *snapshot,
    const struct raft_entry *entries, size_t n)
{
    if (snapshot != NULL) {
        note_members(s, self, &snapshot->configuration);
    }
    for (size_t i = 0; i < n; i++) {
        if (entries[i].type == RAFT_CHANGE) {
            note_change(s, self, &entries[i].buf);
        }
    }
}

/* ---- the log ---- */

static int replay(struct node *n, struct salvage *out, struct err *e)
{
    struct raft_io *io = &n->io.raft_io;
    struct raft_snapshot *snapshot = NULL;
    struct raft_entry *entries = NULL;
    raft_index start = 1;
    raft_term term;
    raft_id voted_for;
    size_t count = 0;
    int rv;

    rv = io->load(io, &term, &voted_for, &snapshot, &start, &entries, &count);
    out->unreadable = rv != 0 && rv != RAFT_NOMEM;
    if (rv != 0) {
        *e = n->io.load_err;
        return e->code;
    }
    out->last_index = count != 0 ? start + count - 1 : snapshot != NULL ? snapshot->index : 0;
    out->last_term = count != 0 ? entries[count - 1].term : snapshot != NULL ? snapshot->term : 0;
    note_configuration(out, n->self.id, snapshot, entries, count);
    rv = fsm_replay(n, start, entries, count, &out->entries, e);
    store_agreed(n->db->store, &out->head);
    log_content_free(&(struct log_content){.entries = entries, .n = count});
    snapshot_free(snapshot);
    return rv;
}

static void closed(struct raft *r)
{
    (void)r;
}

int salvage_run(struct database *db, const struct member *self, bool forgiving, struct salvage *out, struct err *e)
{
    struct node *n = calloc(1, sizeof *n);
    int rv;

    memset(out, 0, sizeof *out);
    if (n == NULL || sodium_init() < 0 || uv_loop_init(&n->loop) != 0) {
        free(n);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    n->db = db;
    n->self = *self;
    n->boot = STARTS_BOOT(self->starts, 0);
    n->opt.mode = NODE_RESUME;
    rv = io_init(n, e);
    if (rv == DUST_OK) {
        if (forgiving) {
            storage_forgive(n->io.storage);
        }
        fsm_init(n);
        rv = raft_init(&n->raft, &n->io.raft_io, &n->fsm.raft_fsm, self->id, self->address);
        if (rv != 0) {
            out->unreadable = rv != RAFT_NOMEM; /* nobody has looked at what is in it */
            rv = err_set(e, rv == RAFT_NOMEM ? DUST_NOMEM : DUST_IO, "the log in %s/raft cannot be opened: %s", db->dir,
                raft_errmsg(&n->raft));
        } else {
            rv = replay(n, out, e);
            raft_close(&n->raft, closed);
            uv_run(&n->loop, UV_RUN_DEFAULT);
        }
        io_close_done(n);
    }
    promise_close(&n->promise);
    fsm_deinit(n);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    uv_loop_close(&n->loop);
    free(n);
    return rv;
}
