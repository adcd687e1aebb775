/* Folding pages into the database file, and undoing a fold that was cut short.
 *
 * The model. A fold is what SQLite's pager does to commit one transaction in rollback-journal mode with
 * synchronous=FULL, done with nothing but the methods of the VFS underneath: first the original content of
 * all that will be overwritten goes to "<path>-journal", then the database is changed in place, then the
 * journal is removed. The removal is the commit. A journal that is found with no connection at work on it is
 * "hot": whoever finds it, be it plain SQLite or checkpoint_recover(), puts the original content back. SQLite
 * does so before it looks at page 1, so the write version 3 of a marked file does not hinder it.
 *
 * The steps of a fold. S, R, X: a SHARED, RESERVED, EXCLUSIVE lock is held.
 *
 *     step                                                    locks   a crash after it leaves
 *      1  settle: play back a hot journal, delete a cold one  S       old
 *      2  look at the file: size, header, page size           S R     old
 *      3  create the journal: a header without magic and      S R     old, and a journal that begins with
 *         count; the original pages, one record each                  a zero byte and so is not hot
 *      4  flush the journal and its directory                 S R     the same
 *      5  magic and count into the header; flush              S R     old, and a hot journal without effect
 *      6  readers out                                         S R X   the same
 *      7  write the pages, set the size                       S R X   a mixture, and a hot journal
 *      8  flush the database                                  S R X   new, and a hot journal
 *      9  delete the journal; flush its directory             S R X   new
 *     10  unlock                                                      new
 *
 * Invariants. No byte of the database changes before the journal and its directory entry are durable, nor
 * without X. The journal has the original of every page of the file that a write touches, of every page that
 * a sector holds which a write touches (where a write may damage its sector), and of every page beyond the
 * new end; `saved` has a bit for each, and a page that is in the file but not in `saved` is never written.
 * The journal is not removed before the database, as it is to be, is flushed. The lock-byte page is neither
 * saved nor written: a record with its number would end SQLite's playback.
 *
 * That the file is still under its name is asked before 1 and before 9.
 *
 * When something fails: before 7, the journal is emptied and removed; should that fail as well, it stays as a
 * hot journal that changes nothing. From 7 to 9, the journal is played back here, under X; should that fail,
 * it stays behind whole, and the next one to open the file plays it back. Then the locks are dropped.
 *
 * The journal (https://www.sqlite.org/fileformat2.html#the_rollback_journal; numbers are big-endian):
 *
 *     offset  size   header, padded with zeros to a sector
 *          0     8   d9 d5 05 f9 20 a1 63 d7; zeros until step 5
 *          8     4   number of records; 0 until step 5
 *         12     4   nonce, random
 *         16     4   size of the database before, in pages
 *         20     4   sector size in bytes
 *         24     4   page size in bytes: that of the file before the fold, else of the supplied pages
 *     sector size    then the records:
 *          0     4   page number
 *          4     P   the page as it was on disk, marks included; past the end of the file, zeros
 *        4+P     4   nonce + the sum of the bytes at P-200, P-400, ... (> 0) of the page
 *
 * Playback reads any journal that SQLite may have left, so it knows several headers, the count ffffffff (as
 * many records as there are) and the name of a super-journal at the end. It stops, as SQLite does, at the
 * first record that is cut off or has a wrong checksum: such a journal was never flushed, so the database was
 * never written. Where it undoes a fold of our own, all records must be there.
 *
 * Memory: one page each of the file and of the source, a sector, and a bit for each page of the file (32 KiB
 * for a GiB of 4 KiB pages). Everything blocks; the thread is the caller's; no state outlives a call. */
#include "vfs/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/mark.h"
#include "vfs/pair.h"

struct folding {
    struct pair p;
    const struct fold_source *src;
    uint32_t old_page_size; /* of the journal: the file's, or the source's if the file is no database */
    uint32_t n_old;         /* pages of old_page_size in the file, a cut-off last one included */
    uint32_t sector;        /* bytes */
    uint32_t group;         /* pages that a write may damage together: sector / old_page_size, at least 1 */
    uint32_t nonce;
    uint32_t n_saved;            /* records in the journal */
    int64_t jrnl_end;            /* bytes in the journal */
    uint8_t *saved;              /* bit pgno - 1: the page is in the journal */
    uint8_t *page1;              /* source page size: page 1 as it will be written */
    uint8_t *scratch;            /* source page size */
    uint8_t header[HEADER_SIZE]; /* of the file before; zeros past its end */
    bool same_versions;          /* bytes 24..39 of the file will be what they were */
    uint64_t order;              /* hash over the page numbers of a pass */
};

