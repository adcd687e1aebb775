/* The page store: its file, the readers' side, and frames. version.c holds what changes the history.
 *
 * Why readers need no lock. A reader writes the seq it wants into its slot and then looks at `agreed` again: if that
 * has moved, it takes the newer one. Whoever is about to free a node first makes the newer version visible and then
 * looks at all slots. So either the reader sees the newer version, or the freeing side sees the reader (both sides
 * are sequentially consistent there). A node that a held snapshot resolves to is therefore never freed, except when
 * app.db has come to hold the same content.
 *
 * Why a lookup may go wrong for a moment, and why that is harmless. A chain may be cut, a frame reused or app.db
 * written just while a reader walks, copies or reads. All of these open the generation (odd), change, and close it
 * (even). A reader notes the generation first and accepts what it read only if it was even then and is the same
 * afterwards; otherwise it does it over. Pushing a newer node at the front of a chain needs none of this: an older
 * snapshot walks past it.
 *
 * Invariants
 *   base <= agreed <= head                          (seqs)
 *   every chain holds the nodes of one page newest first
 *   a private frame (transaction under way) is in no chain
 *   slot.seq != 0  =>  slot.owner != 0 */
#include "vfs/store_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/clock.h"
#include "vfs/fd.h"
#include "vfs/sums.h"

#define READ_TRIES 256 /* lock-free attempts before the mutex is taken, */
#define READ_YIELD 8   /* of which each such gives up the processor */

