/* The network, and nanomsg on it: PULL sockets that are bound, PUSH sockets with one connection each.
 *
 * A connection is FIFO; a message takes its time, drawn by chance. It breaks by chance, with a crash of the machine it
 * leads to, and when its owner gives it up (nn_shutdown); what is under way is then lost, or, as from a socket that the
 * kernel still empties, comes later and out of order with what the next connection carries. A machine whose power has
 * failed says nothing: what is sent to it goes nowhere until the connection is given up, or the machine is back and
 * refuses it. A cut holds back what is under way and lets no new connection come up.
 *
 * nn_send refuses (EAGAIN) while there is no connection, and when what is under way fills the buffer. */
#include "tests/sim/net.h"

#include <errno.h>
#include <nanomsg/nn.h>
#include <nanomsg/pipeline.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/loop.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"

#define SOCKETS_MAX 128
#define FD_BASE (1 << 25)

struct message {
    struct message *next;
    uint64_t at_ns;
    struct machine *to;
    size_t len;
    void *data; /* an nn message */
};

struct socket {
    bool used, push;
    struct machine *machine;
    unsigned life;
    struct loop *loop; /* who is told */
    char address[40];
    /* pull */
    bool bound;
    struct message *in, **in_tail;
    /* push */
    struct machine *to;
    bool connecting, connected, dumb; /* dumb: the other side is gone, and we do not know */
    unsigned to_life, connection;     /* the number of the present connection */
    struct message *out, **out_tail;
    size_t out_bytes;
    uint64_t last_ns; /* when the last message under way arrives */
};

static struct socket sockets[SOCKETS_MAX];
static bool cut[MACHINES_MAX + 1][MACHINES_MAX + 1];
static int net_errno;

struct net_weather net_weather = {.delay_min_ns = 30 * US_NS, .delay_max_ns = 300 * US_NS, .buffer = 1 << 20};

static void tell(struct socket *s)
{
    if (s->loop != NULL) {
        loop_wake(s->loop);
    }
}

static struct socket *pull_of(struct machine *m)
{
    for (unsigned i = 0; i < SOCKETS_MAX; i++) {
        struct socket *s = &sockets[i];

        if (s->used && !s->push && s->bound && s->machine == m && s->life == m->life && m->up) {
            return s;
        }
    }
    return NULL;
}

static void message_free(struct message *m)
{
    nn_freemsg(m->data);
    free(m);
}

static void arrive(struct message *m)
{
    struct socket *s = pull_of(m->to);

    if (s == NULL) {
        message_free(m);
        return;
    }
    m->next = NULL;
    *s->in_tail = m;
    s->in_tail = &m->next;
    tell(s);
}

/* One whose connection is no more. */
static void arrive_stray(void *arg)
{
    arrive(arg);
}

static struct message *out_pop(struct socket *s)
{
    struct message *m = s->out;

    s->out = m->next;
    if (s->out == NULL) {
        s->out_tail = &s->out;
    }
    s->out_bytes -= m->len;
    return m;
}

static void pump_event(void *arg);

static void pump(struct socket *s)
{
    if (s->out == NULL || cut[s->machine->number][s->to->number]) {
        return;
    }
    while (s->out != NULL && s->out->at_ns <= world.now_ns) {
        arrive(out_pop(s));
    }
    if (s->out != NULL) {
        event_at(s->out->at_ns, pump_event, s);
    }
    tell(s);
}

static void pump_event(void *arg)
{
    pump(arg);
}

static void drop_out(struct socket *s, bool stray)
{
    while (s->out != NULL) {
        struct message *m = out_pop(s);

        if (stray && chance(7000) && !cut[s->machine->number][s->to->number]) {
            event_at(world.now_ns + chance_below(50 * MS_NS), arrive_stray, m);
        } else {
            message_free(m);
        }
    }
}

/* ---- connections ---- */

static void try_connect(void *arg);

static void connect_later(struct socket *s, uint64_t ns)
{
    if (!s->connecting) {
        s->connecting = true;
        event_at(world.now_ns + ns, try_connect, s);
    }
}

static void try_connect(void *arg)
{
    struct socket *s = arg;
    unsigned a, b;

    s->connecting = false;
    if (!s->used || s->to == NULL || s->connected || !s->machine->up || s->life != s->machine->life) {
        return;
    }
    a = s->machine->number;
    b = s->to->number;
    if (cut[a][b] || cut[b][a] || pull_of(s->to) == NULL) {
        connect_later(s, chance_between(20 * MS_NS, 300 * MS_NS));
        return;
    }
    s->connected = true;
    s->dumb = false;
    s->to_life = s->to->life;
    s->last_ns = 0;
    s->connection++;
    tell(s);
}

