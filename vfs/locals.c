/* Pages are made in chunks, which are freed again when none is in use and there are many. */
#include "vfs/locals.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define CHUNK 64u          /* pages */
#define CHUNKS_MAX 65536u
#define CHUNKS_KEPT 16u    /* when nothing is being written */

struct locals {
    pthread_mutex_t mutex;
    uint32_t page_size;
    uint32_t n_chunks, used;
    uint32_t *free_list; /* numbers, the next one last; as long as there are pages */
    uint32_t n_free;
    uint8_t *_Atomic chunk[CHUNKS_MAX];
};

struct locals *locals_new(uint32_t page_size)
{
    struct locals *l = calloc(1, sizeof *l);

    if (l != NULL) {
        pthread_mutex_init(&l->mutex, NULL);
        l->page_size = page_size;
    }
    return l;
}

static void shrink(struct locals *l, uint32_t keep)
{
    while (l->n_chunks > keep) {
        l->n_chunks--;
        free(atomic_load(&l->chunk[l->n_chunks]));
        atomic_store(&l->chunk[l->n_chunks], NULL);
    }
    l->n_free = 0;
    for (uint32_t i = keep * CHUNK; i >= 1; i--) {
        l->free_list[l->n_free++] = i;
    }
}

void locals_delete(struct locals *l)
{
    if (l != NULL) {
        shrink(l, 0);
        free(l->free_list);
        pthread_mutex_destroy(&l->mutex);
        free(l);
    }
}

/* Under the mutex. */
static int grow(struct locals *l, struct err *e)
{
    uint32_t *list;
    uint8_t *chunk;

    if (l->n_chunks == CHUNKS_MAX) {
        return err_set(e, DUST_TOOBIG, "transactions of this process hold %u pages, which is the limit", CHUNKS_MAX * CHUNK);
    }
    chunk = malloc((size_t)CHUNK * l->page_size);
    list = realloc(l->free_list, (size_t)(l->n_chunks + 1) * CHUNK * sizeof *list);
    l->free_list = list != NULL ? list : l->free_list;
    if (chunk == NULL || list == NULL) {
        free(chunk);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    atomic_store(&l->chunk[l->n_chunks], chunk);
    for (uint32_t i = CHUNK; i >= 1; i--) {
        l->free_list[l->n_free++] = l->n_chunks * CHUNK + i;
    }
    l->n_chunks++;
    return DUST_OK;
}

int locals_take(struct locals *l, uint32_t *number, struct err *e)
{
    int rv;

    pthread_mutex_lock(&l->mutex);
    rv = l->n_free != 0 ? DUST_OK : grow(l, e);
    if (rv == DUST_OK) {
        *number = l->free_list[--l->n_free];
        l->used++;
    }
    pthread_mutex_unlock(&l->mutex);
    return rv;
}

void locals_give(struct locals *l, uint32_t number)
{
    pthread_mutex_lock(&l->mutex);
    l->free_list[l->n_free++] = number;
    l->used--;
    if (l->used == 0 && l->n_chunks > CHUNKS_KEPT) {
        shrink(l, CHUNKS_KEPT);
    }
    pthread_mutex_unlock(&l->mutex);
}

uint8_t *locals_page(const struct locals *l, uint32_t number)
{
    return atomic_load_explicit(&l->chunk[(number - 1) / CHUNK], memory_order_relaxed) +
           (size_t)((number - 1) % CHUNK) * l->page_size;
}
