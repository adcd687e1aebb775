/* A worker: connections to one system, and one measurement after the other, for tools/benchmark/bench.py.
 *
 *     bench-SYSTEM TARGET
 *
 * Reads commands, a line each, and answers each with lines of which the last begins with "ok" or "error":
 *
 *     sql STATEMENT                      the rows, columns parted by '|'
 *     run JOB [+ JOB ...]                jobs at the same time; a line of JSON for each
 *     begin JOB [+ JOB ...]  and  end    the same in two parts: what is done between them is done meanwhile
 *
 * JOB is WORK THREADS SECONDS [NAME=VALUE ...]: WORK one of insert, update, read, scan, mix (nine reads to an update);
 * NAME one of the fields of struct job (driver.h): count, rows, size, keys, cache, linearizable; or first, what the unique
 * numbers of its inserts begin with.
 *
 * Times are taken around each operation, kept as counts of buckets 1/64 wide in proportion (as HDR histograms do), and
 * told in microseconds. `gap` is the longest time in which no thread of the job ended an operation, `least` and `most` are
 * the operations of single threads, `rows` those inserted. Connections are open before the clock starts. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "driver.h"

#define THREADS_MAX 1024
#define JOBS_MAX 8
#define SUB_BITS 6
#define BUCKETS ((64 - SUB_BITS) << SUB_BITS)

struct running;

struct worker {
    pthread_t thread;
    struct running *job;
    unsigned number;
    uint64_t random;
    uint64_t count, errors, longest, gap; /* operations, operations, ns, ns */
    uint64_t ended;                       /* ns */
    char why[WHY_MAX];
    uint32_t bucket[BUCKETS];
};

struct running {
    struct job job;
    uint64_t first; /* of the unique numbers */
    struct worker *workers;
    atomic_uint_fast64_t last; /* when an operation ended last, ns */
};

static const char *target;
static struct running jobs[JOBS_MAX];
static unsigned njobs;
static pthread_barrier_t ready, go;
static uint64_t started;

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The values below 2^SUB_BITS have a bucket each; from there on each power of two has 2^SUB_BITS. */
static unsigned bucket_of(uint64_t ns)
{
    unsigned exponent;

    if (ns < 1 << SUB_BITS) {
        return (unsigned)ns;
    }
    exponent = 63 - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    return ((exponent + 1) << SUB_BITS) + (unsigned)(ns >> exponent) - (1 << SUB_BITS);
}

/* What is in its middle. */
static double bucket_value(unsigned b)
{
    unsigned exponent = b >> SUB_BITS;
    double low;

    if (exponent == 0) {
        return b;
    }
    low = (double)((uint64_t)((b & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS)) << (exponent - 1));
    return low + (double)(1ULL << (exponent - 1)) / 2;
}

/* xorshift64*; of which key, and which kind of operation. */
static uint64_t next_random(struct worker *w)
{
    w->random ^= w->random >> 12;
    w->random ^= w->random << 25;
    w->random ^= w->random >> 27;
    return w->random * 0x2545F4914F6CDD1DULL;
}

static bool operate(struct worker *w, void *conn)
{
    const struct job *job = &w->job->job;
    uint64_t key = 1 + next_random(w) % job->keys;

    switch (job->work) {
    case WORK_INSERT:
        return driver.insert(conn, w->job->first + w->number + (w->count + w->errors) * job->threads);
    case WORK_UPDATE:
        return driver.update(conn, key);
    case WORK_READ:
        return driver.read(conn, key);
    case WORK_SCAN:
        return driver.scan(conn, key);
    case WORK_MIX:
        return next_random(w) % 10 == 0 ? driver.update(conn, key) : driver.read(conn, key);
    }
    return false;
}

static void work(struct worker *w, void *conn)
{
    const struct job *job = &w->job->job;
    uint64_t begun = now(), end = begun + (uint64_t)(job->seconds * 1e9);

    while (job->count != 0 ? w->count + w->errors < job->count : begun < end) {
        bool ok = operate(w, conn);
        uint64_t t = now(), before;

        if (ok) {
            before = atomic_exchange_explicit(&w->job->last, t, memory_order_relaxed);
            w->count++;
            w->bucket[bucket_of(t - begun)]++;
            w->longest = t - begun > w->longest ? t - begun : w->longest;
            w->gap = t > before && t - before > w->gap ? t - before : w->gap;
        } else if (w->errors++ == 0) {
            snprintf(w->why, sizeof w->why, "%s", driver.error(conn));
        }
        begun = t;
    }
    w->ended = begun;
}

