/* Connections, and the statement hook.
 *
 * The hook is SQLITE_TRACE_STMT and SQLITE_TRACE_PROFILE. Before a statement that may write takes its snapshot, it
 * takes the write turn, waiting up to the connection's busy timeout; so that the snapshot is the head, and writers
 * queue instead of colliding. When the statement ends and has written nothing, the turn goes back. Between, the
 * statement's text is kept for the log.
 *
 * A row must not be handed out from a version that is not agreed (DESIGN.md, section 2, sentence 7). A statement that
 * returns rows, within a transaction or as an INSERT … RETURNING, waits here until the version it will read is.
 *
 * All of this only makes things better: a host program may take the trace hook for itself, and then the file methods
 * do without (vfs/file.c). */
#include "ext/conn.h"

#include <pthread.h>
#include <sqlite3ext.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "ext/lib.h"
#include "vfs/forked.h"

static struct {
    pthread_mutex_t mutex;
    struct conn *first;
} conns = {.mutex = PTHREAD_MUTEX_INITIALIZER};

struct conn *conn_find(sqlite3 *db)
{
    struct conn *c;

    pthread_mutex_lock(&conns.mutex);
    for (c = conns.first; c != NULL && c->db != db; c = c->next) {
    }
    pthread_mutex_unlock(&conns.mutex);
    return c;
}

struct conn *conn_of(struct sqlite_lib *lib, sqlite3 *db)
{
    struct conn *c = conn_find(db);

