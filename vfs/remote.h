/* remote - what an open file asks of the process that hosts its member, while that is another one (docs/PROCESSES.md).
 *
 * One connection for each open file, made when it is first needed. Each call waits until it has its answer, its time is
 * up, or it is known that it cannot be had; if the host ends meanwhile, the question is put to the next one, which may be
 * this process: then it is answered here. */
#ifndef DUST_VFS_REMOTE_H
#define DUST_VFS_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/entry.h"
#include "vfs/link.h"

struct dfile;

struct remote {
    struct link link;
    uint32_t generation;  /* of the host that it leads to */
    uint32_t turn_number; /* of the request for the turn that is not answered yet, 0: there is none */
    struct store *turn_store; /* where that is said; one reference, while there is the turn or a request for it */
    uint32_t turn_slot;   /* of this file, in that store */
    bool turn;            /* the file has the turn, of that host */
    bool resent;          /* the last transaction had been seen by a host before the one that answered */
    bool old_turn;        /* it had, when the host before that ended: the next one keeps it for this process */
};

/* The write turn. As turn_take, turn_take_place (`place`), turn_pass or turn_drop, turn_held, turn_keep. */
int remote_take_turn(struct dfile *f, uint32_t timeout_ms, uint32_t lease_ms, bool place);
void remote_pass_turn(struct dfile *f);
bool remote_has_turn(const struct dfile *f); /* or a place in the queue, or one that is being kept */
bool remote_turn_held(struct dfile *f);
bool remote_turn_keep(struct dfile *f);

/* As replicator.confirm_read. */
int remote_confirm(struct dfile *f, uint32_t wait_ms, struct err *e);

/* Wait until the version of this seq in the file's store, whose id is `id` (none: not known), is agreed. As
 * store_wait_agreed. */
int remote_wait_agreed(struct dfile *f, uint64_t seq, const struct vid *id, uint32_t timeout_ms);

/* Have the transaction agreed on. Takes ownership of `sealed`. DUST_OK: f->next_snap, of f->next_store, holds its version.
 * Otherwise a code of commit_wait's, or COMMIT_PENDING; *after: the index applied before it, for dust_outcome. */
int remote_commit(struct dfile *f, struct sealed *sealed, uint64_t *after, struct err *e);

/* Tell the host of a damaged page. */
void remote_damage(struct dfile *f, uint32_t pgno, bool in_pages);

/* A call of the room above. `rows` is given the body of each LINK_ROWS, and may refuse to go on. `repeat`: it changes
 * nothing, and is asked again of the next host if the first has ended before it has answered; else DUST_UNKNOWN.
 * DUST_EXISTS: this process is the host: do it here. */
int remote_call(struct dfile *f, const void *body, size_t n, bool repeat, bool (*rows)(void *ctx, const struct link_msg *m),
    void *ctx, struct err *e);

void remote_close(struct dfile *f);

#endif