static void *run_worker(void *arg)
{
    struct worker *w = arg;
    void *conn = driver.open(target, &w->job->job, w->why);

    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&go);
    if (conn != NULL) {
        work(w, conn);
        driver.close(conn);
    } else {
        w->errors++;
        w->ended = now();
    }
    return NULL;
}

char *new_text(unsigned size)
{
    char *text = malloc((size_t)size + 1);

    if (text != NULL) {
        memset(text, 'f', size);
        text[size] = '\0';
    }
    return text;
}

void next_text(char *text, unsigned size)
{
    for (unsigned i = 0; i < 8 && i < size; i++) {
        text[i]++;
        if (text[i] <= 'z') {
            break;
        }
        text[i] = 'a';
    }
}

static bool parse_work(const char *name, enum work *work)
{
    static const char *const names[] = {"insert", "update", "read", "scan", "mix"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *work = (enum work)i;
            return true;
        }
    }
    return false;
}

static bool parse_option(struct running *r, const char *word)
{
    char name[16];
    unsigned long long value;

    if (sscanf(word, "%15[a-z]=%llu", name, &value) != 2) {
        return false;
    }
    if (strcmp(name, "count") == 0) {
        r->job.count = value;
    } else if (strcmp(name, "rows") == 0) {
        r->job.rows = (unsigned)value;
    } else if (strcmp(name, "size") == 0) {
        r->job.size = (unsigned)value;
    } else if (strcmp(name, "keys") == 0) {
        r->job.keys = value;
    } else if (strcmp(name, "cache") == 0) {
        r->job.cache = (unsigned)value;
    } else if (strcmp(name, "linearizable") == 0) {
        r->job.linearizable = value != 0;
    } else if (strcmp(name, "first") == 0) {
        r->first = value;
    } else {
        return false;
    }
    return true;
}

/* WORK THREADS SECONDS [NAME=VALUE ...] */
static bool parse_job(char *text, struct running *r)
{
    char *rest = NULL, *name = strtok_r(text, " ", &rest), *threads = strtok_r(NULL, " ", &rest),
         *seconds = strtok_r(NULL, " ", &rest), *word;

    memset(r, 0, sizeof *r);
    r->job = (struct job){.rows = 1, .size = 20, .keys = 100000};
    if (name == NULL || threads == NULL || seconds == NULL || !parse_work(name, &r->job.work)) {
        return false;
    }
    r->job.threads = (unsigned)strtoul(threads, NULL, 10);
    r->job.seconds = strtod(seconds, NULL);
    while ((word = strtok_r(NULL, " ", &rest)) != NULL) {
        if (!parse_option(r, word)) {
            return false;
        }
    }
    return r->job.threads > 0 && r->job.threads <= THREADS_MAX && r->job.rows > 0 && r->job.size > 0 && r->job.keys > 0 &&
           (r->job.work != WORK_SCAN || driver.scan != NULL);
}

static bool parse_jobs(char *text)
{
    char *rest = NULL;

    njobs = 0;
    for (char *one = strtok_r(text, "+", &rest); one != NULL; one = strtok_r(NULL, "+", &rest)) {
        if (njobs == JOBS_MAX || !parse_job(one, &jobs[njobs])) {
            return false;
        }
        njobs++;
    }
    return njobs != 0;
}

static void begin_jobs(void)
{
    unsigned threads = 0;

    for (unsigned i = 0; i < njobs; i++) {
        threads += jobs[i].job.threads;
    }
    pthread_barrier_init(&ready, NULL, threads + 1);
    pthread_barrier_init(&go, NULL, threads + 1);
    for (unsigned i = 0; i < njobs; i++) {
        struct running *r = &jobs[i];

        r->workers = calloc(r->job.threads, sizeof *r->workers);
        for (unsigned k = 0; r->workers != NULL && k < r->job.threads; k++) {
            r->workers[k].job = r;
            r->workers[k].number = k;
            r->workers[k].random = (r->first + k + 1) * 0x9E3779B97F4A7C15ULL;
            if (pthread_create(&r->workers[k].thread, NULL, run_worker, &r->workers[k]) != 0) {
                fprintf(stderr, "bench: cannot start %u threads\n", r->job.threads);
                exit(2);
            }
        }
        if (r->workers == NULL) {
            fprintf(stderr, "bench: out of memory\n");
            exit(2);
        }
    }
    pthread_barrier_wait(&ready);
    started = now();
    for (unsigned i = 0; i < njobs; i++) {
        atomic_store(&jobs[i].last, started);
    }
    pthread_barrier_wait(&go);
}

