/* The tables dust_members, dust_status, dust_metrics, dust_log: eponymous, read-only. Each scan takes a copy of the state when it
 * begins (xFilter) and hands out its rows.
 *
 * For SQLite they are in the main database, so that a read transaction of it is begun for them, which may be refused
 * (vfs/lock.c). What dust_status says can be had all the same, by a function of that name. */
#include <raft.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ext/call.h"
#include "ext/lib.h"

#define LOG_ROWS_MAX 65536u

/* ---- what the tables show ---- */

static int fill_members(struct hosted *h, const struct cell *args, struct rows *r, struct err *e)
{
    static const char *const roles[] = {"standby", "voter", "spare"};
    struct node_member *list;
    unsigned n;
    int rv = node_members(h->node, &list, &n, e);

    (void)args;
    if (rv != DUST_OK) {
        return rv;
    }
    for (unsigned i = 0; i < n; i++) {
        struct cell *c = row_new(r);

        cell_int(&c[0], list[i].id);
        cell_text(r, &c[1], list[i].address);
        cell_text(r, &c[2], list[i].role >= 0 && list[i].role <= 2 ? roles[list[i].role] : "?");
        cell_text(r, &c[3], list[i].state);
        cell_int(&c[4], list[i].is_self);
        cell_int(&c[5], list[i].is_leader);
        if (list[i].has_match) {
            cell_int(&c[6], list[i].match_index);
            cell_int(&c[7], list[i].lag);
        }
        if (list[i].last_contact_ms >= 0) {
            cell_int(&c[8], (uint64_t)list[i].last_contact_ms);
        }
    }
    free(list);
    return DUST_OK;
}

static void status_int(struct rows *r, const char *name, uint64_t v)
{
    struct cell *c = row_new(r);

    cell_text(r, &c[0], name);
    cell_int(&c[1], v);
}

static void status_text(struct rows *r, const char *name, const char *v)
{
    struct cell *c = row_new(r);

    cell_text(r, &c[0], name);
    cell_text(r, &c[1], v);
}

/* The processes that are attached, and what they hold. */
static int fill_guests(struct hosted *h, struct rows *r, struct err *e)
{
    struct service_guest *list;
    unsigned n;
    int rv;

    status_int(r, "host_pid", (uint64_t)getpid());
    if (h->service == NULL) {
        return DUST_OK;
    }
    rv = service_guests(h->service, &list, &n, e);
    if (rv != DUST_OK) {
        return rv;
    }
    for (unsigned i = 0; i < n; i++) {
        char name[32], who[128], line[256];

        snprintf(name, sizeof name, "attached_%u", i + 1);
        snprintf(line, sizeof line, "%s: %u connections, %u snapshots%s", process_name(list[i].pid, who, sizeof who),
            list[i].connections, list[i].snapshots, list[i].turn ? ", the write turn" : "");
        status_text(r, name, line);
    }
    free(list);
    return DUST_OK;
}

static int fill_status(struct hosted *h, const struct cell *args, struct rows *r, struct err *e)
{
    struct report_line lines[REPORT_KEPT];
    struct store_stats st;
    struct node_view v;
    struct head_info head, base;
    char hex[VID_HEX_SIZE], name[32], line[ERR_TEXT_MAX + 64];
    unsigned waiting;
    bool held;
    int n;

    (void)args;
    node_view(h->node, &v);
    store_stats(h->db->store, &st);
    store_agreed(h->db->store, &head);
    store_base(h->db->store, &base);
    turn_state(&h->db->turn, &waiting, &held);
    status_text(r, "version", DUST_VERSION_TEXT);
    status_int(r, "id", v.id);
    status_text(r, "address", v.address);
    status_text(r, "key", v.key);
    status_text(r, "role", v.role);
    if (v.promotion_due) {
        status_text(r, "promotion", "due: it asks to be made the voter that it joined as");
    }
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
    return fill_guests(h, r, e);
}

static void metric_int(struct rows *r, const char *what, const char *unit, uint64_t v)
{
    char name[64];

    snprintf(name, sizeof name, "%s%s", what, unit);
    status_int(r, name, v);
}

static int fill_metrics(struct hosted *h, const struct cell *args, struct rows *r, struct err *e)
{
    struct metrics *m = &h->db->metrics;
    struct node_view v;

    (void)args;
    (void)e;
    for (enum metric i = 0; i < METRIC_COUNT; i++) {
        metric_int(r, metric_name(i), "", metrics_get(m, i));
    }
    for (enum timing i = 0; i < TIMING_COUNT; i++) {
        struct times *t = &m->times[i];

        metric_int(r, timing_name(i), "_count", atomic_load(&t->count));
        metric_int(r, timing_name(i), "_us_sum", atomic_load(&t->sum_us));
        metric_int(r, timing_name(i), "_us_p50", times_quantile(t, 50, 100));
        metric_int(r, timing_name(i), "_us_p99", times_quantile(t, 99, 100));
        metric_int(r, timing_name(i), "_us_p999", times_quantile(t, 999, 1000));
        metric_int(r, timing_name(i), "_us_max", atomic_load(&t->max_us));
    }
    node_view(h->node, &v);
    status_int(r, "messages_in", v.messages_in);
    status_int(r, "messages_out", v.messages_out);
    status_int(r, "bytes_in", v.bytes_in);
    status_int(r, "bytes_out", v.bytes_out);
    status_int(r, "messages_dropped", v.dropped);
    return DUST_OK;
}

