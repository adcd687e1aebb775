/* SQLite, plain or with dust: the target is the database's path. In the environment, BENCH_LOAD names libdust, and
 * BENCH_SYNCHRONOUS is the value of that pragma for every connection (FULL). */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

#define BUSY_MS 30000

struct conn {
    sqlite3 *db;
    const struct job *job;
    sqlite3_stmt *begin, *insert, *commit, *update, *read, *scan;
    char *text; /* job.size bytes and a zero */
};

static bool load(char *why)
{
    static bool loaded; /* the first connection is made before there are threads */
    const char *lib = getenv("BENCH_LOAD");
    sqlite3 *db = NULL;
    char *text = NULL;
    bool ok;

    if (loaded || lib == NULL) {
        return true;
    }
    ok = sqlite3_open(":memory:", &db) == SQLITE_OK && sqlite3_enable_load_extension(db, 1) == SQLITE_OK &&
         sqlite3_load_extension(db, lib, NULL, &text) == SQLITE_OK;
    if (!ok) {
        snprintf(why, WHY_MAX, "%s", text != NULL ? text : sqlite3_errmsg(db));
    }
    sqlite3_free(text);
    sqlite3_close(db);
    loaded = ok;
    return ok;
}

static sqlite3 *open_db(const char *path, char *why)
{
    const char *level = getenv("BENCH_SYNCHRONOUS");
    char pragma[60];
    sqlite3 *db;

    if (!load(why)) {
        return NULL;
    }
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        snprintf(why, WHY_MAX, "%s", sqlite3_errmsg(db));
        sqlite3_close(db);
        return NULL;
    }
    sqlite3_busy_timeout(db, BUSY_MS);
    snprintf(pragma, sizeof pragma, "PRAGMA synchronous=%s", level != NULL ? level : "FULL");
    sqlite3_exec(db, pragma, NULL, NULL, NULL);
    return db;
}

static void close_conn(void *ctx)
{
    struct conn *c = ctx;
    sqlite3_stmt *all[] = {c->begin, c->insert, c->commit, c->update, c->read, c->scan};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        sqlite3_finalize(all[i]);
    }
    sqlite3_close(c->db);
    free(c->text);
    free(c);
}

static bool prepare(struct conn *c)
{
    const struct {
        sqlite3_stmt **stmt;
        const char *sql;
    } all[] = {
        {&c->begin, "BEGIN IMMEDIATE"},
        {&c->insert, "INSERT INTO foo(name) VALUES(?)"},
        {&c->commit, "COMMIT"},
        {&c->update, "UPDATE p SET name = ?2 WHERE id = ?1"},
        {&c->read, "SELECT name FROM p WHERE id = ?"},
        {&c->scan, "SELECT name FROM p WHERE id >= ? LIMIT ?"},
    };
    char pragma[60];

    if (c->job->cache != 0) {
        snprintf(pragma, sizeof pragma, "PRAGMA cache_size=%u", c->job->cache);
        sqlite3_exec(c->db, pragma, NULL, NULL, NULL);
    }
    if (c->job->linearizable) {
        sqlite3_exec(c->db, "PRAGMA dust_consistency=linearizable", NULL, NULL, NULL);
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (sqlite3_prepare_v2(c->db, all[i].sql, -1, all[i].stmt, NULL) != SQLITE_OK) {
            return false;
        }
    }
    return true;
}

static void *open_conn(const char *target, const struct job *job, char *why)
{
    struct conn *c = calloc(1, sizeof *c);
    char *text = new_text(job->size);

    if (c == NULL || text == NULL) {
        snprintf(why, WHY_MAX, "out of memory");
        free(text);
        free(c);
        return NULL;
    }
    c->text = text;
    c->job = job;
    c->db = open_db(target, why);
    if (c->db == NULL || !prepare(c)) {
        if (c->db != NULL) {
            snprintf(why, WHY_MAX, "%s", sqlite3_errmsg(c->db));
        }
        close_conn(c);
        return NULL;
    }
    return c;
}

/* Runs it to its end; how many rows it gave, or -1. */
static int rows_of(sqlite3_stmt *stmt)
{
    int rc, rows = 0;

    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (sqlite3_column_bytes(stmt, 0) > 0) {
            rows++;
        }
    }
    return sqlite3_reset(stmt) == SQLITE_OK && rc == SQLITE_DONE ? rows : -1;
}

static bool insert(void *ctx, uint64_t unique)
{
    struct conn *c = ctx;
    bool one = c->job->rows == 1, ok = one || rows_of(c->begin) == 0;

    (void)unique;
    for (unsigned i = 0; ok && i < c->job->rows; i++) {
        sqlite3_bind_text(c->insert, 1, c->text, (int)c->job->size, SQLITE_STATIC);
        ok = rows_of(c->insert) == 0;
    }
    ok = ok && (one || rows_of(c->commit) == 0);
    if (!ok && !sqlite3_get_autocommit(c->db)) {
        sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    }
    return ok;
}

static bool update(void *ctx, uint64_t key)
{
    struct conn *c = ctx;

    next_text(c->text, c->job->size);
    sqlite3_bind_int64(c->update, 1, (sqlite3_int64)key);
    sqlite3_bind_text(c->update, 2, c->text, (int)c->job->size, SQLITE_STATIC);
    return rows_of(c->update) == 0;
}

static bool read_one(void *ctx, uint64_t key)
{
    struct conn *c = ctx;

    sqlite3_bind_int64(c->read, 1, (sqlite3_int64)key);
    return rows_of(c->read) == 1;
}

static bool scan(void *ctx, uint64_t key)
{
    struct conn *c = ctx;

    sqlite3_bind_int64(c->scan, 1, (sqlite3_int64)key);
    sqlite3_bind_int(c->scan, 2, (int)c->job->rows);
    return rows_of(c->scan) > 0;
}

static const char *error(void *ctx)
{
    struct conn *c = ctx;

    return sqlite3_errcode(c->db) == SQLITE_OK ? "not the rows that should be there" : sqlite3_errmsg(c->db);
}

static int print_row(void *ctx, int n, char **values, char **names)
{
    (void)ctx;
    (void)names;
    for (int i = 0; i < n; i++) {
        printf("%s%s", i == 0 ? "" : "|", values[i] != NULL ? values[i] : "");
    }
    putchar('\n');
    return 0;
}

/* On a connection that stays open: a member lives as long as something has it open. */
static bool sql(const char *target, const char *statement, char *why)
{
    static sqlite3 *db; /* commands come from one thread */
    char *text = NULL;
    bool ok;

    if (db == NULL) {
        db = open_db(target, why);
    }
    if (db == NULL) {
        return false;
    }
    ok = sqlite3_exec(db, statement, print_row, NULL, &text) == SQLITE_OK;
    if (!ok) {
        snprintf(why, WHY_MAX, "%s", text != NULL ? text : sqlite3_errmsg(db));
    }
    sqlite3_free(text);
    return ok;
}

const struct driver driver = {open_conn, insert, update, read_one, scan, error, close_conn, sql};
