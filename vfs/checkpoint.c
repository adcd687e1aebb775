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

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/mark.h"

#define LOCK_BYTE 0x40000000 /* offset of SQLite's lock bytes; the page that has them is never used */
#define PAGE_SIZE_MAX 65536u
#define SECTOR_MIN 512u
#define SECTOR_MAX 65536u
#define SECTOR_OLDEST 32u /* the least sector size that SQLite takes from a journal */
#define RECORD_EXTRA 8u   /* bytes of a record beside the page */
#define JOURNAL_FIELDS 28 /* bytes of a journal header before the padding */
#define COUNT_BY_SIZE 0xffffffffu
#define UNLOCK_TRIES 3

static const uint8_t journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

/* ---- the file, its journal and their names ---- */

/* A database file and its journal, through one VFS. */
struct pair {
    sqlite3_vfs *base;
    sqlite3_file *db;   /* the caller's, or opened by checkpoint_recover() */
    sqlite3_file *jrnl; /* base->szOsFile bytes of ours; open if pMethods is not NULL */
    char *names;        /* the memory behind the next three */
    const char *path, *jrnl_path, *wal_path;
    uint8_t *buf; /* a record of the largest page */
};

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void put32(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 24);
    p[1] = (uint8_t)(v >> 16);
    p[2] = (uint8_t)(v >> 8);
    p[3] = (uint8_t)v;
}

static bool power_of_two(uint32_t v, uint32_t min, uint32_t max)
{
    return v >= min && v <= max && (v & (v - 1)) == 0;
}

static uint32_t lock_page(uint32_t page_size)
{
    return LOCK_BYTE / page_size + 1;
}

/* Turn a result of the VFS into a code of ours, with the VFS's own words or errno where it has them. Call it
 * at once after the failure. */
static int vfs_err(const struct pair *p, int rc, struct err *e, const char *what, const char *path)
{
    char text[160] = "";
    int errnum = 0;
    int code;

    if (p->base->xGetLastError != NULL) {
        errnum = p->base->xGetLastError(p->base, (int)sizeof text, text);
        text[sizeof text - 1] = '\0';
    }
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(e, DUST_BUSY, "cannot %s %s: another connection has it locked", what, path);
    case SQLITE_NOMEM:
        return err_set(e, DUST_NOMEM, "cannot %s %s: out of memory", what, path);
    case SQLITE_FULL:
        return err_set(e, DUST_FULL, "cannot %s %s: the disk is full", what, path);
    case SQLITE_PERM:
    case SQLITE_AUTH:
    case SQLITE_READONLY:
        code = DUST_REFUSED;
        break;
    default:
        code = rc == SQLITE_IOERR_NOMEM               ? DUST_NOMEM
               : errnum == ENOSPC || errnum == EDQUOT ? DUST_FULL
               : rc == SQLITE_CANTOPEN && (errnum == EACCES || errnum == EPERM || errnum == EROFS)
                   ? DUST_REFUSED
                   : DUST_IO;
    }
    if (text[0] != '\0') {
        return err_set(e, code, "cannot %s %s: %s (SQLite code %d)", what, path, text, rc);
    }
    if (errnum > 0) {
        err_sys(e, errnum, "cannot %s %s (SQLite code %d)", what, path, rc);
        if (e != NULL) {
            e->code = code;
        }
        return code;
    }
    return err_set(e, code, "cannot %s %s: %s (SQLite code %d)", what, path, err_text(code), rc);
}

/* Lay out the names as SQLite does for its own files, since a VFS may go from one to the others
 * (sqlite3_filename_database() and its like): four zeros, path, an empty list of URI parameters, journal,
 * WAL, end. */
static int pair_init(struct pair *p, sqlite3_vfs *base, sqlite3_file *db, const char *path, struct err *e)
{
    size_t n = strlen(path);
    char *s;

    *p = (struct pair){.base = base, .db = db};
    p->names = calloc(1, 4 + (n + 1) + 1 + (n + sizeof "-journal") + (n + sizeof "-wal") + 2);
    p->jrnl = calloc(1, (size_t)base->szOsFile);
    p->buf = malloc(PAGE_SIZE_MAX + RECORD_EXTRA);
    if (p->names == NULL || p->jrnl == NULL || p->buf == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory for a checkpoint of %s", path);
    }
    s = p->names + 4;
    p->path = memcpy(s, path, n);
    s += n + 2;
    p->jrnl_path = memcpy(s, path, n);
    memcpy(s + n, "-journal", sizeof "-journal");
    s += n + sizeof "-journal";
    p->wal_path = memcpy(s, path, n);
    memcpy(s + n, "-wal", sizeof "-wal");
    return DUST_OK;
}

