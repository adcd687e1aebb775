#include "vfs/attachment.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/clock.h"

#define HELLO_MS 2000u
#define TRY_MS 20u          /* between two tries to find a host */
#define TRY_SOON_MS 100u    /* after a takeover that failed, for the first TRIES_SOON times */
#define TRIES_SOON 10u
#define TRY_AGAIN_MS 1000u  /* … and then */
#define OLD_READERS_MS 10000u

struct attachment {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    enum { ATTACHED, LOST, TAKING, HOST, OVER } state;
    uint32_t generation, owner;
    struct link primary;
    struct takeover takeover;
    _Atomic bool claims[STORE_MAX_SLOTS]; /* see attachment_claims */
    struct store *old; /* after a takeover: what others may still read in */
    struct err why;    /* the last takeover that failed */
    pthread_t thread;
    bool closing;
    int wake[2]; /* a pipe: written to, the thread looks */
};

/* ---- connecting ---- */

int attachment_hello(struct link *l, uint32_t owner, uint32_t owner_before, bool holds, struct welcome *w,
    uint64_t until_ms, struct err *e)
{
    uint8_t body[13];
    struct pack k = {.p = body, .room = sizeof body};
    struct link_msg m;
    struct unpack u;
    int rv;

    l->number++;
    pack_uint(&k, LINK_VERSION, 4);
    pack_uint(&k, owner, 4);
    pack_uint(&k, owner_before, 4);
    pack_uint(&k, holds, 1);
    rv = link_send(l, LINK_HELLO, body, k.n, NULL, 0, until_ms);
    if (rv == DUST_OK) {
        rv = link_recv(l, &m, until_ms);
    }
    if (rv != DUST_OK) {
        return err_set(e, rv, "the process that hosts this member does not answer");
    }
    if (m.type == LINK_REPLY) {
        return link_get_reply(&m, e) && e->code != DUST_OK ? e->code : err_set(e, DUST_CLOSED, "no answer");
    }
    u = (struct unpack){.p = m.body, .left = m.len};
    w->owner = (uint32_t)unpack_uint(&u, 4);
    w->mark = unpack_uint(&u, 8);
    w->origin = unpack_uint(&u, 8);
    w->page_size = (uint32_t)unpack_uint(&u, 4);
    if (m.type != LINK_WELCOME || u.bad || w->owner == 0 || w->owner == UINT32_MAX) {
        return err_set(e, DUST_VERSION, "the process that hosts this member does not speak as this dust does");
    }
    return DUST_OK;
}

/* One try to find a host and to be welcomed. On success the link and a store are the caller's. */
static int connect_once(struct database *db, uint32_t owner_before, bool holds, struct link *l, struct store **store,
    struct welcome *w, struct err *e)
{
    char path[4096 + 16];
    int rv = link_connect(&l->fd, db->dir, e);

    if (rv != DUST_OK) {
        return rv;
    }
    rv = attachment_hello(l, 0, owner_before, holds, w, clock_ms() + HELLO_MS, e);
    if (rv == DUST_OK) {
        snprintf(path, sizeof path, "%s/pages", db->dir);
        rv = store_attach(store, path, w->owner, e);
        if (rv == DUST_OK && store_page_size(*store) != w->page_size) {
            store_close(*store);
            rv = err_set(e, DUST_AGAIN, "%s is another host's", path);
        }
    }
    if (rv != DUST_OK) {
        link_close(l);
    }
    return rv;
}

static void become_attached(struct database *db, struct attachment *a, struct link *l, struct store *store,
    const struct welcome *w)
{
    struct store *before;

    pthread_mutex_lock(&a->mutex);
    before = db->bound;
    a->primary = *l;
    a->owner = w->owner;
    db->bound = store;
    db->page_size = w->page_size;
    db->origin = w->origin;
    a->state = ATTACHED;
    a->generation++;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    store_close(before);
}

/* ---- the thread ---- */

static bool set_state(struct attachment *a, int state)
{
    bool closing;

    pthread_mutex_lock(&a->mutex);
    a->state = state;
    pthread_cond_broadcast(&a->changed);
    closing = a->closing;
    pthread_mutex_unlock(&a->mutex);
    return !closing;
}

/* Wait for the end of the connection; nothing else comes on it. False: closing. */
static bool wait_for_end(struct attachment *a)
{
    struct pollfd p[2] = {{.fd = a->primary.fd, .events = POLLIN}, {.fd = a->wake[0], .events = POLLIN}};

    while (poll(p, 2, -1) < 0 && errno == EINTR) {
    }
    return p[1].revents == 0;
}

static bool pause_ms(struct attachment *a, uint32_t ms)
{
    struct pollfd p = {.fd = a->wake[0], .events = POLLIN};

    return poll(&p, 1, (int)ms) <= 0;
}

