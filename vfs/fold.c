/* Folding the newest agreed version into app.db: which pages, what must be kept of the old ones, and the moment when
 * app.db takes over. The writing itself is checkpoint.c's; the three calls stand around it (database.c). When a node
 * may be freed, and why a long reader keeps its snapshot, stands in trim.c. */
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/store_impl.h"

static int by_pgno(const void *a, const void *b)
{
    const struct fold_page *x = a, *y = b;

    return x->pgno < y->pgno ? -1 : x->pgno > y->pgno;
}

int store_fold_begin(struct store *s, struct fold *f, struct err *e)
{
    size_t room = 0;
    int rv;

    memset(f, 0, sizeof *f);
    rv = store_slot_take(s, &f->slot, e);
    if (rv != DUST_OK) {
        return rv;
    }
    pthread_mutex_lock(&s->mutex);
    store_agreed_info(s, &f->target);
    store_pin(s, f->slot, &f->snap); /* publishing needs the mutex, so this is the same version */
    f->n_pages_before = s->base.n_pages;
    f->empty = f->target.seq == s->base.seq;
    s->folding = !f->empty;
    for (uint32_t n = 1; !f->empty && n <= n_chunks(s) * CHUNK_NODES; n++) {
        struct store_node *d = node_at(s, n);
        uint32_t pgno = atomic_load_explicit(&d->pgno, memory_order_relaxed);
        uint64_t seq = atomic_load_explicit(&d->seq, memory_order_relaxed);
        uint32_t newest;

        if (pgno == 0 || pgno > f->target.n_pages || seq <= s->base.seq || seq > f->target.seq) {
            continue;
        }
        /* Private frames are in no chain, and older versions are not the first found. */
        newest = atomic_load_explicit(bucket_of(s, pgno), memory_order_relaxed);
        while (newest != 0 && (atomic_load_explicit(&node_at(s, newest)->pgno, memory_order_relaxed) != pgno ||
                                  atomic_load_explicit(&node_at(s, newest)->seq, memory_order_relaxed) >
                                      f->target.seq)) {
            newest = atomic_load_explicit(&node_at(s, newest)->next, memory_order_relaxed);
        }
        if (newest != n) {
            continue;
        }
        if (f->n == room) {
            size_t more = room == 0 ? 256 : room * 2;
            struct fold_page *p = realloc(f->pages, more * sizeof *p);

            if (p == NULL) {
                pthread_mutex_unlock(&s->mutex);
                store_fold_end(s, f, DUST_BUSY);
                return err_set(e, DUST_NOMEM, "out of memory");
            }
            f->pages = p;
            room = more;
        }
        f->pages[f->n++] = (struct fold_page){.pgno = pgno, .node = n};
    }
    pthread_mutex_unlock(&s->mutex);
    if (f->n > 1) {
        qsort(f->pages, f->n, sizeof f->pages[0], by_pgno);
    }
    return DUST_OK;
}

/* Seq of the oldest node of a page that app.db's readers must not look below, 0 if there is none. */
static uint64_t oldest_of(struct store *s, uint32_t pgno)
{
    uint32_t n = atomic_load_explicit(bucket_of(s, pgno), memory_order_relaxed);
    uint64_t oldest = UINT64_MAX;

    for (; n != 0; n = atomic_load_explicit(&node_at(s, n)->next, memory_order_relaxed)) {
        if (atomic_load_explicit(&node_at(s, n)->pgno, memory_order_relaxed) == pgno) {
            oldest = atomic_load_explicit(&node_at(s, n)->seq, memory_order_relaxed);
        }
    }
    return oldest;
}

static int keep_page(struct store *s, uint32_t pgno, uint64_t limit, uint8_t *buf, store_base_fn base, void *ctx,
    struct err *e)
{
    struct held h;
    uint64_t oldest;
    uint32_t node;
    int rv = DUST_OK, rc;

