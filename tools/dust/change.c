/* What changes a cluster: start, join, remove, promote, demote, transfer, leave; and makes a key for one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "raft/key.h"
#include "raft/smallfile.h"

static int refuse_member(const char *path)
{
    return is_member(path) ? complain(EXIT_FAILED, "%s is a member of a cluster already: there is %s-dust", path, path)
                           : EXIT_OK;
}

static int made(sqlite3 *db, const char *path)
{
    int rv = print_answer(
        db, "SELECT printf('%s is member %d, at %s, %s.', ?, id, address, role) FROM dust_members WHERE is_self", path);

    if (rv == EXIT_OK) {
        print_stays(path);
    }
    return rv;
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
        rv = made(db, r->args[0]);
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
        rv = made(db, r->args[0]);
        sqlite3_close(db);
    }
    return rv;
}

/* ---- by id ---- */

/* done: what is then so of the member. */
static int change(const struct request *r, const char *function, const char *done)
{
    int at = database_argument(r);
    const char *id = r->args[1 - at];
    char sql[160], *end;
    sqlite3 *db;
    int rv;

    if (strtoull(id, &end, 10) == 0 || *end != '\0' || id[0] == '-') {
        return complain(EXIT_USAGE, "%s: the id of a member is a number (`dust members` lists them)", id);
    }
    rv = open_member(r, r->args[at], &db);
    if (rv == EXIT_OK) {
        snprintf(sql, sizeof sql, "SELECT printf('Member %%d %s.', %s(CAST(? AS INTEGER)))", done, function);
        rv = print_answer(db, sql, id);
        sqlite3_close(db);
    }
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
    int rv = open_member(r, r->args[0], &db);

    if (rv == EXIT_OK) {
        rv = print_answer(db, "SELECT dust_leave()", NULL);
        sqlite3_close(db);
    }
    return rv;
}

/* ---- keys ---- */

int run_key(struct request *r)
{
    const char *file = r->n != 0 ? r->args[0] : NULL;
    char line[KEY_LINE_MAX], hint[KEY_HINT_TEXT];
    struct keys keys;
    struct err e;
    int rv = key_make(line, &e);

    if (rv == DUST_OK && file != NULL) {
        rv = smallfile_make(file, line, strlen(line), &e);
    }
    if (rv == DUST_OK) {
        rv = keys_parse(line, strlen(line), "the key", &keys, &e);
    }
    if (rv != DUST_OK) {
        return complain(EXIT_FAILED, "%s", e.text);
    }
    if (file == NULL) {
        fputs(line, stdout);
    } else {
        printf("%s holds the key %s. Copy it to the other hosts by a safe way; each member takes it with --keyfile %s, or "
               "keyfile=%s in its URI.\n",
            file, key_hint(&keys, 0, hint), file, file);
    }
    return EXIT_OK;
}