static bool still_a_member(const struct database *db)
{
    char path[4096 + 16];
    struct stat st;

    snprintf(path, sizeof path, "%s/member", db->dir);
    return stat(path, &st) == 0 || errno != ENOENT;
}

/* Readers in the old store may go on for a while: app.db is not written meanwhile. Then they are told. */
static void see_old_readers_off(struct database *db, struct attachment *a)
{
    uint64_t until = clock_ms() + OLD_READERS_MS, oldest;
    bool going_on = true;

    while (going_on && clock_ms() < until && store_held_by(a->old, 0, &oldest) != 0) {
        going_on = pause_ms(a, TRY_MS);
    }
    store_set_state(a->old, STORE_CLOSED);
    database_hold_for_old(db, false);
}

/* Did the host that has ended grant the turn to a connection of this process? */
static bool has_turn(struct database *db, struct attachment *a)
{
    uint32_t slot, owner = store_turn_of(db->bound, &slot); /* only this thread changes what is bound */

    return owner == a->owner && slot < STORE_MAX_SLOTS && atomic_load(&a->claims[slot]);
}

/* We have the lock. */
static bool take_over(struct database *db, struct attachment *a)
{
    struct store *old;
    struct head_info head, agreed;
    uint32_t slot, turn;
    struct err e;
    int rv;

    set_state(a, TAKING);
    pthread_mutex_lock(&a->mutex);
    old = store_ref(db->bound);
    pthread_mutex_unlock(&a->mutex);
    store_set_state(old, STORE_SUPERSEDED);
    database_hold_for_old(db, true);
    turn = store_turn_of(old, &slot);
    turn = turn == a->owner && !has_turn(db, a) ? 0 : turn;
    store_head(old, &head);
    store_agreed(old, &agreed);
    database_reserve_turn(db, turn, head.seq != agreed.seq ? &head.id : &(struct vid){{0}});
    rv = a->takeover.take_over(a->takeover.ctx, db, &e);
    if (rv != DUST_OK) {
        database_hold_for_old(db, false);
        database_unreserve_turn(db, turn);
        database_unreserve_turn(db, RESERVED_FOR_SENT);
        store_close(old);
        hostlock_drop(&db->lock);
        pthread_mutex_lock(&a->mutex);
        a->why = e;
        a->state = LOST;
        pthread_mutex_unlock(&a->mutex);
        return false;
    }
    pthread_mutex_lock(&a->mutex);
    store_close(db->bound);
    db->bound = store_ref(db->store);
    a->old = old;
    a->state = HOST;
    a->generation++;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->mutex);
    see_old_readers_off(db, a);
    return true;
}

/* Takeovers have failed, so many. The system may take a moment to free the address of a process that was killed: nothing
 * is told until it has failed for about a second. Returns how long to wait before the next. */
static uint32_t after_failure(struct database *db, const struct attachment *a, unsigned failures)
{
    if (failures == TRIES_SOON) {
        report(&db->report, a->why.code, "this process could not take over from the one that hosted the member: %.500s",
            a->why.text);
    }
    return failures < TRIES_SOON ? TRY_SOON_MS : TRY_AGAIN_MS;
}

static void *watch(void *arg)
{
    struct database *db = arg;
    struct attachment *a = db->attachment;

    while (wait_for_end(a)) {
        unsigned failures = 0;
        bool attached = false;

        link_close(&a->primary);
        if (!set_state(a, LOST)) {
            break;
        }
        while (!attached) {
            struct link l = {.fd = -1};
            struct welcome w;
            struct store *store;
            uint32_t wait = TRY_MS;

            if (!still_a_member(db)) {
                set_state(a, OVER);
                return NULL;
            }
            if (hostlock_take(&db->lock, db->dir, NULL) == DUST_OK) {
                if (take_over(db, a)) {
                    return NULL;
                }
                wait = after_failure(db, a, ++failures);
            } else if (connect_once(db, a->owner, has_turn(db, a), &l, &store, &w, NULL) == DUST_OK) {
                become_attached(db, a, &l, store, &w);
                attached = true;
                wait = 0;
            }
            if (wait != 0 && !pause_ms(a, wait)) {
                return NULL;
            }
        }
    }
    return NULL;
}

/* ---- life ---- */

