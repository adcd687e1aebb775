/* guard_sim - libraft, with and without the guard, in a simulated bad world.
 *
 * One run is one seed: three or five libraft instances in this process, each over an in-memory raft_io, on
 * virtual time. One loop takes one random step at a time: deliver a message, finish a disk operation, let
 * time pass, submit a command, cut a link, crash a member, start it again. All chance, libraft's included,
 * comes from one generator, so a seed always gives the same run. The bad times end after nine tenths of the
 * steps: all links are healed, all members started, and they must come to agree.
 *
 * What is simulated:
 *
 * - links: FIFO, as a TCP connection; a cut, or a crash, loses what is under way.
 * - disks: append, truncate and snapshot_put are queued and finish later, in raft_uv's order; a crash loses
 *   those that were not finished, or some of them. Term and vote are stored at once. As in raft_uv, a
 *   truncate is lost that comes behind a pending snapshot_put. With --disk-failures any write may fail, and
 *   may or may not have reached the disk all the same.
 * - clients: commands, several at a time; transfers of leadership; with the guard, changes of membership, up
 *   from a cluster of one.
 * - by seed: pre-vote; snapshots, synchronous or not, and their thresholds; the size of the parts of a send;
 *   and, every few hundred steps, how bad the times are.
 *
 * What is checked, at all times:
 *
 * - no two members apply different commands at one index, or reach different states (FSM and snapshots);
 * - an acknowledged command is on the disks of a majority when it is acknowledged, and is never replaced;
 * - a term has at most one leader;
 * - if two logs on disk have an entry of the same index and term, they are equal up to there;
 * - a log on disk has no gap and no overlap; libraft does not crash, hang, or shut itself down;
 *
 * and at the end that every member is up and has applied the same, every acknowledged command included.
 *
 * Each seed runs in a child process, so that a crash of libraft is one seed's result. See guard_sim --help.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/sim/guard/world.h"
#include "tests/sim/jobs.h"

/* ---- A run ---- */

static bool agreed(struct sim *s)
{
    const struct member *first = s->members[1];
    raft_index last = raft_last_index(&s->members[1]->raft);
    bool led = false;
    unsigned i, j, n_voters = 0;

    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up || m->raft.last_applied != last || raft_last_index(&m->raft) != last ||
            m->state.hash != first->state.hash) {
            return false;
        }
        led = led || raft_state(&m->raft) == RAFT_LEADER;
        for (j = 0; j < m->raft.configuration.n; j++) {
            n_voters += m->raft.configuration.servers[j].role == RAFT_VOTER;
        }
    }
    if (s->changes && n_voters < s->opt->n_members * s->opt->n_members) {
        return false;
    }
    return led && last >= s->last_acknowledged;
}

/* The bad times are over. Commands are submitted until some have been acknowledged, then the members must
 * agree. */
static void heal(struct sim *s)
{
    uint64_t acknowledged = s->outcome->tally.acknowledged;
    raft_time deadline = s->now + HEAL_MS;
    unsigned i, j;

    s->healing = true;
    s->transfers = false;
    s->weather = (struct weather){.deliver = 70, .disk = 15, .submit = 5};
    for (i = 1; i <= s->opt->n_members; i++) {
        for (j = i + 1; j <= s->opt->n_members; j++) {
            link_cut(s, i, j, false);
        }
    }
    for (;;) {
        for (i = 1; i <= s->opt->n_members; i++) {
            if (!s->members[i]->up) {
                member_start(s->members[i]);
            }
        }
        step(s);
        if (s->outcome->tally.acknowledged >= acknowledged + 5) {
            s->window = 0;
            if (agreed(s)) {
                return;
            }
        }
        if (s->now > deadline) {
            stuck(s, "no agreement %d seconds after the end of all faults (%s)", HEAL_MS / 1000,
                s->window == 0 ? "they differ" : "nothing is acknowledged");
        }
    }
}

/* Every command acknowledged, or applied by anyone, is in the state that all have come to. */
static void check_history(struct sim *s)
{
    const struct member *m = s->members[1];
    uint64_t hash = 0;
    raft_index i;

    for (i = 1; i < s->n_facts; i++) {
        const struct fact *f = &s->facts[i];

        if (f->command != 0) {
            hash = mix(mix(hash, i), f->command);
        } else if (f->acknowledged != 0) {
            violation(s, "entry %llu: command %llu was acknowledged, and nobody has applied it", i,
                (unsigned long long)f->acknowledged);
        }
    }
    if (hash != m->state.hash) {
        violation(s, "a command that was applied is no longer part of the state");
    }
}

