/* The VFS `dust`: the default one of its SQLite copy once loaded. A file that is not a member's main database or
 * journal is opened by the VFS underneath in the very memory that SQLite gave us: from then on SQLite calls that VFS
 * directly, and nothing of dust is in the way. */
#include <sqlite3ext.h>
#include <string.h>

#include "vfs/broken.h"
#include "vfs/file.h"
#include "vfs/memjournal.h"

static struct sqlite_lib *lib_of(sqlite3_vfs *vfs)
{
    return vfs->pAppData;
}

/* Is `name` a member's path with `suffix` behind it? */
static bool member_with(struct sqlite_lib *lib, const char *name, const char *suffix)
{
    size_t n = name != NULL ? strlen(name) : 0, m = strlen(suffix);

    return n > m && memcmp(name + n - m, suffix, m) == 0 && lib->host->is_member(name, (int)(n - m));
}

static int v_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    struct sqlite_lib *lib = lib_of(vfs);
    struct database *db = NULL;
    int consistency = -1;
    struct err e;

    if ((flags & SQLITE_OPEN_WAL) != 0 && member_with(lib, name, "-wal")) {
        file->pMethods = NULL; /* what goes to a WAL never comes to the commit point */
        return SQLITE_CANTOPEN;
    }
    if ((flags & SQLITE_OPEN_MAIN_JOURNAL) != 0 && member_with(lib, name, "-journal")) {
        if (out_flags != NULL) {
            *out_flags = flags;
        }
        return memjournal_open(file);
    }
    if ((flags & SQLITE_OPEN_MAIN_DB) != 0 && name != NULL) {
        int rv = lib->host->open(lib, name, &db, &consistency, &e);

        if (rv != DUST_OK) {
            if (out_flags != NULL) {
                *out_flags = flags;
            }
            return broken_open(lib, file, &e);
        }
    }
    /* What is under the name now is not the database, and a connection reads pages of it. */
    if (db != NULL && db->attachment == NULL && database_file_in_place(db, &e) != DUST_OK) {
        lib->host->close(db);
        if (out_flags != NULL) {
            *out_flags = flags;
        }
        return broken_open(lib, file, &e);
    }
    if (db != NULL) {
        int rc = file_open(lib, db, consistency, name, file, flags, out_flags);

        if (rc != SQLITE_OK) {
            file->pMethods = NULL;
            lib->host->close(db);
        }
        return rc;
    }
    return lib->base->xOpen(lib->base, name, file, flags, out_flags);
}

static int v_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
    struct sqlite_lib *lib = lib_of(vfs);

    if (member_with(lib, name, "-journal") || member_with(lib, name, "-wal")) {
        return SQLITE_OK;
    }
    return lib->base->xDelete(lib->base, name, sync_dir);
}

static int v_access(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
    struct sqlite_lib *lib = lib_of(vfs);

    if (member_with(lib, name, "-journal") || member_with(lib, name, "-wal")) {
        *out = 0;
        return SQLITE_OK;
    }
    return lib->base->xAccess(lib->base, name, flags, out);
}

static int v_full_pathname(sqlite3_vfs *vfs, const char *name, int n, char *out)
{
    return lib_of(vfs)->base->xFullPathname(lib_of(vfs)->base, name, n, out);
}

static void *v_dlopen(sqlite3_vfs *vfs, const char *name)
{
    return lib_of(vfs)->base->xDlOpen(lib_of(vfs)->base, name);
}

static void v_dlerror(sqlite3_vfs *vfs, int n, char *out)
{
    lib_of(vfs)->base->xDlError(lib_of(vfs)->base, n, out);
}

static void (*v_dlsym(sqlite3_vfs *vfs, void *handle, const char *symbol))(void)
{
    return lib_of(vfs)->base->xDlSym(lib_of(vfs)->base, handle, symbol);
}

static void v_dlclose(sqlite3_vfs *vfs, void *handle)
{
    lib_of(vfs)->base->xDlClose(lib_of(vfs)->base, handle);
}

static int v_randomness(sqlite3_vfs *vfs, int n, char *out)
{
    return lib_of(vfs)->base->xRandomness(lib_of(vfs)->base, n, out);
}

static int v_sleep(sqlite3_vfs *vfs, int us)
{
    return lib_of(vfs)->base->xSleep(lib_of(vfs)->base, us);
}

static int v_current_time(sqlite3_vfs *vfs, double *out)
{
    return lib_of(vfs)->base->xCurrentTime(lib_of(vfs)->base, out);
}

static int v_last_error(sqlite3_vfs *vfs, int n, char *out)
{
    return lib_of(vfs)->base->xGetLastError != NULL ? lib_of(vfs)->base->xGetLastError(lib_of(vfs)->base, n, out) : 0;
}

static int v_current_time_int64(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
    return lib_of(vfs)->base->xCurrentTimeInt64(lib_of(vfs)->base, out);
}

static int v_set_system_call(sqlite3_vfs *vfs, const char *name, sqlite3_syscall_ptr call)
{
    return lib_of(vfs)->base->xSetSystemCall(lib_of(vfs)->base, name, call);
}

static sqlite3_syscall_ptr v_get_system_call(sqlite3_vfs *vfs, const char *name)
{
    return lib_of(vfs)->base->xGetSystemCall(lib_of(vfs)->base, name);
}

static const char *v_next_system_call(sqlite3_vfs *vfs, const char *name)
{
    return lib_of(vfs)->base->xNextSystemCall(lib_of(vfs)->base, name);
}

void vfs_init(struct sqlite_lib *lib)
{
    int ours = FILE_OWN_SIZE + lib->base->szOsFile;

    lib->vfs = (sqlite3_vfs){
        .iVersion = lib->base->iVersion < 3 ? lib->base->iVersion : 3,
        .szOsFile = ours > memjournal_size() ? ours : memjournal_size(),
        .mxPathname = lib->base->mxPathname,
        .zName = "dust",
        .pAppData = lib,
        .xOpen = v_open,
        .xDelete = v_delete,
        .xAccess = v_access,
        .xFullPathname = v_full_pathname,
        .xDlOpen = v_dlopen,
        .xDlError = v_dlerror,
        .xDlSym = v_dlsym,
        .xDlClose = v_dlclose,
        .xRandomness = v_randomness,
        .xSleep = v_sleep,
        .xCurrentTime = v_current_time,
        .xGetLastError = v_last_error,
        .xCurrentTimeInt64 = v_current_time_int64,
        .xSetSystemCall = v_set_system_call,
        .xGetSystemCall = v_get_system_call,
        .xNextSystemCall = v_next_system_call,
    };
}
