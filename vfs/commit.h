/* commit - a transaction on its way: the meeting point of the SQL thread that waits for its outcome and the thread
 * that learns it.
 *
 * Two references: one of the waiter, one of whoever will complete it. It completes exactly once. A waiter that gives
 * up just drops its reference. Room for what the completer has to remember about it comes in the same block, so that
 * nothing can run out of memory once a transaction is staged. */
#ifndef DUST_VFS_COMMIT_H
#define DUST_VFS_COMMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"

struct store;

struct commit {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    _Atomic unsigned refs;
    bool done;
    bool abandoned; /* the waiter has given up */
    struct err err; /* code DUST_OK: agreed and visible here */
    /* Called by whoever completes it, when it has been completed, if it was set before it was handed over: for a waiter
     * that has no thread. Without the mutex; it may not wait. */
    void (*told)(struct commit *c, void *arg);
    void *told_arg;
    void *gift;     /* what comes with the outcome, from malloc; freed with the commit unless the waiter took it */
    _Alignas(max_align_t) unsigned char room[];
};

/* A new commit with two references and `room` zeroed bytes beside it, or NULL without memory. */
struct commit *commit_new(size_t room);

/* These bytes, aligned for anything; there until the last reference is dropped. */
static inline void *commit_room(struct commit *c)
{
    return c->room;
}

/* Drop one reference; frees with the last. */
void commit_unref(struct commit *c);

/* Tell the outcome and drop the completer's reference. `text` NULL: the code's general meaning. False: the waiter has
 * given up, and never hears of it. Any thread. */
bool commit_done(struct commit *c, int code, const char *text);

/* The waiter will not wait any longer; it keeps its reference. */
void commit_abandon(struct commit *c);

#define COMMIT_PENDING (-1)

/* Wait at most timeout_ms. Returns the outcome's code with *e filled, or COMMIT_PENDING when the time is up. */
int commit_wait(struct commit *c, uint32_t timeout_ms, struct err *e);

/* As commit_wait, for something that goes through the log: with store_patience(). */
int commit_wait_agreed(struct commit *c, struct store *s, uint32_t timeout_ms, struct err *e);

#endif