static void vary(struct sim *s)
{
    s->pre_vote = chance(s, 5000);
    s->snapshots = chance(s, 7500);
    s->async_snapshots = chance(s, 5000);
    s->transfers = chance(s, 5000);
    s->changes = s->opt->guard && chance(s, 5000);
    s->grow = s->changes && chance(s, 5000);
    s->threshold = 5 + random_below(s, 60);
    s->trailing = 1 + random_below(s, 20);
    s->window =
        s->opt->guard && chance(s, 3000) ? 1000000 : 4 + random_below(s, 60); /* libraft needs a pause */
    s->part_entries = chance(s, 5000) ? 4 + random_below(s, 12) : 1000;
    s->part_size = chance(s, 5000) ? 32 + random_below(s, 128) : 1000000; /* a command has 8 bytes */
}

/* One seed, in the child process; ends it. */
static void run_seed(const struct options *opt, uint64_t seed, struct outcome *outcome)
{
    struct sim *s = must(calloc(1, sizeof *s));
    unsigned i, j;

    s->opt = opt;
    s->outcome = outcome;
    s->rng = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    for (i = 0; i < 20; i++) {
        random64(s);
    }
    s->now = 100000;
    s->completions_tail = &s->completions;
    vary(s);
    for (i = 1; i <= opt->n_members; i++) {
        struct member *m = must(calloc(1, sizeof *m));

        m->sim = s;
        m->id = i;
        snprintf(m->address, sizeof m->address, "%u", i);
        m->disk.first = 1;
        s->members[i] = m;
        for (j = 1; j <= opt->n_members; j++) {
            s->links[i][j].tail = &s->links[i][j].head;
        }
    }
    for (i = 1; i <= opt->n_members; i++) {
        member_start(s->members[i]);
    }
    while (s->step < opt->n_steps / 10 * 9) {
        step(s);
    }
    heal(s);
    check_logs(s);
    check_history(s);
    for (i = 1; i <= opt->n_members; i++) {
        member_close(s->members[i]);
        free(s->members[i]->disk.entries);
    }
    run_completions(s);
    for (i = 1; i <= opt->n_members; i++) {
        free(s->members[i]);
    }
    free(s->facts);
    free(s->leaders);
    free(s);
    outcome->verdict = PASSED;
}

/* ---- Many seeds ---- */

struct totals {
    uint64_t n_seeds, n_unsafe, n_stuck, n_crashed;
    struct tally tally;
};

static void tally_add(struct tally *to, const struct tally *t)
{
    to->elections += t->elections;
    to->acknowledged += t->acknowledged;
    to->crashes += t->crashes;
    to->faults += t->faults;
    to->log_cuts += t->log_cuts;
    to->snapshots += t->snapshots;
    to->installs += t->installs;
    to->transfers += t->transfers;
    to->changes += t->changes;
    counts_add(&to->guard, &t->guard);
}

static void tally_print(const struct tally *t)
{
    printf("# %llu elections, %llu commands acknowledged, %llu crashes, %llu faults, %llu snapshots taken, "
           "%llu sent, "
           "%llu transfers, %llu changes of membership\n",
        (unsigned long long)t->elections, (unsigned long long)t->acknowledged, (unsigned long long)t->crashes,
        (unsigned long long)t->faults, (unsigned long long)t->snapshots, (unsigned long long)t->installs,
        (unsigned long long)t->transfers, (unsigned long long)t->changes);
    printf("# guard: %llu results clamped, %llu held, %llu messages stripped, %llu begun later, %llu "
           "snapshots put off, "
           "%llu messages dropped (%llu second votes), %llu terms told, %llu votes lent, %llu own terms, "
           "%llu ticks skipped, %llu early commits, %llu logs cut\n",
        (unsigned long long)t->guard.clamped, (unsigned long long)t->guard.held,
        (unsigned long long)t->guard.stripped, (unsigned long long)t->guard.skipped,
        (unsigned long long)t->guard.put_off, (unsigned long long)t->guard.dropped,
        (unsigned long long)t->guard.second_votes, (unsigned long long)t->guard.terms_told,
        (unsigned long long)t->guard.votes_lent, (unsigned long long)t->guard.own_terms,
        (unsigned long long)t->guard.ticks_skipped, (unsigned long long)t->guard.early,
        (unsigned long long)t->log_cuts);
}

