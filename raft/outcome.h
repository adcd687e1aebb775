/* outcome - what became of a transaction that was reported as unknown.
 *
 * A transaction whose waiter has gone (time was up, or this member stopped) is noted here with the index applied when
 * it was made: its entry can only come later. When it is decided after all, so is the note. A ring: the oldest note goes
 * when it is full; then the log alone can tell.
 *
 * node_outcome looks, in this order,
 *   1. at the notes;
 *   2. whether it is on its way still (it is sent again and again while this member runs);
 *   3. in the log, as far back as that goes, after having caught up with the cluster: there it took effect if it is on
 *      the chain of parents that leads to the head, and is void if it is not, or if another one is there with its parent;
 *   4. not found, but everything since it was made is in sight: behind a fence (vfs/fence.h) it is void unless it came
 *      in before it.
 * What nobody could tell without trusting that no message is still under way somewhere is `unknown`. */
#ifndef DUST_RAFT_OUTCOME_H
#define DUST_RAFT_OUTCOME_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/err.h"
#include "vfs/replicator.h"
#include "vfs/vid.h"

#define OUTCOMES_MAX 1024

enum outcome {
    OUTCOME_UNKNOWN, /* neither in the log here nor known otherwise */
    OUTCOME_PENDING, /* on its way: it may take effect */
    OUTCOME_AGREED,  /* it took effect */
    OUTCOME_VOID     /* it did not, and never will */
};

struct outcome_note {
    struct vid id;
    uint64_t after; /* its entry has a greater index */
    enum outcome what;
};

/* Under the node's mutex. */
struct outcomes {
    struct outcome_note note[OUTCOMES_MAX];
    unsigned n; /* ever noted */
};

/* Note it, or decide what was noted. */
void outcomes_set(struct outcomes *o, const struct vid *id, uint64_t after, enum outcome what);

/* NULL: not noted. */
const struct outcome_note *outcomes_find(const struct outcomes *o, const struct vid *id);

/* replicator.took_effect. */
int node_took_effect(void *ctx, const struct vid *id, const struct vid *parent, uint32_t timeout_ms, enum effect *out,
    struct err *e);

#endif