static void close_file(sqlite3_file *file)
{
    if (file != NULL && file->pMethods != NULL) {
        file->pMethods->xClose(file);
        file->pMethods = NULL;
    }
}

static void pair_deinit(struct pair *p)
{
    close_file(p->jrnl);
    free(p->jrnl);
    free(p->names);
    free(p->buf);
}

/* Open `file` (pMethods is NULL), or leave pMethods NULL. */
static int open_file(
    const struct pair *p, sqlite3_file *file, const char *path, int flags, const char *what, struct err *e)
{
    int out = flags;
    int rc = p->base->xOpen(p->base, path, file, flags, &out);

    if (rc != SQLITE_OK) {
        rc = vfs_err(p, rc, e, what, path);
        close_file(file);
        return rc;
    }
    if ((flags & SQLITE_OPEN_READWRITE) && (out & SQLITE_OPEN_READONLY)) {
        close_file(file);
        return err_set(e, DUST_REFUSED, "cannot %s %s: no permission to write it", what, path);
    }
    return DUST_OK;
}

/* To the unix VFS an empty file does not exist. For a journal that is as well: an empty one means nothing. */
static int file_exists(const struct pair *p, const char *path, bool *exists, struct err *e)
{
    int res = 0;
    int rc = p->base->xAccess(p->base, path, SQLITE_ACCESS_EXISTS, &res);

    if (rc != SQLITE_OK) {
        return vfs_err(p, rc, e, "look for", path);
    }
    *exists = res != 0;
    return DUST_OK;
}

static int db_size(const struct pair *p, int64_t *size, struct err *e)
{
    sqlite3_int64 n = 0;
    int rc = p->db->pMethods->xFileSize(p->db, &n);

    if (rc != SQLITE_OK) {
        return vfs_err(p, rc, e, "get the size of", p->path);
    }
    *size = n;
    return DUST_OK;
}

/* Read n bytes; what lies past the end of the file becomes zeros. */
static int db_read(const struct pair *p, void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->db->pMethods->xRead(p->db, buf, (int)n, offset);

    if (rc == SQLITE_IOERR_SHORT_READ) {
        return DUST_OK; /* a VFS fills up with zeros */
    }
    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "read", p->path);
}

static int db_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->db->pMethods->xWrite(p->db, buf, (int)n, offset);

    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "write", p->path);
}

static int db_sync(const struct pair *p, struct err *e)
{
    int rc = p->db->pMethods->xSync(p->db, SQLITE_SYNC_FULL);

    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "flush", p->path);
}

static int db_lock(const struct pair *p, int level, struct err *e)
{
    int rc = p->db->pMethods->xLock(p->db, level);

    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "lock", p->path);
}

/* Lower the lock. A second try costs nothing, and a lock left behind would stop every reader. */
static int db_unlock(const struct pair *p, int level, struct err *e)
{
    int rc = SQLITE_OK;

    for (int i = 0; i < UNLOCK_TRIES; i++) {
        rc = p->db->pMethods->xUnlock(p->db, level);
        if (rc == SQLITE_OK) {
            return DUST_OK;
        }
    }
    return vfs_err(p, rc, e, "unlock", p->path);
}

/* Make the file n_pages long. `scratch` is page_size bytes. As SQLite does it: longer by a last page of
 * zeros, and with less than a page missing not at all. */
static int db_resize(
    const struct pair *p, uint32_t n_pages, uint32_t page_size, uint8_t *scratch, struct err *e)
{
    int64_t want = (int64_t)n_pages * page_size;
    int64_t size;
    int rv = db_size(p, &size, e);

    if (rv != DUST_OK) {
        return rv;
    }
    if (size > want) {
        int rc = p->db->pMethods->xTruncate(p->db, want);

        return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "truncate", p->path);
    }
    if (size + page_size <= want) {
        memset(scratch, 0, page_size);
        return db_write(p, scratch, page_size, want - page_size, e);
    }
    return DUST_OK;
}

static int jrnl_read(
    const struct pair *p, void *buf, uint32_t n, int64_t offset, bool *cut_off, struct err *e)
{
    int rc = p->jrnl->pMethods->xRead(p->jrnl, buf, (int)n, offset);

    *cut_off = rc == SQLITE_IOERR_SHORT_READ;
    return rc == SQLITE_OK || *cut_off ? DUST_OK : vfs_err(p, rc, e, "read", p->jrnl_path);
}

