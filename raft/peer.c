/* Peers over nanomsg.
 *
 * What nanomsg does not do, and is done here: bound its memory (finite NN_RCVMAXSIZE, our own bounded queues), notice a
 * dead connection (the watchdog: there is no keepalive, and TCP backs off after a partition), and give up old messages
 * (a peer that returns should not find a queue of stale heartbeats).
 *
 *   peer:  ready ──nn_send: EAGAIN──▶ blocked (NN_SNDFD polled, messages queue) ──writable──▶ ready
 *
 * NN_RCVFD and NN_SNDFD are level-triggered descriptors that poll as readable; they belong to nanomsg and must be
 * closed by nn_close only after the poll handles on them are. nn_term is never called: others in the process may use
 * nanomsg. In a forked child nothing of this may be touched. */
#include "raft/peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <nanomsg/nn.h>
#include <nanomsg/pipeline.h>
#include <nanomsg/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "raft/forked.h"
#include "raft/member.h"

#define ADDRESS_MAX 64
#define DRAIN_MESSAGES 256
#define DRAIN_BYTES ((size_t)8 << 20)
#define HOUSEKEEPING_MS 250
#define BIND_TRIES 16

struct message {
    struct message *next;
    void *msg;
    size_t len;
    uint64_t queued_ms;
    peer_sent_fn cb;
    void *arg;
};

struct queue {
    struct message *first, **tail;
};

struct peer {
    struct peer *next;
    struct peers *owner;
    char address[ADDRESS_MAX];
    int socket, endpoint;
    uv_poll_t poll;
    bool polling;
    struct queue queues[2]; /* by class */
    size_t bytes;
    unsigned count;
    uint64_t heard_ms;       /* 0: never */
    uint64_t sending_since_ms; /* when we began to send without having heard since; 0: we have heard */
};

struct peers {
    uv_loop_t *loop;
    struct peers_options opt;
    char bound[ADDRESS_MAX];
    int socket;
    uv_poll_t poll;
    uv_timer_t timer;
    struct peer *first;
    struct peers_stats stats;
    unsigned handles; /* that are open */
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

static bool is_v6(const char *address)
{
    return address[0] == '[';
}

static void set_int(int socket, int level, int option, int value)
{
    nn_setsockopt(socket, level, option, &value, sizeof value);
}

static void url_of(const char *address, char *out, size_t size)
{
    snprintf(out, size, "tcp://%s", address);
}

/* ---- sending ---- */

static void queue_init(struct queue *q)
{
    q->first = NULL;
    q->tail = &q->first;
}

static struct message *pop(struct peer *peer, struct queue *q)
{
    struct message *m = q->first;

    q->first = m->next;
    if (q->first == NULL) {
        q->tail = &q->first;
    }
    peer->bytes -= m->len;
    peer->count--;
    return m;
}

static void finish(struct message *m, int status)
{
    if (status != DUST_OK) {
        nn_freemsg(m->msg);
    }
    if (m->cb != NULL) {
        m->cb(m->arg, status);
    }
    free(m);
}

static void drop_queued(struct peer *peer, int status, uint64_t older_than_ms)
{
    for (int i = 0; i < 2; i++) {
        while (peer->queues[i].first != NULL && peer->queues[i].first->queued_ms <= older_than_ms) {
            peer->owner->stats.dropped++;
            finish(pop(peer, &peer->queues[i]), status);
        }
    }
}

/* True if nanomsg took it. */
static bool try_send(struct peer *peer, void *msg, size_t len)
{
    struct peers *p = peer->owner;

    if (nn_send(peer->socket, &msg, NN_MSG, NN_DONTWAIT) < 0) {
        return false;
    }
    p->stats.messages_out++;
    p->stats.bytes_out += len;
    if (peer->sending_since_ms == 0) {
        peer->sending_since_ms = uv_now(p->loop);
    }
    return true;
}

static void flush(struct peer *peer)
{
    for (int i = 0; i < 2; i++) {
        while (peer->queues[i].first != NULL) {
            struct message *m = peer->queues[i].first;

            if (!try_send(peer, m->msg, m->len)) {
                return;
            }
            finish(pop(peer, &peer->queues[i]), DUST_OK);
        }
    }
    if (peer->polling) {
        uv_poll_stop(&peer->poll);
        peer->polling = false;
    }
}

static void on_writable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    flush(poll->data);
}

