/* The tables dust_members, dust_status, dust_log: eponymous, read-only. Each scan takes a copy of the state when it
 * begins (xFilter) and hands out its rows. */
#include <raft.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ext/lib.h"

#define LOG_ROWS_MAX 65536u

/* ---- rows ---- */

struct cell {
    enum { CELL_NULL, CELL_INT, CELL_TEXT } type;
    sqlite3_int64 i;
    char *text;
};

struct rows {
    struct cell *cells;
    unsigned n, room, columns;
    bool nomem;
    struct cell nowhere[16]; /* what is written to when there is no memory for a row */
};

static struct cell *row_new(struct rows *r)
{

    if (r->n == r->room) {
        unsigned more = r->room == 0 ? 32 : r->room * 2;
        struct cell *p = realloc(r->cells, (size_t)more * r->columns * sizeof *p);

        if (p == NULL) {
            r->nomem = true;
            return r->nowhere;
        }
        r->cells = p;
        r->room = more;
    }
    memset(&r->cells[r->n * r->columns], 0, r->columns * sizeof *r->cells);
    return &r->cells[r->n++ * r->columns];
}

static void set_int(struct cell *c, uint64_t v)
{
    c->type = CELL_INT;
    c->i = (sqlite3_int64)v;
}

static void set_text(struct rows *r, struct cell *c, const char *s)
{
    c->text = strdup(s);
    c->type = c->text != NULL ? CELL_TEXT : CELL_NULL;
    r->nomem = r->nomem || c->text == NULL;
}

static void rows_free(struct rows *r)
{
    for (size_t i = 0; i < (size_t)r->n * r->columns; i++) {
        free(r->cells[i].text);
    }
    free(r->cells);
    r->cells = NULL;
    r->n = r->room = 0;
}

/* ---- what the tables show ---- */

static int fill_members(struct conn *conn, struct hosted *h, struct rows *r, struct err *e)
{
    static const char *const roles[] = {"standby", "voter", "spare"};
    struct node_member *list;
    unsigned n;
    int rv = node_members(h->node, &list, &n, e);

    (void)conn;
    if (rv != DUST_OK) {
        return rv;
    }
    for (unsigned i = 0; i < n; i++) {
        struct cell *c = row_new(r);

        set_int(&c[0], list[i].id);
        set_text(r, &c[1], list[i].address);
        set_text(r, &c[2], list[i].role >= 0 && list[i].role <= 2 ? roles[list[i].role] : "?");
        set_text(r, &c[3], list[i].state);
        set_int(&c[4], list[i].is_self);
        set_int(&c[5], list[i].is_leader);
        if (list[i].has_match) {
            set_int(&c[6], list[i].match_index);
            set_int(&c[7], list[i].lag);
        }
        if (list[i].last_contact_ms >= 0) {
            set_int(&c[8], (uint64_t)list[i].last_contact_ms);
        }
    }
    free(list);
    return DUST_OK;
}

static void status_int(struct rows *r, const char *name, uint64_t v)
{
    struct cell *c = row_new(r);

    set_text(r, &c[0], name);
    set_int(&c[1], v);
}

static void status_text(struct rows *r, const char *name, const char *v)
{
    struct cell *c = row_new(r);

    set_text(r, &c[0], name);
    set_text(r, &c[1], v);
}

