/* peer - messages to and from other members: nanomsg sockets on a libuv loop.
 *
 * One PULL socket receives from everybody; one PUSH socket for each address sends. A message is handed to nanomsg at
 * once if it takes it, and queued otherwise. Nothing here is reliable: a message may be lost with its connection;
 * whoever sends it must be able to send it again. Messages to one peer arrive in order, save for what is lost.
 *
 * With keys every message is sealed (channel.h). What is sent to a peer for the first time waits until it has been
 * greeted, as it waits for a connection.
 *
 * All calls on the loop's thread. */
#ifndef DUST_RAFT_PEER_H
#define DUST_RAFT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "raft/key.h"
#include "vfs/err.h"

#define PEER_QUEUE_BYTES ((size_t)64 << 20) /* for one peer; what is over is dropped */
#define PEER_QUEUE_COUNT 65536u
#define PEER_QUEUE_MS 2000u     /* what could not be sent for so long is dropped */
#define PEER_WATCHDOG_MS 2000u  /* a peer that we send to and do not hear from is connected anew */
#define PEER_MESSAGE_MAX (64 << 20)

struct peers;

struct peers_options {
    const char *bind;         /* host:port, numeric; port 0: any free one */
    const char *address;      /* where others reach it; read when one is greeted. Not used without keys */
    const struct keys *keys;  /* NULL, or none in it: messages are not sealed */
    void (*recv)(void *ctx, void *data, size_t len);  /* data is valid during the call */
    void (*stale)(void *ctx, void *data, size_t len); /* a member's message for an earlier start of this one: greet it */
    void (*refused)(void *ctx, const struct err *why); /* a message that was not opened */
    void *ctx;
};

/* DUST_OK: it was handed on. DUST_AGAIN: dropped. DUST_CLOSED. May be called before peers_send returns. */
typedef void (*peer_sent_fn)(void *arg, int status);

enum peer_class {
    PEER_NORMAL,
    PEER_BULK /* only when nothing else is waiting */
};

/* Listen. DUST_EXISTS: the address is in use. DUST_MISUSE, DUST_NOMEM. On failure nothing is left behind. */
int peers_open(struct peers **out, uv_loop_t *loop, const struct peers_options *opt, struct err *e);

/* Where it listens, with the port that was found. */
const char *peers_bound_address(const struct peers *p);

/* Memory for a message of len bytes, which are to be put at *body. NULL: there is none. */
void *peers_alloc(struct peers *p, size_t len, void **body);

/* Send a message made by peers_alloc with this len; it becomes ours. cb may be NULL; it is called exactly once. */
void peers_send(struct peers *p, const char *address, void *msg, size_t len, enum peer_class cls, peer_sent_fn cb,
    void *arg);

/* The peer at this address does not know yet that this is a new start: tell it. */
void peers_greet(struct peers *p, const char *address);

/* A message from this peer was accepted. */
void peers_heard(struct peers *p, const char *address);

/* Milliseconds since a message from it was last accepted; -1: never. */
int64_t peers_last_heard_ms(struct peers *p, const char *address);

/* Is there a connection to it, for what is sent? A peer that nothing was sent to yet counts as connected. */
bool peers_connected(const struct peers *p, const char *address);

struct peers_stats {
    uint64_t messages_in, messages_out, bytes_in, bytes_out, dropped, reconnects;
};
void peers_stats(const struct peers *p, struct peers_stats *out);

/* Is this descriptor of a socket of ours: one that listens at our address, or is connected from it or to a peer? For a
 * forked child, in which nothing else can be asked. */
bool peers_has_socket(const struct peers *p, int fd);

/* Complete what is queued with DUST_CLOSED, close all, then cb(arg); p is freed. */
void peers_close(struct peers *p, void (*cb)(void *arg), void *arg);

#endif
