/* metrics - what a member has done since this process hosts it: counts, and how long things took. What dust_metrics
 * shows. Any thread, without locks; a reader sees each number whole, and not all of them at one moment. */
#ifndef DUST_VFS_METRICS_H
#define DUST_VFS_METRICS_H

#include <stdatomic.h>
#include <stdint.h>

enum metric {
    METRIC_COMMITS,         /* transactions written here that took effect */
    METRIC_COMMITS_VOID,    /* that did not */
    METRIC_COMMITS_UNKNOWN, /* whose outcome could not be told */
    METRIC_APPLIED,         /* transactions that took effect, whoever wrote them */
    METRIC_APPLIED_VOID,    /* entries of the log that were of none that took effect */
    METRIC_LOG_WRITES,      /* times that entries were handed to the log, and are on disk */
    METRIC_LOG_ENTRIES,
    METRIC_LOG_BYTES,
    METRIC_LOG_FAILURES,
    METRIC_CHECKPOINTS,
    METRIC_CHECKPOINT_FAILURES,
    METRIC_LEADER_CHANGES, /* a new term, or another leader, or none */
    METRIC_DAMAGE_FOUND,
    METRIC_DAMAGE_REPAIRED,
    METRIC_COUNT
};

enum timing {
    TIMING_TURN,       /* from asking for the write turn to having it */
    TIMING_COMMIT,     /* from handing a transaction over to knowing its outcome */
    TIMING_LOG_WRITE,  /* from giving entries to the storage to their being on disk */
    TIMING_LOG_FLUSH,  /* one write of the log to disk; entries that come meanwhile share the next */
    TIMING_CONFIRM,    /* reads that had to be confirmed: fresh, linearizable, or the first ones of a process */
    TIMING_CHECKPOINT, /* those that had something to do */
    TIMING_COUNT
};

/* Eight buckets for each power of two, so that a quantile is at most an eighth too high. */
#define TIMING_BUCKETS 280u /* up to 2^36 us, 19 hours; the last one also holds what is longer */

struct times {
    _Atomic uint64_t count, sum_us, max_us;
    _Atomic uint64_t buckets[TIMING_BUCKETS];
};

struct metrics { /* zeros to begin with */
    _Atomic uint64_t counts[METRIC_COUNT];
    struct times times[TIMING_COUNT];
};

const char *metric_name(enum metric m);
const char *timing_name(enum timing t);

static inline void metrics_add(struct metrics *m, enum metric which, uint64_t n)
{
    atomic_fetch_add_explicit(&m->counts[which], n, memory_order_relaxed);
}

static inline uint64_t metrics_get(struct metrics *m, enum metric which)
{
    return atomic_load_explicit(&m->counts[which], memory_order_relaxed);
}

/* One more that took `us` microseconds. */
void times_add(struct times *t, uint64_t us);

/* How long, in microseconds, the fastest `part` of `of` took at most (99 of 100: the 99th percentile), as far as the buckets
 * tell: never less than it was, an eighth more at most, and never more than the longest. 0 if there were none. */
uint64_t times_quantile(struct times *t, unsigned part, unsigned of);

#endif