static int jrnl_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->jrnl->pMethods->xWrite(p->jrnl, buf, (int)n, offset);

    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "write", p->jrnl_path);
}

static int jrnl_sync(const struct pair *p, struct err *e)
{
    int rc = p->jrnl->pMethods->xSync(p->jrnl, SQLITE_SYNC_FULL);

    return rc == SQLITE_OK ? DUST_OK : vfs_err(p, rc, e, "flush", p->jrnl_path);
}

/* Close and delete the journal, and flush the directory. It is no error if there is none. */
static int jrnl_delete(const struct pair *p, struct err *e)
{
    int rc;

    close_file(p->jrnl);
    rc = p->base->xDelete(p->base, p->jrnl_path, 1);
    if (rc == SQLITE_OK || rc == SQLITE_IOERR_DELETE_NOENT) {
        return DUST_OK;
    }
    return vfs_err(p, rc, e, "delete", p->jrnl_path);
}

/* ---- playback ---- */

static uint32_t checksum(uint32_t nonce, const uint8_t *page, uint32_t page_size)
{
    uint32_t sum = nonce;

    for (int i = (int)page_size - 200; i > 0; i -= 200) {
        sum += page[i];
    }
    return sum;
}

/* A journal of a transaction over several files ends in the name of a super-journal:
 *     lock-byte page number (4), name (n), n (4), sum of the name's bytes as signed (4), magic (8)
 * and counts only as long as the super-journal exists. *counts: whether this one does. */
static int super_journal(const struct pair *p, int64_t size, bool *counts, struct err *e)
{
    uint8_t tail[16];
    uint32_t n, sum;
    bool cut_off, exists;
    char *name; /* after four zeros, as for every name given to a VFS */
    int rv;

    *counts = true;
    if (size < (int64_t)sizeof tail) {
        return DUST_OK;
    }
    rv = jrnl_read(p, tail, sizeof tail, size - (int64_t)sizeof tail, &cut_off, e);
    if (rv != DUST_OK) {
        return rv;
    }
    n = get32(tail);
    sum = get32(tail + 4);
    if (cut_off || memcmp(tail + 8, journal_magic, sizeof journal_magic) != 0 || n == 0 ||
        n > (uint32_t)p->base->mxPathname || n > size - (int64_t)sizeof tail) {
        return DUST_OK;
    }
    name = calloc(1, (size_t)n + 8);
    if (name == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory while playing back %s", p->jrnl_path);
    }
    rv = jrnl_read(p, name + 4, n, size - (int64_t)sizeof tail - n, &cut_off, e);
    for (uint32_t i = 0; i < n; i++) {
        sum -= (uint32_t)(int)(char)name[4 + i];
    }
    if (rv == DUST_OK && !cut_off && sum == 0 && name[4] != '\0') {
        rv = file_exists(p, name + 4, &exists, e);
        if (rv == DUST_OK) {
            *counts = exists;
        }
    }
    free(name);
    return rv;
}

/* A header of the journal, and where playback stands. */
struct play {
    int64_t size;   /* of the journal, bytes */
    int64_t offset; /* of what comes next */
    uint32_t sector, page_size, nonce;
    uint32_t n_pages;  /* of the database before; from the first header */
    uint32_t n_here;   /* records after this header */
    uint32_t n_played; /* records so far, from all headers */
};

/* Read the header at the next sector. *end: there is none, the playback is over. */
static int play_header(const struct pair *p, struct play *pl, bool *end, struct err *e)
{
    uint8_t h[JOURNAL_FIELDS];
    int64_t offset = pl->offset == 0 ? 0 : ((pl->offset - 1) / pl->sector + 1) * pl->sector;
    int rv;

    *end = true;
    if (offset + (offset == 0 ? JOURNAL_FIELDS : pl->sector) > pl->size) {
        return DUST_OK;
    }
    rv = jrnl_read(p, h, sizeof h, offset, end, e);
    if (rv != DUST_OK || *end) {
        return rv;
    }
    *end = true;
    if (memcmp(h, journal_magic, sizeof journal_magic) != 0) {
        return DUST_OK;
    }
    if (offset == 0) {
        pl->sector = get32(h + 20);
        pl->page_size = get32(h + 24);
        if (!power_of_two(pl->sector, SECTOR_OLDEST, SECTOR_MAX) ||
            !power_of_two(pl->page_size, SECTOR_MIN, PAGE_SIZE_MAX) || pl->sector > pl->size) {
            return DUST_OK;
        }
    }
    pl->n_here = get32(h + 8);
    pl->nonce = get32(h + 12);
    pl->n_pages = get32(h + 16);
    pl->offset = offset + pl->sector;
    if (pl->n_here == COUNT_BY_SIZE) {
        pl->n_here = (uint32_t)((pl->size - pl->offset) / (pl->page_size + RECORD_EXTRA));
    }
    *end = false;
    return DUST_OK;
}

