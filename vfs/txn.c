#include "vfs/txn.h"

#include <stdlib.h>
#include <string.h>

#include "vfs/lockpage.h"

#define KEEP_CAPACITY 4096u /* a larger map is freed after its transaction */

static uint32_t place_of(const struct txn *t, uint32_t pgno)
{
    uint32_t i = (pgno * 2654435761u) & (t->capacity - 1);

    while (t->map[i].pgno != 0 && t->map[i].pgno != pgno) {
        i = (i + 1) & (t->capacity - 1);
    }
    return i;
}

static bool grow(struct txn *t)
{
    struct txn old = *t;

    t->capacity = old.capacity == 0 ? 64 : old.capacity * 2;
    t->map = calloc(t->capacity, sizeof *t->map);
    if (t->map == NULL) {
        *t = old;
        return false;
    }
    for (uint32_t i = 0; i < old.capacity; i++) {
        if (old.map[i].pgno != 0) {
            t->map[place_of(t, old.map[i].pgno)] = old.map[i];
        }
    }
    free(old.map);
    return true;
}

void txn_begin(struct txn *t, struct store *store, uint32_t n_pages)
{
    t->store = store;
    t->n_pages = n_pages;
}

void txn_disown(struct txn *t)
{
    if (t->capacity > KEEP_CAPACITY) {
        free(t->map);
        t->map = NULL;
        t->capacity = 0;
    } else if (t->n != 0) {
        memset(t->map, 0, t->capacity * sizeof *t->map);
    }
    t->n = 0;
}

void txn_reset(struct txn *t)
{
    for (uint32_t i = 0; t->n != 0 && i < t->capacity; i++) {
        if (t->map[i].pgno != 0) {
            store_frame_free(t->store, &t->map[i].node, 1);
        }
    }
    txn_disown(t);
}

void txn_deinit(struct txn *t)
{
    txn_reset(t);
    free(t->map);
    memset(t, 0, sizeof *t);
}

uint32_t txn_find(const struct txn *t, uint32_t pgno)
{
    struct txn_page *p;

    if (t->n == 0) {
        return 0;
    }
    p = &t->map[place_of(t, pgno)];
    return p->pgno == pgno ? p->node : 0;
}

int txn_frame(struct txn *t, uint32_t pgno, uint32_t *node, bool *fresh, struct err *e)
{
    uint32_t have = txn_find(t, pgno);
    int rv;

    *fresh = have == 0;
    if (have != 0) {
        *node = have;
        return DUST_OK;
    }
    if ((t->n + 1) * 2 > t->capacity && !grow(t)) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = store_frame_new(t->store, pgno, node, e);
    if (rv == DUST_OK) {
        t->map[place_of(t, pgno)] = (struct txn_page){.pgno = pgno, .node = *node};
        t->n++;
    }
    return rv;
}

int txn_fill(struct txn *t, uint32_t from, uint32_t to, uint32_t page_size, struct err *e)
{
    static const uint8_t zeros[65536];
    int rv = DUST_OK;

    for (uint32_t pgno = from; rv == DUST_OK && pgno <= to; pgno++) {
        uint32_t node;
        bool fresh;

        if (txn_find(t, pgno) != 0 || pgno == lock_page(page_size)) {
            continue;
        }
        rv = txn_frame(t, pgno, &node, &fresh, e);
        if (rv == DUST_OK) {
            store_frame_write(t->store, node, 0, zeros, page_size);
        }
    }
    return rv;
}

/* Take a page out, closing the gap it leaves in its run (Knuth, vol. 3, 6.4, algorithm R). */
static void take_out(struct txn *t, uint32_t i)
{
    uint32_t mask = t->capacity - 1, j = i;

    for (;;) {
        t->map[i].pgno = 0;
        for (;;) {
            uint32_t home;

            j = (j + 1) & mask;
            if (t->map[j].pgno == 0) {
                return;
            }
            home = (t->map[j].pgno * 2654435761u) & mask;
            if (!(i <= j ? i < home && home <= j : i < home || home <= j)) {
                break;
            }
        }
        t->map[i] = t->map[j];
        i = j;
    }
}

void txn_truncate(struct txn *t, uint32_t n_pages)
{
    t->n_pages = n_pages;
    for (uint32_t i = 0; t->n != 0 && i < t->capacity;) {
        if (t->map[i].pgno > n_pages) {
            store_frame_free(t->store, &t->map[i].node, 1);
            take_out(t, i);
            t->n--;
        } else {
            i++; /* a page moved into place i is looked at before going on */
        }
    }
}

static int by_pgno(const void *a, const void *b)
{
    const struct txn_page *x = a, *y = b;

    return x->pgno < y->pgno ? -1 : x->pgno > y->pgno;
}

struct txn_page *txn_sorted(const struct txn *t)
{
    struct txn_page *all = malloc((t->n + 1) * sizeof *all);
    uint32_t n = 0;

    for (uint32_t i = 0; all != NULL && i < t->capacity; i++) {
        if (t->map[i].pgno != 0) {
            all[n++] = t->map[i];
        }
    }
    if (all != NULL && n > 1) {
        qsort(all, n, sizeof *all, by_pgno);
    }
    return all;
}
