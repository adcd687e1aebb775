/* node_sim - several members of a cluster in one process, in a simulated bad world.
 *
 * What runs is dust itself, from SQL to the log, with SQLite on top and libraft underneath. What is simulated is what
 * it stands on: threads, time and locks (sched.c), libuv (loop.c), nanomsg and the network (net.c), files and power
 * losses (files.c, posix.c, filevfs.c), chance (world.c). The calls are replaced when the
 * program is linked (--wrap). All threads of all machines are coroutines in one thread, and one generator of chance
 * decides which goes on, how long everything takes, and what goes wrong (faults.c): so a seed always gives the same
 * run.
 *
 * Clients (client.c) write and read through SQLite on every machine. What they see, and what every member puts into
 * effect, is held against one history (history.c).
 *
 * What is not simulated: several processors (a thread loses the processor only at a call that is replaced), the
 * kernel's ways of failing that nothing here draws, and libraft's and SQLite's own use of files and threads.
 *
 * The cluster is set up once; each seed then runs in a child process that begins with it. See node_sim --help. */
#include <errno.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ext/dust.h"
#include "tests/sim/client.h"
#include "tests/sim/faults.h"
#include "tests/sim/history.h"
#include "tests/sim/jobs.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"

#define SEED_SECONDS 60 /* of real time: a seed that takes longer is taken to hang */
#define SETUP_NS (60 * S_NS)

struct options {
    uint64_t seed_from, n_seeds;
    unsigned n_members, n_jobs, verbose;
    bool ci, keyed;
    uint64_t stop_after; /* that many have failed; 0: never */
    uint64_t *hashes;    /* of each seed's trace; NULL: not asked for */
};

/* ---- setting up ---- */

static const char *random_name(void)
{
    return "simulated";
}

static uint32_t random_32(void)
{
    return (uint32_t)(chance64() >> 32);
}

static void random_buf(void *buf, size_t n)
{
    chance_bytes(buf, n);
}

static struct randombytes_implementation random_implementation = {
    .implementation_name = random_name, .random = random_32, .buf = random_buf};

static void on_log(void *ctx, int code, const char *text)
{
    (void)ctx;
    (void)code;
    if (task_machine() != NULL) {
        say(2, "m%u: log: %s", task_machine()->number, text);
    }
}

static bool all_open(void)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        if (!machines[i].open) {
            return false;
        }
    }
    return true;
}

static void setup_run(void *arg)
{
    (void)arg;
    machine_found(&machines[1]);
    while (!machines[1].open) {
        task_sleep(10 * MS_NS);
    }
    for (unsigned i = 2; i <= n_machines; i++) {
        machine_start(&machines[i]);
        while (!machines[i].open) {
            task_sleep(10 * MS_NS);
        }
    }
    task_sleep(S_NS);
}

/* A cluster of n members, all well, whose threads are ready to go on. */
static void set_up(unsigned n, bool keyed, unsigned verbose, struct result *result)
{
    machine_habits.keyed = keyed;
    world.result = result;
    world.verbose = verbose;
    chance_begin(n);
    randombytes_set_implementation(&random_implementation);
    if (sodium_init() < 0 || sqlite3_config(SQLITE_CONFIG_SINGLETHREAD) != SQLITE_OK ||
        sqlite3_config(SQLITE_CONFIG_LOG, on_log, NULL) != SQLITE_OK || sqlite3_initialize() != SQLITE_OK ||
        sqlite3_vfs_register(files_vfs(), 1) != SQLITE_OK ||
        sqlite3_auto_extension((void (*)(void))sqlite3_dust_init) != SQLITE_OK) {
        fprintf(stderr, "node_sim: cannot set up SQLite\n");
        exit(2);
    }
    machines_init(n);
    if (!sched_run(task_spawn(NULL, "setup", setup_run, NULL), world.now_ns + SETUP_NS) || !all_open()) {
        fprintf(stderr, "node_sim: the cluster does not come up\n");
        exit(2);
    }
}

static void spawn_clients(void)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        for (unsigned k = 0; k < machine_habits.clients; k++) {
            client_spawn(&machines[i], k);
        }
    }
}

