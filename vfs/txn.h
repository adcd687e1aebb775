/* txn - the pages a write transaction has changed so far: a map from page number to a private frame of the store.
 *
 * Belongs to one open file and is used by its connection's thread only. */
#ifndef DUST_VFS_TXN_H
#define DUST_VFS_TXN_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/err.h"
#include "vfs/store.h"

struct txn_page {
    uint32_t pgno; /* 0: empty place */
    uint32_t node;
};

struct txn {
    struct store *store;
    struct txn_page *map; /* open addressing, capacity a power of two, at most half full */
    uint32_t capacity, n;
    uint32_t n_pages; /* size of the database as this transaction sees it */
};

/* Begin on top of a database of n_pages. The txn must be empty. */
void txn_begin(struct txn *t, struct store *store, uint32_t n_pages);

/* Drop all pages. The map's memory is kept for the next transaction unless it is large. */
void txn_reset(struct txn *t);

void txn_deinit(struct txn *t);

/* The frame of page pgno, or 0 if the transaction has not written it. */
uint32_t txn_find(const struct txn *t, uint32_t pgno);

/* The frame of page pgno, made (with undefined content, *fresh = true) if there is none. DUST_NOMEM, DUST_FULL. */
int txn_frame(struct txn *t, uint32_t pgno, uint32_t *node, bool *fresh, struct err *e);

/* Give the pages from..to that have no frame one of zeros: SQLite grew the database past them without a need to write them.
 * DUST_NOMEM, DUST_FULL. */
int txn_fill(struct txn *t, uint32_t from, uint32_t to, uint32_t page_size, struct err *e);

/* Cut off the pages above n_pages. */
void txn_truncate(struct txn *t, uint32_t n_pages);

/* All pages in ascending order, in an array to be freed by the caller; NULL without memory (or without pages). */
struct txn_page *txn_sorted(const struct txn *t);

/* The frames now belong to somebody else: forget them without freeing. */
void txn_disown(struct txn *t);

#endif
