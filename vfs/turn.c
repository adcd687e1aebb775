#include "vfs/turn.h"

#include <errno.h>
#include <stddef.h>

#include "vfs/clock.h"
#include "vfs/err.h"

void turn_init(struct turn *t, uint32_t timeout_ms, void (*notify)(void *ctx), void *ctx)
{
    *t = (struct turn){.timeout_ms = timeout_ms, .notify = notify, .ctx = ctx};
    pthread_mutex_init(&t->mutex, NULL);
}

void turn_deinit(struct turn *t)
{
    pthread_mutex_destroy(&t->mutex);
}

void ticket_init(struct ticket *k)
{
    *k = (struct ticket){.state = TICKET_IDLE};
    cond_init_monotonic(&k->cond);
}

void ticket_deinit(struct ticket *k)
{
    pthread_cond_destroy(&k->cond);
}

static void enqueue(struct turn *t, struct ticket *k)
{
    k->next = NULL;
    k->prev = t->last;
    if (t->last != NULL) {
        t->last->next = k;
    } else {
        t->first = k;
    }
    t->last = k;
    k->state = TICKET_WAITING;
    k->asked_us = clock_us();
}

static void dequeue(struct turn *t, struct ticket *k)
{
    if (k->prev != NULL) {
        k->prev->next = k->next;
    } else {
        t->first = k->next;
    }
    if (k->next != NULL) {
        k->next->prev = k->prev;
    } else {
        t->last = k->prev;
    }
    k->next = k->prev = NULL;
}

static void grant_next(struct turn *t)
{
    struct ticket *k = t->first;

    if (k == NULL || t->holder != NULL || !t->open || t->closing || t->refusing != DUST_OK) {
        return;
    }
    dequeue(t, k);
    k->state = TICKET_GRANTED;
    k->granted_ms = clock_ms();
    t->holder = k;
    t->wait_number++;
    if (t->waits != NULL) {
        times_add(t->waits, clock_us() - k->asked_us);
    }
    if (k->told != NULL) {
        k->told(k, DUST_OK);
    } else {
        pthread_cond_signal(&k->cond);
    }
}

/* Nobody who waits gets it: wake them, so that they find out why; or tell them. */
static void turn_away(struct turn *t, int code)
{
    for (struct ticket *k = t->first, *next; k != NULL; k = next) {
        next = k->next;
        if (k->told != NULL) {
            dequeue(t, k);
            k->state = TICKET_IDLE;
            k->told(k, code);
        } else {
            pthread_cond_signal(&k->cond);
        }
    }
}

static bool expired(const struct turn *t)
{
    return t->holder != NULL && clock_ms() - t->holder->granted_ms >= t->holder->lease_ms;
}

static void take_away(struct turn *t)
{
    t->holder->state = TICKET_LOST;
    t->holder = NULL;
    grant_next(t);
}

static int take(struct turn *t, struct ticket *k, uint32_t timeout_ms, uint32_t lease_ms, bool stay)
{
    uint64_t until = clock_ms() + timeout_ms, gate_until;
    bool tell = false;
    int rv = DUST_OK;

    pthread_mutex_lock(&t->mutex);
    if (k->state == TICKET_GRANTED) {
        goto done;
    }
    k->lease_ms = lease_ms != 0 ? lease_ms : t->timeout_ms;
    if (k->state != TICKET_WAITING) {
        enqueue(t, k);
    }
    gate_until = k->asked_us / 1000 + TURN_GATE_GRACE_MS; /* from when it queued up, in whichever call */
    grant_next(t);
    tell = k->state != TICKET_GRANTED && !t->open;
    if (tell) {
        pthread_mutex_unlock(&t->mutex);
        t->notify(t->ctx);
        pthread_mutex_lock(&t->mutex);
    }
    while (k->state == TICKET_WAITING) {
        uint64_t now = clock_ms(), limit = stay || t->open || until > gate_until ? until : gate_until, wake = limit;
        struct timespec when;

        if (t->closing) {
            rv = DUST_CLOSED;
        } else if (t->refusing != DUST_OK) {
            rv = t->refusing;
        } else if (now >= limit) {
            rv = DUST_BUSY;
        }
        if (rv == DUST_BUSY && stay) {
            break;
        }
        if (rv != DUST_OK) {
            dequeue(t, k);
            k->state = TICKET_IDLE;
            break;
        }
        if (t->holder != NULL) {
            uint64_t lost = t->holder->granted_ms + t->holder->lease_ms;

            if (now >= lost) {
                take_away(t);
                continue;
            }
            wake = lost < wake ? lost : wake;
        }
        when = deadline_in_ms((uint32_t)(wake - now));
        pthread_cond_timedwait(&k->cond, &t->mutex, &when);
    }
    tell = rv != DUST_OK && t->first == NULL && t->holder == NULL;
done:
    pthread_mutex_unlock(&t->mutex);
    if (tell && rv != DUST_OK) {
        t->notify(t->ctx);
    }
    return rv;
}

