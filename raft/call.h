/* call - how SQL threads reach the loop thread: jobs, and calls, which are jobs with an answer.
 *
 * A job is queued under the node's mutex and the loop is woken (uv_async_send); the loop runs jobs in the order of
 * their coming. Whoever posts to a node whose thread has ended runs the job itself: every job knows a node that has
 * stopped.
 *
 * A call lives beside its commit (the meeting point), in the same block: it is there until both the loop has answered
 * and the asker has looked or given up, whichever comes last. */
#ifndef DUST_RAFT_CALL_H
#define DUST_RAFT_CALL_H

#include <stdint.h>

#include "vfs/commit.h"

struct node;

struct job {
    struct job *next;
    void (*run)(struct node *n, struct job *job);
};

#define CALL_ARGS 4

struct call {
    struct job job;
    struct commit *commit;
    struct call *next; /* where it waits for an answer from elsewhere */
    uint64_t arg[CALL_ARGS];
    uint64_t num; /* of the answer */
    uint64_t req;
    uint64_t deadline_ms;
};

struct call_result {
    uint64_t num;
    void *gift; /* from malloc, may be NULL; the asker's to free */
};

/* Queue a job, which stays the caller's until it is run. Any thread. */
void node_post(struct node *n, struct job *job);

/* Let the loop look around (see on_prepare in node.c). Any thread. */
void node_wake(struct node *n);

/* Run a job before the loop sleeps again. Loop thread. */
void node_defer(struct node *n, struct job *job);

/* The loop's own: run what is queued; run what was put off. Loop thread, or any when the loop has ended. */
void node_run_jobs(struct node *n);
void node_run_deferred(struct node *n);

/* Have `run` called on the loop thread with these arguments, and wait for its answer: its code, with *e, and with *r if
 * the code is DUST_OK. Waits timeout_ms, and some seconds for a loop that is busy; DUST_BUSY if it is stuck. r and e
 * may be NULL. SQL threads. */
int node_call(struct node *n, void (*run)(struct node *n, struct job *job), uint64_t a0, uint64_t a1,
    uint32_t timeout_ms, struct call_result *r, struct err *e);

/* The same, with more arguments. */
int node_call_args(struct node *n, void (*run)(struct node *n, struct job *job), const uint64_t arg[CALL_ARGS],
    uint32_t timeout_ms, struct call_result *r, struct err *e);

/* The answer. `gift` is handed over. The call may be gone when this returns. text may be NULL. Loop thread. */
void call_answer(struct call *c, int code, const char *text, uint64_t num, void *gift);

#endif
