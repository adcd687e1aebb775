/* proxy - the network between the members of a test cluster, with its faults.
 *
 * In front of each member stands a listening socket: what the member advertises. Whoever connects there is connected on
 * to the member, and what he sends is taken apart into nanomsg's messages (an 8-byte greeting, then messages, each with
 * its length as 8 bytes, big-endian). A message of dust names its sender's address, which is a listening socket of ours
 * again; so each message is known to be on the link FROM → TO, and is treated as that link is set:
 *
 *     cut      dropped; the connection stays, as it does when a switch fails
 *     hold     kept until the link is set otherwise: TCP sends again what it could not, perhaps much later
 *     delay    by so many milliseconds, and up to JITTER more; the order stays
 *     loss     so many of 1000 messages are dropped (a connection that broke and was made again loses some)
 *     dup      so many of 1000 are sent once more, up to half a second later
 *     reorder  so many of 1000 wait for up to 50 ms while later ones pass
 *
 * With a key (the file is the second argument) the address is sealed; but each message carries the session of its sender
 * in clear, and whose that is stands in the first hello of that session, which is opened here (raft/channel.h). What comes
 * before, an answer to another's hello, is passed on unharmed.
 *
 * Commands on standard input, one a line; each is answered with one line, "ok" or what is wrong:
 *     listen PORT TARGET NAME          in front of 127.0.0.1:TARGET
 *     link FROM TO cut|hold|open DELAY JITTER LOSS DUP REORDER
 *     reset FROM TO                    break the connections of the link
 *     stat                             messages passed, dropped, delayed, doubled, reordered
 * It ends with its input. What waits is bounded by what is sent in the meantime; a connection over QUEUE_MAX is broken.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "raft/channel.h"

#define MEMBERS 16
#define NAME_SIZE 16
#define QUEUE_MAX ((size_t)256 << 20)
#define MESSAGE_MAX ((uint64_t)80 << 20)
#define GREETING 8
#define OFFSET_ADDRESS 46 /* of the length of the sender's address in a message (raft/wire.c) */

#define OFFSET_KIND 4     /* of a sealed message (raft/channel.c) */
#define OFFSET_SESSION 8

enum link_state { LINK_OPEN, LINK_CUT, LINK_HOLD };

struct link {
    enum link_state state;
    unsigned delay_ms, jitter_ms, loss, dup, reorder;
};

struct host {
    char name[NAME_SIZE];
    int port, target, fd;
};

struct message {
    struct message *next;
    uint64_t due_ms; /* not before */
    bool held;
    size_t len, sent;
    uint8_t data[];
};

struct side { /* one socket */
    struct pipe *pipe;
    int fd;
};

struct pipe { /* a connection: client → us → member */
    struct side client, server;
    struct pipe *next;
    int from, to; /* members; from is -1 until the first message */
    uint8_t *in;  /* received and not yet a whole message */
    size_t n_in, room_in;
    bool greeted;
    struct message *queue; /* in the order of sending */
    size_t queued;
    uint64_t last_due_ms;
    uint8_t back[64]; /* from the member to the client: its greeting */
    size_t n_back;
    bool broken;
};

struct known { /* whose session it is */
    struct session session;
    int member;
};

static struct channel *reader; /* NULL: no key */
static struct known *known;
static size_t n_known;
static struct host members[MEMBERS];
static int n_members;
static struct link links[MEMBERS][MEMBERS];
static struct pipe *pipes;
static int ep;
static uint64_t counts[5];
enum { PASSED, DROPPED, DELAYED, DOUBLED, REORDERED };

static uint64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool chance(unsigned of_1000)
{
    return of_1000 != 0 && (unsigned)(random() % 1000) < of_1000;
}

