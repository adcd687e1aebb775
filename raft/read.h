/* read - the read index: what a linearizable read has to have seen. The model is at the top of read.c. Loop thread
 * only. */
#ifndef DUST_RAFT_READ_H
#define DUST_RAFT_READ_H

#include <raft.h>
#include <stdint.h>

#include "raft/ask.h"
#include "raft/call.h"
#include "raft/roster.h"
#include "raft/wire.h"

struct askers {
    struct asker *askers;
    unsigned n, room;
};

struct read {
    struct askers asking; /* wait for the next round */
    struct askers asked;  /* of the round under way; none: there is no round */
    uint64_t number;      /* of the round under way, or of the last one */
    raft_term term;       /* that this member leads the round in; 0: the leader was asked */
    raft_index index;     /* committed when the round began, if this member leads it */
    raft_id confirmed[ROSTER_MAX];
    unsigned n_confirmed;
    uint64_t sent_ms;
};

void read_init(struct node *n);
void read_deinit(struct node *n);

/* The replicator's confirm_read (vfs/replicator.h): may a connection of this consistency read what is here now? `ctx` is the
 * node. Waits at most timeout_ms. SQL threads. */
int read_confirm(void *ctx, int consistency, uint32_t freshness_ms, uint32_t timeout_ms, struct err *e);

/* A call (call.h): answers with the index that has to be applied before the caller may read, DUST_NOLEADER when its
 * time is up. */
void read_run(struct node *n, struct job *job);

/* NOTE_INDEX, NOTE_INDEX_REPLY, NOTE_CONFIRM, NOTE_CONFIRMED. */
void read_received(struct node *n, const struct wire_head *from, const struct note *note);

/* Before the loop sleeps: begin a round, if somebody waits for one. */
void read_look(struct node *n);
void read_tick(struct node *n);

/* Answer all calls of this member. */
void read_fail(struct node *n, int code, const char *text);

#endif