/* Put one page back. *end: the record is not there or not whole, the playback is over. */
static int play_record(const struct pair *p, struct play *pl, bool *end, struct err *e)
{
    uint32_t n = pl->page_size + RECORD_EXTRA;
    uint32_t pgno;
    int rv = jrnl_read(p, p->buf, n, pl->offset, end, e);

    if (rv != DUST_OK || *end) {
        return rv;
    }
    pl->offset += n;
    pgno = get32(p->buf);
    if (pgno == 0 || pgno == lock_page(pl->page_size) ||
        (pgno <= pl->n_pages &&
            checksum(pl->nonce, p->buf + 4, pl->page_size) != get32(p->buf + 4 + pl->page_size))) {
        *end = true;
        return DUST_OK;
    }
    pl->n_played++;
    if (pgno > pl->n_pages) {
        return DUST_OK;
    }
    return db_write(p, p->buf + 4, pl->page_size, (int64_t)(pgno - 1) * pl->page_size, e);
}

/* Play the open journal back into the database and flush it. EXCLUSIVE is held. The journal stays as it is.
 * *n_played becomes the number of records; the same page may be in a journal twice, then the first is the
 * original, but SQLite makes no such journal, so it is not looked for. */
static int playback(const struct pair *p, uint32_t *n_played, struct err *e)
{
    struct play pl = {.size = 0};
    sqlite3_int64 size = 0;
    bool counts, end;
    int rc = p->jrnl->pMethods->xFileSize(p->jrnl, &size);
    int rv;

    if (rc != SQLITE_OK) {
        return vfs_err(p, rc, e, "get the size of", p->jrnl_path);
    }
    pl.size = size;
    rv = super_journal(p, pl.size, &counts, e);
    if (rv != DUST_OK) {
        return rv;
    }
    for (bool first = true; counts; first = false) {
        rv = play_header(p, &pl, &end, e);
        if (rv != DUST_OK) {
            return rv;
        }
        if (end) {
            break;
        }
        if (first) {
            rv = db_resize(p, pl.n_pages, pl.page_size, p->buf, e);
        }
        for (uint32_t i = 0; rv == DUST_OK && !end && i < pl.n_here; i++) {
            rv = play_record(p, &pl, &end, e);
        }
        if (rv != DUST_OK) {
            return rv;
        }
        if (end) {
            break;
        }
    }
    *n_played = pl.n_played;
    return db_sync(p, e);
}

/* ---- settling what a crash has left ---- */

enum heat {
    HEAT_NONE, /* no journal */
    HEAT_COLD, /* one that was never finished, or whose database is empty: to be deleted */
    HEAT_HOT   /* one to be played back, if nobody is at work on it */
};

static int look_at_journal(struct pair *p, enum heat *heat, struct err *e)
{
    struct err reason = {.code = DUST_OK};
    uint8_t first = 0;
    bool exists, cut_off;
    int64_t size;
    int rv = file_exists(p, p->jrnl_path, &exists, e);

    *heat = HEAT_NONE;
    if (rv != DUST_OK || !exists) {
        return rv;
    }
    rv = db_size(p, &size, e);
    if (rv != DUST_OK) {
        return rv;
    }
    *heat = HEAT_COLD;
    if (size == 0) {
        return DUST_OK;
    }
    rv = open_file(p, p->jrnl, p->jrnl_path, SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_JOURNAL,
        "open the journal", &reason);
    if (rv != DUST_OK) {
        if (file_exists(p, p->jrnl_path, &exists, NULL) == DUST_OK && !exists) {
            *heat = HEAT_NONE; /* somebody has deleted it just now */
            return DUST_OK;
        }
        return err_set(e, rv, "%s", reason.text);
    }
    rv = jrnl_read(p, &first, 1, 0, &cut_off, e);
    close_file(p->jrnl);
    if (!cut_off && first != 0) {
        *heat = HEAT_HOT;
    }
    return rv;
}