void copy_racy(void *dst, const void *src, size_t n)
{
#if defined(__SANITIZE_THREAD__)
    for (size_t i = 0; i < n; i++) {
        __atomic_store_n(
            (uint8_t *)dst + i, __atomic_load_n((const uint8_t *)src + i, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    }
#else
    memcpy(dst, src, n);
#endif
}

struct store *store_new(const char *path)
{
    struct store *s = calloc(1, sizeof *s);

    if (s == NULL || (s->path = strdup(path)) == NULL) {
        free(s);
        return NULL;
    }
    s->fd = -1;
    atomic_init(&s->refs, 1);
    pthread_mutex_init(&s->mutex, NULL);
    cond_init_monotonic(&s->changed);
    atomic_init(&s->durable, UINT64_MAX);
    return s;
}

void store_place(struct store *s, uint32_t page_size)
{
    s->page_size = page_size;
    s->chunks_at = CHUNKS_AT;
    s->chunk_size = CHUNK_NODES * (sizeof(struct store_node) + (size_t)page_size);
}

void store_find(struct store *s)
{
    s->head = (struct store_head *)s->region.base;
    s->buckets = (_Atomic uint32_t *)(s->region.base + BUCKETS_AT);
}

int store_open(struct store **out, const char *path, struct err *e)
{
    struct store *s = store_new(path);
    int rv;

    if (s == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    /* Whoever has the old one mapped keeps it as it is. */
    if (unlink(path) != 0 && errno != ENOENT) {
        rv = err_sys(e, errno, "cannot remove the old %s", path);
        goto fail;
    }
    s->fd = fd_high(open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (s->fd < 0) {
        rv = err_sys(e, errno, "cannot make %s", path);
        goto fail;
    }
    rv = region_open(&s->region, s->fd, STORE_RESERVE, e);
    if (rv == DUST_OK) {
        rv = region_grow(&s->region, CHUNKS_AT, e);
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    s->owner = STORE_HOST;
    store_find(s);
    s->readers = (struct store_readers *)(s->region.base + READERS_AT);
    s->slots = (struct store_slot *)(s->region.base + SLOTS_AT);
    s->head->format = STORE_FORMAT;
    s->head->pid = (uint32_t)getpid();
    *out = s;
    return DUST_OK;
fail:
    store_close(s);
    return rv;
}

int store_format(
    struct store *s, uint32_t page_size, const struct vid *id, uint64_t index, uint32_t n_pages, struct err *e)
{
    if (s->page_size != 0) {
        return err_set(e, DUST_MISUSE, "the page store is laid out already");
    }
    if (page_size < 512 || page_size > 65536 || (page_size & (page_size - 1)) != 0) {
        return err_set(e, DUST_CORRUPT, "%u is not a page size", page_size);
    }
    pthread_mutex_lock(&s->mutex);
    store_place(s, page_size);
    s->head->page_size = page_size;
    s->next_seq = 2;
    s->base = (struct head_info){.seq = 1, .index = index, .id = *id, .n_pages = n_pages};
    s->applied = index;
    atomic_store(&s->head->base, 1);
    atomic_store(&s->head->base_n_pages, n_pages);
    atomic_store(&s->head->agreed, 1);
    atomic_store(&s->head->head, 1);
    store_tell(s);
    atomic_store(&s->head->applied, index);
    s->head->magic = STORE_MAGIC;
    pthread_mutex_unlock(&s->mutex);
    return DUST_OK;
}

struct store *store_ref(struct store *s)
{
    atomic_fetch_add(&s->refs, 1);
    return s;
}

void store_close(struct store *s)
{
    if (s == NULL || atomic_fetch_sub(&s->refs, 1) != 1) {
        return;
    }
    while (s->oldest != NULL) {
        struct version *v = s->oldest;

        s->oldest = v->next;
        free(v);
    }
    if (s->attached) {
        attach_unmap(s);
    } else if (s->head != NULL) {
        atomic_store(&s->head->state, STORE_CLOSED);
        unlink(s->path); /* not emptied: others may have it mapped */
    }
    region_close(&s->region);
    if (s->fd >= 0) {
        close(s->fd);
    }
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mutex);
    free(s->path);
    free(s);
}

uint32_t store_page_size(const struct store *s)
{
    return s->page_size;
}

/* ---- readers ---- */

int store_slot_take(struct store *s, uint32_t *slot, struct err *e)
{
    for (uint32_t i = 0; i < STORE_MAX_SLOTS; i++) {
        uint32_t nobody = 0;

        if (atomic_load_explicit(&s->slots[i].owner, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&s->slots[i].owner, &nobody, s->owner)) {
            uint32_t seen = atomic_load(&s->readers->n_slots);

            while (seen < i + 1 && !atomic_compare_exchange_weak(&s->readers->n_slots, &seen, i + 1)) {
            }
            *slot = i;
            return DUST_OK;
        }
    }
    return err_set(e, DUST_TOOBIG, "%d connections have this database open, which is the limit", STORE_MAX_SLOTS);
}

void store_slot_give(struct store *s, uint32_t slot)
{
    atomic_store(&s->slots[slot].seq, 0);
    atomic_store(&s->slots[slot].owner, 0);
}

/* The node that page pgno has at seq, or 0. To be believed only if the generation stays. */
static uint32_t lookup(struct store *s, uint32_t pgno, uint64_t seq)
{
    uint32_t n = atomic_load_explicit(bucket_of(s, pgno), memory_order_acquire);
    /* a chain being cut may lead in circles */
    uint32_t limit = n_chunks(s) * CHUNK_NODES + CHUNK_NODES;

    while (n != 0 && limit-- > 0) {
        struct store_node *d;

        if (n > n_chunks(s) * CHUNK_NODES && !store_look_again(s, n)) {
            return 0; /* no such node: the file was changed by somebody else */
        }
        d = node_at(s, n);

        if (atomic_load_explicit(&d->pgno, memory_order_relaxed) == pgno &&
            atomic_load_explicit(&d->seq, memory_order_relaxed) <= seq) {
            return n;
        }
        n = atomic_load_explicit(&d->next, memory_order_acquire);
    }
    return 0;
}

static uint32_t size_at(struct store *s, uint64_t seq)
{
    unsigned tries = 0;

    for (;;) {
        uint64_t gen = atomic_load_explicit(&s->head->gen, memory_order_acquire);
        uint32_t n = lookup(s, 1, seq);
        uint32_t size = n != 0 ? atomic_load_explicit(&node_at(s, n)->n_pages, memory_order_relaxed)
                               : atomic_load_explicit(&s->head->base_n_pages, memory_order_relaxed);

        atomic_thread_fence(memory_order_acquire);
        if (gen % 2 == 0 && atomic_load_explicit(&s->head->gen, memory_order_relaxed) == gen) {
            return size;
        }
        if (s->attached && (store_state(s) != STORE_LIVE || !attach_wait(s, tries++))) {
            return 0; /* nobody begins here any more */
        }
    }
}

static void pin(struct store *s, uint32_t slot, struct snap *snap, _Atomic uint64_t *what)
{
    struct store_slot *mine = &s->slots[slot];
    uint64_t seq = atomic_load(what), again;

    for (;;) {
        uint32_t epoch = atomic_load(&s->head->epoch);

        atomic_store(&mine->dead, 0);
        atomic_store(&mine->seq, seq);
        again = atomic_load(what);
        if (again == seq && atomic_load(&s->head->epoch) == epoch) {
            break;
        }
        seq = again;
    }
    snap->slot = slot;
    snap->seq = seq;
    snap->n_pages = size_at(s, seq);
}

void store_pin(struct store *s, uint32_t slot, struct snap *snap)
{
    pin(s, slot, snap, &s->head->agreed);
}

void store_pin_head(struct store *s, uint32_t slot, struct snap *snap)
{
    pin(s, slot, snap, &s->head->head);
}

void store_pin_staged(struct store *s, uint32_t slot, struct snap *snap, const struct version *v)
{
    atomic_store(&s->slots[slot].dead, 0);
    atomic_store(&s->slots[slot].seq, v->seq);
    *snap = (struct snap){.seq = v->seq, .n_pages = v->n_pages, .slot = slot};
}

bool store_snap_void(struct store *s, const struct snap *snap)
{
    return atomic_load(&s->slots[snap->slot].dead) != 0;
}

void store_unpin(struct store *s, struct snap *snap)
{
    atomic_store_explicit(&s->slots[snap->slot].seq, 0, memory_order_release);
    snap->seq = 0;
}

static bool sound(struct store *s, uint32_t node, uint64_t sum)
{
    return atomic_load_explicit(&node_at(s, node)->sum, memory_order_relaxed) == (uint32_t)sum;
}

void node_seal(struct store *s, uint32_t n)
{
    atomic_store_explicit(
        &node_at(s, n)->sum, (uint32_t)page_sum(frame_at(s, n), s->page_size), memory_order_relaxed);
}

bool store_frame_sound(struct store *s, uint32_t node, uint64_t sum)
{
    return sound(s, node, sum);
}

bool store_has(struct store *s, uint32_t pgno)
{
    bool has;

    pthread_mutex_lock(&s->mutex);
    has = lookup(s, pgno, UINT64_MAX) != 0;
    pthread_mutex_unlock(&s->mutex);
    return has;
}

#define FRAME_DAMAGED INT32_MIN /* among the codes of read_once; the caller's own are others */

/* The whole frame is copied, then looked at: what is checked is what is handed out. */
static int read_frame(struct store *s, uint32_t node, uint32_t offset, uint32_t n, void *buf)
{
    uint8_t whole[65536];

    if (n == s->page_size) {
        copy_racy(buf, frame_at(s, node), n);
        return sound(s, node, page_sum(buf, n)) ? 0 : FRAME_DAMAGED;
    }
    copy_racy(whole, frame_at(s, node), s->page_size);
    memcpy(buf, whole + offset, n);
    return sound(s, node, page_sum(whole, s->page_size)) ? 0 : FRAME_DAMAGED;
}

static int read_once(struct store *s, struct snap *snap, uint32_t pgno, uint32_t offset, uint32_t n, void *buf,
    store_base_fn base, void *ctx)
{
    uint32_t node = lookup(s, pgno, snap->seq);

    if (node != 0) {
        return read_frame(s, node, offset, n, buf);
    }
    return base(ctx, buf, n, (uint64_t)(pgno - 1) * s->page_size + offset);
}

int store_read(struct store *s, struct snap *snap, uint32_t pgno, uint32_t offset, uint32_t n, void *buf,
    store_base_fn base, void *ctx)
{
    int rv;

    for (unsigned i = 0;; i++) {
        uint64_t gen = atomic_load_explicit(&s->head->gen, memory_order_acquire);

        if (i >= READ_TRIES && !s->attached) {
            pthread_mutex_lock(&s->mutex);
            rv = read_once(s, snap, pgno, offset, n, buf, base, ctx);
            pthread_mutex_unlock(&s->mutex);
            break;
        }
        if (gen % 2 == 0 || (s->attached && store_state(s) == STORE_SUPERSEDED)) {
            rv = read_once(s, snap, pgno, offset, n, buf, base, ctx);
            atomic_thread_fence(memory_order_acquire);
            if (atomic_load_explicit(&s->head->gen, memory_order_relaxed) == gen) {
                break;
            }
        }
        if (s->attached && !attach_wait(s, i)) {
            return DUST_CLOSED;
        }
        if (!s->attached && i % READ_YIELD == READ_YIELD - 1) {
            sched_yield(); /* whoever changes the chains may not have a processor */
        }
    }
    if (s->attached && store_state(s) >= STORE_CLOSED) {
        return DUST_CLOSED;
    }
    if (atomic_load(&s->slots[snap->slot].dead) != 0) {
        return DUST_VOID;
    }
    if (rv == FRAME_DAMAGED) {
        return DUST_CORRUPT;
    }
    return rv == 0 ? DUST_OK : rv > 0 ? -rv : rv;
}

/* ---- nodes and frames ---- */

static int chunk_new(struct store *s, struct err *e)
{
    uint32_t first = n_chunks(s) * CHUNK_NODES + 1;
    int rv = region_grow(&s->region, s->chunks_at + (size_t)(n_chunks(s) + 1) * s->chunk_size, e);

    if (rv != DUST_OK) {
        return rv;
    }
    set_n_chunks(s, n_chunks(s) + 1);
    for (uint32_t i = CHUNK_NODES; i-- > 0;) {
        node_at(s, first + i)->sibling = s->free_list;
        s->free_list = first + i;
    }
    s->n_free += CHUNK_NODES;
    return DUST_OK;
}

int node_new(struct store *s, uint32_t pgno, uint32_t *node, struct err *e)
{
    struct store_node *d;

    if (s->free_list == 0) {
        int rv = chunk_new(s, e);

        if (rv != DUST_OK) {
            return rv;
        }
    }
    *node = s->free_list;
    d = node_at(s, *node);
    s->free_list = d->sibling;
    s->n_free--;
    atomic_store_explicit(&d->pgno, pgno, memory_order_relaxed);
    d->sibling = 0;
    d->folded = 0;
    return DUST_OK;
}

void node_free(struct store *s, uint32_t n)
{
    struct store_node *d = node_at(s, n);

    atomic_store_explicit(&d->pgno, 0, memory_order_relaxed);
    d->sibling = s->free_list;
    s->free_list = n;
    s->n_free++;
}

void node_push(struct store *s, uint32_t n, uint64_t seq)
{
    struct store_node *d = node_at(s, n);
    _Atomic uint32_t *b = bucket_of(s, atomic_load_explicit(&d->pgno, memory_order_relaxed));

    atomic_store_explicit(&d->seq, seq, memory_order_relaxed);
    atomic_store_explicit(&d->next, atomic_load_explicit(b, memory_order_relaxed), memory_order_relaxed);
    atomic_store_explicit(b, n, memory_order_release);
}

void node_push_last(struct store *s, uint32_t n, uint64_t seq)
{
    struct store_node *d = node_at(s, n);
    _Atomic uint32_t *p = bucket_of(s, atomic_load_explicit(&d->pgno, memory_order_relaxed));
    uint32_t at;

    atomic_store_explicit(&d->seq, seq, memory_order_relaxed);
    atomic_store_explicit(&d->next, 0, memory_order_relaxed);
    while ((at = atomic_load_explicit(p, memory_order_relaxed)) != 0) {
        p = &node_at(s, at)->next;
    }
    atomic_store_explicit(p, n, memory_order_release);
}

void node_unlink(struct store *s, uint32_t n)
{
    struct store_node *d = node_at(s, n);
    _Atomic uint32_t *p = bucket_of(s, atomic_load_explicit(&d->pgno, memory_order_relaxed));
    uint32_t at;

    while ((at = atomic_load_explicit(p, memory_order_relaxed)) != 0) {
        if (at == n) {
            atomic_store_explicit(p, atomic_load_explicit(&d->next, memory_order_relaxed), memory_order_release);
            return;
        }
        p = &node_at(s, at)->next;
    }
}

int store_frame_new(struct store *s, uint32_t pgno, uint32_t *node, struct err *e)
{
    int rv;

    if (s->attached) {
        return locals_take(s->locals, node, e);
    }
    pthread_mutex_lock(&s->mutex);
    rv = node_new(s, pgno, node, e);
    pthread_mutex_unlock(&s->mutex);
    return rv;
}

void store_frame_free(struct store *s, const uint32_t *nodes, uint32_t n)
{
    for (uint32_t i = 0; s->attached && i < n; i++) {
        locals_give(s->locals, nodes[i]);
    }
    if (s->attached) {
        return;
    }
    pthread_mutex_lock(&s->mutex);
    for (uint32_t i = 0; i < n; i++) {
        node_free(s, nodes[i]);
    }
    pthread_mutex_unlock(&s->mutex);
}

static uint8_t *own_frame(struct store *s, uint32_t node)
{
    return s->attached ? locals_page(s->locals, node) : frame_at(s, node);
}

void store_frame_write(struct store *s, uint32_t node, uint32_t offset, const void *buf, uint32_t n)
{
    copy_racy(own_frame(s, node) + offset, buf, n);
}

void store_frame_read(struct store *s, uint32_t node, uint32_t offset, void *buf, uint32_t n)
{
    copy_racy(buf, own_frame(s, node) + offset, n);
}

const uint8_t *store_frame(struct store *s, uint32_t node)
{
    return own_frame(s, node);
}