static int by_name(const char *name)
{
    for (int i = 0; i < n_members; i++) {
        if (strcmp(members[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static int by_address(const uint8_t *text, size_t len)
{
    char address[64];

    for (int i = 0; i < n_members; i++) {
        snprintf(address, sizeof address, "127.0.0.1:%d", members[i].port);
        if (strlen(address) == len && memcmp(address, text, len) == 0) {
            return i;
        }
    }
    return -1;
}

/* ---- sealed messages ---- */

static int by_session(const uint8_t *session)
{
    for (size_t i = n_known; i > 0; i--) {
        if (memcmp(known[i - 1].session.b, session, sizeof known->session.b) == 0) {
            return known[i - 1].member;
        }
    }
    return -1;
}

static int of_sealed(const uint8_t *body, size_t len)
{
    uint8_t copy[CHANNEL_GREETING_MAX];
    struct channel_received r;
    int from = by_session(body + OFFSET_SESSION);
    struct known *more;

    if (from >= 0 || body[OFFSET_KIND] != CHANNEL_HELLO || len > sizeof copy) {
        return from;
    }
    memcpy(copy, body, len);
    if (channel_open(reader, copy, len, &r, NULL) != DUST_OK) {
        return -1;
    }
    from = by_address((const uint8_t *)r.address, strlen(r.address));
    more = from >= 0 ? realloc(known, (n_known + 1) * sizeof *known) : NULL;
    if (more != NULL) {
        known = more;
        known[n_known++] = (struct known){r.from, from};
    }
    return from;
}

static int of_plain(const uint8_t *body, size_t len)
{
    return len > OFFSET_ADDRESS + 1 && len >= OFFSET_ADDRESS + 1 + (size_t)body[OFFSET_ADDRESS]
               ? by_address(body + OFFSET_ADDRESS + 1, body[OFFSET_ADDRESS])
               : -1;
}

/* ---- messages ---- */

static void insert(struct pipe *p, struct message *m)
{
    struct message **at = &p->queue;

    if (p->queue != NULL && p->queue->sent != 0) {
        at = &p->queue->next; /* not into the middle of one */
    }
    while (*at != NULL && (m->held || (!(*at)->held && (*at)->due_ms <= m->due_ms))) {
        at = &(*at)->next;
    }
    m->next = *at;
    *at = m;
    p->queued += m->len;
    p->broken = p->broken || p->queued > QUEUE_MAX;
}

static void enqueue(struct pipe *p, const uint8_t *data, size_t len, uint64_t due_ms, bool held)
{
    struct message *m = malloc(sizeof *m + len);

    if (m == NULL) {
        p->broken = true;
        return;
    }
    *m = (struct message){.due_ms = due_ms, .held = held, .len = len};
    memcpy(m->data, data, len);
    insert(p, m);
}

static void pass(struct pipe *p, const uint8_t *data, size_t len)
{
    static const struct link plain;
    const uint8_t *body = data + 8;
    const struct link *l = &plain;
    uint64_t now = now_ms(), due = now;

    if (p->from < 0) {
        p->from = reader != NULL && channel_is_sealed(body, len - 8) ? of_sealed(body, len - 8) : of_plain(body, len - 8);
    }
    if (p->from >= 0) {
        l = &links[p->from][p->to];
    }
    if (l->state == LINK_CUT || chance(l->loss)) {
        counts[DROPPED]++;
        return;
    }
    if (l->delay_ms != 0 || l->jitter_ms != 0) {
        due += l->delay_ms + (l->jitter_ms != 0 ? (unsigned)random() % l->jitter_ms : 0);
        counts[DELAYED]++;
    }
    if (chance(l->reorder)) {
        counts[REORDERED]++;
        enqueue(p, data, len, due + 1 + (unsigned)random() % 50, l->state == LINK_HOLD);
        return;
    }
    if (due < p->last_due_ms) {
        due = p->last_due_ms;
    }
    p->last_due_ms = due;
    enqueue(p, data, len, due, l->state == LINK_HOLD);
    counts[PASSED]++;
    if (chance(l->dup)) {
        counts[DOUBLED]++;
        enqueue(p, data, len, due + (unsigned)random() % 500, l->state == LINK_HOLD);
    }
}

/* ---- connections ---- */

static void watch(struct side *s, bool out)
{
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0u), .data.ptr = s};

    epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &e);
}

static void split(struct pipe *p)
{
    size_t at = 0;

    if (!p->greeted) {
        if (p->n_in < GREETING) {
            return;
        }
        enqueue(p, p->in, GREETING, 0, false);
        p->greeted = true;
        at = GREETING;
    }
    while (p->n_in - at >= 8) {
        uint64_t len = 0;

        for (int i = 0; i < 8; i++) {
            len = len << 8 | p->in[at + (size_t)i];
        }
        if (len > MESSAGE_MAX) {
            p->broken = true;
            return;
        }
        if (p->n_in - at - 8 < len) {
            break;
        }
        pass(p, p->in + at, 8 + (size_t)len);
        at += 8 + (size_t)len;
    }
    memmove(p->in, p->in + at, p->n_in - at);
    p->n_in -= at;
}

static void read_client(struct pipe *p)
{
    for (int rounds = 0; rounds < 16; rounds++) {
        ssize_t n;

        if (p->room_in - p->n_in < 65536) {
            size_t more = p->room_in == 0 ? 131072 : p->room_in * 2;
            uint8_t *in = realloc(p->in, more);

            if (in == NULL) {
                p->broken = true;
                return;
            }
            p->in = in;
            p->room_in = more;
        }
        n = read(p->client.fd, p->in + p->n_in, p->room_in - p->n_in);
        if (n <= 0) {
            p->broken = p->broken || n == 0 || (errno != EAGAIN && errno != EINTR);
            break;
        }
        p->n_in += (size_t)n;
        split(p);
    }
}

static void read_server(struct pipe *p)
{
    ssize_t n = read(p->server.fd, p->back + p->n_back, sizeof p->back - p->n_back);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOTCONN)) {
        p->broken = true;
        return;
    }
    if (n > 0) {
        p->n_back += (size_t)n;
    }
    if (p->n_back != 0) {
        n = write(p->client.fd, p->back, p->n_back);
        if (n > 0) {
            memmove(p->back, p->back + n, p->n_back - (size_t)n);
            p->n_back -= (size_t)n;
        }
    }
}

