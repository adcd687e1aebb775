/* heap - memory of libraft's that runs out: of what is asked for after heap_begin(), the one with the given number is
 * refused. What is held is counted. */
#ifndef DUST_FUZZ_HEAP_H
#define DUST_FUZZ_HEAP_H

#include <raft.h>

#include "tests/fuzz/fuzz.h"

static unsigned fail_at, n_allocated; /* fail_at 0: none is refused */
static unsigned n_held;

static inline bool heap_refuses(void)
{
    return ++n_allocated == fail_at;
}

static inline void *heap_counted(void *p)
{
    n_held += p != NULL;
    return p;
}

static inline void *heap_malloc(void *ctx, size_t n)
{
    (void)ctx;
    return heap_refuses() ? NULL : heap_counted(malloc(n));
}

static inline void heap_free(void *ctx, void *p)
{
    (void)ctx;
    n_held -= p != NULL;
    free(p);
}

static inline void *heap_calloc(void *ctx, size_t n, size_t size)
{
    (void)ctx;
    return heap_refuses() ? NULL : heap_counted(calloc(n, size));
}

static inline void *heap_realloc(void *ctx, void *p, size_t n)
{
    (void)ctx;
    if (heap_refuses()) {
        return NULL;
    }
    return p != NULL ? realloc(p, n) : heap_counted(malloc(n));
}

static inline void *heap_aligned(void *ctx, size_t alignment, size_t n)
{
    (void)ctx;
    return heap_refuses() ? NULL : heap_counted(aligned_alloc(alignment, n));
}

static inline void heap_aligned_free(void *ctx, size_t alignment, void *p)
{
    (void)alignment;
    heap_free(ctx, p);
}

static inline void heap_begin(unsigned refused)
{
    static struct raft_heap heap = {.malloc = heap_malloc,
        .free = heap_free,
        .calloc = heap_calloc,
        .realloc = heap_realloc,
        .aligned_alloc = heap_aligned,
        .aligned_free = heap_aligned_free};

    raft_heap_set(&heap);
    fail_at = refused;
    n_allocated = 0;
}

/* From now on all of it is given. Has one been refused? */
static inline bool heap_end(void)
{
    bool refused = fail_at != 0 && n_allocated >= fail_at;

    fail_at = 0;
    return refused;
}

#endif