int turn_take(struct turn *t, struct ticket *k, uint32_t timeout_ms, uint32_t lease_ms)
{
    return take(t, k, timeout_ms, lease_ms, false);
}

int turn_take_place(struct turn *t, struct ticket *k, uint32_t timeout_ms, uint32_t lease_ms)
{
    return take(t, k, timeout_ms, lease_ms, true);
}

void turn_ask(struct turn *t, struct ticket *k, uint32_t lease_ms)
{
    bool tell;

    pthread_mutex_lock(&t->mutex);
    if (k->state == TICKET_GRANTED) {
        k->told(k, DUST_OK);
        tell = false;
    } else if (t->closing || t->refusing != DUST_OK) {
        k->told(k, t->closing ? DUST_CLOSED : t->refusing);
        tell = false;
    } else {
        k->lease_ms = lease_ms != 0 ? lease_ms : t->timeout_ms;
        if (k->state != TICKET_WAITING) {
            enqueue(t, k);
        }
        grant_next(t);
        tell = k->state != TICKET_GRANTED && !t->open;
    }
    pthread_mutex_unlock(&t->mutex);
    if (tell) {
        t->notify(t->ctx);
    }
}

/* Under the mutex: give up the place in the queue (if `place`) and the turn. True: the owner of the gate has to know. */
static bool give_up(struct turn *t, struct ticket *k, bool place)
{
    bool had = t->holder == k;

    if (place && k->state == TICKET_WAITING) {
        dequeue(t, k);
        k->state = TICKET_IDLE;
        had = true;
    }
    if (t->holder == k) {
        t->holder = NULL;
        grant_next(t);
    }
    if (k->state != TICKET_WAITING) {
        k->state = TICKET_IDLE;
    }
    return had && t->holder == NULL && !t->open;
}

static void give_up_and_tell(struct turn *t, struct ticket *k, bool place)
{
    bool tell;

    pthread_mutex_lock(&t->mutex);
    tell = give_up(t, k, place);
    pthread_mutex_unlock(&t->mutex);
    if (tell) {
        t->notify(t->ctx);
    }
}

void turn_drop(struct turn *t, struct ticket *k)
{
    give_up_and_tell(t, k, true);
}

void turn_pass(struct turn *t, struct ticket *k)
{
    give_up_and_tell(t, k, false);
}

bool turn_held(struct turn *t, struct ticket *k)
{
    bool held;

    pthread_mutex_lock(&t->mutex);
    held = t->holder == k;
    pthread_mutex_unlock(&t->mutex);
    return held;
}

bool turn_keep(struct turn *t, struct ticket *k)
{
    bool held;

    pthread_mutex_lock(&t->mutex);
    held = t->holder == k;
    if (held) {
        k->lease_ms = t->timeout_ms;
        k->granted_ms = clock_ms();
    }
    pthread_mutex_unlock(&t->mutex);
    return held;
}

void turn_open(struct turn *t)
{
    pthread_mutex_lock(&t->mutex);
    t->open = true;
    grant_next(t);
    for (struct ticket *k = t->first; k != NULL; k = k->next) {
        pthread_cond_signal(&k->cond); /* from now on their own time-outs count */
    }
    pthread_mutex_unlock(&t->mutex);
}

void turn_shut(struct turn *t)
{
    pthread_mutex_lock(&t->mutex);
    t->open = false;
    pthread_mutex_unlock(&t->mutex);
}

bool turn_is_open(struct turn *t)
{
    bool open;

    pthread_mutex_lock(&t->mutex);
    open = t->open;
    pthread_mutex_unlock(&t->mutex);
    return open;
}

void turn_state(struct turn *t, unsigned *waiting, bool *held)
{
    unsigned n = 0;

    pthread_mutex_lock(&t->mutex);
    for (struct ticket *k = t->first; k != NULL; k = k->next) {
        n++;
    }
    *waiting = n;
    *held = t->holder != NULL;
    pthread_mutex_unlock(&t->mutex);
}

void turn_expire(struct turn *t, bool contested)
{
    bool tell = false;

    pthread_mutex_lock(&t->mutex);
    if (expired(t) && (contested || t->first != NULL)) {
        take_away(t);
        tell = t->holder == NULL;
    }
    pthread_mutex_unlock(&t->mutex);
    if (tell) {
        t->notify(t->ctx);
    }
}

void turn_refuse(struct turn *t, int code)
{
    pthread_mutex_lock(&t->mutex);
    t->refusing = code;
    if (code != DUST_OK) {
        turn_away(t, code);
    }
    pthread_mutex_unlock(&t->mutex);
}

void turn_close(struct turn *t)
{
    pthread_mutex_lock(&t->mutex);
    t->closing = true;
    turn_away(t, DUST_CLOSED);
    pthread_mutex_unlock(&t->mutex);
}

void turn_reopen(struct turn *t)
{
    pthread_mutex_lock(&t->mutex);
    t->closing = t->open = false;
    t->refusing = DUST_OK;
    pthread_mutex_unlock(&t->mutex);
}
