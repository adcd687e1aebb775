#include "vfs/service.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vfs/attachment.h"
#include "vfs/clock.h"
#include "vfs/service_impl.h"

#define LISTEN_AGAIN_MS 1000u
#define READ_SIZE 65536u
#define RESERVE_MS 1000u /* for whoever had the turn to be attached again */
#define OWN_MS 100u      /* between two looks whether this process still keeps it */
#define OUT_MAX ((size_t)64 << 20) /* bytes that a guest may leave unread */

void service_wake(struct service *s)
{
    uint64_t one = 1;

    if (write(s->wake_fd, &one, sizeof one) < 0) {
        /* it is full of wake-ups already */
    }
}

static void store_changed(void *ctx)
{
    service_wake(ctx);
}

/* ---- guests ---- */

struct guest *guest_ref(struct guest *g)
{
    atomic_fetch_add(&g->refs, 1);
    return g;
}

void guest_unref(struct guest *g)
{
    if (atomic_fetch_sub(&g->refs, 1) == 1) {
        pthread_mutex_destroy(&g->mutex);
        ticket_deinit(&g->ticket);
        free(g->out);
        free(g->in);
        free(g);
    }
}

/* Under its mutex: as much of `out` as the socket takes. */
static void flush(struct guest *g)
{
    size_t done = 0;

    while (done < g->out_n && !g->closed) {
        ssize_t n = send(g->fd, g->out + done, g->out_n - done, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            g->closed = true;
            done = g->out_n;
            shutdown(g->fd, SHUT_RDWR); /* the thread reads the end of it, and ends the guest */
        }
    }
    if (done != 0) {
        memmove(g->out, g->out + done, g->out_n - done);
        g->out_n -= done;
    }
}

/* Under its mutex. */
static bool append(struct guest *g, const void *p, size_t n)
{
    if (n > g->out_room - g->out_n) {
        size_t room = g->out_n + n + 4096;
        uint8_t *out = room <= OUT_MAX ? realloc(g->out, room) : NULL;

        if (out == NULL) {
            return false;
        }
        g->out = out;
        g->out_room = room;
    }
    memcpy(g->out + g->out_n, p, n);
    g->out_n += n;
    return true;
}

