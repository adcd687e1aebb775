/* heads - the running check that all members have one history.
 *
 * A version's id covers its parent's, so equal ids mean equal histories. Each member remembers the last entries that took
 * effect: index and id. With every beacon the leader tells its newest; who has applied that index compares.
 * A difference cannot be explained by anything that members or networks do: it means damaged memory, a log changed on
 * disk, or a bug. The member that sees it stops rather than serve what may be wrong. Loop thread. */
#ifndef DUST_RAFT_HEADS_H
#define DUST_RAFT_HEADS_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/vid.h"

#define HEADS_MAX 4096 /* a power of two; a beacon is older than that only if thousands were applied in between */

struct heads {
    struct {
        uint64_t index;
        struct vid id;
    } line[HEADS_MAX];
    unsigned n; /* ever noted */
};

/* Forget all: the database is at version `id` as of the entry at `index`. */
void heads_begin(struct heads *h, uint64_t index, const struct vid *id);

/* The entry at `index` made version `id`. Indexes grow. */
void heads_note(struct heads *h, uint64_t index, const struct vid *id);

/* Was this version noted, as far as is remembered? */
bool heads_has(const struct heads *h, const struct vid *id);

/* The version as of the entry at `index`, which has been applied: the newest noted at or before it. NULL: not
 * remembered. */
const struct vid *heads_at(const struct heads *h, uint64_t index);

#endif
