/* backup, restore, recover. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "dust.h"

#define STEP_PAGES 256
#define MARK 3 /* in a header, of a database that is a member's: plain SQLite reads it, and does not write */

int run_backup(struct request *r)
{
    int at = database_argument(r);
    const char *dest = r->args[1 - at];
    struct progress *p;
    sqlite3 *db;
    char *text;
    int rv = open_member(r, r->args[at], &db);

    if (rv != EXIT_OK) {
        return rv;
    }
    p = progress_begin("backup", dest, one_int(db, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size", 0));
    text = one_text(db, "SELECT dust_backup(?)", dest);
    progress_end(p);
    if (text == NULL) {
        rv = complain_sql(db, NULL);
    } else {
        printf("%s: %s\n", dest, text);
    }
    sqlite3_free(text);
    sqlite3_close(db);
    return rv;
}

/* ---- restore ---- */

static int has_marks(const char *path)
{
    unsigned char header[20] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int marks = fd >= 0 && pread(fd, header, sizeof header, 0) == sizeof header && header[18] == MARK;

    if (fd >= 0) {
        close(fd);
    }
    return marks;
}

/* Whatever SQLite can read: the pages as of one moment. */
static int copy(const struct request *r, const char *from_path, const char *to_path)
{
    sqlite3 *from = NULL, *to = NULL;
    sqlite3_backup *b;
    int rc = sqlite3_open_v2(from_path, &from, SQLITE_OPEN_READONLY, NULL), rv = EXIT_OK;

    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(from, r->timeout_ms);
        rc = sqlite3_exec(from, "BEGIN; SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
    }
    if (rc != SQLITE_OK) {
        rv = complain_sql(from, from_path);
        sqlite3_close(from);
        return rv;
    }
    rc = sqlite3_open_v2(to_path, &to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    b = rc == SQLITE_OK ? sqlite3_backup_init(to, "main", from, "main") : NULL;
    if (b != NULL) {
        do {
            rc = sqlite3_backup_step(b, STEP_PAGES);
        } while (rc == SQLITE_OK);
        sqlite3_backup_finish(b);
    }
    if (b == NULL || rc != SQLITE_DONE) {
        rv = complain_sql(to, to_path);
        rv = rv != EXIT_OK ? rv : EXIT_FAILED;
    } else if (sqlite3_exec(to, "PRAGMA journal_mode = DELETE", NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(to, to_path); /* it was one in WAL mode */
    }
    sqlite3_close(to);
    sqlite3_close(from);
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

static void drop(const char *path)
{
    char name[4096];

    unlink(path);
    if (snprintf(name, sizeof name, "%s-journal", path) < (int)sizeof name) {
        unlink(name);
    }
}

int run_restore(struct request *r)
{
    const char *from = r->args[0], *path = r->args[1];
    struct progress *p;
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
    p = progress_begin("restore", path, (int64_t)st.st_size);
    /* A copy of a member's file without its folder has the marks of its cluster on it. */
    rv = has_marks(from) && !is_member(from) ? recovered(from, path, false) : copy(r, from, path);
    progress_end(p);
    if (rv == EXIT_OK) {
        rv = open_new(r, path, &db);
    }
    if (rv != EXIT_OK) {
        if (!is_member(path)) {
            drop(path);
        }
        return rv;
    }
    printf("%s is the first member of a new cluster, with what %s holds.\n"
           "It is up as long as a program has it open: open it in yours, or run `dust serve %s`.\n",
        path, from, path);
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
