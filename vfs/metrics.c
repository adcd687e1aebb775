#include "vfs/metrics.h"

static const char *const metric_names[METRIC_COUNT] = {
    [METRIC_COMMITS] = "commits",
    [METRIC_COMMITS_VOID] = "commits_void",
    [METRIC_COMMITS_UNKNOWN] = "commits_unknown",
    [METRIC_APPLIED] = "applied",
    [METRIC_APPLIED_VOID] = "applied_void",
    [METRIC_LOG_WRITES] = "log_writes",
    [METRIC_LOG_ENTRIES] = "log_entries",
    [METRIC_LOG_BYTES] = "log_bytes_written",
    [METRIC_LOG_FAILURES] = "log_failures",
    [METRIC_CHECKPOINTS] = "checkpoints",
    [METRIC_CHECKPOINT_FAILURES] = "checkpoint_failures",
    [METRIC_LEADER_CHANGES] = "leader_changes",
    [METRIC_DAMAGE_FOUND] = "damage_found",
    [METRIC_DAMAGE_REPAIRED] = "damage_repaired",
};

static const char *const timing_names[TIMING_COUNT] = {
    [TIMING_TURN] = "turn",
    [TIMING_COMMIT] = "commit",
    [TIMING_LOG_WRITE] = "log_write",
    [TIMING_LOG_FLUSH] = "log_flush",
    [TIMING_CONFIRM] = "confirm",
    [TIMING_CHECKPOINT] = "checkpoint",
};

const char *metric_name(enum metric m)
{
    return metric_names[m];
}

const char *timing_name(enum timing t)
{
    return timing_names[t];
}

/* Below 8 a bucket is one number; from there on its number is the exponent and the three bits below the highest one. */
static unsigned bucket_of(uint64_t us)
{
    unsigned top, bucket;

    if (us < 8) {
        return (unsigned)us;
    }
    top = 63u - (unsigned)__builtin_clzll(us);
    bucket = (top - 2) * 8 + (unsigned)(us >> (top - 3) & 7);
    return bucket < TIMING_BUCKETS ? bucket : TIMING_BUCKETS - 1;
}

/* The most that a bucket holds. */
static uint64_t bucket_end(unsigned bucket)
{
    unsigned shift = bucket / 8 - 1;

    return bucket < 8 ? bucket : ((uint64_t)(8 + bucket % 8 + 1) << shift) - 1;
}

void times_add(struct times *t, uint64_t us)
{
    uint64_t max = atomic_load_explicit(&t->max_us, memory_order_relaxed);

    atomic_fetch_add_explicit(&t->count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->sum_us, us, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->buckets[bucket_of(us)], 1, memory_order_relaxed);
    while (us > max && !atomic_compare_exchange_weak_explicit(&t->max_us, &max, us, memory_order_relaxed,
                           memory_order_relaxed)) {
    }
}

uint64_t times_quantile(struct times *t, unsigned part, unsigned of)
{
    uint64_t all = 0, wanted, max = atomic_load_explicit(&t->max_us, memory_order_relaxed), seen = 0;
    uint64_t counts[TIMING_BUCKETS];

    for (unsigned i = 0; i < TIMING_BUCKETS; i++) {
        counts[i] = atomic_load_explicit(&t->buckets[i], memory_order_relaxed);
        all += counts[i];
    }
    wanted = (all * part + of - 1) / of;
    for (unsigned i = 0; i < TIMING_BUCKETS - 1 && all != 0; i++) {
        seen += counts[i];
        if (seen >= wanted) {
            return bucket_end(i) < max ? bucket_end(i) : max;
        }
    }
    return max;
}
