#include "vfs/bug.h"
#include "vfs/pair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define UNLOCK_TRIES 3

int pair_err(const struct pair *p, int rc, struct err *e, const char *what, const char *path)
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
int pair_init(struct pair *p, sqlite3_vfs *base, sqlite3_file *db, const char *path, struct err *e)
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

void pair_close_file(sqlite3_file *file)
{
    if (file != NULL && file->pMethods != NULL) {
        file->pMethods->xClose(file);
        file->pMethods = NULL;
    }
}

void pair_deinit(struct pair *p)
{
    pair_close_file(p->jrnl);
    free(p->jrnl);
    free(p->names);
    free(p->buf);
}

int pair_open(
    const struct pair *p, sqlite3_file *file, const char *path, int flags, const char *what, struct err *e)
{
    int out = flags;
    int rc = p->base->xOpen(p->base, path, file, flags, &out);

    if (rc != SQLITE_OK) {
        rc = pair_err(p, rc, e, what, path);
        pair_close_file(file);
        return rc;
    }
    if ((flags & SQLITE_OPEN_READWRITE) && (out & SQLITE_OPEN_READONLY)) {
        pair_close_file(file);
        return err_set(e, DUST_REFUSED, "cannot %s %s: no permission to write it", what, path);
    }
    return DUST_OK;
}

int pair_exists(const struct pair *p, const char *path, bool *exists, struct err *e)
{
    int res = 0;
    int rc = p->base->xAccess(p->base, path, SQLITE_ACCESS_EXISTS, &res);

    if (rc != SQLITE_OK) {
        return pair_err(p, rc, e, "look for", path);
    }
    *exists = res != 0;
    return DUST_OK;
}

int pair_size(const struct pair *p, int64_t *size, struct err *e)
{
    sqlite3_int64 n = 0;
    int rc = p->db->pMethods->xFileSize(p->db, &n);

    if (rc != SQLITE_OK) {
        return pair_err(p, rc, e, "get the size of", p->path);
    }
    *size = n;
    return DUST_OK;
}

int pair_read(const struct pair *p, void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->db->pMethods->xRead(p->db, buf, (int)n, offset);

    if (rc == SQLITE_IOERR_SHORT_READ) {
        return DUST_OK; /* a VFS fills up with zeros */
    }
    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "read", p->path);
}

int pair_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->db->pMethods->xWrite(p->db, buf, (int)n, offset);

    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "write", p->path);
}

int pair_sync(const struct pair *p, struct err *e)
{
    int rc = p->db->pMethods->xSync(p->db, SQLITE_SYNC_FULL);

    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "flush", p->path);
}

int pair_lock(const struct pair *p, int level, struct err *e)
{
    int rc = p->db->pMethods->xLock(p->db, level);

    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "lock", p->path);
}

/* Lower the lock. A second try costs nothing, and a lock left behind would stop every reader. */
int pair_unlock(const struct pair *p, int level, struct err *e)
{
    int rc = SQLITE_OK;

    for (int i = 0; i < UNLOCK_TRIES; i++) {
        rc = p->db->pMethods->xUnlock(p->db, level);
        if (rc == SQLITE_OK) {
            return DUST_OK;
        }
    }
    return pair_err(p, rc, e, "unlock", p->path);
}

int pair_resize(
    const struct pair *p, uint32_t n_pages, uint32_t page_size, uint8_t *scratch, struct err *e)
{
    int64_t want = (int64_t)n_pages * page_size;
    int64_t size;
    int rv = pair_size(p, &size, e);

    if (rv != DUST_OK) {
        return rv;
    }
    if (size > want) {
        int rc = p->db->pMethods->xTruncate(p->db, want);

        return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "truncate", p->path);
    }
    if (size + page_size <= want) {
        memset(scratch, 0, page_size);
        return pair_write(p, scratch, page_size, want - page_size, e);
    }
    return DUST_OK;
}

int journal_read(
    const struct pair *p, void *buf, uint32_t n, int64_t offset, bool *cut_off, struct err *e)
{
    int rc = p->jrnl->pMethods->xRead(p->jrnl, buf, (int)n, offset);

    *cut_off = rc == SQLITE_IOERR_SHORT_READ;
    return rc == SQLITE_OK || *cut_off ? DUST_OK : pair_err(p, rc, e, "read", p->jrnl_path);
}

int journal_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e)
{
    int rc = p->jrnl->pMethods->xWrite(p->jrnl, buf, (int)n, offset);

    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "write", p->jrnl_path);
}

int journal_sync(const struct pair *p, struct err *e)
{
    if (BUG(SYNC)) {
        return DUST_OK;
    }
    int rc = p->jrnl->pMethods->xSync(p->jrnl, SQLITE_SYNC_FULL);

    return rc == SQLITE_OK ? DUST_OK : pair_err(p, rc, e, "flush", p->jrnl_path);
}

int journal_delete(const struct pair *p, struct err *e)
{
    int rc;

    pair_close_file(p->jrnl);
    rc = p->base->xDelete(p->base, p->jrnl_path, 1);
    if (rc == SQLITE_OK || rc == SQLITE_IOERR_DELETE_NOENT) {
        return DUST_OK;
    }
    return pair_err(p, rc, e, "delete", p->jrnl_path);
}