    if (c != NULL) {
        return c;
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->lib = lib;
    c->db = db;
    c->saved_timeout = -1;
    pthread_mutex_lock(&conns.mutex);
    c->next = conns.first;
    conns.first = c;
    pthread_mutex_unlock(&conns.mutex);
    return c;
}

void conn_forget(struct conn *c)
{
    pthread_mutex_lock(&conns.mutex);
    for (struct conn **p = &conns.first; *p != NULL; p = &(*p)->next) {
        if (*p == c) {
            *p = c->next;
            break;
        }
    }
    pthread_mutex_unlock(&conns.mutex);
    free(c->failed);
    free(c);
}

void conns_forked(void)
{
    pthread_mutex_init(&conns.mutex, NULL);
    for (struct conn *c = conns.first; c != NULL; c = c->next) {
        for (struct dfile *f = c->files; f != NULL; f = f->next) {
            file_forked(f);
        }
    }
}

/* ---- the hook ---- */

static int busy_timeout_of(struct conn *c)
{
    int ms;

    c->inside = true;
    ms = lib_int(c->lib, c->db, "PRAGMA busy_timeout");
    c->inside = false;
    return ms;
}

/* Take the turn, waiting as long as the connection's busy handler would. */
static void take_turn(struct conn *c, struct dfile *f)
{
    int ms;

    if (file_await_turn(f) == DUST_OK) {
        return;
    }
    ms = busy_timeout_of(c);
    if (file_take_turn(f, ms > 0 ? (uint32_t)ms : 0) != DUST_OK && ms > 0) {
        /* The time is up: let the statement find the lock taken, and not wait all over again. */
        c->saved_timeout = ms;
        c->lib->api->busy_timeout(c->db, 0);
    }
}

/* SQLite asks the main database whether PRAGMA locking_mode=EXCLUSIVE may be, and then makes every attached one so, and
 * every one that is attached later. */
static bool names_locking_mode(const char *sql)
{
    sql += strspn(sql, " \t\r\n\f;");
    return strchr("PpEe-/", *sql) != NULL && strcasestr(sql, "locking_mode") != NULL;
}

static void end_exclusive(struct conn *c)
{
    const sqlite3_api_routines *api = c->lib->api;
    sqlite3_stmt *list = NULL;
    sqlite3_file *file = NULL;

    c->maybe_exclusive = false;
    c->inside = true;
    if (api->prepare_v2(c->db, "PRAGMA database_list", -1, &list, NULL) == SQLITE_OK) {
        while (api->step(list) == SQLITE_ROW) {
            const char *name = (const char *)api->column_text(list, 1);

            if (api->file_control(c->db, name, SQLITE_FCNTL_FILE_POINTER, &file) == SQLITE_OK && file_of(file) != NULL) {
                lib_end_exclusive(c->lib, c->db, name);
            }
        }
    }
    api->finalize(list);
    c->inside = false;
}

static void hold_until_agreed(struct conn *c, struct dfile *f)
{
    if (file_wait_to_show(f) != DUST_OK) {
        c->lib->api->interruptx(c->db);
    }
}

static void on_statement(struct conn *c, sqlite3_stmt *stmt, const char *sql)
{
    const sqlite3_api_routines *api = c->lib->api;
    struct dfile *f = c->files;
    bool rows;

    if (c->inside || f == NULL) {
        return;
    }
    if (c->maybe_exclusive || names_locking_mode(sql)) {
        end_exclusive(c);
    }
    if (c->writer != NULL || (sql[0] == '-' && sql[1] == '-')) {
        return;
    }
    rows = api->column_count(stmt) > 0;
    if (api->stmt_readonly(stmt)) {
        for (; rows && f != NULL; f = f->next) {
            if (api->get_autocommit(c->db) == 0 || f->writing) {
                hold_until_agreed(c, f);
            }
        }
        return;
    }
    if (f->next != NULL) {
        return; /* which of them it will write is not known here */
    }
    c->writer = stmt;
    take_turn(c, f);
    if (f->db->options.statements != STATEMENTS_OFF && strncasecmp(sql, "BEGIN", 5) != 0) {
        char *expanded = f->db->options.statements == STATEMENTS_EXPANDED ? api->expanded_sql(stmt) : NULL;

        sqltext_add(&f->sql, expanded != NULL ? expanded : sql);
        api->free(expanded);
    }
    if (rows) {
        hold_until_agreed(c, f);
    }
}

static void on_end(struct conn *c, sqlite3_stmt *stmt)
{
    if (c->writer != stmt) {
        return;
    }
    c->writer = NULL;
    if (c->files != NULL) {
        file_return_turn(c->files);
    }
    if (c->saved_timeout >= 0) {
        c->lib->api->busy_timeout(c->db, c->saved_timeout);
        c->saved_timeout = -1;
    }
}

static int on_trace(unsigned event, void *ctx, void *p, void *x)
{
    struct conn *c = ctx;

    switch (event) {
    case SQLITE_TRACE_STMT:
        on_statement(c, p, x);
        break;
    case SQLITE_TRACE_PROFILE:
        on_end(c, p);
        break;
    default:
        break;
    }
    return 0;
}

/* ---- for the VFS ---- */

void conn_connected(struct sqlite_lib *lib, struct dfile *f, sqlite3 *db)
{
    struct conn *c = conn_of(lib, db);

    if (c == NULL) {
        return; /* without the hook then */
    }
    f->next = c->files;
    c->files = f;
    c->maybe_exclusive = true;
    if (!c->hooked && lib->api->libversion_number() >= 3014000) {
        lib->api->trace_v2(db, SQLITE_TRACE_STMT | SQLITE_TRACE_PROFILE, on_trace, c);
        c->hooked = true;
    }
}

struct dfile *conn_files(struct sqlite_lib *lib, sqlite3 *db)
{
    struct conn *c = conn_find(db);

    (void)lib;
    return c != NULL ? c->files : NULL;
}

/* The main file of a connection is closed last, when the connection is going away; an attached one earlier. */
void conn_closing(struct sqlite_lib *lib, struct dfile *f)
{
    struct conn *c = f->conn != NULL ? conn_find(f->conn) : NULL;

    (void)lib;
    if (c == NULL) {
        return;
    }
    for (struct dfile **p = &c->files; *p != NULL; p = &(*p)->next) {
        if (*p == f) {
            *p = f->next;
            break;
        }
    }
    if (c->files == NULL) {
        c->writer = NULL;
        if (!c->set_up) {
            conn_forget(c); /* nothing else would */
        }
    }
}

void conn_failed(struct sqlite_lib *lib, sqlite3 *db, int rc, const struct err *e)
{
    struct conn *c = conn_of(lib, db);

    lib->api->log(rc, "dust: %s", e->text);
    if (c != NULL) {
        free(c->failed);
        c->failed = strdup(e->text);
        c->failed_rc = rc;
    }
}
