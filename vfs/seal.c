/* The commit point of a write transaction: from the pages it changed to a version that the cluster has agreed on.
 *
 *   1. Is it a commit at all? A rollback writes the old pages back and comes here too; only a commit has advanced the
 *      change counter in page 1.
 *   2. Seal: each page's difference against the version the transaction began on becomes part of the log entry.
 *   3. Stage: the pages become a speculative version on top of the head. From here on the next writer can begin.
 *   4. Submit, pass the turn on, and wait for the outcome.
 *
 * Pages between the old and the new end of the database that the transaction did not write (SQLite leaves out what it
 * need not write) become zeros here, as on every other member, so that all files are equal byte for byte.
 *
 * An error from here makes SQLite roll back. That is safe at any step: before 3 nobody has seen anything; after 3 the
 * version is void (and gone), or its outcome is unknown and the error says so. */
#include <stdlib.h>
#include <string.h>

#include "vfs/bug.h"
#include "vfs/file.h"
#include "vfs/mark.h"

/* The page as the transaction found it, in buf. */
static int old_page(struct dfile *f, uint32_t pgno, uint8_t *buf)
{
    bool writing = f->writing;
    int rc;

    f->writing = false;
    rc = file_read_page(f, pgno, 0, f->db->page_size, buf);
    f->writing = writing;
    return rc;
}

/* 1. True if page 1 is among the pages written and its change counter is a new one. */
static int is_commit(struct dfile *f, bool *yes)
{
    uint8_t before[HEADER_SIZE], after[HEADER_SIZE];
    uint32_t node = txn_find(&f->txn, 1);
    int rc = SQLITE_OK;

    *yes = false;
    if (node == 0) {
        return SQLITE_OK;
    }
    store_frame_read(f->store, node, 0, after, sizeof after);
    memset(before, 0, sizeof before);
    if (f->snap.n_pages > 0) {
        f->writing = false;
        rc = file_read_page(f, 1, 0, sizeof before, before);
        f->writing = true;
    }
    *yes = rc == SQLITE_OK && header_change_counter(before) != header_change_counter(after);
    return rc;
}

/* 2. */
static int seal_txn(struct dfile *f, const struct vid *parent, uint32_t n_pages, struct txn_page *pages, uint32_t n,
    struct sealed **out, struct err *e)
{
    struct entry_meta meta = {
        .parent = *parent,
        .origin = f->db->origin,
        .origin_seq = atomic_fetch_add(&f->db->origin_seq, 1),
        .page_size = f->db->page_size,
        .n_pages_after = n_pages,
        .sql = f->sql.text,
        .sql_len = f->sql.len,
    };
    struct seal seal;
    uint8_t *old = malloc(f->db->page_size);
    int rv;

