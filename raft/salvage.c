#include "raft/salvage.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>

#include "raft/node_impl.h"

/* ---- the configuration, as libraft writes it into its log ---- */

/* Format: 1 byte version (1), number of members 8; of each: id 8, address with its NUL, role 1. Little-endian. */
static bool next_number(const uint8_t **p, const uint8_t *end, unsigned bytes, uint64_t *v)
{
    if ((size_t)(end - *p) < bytes) {
        return false;
    }
    *v = 0;
    for (unsigned i = bytes; i-- > 0;) {
        *v = *v << 8 | (*p)[i];
    }
    *p += bytes;
    return true;
}

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

static void forget_members(struct salvage *s)
{
    s->voters = s->n_others = 0;
    s->is_voter = false;
}

static void note_change(struct salvage *s, uint64_t self, const struct raft_buffer *buf)
{
    const uint8_t *p = buf->base, *end = p + buf->len;
    uint64_t v, count, id;

    if (!next_number(&p, end, 1, &v) || v != 1 || !next_number(&p, end, 8, &count)) {
        return; /* not of a form that we know: the one before counts */
    }
    forget_members(s);
    for (; count > 0; count--) {
        const uint8_t *address;

        if (!next_number(&p, end, 8, &id)) {
            return;
        }
        address = p;
        p = memchr(p, '\0', (size_t)(end - p));
        if (p == NULL) {
            return;
        }
        p++;
        if (!next_number(&p, end, 1, &v)) {
            return;
        }
        note_member(s, self, id, (const char *)address, (int)v);
    }
}

static void note_configuration(struct salvage *s, uint64_t self, const struct raft_snapshot *snapshot,
    const struct raft_entry *entries, size_t n)
{
    for (unsigned i = 0; snapshot != NULL && i < snapshot->configuration.n; i++) {
        const struct raft_server *m = &snapshot->configuration.servers[i];

        note_member(s, self, m->id, m->address, m->role);
    }
    for (size_t i = 0; i < n; i++) {
        if (entries[i].type == RAFT_CHANGE) {
            note_change(s, self, &entries[i].buf);
        }
    }
}

/* ---- the log ---- */

static void forget_log(struct raft_snapshot *snapshot, struct raft_entry *entries, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (entries[i].batch == NULL) {
            raft_free(entries[i].buf.base);
        } else if (i + 1 == n || entries[i + 1].batch != entries[i].batch) {
            raft_free(entries[i].batch);
        }
    }
    raft_free(entries);
    if (snapshot != NULL) {
        raft_configuration_close(&snapshot->configuration);
        for (unsigned i = 0; i < snapshot->n_bufs; i++) {
            raft_free(snapshot->bufs[i].base);
        }
        raft_free(snapshot->bufs);
        raft_free(snapshot);
    }
}

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
    if (rv != 0 && n->io.load_err.code != DUST_OK) {
        *e = n->io.load_err;
        return e->code;
    }
    if (rv == RAFT_NOMEM) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    if (rv != 0) {
        return err_set(e, rv == RAFT_CORRUPT || rv == RAFT_MALFORMED ? DUST_CORRUPT : DUST_IO,
            "the log cannot be read: %s", io->errmsg);
    }
    out->last_index = count != 0 ? start + count - 1 : snapshot != NULL ? snapshot->index : 0;
    out->last_term = count != 0 ? entries[count - 1].term : snapshot != NULL ? snapshot->term : 0;
    note_configuration(out, n->self.id, snapshot, entries, count);
    rv = fsm_replay(n, start, entries, count, &out->entries, e);
    store_agreed(n->db->store, &out->head);
    forget_log(snapshot, entries, count);
    return rv;
}

static void closed(struct raft *r)
{
    (void)r;
}

int salvage_run(struct database *db, const struct member *self, struct salvage *out, struct err *e)
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