/* One seed, in the child process; ends it. */
static void run_seed(const struct options *opt, uint64_t seed, struct result *result)
{
    world.result = result;
    world.verbose = opt->verbose;
    world.hash = seed;
    world.running = true;
    world.begun_ns = world.now_ns;
    chance_begin(seed);
    faults_vary();
    spawn_clients();
    sched_run(task_spawn(NULL, "faults", faults_run, NULL), NEVER);
}

/* ---- many seeds ---- */

struct totals {
    uint64_t n_seeds, n_violations, n_stuck, n_crashed;
    struct tally tally;
};

static void tally_add(struct tally *to, const struct tally *t)
{
    uint64_t *a = (uint64_t *)to;
    const uint64_t *b = (const uint64_t *)t;

    for (size_t i = 0; i < sizeof *t / sizeof *a; i++) {
        a[i] += b[i];
    }
}

#define N(x) (unsigned long long)(x)

static void tally_print(const struct tally *t)
{
    printf("# transactions: %llu acknowledged, %llu refused, %llu unknown (dust_outcome: %llu agreed, %llu void, %llu "
           "open); %llu in parts\n",
        N(t->acknowledged), N(t->refused), N(t->unknown), N(t->outcomes_agreed), N(t->outcomes_void),
        N(t->outcomes_open), N(t->in_parts));
    printf("# reads: %llu stale, %llu local, %llu fresh, %llu linearizable, %llu in write transactions; %llu refused\n",
        N(t->reads[0]), N(t->reads[1]), N(t->reads[2]), N(t->reads[3]), N(t->reads_in_writes), N(t->reads_refused));
    printf(
        "# faults: %llu kills, %llu power losses, %llu cuts, %llu one-way cuts, %llu connections reset, %llu pauses, "
        "%llu disk errors; of synchronous writes %llu failed, %llu cut short\n",
        N(t->crashes), N(t->power_losses), N(t->cuts), N(t->one_way_cuts), N(t->resets), N(t->pauses),
        N(t->disk_faults), N(t->failed_writes), N(t->writes_cut));
    printf("# membership: %llu elections, %llu transfers, %llu members replaced, %llu changes of role\n",
        N(t->elections), N(t->transfers), N(t->removals), N(t->roles));
    printf("# %llu versions, %llu checkpoints, %llu snapshots taken, %llu installed, pages fetched %llu times, %llu "
           "instances begun anew; the turn open at two members at once %llu times\n",
        N(t->versions), N(t->folds), N(t->snapshots), N(t->installs), N(t->pulls), N(t->loops - t->starts),
        N(t->double_turns));
    printf("# %llu s of virtual time, %llu slices\n", N(t->virtual_ms / 1000), N(t->slices));
}

struct run { /* of seeds */
    const struct options *opt;
    struct totals *totals;
};

static void seed_begins(void *ctx, uint64_t seed, void *result)
{
    run_seed(((struct run *)ctx)->opt, seed, result);
}

static uint64_t n_failed(const struct totals *t)
{
    return t->n_violations + t->n_stuck + t->n_crashed;
}

static bool seed_ended(void *ctx, uint64_t seed, void *result, int status)
{
    const struct options *opt = ((struct run *)ctx)->opt;
    struct totals *totals = ((struct run *)ctx)->totals;
    struct result *o = result;

    if (WIFSIGNALED(status)) {
        snprintf(o->reason, sizeof o->reason, "%s (signal %d)", WTERMSIG(status) == SIGALRM ? "it hangs" : "it crashes",
            WTERMSIG(status));
        o->verdict = VERDICT_CRASHED;
    } else if (WEXITSTATUS(status) != 0 || o->verdict == VERDICT_NONE) {
        snprintf(o->reason, sizeof o->reason, "exit status %d", WEXITSTATUS(status));
        o->verdict = VERDICT_CRASHED;
    }
    totals->n_seeds++;
    totals->n_violations += o->verdict == VERDICT_VIOLATION;
    totals->n_stuck += o->verdict == VERDICT_STUCK;
    totals->n_crashed += o->verdict == VERDICT_CRASHED;
    tally_add(&totals->tally, &o->tally);
    if (opt->hashes != NULL) {
        opt->hashes[seed - opt->seed_from] = o->hash;
    }
    if (o->verdict != VERDICT_PASSED) {
        printf("seed %llu: %s\n    again: node_sim --members %u%s --seeds %llu 1 --verbose\n", N(seed), o->reason,
            n_machines, opt->keyed ? " --keyed" : "", N(seed));
    } else if (opt->verbose) {
        printf("seed %llu: passed, trace %016llx\n", N(seed), N(o->hash));
    }
    return opt->stop_after == 0 || n_failed(totals) < opt->stop_after;
}