/* What only the connection itself knows. */
static void add_connection(struct conn *conn, struct rows *r)
{
    const struct dfile *f = conn->files;
    char hex[VID_HEX_SIZE];

    status_int(r, "pid", (uint64_t)getpid());
    if (f != NULL && f->last.code != DUST_OK) {
        status_text(r, "connection_error", f->last.text);
    }
    if (f != NULL && !vid_none(&f->unknown)) {
        status_text(r, "connection_unknown", vid_hex(&f->unknown, hex));
        status_int(r, "connection_unknown_after", f->unknown_after);
    }
}

static int fill_log(struct hosted *h, const struct cell *args, struct rows *r, struct err *e)
{
    struct node_entry *list;
    unsigned n;
    int rv = node_log(h->node, 0, LOG_ROWS_MAX, &list, &n, e);

    (void)args;
    if (rv != DUST_OK) {
        return rv;
    }
    for (unsigned i = 0; i < n; i++) {
        struct cell *c = row_new(r);
        char hex[VID_HEX_SIZE];

        cell_int(&c[0], list[i].index);
        cell_int(&c[1], list[i].term);
        cell_text(r, &c[2], list[i].kind);
        if (!vid_none(&list[i].id)) {
            cell_text(r, &c[3], vid_hex(&list[i].id, hex));
            cell_text(r, &c[4], vid_hex(&list[i].parent, hex));
            cell_int(&c[5], list[i].origin);
            cell_int(&c[6], list[i].n_pages);
        }
        cell_int(&c[7], list[i].bytes);
        if (list[i].sql != NULL) {
            cell_text(r, &c[8], list[i].sql);
        }
    }
    node_log_free(list, n);
    return DUST_OK;
}

static const struct table {
    struct callable fill; /* answered by the process that hosts the member */
    const char *schema;
} tables[] = {
    {{"dust_members", 0, 9, fill_members, false},
        "CREATE TABLE x(id INTEGER, address TEXT, role TEXT, state TEXT, is_self INTEGER, is_leader INTEGER, "
        "match_index INTEGER, lag INTEGER, last_contact_ms INTEGER)"},
    {{"dust_status", 0, 2, fill_status, false}, "CREATE TABLE x(name TEXT, value)"},
    {{"dust_metrics", 0, 2, fill_metrics, false}, "CREATE TABLE x(name TEXT, value INTEGER)"},
    {{"dust_log", 0, 9, fill_log, false},
        "CREATE TABLE x(idx INTEGER, term INTEGER, kind TEXT, id TEXT, parent TEXT, origin INTEGER, n_pages INTEGER, "
        "bytes INTEGER, statements TEXT)"},
};

static const struct table *table_named(const char *name)
{
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        if (strcmp(tables[i].fill.name, name) == 0) {
            return &tables[i];
        }
    }
    return NULL;
}

const struct callable *table_find(const char *name)
{
    const struct table *t = table_named(name);

    return t != NULL ? &t->fill : NULL;
}

/* out->columns is set here. */
static int fetch(struct conn *c, struct hosted *h, const struct table *t, struct rows *out, struct err *e)
{
    const struct rows no_args = {.n = 0};
    int rv;

    out->columns = t->fill.columns;
    rv = call_member(h, lib_main_file(c), CALL_TABLE, &t->fill, &no_args, out, e);
    if (rv == DUST_OK && t->fill.run == fill_status) {
        add_connection(c, out);
    }
    return rv == DUST_OK && out->nomem ? err_set(e, DUST_NOMEM, "out of memory") : rv;
}

static void print_cell(FILE *f, const struct cell *c)
{
    if (c->type == CELL_INT) {
        fprintf(f, "%lld", (long long)c->i);
    } else if (c->type == CELL_TEXT) {
        fputs(c->text, f);
    }
}

/* All lines as text: "name value". NULL without memory. */
static char *print_lines(const struct rows *r)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    bool ok;

    if (f == NULL) {
        return NULL;
    }
    for (unsigned i = 0; i < r->n; i++) {
        fputs(i == 0 ? "" : "\n", f);
        print_cell(f, &r->cells[i * r->columns]);
        fputc(' ', f);
        print_cell(f, &r->cells[i * r->columns + 1]);
    }
    ok = ferror(f) == 0;
    if (fclose(f) == 0 && ok) {
        return text;
    }
    free(text);
    return NULL;
}

int tables_status(struct conn *c, struct hosted *h, const char *name, struct rows *out, struct err *e)
{
    struct rows lines = {.n = 0};
    struct cell *cell;
    char *text;
    int rv = fetch(c, h, table_named("dust_status"), &lines, e);

    if (rv != DUST_OK) {
        rows_free(&lines);
        return rv;
    }
    out->columns = 1;
    cell = row_new(out);
    for (unsigned i = 0; name != NULL && i < lines.n; i++) {
        const struct cell *line = &lines.cells[i * lines.columns];

        if (line[0].type == CELL_TEXT && strcmp(line[0].text, name) == 0) {
            if (line[1].type == CELL_INT) {
                cell_int(cell, (uint64_t)line[1].i);
            } else if (line[1].type == CELL_TEXT) {
                cell_text(out, cell, line[1].text);
            }
            break;
        }
    }
    if (name == NULL) {
        text = print_lines(&lines);
        out->nomem = out->nomem || text == NULL;
        cell_text(out, cell, text != NULL ? text : "");
        free(text);
    }
    rows_free(&lines);
    return out->nomem ? err_set(e, DUST_NOMEM, "out of memory") : DUST_OK;
}

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
    c->at = 0;
    if (h == NULL) {
        return SQLITE_OK; /* no member: no rows */
    }
    rv = fetch(v->c, h, v->t, &c->rows, &e);
    if (rv == DUST_NOMEM) {
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
        rc = c->lib->api->create_module_v2(c->db, tables[i].fill.name, &module, aux, free);
    }
    return rc;
}