/* Delete a journal that is not hot. RESERVED keeps others from beginning one meanwhile. */
static int delete_cold(struct pair *p, struct err *e)
{
    enum heat heat;
    int rv = db_lock(p, SQLITE_LOCK_RESERVED, e);

    if (rv == DUST_OK) {
        rv = look_at_journal(p, &heat, e);
    }
    if (rv == DUST_OK && heat == HEAT_HOT) {
        rv = err_set(e, DUST_BUSY, "another connection has just been writing %s", p->path);
    }
    if (rv == DUST_OK && heat == HEAT_COLD) {
        rv = jrnl_delete(p, e);
    }
    return rv != DUST_OK ? rv : db_unlock(p, SQLITE_LOCK_SHARED, e);
}

/* Play a hot journal back. Not by way of RESERVED: others would take the journal for that of a writer at
 * work, and read. Nor is what is in the journal relied on before it is flushed. */
static int play_hot(struct pair *p, struct err *e)
{
    uint32_t n_played;
    bool exists;
    int rc;
    int rv = db_lock(p, SQLITE_LOCK_EXCLUSIVE, e);

    if (rv == DUST_OK) {
        rv = file_exists(p, p->jrnl_path, &exists, e);
    }
    if (rv == DUST_OK && exists) { /* else somebody else was faster */
        rv = open_file(p, p->jrnl, p->jrnl_path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_JOURNAL,
            "open the journal", e);
        if (rv == DUST_OK) {
            rc = p->jrnl->pMethods->xSync(p->jrnl, SQLITE_SYNC_NORMAL);
            rv = rc == SQLITE_OK ? playback(p, &n_played, e) : vfs_err(p, rc, e, "flush", p->jrnl_path);
        }
        if (rv == DUST_OK) {
            rv = jrnl_delete(p, e);
        }
        close_file(p->jrnl);
    }
    return rv != DUST_OK ? rv : db_unlock(p, SQLITE_LOCK_SHARED, e);
}

/* With SHARED held: leave no journal behind but that of a connection at work (DUST_BUSY). SHARED is held
 * after success; after a failure any lock, for the caller to drop. */
static int settle(struct pair *p, struct err *e)
{
    enum heat heat;
    int reserved = 0;
    int rc;
    bool exists;
    int rv = file_exists(p, p->jrnl_path, &exists, e);

    if (rv != DUST_OK || !exists) {
        return rv;
    }
    rc = p->db->pMethods->xCheckReservedLock(p->db, &reserved);
    if (rc != SQLITE_OK) {
        return vfs_err(p, rc, e, "look at the locks of", p->path);
    }
    if (reserved) {
        return err_set(e, DUST_BUSY, "another connection is writing %s", p->path);
    }
    rv = look_at_journal(p, &heat, e);
    if (rv != DUST_OK || heat == HEAT_NONE) {
        return rv;
    }
    return heat == HEAT_HOT ? play_hot(p, e) : delete_cold(p, e);
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
    rv = file_exists(&p, p.jrnl_path, &exists, e);
    if (rv != DUST_OK || !exists) {
        goto out;
    }
    db = calloc(1, (size_t)base->szOsFile);
    if (db == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory for the recovery of %s", path);
        goto out;
    }
    p.db = db;
    rv = open_file(&p, db, p.path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_DB, "open", &reason);
    if (rv != DUST_OK) {
        if (file_exists(&p, p.path, &exists, NULL) == DUST_OK && !exists) {
            rv = DUST_OK; /* asked only now, for to the unix VFS an empty file does not exist */
        } else {
            err_set(e, rv, "%s", reason.text);
        }
        goto out;
    }
    rv = db_lock(&p, SQLITE_LOCK_SHARED, e);
    if (rv == DUST_OK) {
        rv = settle(&p, e);
    }
    close_file(p.jrnl);
    db_unlock(&p, SQLITE_LOCK_NONE, NULL); /* if that fails, closing does it */
out:
    close_file(db);
    free(db);
    pair_deinit(&p);
    return rv;
}

