/* The clients: what they do, what they are told, and what they make of it.
 *
 * The tables: `head` has one row, which every writing transaction advances by one and signs with its number (an INSERT
 * into `item` by a trigger). So whatever is read tells which state of the history it belongs to. */
#include "tests/sim/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/machine.h"
#include "tests/sim/sched.h"
#include "vfs/replicator.h"

#define CLIENTS_MAX 64
#define FRESHNESS_MS 400

struct client {
    struct machine *machine;
    unsigned life, number;
    sqlite3 *db;
    sqlite3_stmt *read, *insert, *head;
    int level; /* enum consistency */
    uint64_t seen_n;
    bool done, gone;
    char complaint[160];
};

static struct {
    struct client *at[CLIENTS_MAX];
    unsigned n;
    bool finishing;
} clients;

struct client_habits client_habits = {.think_ns = 20 * MS_NS, .write = 60, .hookless = 20, .bytes = 200, .large = 1000};

static const char tables[] =
    "CREATE TABLE head(k INTEGER PRIMARY KEY CHECK (k = 1), n INTEGER, tx INTEGER);"
    "CREATE TABLE counter(k INTEGER PRIMARY KEY, v INTEGER);"
    "CREATE TABLE account(k INTEGER PRIMARY KEY, v INTEGER);"
    "CREATE TABLE list(i INTEGER PRIMARY KEY, tx INTEGER UNIQUE);"
    "CREATE TABLE item(tx INTEGER PRIMARY KEY, x BLOB);"
    "CREATE TRIGGER item_head AFTER INSERT ON item BEGIN UPDATE head SET n = n + 1, tx = new.tx; END;"
    "INSERT INTO head VALUES (1, 0, 0);"
    "INSERT INTO counter VALUES (0, 0), (1, 0), (2, 0), (3, 0);"
    "INSERT INTO account VALUES (0, 1000), (1, 1000), (2, 1000), (3, 1000);";

static const char read_all[] =
    "SELECT n, tx, (SELECT group_concat(v) FROM (SELECT v FROM counter ORDER BY k)),"
    " (SELECT group_concat(v) FROM (SELECT v FROM account ORDER BY k)),"
    " (SELECT group_concat(tx) FROM (SELECT tx FROM list ORDER BY i)),"
    " i.c, i.s, i.b FROM head, (SELECT count(*) c, ifnull(sum(tx), 0) s, ifnull(sum(length(x)), 0) b FROM item) i";

void client_make_tables(sqlite3 *db, struct state *state)
{
    char *error = NULL;

    if (sqlite3_exec(db, tables, NULL, NULL, &error) != SQLITE_OK) {
        stuck("cannot make the tables: %s", error);
    }
    *state = (struct state){0};
    for (int i = 0; i < ACCOUNTS; i++) {
        state->account[i] = ACCOUNT_BEGIN;
    }
}

/* ---- asking ---- */

int client_open(struct machine *m, const char *parameters, sqlite3 **db, char *error, size_t size)
{
    char uri[256];
    int rc;

    snprintf(uri, sizeof uri, "file:%s?vfs=dust%s%s", m->path, *parameters != '\0' ? "&" : "", parameters);
    rc = sqlite3_open_v2(uri, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
    if (rc == SQLITE_OK) {
        rc = sqlite3_exec(*db, "PRAGMA user_version", NULL, NULL, NULL); /* where an open that failed says why */
    }
    if (rc != SQLITE_OK) {
        snprintf(error, size, "%s", sqlite3_errmsg(*db));
        sqlite3_close(*db);
        *db = NULL;
    }
    return rc;
}

bool client_ask(sqlite3 *db, const char *sql, char *out, size_t size)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
    bool ok;

    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
    }
    ok = rc == SQLITE_ROW;
    snprintf(out, size, "%s",
        ok                  ? sqlite3_column_text(stmt, 0) != NULL ? (const char *)sqlite3_column_text(stmt, 0) : ""
        : rc == SQLITE_DONE ? "no row"
                            : sqlite3_errmsg(db));
    sqlite3_finalize(stmt);
    return ok;
}