bool guest_send(struct guest *g, uint8_t type, uint32_t number, const void *body, size_t n)
{
    uint8_t head[LINK_HEAD];
    bool ok, wake = false;

    link_head(head, type, number, (uint32_t)n);
    pthread_mutex_lock(&g->mutex);
    ok = !g->closed && append(g, head, sizeof head) && (n == 0 || append(g, body, n));
    if (ok) {
        if (!g->blocked) {
            flush(g);
            wake = g->blocked = g->out_n != 0;
        }
    } else if (!g->closed) {
        g->closed = true; /* half a message is none */
        shutdown(g->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&g->mutex);
    if (wake) {
        service_wake(g->s);
    }
    return ok;
}

bool guest_reply(struct guest *g, uint32_t number, int code, const char *text)
{
    uint8_t body[4 + ERR_TEXT_MAX];
    struct pack k = {.p = body, .room = sizeof body};

    text = text != NULL ? text : code != DUST_OK ? err_text(code) : "";
    pack_uint(&k, (uint64_t)code, 4);
    pack_bytes(&k, text, strnlen(text, ERR_TEXT_MAX));
    return guest_send(g, LINK_REPLY, number, body, k.n);
}

/* EPOLL_CTL_ADD may fail (memory, or too many watches); the others cannot, for what is watched. */
static bool watch_fd(struct service *s, int op, int fd, uint32_t events, void *what)
{
    struct epoll_event ev = {.events = events, .data.ptr = what};

    return epoll_ctl(s->epoll_fd, op, fd, &ev) == 0;
}

/* What epoll watches is the open file, which a child that has just been forked still holds: closing it here alone would
 * not end the watch, and its events would be those of a guest that is no more (epoll(7), questions and answers). */
static void close_watched(struct service *s, int fd)
{
    watch_fd(s, EPOLL_CTL_DEL, fd, 0, NULL);
    close(fd);
}

static void accept_one(struct service *s, int fd)
{
    struct guest *g = calloc(1, sizeof *g);
    unsigned uid = 0;

    if (g == NULL) {
        close(fd);
        return;
    }
    g->s = s;
    g->fd = fd;
    atomic_init(&g->refs, 1);
    pthread_mutex_init(&g->mutex, NULL);
    ticket_init(&g->ticket);
    if (!link_peer(fd, &g->pid, &uid) || (uid != geteuid() && uid != 0) || !watch_fd(s, EPOLL_CTL_ADD, fd, EPOLLIN, g)) {
        close(fd);
        guest_unref(g);
        return;
    }
    pthread_mutex_lock(&s->mutex);
    g->next = s->first;
    s->first = g;
    pthread_mutex_unlock(&s->mutex);
}

static void remove_guest(struct service *s, struct guest *g)
{
    pthread_mutex_lock(&s->mutex);
    for (struct guest **p = &s->first; *p != NULL; p = &(*p)->next) {
        if (*p == g) {
            *p = g->next;
            break;
        }
    }
    pthread_mutex_unlock(&s->mutex);
    pthread_mutex_lock(&g->mutex);
    g->closed = true;
    pthread_mutex_unlock(&g->mutex);
    guest_end(g);
    close_watched(s, g->fd);
    guest_unref(g);
}

/* With the first connection of a process the others go, and its snapshots. */
static void end_guest(struct service *s, struct guest *g)
{
    uint32_t owner = g->owner, before = g->owner_before;
    bool primary = g->primary;

    remove_guest(s, g);
    if (!primary) {
        return;
    }
    for (struct guest *h = s->first, *next; h != NULL; h = next) {
        next = h->next;
        if (h->owner == owner) {
            remove_guest(s, h);
        }
    }
    store_free_slots(s->db->store, owner);
    database_unreserve_turn(s->db, before);
}

/* ---- reading ---- */

static bool take_all(struct guest *g)
{
    size_t used = 0;
    bool ok = true;

    while (ok) {
        struct link_msg m;
        long n = link_parse(g->in + used, g->have - used, &m);

        if (n == 0) {
            break;
        }
        ok = n > 0 && guest_take(g, &m);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used != 0) {
        memmove(g->in, g->in + used, g->have - used);
        g->have -= used;
    }
    return ok;
}

/* False: the connection has ended, or what it says is nonsense. */
static bool read_guest(struct guest *g)
{
    for (;;) {
        ssize_t n;

        if (g->room - g->have < READ_SIZE) {
            size_t room = g->have + 2 * READ_SIZE;
            uint8_t *p = realloc(g->in, room);

            if (p == NULL) {
                return false;
            }
            g->in = p;
            g->room = room;
        }
        n = recv(g->fd, g->in + g->have, g->room - g->have, MSG_DONTWAIT);
        if (n > 0) {
            g->have += (size_t)n;
            if (!take_all(g)) {
                return false;
            }
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return false;
        } else if (errno == EAGAIN) {
            return true;
        }
    }
}

/* ---- the thread ---- */

static void listen_now(struct service *s, uint64_t now)
{
    struct err e = {.code = DUST_OK};

    if (s->listen_fd < 0) {
        link_listen(&s->listen_fd, s->db->dir, &e);
    }
    if (e.code == DUST_OK && !watch_fd(s, EPOLL_CTL_ADD, s->listen_fd, EPOLLIN, s)) {
        err_sys(&e, errno, "cannot wait for other processes");
    }
    if (e.code == DUST_OK) {
        s->listen_again_ms = UINT64_MAX;
        return;
    }
    if (s->listen_again_ms == 0) {
        report(&s->db->report, e.code, "other processes cannot attach to this member for now: %.500s", e.text);
    }
    s->listen_again_ms = now + LISTEN_AGAIN_MS;
}

static void accept_all(struct service *s)
{
    int fd;

    while ((fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        accept_one(s, fd);
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) { /* it would be told of it again and again */
        watch_fd(s, EPOLL_CTL_DEL, s->listen_fd, 0, s);
        s->listen_again_ms = clock_ms() + LISTEN_AGAIN_MS;
    }
}

/* The turn is kept for those who had sent transactions to the host before: until all of them are here, or nobody is about
 * to send any more. */
static uint64_t look_at_sent(struct service *s, uint64_t now, bool *watch)
{
    bool busy = atomic_load(&s->db->taking_in) != 0;

    store_watching(s->db->store, true); /* before looking */
    for (const struct guest *g = s->first; g != NULL; g = g->next) {
        busy = busy || g->intake.under_way;
    }
    if (store_seq_of(s->db->store, &s->db->awaited) != 0 || (!busy && now >= s->started_ms + RESERVE_MS)) {
        database_unreserve_turn(s->db, RESERVED_FOR_SENT);
        return UINT64_MAX;
    }
    *watch = true;
    return now < s->started_ms + RESERVE_MS ? s->started_ms + RESERVE_MS : now + RESERVE_MS;
}

/* The process that the turn is kept for may have ended together with the host before. Returns when to look again. */
static uint64_t look_at_reserved(struct service *s, uint64_t now, bool *watch)
{
    uint32_t owner = atomic_load(&s->db->reserved_for);
    const struct guest *g = s->first;

    if (owner == RESERVED_FOR_SENT) {
        return look_at_sent(s, now, watch);
    }
    while (g != NULL && (!g->primary || g->owner_before != owner)) {
        g = g->next;
    }
    if (owner == 0 || g != NULL) {
        return UINT64_MAX;
    }
    if (owner == attachment_owner_before(s->db)) {
        return now + OWN_MS; /* this process gives it up by itself, and tells nobody */
    }
    if (now < s->started_ms + RESERVE_MS) {
        return s->started_ms + RESERVE_MS;
    }
    database_unreserve_turn(s->db, owner);
    return now; /* it may be kept for others now */
}

/* Whatever waits for time or versions. Returns when to look again. */
static uint64_t look(struct service *s, uint64_t now)
{
    bool watch = false;
    uint64_t next = s->listen_again_ms, reserved = look_at_reserved(s, now, &watch);

    next = reserved < next ? reserved : next;
    for (struct guest *g = s->first; g != NULL; g = g->next) {
        uint64_t one = guest_look(g, now, &watch);

        next = one < next ? one : next;
    }
    store_watching(s->db->store, watch);
    return next;
}

static void write_blocked(struct service *s)
{
    for (struct guest *g = s->first; g != NULL; g = g->next) {
        pthread_mutex_lock(&g->mutex);
        if (g->blocked) {
            flush(g);
            g->blocked = g->out_n != 0;
            watch_fd(s, EPOLL_CTL_MOD, g->fd, EPOLLIN | (g->blocked ? EPOLLOUT : 0u), g);
        }
        pthread_mutex_unlock(&g->mutex);
    }
}

static void handle(struct service *s, const struct epoll_event *ev)
{
    struct guest *g = ev->data.ptr;
    uint64_t n;

    if (ev->data.ptr == s) {
        accept_all(s);
    } else if (ev->data.ptr == &s->wake_fd) {
        if (read(s->wake_fd, &n, sizeof n) < 0) {
            /* nothing to be read: somebody was faster */
        }
    } else if ((ev->events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && !read_guest(g)) {
        end_guest(s, g);
    }
}

static void *serve(void *arg)
{
    struct service *s = arg;

    while (!atomic_load(&s->closing)) {
        uint64_t now = clock_ms(), next, wait;
        struct epoll_event ev;
        int n;

        if (now >= s->listen_again_ms) {
            listen_now(s, now);
        }
        next = look(s, now);
        write_blocked(s);
        wait = next == UINT64_MAX ? 60000 : next > now ? next - now : 0;
        /* One at a time: ending a guest may end others. */
        n = epoll_wait(s->epoll_fd, &ev, 1, (int)(wait < 60000 ? wait : 60000));
        if (n == 1) {
            handle(s, &ev);
        }
    }
    return NULL;
}

/* ---- life ---- */

int service_start(struct service **out, struct database *db, const struct service_calls *calls, struct err *e)
{
    struct service *s = calloc(1, sizeof *s);
    int rv = DUST_OK;

    if (s == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    s->db = db;
    s->calls = *calls;
    s->started_ms = clock_ms();
    s->listen_fd = -1;
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    randombytes_buf(&s->mark, sizeof s->mark);
    if (s->epoll_fd < 0 || s->wake_fd < 0 || !watch_fd(s, EPOLL_CTL_ADD, s->wake_fd, EPOLLIN, &s->wake_fd)) {
        rv = err_sys(e, errno, "cannot serve other processes");
    } else {
        rv = store_slot_take(db->store, &s->slot, e);
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    pthread_mutex_init(&s->mutex, NULL);
    crew_init(&s->crew);
    store_watch(db->store, store_changed, s);
    rv = pthread_create(&s->thread, NULL, serve, s);
    if (rv != 0) {
        store_watch(db->store, NULL, NULL);
        crew_close(&s->crew);
        store_slot_give(db->store, s->slot);
        rv = err_sys(e, rv, "cannot make a thread");
        goto fail;
    }
    *out = s;
    return DUST_OK;
fail:
    if (s->epoll_fd >= 0) {
        close(s->epoll_fd);
    }
    if (s->wake_fd >= 0) {
        close(s->wake_fd);
    }
    free(s);
    return rv;
}

void service_stop(struct service *s)
{
    if (s == NULL) {
        return;
    }
    atomic_store(&s->closing, true);
    service_wake(s);
    pthread_join(s->thread, NULL);
    store_watch(s->db->store, NULL, NULL);
    if (s->listen_fd >= 0) {
        close(s->listen_fd);
        link_unlist(s->db->dir);
    }
    for (struct guest *g = s->first; g != NULL; g = g->next) {
        pthread_mutex_lock(&g->mutex);
        g->closed = true;
        pthread_mutex_unlock(&g->mutex);
        close(g->fd);
    }
}

void service_forked(struct service *s)
{
    if (s == NULL) {
        return;
    }
    close(s->epoll_fd);
    close(s->wake_fd);
}

int service_guests(struct service *s, struct service_guest **list, unsigned *n, struct err *e)
{
    unsigned room = 0;

    *n = 0;
    pthread_mutex_lock(&s->mutex);
    for (const struct guest *g = s->first; g != NULL; g = g->next) {
        room += g->primary;
    }
    *list = calloc(room + 1, sizeof **list);
    for (const struct guest *g = s->first; g != NULL && *list != NULL; g = g->next) {
        if (g->primary) {
            (*list)[(*n)++] = (struct service_guest){.owner = g->owner, .pid = g->pid};
        }
    }
    for (struct guest *g = s->first; g != NULL && *list != NULL; g = g->next) {
        for (unsigned i = 0; i < *n; i++) {
            if ((*list)[i].owner == g->owner && !g->primary) {
                (*list)[i].connections++;
                (*list)[i].turn = (*list)[i].turn || turn_held(&s->db->turn, &g->ticket);
            }
        }
    }
    pthread_mutex_unlock(&s->mutex);
    if (*list == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    for (unsigned i = 0; i < *n; i++) {
        (*list)[i].snapshots = store_held_by(s->db->store, (*list)[i].owner, &(*list)[i].oldest);
    }
    return DUST_OK;
}
