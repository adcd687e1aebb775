/* What only looks: status, members, log, sql. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

#define FOLLOW_WAIT_MS 500

static int print_sql(sqlite3 *db, const char *sql, bool json)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);

    if (rc == SQLITE_OK) {
        rc = print_rows(stmt, json);
    }
    if (rc != SQLITE_OK) {
        rc = complain_sql(db, NULL);
    }
    sqlite3_finalize(stmt);
    return rc;
}

static int print_table(const struct request *r, const char *sql)
{
    sqlite3 *db;
    int rv = open_to_look(r, r->args[0], &db);

    if (rv == EXIT_OK) {
        rv = print_sql(db, sql, r->json);
        sqlite3_close(db);
    }
    return rv;
}

int run_status(struct request *r)
{
    return print_table(r, "SELECT * FROM dust_status");
}

int run_members(struct request *r)
{
    return print_table(r, "SELECT * FROM dust_members");
}

/* ---- log ---- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static int print_new(sqlite3 *db, bool json, int64_t *last)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, "SELECT * FROM dust_log WHERE idx > ? ORDER BY idx", -1, &stmt, NULL);

    if (rc == SQLITE_OK) {
        sqlite3_bind_int64(stmt, 1, *last);
        while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
            *last = sqlite3_column_int64(stmt, 0);
            print_row_line(stmt, json);
        }
    }
    sqlite3_finalize(stmt);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Wait until there may be more: an entry behind the last one has been applied, or a while has passed. */
static void wait_for_more(sqlite3 *db, int64_t last)
{
    char sql[80];

    snprintf(sql, sizeof sql, "SELECT dust_wait(%lld, %d)", (long long)last + 1, FOLLOW_WAIT_MS);
    sqlite3_exec(db, sql, NULL, NULL, NULL);
}

static int follow(sqlite3 *db, bool json)
{
    struct sigaction act = {.sa_handler = on_signal};
    int64_t last = 0;
    int rc = SQLITE_OK;

    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    while (rc == SQLITE_OK && !interrupted && !ferror(stdout)) {
        rc = print_new(db, json, &last);
        if (rc == SQLITE_OK && !interrupted) {
            wait_for_more(db, last);
        }
    }
    return rc != SQLITE_OK && !interrupted ? complain_sql(db, NULL) : EXIT_OK;
}

int run_log(struct request *r)
{
    sqlite3 *db;
    int rv = open_to_look(r, r->args[0], &db);

    if (rv != EXIT_OK) {
        return rv;
    }
    rv = r->follow ? follow(db, r->json) : print_sql(db, "SELECT * FROM dust_log", r->json);
    sqlite3_close(db);
    return rv;
}

/* ---- sql ---- */

int run_sql(struct request *r)
{
    int at = database_argument(r);
    const char *sql = r->args[1 - at];
    sqlite3 *db;
    int rv = open_member(r, r->args[at], &db);

    if (rv != EXIT_OK) {
        return rv;
    }
    while (rv == EXIT_OK && *sql != '\0') {
        sqlite3_stmt *stmt = NULL;
        int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, &sql);

        if (rc == SQLITE_OK && stmt != NULL) {
            rc = sqlite3_column_count(stmt) != 0 ? print_rows(stmt, r->json) : sqlite3_step(stmt);
            rc = rc == SQLITE_DONE ? SQLITE_OK : rc;
        }
        if (rc != SQLITE_OK) {
            rv = complain_sql(db, NULL);
        }
        sqlite3_finalize(stmt);
    }
    if (rv == EXIT_OK && sqlite3_get_autocommit(db) == 0) {
        rv = complain(EXIT_FAILED, "the transaction was not committed, and is rolled back");
    }
    sqlite3_close(db);
    return rv;
}
