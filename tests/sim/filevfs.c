/* SQLite's VFS on the machines' file systems: what dust finds as the default one and builds on. There are no locks: one
 * process on each machine, and nobody reads app.db but dust, which takes none to read. */
#include <stdio.h>
#include <string.h>

#include "tests/sim/files_impl.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"

struct vfs_file {
    sqlite3_file base;
    struct machine *machine;
    struct file *file;
};

static struct vfs_file *vf(sqlite3_file *f)
{
    return (struct vfs_file *)f;
}

static int s_close(sqlite3_file *f)
{
    (void)f;
    return SQLITE_OK;
}

static int s_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 offset)
{
    size_t got;

    task_point();
    got = file_read(vf(f)->file, buf, (size_t)n, (size_t)offset);
    if (got < (size_t)n) {
        memset((char *)buf + got, 0, (size_t)n - got);
        return SQLITE_IOERR_SHORT_READ;
    }
    return SQLITE_OK;
}

static int s_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 offset)
{
    task_point();
    if (files_write_fails(vf(f)->machine)) {
        return chance(5000) ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    }
    file_store(vf(f)->file, (size_t)offset, buf, (size_t)n);
    return SQLITE_OK;
}

static int s_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    file_resize(vf(f)->file, (size_t)size);
    return SQLITE_OK;
}

static int s_sync(sqlite3_file *f, int flags)
{
    (void)flags;
    files_take_time(vf(f)->machine);
    if (files_write_fails(vf(f)->machine)) {
        return SQLITE_IOERR_FSYNC;
    }
    file_flush(vf(f)->file);
    names_flush_to(&vf(f)->machine->files, vf(f)->file);
    return SQLITE_OK;
}

static int s_size(sqlite3_file *f, sqlite3_int64 *out)
{
    *out = (sqlite3_int64)vf(f)->file->now.size;
    return SQLITE_OK;
}

static int s_lock(sqlite3_file *f, int level)
{
    (void)f;
    (void)level;
    return SQLITE_OK; /* nobody reads app.db but dust, which takes no lock to read */
}

static int s_reserved(sqlite3_file *f, int *out)
{
    (void)f;
    *out = 0;
    return SQLITE_OK;
}

static int s_control(sqlite3_file *f, int op, void *arg)
{
    (void)f;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int s_sector(sqlite3_file *f)
{
    (void)f;
    return FILES_SECTOR;
}

static int s_characteristics(sqlite3_file *f)
{
    (void)f;
    return SQLITE_IOCAP_POWERSAFE_OVERWRITE;
}

static int s_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *out, int flags, int *out_flags)
{
    static const sqlite3_io_methods methods = {1, s_close, s_read, s_write, s_truncate, s_sync, s_size, s_lock, s_lock,
        s_reserved, s_control, s_sector, s_characteristics, NULL, NULL, NULL, NULL, NULL, NULL};
    struct machine *m = name != NULL ? machine_of_path(name) : NULL;
    struct file *f;

    (void)vfs;
    out->pMethods = NULL;
    if (name == NULL) { /* a temporary file, of nobody */
        f = file_new("/temporary");
    } else if (m == NULL) {
        return SQLITE_CANTOPEN;
    } else {
        f = file_find(m, name);
        if (f == NULL && (flags & SQLITE_OPEN_CREATE) == 0) {
            return SQLITE_CANTOPEN;
        }
        if (f == NULL) {
            f = file_new(name);
            name_change(m, name, f);
        }
    }
    *vf(out) = (struct vfs_file){.base.pMethods = &methods, .machine = m, .file = f};
    if (out_flags != NULL) {
        *out_flags = flags;
    }
    return SQLITE_OK;
}

static int s_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
    struct machine *m = machine_of_path(name);

    (void)vfs;
    if (m == NULL || file_find(m, name) == NULL) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    if (files_write_fails(m)) {
        return SQLITE_IOERR_DELETE;
    }
    name_change(m, name, NULL);
    if (sync_dir) {
        files_take_time(m);
        names_flush(&m->files, m->files.n_changes);
    }
    return SQLITE_OK;
}

static int s_access(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
    struct machine *m = machine_of_path(name);
    const struct file *f = m != NULL ? file_find(m, name) : NULL;

    (void)vfs;
    (void)flags;
    *out = f != NULL;
    return SQLITE_OK;
}

static int s_full(sqlite3_vfs *vfs, const char *name, int n, char *out)
{
    (void)vfs;
    snprintf(out, (size_t)n, "%s", name);
    return SQLITE_OK;
}

static int s_randomness(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    chance_bytes(out, (size_t)n);
    return n;
}

static int s_sleep(sqlite3_vfs *vfs, int us)
{
    (void)vfs;
    task_sleep((uint64_t)us * US_NS);
    return us;
}

static int s_time64(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
    (void)vfs;
    *out = (sqlite3_int64)(210866760000000ull + 1700000000000ull + world.now_ns / MS_NS);
    return SQLITE_OK;
}

static int s_time(sqlite3_vfs *vfs, double *out)
{
    sqlite3_int64 t;

    s_time64(vfs, &t);
    *out = (double)t / 86400000.0;
    return SQLITE_OK;
}

static int s_error(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    (void)n;
    (void)out;
    return 0;
}

sqlite3_vfs *files_vfs(void)
{
    static sqlite3_vfs vfs = {.iVersion = 2,
        .szOsFile = sizeof(struct vfs_file),
        .mxPathname = FILES_PATH_MAX - 8,
        .zName = "sim",
        .xOpen = s_open,
        .xDelete = s_delete,
        .xAccess = s_access,
        .xFullPathname = s_full,
        .xRandomness = s_randomness,
        .xSleep = s_sleep,
        .xCurrentTime = s_time,
        .xGetLastError = s_error,
        .xCurrentTimeInt64 = s_time64};

    return &vfs;
}
