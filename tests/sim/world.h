/* world - what the parts of node_sim share: one generator of chance, virtual time, the trace, and the end of a run.
 *
 * A seed decides everything: every choice is drawn from one generator, in an order that the one scheduler gives. What
 * happens is mixed into a hash as it happens, so that two runs of a seed can be compared. */
#ifndef DUST_SIM_WORLD_H
#define DUST_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MACHINES_MAX 5
#define REASON_MAX 800

#define US_NS 1000ull
#define MS_NS 1000000ull
#define S_NS 1000000000ull
#define NEVER UINT64_MAX

/* What one seed has seen; in memory shared with the parent process. */
struct tally {
    uint64_t acknowledged, refused, unknown, in_parts;
    uint64_t outcomes_agreed, outcomes_void, outcomes_open;
    uint64_t reads[4]; /* by enum consistency */
    uint64_t reads_refused, reads_in_writes;
    uint64_t crashes, power_losses, cuts, one_way_cuts, resets, pauses, disk_faults;
    uint64_t transfers, removals, roles;
    uint64_t elections, versions, snapshots, installs, pulls, folds, loops, starts, double_turns;
    uint64_t failed_writes, writes_cut; /* of those that are synchronous */
    uint64_t slices, virtual_ms;
};

enum verdict { VERDICT_NONE = 0, VERDICT_PASSED, VERDICT_VIOLATION, VERDICT_STUCK, VERDICT_CRASHED };

struct result {
    enum verdict verdict;
    char reason[REASON_MAX];
    uint64_t hash; /* of the trace */
    struct tally tally;
};

struct world {
    uint64_t rng[2];
    uint64_t begun_ns; /* when the run began */
    uint64_t now_ns;   /* virtual, monotonic; the wall clock is this plus a constant */
    uint64_t hash;
    struct result *result;
    unsigned verbose; /* 1: what happens; 2: each message and what dust logs */
    bool running;     /* a seed: before, the cluster is set up */
    bool healing;     /* the bad times are over: nothing fails any more */
};
extern struct world world;

static inline struct tally *tally(void)
{
    return &world.result->tally;
}

/* ---- chance ---- */

void chance_begin(uint64_t seed);
uint64_t chance64(void);
uint64_t chance_below(uint64_t n);                   /* n > 0 */
uint64_t chance_between(uint64_t from, uint64_t to); /* both included */
bool chance(unsigned per_10000);
void chance_bytes(void *buf, size_t n);

/* ---- the trace ---- */

uint64_t mix(uint64_t h, uint64_t x);
uint64_t mix_bytes(uint64_t h, const void *p, size_t n);
void trace(uint64_t what, uint64_t a, uint64_t b);
void say(unsigned level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- the end ---- */

/* A promise was broken; there is no way on; all went well. In the process of the seed, which ends. */
void violation(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void stuck(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
void passed(void) __attribute__((noreturn));

void *must(void *p); /* ends the process without memory */

#endif
