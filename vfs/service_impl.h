/* service_impl - what service.c (the thread, its connections), guest.c (what they ask for) and intake.c (transactions that
 * come in) share. Not for others. */
#ifndef DUST_VFS_SERVICE_IMPL_H
#define DUST_VFS_SERVICE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "vfs/crew.h"
#include "vfs/link.h"
#include "vfs/service.h"

/* A transaction while its parts come, and until it is staged. */
struct intake {
    struct link_commit c;
    struct sealed *sealed; /* n_parts: as many as have come */
    uint64_t park_until_ms;
    bool under_way; /* begun, and not yet staged or answered */
    bool parked;    /* all there, and waiting: for what the crew finds, or for its parent */
    bool last_look; /* its time is up: what the crew finds now is the answer */
    int result;     /* under the guest's mutex: what was found; or a code of dust's: it could not be found out */
};

#define INTAKE_LOOKING (-1)
#define INTAKE_FOUND (-2)
#define INTAKE_NEVER (-3)
#define INTAKE_NOT_FOUND (-4)

struct guest {
    struct guest *next;
    struct service *s;
    int fd;
    _Atomic int refs;
    uint32_t owner, owner_before;
    long pid;
    bool greeted;
    bool primary; /* the first one of its process */

    /* what came and is not used up; the service's thread */
    uint8_t *in;
    size_t have, room;

    pthread_mutex_t mutex; /* over what follows, to `commit` */
    bool closed;
    bool blocked; /* the socket took no more: `out` waits for EPOLLOUT */
    uint8_t *out;
    size_t out_n, out_room;
    struct commit *commit;   /* the outcome that is waited for */
    struct link_done staged; /* what it was staged as */
    uint32_t commit_number;

    struct ticket ticket; /* under the turn's mutex: its state; the rest is the service's thread's */
    uint32_t turn_slot;
    _Atomic uint32_t turn_number; /* of the TURN that is not answered yet, else 0 */
    uint64_t turn_until_ms, turn_gate_ms;

    struct intake intake;
    bool awaiting; /* a LINK_AGREED */
    uint64_t await_seq, await_until_ms;
    struct vid await_id;
    uint32_t await_number;
    _Atomic bool calling; /* the crew works for it */
};

struct service {
    struct database *db;
    struct service_calls calls;
    struct crew crew;
    pthread_t thread;
    int listen_fd, wake_fd, epoll_fd;
    _Atomic bool closing;
    uint64_t listen_again_ms;
    pthread_mutex_t mutex; /* over the list, and who they are, for those who look on */
    struct guest *first;
    uint32_t last_owner;
    uint64_t started_ms;
    uint64_t mark; /* tells this host from others */
    uint32_t slot; /* for what the thread reads */
};

/* Send, without waiting. Any thread. False: the other end is gone. */
bool guest_send(struct guest *g, uint8_t type, uint32_t number, const void *body, size_t n);
bool guest_reply(struct guest *g, uint32_t number, int code, const char *text);

struct guest *guest_ref(struct guest *g);
void guest_unref(struct guest *g);

/* guest.c: a message has come. False: it is none, and the connection is to be ended. The service's thread. */
bool guest_take(struct guest *g, const struct link_msg *m);

/* guest.c: time has passed, or versions have changed: answer what can be answered. Returns the time of the next thing to
 * be done by the clock (clock_ms), or UINT64_MAX. *watch: versions are waited for. */
uint64_t guest_look(struct guest *g, uint64_t now, bool *watch);

/* guest.c: give up the turn, or the place in the queue. */
void guest_drop_turn(struct guest *g);

/* guest.c: the connection has ended. */
void guest_end(struct guest *g);

/* intake.c */
bool intake_begin(struct guest *g, const struct link_msg *m);
bool intake_part(struct guest *g, const struct link_msg *m);
void intake_look(struct guest *g, uint64_t now); /* parked: is the parent here now, or is the time up? */
void intake_drop(struct guest *g);

/* Have the service's thread look at everything again. Any thread. */
void service_wake(struct service *s);

#endif