static void numbers(const unsigned char *text, int64_t *out, int n)
{
    const char *p = text != NULL ? (const char *)text : "";

    for (int i = 0; i < n; i++) {
        char *end;

        out[i] = strtoll(p, &end, 10);
        p = *end == ',' ? end + 1 : end;
    }
}

static void read_list(const unsigned char *text, struct state *s)
{
    const char *p = (const char *)text;

    s->list_n = s->list_hash = 0;
    while (p != NULL && *p != '\0') {
        char *end;

        s->list_hash = mix(s->list_hash, strtoull(p, &end, 10));
        s->list_n++;
        p = *end == ',' ? end + 1 : end;
    }
}

/* Step to the row, take it, and end the statement. */
static int read_row(sqlite3_stmt *stmt, struct state *s)
{
    int rc = sqlite3_step(stmt), again;

    if (rc == SQLITE_ROW) {
        memset(s, 0, sizeof *s);
        s->n = (uint64_t)sqlite3_column_int64(stmt, 0);
        s->tx = (uint64_t)sqlite3_column_int64(stmt, 1);
        numbers(sqlite3_column_text(stmt, 2), s->counter, COUNTERS);
        numbers(sqlite3_column_text(stmt, 3), s->account, ACCOUNTS);
        read_list(sqlite3_column_text(stmt, 4), s);
        s->item_n = (uint64_t)sqlite3_column_int64(stmt, 5);
        s->item_sum = (uint64_t)sqlite3_column_int64(stmt, 6);
        s->item_bytes = (uint64_t)sqlite3_column_int64(stmt, 7);
    }
    again = sqlite3_reset(stmt);
    return rc == SQLITE_ROW ? SQLITE_OK : again != SQLITE_OK ? again : SQLITE_CORRUPT;
}

int client_read_state(sqlite3 *db, struct state *s)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(db, read_all, -1, &stmt, NULL);

    if (rc == SQLITE_OK) {
        rc = read_row(stmt, s);
    }
    sqlite3_finalize(stmt);
    return rc;
}

/* ---- one client ---- */

static int own_trace(unsigned event, void *ctx, void *p, void *x)
{
    (void)event;
    (void)ctx;
    (void)p;
    (void)x;
    return 0;
}

static void close_db(struct client *c)
{
    sqlite3_finalize(c->read);
    sqlite3_finalize(c->insert);
    sqlite3_finalize(c->head);
    sqlite3_close(c->db);
    c->db = NULL;
    c->read = c->insert = c->head = NULL;
}