static void wait_writable(struct peer *peer)
{
    if (!peer->polling) {
        peer->polling = uv_poll_start(&peer->poll, UV_READABLE, on_writable) == 0;
    }
}

static int open_push(struct peer *peer)
{
    char url[ADDRESS_MAX + 8];
    int fd;
    size_t len = sizeof fd;

    peer->socket = nn_socket(AF_SP, NN_PUSH);
    if (peer->socket < 0) {
        return DUST_NOMEM;
    }
    set_int(peer->socket, NN_TCP, NN_TCP_NODELAY, 1);
    set_int(peer->socket, NN_SOL_SOCKET, NN_RECONNECT_IVL, 20);
    set_int(peer->socket, NN_SOL_SOCKET, NN_RECONNECT_IVL_MAX, 500);
    set_int(peer->socket, NN_SOL_SOCKET, NN_SNDBUF, 1 << 20);
    if (is_v6(peer->address)) {
        set_int(peer->socket, NN_SOL_SOCKET, NN_IPV4ONLY, 0);
    }
    url_of(peer->address, url, sizeof url);
    peer->endpoint = nn_connect(peer->socket, url);
    if (peer->endpoint < 0 || nn_getsockopt(peer->socket, NN_SOL_SOCKET, NN_SNDFD, &fd, &len) < 0 ||
        uv_poll_init(peer->owner->loop, &peer->poll, fd) != 0) {
        nn_close(peer->socket);
        return DUST_IO;
    }
    peer->poll.data = peer;
    peer->owner->handles++;
    return DUST_OK;
}

static struct peer *find(struct peers *p, const char *address)
{
    struct peer *peer = p->first;

    while (peer != NULL && strcmp(peer->address, address) != 0) {
        peer = peer->next;
    }
    return peer;
}

static struct peer *find_or_open(struct peers *p, const char *address)
{
    struct peer *peer = find(p, address);

    if (peer != NULL || strlen(address) >= ADDRESS_MAX) {
        return peer;
    }
    peer = calloc(1, sizeof *peer);
    if (peer == NULL) {
        return NULL;
    }
    peer->owner = p;
    strcpy(peer->address, address);
    queue_init(&peer->queues[0]);
    queue_init(&peer->queues[1]);
    if (open_push(peer) != DUST_OK) {
        free(peer);
        return NULL;
    }
    peer->next = p->first;
    p->first = peer;
    return peer;
}

void peers_send(struct peers *p, const char *address, void *msg, size_t len, enum peer_class cls, peer_sent_fn cb,
    void *arg)
{
    struct peer *peer = p->closing ? NULL : find_or_open(p, address);
    struct message *m;

    if (peer != NULL && peer->count == 0 && try_send(peer, msg, len)) {
        if (cb != NULL) {
            cb(arg, DUST_OK);
        }
        return;
    }
    m = peer != NULL && peer->count < PEER_QUEUE_COUNT && peer->bytes + len <= PEER_QUEUE_BYTES ? malloc(sizeof *m)
                                                                                             : NULL;
    if (m == NULL) {
        p->stats.dropped++;
        nn_freemsg(msg);
        if (cb != NULL) {
            cb(arg, p->closing ? DUST_CLOSED : DUST_AGAIN);
        }
        return;
    }
    *m = (struct message){.msg = msg, .len = len, .queued_ms = uv_now(p->loop), .cb = cb, .arg = arg};
    *peer->queues[cls].tail = m;
    peer->queues[cls].tail = &m->next;
    peer->bytes += len;
    peer->count++;
    if (peer->sending_since_ms == 0) {
        peer->sending_since_ms = m->queued_ms;
    }
    wait_writable(peer);
}

void peers_heard(struct peers *p, const char *address)
{
    struct peer *peer = find_or_open(p, address);

    if (peer != NULL) {
        peer->heard_ms = uv_now(p->loop);
        peer->sending_since_ms = 0;
    }
}

int64_t peers_last_heard_ms(struct peers *p, const char *address)
{
    struct peer *peer = find(p, address);

    return peer != NULL && peer->heard_ms != 0 ? (int64_t)(uv_now(p->loop) - peer->heard_ms) : -1;
}

