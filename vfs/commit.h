/* commit - a transaction on its way: the meeting point of the SQL thread that waits for its outcome and the thread
 * that learns it.
 *
 * Two references: one of the waiter, one of whoever will complete it. It completes exactly once. A waiter that gives
 * up just drops its reference. */
#ifndef DUST_VFS_COMMIT_H
#define DUST_VFS_COMMIT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfs/err.h"

struct commit {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    unsigned refs;
    bool done;
    struct err err; /* code DUST_OK: agreed and visible here */
};

/* A new commit with two references, or NULL without memory. */
struct commit *commit_new(void);

/* Drop one reference; frees with the last. */
void commit_unref(struct commit *c);

/* Tell the outcome and drop the completer's reference. `text` NULL: the code's general meaning. Any thread. */
void commit_done(struct commit *c, int code, const char *text);

#define COMMIT_PENDING (-1)

/* Wait at most timeout_ms. Returns the outcome's code with *e filled, or COMMIT_PENDING when the time is up. */
int commit_wait(struct commit *c, uint32_t timeout_ms, struct err *e);

#endif