static void disconnect(struct socket *s, bool stray)
{
    s->connected = s->dumb = false;
    drop_out(s, stray);
    connect_later(s, chance_between(MS_NS, 40 * MS_NS));
}

void net_cut(unsigned a, unsigned b, bool now)
{
    cut[a][b] = now;
    for (unsigned i = 0; i < SOCKETS_MAX && !now; i++) {
        struct socket *s = &sockets[i];

        if (s->used && s->push && s->to != NULL && s->machine->number == a && s->to->number == b) {
            pump(s);
        }
    }
}

void net_heal_all(void)
{
    for (unsigned a = 1; a <= n_machines; a++) {
        for (unsigned b = 1; b <= n_machines; b++) {
            if (cut[a][b]) {
                net_cut(a, b, false);
            }
        }
    }
}

void net_reset(unsigned a, unsigned b)
{
    for (unsigned i = 0; i < SOCKETS_MAX; i++) {
        struct socket *s = &sockets[i];

        if (s->used && s->push && s->connected && s->machine->number == a && s->to->number == b) {
            disconnect(s, chance(3000));
        }
    }
}

void net_machine_down(struct machine *m, bool power)
{
    for (unsigned i = 0; i < SOCKETS_MAX; i++) {
        struct socket *s = &sockets[i];

        if (!s->used) {
            continue;
        }
        if (s->machine == m) {
            if (s->push && s->to != NULL) {
                drop_out(s, !power && chance(7000));
            }
            s->used = false;
        } else if (s->push && s->to == m && s->connected) {
            drop_out(s, false);
            if (power) {
                s->dumb = true;
            } else {
                disconnect(s, false);
            }
        }
    }
}

/* ---- nanomsg ---- */

int __wrap_nn_socket(int domain, int protocol);
int __wrap_nn_close(int s);
int __wrap_nn_setsockopt(int s, int level, int option, const void *value, size_t len);
int __wrap_nn_getsockopt(int s, int level, int option, void *value, size_t *len);
int __wrap_nn_bind(int s, const char *url);
int __wrap_nn_connect(int s, const char *url);
int __wrap_nn_shutdown(int s, int endpoint);
int __wrap_nn_send(int s, const void *buf, size_t len, int flags);
int __wrap_nn_recv(int s, void *buf, size_t len, int flags);
int __wrap_nn_errno(void);
const char *__wrap_nn_strerror(int error);
uint64_t __wrap_nn_get_statistic(int s, int statistic);
void *__wrap_nn_allocmsg(size_t size, int type);
int __wrap_nn_freemsg(void *msg);

static int fail(int error)
{
    net_errno = error;
    return -1;
}

int __wrap_nn_errno(void)
{
    return net_errno;
}

const char *__wrap_nn_strerror(int error)
{
    return strerror(error);
}

/* Of NN_STAT_CURRENT_CONNECTIONS, the only one asked for. */
uint64_t __wrap_nn_get_statistic(int s, int statistic)
{
    (void)statistic;
    return sockets[s].connected;
}

void *__wrap_nn_allocmsg(size_t size, int type)
{
    size_t *p = must(malloc(sizeof(size_t) * 2 + size));

    (void)type;
    p[0] = size;
    return p + 2;
}

int __wrap_nn_freemsg(void *msg)
{
    free((size_t *)msg - 2);
    return 0;
}

int __wrap_nn_socket(int domain, int protocol)
{
    (void)domain;
    for (unsigned i = 0; i < SOCKETS_MAX; i++) {
        struct socket *s = &sockets[i];

        /* one with an event to come is not used anew */
        if (!s->used && !s->connecting && s->out == NULL) {
            struct machine *m = task_machine();

            *s = (struct socket){.used = true, .push = protocol == NN_PUSH, .machine = m, .life = m->life};
            s->in_tail = &s->in;
            s->out_tail = &s->out;
            return (int)i;
        }
    }
    return fail(EMFILE);
}

