/* The methods of a member's main database file.
 *
 * The pager's cache. SQLite keeps its cached pages from one transaction to the next if the 16 bytes at offset 24 are
 * as it last saw them. Change counters repeat after a void transaction, so what decides here is the version: if the
 * snapshot is at the version that the cache is of, the true bytes are returned, else bytes that differ from those the
 * pager last saw. */
#include "vfs/file.h"

#include <sqlite3ext.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vfs/bug.h"
#include "vfs/mark.h"

#define PEEK_TRIES 5 /* at a page whose sum seems to be wrong, while another process may be changing both */

/* ---- reading ---- */

static int read_unchecked(void *ctx, void *buf, uint32_t n, uint64_t offset)
{
    struct dfile *f = ctx;
    int rc = f->real_methods->xRead(f->real, buf, (int)n, (sqlite3_int64)offset);

    if (rc == SQLITE_IOERR_SHORT_READ) {
        rc = SQLITE_OK; /* the rest has been zeroed */
    } else if (rc != SQLITE_OK) {
        rc = SQLITE_IOERR_READ; /* for some of its extended codes SQLite says "malformed", and nobody has seen the page */
    }
    if (rc == SQLITE_OK && offset < HEADER_SIZE) {
        mark_hide(buf, (size_t)offset, n);
    }
    return rc;
}

/* A page, as of the version that app.db is at; store_read sees to it that nothing changed meanwhile. */
static int peek_at(struct dfile *f, uint32_t pgno, const uint8_t *page)
{
    struct head_info base;
    uint64_t sum;

    store_base(f->store, &base);
    return !sums_peek(&f->peek, f->db->dir, &base.id, pgno, &sum) || sum == 0 || sum == page_sum(page, f->db->page_size)
               ? SQLITE_OK
               : SQLITE_CORRUPT;
}

/* Hosted elsewhere. What is found to be wrong may be so because the host is just writing page or sum. */
static int read_attached(struct dfile *f, void *buf, uint32_t n, uint64_t offset)
{
    const struct timespec ms2 = {.tv_nsec = 2000000};
    uint32_t size = f->db->page_size, within = (uint32_t)(offset % size);
    uint8_t page[65536];
    int rc = SQLITE_OK;

    for (int i = 0; i < PEEK_TRIES; i++) {
        rc = read_unchecked(f, page, size, offset - within);
        if (rc != SQLITE_OK) {
            return rc;
        }
        rc = peek_at(f, (uint32_t)(offset / size) + 1, page);
        if (rc == SQLITE_OK) {
            memcpy(buf, page + within, n);
            break;
        }
        nanosleep(&ms2, NULL);
    }
    return rc;
}

static int read_base(void *ctx, void *buf, uint32_t n, uint64_t offset)
{
    struct dfile *f = ctx;
    int rc;

    if (store_attached(f->store)) {
        return read_attached(f, buf, n, offset);
    }
    rc = read_unchecked(f, buf, n, offset);
    return rc == SQLITE_OK ? database_check(f->db, read_unchecked, f, buf, n, offset) : rc;
}

static void found_damage(struct dfile *f, uint32_t pgno, bool in_pages)
{
    if (store_attached(f->store)) {
        remote_damage(f, pgno, in_pages);
    } else {
        database_found_damage(f->db, pgno, in_pages ? "pages" : "app.db");
    }
}