/* The value that a part `p` of the operations does not exceed, in microseconds. */
static double percentile(const uint64_t *sum, uint64_t count, double p)
{
    uint64_t rank = (uint64_t)((double)count * p), seen = 0;

    for (unsigned b = 0; b < BUCKETS; b++) {
        seen += sum[b];
        if (seen > rank) {
            return bucket_value(b) / 1000;
        }
    }
    return 0;
}

static void print_text(const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\') {
            printf("\\%c", c);
        } else if (c < ' ') {
            printf("\\u%04x", c);
        } else {
            putchar(c);
        }
    }
}

static void end_job(struct running *r)
{
    static uint64_t sum[BUCKETS];
    uint64_t count = 0, errors = 0, longest = 0, gap = 0, least = UINT64_MAX, most = 0, ended = started, last = 0;
    const char *why = "";

    memset(sum, 0, sizeof sum);
    for (unsigned i = 0; i < r->job.threads; i++) {
        struct worker *w = &r->workers[i];

        count += w->count;
        errors += w->errors;
        longest = w->longest > longest ? w->longest : longest;
        gap = w->gap > gap ? w->gap : gap;
        least = w->count < least ? w->count : least;
        most = w->count > most ? w->count : most;
        ended = w->ended > ended ? w->ended : ended;
        why = w->errors != 0 ? w->why : why;
        for (unsigned b = 0; b < BUCKETS; b++) {
            sum[b] += w->bucket[b];
        }
    }
    last = atomic_load(&r->last);
    gap = ended > last && ended - last > gap ? ended - last : gap;
    printf("{\"count\": %llu, \"seconds\": %.6f, \"errors\": %llu, \"why\": \"", (unsigned long long)count,
           (double)(ended - started) / 1e9, (unsigned long long)errors);
    print_text(why);
    printf("\", \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f, \"gap\": %.1f, \"least\": %llu, \"most\": %llu, "
           "\"rows\": %llu}\n",
           percentile(sum, count, 0.5), percentile(sum, count, 0.99), percentile(sum, count, 0.999), (double)longest / 1000,
           (double)gap / 1000, (unsigned long long)least, (unsigned long long)most,
           (unsigned long long)(r->job.work == WORK_INSERT ? count * r->job.rows : 0));
    free(r->workers);
    r->workers = NULL;
}

static void end_jobs(void)
{
    for (unsigned i = 0; i < njobs; i++) {
        for (unsigned k = 0; k < jobs[i].job.threads; k++) {
            pthread_join(jobs[i].workers[k].thread, NULL);
        }
    }
    pthread_barrier_destroy(&ready);
    pthread_barrier_destroy(&go);
    for (unsigned i = 0; i < njobs; i++) {
        end_job(&jobs[i]);
    }
}

static void command(char *line)
{
    static bool begun;
    char why[WHY_MAX] = "";

    if (strncmp(line, "sql ", 4) == 0 && driver.sql != NULL) {
        if (!driver.sql(target, line + 4, why)) {
            printf("error %s\n", why);
            return;
        }
    } else if (!begun && strncmp(line, "run ", 4) == 0 && parse_jobs(line + 4)) {
        begin_jobs();
        end_jobs();
    } else if (!begun && strncmp(line, "begin ", 6) == 0 && parse_jobs(line + 6)) {
        begin_jobs();
        begun = true;
    } else if (begun && strcmp(line, "end") == 0) {
        end_jobs();
        begun = false;
    } else {
        printf("error what is \"%s\"?\n", line);
        return;
    }
    puts("ok");
}

int main(int argc, char **argv)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t n;

    if (argc != 2) {
        fprintf(stderr, "usage: %s TARGET\n", argv[0]);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    target = argv[1];
    while ((n = getline(&line, &room, stdin)) > 0) {
        line[n - 1] = line[n - 1] == '\n' ? '\0' : line[n - 1];
        command(line);
    }
    free(line);
    return 0;
}
