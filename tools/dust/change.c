/* What changes a cluster: start, join, remove, promote, demote, transfer, leave. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static void print_stays(const char *path)
{
    printf("It is up as long as a program has it open: open %s in yours, or run `dust serve %s`.\n", path, path);
}

static int refuse_member(const char *path)
{
    return is_member(path) ? complain(EXIT_FAILED, "%s is a member of a cluster already: there is %s-dust", path, path)
                           : EXIT_OK;
}

static int made(sqlite3 *db, const char *path, const char *what)
{
    char *text = one_text(db,
        "SELECT printf('%s is member %d, at %s, %s', ?, id, address, role) FROM dust_members WHERE is_self", path);

    if (text == NULL) {
        return complain_sql(db, path);
    }
    printf("%s%s.\n", text, what);
    sqlite3_free(text);
    print_stays(path);
    return EXIT_OK;
}

int run_start(struct request *r)
{
    sqlite3 *db;
    int rv = refuse_member(r->args[0]);

    if (rv == EXIT_OK && r->bind == NULL) {
        rv = complain(EXIT_USAGE, "start needs --bind H:P, the own address");
    }
    if (rv == EXIT_OK) {
        rv = open_new(r, r->args[0], &db);
    }
    if (rv == EXIT_OK) {
        rv = made(db, r->args[0], ", of a new cluster");
        sqlite3_close(db);
    }
    return rv;
}

int run_join(struct request *r)
{
    struct progress *p;
    sqlite3 *db;
    int rv = refuse_member(r->args[0]);

    if (rv == EXIT_OK && (r->bind == NULL || r->join == NULL)) {
        rv = complain(EXIT_USAGE, "join needs --bind H:P, the own address, and --join H:P, that of a member");
    }
    if (rv != EXIT_OK) {
        return rv;
    }
    p = progress_begin("joining", r->args[0], 0);
    rv = open_new(r, r->args[0], &db);
    progress_end(p);
    if (rv == EXIT_OK) {
        rv = made(db, r->args[0], ", and has caught up");
        sqlite3_close(db);
    }
    return rv;
}

/* ---- by id ---- */

static int change(const struct request *r, const char *function, const char *done)
{
    int at = database_argument(r);
    const char *id = r->args[1 - at];
    char sql[64];
    char *end, *text;
    sqlite3 *db;
    int rv;

    if (strtoull(id, &end, 10) == 0 || *end != '\0' || id[0] == '-') {
        return complain(EXIT_USAGE, "%s: the id of a member is a number (`dust members` lists them)", id);
    }
    rv = open_member(r, r->args[at], &db);
    if (rv != EXIT_OK) {
        return rv;
    }
    snprintf(sql, sizeof sql, "SELECT %s(CAST(? AS INTEGER))", function);
    text = one_text(db, sql, id);
    if (text == NULL) {
        rv = complain_sql(db, NULL);
    } else {
        printf("Member %s %s.\n", id, done);
    }
    sqlite3_free(text);
    sqlite3_close(db);
    return rv;
}

int run_remove(struct request *r)
{
    return change(r, "dust_remove", "is out of the cluster");
}

int run_promote(struct request *r)
{
    return change(r, "dust_promote", "is a voter");
}

int run_demote(struct request *r)
{
    return change(r, "dust_demote", "is a standby");
}

int run_transfer(struct request *r)
{
    return change(r, "dust_transfer", "is to be the leader");
}

int run_leave(struct request *r)
{
    sqlite3 *db;
    char *text;
    int rv = open_member(r, r->args[0], &db);

    if (rv != EXIT_OK) {
        return rv;
    }
    text = one_text(db, "SELECT dust_leave()", NULL);
    if (text == NULL) {
        rv = complain_sql(db, NULL);
    } else {
        printf("%s\n", text);
    }
    sqlite3_free(text);
    sqlite3_close(db);
    return rv;
}

/* ---- keys ---- */

int run_key(struct request *r)
{
    (void)r;
    return complain(EXIT_FAILED, "keys are not there yet: members talk on loopback only");
}