int file_read_page(struct dfile *f, uint32_t pgno, uint32_t offset, uint32_t n, void *buf)
{
    uint32_t node = f->writing && !f->committed ? txn_find(&f->txn, pgno) : 0;
    int rv;

    if (node != 0) {
        store_frame_read(f->store, node, offset, buf, n);
        return SQLITE_OK;
    }
    if (f->displaced) {
        return file_refuse(f, DUST_VOID,
            "the process that hosted this member ended while the last transaction was committed; it has taken effect, and "
            "others after it: run the statement again");
    }
    rv = store_read(f->store, &f->snap, pgno, offset, n, buf, read_base, f);
    if (rv == DUST_VOID) {
        return file_refuse(
            f, DUST_VOID, "the transaction that this one was built on did not take effect; roll back and retry");
    }
    if (rv == DUST_CLOSED) {
        return file_refuse(f, DUST_VOID,
            "the process that hosted this member has ended, and what this transaction reads is gone with it; roll back and "
            "retry");
    }
    if (rv == DUST_CORRUPT || rv == -SQLITE_CORRUPT) {
        found_damage(f, pgno, rv == DUST_CORRUPT);
    }
    return rv < 0 ? -rv : sqlite_code(rv);
}

int file_take_slot(struct dfile *f, int i)
{
    struct err e;

    if (!f->has_slot[i]) {
        int rv = store_slot_take(f->store, &f->slot[i], &e);

        if (rv != DUST_OK) {
            return file_fail(f, &e, false);
        }
        f->has_slot[i] = true;
    }
    return SQLITE_OK;
}

/* SQLite looks at the header before it takes its first lock. */
static int pin_for_peek(struct dfile *f, bool *pinned)
{
    int rc;

    *pinned = false;
    if (f->snap.seq != 0) {
        return SQLITE_OK;
    }
    rc = file_pin(f);
    *pinned = rc == SQLITE_OK;
    return rc;
}

static void unpin_after_peek(struct dfile *f, bool pinned)
{
    if (pinned) {
        store_unpin(f->store, &f->snap);
    }
}

static uint32_t n_pages_of(const struct dfile *f)
{
    return f->writing ? f->txn.n_pages : f->snap.n_pages;
}

static void pager_saw(struct dfile *f, uint32_t pgno, uint32_t offset, uint32_t n, const uint8_t *buf)
{
    if (pgno == 1 && offset <= 24 && offset + n >= 40 && n > 16) {
        memcpy(f->pager_bytes, buf + 24 - offset, 16);
        f->pager_known = true;
    }
}

/* The 16 bytes by which the pager decides whether its cache is still good. What it saw last is known here, so nothing
 * has to be read. */
static void answer_pager(struct dfile *f, uint8_t *buf)
{
    if (f->pager_known) {
        memcpy(buf, f->pager_bytes, 16);
        buf[15] ^= f->pager_seq != f->snap.seq;
    } else {
        memset(buf, 0xa5, 16); /* a connection just adopted: no database's header looks like this */
    }
    f->pager_seq = f->snap.seq;
}

static int f_read(sqlite3_file *file, void *out, int n, sqlite3_int64 offset)
{
    struct dfile *f = file_of(file);
    uint32_t size = f->db->page_size;
    uint8_t *buf = out;
    uint64_t end;
    bool pinned;
    int rc, left = n;

    if (offset == 24 && n == 16 && f->snap.seq != 0 && !f->writing) {
        answer_pager(f, out);
        return SQLITE_OK;
    }

    rc = pin_for_peek(f, &pinned);
    if (rc != SQLITE_OK) {
        return rc;
    }
    end = (uint64_t)n_pages_of(f) * size;
    while (rc == SQLITE_OK && left > 0) {
        uint32_t within = (uint32_t)((uint64_t)offset % size);
        uint32_t part = size - within < (uint32_t)left ? size - within : (uint32_t)left;
        uint32_t pgno = (uint32_t)((uint64_t)offset / size) + 1;

        if ((uint64_t)offset >= end) {
            memset(buf, 0, (size_t)left);
            rc = SQLITE_IOERR_SHORT_READ;
            break;
        }
        rc = file_read_page(f, pgno, within, part, buf);
        if (rc == SQLITE_OK && pgno == 1 && !pinned) {
            pager_saw(f, pgno, within, part, buf);
        }
        offset += part;
        buf += part;
        left -= (int)part;
    }
    unpin_after_peek(f, pinned);
    return rc;
}

