/* The SQL functions. All are registered on every connection; those about a member say so when there is none.
 *
 * Those of the first kind (`callables`) are answered by the process that hosts the member; their arguments and results
 * are cells. The others are about this process and its connection.
 *
 * A function is called with SQLite's table of functions known only by which copy of SQLite calls: the trampolines, one
 * for each copy, know it. user_data is a struct registration: the function and the connection. */
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/backup.h"
#include "ext/call.h"
#include "ext/lib.h"
#include "ext/recover.h"
#include "vfs/mark.h"

#define CHANGE_TIMEOUT_MS 30000u
#define OUTCOME_TIMEOUT_MS 5000u

/* ---- answered by the host ---- */

static int give_text(struct rows *out, const char *s)
{
    cell_text(out, row_new(out), s);
    return DUST_OK;
}

static int give_int(struct rows *out, uint64_t v)
{
    cell_int(row_new(out), v);
    return DUST_OK;
}

static int64_t arg_int(const struct cell *c)
{
    return c->type == CELL_INT ? c->i : c->type == CELL_TEXT ? strtoll(c->text, NULL, 10) : 0;
}

static int fn_id(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    (void)args;
    (void)e;
    return give_int(out, h->db->origin);
}

static int fn_role(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    struct node_view v;

    (void)args;
    (void)e;
    node_view(h->node, &v);
    return give_text(out, v.role);
}

static int fn_leader(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    struct node_view v;

    (void)args;
    (void)e;
    node_view(h->node, &v);
    if (v.leader_id != 0) {
        return give_text(out, v.leader);
    }
    row_new(out);
    return DUST_OK;
}

static int fn_head(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    char hex[VID_HEX_SIZE];
    struct head_info head;

    (void)args;
    (void)e;
    store_agreed(h->db->store, &head);
    return give_text(out, vid_hex(&head.id, hex));
}

static int fn_index(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    (void)args;
    (void)e;
    return give_int(out, store_applied(h->db->store));
}

static int fn_wait(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    int64_t index = arg_int(&args[0]), ms = arg_int(&args[1]);

    if (index < 0 || ms < 0 || ms > 86400000) {
        return err_set(e, DUST_MISUSE, "dust_wait(index, ms): an index and a time from 0 to 86400000 ms are needed");
    }
    return give_int(out, store_wait_applied(h->db->store, (uint64_t)index, (uint32_t)ms) == DUST_OK);
}

static int change(struct hosted *h, const struct cell *args, struct rows *out, enum node_change what, struct err *e)
{
    int64_t id = arg_int(&args[0]);
    int rv;

    if (id <= 0) {
        return err_set(e, DUST_MISUSE, "the id of a member is needed (see SELECT id, address FROM dust_members)");
    }
    rv = node_change(h->node, what, (uint64_t)id, CHANGE_TIMEOUT_MS, e);
    return rv == DUST_OK ? give_int(out, (uint64_t)id) : rv;
}

static int fn_remove(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return change(h, args, out, CHANGE_REMOVE, e);
}

static int fn_promote(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return change(h, args, out, CHANGE_PROMOTE, e);
}

static int fn_demote(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return change(h, args, out, CHANGE_DEMOTE, e);
}

static int fn_transfer(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return change(h, args, out, CHANGE_TRANSFER, e);
}

static int fn_checkpoint(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    int rv = node_checkpoint(h->node, e);

    return rv == DUST_OK ? fn_head(h, args, out, e) : rv;
}

static int outcome(struct hosted *h, const struct cell *id_cell, int64_t after, struct rows *out, struct err *e)
{
    static const char *const names[] = {[OUTCOME_UNKNOWN] = "unknown", [OUTCOME_PENDING] = "pending",
        [OUTCOME_AGREED] = "agreed", [OUTCOME_VOID] = "void"};
    enum outcome what;
    struct vid id;
    int rv;

    if (id_cell->type != CELL_TEXT || !vid_parse(&id, id_cell->text) || after < 0) {
        return err_set(e, DUST_MISUSE,
            "dust_outcome(id): the 32 hex digits of a transaction's id are needed, as the error of a commit names them");
    }
    rv = node_outcome(h->node, &id, (uint64_t)after, OUTCOME_TIMEOUT_MS, &what, e);
    return rv == DUST_OK ? give_text(out, names[what]) : rv;
}

