/* The history of the page store: staging, publishing, voiding, and folding into app.db.
 *
 * When a node may go. Take the nodes of one page that are agreed, newest first: n0, n1, …, nk.
 *   - ni (i > 0) is read only by snapshots in [ni.seq, n(i-1).seq). No slot there: free it. None can appear: new
 *     snapshots are at `agreed` or above, which is at or above n(i-1).seq.
 *   - A node marked `folded` has the content that app.db has. If it is the oldest of its page, whoever would read it
 *     can as well read app.db: free it, whatever the slots say.
 * Before app.db is overwritten for a page, and if a snapshot older than everything in the chain is held, the old
 * content is put into the chain as its oldest node (store_fold_keep). So a long reader neither waits for a checkpoint
 * nor holds one up.
 *
 * A page that lies beyond the end of a smaller app.db has nothing to be folded to; its nodes go when no snapshot in
 * [node.seq, base) is left.
 *
 * Freeing is part of a change of the generation; so is the moment when app.db takes over from a node. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/clock.h"
#include "vfs/store_impl.h"

/* All snapshots held at the moment, ascending. */
struct held {
    uint64_t seq[STORE_MAX_SLOTS];
    uint32_t n;
};

static int by_seq(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static void held_scan(struct store *s, struct held *h)
{
    uint32_t n = atomic_load(&s->head->n_slots);

    h->n = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t seq = atomic_load(&s->slots[i].seq);

        if (seq != 0) {
            h->seq[h->n++] = seq;
        }
    }
    qsort(h->seq, h->n, sizeof h->seq[0], by_seq);
}

/* Is a snapshot in [from, to) held? */
static bool held_between(const struct held *h, uint64_t from, uint64_t to)
{
    uint32_t lo = 0, hi = h->n;

    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;

        if (h->seq[mid] < from) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < h->n && h->seq[lo] < to;
}

static void drop(struct store *s, uint32_t n)
{
    node_unlink(s, n);
    node_free(s, n);
}

/* Free the nodes of page pgno that nobody needs. Under the mutex, generation open. */
static void trim_page(struct store *s, uint32_t pgno, const struct held *h)
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
            drop(s, n);
            continue;
        }
        newer = seq != 0 ? seq : 1;
        oldest = n;
    }
    if (oldest != 0 && node_at(s, oldest)->folded) {
        drop(s, oldest);
    }
}

static const struct vid *head_id(const struct store *s)
{
    return s->newest != NULL ? &s->newest->id : &s->base.id;
}

/* Put v, which is new and knows its id, parent and size, on top of the head. Under the mutex. */
static void stage(struct store *s, struct version *v, const uint32_t *nodes, uint32_t n)
{
    v->seq = s->next_seq++;
    v->state = VERSION_SPECULATIVE;
    for (uint32_t i = 0; i < n; i++) {
        struct store_node *d = node_at(s, nodes[i]);

        atomic_store_explicit(&d->n_pages, v->n_pages, memory_order_relaxed);
        d->sibling = v->nodes;
        v->nodes = nodes[i];
        node_push(s, nodes[i], v->seq);
    }
    v->prev = s->newest;
    if (s->newest != NULL) {
        s->newest->next = v;
    } else {
        s->oldest = v;
    }
    s->newest = v;
    atomic_store(&s->head->head, v->seq);
}

/* Under the mutex. */
static void publish(struct store *s, struct version *v, uint64_t index)
{
    struct held h;

    v->index = index;
    v->state = VERSION_AGREED;
    s->agreed = v;
    atomic_store(&s->head->agreed, v->seq);
    if (s->applied < index) {
        s->applied = index;
    }
    held_scan(s, &h);
    gen_open(s);
    for (uint32_t n = v->nodes, next; n != 0; n = next) {
        struct store_node *d = node_at(s, n);

        next = d->sibling; /* n itself is never dropped here: it is the newest agreed of its page */
        d->sibling = 0;
        trim_page(s, atomic_load_explicit(&d->pgno, memory_order_relaxed), &h);
    }
    gen_close(s);
    v->nodes = 0;
    if (s->waiters != 0) {
        pthread_cond_broadcast(&s->changed);
    }
}