static void run_seeds(const struct options *opt, struct totals *totals)
{
    struct run run = {.opt = opt, .totals = totals};

    *totals = (struct totals){0};
    jobs_run(&(struct jobs){.program = "node_sim", .seed_from = opt->seed_from, .n_seeds = opt->n_seeds,
        .at_once = opt->n_jobs, .seconds = SEED_SECONDS, .result_size = sizeof(struct result), .run = seed_begins,
        .ended = seed_ended, .ctx = &run});
}

/* ---- the fixed programme of the continuous tests ---- */

/* A cluster of n members is set up in a process of its own. */
static void run_part(const struct options *opt, struct totals *totals)
{
    struct totals *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status = 0;
    pid_t pid;

    if (shared == MAP_FAILED || (fflush(NULL), pid = fork()) < 0) {
        perror("node_sim");
        exit(2);
    }
    if (pid == 0) {
        struct result setup = {0};

        set_up(opt->n_members, opt->keyed, 0, &setup);
        run_seeds(opt, shared);
        fflush(NULL);
        _exit(0);
    }
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "node_sim: the seeds could not be run\n");
        exit(2);
    }
    *totals = *shared;
    munmap(shared, sizeof *shared);
}

struct report {
    unsigned n_passed, n_failed;
};

static void report(struct report *r, bool ok, const char *text)
{
    printf("%s - %s\n", ok ? "ok" : "not ok", text);
    fflush(stdout);
    r->n_passed += ok;
    r->n_failed += !ok;
}

#define TWICE 200 /* seeds that are run again */

static bool everything_met(const struct tally *t)
{
    return t->acknowledged > 0 && t->refused > 0 && t->unknown > 0 && t->outcomes_agreed > 0 && t->outcomes_void > 0 &&
           t->in_parts > 0 && t->reads[0] > 0 && t->reads[1] > 0 && t->reads[2] > 0 && t->reads[3] > 0 &&
           t->reads_refused > 0 && t->crashes > 0 && t->power_losses > 0 && t->cuts > 0 && t->one_way_cuts > 0 &&
           t->resets > 0 && t->pauses > 0 && t->disk_faults > 0 && t->transfers > 0 && t->removals > 0 &&
           t->roles > 0 && t->elections > 0 && t->snapshots > 0 && t->installs > 0 && t->pulls > 0 &&
           t->loops > t->starts && t->failed_writes > 0 && t->writes_cut > 0;
}