static int fn_outcome(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return outcome(h, &args[0], 0, out, e);
}

static int fn_outcome_after(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    return outcome(h, &args[0], arg_int(&args[1]), out, e);
}

static int fn_leave(struct hosted *h, const struct cell *args, struct rows *out, struct err *e)
{
    int rv = registry_leave(h, e);

    (void)args;
    return rv == DUST_OK ? give_text(out,
                               "left the cluster: the file is an ordinary database again; close this connection and "
                               "open it anew")
                         : rv;
}

static const struct callable callables[] = {
    {"dust_leave", 0, 1, fn_leave, true},
    {"dust_id", 0, 1, fn_id, false},
    {"dust_role", 0, 1, fn_role, false},
    {"dust_leader", 0, 1, fn_leader, false},
    {"dust_head", 0, 1, fn_head, false},
    {"dust_index", 0, 1, fn_index, false},
    {"dust_wait", 2, 1, fn_wait, false},
    {"dust_remove", 1, 1, fn_remove, true},
    {"dust_promote", 1, 1, fn_promote, true},
    {"dust_demote", 1, 1, fn_demote, true},
    {"dust_transfer", 1, 1, fn_transfer, true},
    {"dust_checkpoint", 0, 1, fn_checkpoint, false},
    {"dust_outcome", 1, 1, fn_outcome, false},
    {"dust_outcome", 2, 1, fn_outcome_after, false},
};
#define N_CALLABLES (sizeof callables / sizeof callables[0])

const struct callable *function_find(const char *name, unsigned n_args)
{
    for (size_t i = 0; i < N_CALLABLES; i++) {
        if (strcmp(callables[i].name, name) == 0 && callables[i].n_args == n_args) {
            return &callables[i];
        }
    }
    return NULL;
}

/* ---- answered here ---- */

