/* turn - the write turn inside one member: who of its connections writes next, first come first served.
 *
 *              gate shut                        gate open
 *   idle ──take──▶ waiting ──(gate opens)──▶ granted ──pass──▶ idle
 *                     └──time is up──▶ idle      └── held too long while others wait ──▶ lost
 *
 * The gate is the cluster's turn: the replicator opens it when this member may write and shuts it to recall it. At
 * most one ticket is granted at a time. The turn is for liveness only: a transaction that goes on without it is void
 * or stale, never wrong.
 *
 * Nobody polls: a ticket that waits is woken by the one event it waits for. */
#ifndef DUST_VFS_TURN_H
#define DUST_VFS_TURN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfs/metrics.h"

/* While the gate is shut, a ticket waits at least this long from when it queued up, whatever its own time-out: that another member has the
 * turn, or that a leader is being elected, is not the kind of conflict that a program with no busy timeout means to be
 * told of at once. */
#define TURN_GATE_GRACE_MS 5000u

struct ticket {
    struct ticket *next, *prev;
    pthread_cond_t cond;
    enum { TICKET_IDLE, TICKET_WAITING, TICKET_GRANTED, TICKET_LOST } state;
    uint64_t asked_us;   /* when it queued up */
    uint64_t granted_ms; /* when */
    uint64_t lease_ms;   /* how long it may be held while others wait */
    /* For a ticket that is queued by turn_ask, set before: called instead of waking whoever waits. Granted (DUST_OK), or
     * refused, with a code of turn_take's. With the turn's mutex held: it may do nothing but pass the news on. */
    void (*told)(struct ticket *k, int code);
};

struct turn {
    pthread_mutex_t mutex;
    struct ticket *first, *last; /* waiting */
    struct ticket *holder;
    bool open;
    bool closing;
    int refusing; /* not 0: the code that everybody gets who asks */
    uint32_t timeout_ms; /* after which a holder loses it to one who waits */
    uint64_t wait_number; /* counts grants */
    struct times *waits;  /* how long they waited for it; NULL: nobody wants to know */
    /* Called without the mutex held, from any thread: the number of waiters or the holder has changed in a way that
     * the owner of the gate has to know (somebody waits at a shut gate; a recalled turn has come back). */
    void (*notify)(void *ctx);
    void *ctx;
};

void turn_init(struct turn *t, uint32_t timeout_ms, void (*notify)(void *ctx), void *ctx);
void turn_deinit(struct turn *t);

void ticket_init(struct ticket *k);
void ticket_deinit(struct ticket *k);

/* Queue up and wait at most timeout_ms. DUST_OK: granted. DUST_BUSY: time is up, the place in the queue is given up.
 * DUST_CLOSED: shutting down. A ticket that is granted already stays so. `lease_ms` bounds how long it can be held
 * against others; 0: the turn's own timeout. */
int turn_take(struct turn *t, struct ticket *k, uint32_t timeout_ms, uint32_t lease_ms);

/* As turn_take, but when the time is up, also at a shut gate, the ticket keeps its place in the queue, and may be granted
 * while nobody waits on it: for a caller that is about to ask again, or to drop it. Until then it keeps others waiting. */
int turn_take_place(struct turn *t, struct ticket *k, uint32_t timeout_ms, uint32_t lease_ms);

/* Queue up and return at once; k->told will be called, maybe before this returns. There is no time-out: turn_drop gives
 * the place up, and after it nothing is told any more. `lease_ms` as turn_take has it. */
void turn_ask(struct turn *t, struct ticket *k, uint32_t lease_ms);

/* Give up the place in the queue, or the turn. */
void turn_drop(struct turn *t, struct ticket *k);

/* Give the turn to the next. Harmless if the ticket does not hold it (any more). */
void turn_pass(struct turn *t, struct ticket *k);

/* Is it still this ticket's turn? */
bool turn_held(struct turn *t, struct ticket *k);

/* Prolong: from now on the holder has the turn's full timeout. False if it was lost meanwhile. */
bool turn_keep(struct turn *t, struct ticket *k);

/* The replicator's side: open or shut the gate. A holder keeps the turn across turn_shut until it passes. */
void turn_open(struct turn *t);
void turn_shut(struct turn *t);

bool turn_is_open(struct turn *t);

/* How many wait, and does anybody hold it. */
void turn_state(struct turn *t, unsigned *waiting, bool *held);

/* Take the turn away from a holder that had it longer than its lease, if others (here, or `contested` elsewhere)
 * want it. Called on a timer tick by the gate's owner. */
void turn_expire(struct turn *t, bool contested);

/* Everybody who waits, or asks from now on, gets this code (DUST_FULL, DUST_IO, DUST_MOVED: nothing can be written here
 * for the time being) instead of the turn; DUST_OK: the turn is to be had again. */
void turn_refuse(struct turn *t, int code);

/* Everybody who waits gets DUST_CLOSED, now and later. */
void turn_close(struct turn *t);

/* After that, and with nobody in it: shut, as it was made, for another node to open. */
void turn_reopen(struct turn *t);

#endif