int __wrap_nn_close(int i)
{
    struct socket *s = &sockets[i];

    while (s->in != NULL) {
        struct message *m = s->in;

        s->in = m->next;
        message_free(m);
    }
    if (s->push && s->to != NULL) {
        drop_out(s, true);
    } else {
        /* those connected to it learn of it */
        for (unsigned k = 0; k < SOCKETS_MAX; k++) {
            if (sockets[k].used && sockets[k].push && sockets[k].to == s->machine && sockets[k].connected) {
                disconnect(&sockets[k], false);
            }
        }
    }
    s->used = false;
    s->loop = NULL;
    return 0;
}

int __wrap_nn_setsockopt(int s, int level, int option, const void *value, size_t len)
{
    (void)s;
    (void)level;
    (void)option;
    (void)value;
    (void)len;
    return 0;
}

int __wrap_nn_getsockopt(int s, int level, int option, void *value, size_t *len)
{
    int fd = FD_BASE + s;

    (void)level;
    (void)option;
    memcpy(value, &fd, sizeof fd);
    *len = sizeof fd;
    return 0;
}

static struct machine *machine_at(const char *address)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        if (strcmp(machines[i].address, address) == 0) {
            return &machines[i];
        }
    }
    return NULL;
}

int __wrap_nn_bind(int i, const char *url)
{
    struct socket *s = &sockets[i];

    if (machine_at(url + strlen("tcp://")) != s->machine || pull_of(s->machine) != NULL) {
        return fail(EADDRINUSE);
    }
    s->bound = true;
    return 1;
}

int __wrap_nn_connect(int i, const char *url)
{
    struct socket *s = &sockets[i];

    s->to = machine_at(url + strlen("tcp://"));
    if (s->to == NULL) {
        return fail(EINVAL);
    }
    connect_later(s, chance_between(200 * US_NS, 2 * MS_NS));
    return 1;
}

int __wrap_nn_shutdown(int i, int endpoint)
{
    struct socket *s = &sockets[i];

    (void)endpoint;
    if (s->to != NULL) {
        s->connected = s->dumb = false;
        drop_out(s, chance(3000));
    }
    return 0;
}

int __wrap_nn_send(int i, const void *buf, size_t len, int flags)
{
    struct socket *s = &sockets[i];
    struct message *m;
    void *data;

    (void)len; /* NN_MSG */
    (void)flags;
    if (s->dumb && s->to->up && s->to->life != s->to_life) {
        disconnect(s, false); /* it is back, and knows nothing of this connection */
    }
    if (!s->connected || (s->out != NULL && s->out_bytes >= net_weather.buffer)) {
        return fail(EAGAIN);
    }
    memcpy(&data, buf, sizeof data);
    len = ((size_t *)data)[-2];
    trace('m', s->machine->number << 8 | s->to->number, mix_bytes(0, data, len));
    say(3, "m%u -> m%u: %zu bytes", s->machine->number, s->to->number, len);
    if (s->dumb) {
        nn_freemsg(data);
        return (int)len;
    }
    m = must(calloc(1, sizeof *m));
    m->to = s->to;
    m->len = len;
    m->data = data;
    m->at_ns = world.now_ns + chance_between(net_weather.delay_min_ns, net_weather.delay_max_ns) + len * 2;
    if (m->at_ns < s->last_ns) {
        m->at_ns = s->last_ns;
    }
    s->last_ns = m->at_ns;
    *s->out_tail = m;
    s->out_tail = &m->next;
    s->out_bytes += len;
    if (s->out == m) {
        event_at(m->at_ns, pump_event, s);
    }
    if (chance(net_weather.reset)) {
        tally()->resets++;
        disconnect(s, chance(3000));
    }
    return (int)len;
}

int __wrap_nn_recv(int i, void *buf, size_t len, int flags)
{
    struct socket *s = &sockets[i];
    struct message *m = s->in;
    size_t n;

    (void)len;
    (void)flags;
    if (m == NULL) {
        return fail(EAGAIN);
    }
    s->in = m->next;
    if (s->in == NULL) {
        s->in_tail = &s->in;
    }
    memcpy(buf, &m->data, sizeof m->data);
    n = m->len;
    free(m);
    return (int)n;
}

/* ---- for the loop ---- */

bool net_readable(int fd)
{
    const struct socket *s = &sockets[fd - FD_BASE];

    return s->push ? s->connected && (s->out == NULL || s->out_bytes < net_weather.buffer) : s->in != NULL;
}

void net_watch(int fd, struct loop *loop)
{
    sockets[fd - FD_BASE].loop = loop;
}