/* Take v and all above it out of the history. Under the mutex. */
static void make_void(struct store *s, struct version *v)
{
    s->newest = v->prev;
    if (v->prev != NULL) {
        v->prev->next = NULL;
    } else {
        s->oldest = NULL;
    }
    v->prev = NULL;
    atomic_store(&s->head->head, s->newest != NULL ? s->newest->seq : s->base.seq);
    atomic_fetch_add(&s->head->epoch, 1);
    /* A writer that started on top of it must not go on reading: whoever pins the old head after this scan sees the
     * new epoch and begins again. */
    for (uint32_t i = 0, n = atomic_load(&s->head->n_slots); i < n; i++) {
        if (atomic_load(&s->slots[i].seq) >= v->seq) {
            atomic_store(&s->slots[i].dead, 1);
        }
    }
    gen_open(s);
    for (struct version *w = v; w != NULL; w = w->next) {
        w->state = VERSION_VOID;
        for (uint32_t n = w->nodes, next; n != 0; n = next) {
            next = node_at(s, n)->sibling;
            drop(s, n);
        }
        w->nodes = 0;
    }
    gen_close(s);
    if (s->waiters != 0) {
        pthread_cond_broadcast(&s->changed);
    }
}

static struct version *version_new(
    const struct vid *id, const struct vid *parent, uint32_t n_pages, void *owner, struct err *e)
{
    struct version *v = calloc(1, sizeof *v);

    if (v == NULL) {
        err_set(e, DUST_NOMEM, "out of memory");
        return NULL;
    }
    v->id = *id;
    v->parent = *parent;
    v->n_pages = n_pages;
    v->owner = owner;
    return v;
}

int store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version **out, struct err *e)
{
    struct version *v = version_new(id, parent, n_pages, owner, e);
    int rv = DUST_OK;

    if (v == NULL) {
        return DUST_NOMEM;
    }
    pthread_mutex_lock(&s->mutex);
    if (vid_equal(parent, head_id(s))) {
        stage(s, v, nodes, n);
        *out = v;
        v = NULL;
    } else {
        rv = err_set(e, DUST_STALE, "the database has moved on since this transaction read it; roll back and retry");
    }
    pthread_mutex_unlock(&s->mutex);
    free(v);
    return rv;
}

void store_publish(struct store *s, struct version *v, uint64_t index)
{
    pthread_mutex_lock(&s->mutex);
    publish(s, v, index);
    pthread_mutex_unlock(&s->mutex);
}

static struct version *oldest_speculative(const struct store *s)
{
    return s->agreed != NULL ? s->agreed->next : s->oldest;
}

int store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e)
{
    struct version *v = version_new(id, parent, n_pages, NULL, e);

    if (v == NULL) {
        return DUST_NOMEM;
    }
    pthread_mutex_lock(&s->mutex);
    *voided = oldest_speculative(s);
    if (*voided != NULL) {
        make_void(s, *voided);
    }
    stage(s, v, nodes, n);
    publish(s, v, index);
    pthread_mutex_unlock(&s->mutex);
    return DUST_OK;
}

struct version *store_void(struct store *s, struct version *v)
{
    pthread_mutex_lock(&s->mutex);
    make_void(s, v);
    pthread_mutex_unlock(&s->mutex);
    return v;
}

void version_free(struct version *v)
{
    free(v);
}

static void info_of(const struct version *v, struct head_info *out)
{
    *out = (struct head_info){.seq = v->seq, .index = v->index, .id = v->id, .n_pages = v->n_pages};
}

static void agreed_info(struct store *s, struct head_info *out)
{
    if (s->agreed != NULL) {
        info_of(s->agreed, out);
    } else {
        *out = s->base;
    }
}

void store_agreed(struct store *s, struct head_info *out)
{
    pthread_mutex_lock(&s->mutex);
    agreed_info(s, out);
    pthread_mutex_unlock(&s->mutex);
}

void store_head(struct store *s, struct head_info *out)
{
    pthread_mutex_lock(&s->mutex);
    if (s->newest != NULL) {
        info_of(s->newest, out);
    } else {
        *out = s->base;
    }
    pthread_mutex_unlock(&s->mutex);
}

