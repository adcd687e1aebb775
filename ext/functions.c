/* The SQL functions. All are registered on every connection; those about a member say so when there is none.
 *
 * A function is called with SQLite's table of functions known only by which copy of SQLite calls: the trampolines, one
 * for each copy, know it. user_data is a struct registration: the function and the connection. */
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/lib.h"
#include "ext/recover.h"
#include "vfs/mark.h"

#define CHANGE_TIMEOUT_MS 30000u
#define OUTCOME_TIMEOUT_MS 5000u

struct function;
struct registration {
    const struct function *f;
    struct conn *c;
};

struct args {
    const sqlite3_api_routines *api;
    struct conn *c;
    sqlite3_context *ctx;
    int n;
    sqlite3_value **v;
};

struct function {
    const char *name;
    int n_args;
    void (*run)(struct args *a, struct hosted *h);
    bool without_member; /* run even if the connection has no member */
};

static void fail(struct args *a, const struct err *e)
{
    int rc = sqlite_code(e->code);

    /* result_error sets SQLITE_ERROR; the code that follows replaces it and keeps the text. */
    a->api->result_error(a->ctx, e->text, -1);
    a->api->result_error_code(a->ctx, rc);
}

static void text(struct args *a, const char *s)
{
    a->api->result_text(a->ctx, s, -1, SQLITE_TRANSIENT);
}

static void fn_version(struct args *a, struct hosted *h)
{
    (void)h;
    text(a, DUST_VERSION_TEXT);
}

static void fn_id(struct args *a, struct hosted *h)
{
    a->api->result_int64(a->ctx, (sqlite3_int64)h->db->origin);
}

static void fn_role(struct args *a, struct hosted *h)
{
    struct node_view v;

    node_view(h->node, &v);
    text(a, v.role);
}

static void fn_leader(struct args *a, struct hosted *h)
{
    struct node_view v;

    node_view(h->node, &v);
    if (v.leader_id != 0) {
        text(a, v.leader);
    }
}

static void fn_head(struct args *a, struct hosted *h)
{
    char hex[VID_HEX_SIZE];
    struct head_info head;

    store_agreed(h->db->store, &head);
    text(a, vid_hex(&head.id, hex));
}

static void fn_index(struct args *a, struct hosted *h)
{
    a->api->result_int64(a->ctx, (sqlite3_int64)store_applied(h->db->store));
}

static void fn_wait(struct args *a, struct hosted *h)
{
    sqlite3_int64 index = a->api->value_int64(a->v[0]), ms = a->api->value_int64(a->v[1]);

    if (index < 0 || ms < 0 || ms > 86400000) {
        struct err e;

        err_set(&e, DUST_MISUSE, "dust_wait(index, ms): an index and a time from 0 to 86400000 ms are needed");
        fail(a, &e);
        return;
    }
    a->api->result_int(
        a->ctx, store_wait_applied(h->db->store, (uint64_t)index, (uint32_t)ms) == DUST_OK);
}

