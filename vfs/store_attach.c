/* The page store of another process, for reading (docs/PROCESSES.md).
 *
 * The file is mapped twice: all of it for reading, and the slots, which a reader has to write, for writing. So a stray
 * write in an attached process hurts nobody's pages. What stands in the file is believed as far as it was checked: a
 * number of a node only if the file is long enough for it to be there.
 *
 * The pages of this process's own transactions are its own memory ("locals"), under the same calls as a host's private
 * frames; numbers of locals and of the file's nodes have nothing to do with each other.
 *
 *   LIVE ──a new host──▶ SUPERSEDED ──it is about to write app.db──▶ CLOSED
 *   LIVE ──the member has left its cluster──▶ LEFT
 *
 * A host that dies in the middle of a change leaves the generation odd. Nothing changes any more then, and what a held
 * snapshot needs is there: nodes are cut out of their chains one by one, and only those that nobody needs. So once the
 * store is SUPERSEDED, what was read counts.
 *
 * A snapshot is taken only while the store is LIVE: first the slot is written, then the state is looked at; whoever
 * changes the state then looks at the slots. What was read counts unless the store was CLOSED afterwards. */
#include "vfs/store_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vfs/fd.h"

#define READERS_SIZE (BUCKETS_AT - READERS_AT)
#define RESERVE_MIN ((size_t)64 << 20)
#define PATIENCE 1000u

/* ---- mapping ---- */

static size_t file_size(int fd)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_size > 0 ? (size_t)st.st_size : 0;
}

/* Only as many as there is file for. */
static uint32_t chunks_there(const struct store *s)
{
    uint32_t n = atomic_load_explicit(&s->head->n_chunks, memory_order_acquire);
    size_t size = file_size(s->fd), max;

    size = size < s->region.reserve ? size : s->region.reserve;
    max = size > s->chunks_at ? (size - s->chunks_at) / s->chunk_size : 0;
    return n < max ? n : (uint32_t)max;
}

bool store_look_again(struct store *s, uint32_t node)
{
    if (!s->attached) {
        return false;
    }
    atomic_store_explicit(&s->n_chunks, chunks_there(s), memory_order_relaxed);
    return node <= n_chunks(s) * CHUNK_NODES;
}

static int map(struct store *s, struct err *e)
{
    void *p = MAP_FAILED;
    size_t reserve = STORE_RESERVE;

    while (reserve >= RESERVE_MIN && p == MAP_FAILED) {
        p = mmap(NULL, reserve, PROT_READ, MAP_SHARED | MAP_NORESERVE, s->fd, 0);
        reserve = p == MAP_FAILED ? reserve / 2 : reserve;
    }
    if (p == MAP_FAILED) {
        return err_sys(e, errno, "cannot map the page store");
    }
    madvise(p, reserve, MADV_DONTDUMP);
    s->region = (struct region){.fd = s->fd, .base = p, .reserve = reserve, .size = 0};
    p = mmap(NULL, READERS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, READERS_AT);
    if (p == MAP_FAILED) {
        return err_sys(e, errno, "cannot map the page store");
    }
    s->slots_map = p;
    s->readers = p;
    s->slots = (struct store_slot *)((uint8_t *)p + (SLOTS_AT - READERS_AT));
    store_find(s);
    return DUST_OK;
}

static bool laid_out(const struct store_head *h)
{
    return h->magic == STORE_MAGIC && h->format == STORE_FORMAT && h->page_size >= 512 && h->page_size <= 65536 &&
           (h->page_size & (h->page_size - 1)) == 0;
}