struct function;
struct registration {
    const struct function *f; /* one of these */
    const struct callable *callable;
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
    void (*run)(struct args *a, struct hosted *h); /* h: NULL if the connection has no member */
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

static const char *arg_text(struct args *a, int i);

static void fn_version(struct args *a, struct hosted *h)
{
    (void)h;
    text(a, DUST_VERSION_TEXT);
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
    int rv = DUST_OK;

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
    lib_end_exclusive(a->c->lib, a->c->db, "main");
    sql = a->api->mprintf("PRAGMA main.user_version=%d", lib_int(a->c->lib, a->c->db, "PRAGMA main.user_version"));
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
    return lib_check_uri(a->c->lib, path, e) == DUST_OK ? path : NULL;
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
    o.keyfile = arg_text(a, 1);
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
    o.keyfile = arg_text(a, 2);
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

static void fn_backup(struct args *a, struct hosted *h)
{
    char said[100];
    int n, size;
    struct err e;
    const char *path = main_path(a, &e);

    if (path == NULL || (h == NULL && unmarked(a, path, &e) != DUST_OK) ||
        backup_run(a->c->lib, path, arg_text(a, 0), &n, &size, &e) != DUST_OK) {
        fail(a, &e);
        return;
    }
    snprintf(said, sizeof said, "%d pages of %d bytes", n, size);
    text(a, said);
}

static void give(struct args *a, const struct rows *out);

/* The table needs a read transaction, as any does for SQLite, and may not get it. */
static void fn_status(struct args *a, struct hosted *h)
{
    const char *name = arg_text(a, 0);
    struct rows out = {.n = 0};
    struct err e;

    if (h != NULL && (a->n == 0 || name != NULL) && tables_status(a->c, h, name, &out, &e) != DUST_OK) {
        fail(a, &e);
    } else {
        give(a, &out); /* no member, or no name: NULL */
    }
    rows_free(&out);
}

static const struct function functions[] = {
    {"dust_version", 0, fn_version},
    {"dust_start", 1, fn_start},
    {"dust_start", 2, fn_start},
    {"dust_join", 2, fn_join},
    {"dust_join", 3, fn_join},
    {"dust_backup", 1, fn_backup},
    {"dust_recover", 2, fn_recover},
    {"dust_recover", 3, fn_recover},
    {"dust_status", 0, fn_status},
    {"dust_status", 1, fn_status},
};
#define N_FUNCTIONS (sizeof functions / sizeof functions[0])

/* What would wait for this very connection is refused at once. */
static bool may_call(struct args *a, const struct callable *what)
{
    struct err e;

    if (what->run == fn_leave) {
        return idle(a);
    }
    for (struct dfile *f = a->c->files; what->columns != 0 && strcmp(what->name, "dust_outcome") == 0 && f != NULL;
         f = f->next) {
        if (f->writing || f->has_turn) {
            err_set(&e, DUST_MISUSE, "dust_outcome(id): a write transaction is open on this connection: end it first");
            fail(a, &e);
            return false;
        }
    }
    return true;
}

static void give(struct args *a, const struct rows *out)
{
    const struct cell *c = out->n != 0 ? &out->cells[0] : NULL;

    if (c == NULL || c->type == CELL_NULL) {
        a->api->result_null(a->ctx);
    } else if (c->type == CELL_INT) {
        a->api->result_int64(a->ctx, c->i);
    } else {
        text(a, c->text);
    }
}

static void call_callable(struct args *a, const struct callable *what, struct hosted *h)
{
    struct rows args = {.columns = what->n_args}, out = {.columns = 1};
    struct cell *row = what->n_args != 0 ? row_new(&args) : NULL;
    struct err e;

    if (!may_call(a, what)) {
        rows_free(&args);
        return;
    }
    for (unsigned i = 0; i < what->n_args; i++) {
        switch (a->api->value_type(a->v[i])) {
        case SQLITE_NULL:
            break;
        case SQLITE_INTEGER:
        case SQLITE_FLOAT:
            cell_int(&row[i], (uint64_t)a->api->value_int64(a->v[i]));
            break;
        default:
            cell_text(&args, &row[i], arg_text(a, (int)i) != NULL ? arg_text(a, (int)i) : "");
        }
    }
    if ((args.nomem ? err_set(&e, DUST_NOMEM, "out of memory")
                    : call_member(h, lib_main_file(a->c), CALL_FUNCTION, what, &args, &out, &e)) != DUST_OK) {
        fail(a, &e);
    } else {
        give(a, &out);
    }
    rows_free(&args);
    rows_free(&out);
}

static void call(unsigned number, sqlite3_context *ctx, int n, sqlite3_value **v)
{
    struct sqlite_lib *lib = lib_at(number);
    const struct registration *r = lib->api->user_data(ctx);
    struct args a = {.api = lib->api, .c = r->c, .ctx = ctx, .n = n, .v = v};
    struct hosted *h = lib_member(r->c);

    if (r->f != NULL) {
        r->f->run(&a, h);
    } else if (h == NULL) {
        struct err e;

        err_set(&e, DUST_MISUSE,
            "%s(): this connection's database is not a member of a cluster (SELECT dust_start('127.0.0.1:4001') makes "
            "it one)",
            r->callable->name);
        fail(&a, &e);
    } else {
        call_callable(&a, r->callable, h);
    }
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

    for (size_t i = 0; rc == SQLITE_OK && i < N_FUNCTIONS + N_CALLABLES; i++) {
        struct registration *r = calloc(1, sizeof *r);
        bool here = i < N_FUNCTIONS;
        const char *name = here ? functions[i].name : callables[i - N_FUNCTIONS].name;
        int n_args = here ? functions[i].n_args : (int)callables[i - N_FUNCTIONS].n_args;

        if (r == NULL) {
            return SQLITE_NOMEM;
        }
        r->c = c;
        r->f = here ? &functions[i] : NULL;
        r->callable = here ? NULL : &callables[i - N_FUNCTIONS];
        rc = c->lib->api->create_function_v2(c->db, name, n_args,
            SQLITE_UTF8 | (here && functions[i].run == fn_version ? 0 : SQLITE_DIRECTONLY), r,
            trampolines[c->lib->number], NULL, NULL, i == 0 ? destroy_last : destroy);
        if (i == 0) {
            c->set_up = true; /* from here on the destructor forgets the connection */
        }
    }
    return rc;
}
