/* How fast a cluster is, from here: clients that insert and read rows in a table of their own, and the same on a plain
 * SQLite database (WAL, synchronous=FULL) beside it, on the same disk. Each stage is a number of clients that all do one
 * thing for some seconds, each on a connection and a thread of its own. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "command.h"

#define CLIENTS_MAX 512
#define STAGES_MAX 16
#define TABLE "CREATE TABLE dust_bench(id INTEGER PRIMARY KEY, client INTEGER, n INTEGER, text TEXT)"

static const struct work {
    const char *name;
    bool plain, writes;
    const char *set_up, *sql;
} works[] = {
    {"insert, plain SQLite", true, true, NULL, "INSERT INTO dust_bench(client, n, text) VALUES(?1, ?2, 'some text of a row')"},
    {"insert", false, true, NULL, "INSERT INTO dust_bench(client, n, text) VALUES(?1, ?2, 'some text of a row')"},
    {"read, plain SQLite", true, false, NULL, "SELECT text FROM dust_bench WHERE id = ?2"},
    {"read, local", false, false, NULL, "SELECT text FROM dust_bench WHERE id = ?2"},
    {"read, linearizable", false, false, "PRAGMA dust_consistency = linearizable",
        "SELECT text FROM dust_bench WHERE id = ?2"},
};
#define N_WORKS (sizeof works / sizeof works[0])

/* ---- times ---- */

/* Microseconds, by logarithm, 32 steps to each doubling: 3 %. */
struct times {
    uint64_t n, max_us, buckets[28 * 32];
};

static unsigned bucket_of(uint64_t us)
{
    unsigned shift = 0;

    while ((us >> shift) >= 64) {
        shift++;
    }
    return us < 32 ? (unsigned)us : shift * 32 + (unsigned)(us >> shift);
}

static double bucket_ms(unsigned bucket)
{
    unsigned shift = bucket < 64 ? 0 : bucket / 32 - 1;

    return (double)((uint64_t)(bucket - shift * 32) << shift) / 1000;
}

static void times_add(struct times *t, uint64_t us)
{
    unsigned b = bucket_of(us), last = sizeof t->buckets / sizeof t->buckets[0] - 1;

    t->buckets[b < last ? b : last]++;
    t->n++;
    t->max_us = us > t->max_us ? us : t->max_us;
}

static void times_sum(struct times *to, const struct times *t)
{
    for (size_t i = 0; i < sizeof t->buckets / sizeof t->buckets[0]; i++) {
        to->buckets[i] += t->buckets[i];
    }
    to->n += t->n;
    to->max_us = t->max_us > to->max_us ? t->max_us : to->max_us;
}

/* The time that this part of them took at most. */
static double times_ms(const struct times *t, double part)
{
    uint64_t below = 0;
    unsigned i = 0;

    while (i + 1 < sizeof t->buckets / sizeof t->buckets[0] && (double)(below + t->buckets[i]) < part * (double)t->n) {
        below += t->buckets[i++];
    }
    return bucket_ms(i);
}

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* ---- a stage ---- */

struct stage {
    const struct work *work;
    int64_t rows; /* there are, to be read */
    pthread_mutex_t gate; /* held until all are there */
    atomic_bool over;
};

struct client {
    struct stage *stage;
    pthread_t thread;
    sqlite3 *db;
    int number;
    uint64_t errors;
    char error[300];
    struct times times;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static void *run_client(void *arg)
{
    struct client *c = arg;
    const struct stage *stage = c->stage;
    uint64_t chance = 0x9e3779b97f4a7c15u * (uint64_t)(c->number + 1);
    sqlite3_stmt *stmt = NULL;
    int64_t n = 0;

