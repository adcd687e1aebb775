/* What SQLite is told when something fails, and what is kept of it for dust_status. */
#include <sqlite3ext.h>

#include "vfs/file.h"

int sqlite_code(int code)
{
    switch (code) {
    case DUST_OK:
        return SQLITE_OK;
    case DUST_NOMEM:
        return SQLITE_NOMEM;
    case DUST_IO:
        return SQLITE_IOERR;
    case DUST_FULL:
        return SQLITE_FULL;
    case DUST_CORRUPT:
        return SQLITE_CORRUPT;
    case DUST_VERSION:
        return SQLITE_NOTADB;
    case DUST_MISUSE:
        return SQLITE_ERROR;
    case DUST_BUSY:
    case DUST_NOLEADER:
    case DUST_AGAIN:
        return SQLITE_BUSY;
    case DUST_STALE:
    case DUST_VOID:
        return SQLITE_BUSY_SNAPSHOT;
    case DUST_UNKNOWN:
        return SQLITE_IOERR_COMMIT_ATOMIC;
    case DUST_REFUSED:
    case DUST_CLOSED:
        return SQLITE_READONLY;
    case DUST_MOVED:
        return SQLITE_READONLY_DBMOVED;
    case DUST_TOOBIG:
        return SQLITE_TOOBIG;
    default:
        return SQLITE_ERROR;
    }
}

int file_fail(struct dfile *f, const struct err *e, bool committing)
{
    int rc = sqlite_code(e->code);

    f->last = *e;
    if (!f->forked && e->code != DUST_BUSY && e->code != DUST_STALE && e->code != DUST_VOID) {
        report_err(&f->db->report, e);
    }
    return committing && rc == SQLITE_BUSY ? SQLITE_BUSY_SNAPSHOT : rc;
}

int file_refuse(struct dfile *f, int code, const char *text)
{
    struct err e;

    err_set(&e, code, "%s", text);
    return file_fail(f, &e, false);
}