/* ---- folding ---- */

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
    int rv = db_size(&f->p, &size, e);

    if (rv == DUST_OK && size > 0) {
        rv = db_read(&f->p, f->header, HEADER_SIZE, 0, e);
    }
    if (rv == DUST_OK) {
        rv = file_exists(&f->p, f->p.wal_path, &wal, e);
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
        rv = db_read(&f->p, page1, src->page_size, 0, e);
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
    rv = db_size(&f->p, &size, e);
    if (rv == DUST_OK) {
        rv = db_read(&f->p, f->scratch, src->page_size, (int64_t)(pgno - 1) * src->page_size, e);
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
        put32(record, pgno);
        rv = db_read(&f->p, record + 4, n, (int64_t)(pgno - 1) * n, e);
        if (rv != DUST_OK) {
            return rv;
        }
        put32(record + 4 + n, checksum(f->nonce, record + 4, n));
        rv = jrnl_write(&f->p, record, n + RECORD_EXTRA, f->jrnl_end, e);
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

    rv = open_file(&f->p, f->p.jrnl, f->p.jrnl_path,
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
    put32(sector + 12, f->nonce);
    put32(sector + 16, f->n_old);
    put32(sector + 20, f->sector);
    put32(sector + 24, f->old_page_size);
    rv = jrnl_write(&f->p, sector, f->sector, 0, e);
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
    int rv = jrnl_sync(&f->p, e);

    memcpy(head, journal_magic, sizeof journal_magic);
    put32(head + sizeof journal_magic, f->n_saved);
    if (rv == DUST_OK) {
        rv = jrnl_write(&f->p, head, sizeof head, 0, e);
    }
    return rv == DUST_OK ? jrnl_sync(&f->p, e) : rv;
}

/* Give the journal up before anything was written. Whatever fails here does no harm (see the top). */
static void journal_drop(struct folding *f)
{
    if (f->p.jrnl->pMethods != NULL) {
        f->p.jrnl->pMethods->xTruncate(f->p.jrnl, 0);
        jrnl_delete(&f->p, NULL);
    }
}

/* Step 6. */
static int lock_out_readers(struct folding *f, struct err *e)
{
    const struct fold_source *src = f->src;

    for (int tries = 1;; tries++) {
        struct err reason = {.code = DUST_OK};
        int rv = db_lock(&f->p, SQLITE_LOCK_EXCLUSIVE, &reason);

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
    return db_write(&f->p, page, f->src->page_size, (int64_t)(pgno - 1) * f->src->page_size, e);
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
        rv = db_resize(&f->p, src->n_pages_after, src->page_size, f->scratch, e);
    }
    return rv == DUST_OK ? db_sync(&f->p, e) : rv;
}

/* Something failed while the database was being written: put it back. e, if not NULL, has the reason already;
 * a second failure is added to it, and the journal stays for the next one to open the file. */
static void undo(struct folding *f, struct err *e)
{
    struct err second = {.code = DUST_OK};
    uint32_t n_played = 0;
    int rv = DUST_OK;
    size_t n;

    if (f->p.jrnl->pMethods == NULL) {
        rv = open_file(&f->p, f->p.jrnl, f->p.jrnl_path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_JOURNAL,
            "open the journal", &second);
    }
    if (rv == DUST_OK) {
        rv = playback(&f->p, &n_played, &second);
    }
    if (rv == DUST_OK && n_played != f->n_saved) {
        rv = err_set(
            &second, DUST_CORRUPT, "only %u of %u pages are in %s", n_played, f->n_saved, f->p.jrnl_path);
    }
    if (rv == DUST_OK) {
        rv = jrnl_delete(&f->p, &second);
    }
    if (rv != DUST_OK && e != NULL) {
        n = strlen(e->text);
        snprintf(e->text + n, sizeof e->text - n, "; it is undone when %s is next opened: %s", f->p.path,
            second.text);
    }
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
    if (rv != DUST_OK) {
        undo(f, e);
        return rv;
    }
    rv = jrnl_delete(&f->p, e);
    if (rv != DUST_OK && file_exists(&f->p, f->p.jrnl_path, &exists, &unread) == DUST_OK && exists) {
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
    rv = db_lock(&f.p, SQLITE_LOCK_SHARED, e);
    if (rv == DUST_OK) {
        rv = settle(&f.p, e);
    }
    if (rv == DUST_OK) {
        rv = db_lock(&f.p, SQLITE_LOCK_RESERVED, e);
    }
    if (rv == DUST_OK) {
        rv = file_exists(&f.p, f.p.jrnl_path, &exists, e);
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
    close_file(f.p.jrnl);
    rv2 = db_unlock(&f.p, SQLITE_LOCK_NONE, rv == DUST_OK ? e : NULL);
    rv = rv != DUST_OK ? rv : rv2;
out:
    folding_deinit(&f);
    return rv;
}
