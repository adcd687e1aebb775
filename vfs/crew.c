#include "vfs/crew.h"

#include <errno.h>

#include "vfs/clock.h"

void crew_init(struct crew *c)
{
    *c = (struct crew){.last = NULL};
    c->last = &c->first;
    pthread_mutex_init(&c->mutex, NULL);
    cond_init_monotonic(&c->work);
    cond_init_monotonic(&c->over);
}

static void *member_of_crew(void *arg)
{
    struct crew *c = arg;
    bool late = false;

    pthread_mutex_lock(&c->mutex);
    for (;;) {
        struct crew_job *job = c->first;

        if (job != NULL) {
            c->first = job->next;
            c->last = c->first != NULL ? c->last : &c->first;
            pthread_mutex_unlock(&c->mutex);
            job->run(job);
            pthread_mutex_lock(&c->mutex);
            late = false;
        } else if (c->closing || late) {
            break;
        } else {
            struct timespec until = deadline_in_ms(CREW_IDLE_MS);

            c->idle++;
            late = pthread_cond_timedwait(&c->work, &c->mutex, &until) == ETIMEDOUT;
            c->idle--;
        }
    }
    if (--c->threads == 0) {
        pthread_cond_signal(&c->over);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* Jobs that wait for a thread are as many as the idle at most: each has been woken for one. */
static bool anybody(struct crew *c)
{
    unsigned waiting = 1;
    pthread_t t;

    for (const struct crew_job *j = c->first; j != NULL; j = j->next) {
        waiting++;
    }
    if (c->idle >= waiting) {
        return true;
    }
    if (c->threads >= CREW_MAX || pthread_create(&t, NULL, member_of_crew, c) != 0) {
        return false;
    }
    pthread_detach(t);
    c->threads++;
    return true;
}

bool crew_run(struct crew *c, struct crew_job *job)
{
    bool ok;

    pthread_mutex_lock(&c->mutex);
    ok = !c->closing && anybody(c);
    if (ok) {
        job->next = NULL;
        *c->last = job;
        c->last = &job->next;
        pthread_cond_signal(&c->work);
    }
    pthread_mutex_unlock(&c->mutex);
    return ok;
}

void crew_close(struct crew *c)
{
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_broadcast(&c->work);
    while (c->threads != 0) {
        pthread_cond_wait(&c->over, &c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    pthread_cond_destroy(&c->work);
    pthread_cond_destroy(&c->over);
    pthread_mutex_destroy(&c->mutex);
}