static int f_file_size(sqlite3_file *file, sqlite3_int64 *out)
{
    struct dfile *f = file_of(file);
    bool pinned;
    int rc = pin_for_peek(f, &pinned);

    if (rc == SQLITE_OK) {
        *out = (sqlite3_int64)n_pages_of(f) * f->db->page_size;
        unpin_after_peek(f, pinned);
    }
    return rc;
}

/* ---- writing ---- */

/* A restore from a database in WAL mode brings its read and write versions (bytes 18 and 19) along, and so does a change to
 * that mode. The page is another one then than the pager has. */
static void plain_header(struct dfile *f, uint32_t node)
{
    static const uint8_t plain[2] = {1, 1};
    uint8_t given[2];

    store_frame_read(f->store, node, 18, given, 2);
    if (memcmp(given, plain, 2) != 0) {
        store_frame_write(f->store, node, 18, plain, 2);
        f->pager_differs = true;
    }
}

/* SQLite goes on without a lock where it means to keep the one it had: in locking_mode=EXCLUSIVE. An error of this kind
 * makes it drop its cache, and what it meant to write. */
static int without_lock(struct dfile *f)
{
    file_refuse(f, DUST_MISUSE,
        "a write without the write lock: a member's database cannot be kept locked; PRAGMA locking_mode=NORMAL for it");
    return SQLITE_IOERR_LOCK;
}

static int f_write(sqlite3_file *file, const void *in, int n, sqlite3_int64 offset)
{
    struct dfile *f = file_of(file);
    uint32_t size = f->db->page_size;
    const uint8_t *buf = in;

    if (!f->writing) {
        return without_lock(f);
    }
    if (f->committed) { /* the old pages, in vain: see file_unlock */
        pager_saw(f, (uint32_t)((uint64_t)offset / size) + 1, (uint32_t)((uint64_t)offset % size), (uint32_t)n, buf);
        return SQLITE_OK;
    }
    while (n > 0) {
        uint32_t pgno = (uint32_t)((uint64_t)offset / size) + 1, within = (uint32_t)((uint64_t)offset % size);
        uint32_t part = size - within < (uint32_t)n ? size - within : (uint32_t)n, node;
        struct err e;
        bool fresh;
        int rv = txn_frame(&f->txn, pgno, &node, &fresh, &e);

        if (rv != DUST_OK) {
            return file_fail(f, &e, false);
        }
        if (fresh && part < size) {
            uint8_t whole[65536];

            memset(whole, 0, size);
            if (pgno <= f->snap.n_pages) {
                int rc = store_read(f->store, &f->snap, pgno, 0, size, whole, read_base, f);

                if (rc != DUST_OK) {
                    return rc < 0 ? -rc : sqlite_code(rc);
                }
            }
            store_frame_write(f->store, node, 0, whole, size);
        }
        store_frame_write(f->store, node, within, buf, part);
        if (pgno == 1) {
            plain_header(f, node);
        }
        pager_saw(f, pgno, within, part, buf);
        if (pgno > f->txn.n_pages) {
            f->txn.n_pages = pgno;
        }
        offset += part;
        buf += part;
        n -= (int)part;
    }
    return SQLITE_OK;
}

static int f_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    struct dfile *f = file_of(file);

    if (!f->writing) {
        return without_lock(f);
    }
    if (!f->committed) { /* after the commit point the new size is part of the version already */
        txn_truncate(&f->txn, (uint32_t)((size + f->db->page_size - 1) / f->db->page_size));
    }
    return SQLITE_OK;
}

static int f_sync(sqlite3_file *file, int flags)
{
    (void)file;
    (void)flags;
    return SQLITE_OK; /* FCNTL_SYNC has done it: durability does not hang on PRAGMA synchronous */
}

/* ---- locks, control ---- */

static int f_lock(sqlite3_file *file, int level)
{
    return file_lock(file_of(file), level);
}