    pthread_mutex_lock(&s->mutex);
    held_scan(s, &h);
    oldest = oldest_of(s, pgno);
    if (!held_between(&h, 1, oldest < limit ? oldest : limit)) {
        goto done;
    }
    rc = base(ctx, buf, s->page_size, (uint64_t)(pgno - 1) * s->page_size);
    if (rc != 0 && rc != SQLITE_CORRUPT) {
        rv = err_set(e, DUST_IO, "cannot read page %u of the database file", pgno);
        goto done;
    }
    rv = node_new(s, pgno, &node, e);
    if (rv == DUST_OK) {
        struct store_node *d = node_at(s, node);

        copy_racy(frame_at(s, node), buf, s->page_size);
        atomic_store_explicit(&d->n_pages, s->base.n_pages, memory_order_relaxed);
        d->folded = 1;
        node_seal(s, node);
        if (rc != 0) { /* it is damaged: whoever would have read it in app.db is to get the same error here */
            atomic_store_explicit(&d->sum, ~atomic_load_explicit(&d->sum, memory_order_relaxed), memory_order_relaxed);
        }
        gen_open(s);
        node_push_last(s, node, 0);
        gen_close(s);
    }
done:
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

int store_fold_keep(struct store *s, struct fold *f, store_base_fn base, void *ctx, struct err *e)
{
    uint64_t oldest_held = UINT64_MAX;
    uint32_t n = n_slots(s);
    uint8_t *buf;
    int rv = DUST_OK;

    for (uint32_t i = 0; i < n; i++) {
        uint64_t seq = atomic_load(&s->slots[i].seq);

        if (seq != 0 && seq < oldest_held) {
            oldest_held = seq;
        }
    }
    if (oldest_held >= f->target.seq) {
        return DUST_OK; /* nobody reads anything older, and nobody can begin to */
    }
    buf = malloc(s->page_size);
    if (buf == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    for (uint32_t i = 0; rv == DUST_OK && i < f->n && f->pages[i].pgno <= f->n_pages_before; i++) {
        rv = keep_page(s, f->pages[i].pgno, f->target.seq, buf, base, ctx, e);
    }
    for (uint32_t pgno = f->target.n_pages + 1; rv == DUST_OK && pgno <= f->n_pages_before; pgno++) {
        rv = keep_page(s, pgno, f->target.seq, buf, base, ctx, e);
    }
    free(buf);
    return rv;
}

static void mark_folded(struct store *s, const struct fold_page *p)
{
    uint32_t n = atomic_load_explicit(bucket_of(s, p->pgno), memory_order_relaxed);

    for (; n != 0; n = atomic_load_explicit(&node_at(s, n)->next, memory_order_relaxed)) {
        if (atomic_load_explicit(&node_at(s, n)->pgno, memory_order_relaxed) == p->pgno) {
            node_at(s, n)->folded = n == p->node;
        }
    }
}

/* Beyond the new end of app.db nothing equals what app.db has. */
static void forget_folded_beyond(struct store *s, uint32_t n_pages)
{
    for (uint32_t n = 1; n <= n_chunks(s) * CHUNK_NODES; n++) {
        if (atomic_load_explicit(&node_at(s, n)->pgno, memory_order_relaxed) > n_pages) {
            node_at(s, n)->folded = 0;
        }
    }
}

void store_fold_end(struct store *s, struct fold *f, int outcome)
{
    bool done = outcome == DUST_OK;
    struct held h;
    struct version *v;

    if (f->snap.seq != 0) {
        store_unpin(s, &f->snap);
    }
    store_slot_give(s, f->slot);
    pthread_mutex_lock(&s->mutex);
    s->folding = false;
    held_scan(s, &h);
    gen_open(s);
    if (done && !f->empty) {
        for (uint32_t i = 0; i < f->n; i++) {
            mark_folded(s, &f->pages[i]);
        }
        if (f->target.n_pages < f->n_pages_before) {
            forget_folded_beyond(s, f->target.n_pages);
        }
        s->base = f->target;
        atomic_store(&s->head->base, f->target.seq);
        atomic_store(&s->head->base_n_pages, f->target.n_pages);
        store_tell(s);
    } else if (!done && outcome != DUST_BUSY) {
        for (uint32_t n = 1; n <= n_chunks(s) * CHUNK_NODES; n++) {
            node_at(s, n)->folded = 0; /* app.db may hold anything now */
        }
    }
    store_trim(s, &h);
    gen_close(s);
    while (done && (v = s->oldest) != NULL && v->seq <= s->base.seq) {
        s->oldest = v->next;
        s->n_versions--;
        if (v->next != NULL) {
            v->next->prev = NULL;
        }
        if (s->newest == v) {
            s->newest = NULL;
        }
        if (s->agreed == v) {
            s->agreed = NULL;
        }
        free(v);
    }
    store_release_idle(s);
    pthread_mutex_unlock(&s->mutex);
    free(f->pages);
    memset(f, 0, sizeof *f);
}