static int fill_status(struct conn *conn, struct hosted *h, struct rows *r, struct err *e)
{
    struct report_line lines[REPORT_KEPT];
    struct store_stats st;
    struct node_view v;
    struct head_info head, base;
    char hex[VID_HEX_SIZE], name[32], line[ERR_TEXT_MAX + 64];
    unsigned waiting;
    bool held;
    int n;

    (void)e;
    node_view(h->node, &v);
    store_stats(h->db->store, &st);
    store_agreed(h->db->store, &head);
    store_base(h->db->store, &base);
    turn_state(&h->db->turn, &waiting, &held);
    status_text(r, "version", DUST_VERSION_TEXT);
    status_int(r, "id", v.id);
    status_text(r, "address", v.address);
    status_text(r, "role", v.role);
    status_int(r, "leader_id", v.leader_id);
    status_text(r, "leader", v.leader);
    status_int(r, "ready", v.ready);
    status_int(r, "term", v.term);
    status_text(r, "head", vid_hex(&head.id, hex));
    status_int(r, "index", store_applied(h->db->store));
    status_int(r, "commit_index", v.commit);
    status_int(r, "stored_index", v.stored);
    status_int(r, "snapshot_index", v.snapshot_index);
    status_text(r, "checkpointed", vid_hex(&base.id, hex));
    status_int(r, "checkpointed_index", base.index);
    status_int(r, "log_bytes", v.log_bytes);
    status_int(r, "page_size", h->db->page_size);
    status_int(r, "pages", head.n_pages);
    status_int(r, "versions", st.versions);
    status_int(r, "frames_used", st.frames_used);
    status_int(r, "frames", st.frames_all);
    status_int(r, "snapshots_held", st.readers);
    status_int(r, "in_flight", v.in_flight);
    status_int(r, "turn_waiting", waiting);
    status_int(r, "turn_held", held);
    status_int(r, "turn_holder", v.turn_holder);
    status_int(r, "messages_in", v.messages_in);
    status_int(r, "messages_out", v.messages_out);
    status_int(r, "bytes_in", v.bytes_in);
    status_int(r, "bytes_out", v.bytes_out);
    status_int(r, "messages_dropped", v.dropped);
    if (v.failure.code != DUST_OK) {
        status_text(r, "failure", v.failure.text);
    }
    if (conn->files != NULL && conn->files->last.code != DUST_OK) {
        status_text(r, "connection_error", conn->files->last.text);
    }
    if (conn->files != NULL && !vid_none(&conn->files->unknown)) {
        status_text(r, "connection_unknown", vid_hex(&conn->files->unknown, hex));
        status_int(r, "connection_unknown_after", conn->files->unknown_after);
    }
    n = report_last(&h->db->report, lines, REPORT_KEPT);
    for (int i = 0; i < n; i++) {
        struct tm tm;
        char when[32];

        gmtime_r(&lines[i].at.tv_sec, &tm);
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        snprintf(name, sizeof name, i == 0 ? "last_error" : "error_%d", i);
        snprintf(line, sizeof line, "%s %s", when, lines[i].text);
        status_text(r, name, line);
    }
    return DUST_OK;
}

static int fill_log(struct conn *conn, struct hosted *h, struct rows *r, struct err *e)
{
    struct node_entry *list;
    unsigned n;
    int rv = node_log(h->node, 0, LOG_ROWS_MAX, &list, &n, e);

    (void)conn;
    if (rv != DUST_OK) {
        return rv;
    }
    for (unsigned i = 0; i < n; i++) {
        struct cell *c = row_new(r);
        char hex[VID_HEX_SIZE];

        set_int(&c[0], list[i].index);
        set_int(&c[1], list[i].term);
        set_text(r, &c[2], list[i].kind);
        if (!vid_none(&list[i].id)) {
            set_text(r, &c[3], vid_hex(&list[i].id, hex));
            set_text(r, &c[4], vid_hex(&list[i].parent, hex));
            set_int(&c[5], list[i].origin);
            set_int(&c[6], list[i].n_pages);
        }
        set_int(&c[7], list[i].bytes);
        if (list[i].sql != NULL) {
            set_text(r, &c[8], list[i].sql);
        }
    }
    node_log_free(list, n);
    return DUST_OK;
}

static const struct table {
    const char *name;
    const char *schema;
    unsigned columns;
    int (*fill)(struct conn *conn, struct hosted *h, struct rows *r, struct err *e);
} tables[] = {
    {"dust_members",
        "CREATE TABLE x(id INTEGER, address TEXT, role TEXT, state TEXT, is_self INTEGER, is_leader INTEGER, "
        "match_index INTEGER, lag INTEGER, last_contact_ms INTEGER)",
        9, fill_members},
    {"dust_status", "CREATE TABLE x(name TEXT, value)", 2, fill_status},
    {"dust_log",
        "CREATE TABLE x(idx INTEGER, term INTEGER, kind TEXT, id TEXT, parent TEXT, origin INTEGER, n_pages INTEGER, "
        "bytes INTEGER, statements TEXT)",
        9, fill_log},
};

/* ---- the module ---- */

struct aux {
    struct conn *c;
    const struct table *t;
};

struct vtab {
    sqlite3_vtab base; /* first */
    struct conn *c;
    const struct table *t;
};

struct cursor {
    sqlite3_vtab_cursor base; /* first */
    struct rows rows;
    unsigned at;
};

