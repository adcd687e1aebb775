/* store_impl - what store.c (readers, frames), version.c (stage, publish, void), trim.c and fold.c share. Not for
 * others. */
#ifndef DUST_VFS_STORE_IMPL_H
#define DUST_VFS_STORE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vfs/region.h"
#include "vfs/store.h"

#define STORE_MAGIC 0x74737564u /* "dust", little-endian */
#define STORE_FORMAT 1
#define CHUNK_NODES 256
#define N_BUCKETS (1u << 17)

/* Layout of the file, all offsets fixed by the page size:
 *
 *     0        struct store_head
 *     4096     struct store_slot[STORE_MAX_SLOTS]
 *     +512 KiB _Atomic uint32_t bucket[N_BUCKETS]
 *     +512 KiB chunk[0], chunk[1], …: CHUNK_NODES struct store_node, then as many frames of page_size bytes
 *
 * A node is named by its number, from 1; node n describes frame n. */
struct store_head {
    uint32_t magic, format;
    uint32_t page_size;
    uint32_t pid; /* of the host */
    _Atomic uint64_t agreed; /* seq of the newest agreed version */
    _Atomic uint64_t head;   /* seq of the newest version */
    _Atomic uint64_t gen;    /* seqlock over chains, frames and app.db: odd while they change */
    _Atomic uint64_t base;   /* seq of the version app.db is at */
    _Atomic uint32_t base_n_pages;
    _Atomic uint32_t epoch;   /* number of store_void calls */
    _Atomic uint32_t n_slots; /* slots at or above this have never been used */
};

struct store_slot { /* a cache line of its own: each reader writes its slot at every transaction */
    _Atomic uint64_t seq;  /* snapshot held, 0 for none */
    _Atomic uint32_t pid;  /* owner, 0 for free */
    _Atomic uint32_t dead; /* the version held has become void */
    uint64_t unused[6];
};

struct store_node {
    _Atomic uint32_t next;    /* older node of the bucket */
    _Atomic uint32_t pgno;    /* 0: free */
    _Atomic uint64_t seq;     /* 0: content of app.db from before anything known */
    _Atomic uint32_t n_pages; /* page 1 only: size of the database at seq */
    uint32_t sibling;         /* next in a version's list or in the free list */
    uint32_t folded;          /* app.db holds this very content */
    _Atomic uint32_t sum;     /* of the content, once staged */
};

struct store {
    struct region region;
    int fd;
    struct store_head *head;
    struct store_slot *slots;
    _Atomic uint32_t *buckets;
    size_t chunk_size, chunks_at;
    uint32_t page_size;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned waiters;
    bool closing;

    _Atomic uint32_t n_chunks; /* changed under mutex */
    uint32_t free_list;
    uint32_t n_free;
    uint64_t next_seq;
    struct version *oldest, *newest; /* above the base */
    struct version *agreed;          /* NULL: the base */
    struct head_info base;
    bool folding; /* app.db is being brought from `base` to something newer: what it holds now is nobody's */
    uint64_t applied; /* index of the last entry looked at, void ones included */
    _Atomic uint64_t durable;      /* see store_set_durable */
    struct vid noted;              /* under mutex */
    _Atomic bool durable_awaited;
};

static inline struct store_node *node_at(const struct store *s, uint32_t n)
{
    return (struct store_node *)(s->region.base + s->chunks_at + (size_t)((n - 1) / CHUNK_NODES) * s->chunk_size) +
           (n - 1) % CHUNK_NODES;
}

static inline uint8_t *frame_at(const struct store *s, uint32_t n)
{
    return s->region.base + s->chunks_at + (size_t)((n - 1) / CHUNK_NODES) * s->chunk_size +
           CHUNK_NODES * sizeof(struct store_node) + (size_t)((n - 1) % CHUNK_NODES) * s->page_size;
}

static inline _Atomic uint32_t *bucket_of(const struct store *s, uint32_t pgno)
{
    return &s->buckets[(pgno * 2654435761u) >> (32 - 17)];
}

/* Under the mutex: open and close a change that readers must not straddle. */
static inline void gen_open(struct store *s)
{
    atomic_fetch_add_explicit(&s->head->gen, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static inline void gen_close(struct store *s)
{
    atomic_fetch_add_explicit(&s->head->gen, 1, memory_order_release);
}

/* Under the mutex. */
int node_new(struct store *s, uint32_t pgno, uint32_t *node, struct err *e);
void node_free(struct store *s, uint32_t n);
void node_push(struct store *s, uint32_t n, uint64_t seq);      /* as the newest of its page */
void node_push_last(struct store *s, uint32_t n, uint64_t seq); /* as the oldest of its page */
void node_unlink(struct store *s, uint32_t n);
void node_drop(struct store *s, uint32_t n); /* trim.c: unlink and free */

/* version.c; under the mutex: the newest agreed version. */
void store_agreed_info(struct store *s, struct head_info *out);

/* All snapshots held at the moment, ascending. */
struct held {
    uint64_t seq[STORE_MAX_SLOTS];
    uint32_t n;
};

void held_scan(struct store *s, struct held *h);

/* Is a snapshot in [from, to) held? */
bool held_between(const struct held *h, uint64_t from, uint64_t to);

/* Under the mutex, generation open: free the nodes of page pgno, or of all pages, that nobody needs. */
void store_trim_page(struct store *s, uint32_t pgno, const struct held *h);
void store_trim(struct store *s, const struct held *h);

/* Under the mutex: give back the memory and disk blocks of a store that has become much larger than it needs to be.
 * Only frames at the end of the file, in chunks without a single node in use, go; the free list is rebuilt without
 * them. */
void store_release_idle(struct store *s);

/* Note what the frame holds, so that a change of it is found out. */
void node_seal(struct store *s, uint32_t n);

/* Copy that may race with a writer, the result being discarded then. */
void copy_racy(void *dst, const void *src, size_t n);

#endif