struct run { /* of seeds */
    const struct options *opt;
    struct totals *totals;
};

static void seed_begins(void *ctx, uint64_t seed, void *outcome)
{
    const struct options *opt = ((struct run *)ctx)->opt;

    if (opt->quiet && freopen("/dev/null", "w", stderr) == NULL) {
        _exit(2); /* (it is for what the allocator says when libraft has ruined the heap) */
    }
    run_seed(opt, seed, outcome);
    if (opt->guard) {
        exit(0); /* through the leak checker, if there is one */
    }
    _exit(0);
}

static bool seed_ended(void *ctx, uint64_t seed, void *outcome, int status)
{
    const struct options *opt = ((struct run *)ctx)->opt;
    struct totals *totals = ((struct run *)ctx)->totals;
    struct outcome *o = outcome;

    if (WIFSIGNALED(status)) {
        snprintf(o->reason, sizeof o->reason, "%s (signal %d)",
            WTERMSIG(status) == SIGALRM ? "libraft hangs" : "libraft crashes", WTERMSIG(status));
        o->verdict = CRASHED;
    } else if (WEXITSTATUS(status) != 0 || o->verdict == RUNNING) {
        snprintf(o->reason, sizeof o->reason, "exit status %d", WEXITSTATUS(status));
        o->verdict = CRASHED;
    }
    totals->n_seeds++;
    totals->n_unsafe += o->verdict == UNSAFE;
    totals->n_stuck += o->verdict == STUCK;
    totals->n_crashed += o->verdict == CRASHED;
    tally_add(&totals->tally, &o->tally);
    if (o->verdict != PASSED) {
        if (!opt->quiet) {
            printf("seed %llu: %s\n", (unsigned long long)seed, o->reason);
        }
    } else if (opt->verbose) {
        printf("seed %llu: passed\n", (unsigned long long)seed);
    }
    return true;
}

static uint64_t n_violations(const struct totals *t)
{
    return t->n_unsafe + t->n_stuck + t->n_crashed;
}

static void run_seeds(const struct options *opt, struct totals *totals)
{
    struct run run = {.opt = opt, .totals = totals};

    *totals = (struct totals){0};
    jobs_run(&(struct jobs){.program = "guard_sim", .seed_from = opt->seed_from, .n_seeds = opt->n_seeds,
        .at_once = opt->n_jobs, .seconds = SEED_SECONDS, .result_size = sizeof(struct outcome), .run = seed_begins,
        .ended = seed_ended, .ctx = &run});
}

/* ---- The fixed programme of the continuous tests ---- */

struct report {
    unsigned n_passed, n_failed;
};

static void report(struct report *r, bool ok, const char *text)
{
    printf("%s - %s\n", ok ? "ok" : "not ok", text);
    fflush(stdout);
    if (ok) {
        r->n_passed++;
    } else {
        r->n_failed++;
    }
}