int attachment_open(struct database *db, const struct takeover *t, uint32_t timeout_ms, struct err *e)
{
    struct attachment *a = calloc(1, sizeof *a);
    uint64_t until = clock_ms() + timeout_ms;
    struct link l = {.fd = -1};
    struct welcome w;
    struct store *store;
    int rv;

    if (a == NULL || pipe2(a->wake, O_CLOEXEC) != 0) {
        free(a);
        return err_set(e, DUST_NOMEM, "out of memory, or of files");
    }
    a->takeover = *t;
    a->primary.fd = -1;
    pthread_mutex_init(&a->mutex, NULL);
    cond_init_monotonic(&a->changed);
    for (;;) {
        rv = hostlock_take(&db->lock, db->dir, e);
        if (rv == DUST_OK) {
            rv = err_set(e, DUST_AGAIN, "this process is the host");
            break;
        }
        if (rv == DUST_BUSY) {
            struct err why;

            rv = connect_once(db, 0, false, &l, &store, &w, &why);
            if (rv != DUST_OK && rv != DUST_NOTFOUND && rv != DUST_AGAIN && rv != DUST_CLOSED && rv != DUST_BUSY) {
                *e = why;
            } else if (rv != DUST_OK && clock_ms() >= until) {
                char name[128];

                rv = err_set(e, DUST_BUSY, "%s has this member of the cluster open, and does not answer (%.300s)",
                    process_name(hostlock_holder(&db->lock), name, sizeof name), why.text);
            } else if (rv != DUST_OK) {
                pause_ms(a, TRY_MS);
                continue;
            }
        }
        break;
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    db->attachment = a;
    become_attached(db, a, &l, store, &w);
    rv = pthread_create(&a->thread, NULL, watch, db);
    if (rv == 0) {
        return DUST_OK;
    }
    rv = err_sys(e, rv, "cannot make a thread");
    db->attachment = NULL;
    store_close(db->bound);
    db->bound = NULL;
    link_close(&a->primary);
fail:
    close(a->wake[0]);
    close(a->wake[1]);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->mutex);
    free(a);
    return rv;
}

/* End the thread. */
static void stop(struct attachment *a)
{
    if (a->closing) {
        return;
    }
    pthread_mutex_lock(&a->mutex);
    a->closing = true;
    pthread_mutex_unlock(&a->mutex);
    while (write(a->wake[1], "", 1) < 0 && errno == EINTR) {
    }
    pthread_join(a->thread, NULL);
}

void attachment_stop(struct database *db)
{
    if (db->attachment != NULL) {
        stop(db->attachment); /* on its way out it has closed the old store, if there is one */
    }
}

void attachment_close(struct attachment *a)
{
    if (a == NULL) {
        return;
    }
    stop(a);
    link_close(&a->primary);
    store_close(a->old);
    close(a->wake[0]);
    close(a->wake[1]);
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->mutex);
    free(a);
}

/* ---- for SQL threads ---- */

struct store *database_bound(struct database *db)
{
    struct attachment *a = db->attachment;
    struct store *s;

    if (a == NULL) {
        return store_ref(db->bound);
    }
    pthread_mutex_lock(&a->mutex);
    s = store_ref(db->bound);
    pthread_mutex_unlock(&a->mutex);
    return s;
}

int attachment_wait(struct database *db, uint64_t until_ms, uint32_t *generation, uint32_t *owner, struct err *e)
{
    struct attachment *a = db->attachment;
    int rv;

    *generation = *owner = 0;
    if (a == NULL) {
        return DUST_EXISTS;
    }
    pthread_mutex_lock(&a->mutex);
    while (a->state == LOST || a->state == TAKING) {
        uint64_t now = clock_ms();
        struct timespec when;

        if (now >= until_ms) {
            break;
        }
        when = deadline_in_ms((uint32_t)(until_ms - now < 60000 ? until_ms - now : 60000));
        pthread_cond_timedwait(&a->changed, &a->mutex, &when);
    }
    *generation = a->generation;
    *owner = a->owner;
    switch (a->state) {
    case ATTACHED:
        rv = DUST_OK;
        break;
    case HOST:
        rv = DUST_EXISTS;
        break;
    case OVER:
        rv = err_set(e, DUST_CLOSED, "this database has left its cluster: close the connection and open it again");
        break;
    default:
        rv = err_set(e, DUST_BUSY,
            "the process that hosted this member of the cluster has ended, and no other one has taken over yet%s%.300s",
            a->why.code != DUST_OK ? ": " : "", a->why.code != DUST_OK ? a->why.text : "");
    }
    pthread_mutex_unlock(&a->mutex);
    return rv;
}

void attachment_claims(struct database *db, uint32_t slot, bool claims)
{
    if (slot < STORE_MAX_SLOTS) {
        atomic_store(&db->attachment->claims[slot], claims);
    }
}

uint32_t attachment_owner_before(struct database *db)
{
    return db->attachment != NULL ? db->attachment->owner : 0; /* not changed any more */
}

void attachment_lost(struct database *db, uint32_t generation)
{
    struct attachment *a = db->attachment;
    struct timespec when = deadline_in_ms(TRY_MS);

    pthread_mutex_lock(&a->mutex);
    if (a->state == ATTACHED && a->generation == generation) {
        pthread_cond_timedwait(&a->changed, &a->mutex, &when);
    }
    pthread_mutex_unlock(&a->mutex);
}
