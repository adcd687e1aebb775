/* The guard's long sends: one AppendEntries of libraft's, sent in parts that each say no more than they hold. */
#include <assert.h>

#include "raft/guard_impl.h"

/* How many of the entries may be sent: none from a configuration on that is not yet on our own disk (rule 11). */
static unsigned n_sendable(const struct raft *r, const struct raft_append_entries *a)
{
    unsigned i;

    for (i = 0; i < a->n_entries; i++) {
        if (a->entries[i].type == RAFT_CHANGE && a->prev_log_index + 1 + i > r->last_stored) {
            break;
        }
    }
    return i;
}

void guard_split_init(struct guard_split *s, const struct guard *g, const struct raft_message *m,
    unsigned n_entries_max, size_t size_max)
{
    assert(m->type == RAFT_IO_APPEND_ENTRIES && n_entries_max > 0 && size_max > 0);
    *s = (struct guard_split){
        .whole = m->append_entries,
        .n_entries_max = n_entries_max,
        .size_max = size_max,
        .first_only = g->enabled && inside_probing(g->r, m->server_id),
    };
    if (g->enabled) {
        s->whole.n_entries = n_sendable(g->r, &m->append_entries);
    }
}

bool guard_split_next(struct guard_split *s, struct raft_append_entries *part)
{
    const struct raft_append_entries *w = &s->whole;
    size_t size = 0;
    unsigned n = 0;

    if (s->done) {
        return false;
    }
    while (s->next + n < w->n_entries && n < s->n_entries_max) {
        size += w->entries[s->next + n].buf.len;
        if (n > 0 && size > s->size_max) {
            break;
        }
        n++;
    }
    *part = *w;
    part->n_entries = n;
    part->entries = n > 0 ? w->entries + s->next : NULL;
    if (s->next > 0) {
        part->prev_log_index = w->prev_log_index + s->next;
        part->prev_log_term = w->entries[s->next - 1].term;
    }
    if (part->leader_commit > part->prev_log_index + n) {
        part->leader_commit = part->prev_log_index + n;
    }
    s->next += n;
    s->done = s->first_only || s->next == w->n_entries;
    return true;
}
