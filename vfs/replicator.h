/* replicator - what the VFS needs from whoever makes the cluster agree. The VFS knows nothing else of Raft, and is
 * tested with a replicator that agrees at once, refuses, or agrees from another thread.
 *
 * In the other direction the replicator opens and shuts the gate of `database.turn`, publishes or voids versions in
 * `database.store`, and completes commits. */
#ifndef DUST_VFS_REPLICATOR_H
#define DUST_VFS_REPLICATOR_H

#include "vfs/commit.h"
#include "vfs/entry.h"
#include "vfs/store.h"

enum effect {
    EFFECT_NONE,  /* not yet; it may, if it is sent (again), or is on its way still */
    EFFECT_TAKEN,
    EFFECT_NEVER  /* another transaction was agreed on in its place */
};

struct replicator {
    void *ctx;
    size_t room; /* bytes that submit has beside each commit, zeroed, its own until it completes the commit */

    /* A transaction has been sealed and staged, on top of the head, as the version of which *staged is a copy (see
     * store_stage), the caller's. Takes ownership of `sealed` and of one reference of `commit`, which it completes exactly
     * once. staged->owner is the commit. Called by SQL threads in the order of staging. Never fails: an error is an
     * outcome. */
    void (*submit)(void *ctx, struct sealed *sealed, const struct version *staged, struct commit *commit);

    /* May a reader trust the agreed version now, at this consistency? Waits at most timeout_ms. DUST_OK, DUST_BUSY,
     * DUST_NOLEADER. SQL threads. */
    int (*confirm_read)(void *ctx, int consistency, uint32_t freshness_ms, uint32_t timeout_ms, struct err *e);

    /* Has the transaction of this id, made on `parent`, taken effect, as far as the log here tells? Everything that had been
     * committed when it was called is looked at. Waits at most timeout_ms. DUST_OK, DUST_NOLEADER, DUST_BUSY, DUST_CLOSED.
     * SQL threads. */
    int (*took_effect)(void *ctx, const struct vid *id, const struct vid *parent, uint32_t timeout_ms, enum effect *out,
        struct err *e);

    /* A page of this member's files was found damaged (database.damaged). Any thread. */
    void (*found_damage)(void *ctx);

    /* The turn inside the member has waiters at a shut gate, or nobody uses it any more. Any thread. */
    void (*turn_changed)(void *ctx);
};

enum consistency { CONSISTENCY_STALE, CONSISTENCY_LOCAL, CONSISTENCY_FRESH, CONSISTENCY_LINEARIZABLE };

#endif
