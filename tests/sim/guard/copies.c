/* guard_sim: configurations, entries and snapshots, copied in and out of libraft's memory. */
#include "tests/sim/guard/world.h"

void configuration_make(
    struct sim *s, struct raft_configuration *c, const struct stored_snapshot *from)
{
    unsigned i;

    raft_configuration_init(c);
    for (i = 0; i < from->n_servers; i++) {
        raft_id id = from->servers[i].id;

        if (raft_configuration_add(c, id, s->members[id]->address, from->servers[i].role) != 0) {
            must(NULL);
        }
    }
}

void configuration_store(struct stored_snapshot *to, const struct raft_configuration *c)
{
    unsigned i;

    assert(c->n <= MEMBERS_MAX);
    to->n_servers = c->n;
    for (i = 0; i < c->n; i++) {
        to->servers[i].id = c->servers[i].id;
        to->servers[i].role = c->servers[i].role;
    }
}

void entry_store(struct stored_entry *to, const struct raft_entry *from)
{
    assert(from->buf.len <= PAYLOAD_MAX);
    memset(to, 0, sizeof *to);
    to->term = from->term;
    to->type = from->type;
    to->len = from->buf.len;
    memcpy(to->payload, from->buf.base, from->buf.len);
}

/* An array of n entries in one batch, as raft_uv's decoder makes it; NULL if n is 0. */
struct raft_entry *entries_make(const struct stored_entry *from, size_t n)
{
    struct raft_entry *entries;
    uint8_t *batch;
    size_t i;

    if (n == 0) {
        return NULL;
    }
    entries = must(raft_calloc(n, sizeof *entries));
    batch = must(raft_malloc(n * PAYLOAD_MAX));
    for (i = 0; i < n; i++) {
        entries[i].term = from[i].term;
        entries[i].type = from[i].type;
        entries[i].buf.base = batch + i * PAYLOAD_MAX;
        entries[i].buf.len = from[i].len;
        entries[i].batch = batch;
        memcpy(entries[i].buf.base, from[i].payload, from[i].len);
    }
    return entries;
}

void state_make(struct raft_buffer *buf, const struct fsm_state *state)
{
    buf->len = sizeof *state;
    buf->base = must(raft_malloc(sizeof *state));
    memcpy(buf->base, state, sizeof *state);
}

/* Gather a snapshot's buffers. */
void snapshot_store(struct stored_snapshot *to, const struct raft_snapshot *from)
{
    uint8_t *p = (uint8_t *)&to->state;
    unsigned i;

    to->index = from->index;
    to->term = from->term;
    to->conf_index = from->configuration_index;
    configuration_store(to, &from->configuration);
    for (i = 0; i < from->n_bufs; i++) {
        memcpy(p, from->bufs[i].base, from->bufs[i].len);
        p += from->bufs[i].len;
    }
    assert(p == (uint8_t *)&to->state + sizeof to->state);
}

struct raft_snapshot *snapshot_make(struct sim *s, const struct stored_snapshot *from)
{
    struct raft_snapshot *snapshot = must(raft_calloc(1, sizeof *snapshot));

    snapshot->index = from->index;
    snapshot->term = from->term;
    snapshot->configuration_index = from->conf_index;
    configuration_make(s, &snapshot->configuration, from);
    snapshot->n_bufs = 1;
    snapshot->bufs = must(raft_malloc(sizeof *snapshot->bufs));
    state_make(&snapshot->bufs[0], &from->state);
    return snapshot;
}