    sqlite3_prepare_v2(c->db, stage->work->sql, -1, &stmt, NULL);
    pthread_mutex_lock(&c->stage->gate);
    pthread_mutex_unlock(&c->stage->gate);
    while (!atomic_load(&stage->over)) {
        uint64_t t = now_us();
        int rc;

        chance = chance * 6364136223846793005u + 1442695040888963407u;
        if (stage->work->writes) {
            n++;
        } else {
            n = 1 + (int64_t)((chance >> 33) % (uint64_t)stage->rows);
        }
        sqlite3_bind_int(stmt, 1, c->number);
        sqlite3_bind_int64(stmt, 2, n);
        do {
            rc = sqlite3_step(stmt);
        } while (rc == SQLITE_ROW);
        if (rc == SQLITE_DONE) {
            times_add(&c->times, now_us() - t);
        } else {
            snprintf(c->error, sizeof c->error, "%s", sqlite3_errmsg(c->db));
            if (++c->errors > 1000 || ((rc & 0xff) != SQLITE_BUSY && sqlite3_get_autocommit(c->db) == 0)) {
                break;
            }
        }
        sqlite3_reset(stmt);
    }
    sqlite3_finalize(stmt);
    return NULL;
}

static int open_client(const struct request *r, const struct work *w, const char *plain, sqlite3 **db)
{
    int rv = EXIT_OK;

    if (!w->plain) {
        rv = open_member(r, r->args[0], db);
    } else if (sqlite3_open_v2(plain, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "unix") != SQLITE_OK ||
               sqlite3_busy_timeout(*db, r->timeout_ms) != SQLITE_OK ||
               sqlite3_exec(*db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(*db, plain);
    }
    if (rv == EXIT_OK && w->set_up != NULL && sqlite3_exec(*db, w->set_up, NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(*db, NULL);
    }
    return rv;
}

static void wait_seconds(int seconds)
{
    struct timespec left = {.tv_sec = seconds};

    while (!interrupted && nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

/* All clients, for as long as the request says. *per_second, *all: of them together. */
static int run_stage(const struct request *r, struct stage *stage, const char *plain, int n, double *per_second,
    struct times *all, uint64_t *errors)
{
    struct client *clients = calloc((size_t)n, sizeof *clients);
    int opened = 0, started = 0, rv = clients != NULL ? EXIT_OK : complain(EXIT_FAILED, "out of memory");
    uint64_t begun = 0;

    while (rv == EXIT_OK && opened < n) {
        clients[opened] = (struct client){.stage = stage, .number = opened};
        rv = open_client(r, stage->work, plain, &clients[opened].db);
        opened++;
    }
    if (rv == EXIT_OK) {
        pthread_mutex_lock(&stage->gate);
        while (started < n && pthread_create(&clients[started].thread, NULL, run_client, &clients[started]) == 0) {
            started++;
        }
        rv = started == n ? EXIT_OK : complain(EXIT_FAILED, "cannot start %d threads", n);
        atomic_store(&stage->over, rv != EXIT_OK);
        pthread_mutex_unlock(&stage->gate);
        begun = now_us();
        if (rv == EXIT_OK) {
            wait_seconds(r->seconds);
        }
        atomic_store(&stage->over, true);
    }
    for (int i = 0; i < started; i++) {
        pthread_join(clients[i].thread, NULL);
        times_sum(all, &clients[i].times);
        *errors += clients[i].errors;
        if (clients[i].errors != 0 && *errors == clients[i].errors) { /* of the first */
            complain(EXIT_OK, "%s: %s", stage->work->name, clients[i].error);
        }
    }
    *per_second = started != 0 ? (double)all->n * 1e6 / (double)(now_us() - begun) : 0;
    for (int i = 0; i < opened; i++) {
        sqlite3_close(clients[i].db);
    }
    free(clients);
    return rv;
}

/* ---- all of it ---- */

static int add_row(sqlite3 *results, const struct work *w, int n, double per_second, double plain, const struct times *t,
    uint64_t errors)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(results,
        "INSERT INTO r VALUES(?, ?, round(?, 0), round(?, 2), round(?, 3), round(?, 3), round(?, 3), round(?, 3), ?)", -1,
        &stmt, NULL);

    if (rc == SQLITE_OK) {
        sqlite3_bind_text(stmt, 1, w->name, -1, SQLITE_STATIC);
        sqlite3_bind_int(stmt, 2, n);
        sqlite3_bind_double(stmt, 3, per_second);
        if (!w->plain && plain > 0) {
            sqlite3_bind_double(stmt, 4, per_second / plain);
        }
        sqlite3_bind_double(stmt, 5, times_ms(t, 0.5));
        sqlite3_bind_double(stmt, 6, times_ms(t, 0.99));
        sqlite3_bind_double(stmt, 7, times_ms(t, 0.999));
        sqlite3_bind_double(stmt, 8, (double)t->max_us / 1000);
        sqlite3_bind_int64(stmt, 9, (sqlite3_int64)errors);
        rc = sqlite3_step(stmt) == SQLITE_DONE ? SQLITE_OK : sqlite3_errcode(results);
    }
    sqlite3_finalize(stmt);
    return rc == SQLITE_OK ? EXIT_OK : complain(EXIT_FAILED, "out of memory");
}

static int parse_clients(const char *text, int *list, int *n)
{
    char *end;

    for (*n = 0; *n < STAGES_MAX; text = end + 1) {
        long v = strtol(text, &end, 10);

        if (*text < '0' || *text > '9' || v < 1 || v > CLIENTS_MAX || (*end != ',' && *end != '\0')) {
            break;
        }
        list[(*n)++] = (int)v;
        if (*end == '\0') {
            return EXIT_OK;
        }
    }
    return complain(EXIT_USAGE, "--clients: up to %d numbers from 1 to %d, with commas between, are needed", STAGES_MAX,
        CLIENTS_MAX);
}

static void remove_plain(const char *plain)
{
    static const char *const behind[] = {"", "-wal", "-shm", "-journal"};
    char path[4200];

    for (size_t i = 0; i < sizeof behind / sizeof behind[0]; i++) {
        snprintf(path, sizeof path, "%s%s", plain, behind[i]);
        unlink(path);
    }
}

static int64_t rows_there(const struct work *w, sqlite3 *db, const char *plain)
{
    sqlite3 *other = NULL;
    int64_t n = 1;

    if (!w->plain) {
        n = one_int(db, "SELECT max(id) FROM dust_bench", 1);
    } else if (sqlite3_open_v2(plain, &other, SQLITE_OPEN_READWRITE, "unix") == SQLITE_OK) {
        n = one_int(other, "SELECT max(id) FROM dust_bench", 1);
    }
    sqlite3_close(other);
    return n > 0 ? n : 1;
}

/* *plain_rate: what plain SQLite did in the same work, once it is known. */
static int measure(const struct request *r, const struct work *w, int n, sqlite3 *db, const char *plain, double *plain_rate,
    sqlite3 *results)
{
    struct stage stage = {.work = w, .rows = rows_there(w, db, plain), .gate = PTHREAD_MUTEX_INITIALIZER};
    struct times *all = calloc(1, sizeof *all);
    double per_second;
    uint64_t errors = 0;
    int rv;

    if (all == NULL) {
        return complain(EXIT_FAILED, "out of memory");
    }
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K%s, %d clients ...", w->name, n);
    }
    rv = run_stage(r, &stage, plain, n, &per_second, all, &errors);
    *plain_rate = w->plain ? per_second : *plain_rate;
    if (rv == EXIT_OK) {
        rv = add_row(results, w, n, per_second, *plain_rate, all, errors);
    }
    free(all);
    return rv;
}

static int measure_all(const struct request *r, sqlite3 *db, const char *plain, const int *clients, int n, sqlite3 *results)
{
    int rv = EXIT_OK;

    for (int i = 0; i < n && rv == EXIT_OK; i++) {
        double plain_rate = 0;

        for (size_t k = 0; k < N_WORKS && rv == EXIT_OK && !interrupted; k++) {
            rv = measure(r, &works[k], clients[i], db, plain, &plain_rate, results);
        }
    }
    if (isatty(STDERR_FILENO)) {
        fputs("\r\033[K", stderr);
    }
    return rv;
}

static int make_plain(const char *plain)
{
    sqlite3 *db = NULL;
    int rv = EXIT_OK;

    if (access(plain, F_OK) == 0) {
        return complain(EXIT_FAILED, "%s exists: of an earlier run that was cut short? Remove it and try again", plain);
    }
    if (sqlite3_open_v2(plain, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "unix") != SQLITE_OK ||
        sqlite3_exec(db, TABLE, NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(db, plain);
    }
    sqlite3_close(db);
    return rv;
}

int run_bench(struct request *r)
{
    struct sigaction sa = {.sa_handler = on_signal};
    int clients[STAGES_MAX], n, rv = parse_clients(r->clients != NULL ? r->clients : "1,8,64", clients, &n);
    sqlite3 *db = NULL, *results = NULL;
    sqlite3_stmt *stmt = NULL;
    char plain[4096];

    if (rv == EXIT_OK) {
        rv = open_member(r, r->args[0], &db);
    }
    if (rv != EXIT_OK) {
        return rv;
    }
    if (one_int(db, "SELECT count(*) FROM sqlite_master WHERE name = 'dust_bench'", 0) != 0) {
        rv = complain(EXIT_FAILED,
            "there is a table dust_bench: of an earlier run that was cut short? `dust sql \"DROP TABLE dust_bench\" %s`, and "
            "try again",
            r->args[0]);
        sqlite3_close(db);
        return rv;
    }
    snprintf(plain, sizeof plain, "%s-bench", r->args[0]);
    rv = make_plain(plain);
    if (rv == EXIT_OK && sqlite3_exec(db, TABLE, NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(db, NULL);
        remove_plain(plain);
    }
    if (rv != EXIT_OK) {
        sqlite3_close(db);
        return rv;
    }
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    if (sqlite3_open(":memory:", &results) != SQLITE_OK ||
        sqlite3_exec(results, "CREATE TABLE r(what, clients, per_second, of_plain, p50_ms, p99_ms, p999_ms, max_ms, errors)",
            NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain(EXIT_FAILED, "out of memory");
    } else {
        rv = measure_all(r, db, plain, clients, n, results);
        if (sqlite3_prepare_v2(results, "SELECT * FROM r", -1, &stmt, NULL) == SQLITE_OK) {
            print_rows(stmt, r->json);
        }
        if (rv == EXIT_OK && one_int(results, "SELECT sum(errors) FROM r", 0) != 0) {
            rv = EXIT_FAILED;
        }
    }
    sqlite3_finalize(stmt);
    sqlite3_close(results);
    if (sqlite3_exec(db, "DROP TABLE dust_bench", NULL, NULL, NULL) != SQLITE_OK) {
        rv = complain_sql(db, "the table dust_bench could not be dropped");
    }
    remove_plain(plain);
    sqlite3_close(db);
    return interrupted && rv == EXIT_OK ? EXIT_FAILED : rv;
}