static int f_unlock(sqlite3_file *file, int level)
{
    file_unlock(file_of(file), level);
    return SQLITE_OK;
}

static int f_check_reserved(sqlite3_file *file, int *out)
{
    (void)file;
    *out = 1; /* a journal beside the file is a checkpoint's: never hot for dust */
    return SQLITE_OK;
}

static int agreed_too(struct dfile *f)
{
    int rv;

    if (!f->writing || f->committed || BUG(ROW)) {
        return SQLITE_OK;
    }
    /* Nothing was changed. What the program saw meanwhile has to be true all the same. */
    rv = file_wait_agreed(f, f->snap.seq, &f->snap_id);
    if (rv == DUST_VOID || (rv == DUST_OK && store_snap_void(f->store, &f->snap))) {
        return SQLITE_BUSY_SNAPSHOT;
    }
    return rv == DUST_OK ? SQLITE_OK : SQLITE_IOERR_COMMIT_ATOMIC;
}

/* SQLite lowers the lock next, unless it means to keep it. The transaction is over all the same. */
static int commit_phase_two(struct dfile *f)
{
    int rc = agreed_too(f);

    f->accepted = f->committed;
    file_unlock(f, SQLITE_LOCK_SHARED);
    return rc;
}

static int f_control(sqlite3_file *file, int op, void *arg)
{
    struct dfile *f = file_of(file);

    switch (op) {
    case SQLITE_FCNTL_SYNC:
        return file_commit(f);
    case SQLITE_FCNTL_COMMIT_PHASETWO:
        return commit_phase_two(f);
    case SQLITE_FCNTL_PRAGMA:
        return file_pragma(f, arg);
    case SQLITE_FCNTL_PDB:
        file_connection(f, *(sqlite3 **)arg);
        return SQLITE_OK;
    case SQLITE_FCNTL_VFSNAME:
        *(char **)arg = f->lib->api->mprintf("dust/%s", f->lib->base->zName);
        return *(char **)arg != NULL ? SQLITE_OK : SQLITE_NOMEM;
    case SQLITE_FCNTL_HAS_MOVED:
        *(int *)arg = 0;
        return SQLITE_OK;
    case SQLITE_FCNTL_SIZE_HINT:
    case SQLITE_FCNTL_CHUNK_SIZE:
    case SQLITE_FCNTL_BUSYHANDLER:
    case SQLITE_FCNTL_OVERWRITE:
        return SQLITE_OK;
    default:
        return SQLITE_NOTFOUND;
    }
}

static int f_sector_size(sqlite3_file *file)
{
    (void)file;
    return 512;
}

static int f_characteristics(sqlite3_file *file)
{
    (void)file;
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_SEQUENTIAL;
}

static int f_fetch(sqlite3_file *file, sqlite3_int64 offset, int n, void **page)
{
    (void)file;
    (void)offset;
    (void)n;
    *page = NULL;
    return SQLITE_OK;
}

static int f_unfetch(sqlite3_file *file, sqlite3_int64 offset, void *page)
{
    struct dfile *f = file_of(file);

    return f->real_methods->iVersion >= 3 && page != NULL ? f->real_methods->xUnfetch(f->real, offset, page)
                                                          : SQLITE_OK;
}

/* ---- life ---- */

/* Let go of everything but the file underneath. */
static void release(sqlite3_file *file, struct dfile *f)
{
    f->lib->host->closing(f->lib, f);
    if (f->forked) { /* what it holds is the parent's */
        file->pMethods = f->adopted ? f->real_methods : NULL;
        sqltext_deinit(&f->sql);
        return;
    }
    file_unlock(f, SQLITE_LOCK_NONE);
    turn_drop(&f->db->turn, &f->ticket);
    remote_close(f);
    txn_deinit(&f->txn);
    sums_peek_free(f->peek);
    file_unbind(f);
    ticket_deinit(&f->ticket);
    sqltext_deinit(&f->sql);
    file->pMethods = f->adopted ? f->real_methods : NULL;
    atomic_fetch_sub(&f->db->n_files, 1);
    f->lib->host->close(f->db);
}

