/* Connections, and what their errors mean to whoever called the program. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "command.h"
#include "dust.h"

#define LEADER_WAIT_MS 1500
#define LEADER_LOOK_MS 20

bool is_member(const char *path)
{
    char dir[4096];
    struct stat st;

    return snprintf(dir, sizeof dir, "%s-dust", path) < (int)sizeof dir && stat(dir, &st) == 0 && S_ISDIR(st.st_mode);
}

int database_argument(const struct request *r)
{
    return r->n == 2 && is_member(r->args[0]) && !is_member(r->args[1]) ? 0 : r->n - 1;
}

int exit_code(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return EXIT_OK;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return EXIT_BUSY;
    default:
        return rc == SQLITE_IOERR_COMMIT_ATOMIC ? EXIT_UNKNOWN : EXIT_FAILED;
    }
}

/* What dust has to say about a connection's last failure; SQLite's own words say little. It is asked at a level at which
 * nothing has to be confirmed: the failure may be that nothing can be. */
static char *reason(sqlite3 *db)
{
    char *level = one_text(db, "PRAGMA dust_consistency", NULL), *why, *back;

    sqlite3_exec(db, "PRAGMA dust_consistency = stale", NULL, NULL, NULL);
    why = one_text(db, "SELECT value FROM dust_status WHERE name = 'connection_error'", NULL);
    back = level != NULL ? sqlite3_mprintf("PRAGMA dust_consistency = %s", level) : NULL;
    if (back != NULL) {
        sqlite3_exec(db, back, NULL, NULL, NULL);
    }
    sqlite3_free(back);
    sqlite3_free(level);
    return why;
}

int complain_sql(sqlite3 *db, const char *what)
{
    int rc = sqlite3_extended_errcode(db);
    char *said = sqlite3_mprintf("%s", sqlite3_errmsg(db)), *why = NULL;

    if ((rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_READONLY || rc == SQLITE_IOERR_COMMIT_ATOMIC) {
        why = reason(db);
    }
    complain(EXIT_OK, "%s%s%s%s%s", what != NULL ? what : "", what != NULL ? ": " : "", said != NULL ? said : "out of memory",
        why != NULL ? ": " : "", why != NULL ? why : "");
    if (rc == SQLITE_IOERR_COMMIT_ATOMIC) {
        complain(EXIT_OK, "what became of the transaction is not known; `SELECT dust_outcome(id)` tells, with the id above");
    }
    sqlite3_free(said);
    sqlite3_free(why);
    return exit_code(rc);
}

static sqlite3_stmt *statement(sqlite3 *db, const char *sql, const char *arg)
{
    sqlite3_stmt *stmt = NULL;

    if (sqlite3_prepare_v2(db, sql, -1, &stmt, NULL) != SQLITE_OK ||
        (arg != NULL && sqlite3_bind_text(stmt, 1, arg, -1, SQLITE_TRANSIENT) != SQLITE_OK) ||
        sqlite3_step(stmt) != SQLITE_ROW) {
        sqlite3_finalize(stmt);
        return NULL;
    }
    return stmt;
}

char *one_text(sqlite3 *db, const char *sql, const char *arg)
{
    sqlite3_stmt *stmt = statement(db, sql, arg);
    const unsigned char *v = stmt != NULL ? sqlite3_column_text(stmt, 0) : NULL;
    char *text = v != NULL ? sqlite3_mprintf("%s", v) : NULL;

    sqlite3_finalize(stmt);
    return text;
}

int print_answer(sqlite3 *db, const char *sql, const char *arg)
{
    char *text = one_text(db, sql, arg);

    if (text == NULL) {
        return complain_sql(db, NULL);
    }
    printf("%s\n", text);
    sqlite3_free(text);
    return EXIT_OK;
}

void print_stays(const char *path)
{
    printf("It is up as long as a program has it open: open %s in yours, or run `dust serve %s`.\n", path, path);
}

int64_t one_int(sqlite3 *db, const char *sql, int64_t or_else)
{
    sqlite3_stmt *stmt = statement(db, sql, NULL);
    int64_t v = stmt != NULL ? sqlite3_column_int64(stmt, 0) : or_else;

    sqlite3_finalize(stmt);
    return v;
}

static int opened(const struct request *r, const char *path, const char *level, int rc, sqlite3 **db)
{
    char *id = NULL;

    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(*db, r->timeout_ms);
        if (level != NULL) {
            sqlite3_exec(*db, level, NULL, NULL, NULL);
        }
        id = one_text(*db, "SELECT dust_id() FROM pragma_user_version", NULL); /* reads, so that what is wrong is known */
        rc = id != NULL ? SQLITE_OK : sqlite3_errcode(*db);
    }
    if (id == NULL) {
        rc = *db != NULL ? complain_sql(*db, path) : complain(EXIT_FAILED, "out of memory");
        sqlite3_close(*db);
        *db = NULL;
        return rc != EXIT_OK ? rc : EXIT_FAILED;
    }
    sqlite3_free(id);
    return EXIT_OK;
}

