/* Freeing what the page store no longer needs.
 *
 * When a node may go. Take the nodes of one page that are agreed, newest first: n0, n1, …, nk.
 *   - ni (i > 0) is read only by snapshots in [ni.seq, n(i-1).seq). No slot there: free it. None can appear: new
 *     snapshots are at `agreed` or above, which is at or above n(i-1).seq.
 *   - A node marked `folded` has the content that app.db has. If it is the oldest of its page, whoever would read it
 *     can as well read app.db: free it, whatever the slots say. But not while a checkpoint is writing app.db: what it
 *     had at the beginning, the nodes have to keep.
 * Before app.db is overwritten for a page, and if a snapshot older than everything in the chain is held, the old
 * content is put into the chain as its oldest node (store_fold_keep). So a long reader neither waits for a checkpoint
 * nor holds one up.
 *
 * A page that lies beyond the end of a smaller app.db has nothing to be folded to; its nodes go when no snapshot in
 * [node.seq, base) is left.
 *
 * Freeing is part of a change of the generation; so is the moment when app.db takes over from a node. */
#include <string.h>

#include "vfs/store_impl.h"

/* Where seq is in it, or belongs. */
static uint32_t held_place(const struct held *h, uint64_t seq)
{
    uint32_t lo = 0, hi = h->n;

    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;

        if (h->seq[mid] < seq) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

void held_scan(struct store *s, struct held *h)
{
    uint32_t n = n_slots(s);

    h->n = h->readers = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t seq = atomic_load(&s->slots[i].seq);
        uint32_t at = seq != 0 ? held_place(h, seq) : 0;

        if (seq == 0) {
            continue;
        }
        h->readers++;
        if (at == h->n || h->seq[at] != seq) { /* most hold one of a few versions */
            memmove(h->seq + at + 1, h->seq + at, (h->n - at) * sizeof h->seq[0]);
            h->seq[at] = seq;
            h->n++;
        }
    }
}

bool held_between(const struct held *h, uint64_t from, uint64_t to)
{
    uint32_t at = held_place(h, from);

    return at < h->n && h->seq[at] < to;
}

void node_drop(struct store *s, uint32_t n)
{
    node_unlink(s, n);
    node_free(s, n);
}

void store_trim_page(struct store *s, uint32_t pgno, const struct held *h)
{
    uint64_t agreed = atomic_load_explicit(&s->head->agreed, memory_order_relaxed);
    uint64_t base = s->base.seq, newer = 0;
    uint32_t n = atomic_load_explicit(bucket_of(s, pgno), memory_order_relaxed), next, oldest = 0;

    for (; n != 0; n = next) {
        struct store_node *d = node_at(s, n);
        uint64_t seq = atomic_load_explicit(&d->seq, memory_order_relaxed);

        next = atomic_load_explicit(&d->next, memory_order_relaxed);
        if (atomic_load_explicit(&d->pgno, memory_order_relaxed) != pgno || seq > agreed) {
            continue;
        }
        if (newer == 0 && seq <= base && pgno > s->base.n_pages) {
            newer = base;
        }
        if (newer != 0 && !held_between(h, seq, newer)) {
            node_drop(s, n);
            continue;
        }
        newer = seq != 0 ? seq : 1;
        oldest = n;
    }
    if (oldest != 0 && node_at(s, oldest)->folded && !s->folding) {
        node_drop(s, oldest);
    }
}

void store_trim(struct store *s, const struct held *h)
{
    for (uint32_t n = 1; n <= n_chunks(s) * CHUNK_NODES; n++) {
        struct store_node *d = node_at(s, n);
        uint32_t pgno = atomic_load_explicit(&d->pgno, memory_order_relaxed);

        if (pgno != 0 && atomic_load_explicit(&d->seq, memory_order_relaxed) <= s->base.seq) {
            store_trim_page(s, pgno, h);
        }
    }
}

void store_release_idle(struct store *s)
{
    uint32_t keep = n_chunks(s), used_chunks;
    const uint32_t spare = (uint32_t)(((size_t)8 << 20) / s->chunk_size) + 1;

    used_chunks = (n_chunks(s) * CHUNK_NODES - s->n_free + CHUNK_NODES - 1) / CHUNK_NODES;
    if (n_chunks(s) <= used_chunks + 2 * spare) {
        return;
    }
    while (keep > used_chunks + spare) {
        uint32_t first = (keep - 1) * CHUNK_NODES + 1, i = 0;

        while (i < CHUNK_NODES && atomic_load_explicit(&node_at(s, first + i)->pgno, memory_order_relaxed) == 0) {
            i++;
        }
        if (i < CHUNK_NODES) {
            break;
        }
        keep--;
    }
    if (keep == n_chunks(s)) {
        return;
    }
    gen_open(s);
    s->free_list = 0;
    s->n_free = 0;
    for (uint32_t n = keep * CHUNK_NODES; n >= 1; n--) {
        if (atomic_load_explicit(&node_at(s, n)->pgno, memory_order_relaxed) == 0) {
            node_at(s, n)->sibling = s->free_list;
            s->free_list = n;
            s->n_free++;
        }
    }
    region_release(&s->region, s->chunks_at + (size_t)keep * s->chunk_size,
        (size_t)(n_chunks(s) - keep) * s->chunk_size);
    s->region.size = s->chunks_at + (size_t)keep * s->chunk_size;
    set_n_chunks(s, keep);
    gen_close(s);
}
