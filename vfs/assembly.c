#include "vfs/assembly.h"

#include <stdlib.h>
#include <string.h>

int assembly_begin(struct assembly *a, struct database *db, const struct snap *snap, const struct entry *part0,
    struct err *e)
{
    int rv = entry_check_begin(&a->check, part0, e);

    if (rv == DUST_OK) {
        a->db = db;
        a->snap = *snap;
        a->n_pages = part0->n_pages_after;
        a->begun = true;
        txn_begin(&a->txn, db->store, snap->n_pages);
    }
    return rv;
}

static int old_page(struct assembly *a, uint32_t pgno, uint8_t *page, struct err *e)
{
    struct database *db = a->db;
    int rv;

    if (pgno > a->snap.n_pages) {
        memset(page, 0, db->page_size);
        return DUST_OK;
    }
    rv = store_read(db->store, &a->snap, pgno, 0, db->page_size, page, database_read_base, db);
    if (rv == DUST_CORRUPT || rv == -SQLITE_CORRUPT) {
        database_found_damage(db, pgno, rv == DUST_CORRUPT ? "pages" : "app.db");
        return err_set(e, DUST_AGAIN, "page %u of the database is damaged", pgno);
    }
    if (rv == DUST_VOID) { /* the version was speculative, and another one took its place meanwhile */
        return err_set(e, rv, "another transaction took its place in the log; roll back and retry");
    }
    return rv == DUST_OK ? rv : err_set(e, DUST_IO, "cannot read page %u of the database", pgno);
}

int assembly_add(struct assembly *a, const struct entry *part, struct err *e)
{
    uint32_t size = a->db->page_size;
    uint8_t page[65536];
    struct entry_record r;
    int rv = entry_check_add(&a->check, part, e);

    for (bool more = rv == DUST_OK && entry_first(part, &r); more && rv == DUST_OK; more = entry_next(part, &r)) {
        uint32_t node;
        bool fresh;

        rv = old_page(a, r.pgno, page, e);
        if (rv != DUST_OK) {
            return rv;
        }
        rv = entry_record_apply(&r, size, page);
        if (rv != DUST_OK) {
            return err_set(e, rv, "the difference for page %u does not fit", r.pgno);
        }
        rv = txn_frame(&a->txn, r.pgno, &node, &fresh, e);
        if (rv == DUST_OK) {
            store_frame_write(a->db->store, node, 0, page, size);
        }
    }
    return rv;
}

int assembly_end(struct assembly *a, uint32_t **nodes, uint32_t *n, struct err *e)
{
    struct txn_page *pages;
    int rv = entry_check_end(&a->check, e);

    if (rv == DUST_OK) {
        rv = txn_fill(&a->txn, a->snap.n_pages + 1, a->n_pages, a->db->page_size, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    *n = a->txn.n;
    pages = txn_sorted(&a->txn);
    *nodes = malloc((*n + 1) * sizeof **nodes);
    if (pages == NULL || *nodes == NULL) {
        free(*nodes);
        *nodes = NULL;
        rv = err_set(e, DUST_NOMEM, "out of memory");
    }
    for (uint32_t i = 0; rv == DUST_OK && i < *n; i++) {
        (*nodes)[i] = pages[i].node;
    }
    free(pages);
    return rv;
}

void assembly_taken(struct assembly *a)
{
    txn_disown(&a->txn);
}

void assembly_drop(struct assembly *a)
{
    if (a->begun) {
        txn_reset(&a->txn);
        entry_check_drop(&a->check);
        if (a->snap.seq != 0) {
            store_unpin(a->db->store, &a->snap);
        }
        a->begun = false;
    }
}