void store_base(struct store *s, struct head_info *out)
{
    pthread_mutex_lock(&s->mutex);
    *out = s->base;
    pthread_mutex_unlock(&s->mutex);
}

void store_rebase(struct store *s, const struct head_info *head)
{
    pthread_mutex_lock(&s->mutex);
    gen_open(s);
    s->base = *head;
    s->base.seq = s->next_seq++;
    atomic_store(&s->head->base_n_pages, head->n_pages);
    atomic_store(&s->head->base, s->base.seq);
    atomic_store(&s->head->head, s->base.seq);
    atomic_store(&s->head->agreed, s->base.seq);
    if (s->applied < head->index) {
        s->applied = head->index;
    }
    gen_close(s);
    if (s->waiters != 0) {
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
}

bool store_head_is_agreed(struct store *s)
{
    return atomic_load(&s->head->head) == atomic_load(&s->head->agreed);
}

static struct version *find(struct store *s, uint64_t seq)
{
    struct version *v = s->newest;

    while (v != NULL && v->seq > seq) {
        v = v->prev;
    }
    return v != NULL && v->seq == seq ? v : NULL;
}

bool store_id_of(struct store *s, uint64_t seq, struct vid *id)
{
    struct version *v;
    bool found = true;

    pthread_mutex_lock(&s->mutex);
    v = find(s, seq);
    if (v != NULL) {
        *id = v->id;
    } else if (seq == s->base.seq) {
        *id = s->base.id;
    } else {
        found = false;
    }
    pthread_mutex_unlock(&s->mutex);
    return found;
}

struct version *store_oldest_speculative(struct store *s)
{
    struct version *v;

    pthread_mutex_lock(&s->mutex);
    v = oldest_speculative(s);
    pthread_mutex_unlock(&s->mutex);
    return v;
}

int store_wait_agreed(struct store *s, uint64_t seq, uint32_t timeout_ms)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    int rv = DUST_BUSY;
    bool late = false;

    if (atomic_load(&s->head->agreed) >= seq && seq <= atomic_load(&s->head->base)) {
        return DUST_OK;
    }
    pthread_mutex_lock(&s->mutex);
    s->waiters++;
    for (;;) {
        uint64_t agreed = s->agreed != NULL ? s->agreed->seq : s->base.seq;

        if (seq <= s->base.seq || (seq <= agreed && find(s, seq) != NULL)) {
            rv = DUST_OK;
            break;
        }
        if (find(s, seq) == NULL) {
            rv = DUST_VOID;
            break;
        }
        if (late || s->closing) {
            break;
        }
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    }
    s->waiters--;
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

void store_set_applied(struct store *s, uint64_t index)
{
    pthread_mutex_lock(&s->mutex);
    if (index > s->applied) {
        s->applied = index;
        if (s->waiters != 0) {
            pthread_cond_broadcast(&s->changed);
        }
    }
    pthread_mutex_unlock(&s->mutex);
}

uint64_t store_applied(struct store *s)
{
    uint64_t index;

    pthread_mutex_lock(&s->mutex);
    index = s->applied;
    pthread_mutex_unlock(&s->mutex);
    return index;
}

int store_wait_applied(struct store *s, uint64_t index, uint32_t timeout_ms)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    bool late = false;
    int rv;

    pthread_mutex_lock(&s->mutex);
    s->waiters++;
    while (s->applied < index && !late && !s->closing) {
        late = pthread_cond_timedwait(&s->changed, &s->mutex, &until) == ETIMEDOUT;
    }
    rv = s->applied >= index ? DUST_OK : DUST_BUSY;
    s->waiters--;
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

void store_wake(struct store *s, bool closing)
{
    pthread_mutex_lock(&s->mutex);
    s->closing = closing;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

/* ---- folding ---- */

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
    agreed_info(s, &f->target);
    store_pin(s, f->slot, &f->snap); /* publishing needs the mutex, so this is the same version */
    f->n_pages_before = s->base.n_pages;
    f->empty = f->target.seq == s->base.seq;
    for (uint32_t n = 1; !f->empty && n <= s->n_chunks * CHUNK_NODES; n++) {
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
    int rv = DUST_OK;

    pthread_mutex_lock(&s->mutex);
    held_scan(s, &h);
    oldest = oldest_of(s, pgno);
    if (!held_between(&h, 1, oldest < limit ? oldest : limit)) {
        goto done;
    }
    if (base(ctx, buf, s->page_size, (uint64_t)(pgno - 1) * s->page_size) != 0) {
        rv = err_set(e, DUST_IO, "cannot read page %u of the database file", pgno);
        goto done;
    }
    rv = node_new(s, pgno, &node, e);
    if (rv == DUST_OK) {
        struct store_node *d = node_at(s, node);

        copy_racy(frame_at(s, node), buf, s->page_size);
        atomic_store_explicit(&d->n_pages, s->base.n_pages, memory_order_relaxed);
        d->folded = 1;
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
    uint32_t n_slots = atomic_load(&s->head->n_slots);
    uint8_t *buf;
    int rv = DUST_OK;

    for (uint32_t i = 0; i < n_slots; i++) {
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

/* Trim every page that has a node. Under the mutex, generation open. */
static void trim_all(struct store *s, const struct held *h)
{
    for (uint32_t n = 1; n <= s->n_chunks * CHUNK_NODES; n++) {
        struct store_node *d = node_at(s, n);
        uint32_t pgno = atomic_load_explicit(&d->pgno, memory_order_relaxed);

        if (pgno != 0 && atomic_load_explicit(&d->seq, memory_order_relaxed) <= s->base.seq) {
            trim_page(s, pgno, h);
        }
    }
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
    for (uint32_t n = 1; n <= s->n_chunks * CHUNK_NODES; n++) {
        if (atomic_load_explicit(&node_at(s, n)->pgno, memory_order_relaxed) > n_pages) {
            node_at(s, n)->folded = 0;
        }
    }
}

static void release_idle_chunks(struct store *s);

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
    } else if (!done && outcome != DUST_BUSY) {
        for (uint32_t n = 1; n <= s->n_chunks * CHUNK_NODES; n++) {
            node_at(s, n)->folded = 0; /* app.db may hold anything now */
        }
    }
    trim_all(s, &h);
    gen_close(s);
    while (done && (v = s->oldest) != NULL && v->seq <= s->base.seq) {
        s->oldest = v->next;
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
    release_idle_chunks(s);
    pthread_mutex_unlock(&s->mutex);
    free(f->pages);
    memset(f, 0, sizeof *f);
}

/* Give back the memory and disk blocks of a store that has become much larger than it needs to be. Only frames at
 * the end of the file, in chunks without a single node in use, go; the free list is rebuilt without them. */
static void release_idle_chunks(struct store *s)
{
    uint32_t keep = s->n_chunks, used_chunks;
    const uint32_t spare = (uint32_t)(((size_t)8 << 20) / s->chunk_size) + 1;

    used_chunks = (s->n_chunks * CHUNK_NODES - s->n_free + CHUNK_NODES - 1) / CHUNK_NODES;
    if (s->n_chunks <= used_chunks + 2 * spare) {
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
    if (keep == s->n_chunks) {
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
        (size_t)(s->n_chunks - keep) * s->chunk_size);
    s->region.size = s->chunks_at + (size_t)keep * s->chunk_size;
    s->n_chunks = keep;
    gen_close(s);
}

void store_stats(struct store *s, struct store_stats *out)
{
    struct held h;

    pthread_mutex_lock(&s->mutex);
    held_scan(s, &h);
    *out = (struct store_stats){
        .frames_all = (uint64_t)s->n_chunks * CHUNK_NODES,
        .frames_used = (uint64_t)s->n_chunks * CHUNK_NODES - s->n_free,
        .bytes = s->region.size,
        .readers = h.n,
        .base_seq = s->base.seq,
        .agreed_seq = atomic_load(&s->head->agreed),
        .head_seq = atomic_load(&s->head->head),
        .oldest_reader = h.n != 0 ? h.seq[0] : 0,
    };
    for (struct version *v = s->oldest; v != NULL; v = v->next) {
        out->versions++;
    }
    pthread_mutex_unlock(&s->mutex);
}
