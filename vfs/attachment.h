/* attachment - this process's part in a member that another process hosts (docs/PROCESSES.md): the connection that says
 * that both live, the page store that reads are made from, and what happens when the host ends.
 *
 *   ATTACHED ──connection ends──▶ LOST ──another one listens──▶ ATTACHED (a new generation)
 *                                  ├──we get the lock──▶ TAKING ──started──▶ HOST, for good
 *                                  │◀────────────────────not started──┘
 *                                  └──it is no member any more──▶ OVER, for good
 *
 * A thread waits for the end of the connection, and sees to the rest. SQL threads wait here for a state in which they can
 * go on. */
#ifndef DUST_VFS_ATTACHMENT_H
#define DUST_VFS_ATTACHMENT_H

#include "vfs/database.h"
#include "vfs/link.h"

struct attachment;

struct takeover {
    void *ctx;
    /* This process has the lock: bring the member up in it, on this database object. `db->store` is to be its store; the
     * one that was attached is kept until nobody reads in it. On failure all is as it was. The attachment's thread. */
    int (*take_over)(void *ctx, struct database *db, struct err *e);
};

/* Attach to the host of the member whose database object this is: made by database_new, its lock not to be had. Waits at
 * most timeout_ms for a host that is just starting. DUST_AGAIN: there is none, the lock is this process's now. DUST_BUSY:
 * it does not answer. DUST_VERSION, DUST_NOMEM, DUST_IO. */
int attachment_open(struct database *db, const struct takeover *t, uint32_t timeout_ms, struct err *e);

/* Before anything else that makes another kind of the database object: the thread is ended. NULL is fine. Not in a forked
 * child. */
void attachment_close(struct attachment *a);

/* The process is about to end: nothing is taken over any more, and what is still read in a former host's store does not
 * hold up a checkpoint. The object stays. */
void attachment_stop(struct database *db);

/* The page store that a new snapshot is to be taken in; one reference, the caller's. */
struct store *database_bound(struct database *db);

/* Is the database hosted by this process now? *generation counts hosts; *owner is this process's number. Waits until
 * `until_ms` (clock_ms) while it is neither hosted nor attached. DUST_OK: attached; DUST_EXISTS: this process hosts it;
 * DUST_BUSY: the time is up; DUST_CLOSED: it is no member any more. */
int attachment_wait(struct database *db, uint64_t until_ms, uint32_t *generation, uint32_t *owner, struct err *e);

/* A connection of this generation has ended: wait a moment for the news to get round. */
void attachment_lost(struct database *db, uint32_t generation);

/* HELLO on a connection. With owner 0 *owner and *mark are set. DUST_OK, DUST_CLOSED, DUST_BUSY, or what the host says. */
struct welcome {
    uint32_t owner, page_size;
    uint64_t mark, origin;
};
int attachment_hello(struct link *l, uint32_t owner, uint32_t owner_before, bool holds, struct welcome *w,
    uint64_t until_ms, struct err *e);


/* The reader of this slot has asked for the write turn, and may have it; or has given it up. If it is found to have had it
 * when the host ended, it is kept for this process. */
void attachment_claims(struct database *db, uint32_t slot, bool claims);

/* The number that this process had with the host before it was one itself. */
uint32_t attachment_owner_before(struct database *db);

#endif