static bool open_db(struct client *c)
{
    static const char *const levels[] = {"stale", "local", "fresh", "linearizable"};
    static const int timeouts[] = {0, 100, 1000, 5000};
    char text[96];
    int rc = client_open(c->machine, "", &c->db, c->complaint, sizeof c->complaint);

    if (rc != SQLITE_OK) {
        return false;
    }
    sqlite3_busy_timeout(c->db, timeouts[chance_below(4)]);
    c->level = chance(4000) ? CONSISTENCY_LOCAL : (int)chance_below(4);
    c->seen_n = 0;
    snprintf(text, sizeof text, "PRAGMA dust_consistency=%s; PRAGMA dust_freshness=%d", levels[c->level], FRESHNESS_MS);
    if (chance_below(100) < client_habits.hookless) {
        sqlite3_trace_v2(c->db, SQLITE_TRACE_STMT, own_trace, NULL);
    }
    if (sqlite3_exec(c->db, text, NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v3(c->db, read_all, -1, SQLITE_PREPARE_PERSISTENT, &c->read, NULL) != SQLITE_OK ||
        sqlite3_prepare_v3(c->db, "INSERT INTO item VALUES (?, randomblob(?))", -1, SQLITE_PREPARE_PERSISTENT,
            &c->insert, NULL) != SQLITE_OK ||
        sqlite3_prepare_v3(c->db, "UPDATE head SET n = n + 1, tx = ?", -1, SQLITE_PREPARE_PERSISTENT, &c->head, NULL) !=
            SQLITE_OK) {
        snprintf(c->complaint, sizeof c->complaint, "open: %s", sqlite3_errmsg(c->db));
        close_db(c);
        return false;
    }
    return true;
}

/* ---- reading ---- */

static uint64_t least_to_see(const struct client *c)
{
    uint64_t least = c->seen_n;

    if (c->level != CONSISTENCY_STALE && c->machine->acked_at_start > least && !c->machine->leaving) {
        least = c->machine->acked_at_start;
    }
    if (c->machine->seen_n > least) {
        least = c->machine->seen_n;
    }
    if (c->level == CONSISTENCY_LINEARIZABLE && history_acked() > least) {
        least = history_acked();
    }
    if (c->level == CONSISTENCY_FRESH && history_acked_ago((FRESHNESS_MS + 5) * MS_NS) > least) {
        least = history_acked_ago((FRESHNESS_MS + 5) * MS_NS);
    }
    return least;
}

static void saw(struct client *c, const struct state *s)
{
    c->seen_n = s->n;
    if (s->n > c->machine->seen_n) {
        c->machine->seen_n = s->n;
    }
}

static void do_read(struct client *c)
{
    static const char *const how[] = {"stale read", "local read", "fresh read", "linearizable read"};
    uint64_t least = least_to_see(c);
    bool twice = chance(1500);
    struct state s, again;

    if (twice && sqlite3_exec(c->db, "BEGIN", NULL, NULL, NULL) != SQLITE_OK) {
        return;
    }
    if (read_row(c->read, &s) != SQLITE_OK) {
        tally()->reads_refused++;
        snprintf(c->complaint, sizeof c->complaint, "%s: %s", how[c->level], sqlite3_errmsg(c->db));
    } else {
        tally()->reads[c->level]++;
        history_check_read(c->machine, &s, least, how[c->level]);
        saw(c, &s);
        if (twice) {
            task_sleep(chance_below(300 * MS_NS));
            if (read_row(c->read, &again) == SQLITE_OK && memcmp(&s, &again, sizeof s) != 0) {
                violation("m%u: two reads in one transaction differ: state %llu, then %llu", c->machine->number,
                    (unsigned long long)s.n, (unsigned long long)again.n);
            }
        }
    }
    if (twice) {
        sqlite3_exec(c->db, "COMMIT", NULL, NULL, NULL);
    }
}

/* ---- writing ---- */

static int run(struct client *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int run(struct client *c, const char *fmt, ...)
{
    char sql[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(sql, sizeof sql, fmt, ap);
    va_end(ap);
    return sqlite3_exec(c->db, sql, NULL, NULL, NULL);
}

static int step_once(sqlite3_stmt *stmt)
{
    int rc = sqlite3_step(stmt), again = sqlite3_reset(stmt);

    return rc == SQLITE_DONE ? again : rc == SQLITE_ROW ? SQLITE_OK : again != SQLITE_OK ? again : rc;
}

/* What is read in a write transaction is agreed, and is what it will be built on. */
static int read_within(struct client *c, struct op *op, struct state *s)
{
    uint64_t least = c->level == CONSISTENCY_STALE || c->machine->leaving ? 0 : c->machine->acked_at_start;
    int rc = read_row(c->read, s);

    if (rc == SQLITE_OK) {
        tally()->reads_in_writes++;
        history_check_read(c->machine, s, c->seen_n > least ? c->seen_n : least, "read in a write transaction");
        op->has_read = true;
        op->read_n = s->n;
    }
    return rc;
}

static int advance(struct client *c, const struct op *op)
{
    sqlite3_bind_int64(c->head, 1, (sqlite3_int64)op->tx);
    return step_once(c->head);
}

/* The statements between BEGIN and COMMIT. */
static int body(struct client *c, struct op *op)
{
    struct state s;
    int rc = read_within(c, op, &s);

    if (rc != SQLITE_OK) {
        return rc;
    }
    if (chance(1000)) {
        task_sleep(chance_below(100 * MS_NS));
    }
    switch (op->kind) {
    case OP_KIND_COUNTER:
        op->which = (int)chance_below(COUNTERS);
        op->value = s.counter[op->which] + 1;
        rc = run(c, "UPDATE counter SET v = %lld WHERE k = %d", (long long)op->value, op->which);
        break;
    case OP_KIND_LIST:
        op->restart = s.list_n >= LIST_MAX;
        if (op->restart) {
            rc = run(c, "DELETE FROM list");
        }
        if (rc == SQLITE_OK) {
            rc = run(c, "INSERT INTO list(tx) VALUES (%llu)", (unsigned long long)op->tx);
        }
        break;
    case OP_KIND_TRANSFER: {
        int64_t x = (int64_t)chance_below(50);

        op->which = (int)chance_below(ACCOUNTS);
        op->other = (op->which + 1 + (int)chance_below(ACCOUNTS - 1)) % ACCOUNTS;
        op->value = s.account[op->which] - x;
        op->other_value = s.account[op->other] + x;
        rc = run(c, "UPDATE account SET v = v - %lld WHERE k = %d", (long long)x, op->which);
        if (rc == SQLITE_OK) {
            rc = run(c, "UPDATE account SET v = v + %lld WHERE k = %d", (long long)x, op->other);
        }
        break;
    }
    case OP_KIND_CLEAR:
        rc = run(c, "DELETE FROM item");
        break;
    default:
        break;
    }
    return rc == SQLITE_OK && op->kind != OP_KIND_NONE ? advance(c, op) : rc;
}

static int transaction(struct client *c, struct op *op)
{
    int rc = run(c, "%s", chance(6500) ? "BEGIN IMMEDIATE" : "BEGIN");

    if (rc == SQLITE_OK) {
        rc = body(c, op);
    }
    if (rc == SQLITE_OK && chance(200)) {
        run(c, "ROLLBACK");
        return SQLITE_ABORT;
    }
    if (rc == SQLITE_OK) {
        rc = run(c, "COMMIT");
    }
    return rc;
}

/* What became of it? On this machine, or on another one. */
static void ask_outcome(struct client *c, struct op *op)
{
    char sql[128], hex[VID_HEX_SIZE], answer[160];
    uint64_t position;

    vid_hex(&op->id, hex);
    if (chance(5000)) {
        snprintf(sql, sizeof sql, "SELECT dust_outcome('%s')", hex);
    } else {
        snprintf(sql, sizeof sql, "SELECT dust_outcome('%s', %llu)", hex, (unsigned long long)op->after);
    }
    task_set_note(NULL); /* it may write, for itself */
    if (!client_ask(c->db, sql, answer, sizeof answer)) {
        tally()->outcomes_open++;
        return;
    }
    say(2, "m%u: tx %llu: dust_outcome says %s", c->machine->number, (unsigned long long)op->tx, answer);
    if (strcmp(answer, "agreed") == 0) {
        tally()->outcomes_agreed++;
        if (!history_find(&op->id, &position)) {
            violation("m%u: dust_outcome says that tx %llu took effect, and it did not", c->machine->number,
                (unsigned long long)op->tx);
        }
    } else if (strcmp(answer, "void") == 0) {
        tally()->outcomes_void++;
        op_refused(op);
    } else {
        tally()->outcomes_open++;
    }
}

static void do_write(struct client *c)
{
    static const enum op_kind kinds[] = {OP_KIND_ITEM, OP_KIND_ITEM, OP_KIND_ITEM, OP_KIND_COUNTER, OP_KIND_COUNTER,
        OP_KIND_LIST, OP_KIND_TRANSFER, OP_KIND_TRANSFER, OP_KIND_CLEAR, OP_KIND_NONE};
    enum op_kind kind = kinds[chance_below(sizeof kinds / sizeof kinds[0])];
    struct op *op = op_new(kind == OP_KIND_CLEAR && chance(7000) ? OP_KIND_ITEM : kind);
    uint64_t acked_n;
    int rc, extended;

    task_set_note(op);
    if (op->kind == OP_KIND_ITEM) {
        op->bytes = 1 + chance_below(chance(client_habits.large) ? client_habits.bytes : 40);
        sqlite3_bind_int64(c->insert, 1, (sqlite3_int64)op->tx);
        sqlite3_bind_int64(c->insert, 2, (sqlite3_int64)op->bytes);
        rc = step_once(c->insert);
    } else {
        rc = transaction(c, op);
    }
    extended = rc == SQLITE_OK ? SQLITE_OK : sqlite3_extended_errcode(c->db);
    if (rc != SQLITE_OK) {
        say(2, "m%u: tx %llu: %s (%d)", c->machine->number, (unsigned long long)op->tx, sqlite3_errmsg(c->db),
            extended);
        snprintf(c->complaint, sizeof c->complaint, "write: %s (%d)", sqlite3_errmsg(c->db), extended);
    }
    if (rc == SQLITE_OK) {
        op_acked(op);
        acked_n = op->kind != OP_KIND_NONE ? history_state_at(op->position) : 0;
        c->seen_n = acked_n > c->seen_n ? acked_n : c->seen_n;
        c->done = c->done || clients.finishing;
    } else {
        if (extended == SQLITE_IOERR_COMMIT_ATOMIC && op->staged) {
            op_unknown(op);
        } else {
            op_refused(op);
            tally()->refused++;
        }
    }
    if (sqlite3_get_autocommit(c->db) == 0) {
        run(c, "ROLLBACK");
    }
    task_set_note(NULL);
    if (op->fate == OP_REFUSED) {
        task_sleep(chance_below(5 * MS_NS));
    }
    if (op->fate == OP_UNKNOWN && chance(7000)) {
        task_sleep(chance_below(500 * MS_NS));
        ask_outcome(c, op);
    }
}

static void client_run(void *arg)
{
    struct client *c = arg;
    char text[160];

    while (!c->done) {
        if (c->db == NULL && !open_db(c)) {
            task_sleep(chance_between(20 * MS_NS, 200 * MS_NS));
            continue;
        }
        if (clients.finishing || chance_below(100) < client_habits.write) {
            do_write(c);
        } else if (chance(9700)) {
            do_read(c);
        } else if (chance(3000)) {
            client_ask(c->db, "SELECT dust_checkpoint()", text, sizeof text);
        } else {
            close_db(c);
        }
        if (client_habits.think_ns != 0 && chance(7000)) {
            task_sleep(chance_below(client_habits.think_ns));
        }
    }
    if (c->db != NULL) {
        close_db(c);
    }
    c->gone = true;
}

void client_spawn(struct machine *m, unsigned number)
{
    struct client *c = must(calloc(1, sizeof *c));

    for (unsigned i = 0; i < clients.n;) { /* those that have ended make room */
        if (clients.at[i]->gone) {
            clients.at[i] = clients.at[--clients.n];
        } else {
            i++;
        }
    }
    if (clients.n == CLIENTS_MAX) {
        stuck("more than %d clients", CLIENTS_MAX);
    }
    c->machine = m;
    c->life = m->life;
    c->number = number;
    clients.at[clients.n++] = c;
    task_spawn(m, "client", client_run, c);
}

void client_finish(void)
{
    clients.finishing = true;
}

unsigned client_left(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < clients.n; i++) {
        n += !clients.at[i]->gone;
    }
    return n;
}

const char *client_complaint(void)
{
    static char text[240];

    for (unsigned i = 0; i < clients.n; i++) {
        if (!clients.at[i]->gone) {
            snprintf(text, sizeof text, "m%u: %s", clients.at[i]->machine->number, clients.at[i]->complaint);
            return text;
        }
    }
    return "";
}

void client_machine_down(const struct machine *m)
{
    for (unsigned i = 0; i < clients.n; i++) {
        if (clients.at[i]->machine == m) {
            clients.at[i]->gone = true;
        }
    }
}
