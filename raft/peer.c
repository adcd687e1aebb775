/* Peers over nanomsg.
 *
 * What nanomsg does not do, and is done here: bound its memory (finite NN_RCVMAXSIZE, our own bounded queues), notice a
 * dead connection (the watchdog: there is no keepalive, and TCP backs off after a partition), and give up old messages
 * (a peer that returns should not find a queue of stale heartbeats).
 *
 *   peer:  ready ──nn_send: EAGAIN──▶ blocked (NN_SNDFD polled, messages queue) ──writable──▶ ready
 *
 * With keys, a peer has to be greeted before its first message (greet.c), which waits in the same queues.
 *
 * NN_RCVFD and NN_SNDFD are level-triggered descriptors that poll as readable; they belong to nanomsg and must be
 * closed by nn_close only after the poll handles on them are. nn_term is never called: others in the process may use
 * nanomsg. In a forked child nothing of this may be touched. */
#include "raft/peer_impl.h"

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
#include "raft/listen.h"

#define DRAIN_MESSAGES 256
#define DRAIN_BYTES ((size_t)8 << 20)
#define HOUSEKEEPING_MS 250

static bool is_v6(const char *address)
{
    return address[0] == '[';
}

static void set_int(int socket, int level, int option, int value)
{
    nn_setsockopt(socket, level, option, &value, sizeof value);
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
bool peer_try_send(struct peer *peer, void *msg, size_t len)
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

static void on_writable(uv_poll_t *poll, int status, int events);

void peer_wait_writable(struct peer *peer)
{
    if (!peer->polling) {
        peer->polling = uv_poll_start(&peer->poll, UV_READABLE, on_writable) == 0;
    }
}

/* May messages be sent, as far as keys go? */
static bool is_open(const struct peer *peer)
{
    return peer->owner->channel == NULL || peer->open;
}

static bool seal_and_send(struct peer *peer, void *msg, size_t len, enum peer_class cls, bool *sealed)
{
    if (!*sealed && peer->owner->channel != NULL) {
        channel_seal(peer->owner->channel, &peer->session, cls, msg, len - CHANNEL_HEAD - CHANNEL_TAIL);
    }
    *sealed = true;
    return peer_try_send(peer, msg, len);
}

void peer_flush(struct peer *peer)
{
    if (!peer_send_greetings(peer)) {
        peer_wait_writable(peer);
        return;
    }
    for (int i = 0; i < 2 && is_open(peer); i++) {
        while (peer->queues[i].first != NULL) {
            struct message *m = peer->queues[i].first;

            if (!seal_and_send(peer, m->msg, m->len, (enum peer_class)i, &m->sealed)) {
                peer_wait_writable(peer);
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
    peer_flush(poll->data);
}

static int open_push(struct peer *peer)
{
    char url[LISTEN_URL_MAX];
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
    listen_url(peer->address, url);
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

static struct peer *find(const struct peers *p, const char *address)
{
    struct peer *peer = p->first;

    while (peer != NULL && strcmp(peer->address, address) != 0) {
        peer = peer->next;
    }
    return peer;
}

struct peer *peer_find_or_open(struct peers *p, const char *address)
{
    struct peer *peer = find(p, address);

    if (peer != NULL || strlen(address) >= ADDRESS_TEXT_MAX) {
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

void *peers_alloc(struct peers *p, size_t len, void **body)
{
    bool keyed = p->channel != NULL;
    char *msg = nn_allocmsg(len + (keyed ? CHANNEL_HEAD + CHANNEL_TAIL : 0), 0);

    *body = msg != NULL && keyed ? msg + CHANNEL_HEAD : msg;
    return msg;
}

void peers_send(struct peers *p, const char *address, void *msg, size_t len, enum peer_class cls, peer_sent_fn cb,
    void *arg)
{
    struct peer *peer = p->closing ? NULL : peer_find_or_open(p, address);
    bool sealed = false;
    struct message *m;

    len += p->channel != NULL ? CHANNEL_HEAD + CHANNEL_TAIL : 0;
    if (peer != NULL && peer->count == 0 && is_open(peer) && seal_and_send(peer, msg, len, cls, &sealed)) {
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
    *m = (struct message){
        .msg = msg, .len = len, .sealed = sealed, .queued_ms = uv_now(p->loop), .cb = cb, .arg = arg};
    *peer->queues[cls].tail = m;
    peer->queues[cls].tail = &m->next;
    peer->bytes += len;
    peer->count++;
    if (peer->sending_since_ms == 0) {
        peer->sending_since_ms = m->queued_ms;
    }
    if (is_open(peer)) {
        peer_wait_writable(peer);
    } else {
        peer_ask_session(peer);
    }
}

void peers_greet(struct peers *p, const char *address)
{
    struct peer *peer = p->closing || p->channel == NULL ? NULL : peer_find_or_open(p, address);

    if (peer != NULL) {
        peer_ask_session(peer);
    }
}

void peers_heard(struct peers *p, const char *address)
{
    struct peer *peer = peer_find_or_open(p, address);

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

bool peers_connected(const struct peers *p, const char *address)
{
    const struct peer *peer = find(p, address);

    return peer == NULL || nn_get_statistic(peer->socket, NN_STAT_CURRENT_CONNECTIONS) != 0;
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
    struct address a, bound;

    if (getsockname(fd, (struct sockaddr *)&own, &own_len) == 0 && address_of(&own, &a) &&
        address_parse(p->bound, &bound, NULL) == DUST_OK &&
        (address_is_any(&bound) ? a.port == bound.port : strcmp(a.text, p->bound) == 0)) {
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
        peer_received(p, msg, (size_t)n);
        nn_freemsg(msg);
    }
}

/* ---- watching ---- */

static void reconnect(struct peer *peer)
{
    char url[LISTEN_URL_MAX];

    listen_url(peer->address, url);
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
        if (peer->asking || (!is_open(peer) && peer->count != 0)) {
            peer_ask_session(peer);
        }
    }
}

/* ---- opening ---- */

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
    rv = listen_bind(p->socket, opt->bind, p->bound, e);
    if (rv == DUST_OK && opt->keys != NULL && opt->keys->n != 0) {
        rv = channel_new(&p->channel, opt->keys, e);
    }
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
    channel_free(p->channel);
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
    channel_free(p->channel);
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
