/* Only the child's memory is changed here. The methods of the file are exchanged, so that an ordinary process pays nothing
 * for this; what the file held is forgotten, not given back: it is the parent's. */
#include "vfs/forked.h"

#include <string.h>

#define IN_THE_MIDDLE                                                                                                    \
    "this process was forked in the middle of a transaction of this connection, which is its parent's: roll back here"

int file_rejoin(struct dfile *f, struct err *e)
{
    struct database *db;
    int rv;

    if (!f->forked) {
        return DUST_OK;
    }
    if (f->lock != SQLITE_LOCK_NONE) {
        return err_set(e, DUST_VOID, IN_THE_MIDDLE);
    }
    rv = f->lib->host->rejoin(f->lib, f->db, &db, e);
    if (rv != DUST_OK) {
        return rv;
    }
    f->db = db;
    atomic_fetch_add(&db->n_files, 1);
    f->store = f->next_store = NULL;
    f->has_slot[0] = f->has_slot[1] = false;
    f->peek = NULL;
    f->remote = (struct remote){.link.fd = -1};
    f->snap = f->next_snap = (struct snap){.seq = 0};
    f->snap_ahead = f->has_turn = f->has_place = f->by_hook = f->writing = f->committed = false;
    f->txn = (struct txn){.store = NULL};
    f->pager_seq = f->pager_seq != 0 ? UINT64_MAX : 0; /* of another store */
    f->unconfirmed_ms = 0;
    ticket_init(&f->ticket);
    sqltext_forget(&f->sql);
    f->forked = false;
    file_own_methods(f);
    return DUST_OK;
}

/* A SQLite code. */
static int rejoin(struct dfile *f)
{
    struct err e;

    return file_rejoin(f, &e) == DUST_OK ? SQLITE_OK : file_fail(f, &e, false);
}

static int forked_read(sqlite3_file *file, void *out, int n, sqlite3_int64 offset)
{
    int rc = rejoin(file_of(file));

    return rc == SQLITE_OK ? file->pMethods->xRead(file, out, n, offset) : rc;
}

/* Nothing is written before the commit point, which is refused; and a rollback writes too. */
static int forked_write(sqlite3_file *file, const void *in, int n, sqlite3_int64 offset)
{
    (void)file, (void)in, (void)n, (void)offset;
    return SQLITE_OK;
}

static int forked_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    (void)file, (void)size;
    return SQLITE_OK;
}

static int forked_file_size(sqlite3_file *file, sqlite3_int64 *out)
{
    int rc = rejoin(file_of(file));

    return rc == SQLITE_OK ? file->pMethods->xFileSize(file, out) : rc;
}

static int forked_lock(sqlite3_file *file, int level)
{
    int rc = rejoin(file_of(file));

    return rc == SQLITE_OK ? file->pMethods->xLock(file, level) : rc;
}

static int forked_unlock(sqlite3_file *file, int level)
{
    struct dfile *f = file_of(file);

    if (f->lock > level) {
        f->lock = level;
    }
    return SQLITE_OK;
}

static int forked_control(sqlite3_file *file, int op, void *arg)
{
    struct dfile *f = file_of(file);
    int rc;

    switch (op) {
    case SQLITE_FCNTL_SYNC:
    case SQLITE_FCNTL_COMMIT_PHASETWO:
        return file_refuse(f, DUST_VOID, IN_THE_MIDDLE);
    case SQLITE_FCNTL_PRAGMA:
        rc = f->lock == SQLITE_LOCK_NONE ? rejoin(f) : SQLITE_NOTFOUND;
        return rc == SQLITE_OK ? file->pMethods->xFileControl(file, op, arg) : SQLITE_NOTFOUND;
    default:
        return f->methods.inherited(file, op, arg);
    }
}

void file_forked(struct dfile *f)
{
    f->remote.link.fd = -1; /* link_forked has closed it */
    if (f->forked) {
        return; /* a child's child */
    }
    f->forked = true;
    f->methods.inherited = f->methods.m.xFileControl;
    f->methods.m.xRead = forked_read;
    f->methods.m.xWrite = forked_write;
    f->methods.m.xTruncate = forked_truncate;
    f->methods.m.xFileSize = forked_file_size;
    f->methods.m.xLock = forked_lock;
    f->methods.m.xUnlock = forked_unlock;
    f->methods.m.xFileControl = forked_control;
}