/* An address as the kernel has it. False: it is of another kind. */
static bool address_of(const struct sockaddr_storage *from, struct address *a)
{
    const struct sockaddr_in *v4 = (const void *)from;
    const struct sockaddr_in6 *v6 = (const void *)from;

    *a = (struct address){.is_v6 = from->ss_family == AF_INET6};
    if (a->is_v6) {
        memcpy(a->ip, &v6->sin6_addr, 16);
    } else {
        memcpy(a->ip, &v4->sin_addr, 4);
    }
    a->port = ntohs(a->is_v6 ? v6->sin6_port : v4->sin_port);
    address_set_text(a);
    return a->is_v6 || from->ss_family == AF_INET;
}

bool peers_has_socket(const struct peers *p, int fd)
{
    struct sockaddr_storage own = {0}, other = {0};
    socklen_t own_len = sizeof own, other_len = sizeof other;
    const struct peer *peer = NULL;
    struct address a;

    if (getsockname(fd, (struct sockaddr *)&own, &own_len) == 0 && address_of(&own, &a) && strcmp(a.text, p->bound) == 0) {
        return true;
    }
    if (getpeername(fd, (struct sockaddr *)&other, &other_len) == 0 && address_of(&other, &a)) {
        for (peer = p->first; peer != NULL && strcmp(peer->address, a.text) != 0; peer = peer->next) {
        }
    }
    return peer != NULL;
}

void peers_stats(const struct peers *p, struct peers_stats *out)
{
    *out = p->stats;
}

/* ---- receiving ---- */

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct peers *p = poll->data;
    size_t bytes = 0;

    (void)status;
    (void)events;
    for (int i = 0; i < DRAIN_MESSAGES && bytes < DRAIN_BYTES && !p->closing; i++) {
        void *msg;
        int n = nn_recv(p->socket, &msg, NN_MSG, NN_DONTWAIT);

        if (n < 0) {
            return;
        }
        bytes += (size_t)n;
        p->stats.messages_in++;
        p->stats.bytes_in += (uint64_t)n;
        p->opt.recv(p->opt.ctx, msg, (size_t)n);
        nn_freemsg(msg);
    }
}

/* ---- watching ---- */

static void reconnect(struct peer *peer)
{
    char url[ADDRESS_MAX + 8];

    url_of(peer->address, url, sizeof url);
    if (peer->endpoint >= 0) {
        nn_shutdown(peer->socket, peer->endpoint);
    }
    peer->endpoint = nn_connect(peer->socket, url);
    peer->owner->stats.reconnects++;
    drop_queued(peer, DUST_AGAIN, UINT64_MAX);
}

/* Also if it failed before: else nobody would be heard. */
static void listen_again(struct peers *p)
{
    if (!uv_is_active((uv_handle_t *)&p->poll)) {
        uv_poll_start(&p->poll, UV_READABLE, on_readable);
    }
}

static void on_housekeeping(uv_timer_t *timer)
{
    struct peers *p = timer->data;
    uint64_t now = uv_now(p->loop);

    listen_again(p);
    for (struct peer *peer = p->first; peer != NULL; peer = peer->next) {
        if (now > PEER_QUEUE_MS) {
            drop_queued(peer, DUST_AGAIN, now - PEER_QUEUE_MS);
        }
        /* Without an endpoint (nn_connect has failed) nothing leaves, whatever is heard from there. */
        if (peer->endpoint < 0 || (peer->sending_since_ms != 0 && now - peer->sending_since_ms >= PEER_WATCHDOG_MS)) {
            peer->sending_since_ms = now;
            reconnect(peer);
        }
    }
}

/* ---- opening ---- */

/* A port that is free at the moment. */
static int free_port(const char *host, bool v6)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6};
    socklen_t len = v6 ? sizeof a6 : sizeof a4;
    struct sockaddr *a = v6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4;
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = -1;

    if (fd < 0) {
        return -1;
    }
    if (inet_pton(v6 ? AF_INET6 : AF_INET, host, v6 ? (void *)&a6.sin6_addr : (void *)&a4.sin_addr) == 1 &&
        bind(fd, a, len) == 0 && getsockname(fd, a, &len) == 0) {
        port = ntohs(v6 ? a6.sin6_port : a4.sin_port);
    }
    close(fd);
    return port;
}

static int try_bind(struct peers *p, const char *address)
{
    char url[ADDRESS_MAX + 8];

    url_of(address, url, sizeof url);
    return nn_bind(p->socket, url) >= 0 ? 0 : nn_errno();
}

