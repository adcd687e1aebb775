/* guard_sim: what would be found after a crash, and what is under way to it. */
#include "tests/sim/guard/world.h"

void disk_append(struct member *m, const struct op *op)
{
    struct disk *d = &m->disk;
    unsigned i;

    if (op->index != d->first + d->n) {
        violation(m->sim, "member %u: its log on disk ends at %llu, and %llu is written next", m->id,
            d->first + d->n - 1, op->index);
    }
    if (d->n + op->n > d->cap) {
        d->cap = 2 * (d->n + op->n);
        d->entries = must(realloc(d->entries, d->cap * sizeof *d->entries));
    }
    for (i = 0; i < op->n; i++) {
        entry_store(&d->entries[d->n++], &op->entries[i]);
    }
}

static void disk_truncate(struct member *m, raft_index index)
{
    struct disk *d = &m->disk;

    if (index < d->first) {
        violation(m->sim, "member %u: truncated at %llu, before its log", m->id, index);
    }
    if (index < d->first + d->n) {
        d->n = index - d->first;
    }
}

void disk_put(struct member *m, const struct put *p)
{
    struct disk *d = &m->disk;
    raft_index first = 0;

    snapshot_store(&d->snapshot, p->snapshot);
    if (p->install) {
        d->n = 0;
        d->first = d->snapshot.index + 1;
        return;
    }
    if (d->snapshot.index > p->trailing) {
        first = d->snapshot.index - p->trailing + 1;
    }
    if (first > d->first) {
        size_t n = first - d->first;

        if (n > d->n) {
            n = d->n;
        }
        memmove(d->entries, d->entries + n, (d->n - n) * sizeof *d->entries);
        d->n -= n;
        d->first += n;
    }
}

void op_apply(struct member *m, const struct op *op)
{
    if (op->truncate) {
        disk_truncate(m, op->index);
    } else {
        disk_append(m, op);
    }
}

struct op *op_push(struct member *m)
{
    struct op *op = must(calloc(1, sizeof *op));

    op->seq = ++m->seq;
    *m->ops_tail = op;
    m->ops_tail = &op->next;
    return op;
}

struct op *op_pop(struct member *m)
{
    struct op *op = m->ops;

    m->ops = op->next;
    if (m->ops == NULL) {
        m->ops_tail = &m->ops;
    }
    return op;
}

/* Log matching, for each pair of disks. */
void check_logs(struct sim *s)
{
    unsigned a, b;

    for (a = 1; a <= s->opt->n_members; a++) {
        for (b = a + 1; b <= s->opt->n_members; b++) {
            const struct disk *x = &s->members[a]->disk, *y = &s->members[b]->disk;
            raft_index from = x->first > y->first ? x->first : y->first;
            raft_index end = x->first + x->n < y->first + y->n ? x->first + x->n : y->first + y->n;
            bool same = false;

            while (end > from) {
                const struct stored_entry *p = &x->entries[--end - x->first];
                const struct stored_entry *q = &y->entries[end - y->first];

                same = same || p->term == q->term;
                if (same && (p->term != q->term || p->type != q->type || p->len != q->len ||
                                memcmp(p->payload, q->payload, p->len) != 0)) {
                    violation(
                        s, "the logs of members %u and %u agree beyond entry %llu, but not there", a, b, end);
                }
            }
        }
    }
}
