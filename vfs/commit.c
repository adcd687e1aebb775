#include "vfs/commit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vfs/clock.h"
#include "vfs/store.h"

struct commit *commit_new(size_t room)
{
    struct commit *c = calloc(1, sizeof *c + room);

    if (c == NULL) {
        return NULL;
    }
    pthread_mutex_init(&c->mutex, NULL);
    cond_init_monotonic(&c->cond);
    c->refs = 2;
    return c;
}

void commit_unref(struct commit *c)
{
    if (atomic_fetch_sub(&c->refs, 1) == 1) {
        pthread_cond_destroy(&c->cond);
        pthread_mutex_destroy(&c->mutex);
        free(c->gift);
        free(c);
    }
}

bool commit_done(struct commit *c, int code, const char *text)
{
    bool heard;

    pthread_mutex_lock(&c->mutex);
    c->done = true;
    heard = !c->abandoned;
    if (code == DUST_OK) {
        c->err.code = DUST_OK;
    } else {
        err_set(&c->err, code, "%s", text != NULL ? text : err_text(code));
    }
    pthread_mutex_unlock(&c->mutex);
    pthread_cond_signal(&c->cond); /* not before: who is woken would find the mutex taken */
    if (c->told != NULL) {
        c->told(c, c->told_arg);
    }
    commit_unref(c);
    return heard;
}

void commit_abandon(struct commit *c)
{
    pthread_mutex_lock(&c->mutex);
    c->abandoned = !c->done;
    pthread_mutex_unlock(&c->mutex);
}

static int wait_for(struct commit *c, uint32_t timeout_ms, bool then_abandon, struct err *e)
{
    struct timespec until = deadline_in_ms(timeout_ms);
    bool late = false;
    int rv = COMMIT_PENDING;

    pthread_mutex_lock(&c->mutex);
    while (!c->done && !late) {
        late = pthread_cond_timedwait(&c->cond, &c->mutex, &until) == ETIMEDOUT;
    }
    if (c->done) {
        rv = c->err.code;
        if (e != NULL) {
            *e = c->err;
        }
    } else {
        c->abandoned = then_abandon;
    }
    pthread_mutex_unlock(&c->mutex);
    return rv;
}

int commit_wait(struct commit *c, uint32_t timeout_ms, struct err *e)
{
    return wait_for(c, timeout_ms, true, e);
}

int commit_wait_agreed(struct commit *c, struct store *s, uint32_t timeout_ms, struct err *e)
{
    uint64_t since = clock_ms(), now = since, until = since + timeout_ms;
    int rv;

    do {
        rv = wait_for(c, (uint32_t)(until - now), false, e);
        until = store_patience(s, since, timeout_ms);
        now = clock_ms();
    } while (rv == COMMIT_PENDING && until > now);
    return rv == COMMIT_PENDING ? wait_for(c, 0, true, e) : rv;
}