static int x_connect(sqlite3 *db, void *arg, int argc, const char *const *argv, sqlite3_vtab **out, char **error)
{
    struct aux *aux = arg;
    struct vtab *v;
    int rc = aux->c->lib->api->declare_vtab(db, aux->t->schema);

    (void)argc;
    (void)argv;
    (void)error;
    if (rc != SQLITE_OK) {
        return rc;
    }
    v = aux->c->lib->api->malloc(sizeof *v);
    if (v == NULL) {
        return SQLITE_NOMEM;
    }
    memset(v, 0, sizeof *v);
    v->c = aux->c;
    v->t = aux->t;
    *out = &v->base;
    return SQLITE_OK;
}

static int x_best_index(sqlite3_vtab *vtab, sqlite3_index_info *info)
{
    (void)vtab;
    info->estimatedCost = 1000;
    return SQLITE_OK;
}

static int x_disconnect(sqlite3_vtab *vtab)
{
    ((struct vtab *)vtab)->c->lib->api->free(vtab);
    return SQLITE_OK;
}

static int x_open(sqlite3_vtab *vtab, sqlite3_vtab_cursor **out)
{
    struct cursor *c = calloc(1, sizeof *c);

    (void)vtab;
    if (c == NULL) {
        return SQLITE_NOMEM;
    }
    *out = &c->base;
    return SQLITE_OK;
}

static int x_close(sqlite3_vtab_cursor *cursor)
{
    rows_free(&((struct cursor *)cursor)->rows);
    free(cursor);
    return SQLITE_OK;
}

static int x_filter(sqlite3_vtab_cursor *cursor, int number, const char *name, int argc, sqlite3_value **argv)
{
    struct cursor *c = (struct cursor *)cursor;
    struct vtab *v = (struct vtab *)cursor->pVtab;
    struct hosted *h = lib_member(v->c);
    struct err e;
    int rv;

    (void)number;
    (void)name;
    (void)argc;
    (void)argv;
    rows_free(&c->rows);
    c->rows.columns = v->t->columns;
    c->at = 0;
    if (h == NULL || h->node == NULL) {
        return SQLITE_OK; /* no member: no rows */
    }
    rv = v->t->fill(v->c, h, &c->rows, &e);
    if (rv == DUST_OK && c->rows.nomem) {
        return SQLITE_NOMEM;
    }
    if (rv != DUST_OK) {
        v->c->lib->api->free(v->base.zErrMsg);
        v->base.zErrMsg = v->c->lib->api->mprintf("%s", e.text);
        return sqlite_code(rv);
    }
    return SQLITE_OK;
}

static int x_next(sqlite3_vtab_cursor *cursor)
{
    ((struct cursor *)cursor)->at++;
    return SQLITE_OK;
}

static int x_eof(sqlite3_vtab_cursor *cursor)
{
    const struct cursor *c = (struct cursor *)cursor;

    return c->at >= c->rows.n;
}

static int x_column(sqlite3_vtab_cursor *cursor, sqlite3_context *ctx, int i)
{
    const struct cursor *c = (struct cursor *)cursor;
    const sqlite3_api_routines *api = ((struct vtab *)cursor->pVtab)->c->lib->api;
    const struct cell *cell = &c->rows.cells[c->at * c->rows.columns + (unsigned)i];

    switch (cell->type) {
    case CELL_INT:
        api->result_int64(ctx, cell->i);
        break;
    case CELL_TEXT:
        api->result_text(ctx, cell->text, -1, SQLITE_TRANSIENT);
        break;
    default:
        api->result_null(ctx);
    }
    return SQLITE_OK;
}

static int x_rowid(sqlite3_vtab_cursor *cursor, sqlite3_int64 *out)
{
    *out = ((struct cursor *)cursor)->at;
    return SQLITE_OK;
}

static const sqlite3_module module = {
    .iVersion = 0,
    .xCreate = NULL, /* eponymous only */
    .xConnect = x_connect,
    .xBestIndex = x_best_index,
    .xDisconnect = x_disconnect,
    .xDestroy = NULL,
    .xOpen = x_open,
    .xClose = x_close,
    .xFilter = x_filter,
    .xNext = x_next,
    .xEof = x_eof,
    .xColumn = x_column,
    .xRowid = x_rowid,
};

int tables_register(struct conn *c)
{
    int rc = SQLITE_OK;

    for (size_t i = 0; rc == SQLITE_OK && i < sizeof tables / sizeof tables[0]; i++) {
        struct aux *aux = malloc(sizeof *aux);

        if (aux == NULL) {
            return SQLITE_NOMEM;
        }
        *aux = (struct aux){.c = c, .t = &tables[i]};
        rc = c->lib->api->create_module_v2(c->db, tables[i].name, &module, aux, free);
    }
    return rc;
}
