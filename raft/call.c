#include "raft/call.h"

#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"

#define GRACE_MS 5000u /* the loop answers every call at its deadline at the latest; the rest is for one that is busy */

/* Under the mutex, so that the handle is not closed meanwhile. */
static void wake(struct node *n)
{
    if (!n->signalled && !n->loop_done) {
        uv_async_send(&n->async);
        n->signalled = true;
    }
}

void node_post(struct node *n, struct job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&n->mutex);
    if (n->halted) {
        pthread_mutex_unlock(&n->mutex);
        job->run(n, job);
        return;
    }
    *n->jobs_tail = job;
    n->jobs_tail = &job->next;
    wake(n);
    pthread_mutex_unlock(&n->mutex);
}

void node_wake(struct node *n)
{
    pthread_mutex_lock(&n->mutex);
    wake(n);
    pthread_mutex_unlock(&n->mutex);
}

void node_run_jobs(struct node *n)
{
    struct job *job, *next;

    pthread_mutex_lock(&n->mutex);
    job = n->jobs;
    n->jobs = NULL;
    n->jobs_tail = &n->jobs;
    n->signalled = false;
    pthread_mutex_unlock(&n->mutex);
    for (; job != NULL; job = next) {
        next = job->next;
        job->run(n, job);
    }
}

void node_defer(struct node *n, struct job *job)
{
    job->next = n->deferred;
    n->deferred = job;
}

void node_run_deferred(struct node *n)
{
    while (n->deferred != NULL) {
        struct job *job = n->deferred;

        n->deferred = job->next;
        job->run(n, job);
    }
}

int node_call_args(struct node *n, void (*run)(struct node *n, struct job *job), const uint64_t arg[CALL_ARGS],
    uint32_t timeout_ms, struct call_result *r, struct err *e)
{
    struct commit *commit = commit_new(sizeof(struct call));
    struct call *c;
    int rv;

    if (commit == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    c = commit_room(commit);
    c->job.run = run;
    c->commit = commit;
    memcpy(c->arg, arg, sizeof c->arg);
    c->deadline_ms = clock_ms() + timeout_ms;
    node_post(n, &c->job);
    rv = commit_wait(commit, timeout_ms + GRACE_MS, e);
    if (rv == COMMIT_PENDING) {
        rv = err_set(e, DUST_BUSY, "the member's own thread does not answer (is its disk stuck?)");
    } else if (rv == DUST_OK && r != NULL) {
        r->num = c->num;
        r->gift = commit->gift;
        commit->gift = NULL;
    }
    commit_unref(commit);
    return rv;
}

int node_call(struct node *n, void (*run)(struct node *n, struct job *job), uint64_t a0, uint64_t a1,
    uint32_t timeout_ms, struct call_result *r, struct err *e)
{
    return node_call_args(n, run, (uint64_t[CALL_ARGS]){a0, a1}, timeout_ms, r, e);
}

void call_answer(struct call *c, int code, const char *text, uint64_t num, void *gift)
{
    c->num = num;
    c->commit->gift = gift;
    commit_done(c->commit, code, text);
}