static int f_close(sqlite3_file *file)
{
    struct dfile *f = file_of(file);
    int rc = SQLITE_OK;

    release(file, f);
    if (f->real->pMethods != NULL) {
        rc = f->real_methods->xClose(f->real);
    }
    free(f);
    return rc;
}

void file_own_methods(struct dfile *f)
{
    f->methods.m = (sqlite3_io_methods){
        .iVersion = 1,
        .xClose = f_close,
        .xRead = f_read,
        .xWrite = f_write,
        .xTruncate = f_truncate,
        .xSync = f_sync,
        .xFileSize = f_file_size,
        .xLock = f_lock,
        .xUnlock = f_unlock,
        .xCheckReservedLock = f_check_reserved,
        .xFileControl = f_control,
        .xSectorSize = f_sector_size,
        .xDeviceCharacteristics = f_characteristics,
        .xFetch = f_fetch, /* an adopted connection may call these two, whatever iVersion says */
        .xUnfetch = f_unfetch,
    };
}

static struct dfile *dfile_new(struct sqlite_lib *lib, struct database *db)
{
    struct dfile *f = calloc(1, sizeof *f);

    if (f == NULL) {
        return NULL;
    }
    f->lib = lib;
    f->db = db;
    f->methods.file = f;
    file_own_methods(f);
    f->remote.link.fd = -1;
    f->consistency = (int)db->options.consistency;
    f->freshness_ms = FRESHNESS_DEFAULT_MS;
    ticket_init(&f->ticket);
    atomic_fetch_add(&db->n_files, 1);
    return f;
}

struct dfile *file_of(sqlite3_file *f)
{
    return f != NULL && f->pMethods != NULL && f->pMethods->xClose == f_close
               ? ((const struct dfile_methods *)(const void *)f->pMethods)->file
               : NULL;
}

int file_open(struct sqlite_lib *lib, struct database *db, int consistency, const char *name, sqlite3_file *memory,
    int flags, int *out_flags)
{
    struct dfile *f = dfile_new(lib, db);
    int rc;

    if (f == NULL) {
        return SQLITE_NOMEM;
    }
    f->real = (sqlite3_file *)((char *)memory + FILE_OWN_SIZE);
    memset(f->real, 0, (size_t)lib->base->szOsFile);
    /* A file that cannot be opened for writing just now is opened for reading only. That is enough here: it is the member
     * that writes to it, and that has made it. */
    rc = lib->base->xOpen(lib->base, name, f->real, flags & ~SQLITE_OPEN_CREATE, NULL);
    if (rc != SQLITE_OK) {
        if (f->real->pMethods != NULL) {
            f->real->pMethods->xClose(f->real);
        }
        ticket_deinit(&f->ticket);
        atomic_fetch_sub(&db->n_files, 1);
        free(f);
        return rc;
    }
    f->real_methods = f->real->pMethods;
    f->pager_known = true; /* a new pager: its cache is empty */
    if (consistency >= 0) {
        f->consistency = consistency;
    }
    if (out_flags != NULL) {
        *out_flags = flags;
    }
    memory->pMethods = &f->methods.m;
    return SQLITE_OK;
}

int file_adopt(struct sqlite_lib *lib, struct database *db, sqlite3_file *real, sqlite3 *conn, struct err *e)
{
    struct dfile *f = dfile_new(lib, db);

    if (f == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    f->adopted = true;
    f->adopting = true;
    f->real = real;
    f->real_methods = real->pMethods;
    f->conn = conn;
    real->pMethods = &f->methods.m;
    lib->host->connected(lib, f, conn);
    return DUST_OK;
}

void file_adopted(sqlite3_file *file, bool ok)
{
    struct dfile *f = file_of(file);

    f->adopting = false;
    if (!ok) {
        release(file, f);
        free(f);
    }
}