/* Send what is due. Gives when the next one is, 0 for none. */
static uint64_t pump(struct pipe *p, uint64_t now)
{
    while (p->queue != NULL && !p->queue->held && p->queue->due_ms <= now) {
        struct message *m = p->queue;
        ssize_t n = send(p->server.fd, m->data + m->sent, m->len - m->sent, MSG_NOSIGNAL);

        if (n < 0) {
            if (errno == EAGAIN || errno == ENOTCONN || errno == EINPROGRESS) {
                watch(&p->server, true);
                return 0;
            }
            p->broken = true;
            return 0;
        }
        m->sent += (size_t)n;
        if (m->sent < m->len) {
            continue;
        }
        p->queue = m->next;
        p->queued -= m->len;
        free(m);
    }
    watch(&p->server, false);
    return p->queue != NULL && !p->queue->held ? p->queue->due_ms : 0;
}

static int socket_new(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static struct sockaddr_in address_of(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void pipe_close(struct pipe *p)
{
    close(p->client.fd);
    close(p->server.fd);
    while (p->queue != NULL) {
        struct message *m = p->queue;

        p->queue = m->next;
        free(m);
    }
    free(p->in);
    free(p);
}

static void accept_one(int to)
{
    struct sockaddr_in a = address_of(members[to].target);
    int fd = accept4(members[to].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
    struct epoll_event e = {.events = EPOLLIN};
    struct pipe *p;

    if (fd < 0) {
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    p = calloc(1, sizeof *p);
    p->from = -1;
    p->to = to;
    p->client = (struct side){.pipe = p, .fd = fd};
    p->server = (struct side){.pipe = p, .fd = socket_new()};
    if (connect(p->server.fd, (struct sockaddr *)&a, sizeof a) != 0 && errno != EINPROGRESS) {
        pipe_close(p);
        return;
    }
    e.data.ptr = &p->client;
    epoll_ctl(ep, EPOLL_CTL_ADD, p->client.fd, &e);
    e.data.ptr = &p->server;
    epoll_ctl(ep, EPOLL_CTL_ADD, p->server.fd, &e);
    p->next = pipes;
    pipes = p;
}

static void sweep(void)
{
    for (struct pipe **at = &pipes; *at != NULL;) {
        struct pipe *p = *at;

        if (p->broken) {
            *at = p->next;
            pipe_close(p);
        } else {
            at = &p->next;
        }
    }
}

/* ---- commands ---- */

static const char *do_listen(int port, int target, const char *name)
{
    struct sockaddr_in a = address_of(port);
    struct epoll_event e = {.events = EPOLLIN};
    int i = by_name(name);

    if (i >= 0) {
        members[i].target = target;
        return "ok";
    }
    if (n_members == MEMBERS) {
        return "too many members";
    }
    i = n_members;
    members[i].fd = socket_new();
    if (bind(members[i].fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(members[i].fd, 64) != 0) {
        close(members[i].fd);
        return strerror(errno);
    }
    snprintf(members[i].name, sizeof members[i].name, "%s", name);
    members[i].port = port;
    members[i].target = target;
    e.data.ptr = &members[i];
    epoll_ctl(ep, EPOLL_CTL_ADD, members[i].fd, &e);
    n_members++;
    return "ok";
}

static void release(struct pipe *p)
{
    struct message *all = p->queue, *next;
    bool first = true;

    p->queue = NULL;
    p->queued = 0;
    for (; all != NULL; all = next) {
        next = all->next;
        if (!first || all->sent == 0) {
            all->held = false;
        }
        first = false;
        insert(p, all);
    }
}

static const char *do_link(const char *from, const char *to, const char *state, struct link l)
{
    int f = by_name(from), t = by_name(to);

    if (f < 0 || t < 0) {
        return "no such member";
    }
    l.state = strcmp(state, "cut") == 0 ? LINK_CUT : strcmp(state, "hold") == 0 ? LINK_HOLD : LINK_OPEN;
    links[f][t] = l;
    for (struct pipe *p = pipes; p != NULL; p = p->next) {
        if (p->from == f && p->to == t && l.state != LINK_HOLD) {
            release(p);
        }
    }
    return "ok";
}

static const char *do_reset(const char *from, const char *to)
{
    int f = by_name(from), t = by_name(to);

    for (struct pipe *p = pipes; p != NULL; p = p->next) {
        p->broken = p->broken || (p->from == f && p->to == t);
    }
    return "ok";
}

static const char *command(char *line)
{
    static char text[128];
    char a[NAME_SIZE], b[NAME_SIZE], state[8];
    struct link l = {0};
    int port, target;

    if (sscanf(line, "listen %d %d %15s", &port, &target, a) == 3) {
        return do_listen(port, target, a);
    }
    if (sscanf(line, "link %15s %15s %7s %u %u %u %u %u", a, b, state, &l.delay_ms, &l.jitter_ms, &l.loss, &l.dup,
            &l.reorder) == 8) {
        return do_link(a, b, state, l);
    }
    if (sscanf(line, "reset %15s %15s", a, b) == 2) {
        return do_reset(a, b);
    }
    if (strncmp(line, "stat", 4) == 0) {
        snprintf(text, sizeof text, "%llu %llu %llu %llu %llu", (unsigned long long)counts[PASSED],
            (unsigned long long)counts[DROPPED], (unsigned long long)counts[DELAYED],
            (unsigned long long)counts[DOUBLED], (unsigned long long)counts[REORDERED]);
        return text;
    }
    return "what?";
}

static bool read_commands(void)
{
    static char buf[4096];
    static size_t n;
    ssize_t got = read(0, buf + n, sizeof buf - 1 - n);
    char *end;

    if (got <= 0) {
        return false;
    }
    n += (size_t)got;
    buf[n] = '\0';
    while ((end = strchr(buf, '\n')) != NULL) {
        *end = '\0';
        printf("%s\n", command(buf));
        fflush(stdout);
        n -= (size_t)(end + 1 - buf);
        memmove(buf, end + 1, n + 1);
    }
    return n < sizeof buf - 1;
}

static bool is_member(const void *p)
{
    return p >= (const void *)members && p < (const void *)(members + MEMBERS);
}

int main(int argc, char **argv)
{
    struct epoll_event in = {.events = EPOLLIN}, events[64];

    struct keys keys;
    struct err e;

    if (argc > 2 && (keys_read(argv[2], &keys, &e) != DUST_OK || channel_new(&reader, &keys, &e) != DUST_OK)) {
        fprintf(stderr, "%s\n", e.text);
        return 2;
    }
    srandom(argc > 1 ? (unsigned)atoi(argv[1]) : 1);
    ep = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &in);
    for (;;) {
        uint64_t now = now_ms(), next = 0;
        int n, wait = -1;

        for (struct pipe *p = pipes; p != NULL; p = p->next) {
            uint64_t due = p->broken ? 0 : pump(p, now);

            if (due != 0 && (next == 0 || due < next)) {
                next = due;
            }
        }
        sweep();
        if (next != 0) {
            wait = next > now ? (int)(next - now) : 0;
        }
        n = epoll_wait(ep, events, 64, wait);
        for (int i = 0; i < n; i++) {
            struct side *s = events[i].data.ptr;

            if (s == NULL) {
                if (!read_commands()) {
                    return 0;
                }
            } else if (is_member(s)) {
                accept_one((int)((struct host *)(void *)s - members));
            } else if (s == &s->pipe->client) {
                read_client(s->pipe);
            } else if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
                read_server(s->pipe);
            }
        }
    }
}
