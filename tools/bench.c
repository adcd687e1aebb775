/* bench - the program that tools/bench drives: one database, some threads, one kind of work at a time.
 *
 *     bench PATH [LIBDUST]
 *
 * Reads commands, a line each, and answers each with lines of which the last is "ok ..." or "error ...":
 *     sql STATEMENT            on a connection of its own; prints the rows, columns parted by '|'
 *     insert THREADS SECONDS   each thread: INSERT of one row, each in its own transaction; "ok COUNT SECONDS ERRORS"
 *     read THREADS SECONDS     each thread: one row by a random rowid from p; the same answer
 * Each thread has its own connection, opened before the clock starts, with a busy timeout of 30 s. */
#include <pthread.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS_MAX 256
#define BUSY_MS 30000
#define READ_ROWS 100000

static const char *path;

struct job {
    pthread_t thread;
    pthread_barrier_t *barrier;
    const char *sql;
    double seconds;
    int reading;
    unsigned seed;
    unsigned long count, errors; /* what came of it */
    double ended;
    char why[200];
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static sqlite3 *open_db(char *why, size_t size)
{
    sqlite3 *db;

    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) != SQLITE_OK) {
        snprintf(why, size, "%s", sqlite3_errmsg(db));
        sqlite3_close(db);
        return NULL;
    }
    sqlite3_busy_timeout(db, BUSY_MS);
    sqlite3_exec(db, "PRAGMA synchronous=FULL", NULL, NULL, NULL);
    return db;
}

static void work(struct job *j, sqlite3 *db, sqlite3_stmt *stmt)
{
    double end = now() + j->seconds;

    while (now() < end) {
        int rc;

        if (j->reading) {
            sqlite3_bind_int(stmt, 1, 1 + rand_r(&j->seed) % READ_ROWS);
            rc = sqlite3_step(stmt) == SQLITE_ROW ? SQLITE_DONE : SQLITE_NOTFOUND;
        } else {
            rc = sqlite3_step(stmt);
        }
        if (sqlite3_reset(stmt) == SQLITE_OK && rc == SQLITE_DONE) {
            j->count++;
        } else if (j->errors++ == 0) {
            snprintf(j->why, sizeof j->why, "%s", sqlite3_errmsg(db));
        }
    }
    j->ended = now();
}

static void *run_job(void *arg)
{
    struct job *j = arg;
    sqlite3_stmt *stmt = NULL;
    sqlite3 *db = open_db(j->why, sizeof j->why);

    if (db != NULL && sqlite3_prepare_v2(db, j->sql, -1, &stmt, NULL) != SQLITE_OK) {
        snprintf(j->why, sizeof j->why, "%s", sqlite3_errmsg(db));
    }
    pthread_barrier_wait(j->barrier);
    if (stmt != NULL) {
        work(j, db, stmt);
    } else {
        j->errors++;
        j->ended = now();
    }
    sqlite3_finalize(stmt);
    sqlite3_close(db);
    return NULL;
}

static void run_jobs(int reading, unsigned n, double seconds)
{
    static struct job jobs[THREADS_MAX];
    pthread_barrier_t barrier;
    unsigned long count = 0, errors = 0;
    double start, ended = 0;
    const char *why = "";

    pthread_barrier_init(&barrier, NULL, n + 1);
    memset(jobs, 0, sizeof jobs);
    for (unsigned i = 0; i < n; i++) {
        jobs[i].barrier = &barrier;
        jobs[i].sql = reading ? "SELECT name FROM p WHERE id = ?" : "INSERT INTO foo(name) VALUES('fiona')";
        jobs[i].seconds = seconds;
        jobs[i].reading = reading;
        jobs[i].seed = i + 1;
        if (pthread_create(&jobs[i].thread, NULL, run_job, &jobs[i]) != 0) {
            fprintf(stderr, "bench: cannot start %u threads\n", n);
            exit(2);
        }
    }
    pthread_barrier_wait(&barrier);
    start = now();
    for (unsigned i = 0; i < n; i++) {
        pthread_join(jobs[i].thread, NULL);
        count += jobs[i].count;
        errors += jobs[i].errors;
        ended = jobs[i].ended > ended ? jobs[i].ended : ended;
        why = jobs[i].errors != 0 ? jobs[i].why : why;
    }
    pthread_barrier_destroy(&barrier);
    printf("ok %lu %.6f %lu %s\n", count, ended - start, errors, why);
}

static int print_row(void *ctx, int n, char **values, char **names)
{
    (void)ctx;
    (void)names;
    for (int i = 0; i < n; i++) {
        printf("%s%s", i == 0 ? "" : "|", values[i] != NULL ? values[i] : "");
    }
    putchar('\n');
    return 0;
}

static int load(const char *lib)
{
    sqlite3 *db;
    char *text = NULL;
    int rc;

    if (sqlite3_open(":memory:", &db) != SQLITE_OK) {
        return 0;
    }
    sqlite3_enable_load_extension(db, 1);
    rc = sqlite3_load_extension(db, lib, NULL, &text);
    if (rc != SQLITE_OK) {
        printf("error %s\n", text != NULL ? text : "cannot load");
    }
    sqlite3_free(text);
    sqlite3_close(db);
    return rc == SQLITE_OK;
}

int main(int argc, char **argv)
{
    char *line = NULL, why[200];
    size_t room = 0;
    sqlite3 *db;
    ssize_t n;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: bench PATH [LIBDUST]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    path = argv[1];
    if (argc == 3 && !load(argv[2])) {
        return 1;
    }
    db = open_db(why, sizeof why);
    if (db == NULL) {
        printf("error %s\n", why);
        return 1;
    }
    puts("ok");
    while ((n = getline(&line, &room, stdin)) > 0) {
        unsigned threads;
        double seconds;

        line[n - 1] = line[n - 1] == '\n' ? '\0' : line[n - 1];
        if (strncmp(line, "sql ", 4) == 0) {
            char *text = NULL;

            if (sqlite3_exec(db, line + 4, print_row, NULL, &text) == SQLITE_OK) {
                puts("ok");
            } else {
                printf("error %s\n", text != NULL ? text : "?");
            }
            sqlite3_free(text);
        } else if (sscanf(line, "insert %u %lf", &threads, &seconds) == 2 && threads > 0 && threads <= THREADS_MAX) {
            run_jobs(0, threads, seconds);
        } else if (sscanf(line, "read %u %lf", &threads, &seconds) == 2 && threads > 0 && threads <= THREADS_MAX) {
            run_jobs(1, threads, seconds);
        } else {
            printf("error what is \"%s\"?\n", line);
        }
    }
    free(line);
    sqlite3_close(db);
    return 0;
}
