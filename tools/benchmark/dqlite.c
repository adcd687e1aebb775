/* dqlite 1.11: the target is host:port of any node; statements go to the leader that it names. A connection whose
 * operation failed is made again, to the leader of then, by the next one.
 *
 * Reads are of one kind, the leader's: it is job.linearizable's as far as dqlite has it. As SQL there are also
 *
 *     leader              the leader's address, as the target knows it; an empty row if it knows none
 *     add ID HOST:PORT    a node that has been started becomes a voter
 *
 * and a statement has rows to print if it begins with SELECT, VALUES, PRAGMA or EXPLAIN. Each runs on a connection of
 * its own. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "dqlite_client.h"

#define DATABASE "bench"
#define PAUSE_MS 20 /* after a connection could not be made */
#define VOTER 0

enum stmt { STMT_BEGIN, STMT_INSERT, STMT_COMMIT, STMT_UPDATE, STMT_READ, STMT_SCAN, STMTS };

struct conn {
    struct client client;
    const struct job *job;
    char *text; /* job.size bytes and a zero */
    uint32_t stmt[STMTS];
};

static bool prepare(struct conn *c)
{
    static const char *const all[STMTS] = {
        [STMT_BEGIN] = "BEGIN IMMEDIATE",
        [STMT_INSERT] = "INSERT INTO foo(name) VALUES(?)",
        [STMT_COMMIT] = "COMMIT",
        [STMT_UPDATE] = "UPDATE p SET name = ?2 WHERE id = ?1",
        [STMT_READ] = "SELECT name FROM p WHERE id = ?",
        [STMT_SCAN] = "SELECT name FROM p WHERE id >= ? LIMIT ?",
    };
    struct client *client = &c->client;
    uint64_t db, id;

    for (int i = 0; i < STMTS; i++) {
        begin_request(client, REQUEST_PREPARE);
        put_number(client, client->db, WORD);
        put_text(client, all[i]);
        if (!exchange(client, RESPONSE_STMT)) {
            return false;
        }
        if (!get_number(client, 4, &db) || !get_number(client, 4, &id)) {
            return broken(client);
        }
        c->stmt[i] = (uint32_t)id;
    }
    return true;
}

static bool connect_conn(struct conn *c)
{
    if (connect_leader(&c->client) && open_database(&c->client, DATABASE) && prepare(c)) {
        return true;
    }
    disconnect(&c->client);
    return false;
}

static void close_conn(void *ctx)
{
    struct conn *c = ctx;

    client_free(&c->client);
    free(c->text);
    free(c);
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
    c->job = job;
    c->text = text;
    client_init(&c->client, target);
    if (!connect_conn(c)) {
        snprintf(why, WHY_MAX, "%s", c->client.why);
        close_conn(c);
        return NULL;
    }
    return c;
}

/* What an operation begins with, */
static bool ready(struct conn *c)
{
    if (c->client.fd >= 0 || connect_conn(c)) {
        return true;
    }
    pause_ms(PAUSE_MS); /* the caller may try without end */
    return false;
}

/* and what it ends with. dqlite rolls back what a connection left undone when it is closed. */
static bool finish(struct conn *c, bool ok)
{
    if (!ok) {
        disconnect(&c->client);
    }
    return ok;
}

/* The beginning of a request that runs a statement; `types` has a letter for each parameter: i, t. */
static void begin_stmt(struct conn *c, enum request type, enum stmt stmt, const char *types)
{
    uint64_t head = strlen(types);

    begin_request(&c->client, type);
    put_number(&c->client, c->client.db, 4);
    put_number(&c->client, c->stmt[stmt], 4);
    for (unsigned i = 0; types[i] != '\0'; i++) {
        head |= (uint64_t)(types[i] == 'i' ? SQLITE_INTEGER : SQLITE_TEXT) << (8 * (i + 1));
    }
    if (head != 0) {
        put_number(&c->client, head, WORD);
    }
}

