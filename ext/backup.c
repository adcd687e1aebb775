/* The pages are those that SQLite's backup reads in one transaction (https://www.sqlite.org/c3ref/backup_finish.html):
 * a snapshot, which stays what it is however long it takes. The copy needs no journal: until it is whole it is nobody's. */
#include "ext/backup.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext/folder.h"
#include "ext/lib.h"
#include "vfs/fd.h"
#include "vfs/file.h"

#define STEP_PAGES 256
#define PATH_SIZE 4096
#define BUSY_MS 10000

static int failed(const sqlite3_api_routines *api, sqlite3 *db, int rc, const char *path, struct err *e)
{
    int code = (rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED ? DUST_BUSY
               : (rc & 0xff) == SQLITE_FULL                               ? DUST_FULL
               : (rc & 0xff) == SQLITE_NOMEM                              ? DUST_NOMEM
               : (rc & 0xff) == SQLITE_CORRUPT                            ? DUST_CORRUPT
                                                                          : DUST_IO;

    return err_set(e, code, "cannot copy %s: %s", path, db != NULL ? api->errmsg(db) : "out of memory");
}

static int copy(struct sqlite_lib *lib, const char *path, const char *partial, int *n_pages, int *page_size, struct err *e)
{
    const sqlite3_api_routines *api = lib->api;
    sqlite3 *from = NULL, *to = NULL;
    sqlite3_backup *b = NULL;
    int rv = DUST_OK;
    int rc = api->open_v2(path, &from, SQLITE_OPEN_READWRITE, lib->vfs.zName);

    if (rc == SQLITE_OK) {
        api->busy_timeout(from, BUSY_MS);
        rc = api->exec(from, "BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1", NULL, NULL, NULL);
    }
    if (rc != SQLITE_OK) {
        rv = failed(api, from, rc, path, e);
        goto out;
    }
    rc = api->open_v2(partial, &to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, lib->base->zName);
    if (rc == SQLITE_OK) {
        rc = api->exec(to, "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF", NULL, NULL, NULL);
    }
    b = rc == SQLITE_OK ? api->backup_init(to, "main", from, "main") : NULL;
    if (b != NULL) {
        do {
            rc = api->backup_step(b, STEP_PAGES);
        } while (rc == SQLITE_OK);
        *n_pages = api->backup_pagecount(b);
        rc = api->backup_finish(b);
    } else if (rc == SQLITE_OK) {
        rc = api->errcode(to);
    }
    if (rc != SQLITE_OK) {
        rv = failed(api, to, rc, path, e);
    } else {
        *page_size = lib_int(lib, from, "PRAGMA page_size");
    }
out:
    api->close(to);
    api->close(from);
    return rv;
}

/* Flush it, and give it its name, unless somebody else has that by now. */
static int finish(const char *partial, const char *dest, struct err *e)
{
    int fd = fd_high(open(partial, O_RDWR | O_CLOEXEC)), rv = DUST_OK;

    if (fd < 0 || fsync(fd) != 0) {
        rv = err_sys(e, errno, "cannot flush %s", partial);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (rv == DUST_OK && link(partial, dest) != 0) {
        rv = errno == EEXIST ? err_set(e, DUST_EXISTS, "%s exists: nothing is overwritten; give another name", dest)
                             : err_sys(e, errno, "cannot make %s", dest);
    }
    return rv;
}

int backup_run(struct sqlite_lib *lib, const char *path, const char *dest, int *n_pages, int *page_size, struct err *e)
{
    char full[PATH_SIZE], partial[PATH_SIZE + 16];
    struct stat st;
    int fd, rv;

    if (dest == NULL || *dest == '\0' || lib->base->xFullPathname(lib->base, dest, PATH_SIZE, full) != SQLITE_OK) {
        return err_set(e, DUST_MISUSE, "the name of a file to be made is needed");
    }
    if (stat(full, &st) == 0 || registry_is_member_path(full)) {
        return err_set(e, DUST_EXISTS, "%s%s exists: nothing is overwritten; give another name", full,
            stat(full, &st) == 0 ? "" : "-dust");
    }
    snprintf(partial, sizeof partial, "%s.partial", full);
    fd = fd_high(open(partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (fd < 0) {
        return errno == EEXIST ? err_set(e, DUST_EXISTS,
                                     "%s exists: another backup is being made, or was cut short; delete it in that case", partial)
                               : err_sys(e, errno, "cannot make %s", partial);
    }
    close(fd);
    rv = copy(lib, path, partial, n_pages, page_size, e);
    if (rv == DUST_OK) {
        rv = finish(partial, full, e);
    }
    unlink(partial);
    if (rv == DUST_OK) {
        rv = folder_flush_parent(full, e);
        if (rv != DUST_OK) {
            unlink(full);
        }
    }
    return rv;
}