static void folding_deinit(struct folding *f)
{
    free(f->saved);
    free(f->page1);
    free(f->scratch);
    pair_deinit(&f->p);
}

static bool is_saved(const struct folding *f, uint32_t pgno)
{
    return f->saved[(pgno - 1) / 8] >> ((pgno - 1) % 8) & 1;
}

/* Step 2: what the file is. RESERVED is held. */
static int survey(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;
    sqlite3_file *db = f->p.db;
    uint32_t unit;
    int64_t size, n;
    bool wal;
    int rv = pair_size(&f->p, &size, e);

    if (rv == DUST_OK && size > 0) {
        rv = pair_read(&f->p, f->header, HEADER_SIZE, 0, e);
    }
    if (rv == DUST_OK) {
        rv = pair_exists(&f->p, f->p.wal_path, &wal, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    if (wal && header_valid(f->header) && f->header[19] == 2) {
        return err_set(e, DUST_MISUSE,
            "%s is in WAL mode: bring it out of it first (PRAGMA journal_mode=DELETE)", f->p.path);
    }
    if (mark_read(f->header, NULL) == MARK_NEWER) {
        return err_set(e, DUST_VERSION, "%s was written by a newer dust", f->p.path);
    }
    unit = size > 0 && header_valid(f->header) ? header_page_size(f->header) : src->page_size;
    n = (size + unit - 1) / unit;
    if (n >= UINT32_MAX) {
        return err_set(e, DUST_TOOBIG, "%s is larger than any database", f->p.path);
    }
    f->old_page_size = unit;
    f->n_old = (uint32_t)n;
    f->saved = calloc(1, (size_t)n / 8 + 1);
    if (f->saved == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory for a checkpoint of %s", f->p.path);
    }
    f->sector = SECTOR_MIN;
    if (!(db->pMethods->xDeviceCharacteristics(db) & SQLITE_IOCAP_POWERSAFE_OVERWRITE)) {
        int sector = db->pMethods->xSectorSize(db);

        f->sector = sector < (int)SECTOR_MIN   ? SECTOR_MIN
                    : sector > (int)SECTOR_MAX ? SECTOR_MAX
                                               : (uint32_t)sector;
        while (!power_of_two(f->sector, SECTOR_MIN, SECTOR_MAX)) {
            f->sector &= f->sector - 1; /* not seen in the wild; SQLite would not read such a journal */
        }
    }
    f->group = f->sector > unit ? f->sector / unit : 1;
    return DUST_OK;
}

/* One page from the source, with its number checked against the one before. *pgno = 0 at the end. */
static int next_page(struct folding *f, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    const struct fold_source *src = f->src;
    uint32_t before = *pgno;
    int rv = src->next(src->ctx, pgno, page, e);

    if (rv != DUST_OK) {
        return rv;
    }
    if (*pgno != 0 && (*pgno <= before || *pgno > src->n_pages_after || *pgno == lock_page(src->page_size) ||
                          *page == NULL)) {
        return err_set(e, DUST_CORRUPT,
            "the pages to be written to %s are out of order: page %u after page %u, of %u", f->p.path, *pgno,
            before, src->n_pages_after);
    }
    f->order = (f->order ^ *pgno) * 1099511628211u; /* FNV-1a, by page number instead of by byte */
    return DUST_OK;
}

/* Make page 1 as it will stand in the file, from the supplied one or, with NULL, the file's own. */
static int make_page1(struct folding *f, const uint8_t *supplied, struct err *e)
{
    const struct fold_source *src = f->src;
    uint8_t *page1 = f->page1;
    int rv;

    if (supplied != NULL) {
        memcpy(page1, supplied, src->page_size);
    } else if (f->n_old == 0 || f->old_page_size != src->page_size) {
        return err_set(e, DUST_MISUSE, "page 1 of %s is missing", f->p.path);
    } else {
        rv = pair_read(&f->p, page1, src->page_size, 0, e);
        if (rv != DUST_OK) {
            return rv;
        }
    }
    if (!header_valid(page1) || header_page_size(page1) != src->page_size || page1[19] > 1) {
        return err_set(e, DUST_CORRUPT,
            "what is to be page 1 of %s is not a database header with page size %u and without WAL",
            f->p.path, src->page_size);
    }
    mark_clear(page1);
    f->same_versions = f->n_old > 0 && memcmp(f->header + 24, page1 + 24, 16) == 0;
    if (src->marked) {
        mark_write(page1, &src->id);
    } else if (f->same_versions) {
        header_advance(page1);
        f->same_versions = false;
    }
    return DUST_OK;
}

/* Would a plain connection see another database after this page is written, the version in page 1 apart? Then
 * bytes 24..39 must change (checkpoint.h). Asked only while they do not. */
static int check_versions(struct folding *f, uint32_t pgno, const uint8_t *page, struct err *e)
{
    const struct fold_source *src = f->src;
    int64_t size;
    int rv;

    if (!f->same_versions || src->repeat_ok) {
        return DUST_OK;
    }
    rv = pair_size(&f->p, &size, e);
    if (rv == DUST_OK) {
        rv = pair_read(&f->p, f->scratch, src->page_size, (int64_t)(pgno - 1) * src->page_size, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    if (pgno == 1) {
        memcpy(f->scratch + 72, page + 72, 20);
    }
    if (size == (int64_t)src->n_pages_after * src->page_size &&
        memcmp(f->scratch, page, src->page_size) == 0) {
        return DUST_OK;
    }
    return err_set(e, DUST_MISUSE,
        "page %u of %s would change but not its change counter (%u): other programs could not notice", pgno,
        f->p.path, header_change_counter(f->page1));
}

/* Put the original of old pages first..last, and of those that share a sector with them, into the journal. */
static int save(struct folding *f, uint64_t first, uint64_t last, struct err *e)
{
    uint32_t n = f->old_page_size;
    uint8_t *record = f->p.buf;
    int rv;

    first = (first - 1) / f->group * f->group + 1;
    last = ((last - 1) / f->group + 1) * f->group;
    for (uint64_t i = first; i <= last && i <= f->n_old; i++) {
        uint32_t pgno = (uint32_t)i;

        if (pgno == lock_page(n) || is_saved(f, pgno)) {
            continue;
        }
        put_be32(record, pgno);
        rv = pair_read(&f->p, record + 4, n, (int64_t)(pgno - 1) * n, e);
        if (rv != DUST_OK) {
            return rv;
        }
        put_be32(record + 4 + n, journal_checksum(f->nonce, record + 4, n));
        rv = journal_write(&f->p, record, n + RECORD_EXTRA, f->jrnl_end, e);
        if (rv != DUST_OK) {
            return rv;
        }
        f->jrnl_end += n + RECORD_EXTRA;
        f->n_saved++;
        f->saved[(pgno - 1) / 8] |= (uint8_t)(1u << (pgno - 1) % 8);
    }
    return DUST_OK;
}

/* The old pages that page pgno of the source lies on. */
static void span(const struct folding *f, uint32_t pgno, uint64_t *first, uint64_t *last)
{
    uint64_t n = f->src->page_size;

    *first = (uint64_t)(pgno - 1) * n / f->old_page_size + 1;
    *last = ((uint64_t)pgno * n - 1) / f->old_page_size + 1;
}

static int save_for(struct folding *f, uint32_t pgno, const uint8_t *page, struct err *e)
{
    uint64_t first, last;
    int rv = check_versions(f, pgno, page, e);

    span(f, pgno, &first, &last);
    return rv == DUST_OK ? save(f, first, last, e) : rv;
}

/* Step 3: create the journal and save all originals: the first pass over the source. */
static int journal_fill(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;
    const uint8_t *page = NULL;
    uint32_t pgno = 0;
    uint64_t kept = (uint64_t)src->n_pages_after * src->page_size / f->old_page_size;
    uint8_t *sector;
    int rc, rv;

    rv = pair_open(&f->p, f->p.jrnl, f->p.jrnl_path,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_MAIN_JOURNAL, "create", e);
    if (rv != DUST_OK) {
        return rv;
    }
    rc = f->p.base->xRandomness(f->p.base, (int)sizeof f->nonce, (char *)&f->nonce);
    sector = calloc(1, f->sector);
    if (sector == NULL || rc < 0) {
        free(sector);
        return err_set(e, DUST_NOMEM, "out of memory for a checkpoint of %s", f->p.path);
    }
    put_be32(sector + 12, f->nonce);
    put_be32(sector + 16, f->n_old);
    put_be32(sector + 20, f->sector);
    put_be32(sector + 24, f->old_page_size);
    rv = journal_write(&f->p, sector, f->sector, 0, e);
    free(sector);
    f->jrnl_end = f->sector;

    if (rv == DUST_OK) {
        rv = next_page(f, &pgno, &page, e);
    }
    if (rv == DUST_OK) {
        rv = make_page1(f, pgno == 1 ? page : NULL, e);
    }
    if (rv == DUST_OK) {
        rv = save_for(f, 1, f->page1, e);
    }
    if (rv == DUST_OK && pgno == 1) {
        rv = next_page(f, &pgno, &page, e);
    }
    while (rv == DUST_OK && pgno != 0) {
        rv = save_for(f, pgno, page, e);
        if (rv == DUST_OK) {
            rv = next_page(f, &pgno, &page, e);
        }
    }
    if (rv == DUST_OK && f->n_old > kept) {
        rv = save(f, kept + 1, f->n_old, e);
    }
    return rv;
}

/* Steps 4 and 5: from here on the journal is hot for everyone who does not see our lock. */
static int journal_finish(struct folding *f, struct err *e)
{
    uint8_t head[sizeof journal_magic + 4];
    int rv = journal_sync(&f->p, e);

    memcpy(head, journal_magic, sizeof journal_magic);
    put_be32(head + sizeof journal_magic, f->n_saved);
    if (rv == DUST_OK) {
        rv = journal_write(&f->p, head, sizeof head, 0, e);
    }
    return rv == DUST_OK ? journal_sync(&f->p, e) : rv;
}

/* Give the journal up before anything was written. Whatever fails here does no harm (see the top). */
static void journal_drop(struct folding *f)
{
    if (f->p.jrnl->pMethods != NULL) {
        f->p.jrnl->pMethods->xTruncate(f->p.jrnl, 0);
        journal_delete(&f->p, NULL);
    }
}

/* Step 6. */
static int lock_out_readers(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;

    for (int tries = 1;; tries++) {
        struct err reason = {.code = DUST_OK};
        int rv = pair_lock(&f->p, SQLITE_LOCK_EXCLUSIVE, &reason);

        if (rv == DUST_OK) {
            return DUST_OK;
        }
        if (rv != DUST_BUSY || src->busy == NULL || !src->busy(src->ctx, tries)) {
            return err_set(e, rv, "%s", reason.text);
        }
    }
}

static int write_page(struct folding *f, uint32_t pgno, const uint8_t *page, struct err *e)
{
    uint64_t first, last;

    span(f, pgno, &first, &last);
    for (uint64_t i = first; i <= last && i <= f->n_old; i++) {
        if (i != lock_page(f->old_page_size) && !is_saved(f, (uint32_t)i)) {
            return err_set(
                e, DUST_CORRUPT, "page %u of %s was not among the pages at first", pgno, f->p.path);
        }
    }
    return pair_write(&f->p, page, f->src->page_size, (int64_t)(pgno - 1) * f->src->page_size, e);
}

/* Steps 7 and 8: the second pass. */
static int write_all(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;
    const uint8_t *page = NULL;
    uint32_t pgno = 0;
    uint64_t order = f->order;
    int rv = src->rewind(src->ctx, e);

    f->order = 0;
    if (rv == DUST_OK) {
        rv = write_page(f, 1, f->page1, e);
    }
    while (rv == DUST_OK) {
        rv = next_page(f, &pgno, &page, e);
        if (rv != DUST_OK || pgno == 0) {
            break;
        }
        if (pgno != 1) {
            rv = write_page(f, pgno, page, e);
        }
    }
    if (rv == DUST_OK && f->order != order) {
        rv = err_set(e, DUST_CORRUPT, "the pages to be written to %s changed meanwhile", f->p.path);
    }
    if (rv == DUST_OK) {
        rv = pair_resize(&f->p, src->n_pages_after, src->page_size, f->scratch, e);
    }
    return rv == DUST_OK ? pair_sync(&f->p, e) : rv;
}

/* Something failed while the database was being written: put it back. e, if not NULL, has the reason already;
 * a second failure is added to it, and the journal stays for the next one to open the file. */
static void undo(struct folding *f, struct err *e)
{
    struct err second = {.code = DUST_OK};
    uint32_t n_played = 0;
    int rv = DUST_OK;

    if (f->p.jrnl->pMethods == NULL) {
        rv = pair_open(&f->p, f->p.jrnl, f->p.jrnl_path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_JOURNAL,
            "open the journal", &second);
    }
    if (rv == DUST_OK) {
        rv = journal_play(&f->p, &n_played, &second);
    }
    if (rv == DUST_OK && n_played != f->n_saved) {
        rv = err_set(
            &second, DUST_CORRUPT, "only %u of %u pages are in %s", n_played, f->n_saved, f->p.jrnl_path);
    }
    if (rv == DUST_OK) {
        rv = journal_delete(&f->p, &second);
    }
    if (rv != DUST_OK) {
        err_add(e, "; it is undone when %s is next opened: %s", f->p.path, second.text);
    }
}

/* A journal goes by the name of the database: beside another file it would be taken for that one's. */
static int in_place(const struct folding *f, struct err *e)
{
    return f->src->in_place != NULL ? f->src->in_place(f->src->ctx, e) : DUST_OK;
}

/* Steps 6 to 9, with the journal finished. */
static int change(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;
    struct err unread;
    bool exists;
    int rv = lock_out_readers(f, e);

    if (rv != DUST_OK) {
        journal_drop(f);
        return rv;
    }
    if (src->before_write != NULL) {
        src->before_write(src->ctx);
    }
    rv = write_all(f, e);
    if (rv == DUST_OK) {
        rv = in_place(f, e);
    }
    if (rv != DUST_OK) {
        undo(f, e);
        return rv;
    }
    rv = journal_delete(&f->p, e);
    if (rv != DUST_OK && pair_exists(&f->p, f->p.jrnl_path, &exists, &unread) == DUST_OK && exists) {
        undo(f, e);
    }
    return rv;
}

int checkpoint_fold(
    sqlite3_vfs *base, sqlite3_file *db, const char *path, const struct fold_source *src, struct err *e)
{
    struct folding f = {.src = src};
    bool exists;
    int rv, rv2;

    if (src->n_pages_after == 0 || !power_of_two(src->page_size, SECTOR_MIN, PAGE_SIZE_MAX)) {
        return err_set(e, DUST_MISUSE, "%s cannot be folded to %u pages of %u bytes", path,
            src->n_pages_after, src->page_size);
    }
    rv = pair_init(&f.p, base, db, path, e);
    if (rv != DUST_OK) {
        goto out;
    }
    f.page1 = malloc(src->page_size);
    f.scratch = malloc(src->page_size);
    if (f.page1 == NULL || f.scratch == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory for a checkpoint of %s", path);
        goto out;
    }
    rv = in_place(&f, e);
    if (rv == DUST_OK) {
        rv = pair_lock(&f.p, SQLITE_LOCK_SHARED, e);
    }
    if (rv == DUST_OK) {
        rv = pair_settle(&f.p, e);
    }
    if (rv == DUST_OK) {
        rv = pair_lock(&f.p, SQLITE_LOCK_RESERVED, e);
    }
    if (rv == DUST_OK) {
        rv = pair_exists(&f.p, f.p.jrnl_path, &exists, e);
    }
    if (rv == DUST_OK && exists) {
        rv = err_set(e, DUST_BUSY, "another connection has just been writing %s", path);
    }
    if (rv == DUST_OK) {
        rv = survey(&f, e);
    }
    if (rv == DUST_OK) {
        rv = journal_fill(&f, e);
        if (rv == DUST_OK) {
            rv = journal_finish(&f, e);
        }
        if (rv == DUST_OK) {
            rv = change(&f, e);
        } else {
            journal_drop(&f);
        }
    }
    pair_close_file(f.p.jrnl);
    rv2 = pair_unlock(&f.p, SQLITE_LOCK_NONE, rv == DUST_OK ? e : NULL);
    rv = rv != DUST_OK ? rv : rv2;
out:
    folding_deinit(&f);
    return rv;
}

int checkpoint_recover(sqlite3_vfs *base, const char *path, struct err *e)
{
    struct err reason = {.code = DUST_OK};
    struct pair p;
    sqlite3_file *db = NULL;
    bool exists;
    int rv = pair_init(&p, base, NULL, path, e);

    if (rv != DUST_OK) {
        goto out;
    }
    rv = pair_exists(&p, p.jrnl_path, &exists, e);
    if (rv != DUST_OK || !exists) {
        goto out;
    }
    db = calloc(1, (size_t)base->szOsFile);
    if (db == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory for the recovery of %s", path);
        goto out;
    }
    p.db = db;
    rv = pair_open(&p, db, p.path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_DB, "open", &reason);
    if (rv != DUST_OK) {
        if (pair_exists(&p, p.path, &exists, NULL) == DUST_OK && !exists) {
            rv = DUST_OK; /* asked only now, for to the unix VFS an empty file does not exist */
        } else {
            err_set(e, rv, "%s", reason.text);
        }
        goto out;
    }
    rv = pair_lock(&p, SQLITE_LOCK_SHARED, e);
    if (rv == DUST_OK) {
        rv = pair_settle(&p, e);
    }
    pair_close_file(p.jrnl);
    pair_unlock(&p, SQLITE_LOCK_NONE, NULL); /* if that fails, closing does it */
out:
    pair_close_file(db);
    free(db);
    pair_deinit(&p);
    return rv;
}
