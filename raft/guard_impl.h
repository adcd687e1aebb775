/* guard_impl - what the files of the guard share. The model is at the top of guard.c. */
#ifndef DUST_RAFT_GUARD_IMPL_H
#define DUST_RAFT_GUARD_IMPL_H

#include "raft/guard.h"
#include "raft/inside.h"

struct guard_held {
    raft_id server_id;
    struct raft_append_entries_result result;
};

static inline bool stopped(const struct guard *g)
{
    return g->fault != GUARD_SOUND || g->cut_index != 0;
}

/* Something is being written. */
static inline bool busy(const struct guard *g)
{
    return g->n_appends > 0 || g->n_puts > 0;
}

static inline bool installing(const struct guard *g)
{
    return g->n_puts > 0 && g->install_index != 0;
}

/* Stop for good. The first cause stays. */
void guard_fail(struct guard *g, enum guard_fault fault);

/* Free the payload of a received message: entries are one array, their data one batch (see raft_uv's decoder). */
void guard_message_free(struct raft_message *m);

/* Drop the InstallSnapshot that is held back, if there is one. */
void guard_forget_install(struct guard *g);
void guard_forget_timeout_now(struct guard *g);

/* Draw conclusions from the message being delivered. Called when it has been delivered, and before each result sent
 * meanwhile, when libraft has changed its log but we are still inside. */
void guard_learn(struct guard *g);

#endif