static int run_ci(const struct options *base)
{
    static const struct {
        unsigned n_members;
        bool keyed;
        uint64_t n_seeds;
    } plan[] = {{3, false, 5000}, {3, true, 2600}, {5, false, 1000}, {5, true, 1000}};
    uint64_t *hashes =
        mmap(NULL, 2 * TWICE * sizeof *hashes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct report r = {0};
    struct tally sum = {0};
    struct options opt = *base;
    struct totals t;
    time_t begun = time(NULL);
    uint64_t n_seeds = 0;
    char text[200];

    if (hashes == MAP_FAILED) {
        perror("node_sim: mmap");
        exit(2);
    }
    for (size_t i = 0; i < sizeof plan / sizeof plan[0]; i++) {
        opt.n_members = plan[i].n_members;
        opt.keyed = plan[i].keyed;
        opt.seed_from = 1;
        opt.n_seeds = plan[i].n_seeds;
        run_part(&opt, &t);
        snprintf(text, sizeof text, "%u members%s: of %llu seeds %llu break a promise, %llu get stuck, %llu crash",
            opt.n_members, opt.keyed ? " with a key" : "", N(t.n_seeds), N(t.n_violations), N(t.n_stuck), N(t.n_crashed));
        report(&r, n_failed(&t) == 0, text);
        tally_add(&sum, &t.tally);
        n_seeds += plan[i].n_seeds;
    }
    opt.n_members = 3;
    opt.keyed = true;
    opt.n_seeds = TWICE;
    for (int i = 0; i < 2; i++) {
        opt.hashes = hashes + (size_t)i * TWICE;
        run_part(&opt, &t);
        tally_add(&sum, &t.tally);
    }
    snprintf(text, sizeof text, "%d seeds run twice give the same traces", TWICE);
    report(&r, memcmp(hashes, hashes + TWICE, TWICE * sizeof *hashes) == 0 && hashes[0] != 0, text);
    tally_print(&sum);
    report(&r, everything_met(&sum), "every kind of fault, of answer and of way to catch up was met");
    printf(
        "# %llu seeds in %lld s\n", N(n_seeds + 2 * TWICE), (long long)(time(NULL) - begun));
    printf("%u passed, %u failed, 0 skipped\n", r.n_passed, r.n_failed);
    return r.n_failed == 0 ? 0 : 1;
}

/* ---- command line ---- */

static int usage(FILE *to, int status)
{
    fprintf(to,
        "usage: node_sim [--seeds FROM COUNT] [--members 3|5] [--keyed] [--jobs J] [--stop-after N] [--verbose] [--verbose]\n"
        "       node_sim --ci [--jobs J]\n"
        "\n"
        "Runs a cluster through COUNT simulations. --keyed: the cluster has a key. --stop-after: that many have failed.\n"
        "--verbose: what happens in each; twice: every transaction, and what dust logs. Exit status 0: none failed; 1:\n"
        "otherwise; 2: the simulation itself could not be run.\n");
    return status;
}

static bool number(const char *text, uint64_t *n)
{
    char *end;

    if (text == NULL || *text < '0' || *text > '9') {
        return false;
    }
    errno = 0;
    *n = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

/* Addresses are to be the same in every run. */
static void without_chance_in_addresses(char **argv)
{
    int p = personality(0xffffffff);

    if (p != -1 && (p & ADDR_NO_RANDOMIZE) == 0 && personality((unsigned long)p | ADDR_NO_RANDOMIZE) != -1) {
        execv("/proc/self/exe", argv);
    }
}

int main(int argc, char **argv)
{
    struct options opt = {.seed_from = 1, .n_seeds = 100, .n_members = 3};
    struct result *setup;
    struct totals t;
    uint64_t n;

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(arg, "--seeds") == 0 && number(value, &opt.seed_from) && i + 2 < argc &&
            number(argv[i + 2], &opt.n_seeds)) {
            i += 2;
        } else if (strcmp(arg, "--members") == 0 && number(value, &n) && (n == 3 || n == 5)) {
            opt.n_members = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--jobs") == 0 && number(value, &n) && n > 0 && n <= JOBS_MAX) {
            opt.n_jobs = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--stop-after") == 0 && number(value, &opt.stop_after)) {
            i++;
        } else if (strcmp(arg, "--keyed") == 0) {
            opt.keyed = true;
        } else if (strcmp(arg, "--verbose") == 0) {
            opt.verbose++;
        } else if (strcmp(arg, "--ci") == 0) {
            opt.ci = true;
        } else if (strcmp(arg, "--help") == 0) {
            return usage(stdout, 0);
        } else {
            return usage(stderr, 2);
        }
    }
    without_chance_in_addresses(argv);
    if (opt.n_jobs == 0) {
        long cpus = opt.ci ? sysconf(_SC_NPROCESSORS_ONLN) : 1;

        opt.n_jobs = cpus < 1 ? 1 : cpus > JOBS_MAX ? JOBS_MAX : (unsigned)cpus;
    }
    if (opt.ci) {
        return run_ci(&opt);
    }
    setup = calloc(1, sizeof *setup);
    set_up(opt.n_members, opt.keyed, opt.verbose > 3 ? opt.verbose : 0, must(setup));
    run_seeds(&opt, &t);
    tally_print(&t.tally);
    printf("%llu seeds, %u members: %llu break a promise, %llu get stuck, %llu crash\n", N(t.n_seeds), opt.n_members,
        N(t.n_violations), N(t.n_stuck), N(t.n_crashed));
    return n_failed(&t) == 0 ? 0 : 1;
}
