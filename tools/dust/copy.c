/* backup, restore, recover. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "dust.h"
#include "vfs/mark.h"

/* The database of this connection to a new file. */
static int copy_to(sqlite3 *db, const char *what, const char *dest, bool say)
{
    struct progress *p = progress_begin(
        what, dest, one_int(db, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", 0));
    char *text = one_text(db, "SELECT dust_backup(?)", dest);
    int rv = EXIT_OK;

    progress_end(p);
    if (text == NULL) {
        rv = complain_sql(db, NULL);
    } else if (say) {
        printf("%s: %s\n", dest, text);
    }
    sqlite3_free(text);
    return rv;
}

int run_backup(struct request *r)
{
    int at = database_argument(r);
    const char *dest = r->args[1 - at];
    sqlite3 *db;
    int rv = open_member(r, r->args[at], &db);

    if (rv == EXIT_OK) {
        rv = copy_to(db, "backup", dest, true);
        sqlite3_close(db);
    }
    return rv;
}

/* ---- restore ---- */

/* A copy of a member's file, without its folder, has the marks of its cluster on it. */
static bool has_marks(const char *path)
{
    unsigned char header[HEADER_SIZE] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool marks = fd >= 0 && pread(fd, header, sizeof header, 0) == sizeof header && mark_read(header, NULL) == MARK_DUST;

    if (fd >= 0) {
        close(fd);
    }
    return marks;
}

/* Whatever SQLite can read. */
static int copied(const struct request *r, const char *from, const char *to)
{
    sqlite3 *db = NULL;
    int rv;

    if (sqlite3_open_v2(from, &db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
        rv = complain_sql(db, from);
    } else {
        sqlite3_busy_timeout(db, r->timeout_ms);
        rv = copy_to(db, "restore", to, false);
    }
    sqlite3_close(db);
    return rv;
}

static int recovered(const char *from, const char *to, bool force)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_open(":memory:", &db), rv = EXIT_OK;

    if (rc == SQLITE_OK) {
        rc = sqlite3_prepare_v2(db, force ? "SELECT dust_recover(?, ?, 'force')" : "SELECT dust_recover(?, ?)", -1, &stmt, NULL);
    }
    if (rc == SQLITE_OK) {
        sqlite3_bind_text(stmt, 1, from, -1, SQLITE_STATIC);
        sqlite3_bind_text(stmt, 2, to, -1, SQLITE_STATIC);
        rc = sqlite3_step(stmt);
    }
    if (rc == SQLITE_ROW) {
        printf("%s\n", sqlite3_column_text(stmt, 0));
    } else {
        rv = complain_sql(db, NULL);
    }
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return rv;
}

int run_restore(struct request *r)
{
    const char *from = r->args[0], *path = r->args[1];
    struct stat st;
    sqlite3 *db;
    int rv;

    if (r->bind == NULL) {
        return complain(EXIT_USAGE, "restore needs --bind H:P, the own address of the new cluster's first member");
    }
    if (stat(from, &st) != 0) {
        return complain(EXIT_NO_MEMBER, "there is no file %s", from);
    }
    if (access(path, F_OK) == 0 || is_member(path)) {
        return complain(EXIT_FAILED, "%s exists: nothing is overwritten; give another name", path);
    }
    if (dust_register() != SQLITE_OK) {
        return complain(EXIT_FAILED, "cannot register dust with SQLite");
    }
    rv = has_marks(from) && !is_member(from) ? recovered(from, path, false) : copied(r, from, path);
    if (rv != EXIT_OK) {
        return rv; /* nothing is left of it */
    }
    rv = open_new(r, path, &db);
    if (rv != EXIT_OK) {
        if (!is_member(path)) {
            unlink(path);
        }
        return rv;
    }
    printf("%s is the first member of a new cluster, with what %s holds.\n", path, from);
    print_stays(path);
    sqlite3_close(db);
    return EXIT_OK;
}

int run_recover(struct request *r)
{
    if (dust_register() != SQLITE_OK) {
        return complain(EXIT_FAILED, "cannot register dust with SQLite");
    }
    return recovered(r->args[0], r->args[1], r->force);
}