    if (old == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = seal_begin(&seal, &meta, ENTRY_PART_MAX, e);
    for (uint32_t i = 0; rv == DUST_OK && i < n; i++) {
        bool kept, is_new = pages[i].pgno > f->snap.n_pages;

        if (!is_new && old_page(f, pages[i].pgno, old) != SQLITE_OK) {
            rv = err_set(e, DUST_IO, "cannot read page %u of the database", pages[i].pgno);
            break;
        }
        rv = seal_page(&seal, pages[i].pgno, store_frame(f->store, pages[i].node), is_new ? NULL : old, &kept, e);
    }
    if (rv == DUST_OK) {
        rv = seal_finish(&seal, out, e);
    } else {
        seal_abort(&seal);
    }
    free(old);
    return rv;
}

/* 2 and, if the member is hosted here, 3: on success *v is staged and held by slot 1. */
static int stage(struct dfile *f, struct commit *commit, struct sealed **sealed, struct version *v, struct err *e)
{
    uint8_t header[HEADER_SIZE];
    struct txn_page *pages = NULL;
    uint32_t *nodes = NULL, n_pages, n;
    struct vid parent;
    int rv;

    store_frame_read(f->store, txn_find(&f->txn, 1), 0, header, sizeof header);
    n_pages = header_n_pages(header);
    if (n_pages == 0 || header_page_size(header) != f->db->page_size) {
        return err_set(e, DUST_MISUSE, "the page size of a cluster cannot be changed: it is %u", f->db->page_size);
    }
    if (!store_id_of(f->store, f->snap.seq, &parent)) {
        return err_set(e, DUST_STALE, "the database has moved on since this transaction read it; roll back and retry");
    }
    txn_truncate(&f->txn, n_pages);
    rv = txn_fill(&f->txn, f->snap.n_pages + 1, n_pages, f->db->page_size, e);
    if (rv != DUST_OK) {
        return rv;
    }
    n = f->txn.n;
    pages = txn_sorted(&f->txn);
    nodes = malloc((n + 1) * sizeof *nodes);
    if (pages == NULL || nodes == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
        goto done;
    }
    for (uint32_t i = 0; i < n; i++) {
        nodes[i] = pages[i].node;
    }
    rv = seal_txn(f, &parent, n_pages, pages, n, sealed, e);
    if (rv != DUST_OK || store_attached(f->store)) {
        goto done;
    }
    rv = store_stage(f->store, &(*sealed)->id, &parent, n_pages, nodes, n, commit, v, e);
    if (rv != DUST_OK) {
        sealed_free(*sealed);
        goto done;
    }
    store_pin_staged(f->store, f->slot[1], &f->next_snap, v);
    store_set_hosts_own(f->store, v->seq);
done:
    free(pages);
    free(nodes);
    return rv;
}

/* 3 and 4, by the process that hosts the member, which passes the turn on. It may be this one by now, and the turn one that
 * was taken here: that is passed on when the transaction has ended. The transaction's pages are this process's memory. */
static int commit_there(struct dfile *f, struct vid *id, uint64_t *after, struct err *e)
{
    struct sealed *sealed;
    int rv = stage(f, NULL, &sealed, NULL, e);

    if (rv == DUST_OK) {
        *id = sealed->id;
        rv = remote_commit(f, sealed, after, e);
    }
    return rv;
}

/* 3 and 4, here. */
static int commit_here(struct dfile *f, struct vid *id, uint64_t *after, struct err *e)
{
    struct commit *commit = commit_new(f->db->rep.room);
    struct sealed *sealed;
    struct version v;
    int rv;

    if (commit == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = stage(f, commit, &sealed, &v, e);
    if (rv != DUST_OK) {
        commit_unref(commit);
        commit_unref(commit);
        return rv;
    }
    *id = v.id;
    *after = v.after;
    f->db->rep.submit(f->db->rep.ctx, sealed, &v, commit);
    file_pass_turn(f);
    rv = BUG(ACK) ? DUST_OK : commit_wait_agreed(commit, f->db->store, f->db->options.timeout_ms, e);
    commit_unref(commit);
    if (rv != DUST_OK) {
        txn_disown(&f->txn); /* the pages are the version's, or gone with it */
        store_unpin(f->store, &f->next_snap);
    }
    return rv;
}

/* The code that SQLite gets, and what dust_outcome will need. */
static int failed(struct dfile *f, int rv, const struct vid *id, uint64_t after, struct err *e)
{
    char hex[VID_HEX_SIZE];

    if (rv == COMMIT_PENDING) {
        err_set(e, DUST_UNKNOWN, "no majority of the cluster answered within %u ms", f->db->options.timeout_ms);
    }
    if (e->code == DUST_UNKNOWN) {
        struct err why = *e;

        f->unknown = *id;
        f->unknown_after = after;
        err_set(e, DUST_UNKNOWN,
            "%.160s; transaction %s may yet take effect: SELECT dust_outcome('%s') tells (on another member: "
            "dust_outcome('%s', %llu))",
            why.text, vid_hex(id, hex), hex, hex, (unsigned long long)after);
    }
    return file_fail(f, e, true);
}

int file_commit(struct dfile *f)
{
    struct vid id = {{0}};
    uint64_t after = 0;
    struct err e;
    bool yes;
    int rv;

    if (f->committed) {
        return SQLITE_OK; /* SQLite rolls back what is agreed on already: see file_unlock */
    }
    rv = is_commit(f, &yes);
    if (rv != SQLITE_OK || !yes) {
        return rv;
    }
    if (!store_attached(f->store)) {
        rv = file_take_slot(f, 1);
        if (rv != SQLITE_OK) {
            return rv;
        }
    }
    rv = store_attached(f->store) ? commit_there(f, &id, &after, &e) : commit_here(f, &id, &after, &e);
    if (rv != DUST_OK) {
        return failed(f, rv, &id, after, &e);
    }
    f->committed = true;
    f->next_id = id;
    f->next_after = after;
    return SQLITE_OK;
}