static int run_ci(const struct options *base)
{
    static const struct {
        bool guard;
        unsigned n_members;
        bool disk_failures;
        uint64_t n_seeds;
    } plan[] = {
        {false, 3, false, 200},
        {false, 3, true, 200},
        {true, 3, false, 3000},
        {true, 3, true, 3000},
        {true, 5, false, 2000},
        {true, 5, true, 2000},
    };
    struct report r = {0};
    struct tally sum = {0};
    struct options opt = *base;
    struct totals t;
    char text[200];
    size_t i;

    for (i = 0; i < sizeof plan / sizeof plan[0]; i++) {
        opt.guard = plan[i].guard;
        opt.n_members = plan[i].n_members;
        opt.disk_failures = plan[i].disk_failures;
        opt.seed_from = 1 + 10000 * i;
        opt.n_seeds = plan[i].n_seeds;
        opt.quiet = !plan[i].guard;
        run_seeds(&opt, &t);
        snprintf(text, sizeof text,
            "%s the guard, %u members, %s disk failures: of %llu seeds %llu break a promise, %llu crash, "
            "%llu get stuck",
            opt.guard ? "with" : "without", opt.n_members, opt.disk_failures ? "with" : "no",
            (unsigned long long)t.n_seeds, (unsigned long long)t.n_unsafe, (unsigned long long)t.n_crashed,
            (unsigned long long)t.n_stuck);
        report(&r, opt.guard ? n_violations(&t) == 0 : t.n_unsafe > 0, text);
        if (opt.guard) {
            tally_add(&sum, &t.tally);
        }
    }
    tally_print(&sum);
    report(&r,
        sum.guard.clamped > 0 && sum.guard.held > 0 && sum.guard.stripped > 0 && sum.guard.put_off > 0 &&
            sum.guard.skipped > 0 && sum.guard.dropped > 0 && sum.guard.terms_told > 0 &&
            sum.guard.votes_lent > 0 && sum.guard.own_terms > 0 && sum.guard.ticks_skipped > 0 &&
            sum.guard.early > 0 && sum.log_cuts > 0 && sum.faults > 0,
        "every rule of the guard was called upon");
    printf("%u passed, %u failed, 0 skipped\n", r.n_passed, r.n_failed);
    return r.n_failed == 0 ? 0 : 1;
}

/* ---- Command line ---- */

static int usage(FILE *to, int status)
{
    fprintf(to,
        "usage: guard_sim [--seeds FROM COUNT] [--steps N] [--members 3|5] [--disk-failures] [--no-guard]\n"
        "                 [--expect-violations] [--jobs J] [--verbose]\n"
        "       guard_sim --ci [--jobs J]\n"
        "\n"
        "Runs libraft through COUNT simulations. Exit status 0: no violation (with --expect-violations: at "
        "least\n"
        "one); 1: otherwise; 2: the simulation itself could not be run.\n");
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

int main(int argc, char **argv)
{
    struct options opt = {
        .seed_from = 1,
        .n_seeds = 100,
        .n_steps = 20000,
        .n_members = 3,
        .guard = true,
    };
    struct totals t;
    uint64_t n;
    int i;
    bool ok;

    for (i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(arg, "--seeds") == 0 && number(value, &opt.seed_from) && i + 2 < argc &&
            number(argv[i + 2], &opt.n_seeds)) {
            i += 2;
        } else if (strcmp(arg, "--steps") == 0 && number(value, &n) && n > 0) {
            opt.n_steps = n;
            i++;
        } else if (strcmp(arg, "--members") == 0 && number(value, &n) && (n == 3 || n == 5)) {
            opt.n_members = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--jobs") == 0 && number(value, &n) && n > 0 && n <= JOBS_MAX) {
            opt.n_jobs = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--disk-failures") == 0) {
            opt.disk_failures = true;
        } else if (strcmp(arg, "--no-guard") == 0) {
            opt.guard = false;
        } else if (strcmp(arg, "--expect-violations") == 0) {
            opt.expect_violations = true;
        } else if (strcmp(arg, "--verbose") == 0) {
            opt.verbose = true;
        } else if (strcmp(arg, "--ci") == 0) {
            opt.ci = true;
        } else if (strcmp(arg, "--help") == 0) {
            return usage(stdout, 0);
        } else {
            return usage(stderr, 2);
        }
    }
    if (opt.n_jobs == 0) {
        long cpus = opt.ci ? sysconf(_SC_NPROCESSORS_ONLN) : 1;

        opt.n_jobs = cpus < 1 ? 1 : cpus > JOBS_MAX ? JOBS_MAX : (unsigned)cpus;
    }
    if (opt.ci) {
        return run_ci(&opt);
    }
    run_seeds(&opt, &t);
    if (opt.verbose) {
        tally_print(&t.tally);
    }
    printf("%llu seeds of %lu steps, %u members, %s the guard, %s disk failures: %llu break a promise, %llu "
           "crash, "
           "%llu get stuck\n",
        (unsigned long long)t.n_seeds, opt.n_steps, opt.n_members, opt.guard ? "with" : "without",
        opt.disk_failures ? "with" : "no", (unsigned long long)t.n_unsafe, (unsigned long long)t.n_crashed,
        (unsigned long long)t.n_stuck);
    ok = opt.expect_violations ? n_violations(&t) > 0 : n_violations(&t) == 0;
    return ok ? 0 : 1;
}
