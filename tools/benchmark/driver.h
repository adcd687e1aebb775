/* A system that is measured, as one connection of a client sees it. The worker (worker.c) is linked with one of these: sqlite.c
 * (plain SQLite, and dust), etcd.c, dqlite.c.
 *
 * The data: two tables, or their equivalent. `foo(id INTEGER PRIMARY KEY, name TEXT)` is what is inserted into;
 * `p(id INTEGER PRIMARY KEY, name TEXT)` holds the keys 1 to job.keys, made before by whoever runs the worker, for reads,
 * scans and updates. A system without tables has keys of the same names and numbers.
 *
 * A connection is used by one thread at a time. Each operation returns when the system has acknowledged it, as durable
 * as its settings make it. */
#ifndef DUST_BENCHMARK_DRIVER_H
#define DUST_BENCHMARK_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

enum work { WORK_INSERT, WORK_UPDATE, WORK_READ, WORK_SCAN, WORK_MIX };

/* What one measurement consists of. */
struct job {
    enum work work;
    unsigned threads;   /* connections, a thread each */
    double seconds;     /* for so long, or, if count is not 0, */
    uint64_t count;     /* until each thread has done so many operations */
    unsigned rows;      /* of a transaction, or of a scan */
    unsigned size;      /* bytes of text in a row */
    uint64_t keys;      /* of the table p */
    unsigned cache;     /* pages of a connection's cache; 0: as the system has it */
    bool linearizable;  /* reads see everything acknowledged anywhere before they began */
};

#define WHY_MAX 200 /* bytes of an error's text, with its end */

struct driver {
    /* A connection, or NULL with the reason in `why` (WHY_MAX bytes). `target` is the worker's first parameter; the job is
     * valid as long as the connection is. */
    void *(*open)(const char *target, const struct job *job, char *why);
    /* One transaction that inserts job.rows rows of job.size bytes. `unique` differs in each call, of all connections and
     * all workers of a measurement. */
    bool (*insert)(void *conn, uint64_t unique);
    /* One transaction that gives a new text of job.size bytes to one row of p. */
    bool (*update)(void *conn, uint64_t key);
    /* The text of one row of p, which is there. */
    bool (*read)(void *conn, uint64_t key);
    /* The texts of job.rows rows of p, from `key` on. NULL if the system has none. */
    bool (*scan)(void *conn, uint64_t key);
    /* Why the last operation failed. */
    const char *(*error)(void *conn);
    void (*close)(void *conn);
    /* Runs a statement by itself and prints its rows, columns parted by '|'; false with the reason in `why`. NULL if the
     * system has none. */
    bool (*sql)(const char *target, const char *statement, char *why);
};

extern const struct driver driver;

/* ---- worker.c, for all drivers ---- */

/* A text of `size` bytes and a zero, or NULL; and what makes another one of it. */
char *new_text(unsigned size);
void next_text(char *text, unsigned size);

#endif