static bool insert(void *ctx, uint64_t unique)
{
    struct conn *c = ctx;
    bool one = c->job->rows == 1, ok = ready(c);
    uint64_t changed;

    (void)unique;
    if (ok && !one) {
        begin_stmt(c, REQUEST_EXEC, STMT_BEGIN, "");
        ok = exec(&c->client, &changed);
    }
    for (unsigned i = 0; ok && i < c->job->rows; i++) {
        begin_stmt(c, REQUEST_EXEC, STMT_INSERT, "t");
        put_text(&c->client, c->text);
        ok = exec(&c->client, &changed);
    }
    if (ok && !one) {
        begin_stmt(c, REQUEST_EXEC, STMT_COMMIT, "");
        ok = exec(&c->client, &changed);
    }
    return finish(c, ok);
}

static bool rows_missing(struct conn *c)
{
    snprintf(c->client.why, sizeof c->client.why, "not the rows that should be there");
    return false;
}

static bool update(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    uint64_t changed;

    if (!ready(c)) {
        return false;
    }
    next_text(c->text, c->job->size);
    begin_stmt(c, REQUEST_EXEC, STMT_UPDATE, "it");
    put_number(&c->client, key, WORD);
    put_text(&c->client, c->text);
    return finish(c, exec(&c->client, &changed) && (changed == 1 || rows_missing(c)));
}

static bool read_one(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    uint64_t rows;

    if (!ready(c)) {
        return false;
    }
    begin_stmt(c, REQUEST_QUERY, STMT_READ, "i");
    put_number(&c->client, key, WORD);
    return finish(c, query(&c->client, false, &rows) && (rows == 1 || rows_missing(c)));
}

static bool scan(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    uint64_t rows;

    if (!ready(c)) {
        return false;
    }
    begin_stmt(c, REQUEST_QUERY, STMT_SCAN, "ii");
    put_number(&c->client, key, WORD);
    put_number(&c->client, c->job->rows, WORD);
    return finish(c, query(&c->client, false, &rows) && ((rows > 0 && rows <= c->job->rows) || rows_missing(c)));
}

static const char *error(void *ctx)
{
    struct conn *c = ctx;

    return c->client.why;
}

static bool print_leader(struct client *c)
{
    char address[ADDRESS_MAX];

    return ask_leader(c, address) && puts(address) >= 0;
}

static bool add_node(struct client *c, uint64_t id, const char *address)
{
    if (!connect_leader(c)) {
        return false;
    }
    begin_request(c, REQUEST_ADD);
    put_number(c, id, WORD);
    put_text(c, address);
    if (!exchange(c, RESPONSE_EMPTY)) {
        return false;
    }
    begin_request(c, REQUEST_ASSIGN);
    put_number(c, id, WORD);
    put_number(c, VOTER, WORD);
    return exchange(c, RESPONSE_EMPTY);
}

static bool run_sql(struct client *c, const char *statement)
{
    static const char *const queries[] = {"SELECT", "VALUES", "PRAGMA", "EXPLAIN"};
    bool has_rows = false;
    uint64_t rows;

    statement += strspn(statement, " \t");
    for (size_t i = 0; i < sizeof queries / sizeof *queries; i++) {
        has_rows = has_rows || strncasecmp(statement, queries[i], strlen(queries[i])) == 0;
    }
    if (!connect_leader(c) || !open_database(c, DATABASE)) {
        return false;
    }
    begin_request(c, has_rows ? REQUEST_QUERY_SQL : REQUEST_EXEC_SQL);
    put_number(c, c->db, WORD);
    put_text(c, statement);
    return has_rows ? query(c, true, &rows) : exec(c, &rows);
}

static bool sql(const char *target, const char *statement, char *why)
{
    struct client c;
    char address[ADDRESS_MAX];
    unsigned long long id;
    bool ok;

    client_init(&c, target);
    if (strcmp(statement, "leader") == 0) {
        ok = print_leader(&c);
    } else if (sscanf(statement, "add %llu %255s", &id, address) == 2) {
        ok = add_node(&c, id, address);
    } else {
        ok = run_sql(&c, statement);
    }
    if (!ok) {
        snprintf(why, WHY_MAX, "%s", c.why);
    }
    client_free(&c);
    return ok;
}

const struct driver driver = {open_conn, insert, update, read_one, scan, error, close_conn, sql};