static void change(struct args *a, struct hosted *h, enum node_change what)
{
    sqlite3_int64 id = a->api->value_int64(a->v[0]);
    struct err e;

    if (id <= 0) {
        err_set(&e, DUST_MISUSE, "the id of a member is needed (see SELECT id, address FROM dust_members)");
        fail(a, &e);
        return;
    }
    if (node_change(h->node, what, (uint64_t)id, CHANGE_TIMEOUT_MS, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    a->api->result_int64(a->ctx, id);
}

static void fn_remove(struct args *a, struct hosted *h)
{
    change(a, h, CHANGE_REMOVE);
}

static void fn_promote(struct args *a, struct hosted *h)
{
    change(a, h, CHANGE_PROMOTE);
}

static void fn_demote(struct args *a, struct hosted *h)
{
    change(a, h, CHANGE_DEMOTE);
}

static void fn_transfer(struct args *a, struct hosted *h)
{
    change(a, h, CHANGE_TRANSFER);
}

static void fn_checkpoint(struct args *a, struct hosted *h)
{
    struct err e;

    if (node_checkpoint(h->node, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    fn_head(a, h);
}

static const char *arg_text(struct args *a, int i);

static void fn_outcome(struct args *a, struct hosted *h)
{
    static const char *const names[] = {[OUTCOME_UNKNOWN] = "unknown", [OUTCOME_PENDING] = "pending",
        [OUTCOME_AGREED] = "agreed", [OUTCOME_VOID] = "void"};
    const char *hex = arg_text(a, 0);
    sqlite3_int64 after = a->n > 1 ? a->api->value_int64(a->v[1]) : 0;
    enum outcome outcome;
    struct vid id;
    struct err e;

    if (hex == NULL || !vid_parse(&id, hex) || after < 0) {
        err_set(&e, DUST_MISUSE,
            "dust_outcome(id): the 32 hex digits of a transaction's id are needed, as the error of a commit names them");
        fail(a, &e);
        return;
    }
    for (struct dfile *f = a->c->files; f != NULL; f = f->next) {
        if (f->writing || f->has_turn) {
            err_set(&e, DUST_MISUSE, "dust_outcome(id): a write transaction is open on this connection: end it first");
            fail(a, &e);
            return;
        }
    }
    if (node_outcome(h->node, &id, (uint64_t)after, OUTCOME_TIMEOUT_MS, &outcome, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    text(a, names[outcome]);
}

static void fn_recover(struct args *a, struct hosted *h)
{
    const char *word = arg_text(a, 2);
    char said[ERR_TEXT_MAX];
    struct err e;
    int rv;

    (void)h;
    if (a->n > 2 && (word == NULL || strcmp(word, "force") != 0)) {
        rv = err_set(&e, DUST_MISUSE, "dust_recover(src, dest, 'force'): the third argument can only be 'force'");
    } else {
        rv = recover_run(a->c->lib, arg_text(a, 0), arg_text(a, 1), a->n > 2, said, &e);
    }
    if (rv != DUST_OK) {
        fail(a, &e);
        return;
    }
    text(a, said);
}

static bool idle(struct args *a)
{
    struct err e;

    if (a->api->get_autocommit(a->c->db) != 0) {
        return true;
    }
    err_set(&e, DUST_MISUSE, "a transaction is open on this connection: end it first");
    fail(a, &e);
    return false;
}

static void fn_leave(struct args *a, struct hosted *h)
{
    struct err e;

    if (!idle(a)) {
        return;
    }
    if (registry_leave(h, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    text(a, "left the cluster: the file is an ordinary database again; close this connection and open it anew");
}

/* A copy of a member's database cannot become a cluster as it stands. */
static int unmarked(struct args *a, const char *path, struct err *e)
{
    uint8_t header[HEADER_SIZE] = {0};
    sqlite3_file *file = NULL;

    if (a->api->file_control(a->c->db, "main", SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK || file == NULL ||
        file->pMethods == NULL) {
        return err_set(e, DUST_MISUSE, "the connection has no file for its main database");
    }
    file->pMethods->xRead(file, header, sizeof header, 0); /* zeros beyond its end */
    return mark_read(header, NULL) == MARK_NONE
               ? DUST_OK
               : err_set(e, DUST_REFUSED,
                     "%s is a copy of a member's database (its folder %s-dust is not there): a cluster cannot be started "
                     "on it as it stands; VACUUM INTO makes an ordinary database of it",
                     path, path);
}

/* An ordinary rollback-mode database with at least a first page, by means of the connection itself. */
static int make_ready(struct args *a, struct err *e)
{
    sqlite3_stmt *stmt = NULL;
    const char *mode = NULL;
    char *why = NULL, *sql;
    int version = 0, rv = DUST_OK;

    if (a->api->prepare_v2(a->c->db, "PRAGMA main.journal_mode=DELETE", -1, &stmt, NULL) == SQLITE_OK &&
        a->api->step(stmt) == SQLITE_ROW) {
        mode = (const char *)a->api->column_text(stmt, 0);
    }
    if (mode == NULL || strcmp(mode, "delete") != 0) {
        rv = err_set(e, DUST_REFUSED,
            "the database cannot be brought out of its journal mode (WAL, most likely): %s; close the other connections "
            "to it and try again",
            a->api->errmsg(a->c->db));
    }
    a->api->finalize(stmt);
    if (rv != DUST_OK) {
        return rv;
    }
    stmt = NULL;
    if (a->api->prepare_v2(a->c->db, "PRAGMA main.user_version", -1, &stmt, NULL) == SQLITE_OK &&
        a->api->step(stmt) == SQLITE_ROW) {
        version = a->api->column_int(stmt, 0);
    }
    a->api->finalize(stmt);
    sql = a->api->mprintf("PRAGMA main.user_version=%d", version);
    if (sql == NULL || a->api->exec(a->c->db, sql, NULL, NULL, &why) != SQLITE_OK) {
        rv = err_set(e, DUST_REFUSED, "the database cannot be written: %s", why != NULL ? why : "out of memory");
    }
    a->api->free(sql);
    a->api->free(why);
    return rv;
}

static const char *main_path(struct args *a, struct err *e)
{
    const char *path = a->api->db_filename(a->c->db, "main");

    if (path == NULL || *path == '\0') {
        err_set(e, DUST_MISUSE, "this connection's main database has no file: open one first");
        return NULL;
    }
    return path;
}

static const char *arg_text(struct args *a, int i)
{
    return i < a->n ? (const char *)a->api->value_text(a->v[i]) : NULL;
}

static void fn_start(struct args *a, struct hosted *h)
{
    struct start_options o;
    const char *path;
    struct err e;

    if (h != NULL) {
        err_set(&e, DUST_EXISTS, "this database is a member of a cluster already (id %llu)",
            (unsigned long long)h->db->origin);
        fail(a, &e);
        return;
    }
    start_options_init(&o);
    o.bind = arg_text(a, 0);
    path = main_path(a, &e);
    if (path == NULL || !idle(a)) {
        if (path == NULL) {
            fail(a, &e);
        }
        return;
    }
    if (registry_check_own(&o, &e) != DUST_OK || unmarked(a, path, &e) != DUST_OK || make_ready(a, &e) != DUST_OK ||
        registry_start(a->c->lib, path, &o, &h, &e) != DUST_OK || lib_adopt(a->c, h, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    text(a, h->address);
}

static void fn_join(struct args *a, struct hosted *h)
{
    struct start_options o;
    const char *path;
    struct err e;

    if (h != NULL) {
        err_set(&e, DUST_EXISTS, "this database is a member of a cluster already (id %llu)",
            (unsigned long long)h->db->origin);
        fail(a, &e);
        return;
    }
    start_options_init(&o);
    o.bind = arg_text(a, 0);
    o.join = arg_text(a, 1);
    path = main_path(a, &e);
    if (path == NULL) {
        fail(a, &e);
        return;
    }
    if (!idle(a)) {
        return;
    }
    if (registry_join(a->c->lib, path, &o, &h, &e) != DUST_OK || lib_adopt(a->c, h, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    text(a, h->address);
}

static const struct function functions[] = {
    {"dust_version", 0, fn_version, true},
    {"dust_start", 1, fn_start, true},
    {"dust_join", 2, fn_join, true},
    {"dust_leave", 0, fn_leave, false},
    {"dust_id", 0, fn_id, false},
    {"dust_role", 0, fn_role, false},
    {"dust_leader", 0, fn_leader, false},
    {"dust_head", 0, fn_head, false},
    {"dust_index", 0, fn_index, false},
    {"dust_wait", 2, fn_wait, false},
    {"dust_remove", 1, fn_remove, false},
    {"dust_promote", 1, fn_promote, false},
    {"dust_demote", 1, fn_demote, false},
    {"dust_transfer", 1, fn_transfer, false},
    {"dust_checkpoint", 0, fn_checkpoint, false},
    {"dust_recover", 2, fn_recover, true},
    {"dust_recover", 3, fn_recover, true},
    {"dust_outcome", 1, fn_outcome, false},
    {"dust_outcome", 2, fn_outcome, false},
};

static void call(unsigned number, sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct sqlite_lib *lib = lib_at(number);
    const struct registration *r = lib->api->user_data(ctx);
    struct args a = {.api = lib->api, .c = r->c, .ctx = ctx, .n = n, .v = v};
    struct hosted *h = lib_member(r->c);

    if (!r->f->without_member && (h == NULL || h->node == NULL)) {
        struct err e;

        err_set(&e, DUST_MISUSE,
            "%s(): this connection's database is not a member of a cluster (SELECT dust_start('127.0.0.1:4001') makes "
            "it one)",
            r->f->name);
        fail(&a, &e);
        return;
    }
    r->f->run(&a, h);
}

#define TRAMPOLINES(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define X(i)                                                                                                 \
    static void call_##i(sqlite3_context *ctx, int n, sqlite3_value **v)                                     \
    {                                                                                                        \
        call(i, ctx, n, v);                                                                                  \
    }
TRAMPOLINES(X)
#undef X

static void (*const trampolines[LIBS_MAX])(sqlite3_context *, int, sqlite3_value **) = {
#define X(i) call_##i,
    TRAMPOLINES(X)
#undef X
};

static void destroy(void *arg)
{
    free(arg);
}

/* The destructor of one function tells that the connection is gone. */
static void destroy_last(void *arg)
{
    struct registration *r = arg;

    conn_forget(r->c);
    free(r);
}

int functions_register(struct conn *c)
{
    int rc = SQLITE_OK;

    for (size_t i = 0; rc == SQLITE_OK && i < sizeof functions / sizeof functions[0]; i++) {
        struct registration *r = malloc(sizeof *r);

        if (r == NULL) {
            return SQLITE_NOMEM;
        }
        *r = (struct registration){.f = &functions[i], .c = c};
        rc = c->lib->api->create_function_v2(c->db, functions[i].name, functions[i].n_args,
            SQLITE_UTF8 | (functions[i].run == fn_version ? 0 : SQLITE_DIRECTONLY), r, trampolines[c->lib->number],
            NULL, NULL, i == 0 ? destroy_last : destroy);
        if (i == 0) {
            c->set_up = true; /* from here on the destructor forgets the connection */
        }
    }
    return rc;
}
