/* What the parts of peer.h share: peer.c, sockets and queues; greet.c, keys. */
#ifndef DUST_RAFT_PEER_IMPL_H
#define DUST_RAFT_PEER_IMPL_H

#include "raft/channel.h"
#include "raft/member.h"
#include "raft/peer.h"

struct message {
    struct message *next;
    void *msg;
    size_t len; /* with what sealing adds */
    bool sealed;
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
    char address[ADDRESS_TEXT_MAX];
    int socket, endpoint;
    uv_poll_t poll;
    bool polling;
    struct queue queues[2]; /* by class */
    size_t bytes;
    unsigned count;
    uint64_t heard_ms;       /* 0: never */
    uint64_t sending_since_ms; /* when we began to send without having heard since; 0: we have heard */
    /* With keys: */
    bool open; /* `session` is known */
    struct session session;
    bool asking; /* `challenge` has no answer yet */
    struct challenge challenge, theirs;
    uint64_t asked_ms;
    bool hello_due, welcome_due; /* to be sent; the latter in answer to `theirs` */
};

struct peers {
    uv_loop_t *loop;
    struct peers_options opt;
    char bound[ADDRESS_TEXT_MAX];
    int socket;
    uv_poll_t poll;
    uv_timer_t timer;
    struct peer *first;
    struct peers_stats stats;
    struct channel *channel; /* NULL: no keys */
    unsigned handles; /* that are open */
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

struct peer *peer_find_or_open(struct peers *p, const char *address);

/* True if nanomsg took it; else the caller still has it. */
bool peer_try_send(struct peer *peer, void *msg, size_t len);

/* Send what waits, as much as is taken now; the rest when the peer is writable. */
void peer_flush(struct peer *peer);
void peer_wait_writable(struct peer *peer);

/* ---- greet.c ---- */

/* Send greetings that are due. False: some still are, since the peer is not writable. */
bool peer_send_greetings(struct peer *peer);

/* Ask for its session, unless it was asked a moment ago. */
void peer_ask_session(struct peer *peer);

/* Something came. */
void peer_received(struct peers *p, void *msg, size_t len);

#endif