static int open_at(const struct request *r, const char *path, const char *level, sqlite3 **db)
{
    *db = NULL;
    if (!is_member(path)) {
        return complain(EXIT_NO_MEMBER, "%s is no member of a cluster: there is no %s-dust (`dust start` makes it one)", path,
            path);
    }
    if (dust_register() != SQLITE_OK) {
        return complain(EXIT_FAILED, "cannot register dust with SQLite");
    }
    return opened(r, path, level, sqlite3_open_v2(path, db, SQLITE_OPEN_READWRITE, NULL), db);
}

int open_member(const struct request *r, const char *path, sqlite3 **db)
{
    return open_at(r, path, NULL, db);
}

/* A member that has just been started, by us perhaps, hears of its leader soon, or of none. */
static bool leader_known(sqlite3 *db)
{
    for (int waited = 0;; waited += LEADER_LOOK_MS) {
        char *leader = one_text(db, "SELECT dust_leader()", NULL);

        sqlite3_free(leader);
        if (leader != NULL || waited >= LEADER_WAIT_MS) {
            return leader != NULL;
        }
        sqlite3_sleep(LEADER_LOOK_MS);
    }
}

int open_to_look(const struct request *r, const char *path, sqlite3 **db)
{
    int rv = open_at(r, path, "PRAGMA dust_consistency = stale", db);

    if (rv == EXIT_OK && !leader_known(*db)) {
        char *why = one_text(*db, "SELECT value FROM dust_status WHERE name = 'failure'", NULL);

        complain(EXIT_OK, "%s: %s", path,
            why != NULL ? why : "this member knows no leader: is a majority of the cluster up and reachable?");
        sqlite3_free(why);
    }
    return rv;
}

/* A file name in a URI: everything but letters, digits and a few signs as %XX. */
static void append_escaped(sqlite3_str *s, const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || strchr("/._-,:", c) != NULL) {
            sqlite3_str_appendchar(s, 1, (char)c);
        } else {
            sqlite3_str_appendf(s, "%%%02X", c);
        }
    }
}

static void append_parameter(sqlite3_str *s, const char *name, const char *value)
{
    if (value != NULL) {
        sqlite3_str_appendf(s, "&%s=", name);
        append_escaped(s, value);
    }
}

int open_new(const struct request *r, const char *path, sqlite3 **db)
{
    sqlite3_str *s = sqlite3_str_new(NULL);
    char *uri;
    int rv;

    *db = NULL;
    if (dust_register() != SQLITE_OK) {
        return complain(EXIT_FAILED, "cannot register dust with SQLite");
    }
    sqlite3_str_appendall(s, "file:");
    append_escaped(s, path);
    sqlite3_str_appendall(s, "?vfs=dust");
    append_parameter(s, "bind", r->bind);
    append_parameter(s, "join", r->join);
    append_parameter(s, "advertise", r->advertise);
    append_parameter(s, "role", r->role);
    append_parameter(s, "keyfile", r->keyfile);
    uri = sqlite3_str_finish(s);
    if (uri == NULL) {
        return complain(EXIT_FAILED, "out of memory");
    }
    rv = opened(
        r, path, NULL, sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL), db);
    sqlite3_free(uri);
    return rv;
}