static int bind_socket(struct peers *p, const char *address, struct err *e)
{
    const char *colon = strrchr(address, ':');
    size_t host_len = colon != NULL ? (size_t)(colon - address) : 0;
    char host[ADDRESS_MAX];
    bool v6 = is_v6(address);
    int rv = EADDRINUSE;

    if (colon == NULL || host_len >= sizeof host || strlen(address) >= sizeof p->bound) {
        return err_set(e, DUST_MISUSE, "\"%s\" is not an address as host:port", address);
    }
    strcpy(p->bound, address);
    if (strcmp(colon, ":0") != 0) {
        rv = try_bind(p, address);
    }
    for (int i = 0; strcmp(colon, ":0") == 0 && rv == EADDRINUSE && i < BIND_TRIES; i++) {
        int port;

        snprintf(host, sizeof host, "%.*s", (int)(v6 ? host_len - 2 : host_len), address + (v6 ? 1 : 0));
        port = free_port(host, v6);
        if (port < 0) {
            return err_set(e, DUST_IO, "no free port was found on %s", host);
        }
        snprintf(p->bound, sizeof p->bound, v6 ? "[%s]:%d" : "%s:%d", host, port);
        rv = try_bind(p, p->bound);
    }
    if (rv == EADDRINUSE) {
        return err_set(e, DUST_EXISTS,
            "the address %s is in use by another program or member: choose another one, or end that program", address);
    }
    return rv == 0 ? DUST_OK : err_set(e, DUST_MISUSE, "cannot listen on %s: %s", address, nn_strerror(rv));
}

int peers_open(struct peers **out, uv_loop_t *loop, const struct peers_options *opt, struct err *e)
{
    struct peers *p = calloc(1, sizeof *p);
    size_t len;
    int fd, rv;

    if (p == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    p->loop = loop;
    p->opt = *opt;
    forked_nanomsg();
    p->socket = nn_socket(AF_SP, NN_PULL);
    if (p->socket < 0) {
        rv = err_set(e, DUST_NOMEM, "cannot open a nanomsg socket: %s", nn_strerror(nn_errno()));
        goto fail_socket;
    }
    set_int(p->socket, NN_SOL_SOCKET, NN_RCVMAXSIZE, PEER_MESSAGE_MAX);
    set_int(p->socket, NN_SOL_SOCKET, NN_RCVBUF, 1 << 20);
    if (is_v6(opt->bind)) {
        set_int(p->socket, NN_SOL_SOCKET, NN_IPV4ONLY, 0);
    }
    rv = bind_socket(p, opt->bind, e);
    if (rv != DUST_OK) {
        goto fail_bind;
    }
    len = sizeof fd;
    if (nn_getsockopt(p->socket, NN_SOL_SOCKET, NN_RCVFD, &fd, &len) < 0 || uv_poll_init(loop, &p->poll, fd) != 0) {
        rv = err_set(e, DUST_IO, "cannot watch a nanomsg socket");
        goto fail_bind;
    }
    uv_timer_init(loop, &p->timer);
    p->poll.data = p->timer.data = p;
    p->handles = 2;
    listen_again(p);
    uv_timer_start(&p->timer, on_housekeeping, HOUSEKEEPING_MS, HOUSEKEEPING_MS);
    *out = p;
    return DUST_OK;

fail_bind:
    nn_close(p->socket);
fail_socket:
    free(p);
    return rv;
}

const char *peers_bound_address(const struct peers *p)
{
    return p->bound;
}

/* ---- closing ---- */

static void all_closed(struct peers *p)
{
    while (p->first != NULL) {
        struct peer *peer = p->first;

        p->first = peer->next;
        nn_close(peer->socket);
        free(peer);
    }
    nn_close(p->socket);
    p->closed(p->closed_arg);
    free(p);
}

static void one_closed(struct peers *p)
{
    if (--p->handles == 0) {
        all_closed(p);
    }
}

static void on_peer_closed(uv_handle_t *h)
{
    one_closed(((struct peer *)h->data)->owner);
}

static void on_closed(uv_handle_t *h)
{
    one_closed(h->data);
}

void peers_close(struct peers *p, void (*cb)(void *arg), void *arg)
{
    p->closing = true;
    p->closed = cb;
    p->closed_arg = arg;
    for (struct peer *peer = p->first; peer != NULL; peer = peer->next) {
        drop_queued(peer, DUST_CLOSED, UINT64_MAX);
        uv_close((uv_handle_t *)&peer->poll, on_peer_closed);
    }
    uv_close((uv_handle_t *)&p->poll, on_closed);
    uv_close((uv_handle_t *)&p->timer, on_closed);
}
