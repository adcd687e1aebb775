/* store_impl - what store.c (readers, frames), version.c (stage, publish, void), trim.c, fold.c and store_attach.c (the
 * store of another process) share. Not for others. */
#ifndef DUST_VFS_STORE_IMPL_H
#define DUST_VFS_STORE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vfs/locals.h"
#include "vfs/region.h"
#include "vfs/store.h"

#define STORE_MAGIC 0x74737564u /* "dust", little-endian */
#define STORE_FORMAT 3
#define CHUNK_NODES 256
#define N_BUCKETS (1u << 17)
#define READERS_AT 4096
#define SLOTS_AT 8192
#define BUCKETS_AT (SLOTS_AT + STORE_MAX_SLOTS * sizeof(struct store_slot))
#define CHUNKS_AT (BUCKETS_AT + N_BUCKETS * sizeof(uint32_t))
#define STORE_RESERVE ((size_t)64 << 30)
#define STORE_HOST UINT32_MAX /* as the owner of a slot */

/* Where things stand, each as store_agreed, store_head and store_base tell it. */
struct store_told {
    struct head_info agreed, head, base;
};

/* Layout of the file, all offsets fixed by the page size:
 *
 *     0        struct store_head
 *     4096     struct store_readers, and STORE_MAX_SLOTS struct store_slot: all that an attached process may write
 *     +516 KiB _Atomic uint32_t bucket[N_BUCKETS]
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
    _Atomic uint32_t n_chunks;
    _Atomic uint32_t state;   /* enum store_state */
    _Atomic uint32_t told_gen; /* seqlock over `told` */
    struct store_told told;    /* for processes that are attached */
    _Atomic uint64_t applied;
    _Atomic uint64_t applied_ms; /* when it last changed, as clock_ms() has it */
    _Atomic uint64_t hosts_own; /* seq of the newest version that was written in the host process */
    _Atomic uint32_t caught_up; /* see database.caught_up */
    _Atomic uint64_t turn_of; /* the attached process that has the write turn, and its slot, from 1; 0: none */
};

struct store_readers {
    _Atomic uint32_t n_slots; /* slots at or above this have never been used */
};

struct store_slot { /* a cache line of its own: each reader writes its slot at every transaction */
    _Atomic uint64_t seq;   /* snapshot held, 0 for none */
    _Atomic uint32_t owner; /* STORE_HOST, or the number of an attached process; 0 for free */
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
    char *path;
    bool attached;   /* it is another process's: see store_attach.c */
    uint32_t owner;  /* of the slots taken here */
    _Atomic int refs;
    struct locals *locals; /* attached: the frames of this process's own transactions */
    void *slots_map;       /* attached: the part that can be written */
    struct store_head *head;
    struct store_readers *readers;
    struct store_slot *slots;
    _Atomic uint32_t *buckets;
    size_t chunk_size, chunks_at;
    uint32_t page_size;

    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned waiters;
    bool closing;
    void (*watcher)(void *ctx); /* see store_watch */
    void *watcher_ctx;
    bool watching;

    _Atomic uint32_t n_chunks; /* changed under mutex; attached: as many as are known to be there */
    uint32_t free_list;
    uint32_t n_free;
    uint64_t next_seq;
    struct version *oldest, *newest; /* above the base */
    uint64_t n_versions;             /* of these */
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

/* As many as there can be: what others write is not believed. */
static inline uint32_t n_slots(const struct store *s)
{
    uint32_t n = atomic_load(&s->readers->n_slots);

    return n < STORE_MAX_SLOTS ? n : STORE_MAX_SLOTS;
}

static inline uint32_t n_chunks(const struct store *s)
{
    return atomic_load_explicit(&s->n_chunks, memory_order_relaxed);
}

static inline void set_n_chunks(struct store *s, uint32_t n)
{
    atomic_store(&s->n_chunks, n);
    atomic_store(&s->head->n_chunks, n);
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

/* An empty object, one reference; and where things lie in its file. */
struct store *store_new(const char *path);
void store_place(struct store *s, uint32_t page_size);
void store_find(struct store *s);

/* Under the mutex. */
int node_new(struct store *s, uint32_t pgno, uint32_t *node, struct err *e);
void node_free(struct store *s, uint32_t n);
void node_push(struct store *s, uint32_t n, uint64_t seq);      /* as the newest of its page */
void node_push_last(struct store *s, uint32_t n, uint64_t seq); /* as the oldest of its page */
void node_unlink(struct store *s, uint32_t n);
void node_drop(struct store *s, uint32_t n); /* trim.c: unlink and free */

/* version.c; under the mutex: the newest agreed version. */
void store_agreed_info(struct store *s, struct head_info *out);

/* version.c; under the mutex, after any change of base, agreed or head: tell those attached. */
void store_tell(struct store *s);

/* store_attach.c: the mappings of an attached store. */
void attach_unmap(struct store *s);

/* store_attach.c: the generation was odd, or has changed, for the i-th time. False: the store is closed. */
bool attach_wait(const struct store *s, unsigned i);

/* store_attach.c: is there a node of this number after all? The host may have made more. */
bool store_look_again(struct store *s, uint32_t node);

/* store_attach.c: what was told last. */
void store_hear(const struct store *s, struct store_told *out);

/* All snapshots held at the moment, ascending. */
struct held {
    uint64_t seq[STORE_MAX_SLOTS]; /* that somebody reads, ascending, each once */
    uint32_t n;
    uint32_t readers;
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