int store_attach(struct store **out, const char *path, uint32_t owner, struct err *e)
{
    struct store *s = store_new(path);
    int rv = DUST_OK;

    if (s == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    s->attached = true;
    s->owner = owner;
    s->fd = fd_high(open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (s->fd < 0 && errno != ENOENT) {
        rv = err_sys(e, errno, "cannot open %s", path);
    } else if (s->fd < 0 || file_size(s->fd) < CHUNKS_AT) {
        rv = err_set(e, DUST_AGAIN, "%s is not there yet", path);
    } else {
        rv = map(s, e);
    }
    if (rv == DUST_OK && !laid_out(s->head)) {
        rv = err_set(e, DUST_AGAIN, "%s is not laid out yet, or is another version of dust's", path);
    }
    if (rv != DUST_OK) {
        store_close(s);
        return rv;
    }
    store_place(s, s->head->page_size);
    s->locals = locals_new(s->page_size);
    if (s->locals == NULL) {
        store_close(s);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    store_look_again(s, 0);
    *out = s;
    return DUST_OK;
}

void attach_unmap(struct store *s)
{
    if (s->slots_map != NULL) {
        munmap(s->slots_map, READERS_SIZE);
        s->slots_map = NULL;
    }
    locals_delete(s->locals);
    s->locals = NULL;
}

bool attach_wait(const struct store *s, unsigned i)
{
    struct timespec ms = {.tv_nsec = 1000000};

    if (store_state(s) != STORE_LIVE) {
        return store_state(s) == STORE_SUPERSEDED; /* it stands still now */
    }
    if (i < PATIENCE) {
        sched_yield();
    } else {
        nanosleep(&ms, NULL); /* the host stands still in the middle of a change, or is gone: somebody will say so */
    }
    return true;
}

/* ---- what the host tells ---- */

void store_hear(const struct store *s, struct store_told *out)
{
    for (;;) {
        uint32_t gen = atomic_load_explicit(&s->head->told_gen, memory_order_acquire);

        copy_racy(out, &s->head->told, sizeof *out);
        atomic_thread_fence(memory_order_acquire);
        if (gen % 2 == 0 && atomic_load_explicit(&s->head->told_gen, memory_order_relaxed) == gen) {
            return;
        }
        if (store_state(s) != STORE_LIVE) {
            return; /* the host died while it wrote: nobody may begin here any more */
        }
    }
}

enum store_state store_state(const struct store *s)
{
    return (enum store_state)atomic_load(&s->head->state);
}

bool store_attached(const struct store *s)
{
    return s->attached;
}

/* The mapping of an attached store is for reading; its file is not. */
void store_set_state(struct store *s, enum store_state state)
{
    uint32_t v = (uint32_t)state;

    if (!s->attached) {
        atomic_store(&s->head->state, v);
    } else if (pwrite(s->fd, &v, sizeof v, offsetof(struct store_head, state)) != sizeof v) {
        /* blocks of it are allocated: it cannot fail for want of space */
    }
}

void store_set_caught_up(struct store *s, bool yes)
{
    atomic_store_explicit(&s->head->caught_up, yes, memory_order_release);
}

bool store_caught_up(const struct store *s)
{
    return atomic_load_explicit(&s->head->caught_up, memory_order_acquire) != 0;
}

void store_set_turn_of(struct store *s, uint32_t owner, uint32_t slot)
{
    atomic_store(&s->head->turn_of, owner != 0 ? (uint64_t)owner << 32 | (slot + 1) : 0);
}

uint32_t store_turn_of(const struct store *s, uint32_t *slot)
{
    uint64_t v = atomic_load(&s->head->turn_of);

    *slot = (uint32_t)v - 1;
    return (uint32_t)(v >> 32);
}

uint32_t store_owner(const struct store *s)
{
    return s->owner;
}

void store_set_hosts_own(struct store *s, uint64_t seq)
{
    uint64_t seen = atomic_load(&s->head->hosts_own);

    while (seen < seq && !atomic_compare_exchange_weak(&s->head->hosts_own, &seen, seq)) {
    }
}

bool store_ahead_of_host(const struct store *s)
{
    return atomic_load(&s->head->hosts_own) > atomic_load(&s->head->agreed);
}

/* ---- slots, for the host ---- */

bool store_slot_is(struct store *s, uint32_t slot, uint32_t owner)
{
    return slot < STORE_MAX_SLOTS && atomic_load(&s->slots[slot].owner) == owner;
}

uint32_t store_free_slots(struct store *s, uint32_t owner)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_slots(s); i++) {
        if (atomic_load(&s->slots[i].owner) == owner) {
            store_slot_give(s, i);
            n++;
        }
    }
    return n;
}

uint32_t store_held_by(struct store *s, uint32_t owner, uint64_t *oldest)
{
    uint32_t n = 0;

    *oldest = 0;
    for (uint32_t i = 0; i < n_slots(s); i++) {
        uint64_t seq = atomic_load(&s->slots[i].seq);

        if (seq != 0 && (owner == 0 || atomic_load(&s->slots[i].owner) == owner)) {
            n++;
            *oldest = *oldest == 0 || seq < *oldest ? seq : *oldest;
        }
    }
    return n;
}
