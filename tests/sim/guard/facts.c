/* guard_sim: what is known to have happened, and whether it may have. */
#include "tests/sim/guard/world.h"

static struct fact *fact_at(struct sim *s, raft_index index)
{
    if (index >= s->n_facts) {
        size_t n = 2 * (size_t)index + 64;

        s->facts = must(realloc(s->facts, n * sizeof *s->facts));
        memset(s->facts + s->n_facts, 0, (n - s->n_facts) * sizeof *s->facts);
        s->n_facts = n;
    }
    return &s->facts[index];
}

void note_applied(struct member *m, raft_index index, uint64_t command)
{
    struct sim *s = m->sim;
    struct fact *f = fact_at(s, index);

    m->state.hash = mix(mix(m->state.hash, index), command);
    m->state.index = index;
    if (f->acknowledged != 0 && f->acknowledged != command) {
        violation(s, "entry %llu: member %u applies command %llu, but %llu was acknowledged", index, m->id,
            (unsigned long long)command, (unsigned long long)f->acknowledged);
    }
    if (f->command == 0) {
        f->command = command;
        f->hash = m->state.hash;
        f->by = m->id;
    } else if (f->command != command) {
        violation(s, "entry %llu: member %u applies command %llu, member %u applied %llu", index, m->id,
            (unsigned long long)command, f->by, (unsigned long long)f->command);
    } else if (f->hash != m->state.hash) {
        violation(s, "entry %llu: members %u and %u applied the same command but differ in state", index,
            m->id, f->by);
    }
}

/* A snapshot is put in place of the FSM's state: it must be what others had at that index. */
void note_restored(struct member *m, const struct fsm_state *state, raft_index index)
{
    struct sim *s = m->sim;
    raft_index i = index;

    while (i > 0 && fact_at(s, i)->command == 0) {
        i--;
    }
    if (i > 0 && fact_at(s, i)->hash != state->hash) {
        violation(
            s, "member %u: the snapshot at entry %llu does not match the commands applied", m->id, index);
    }
    m->state = *state;
}

/* Whether the disk holds what the leader's log has at this index. */
static bool disk_has(const struct disk *d, raft_index index, uint64_t command)
{
    const struct stored_entry *e;

    if (index <= d->snapshot.index) {
        return true;
    }
    if (index < d->first || index >= d->first + d->n) {
        return false;
    }
    e = &d->entries[index - d->first];
    return e->type == RAFT_COMMAND && memcmp(e->payload, &command, sizeof command) == 0;
}

void note_acknowledged(struct member *leader, raft_index index, uint64_t command)
{
    struct sim *s = leader->sim;
    struct fact *f = fact_at(s, index);
    unsigned i, n_voters = 0, n_have = 0;

    for (i = 0; i < leader->raft.configuration.n; i++) {
        const struct raft_server *server = &leader->raft.configuration.servers[i];

        if (server->role == RAFT_VOTER) {
            n_voters++;
            n_have += disk_has(&s->members[server->id]->disk, index, command);
        }
    }
    if (n_have <= n_voters / 2) {
        violation(s, "entry %llu: command %llu is acknowledged, but on the disks of %u of %u voters only",
            index, (unsigned long long)command, n_have, n_voters);
    }
    if (f->command != 0 && f->command != command) {
        violation(s, "entry %llu: command %llu is acknowledged, but %llu was applied", index,
            (unsigned long long)command, (unsigned long long)f->command);
    }
    f->acknowledged = command;
    if (index > s->last_acknowledged) {
        s->last_acknowledged = index;
    }
    s->outcome->tally.acknowledged++;
}

void note_leader(struct member *m)
{
    struct sim *s = m->sim;
    size_t term = (size_t)m->raft.current_term;

    if (term >= s->n_leaders) {
        size_t n = 2 * term + 64;

        s->leaders = must(realloc(s->leaders, n * sizeof *s->leaders));
        memset(s->leaders + s->n_leaders, 0, (n - s->n_leaders) * sizeof *s->leaders);
        s->n_leaders = n;
    }
    if (s->leaders[term] == 0) {
        s->leaders[term] = m->id;
        s->outcome->tally.elections++;
    } else if (s->leaders[term] != m->id) {
        violation(s, "term %zu has two leaders, %u and %u", term, s->leaders[term], m->id);
    }
}
