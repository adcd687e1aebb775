#include "raft/inside.h"

#include <stddef.h>

#define PROGRESS_PROBE 0 /* raft_progress.state: PROGRESS__PROBE, src/progress.h of libraft */

raft_index inside_last_index(const struct raft *r)
{
    const struct raft_log *l = &r->log;

    /* a ring of entries for offset + 1, offset + 2, ... */
    return l->offset + (l->front <= l->back ? l->back - l->front : l->size - l->front + l->back);
}

raft_index inside_offset(const struct raft *r)
{
    return r->log.offset;
}

raft_index inside_snapshot_index(const struct raft *r)
{
    return r->log.snapshot.last_index;
}

raft_term inside_snapshot_term(const struct raft *r)
{
    return r->log.snapshot.last_term;
}

const struct raft_entry *inside_entry(const struct raft *r, raft_index index)
{
    const struct raft_log *l = &r->log;

    if (index <= l->offset || index > inside_last_index(r)) {
        return NULL;
    }
    return &l->entries[(l->front + (size_t)(index - 1 - l->offset)) % l->size];
}

raft_term inside_term(const struct raft *r, raft_index index)
{
    const struct raft_entry *entry;

    if (index != 0 && index == inside_snapshot_index(r)) {
        return inside_snapshot_term(r);
    }
    entry = inside_entry(r, index);
    return entry == NULL ? 0 : entry->term;
}

bool inside_has(const struct raft *r, raft_index index, raft_term term)
{
    return term != 0 && inside_term(r, index) == term;
}

bool inside_has_change(const struct raft *r, raft_index from)
{
    raft_index last = inside_last_index(r);

    for (raft_index i = from; i <= last; i++) {
        const struct raft_entry *entry = inside_entry(r, i);

        if (entry != NULL && entry->type == RAFT_CHANGE) {
            return true;
        }
    }
    return false;
}

bool inside_taking_snapshot(const struct raft *r)
{
    return r->snapshot.pending.term != 0 || r->snapshot.put.data != NULL;
}

struct raft_server *inside_server(const struct raft *r, raft_id id)
{
    for (unsigned i = 0; i < r->configuration.n; i++) {
        if (r->configuration.servers[i].id == id) {
            return &r->configuration.servers[i];
        }
    }
    return NULL;
}

bool inside_sole_voter(const struct raft *r)
{
    const struct raft_server *self = inside_server(r, r->id);
    unsigned n_voters = 0;

    for (unsigned i = 0; i < r->configuration.n; i++) {
        n_voters += r->configuration.servers[i].role == RAFT_VOTER;
    }
    return n_voters == 1 && self != NULL && self->role == RAFT_VOTER;
}

raft_index inside_match(const struct raft *r, unsigned i)
{
    return r->leader_state.progress[i].match_index;
}

bool inside_probing(const struct raft *r, raft_id id)
{
    const struct raft_server *s = inside_server(r, id);

    if (s == NULL || r->state != RAFT_LEADER || r->leader_state.progress == NULL) {
        return false;
    }
    return r->leader_state.progress[s - r->configuration.servers].state == PROGRESS_PROBE;
}
