/* channel - messages between members of a cluster with a key: sealed, so that who has no key can neither read nor make
 * them, and bound to this start of the sender and this start of the receiver, so that nothing recorded is of use later.
 * The format and the reasons stand in channel.c.
 *
 * One struct channel for each listening socket; no sockets and no time here. One thread at a time. */
#ifndef DUST_RAFT_CHANNEL_H
#define DUST_RAFT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "raft/key.h"
#include "raft/member.h"

#define CHANNEL_HEAD 48 /* bytes in front of the body of a sealed message */
#define CHANNEL_TAIL 16 /* and behind it */
#define CHANNEL_GREETING_MAX 160

/* A start of a sender or receiver. */
struct session {
    uint8_t b[16];
};

/* What is asked in a hello, and comes back in the welcome. */
struct challenge {
    uint8_t b[16];
};

enum channel_kind {
    CHANNEL_MESSAGE = 1, /* for this start of ours, and not heard before */
    CHANNEL_HELLO,       /* somebody is to be told our session: answer with a welcome at `address` */
    CHANNEL_WELCOME,     /* to a challenge of ours, if it is one */
    CHANNEL_STALE        /* sealed by a member, but for another start than ours: a hello tells it that there is a new one */
};

struct channel_received {
    enum channel_kind kind;
    struct session from;
    struct challenge challenge;     /* of hello and welcome */
    char address[ADDRESS_TEXT_MAX]; /* of hello: canonical, with a port */
    const void *body;               /* of message and stale; leads into what was opened */
    size_t len;
};

struct channel;

/* DUST_OK; DUST_NOMEM; DUST_IO: no source of random numbers. */
int channel_new(struct channel **out, const struct keys *keys, struct err *e);
void channel_free(struct channel *c); /* NULL is fine */

/* Seal, in place, a message of CHANNEL_HEAD + len + CHANNEL_TAIL bytes whose body is at CHANNEL_HEAD, for the receiver's
 * start `to`. Messages of one lane have to leave about in this order. */
void channel_seal(struct channel *c, const struct session *to, unsigned lane, void *msg, size_t len);
#define CHANNEL_LANES 2

/* Write a greeting of at most CHANNEL_GREETING_MAX bytes; returns its length. */
size_t channel_hello(struct channel *c, const struct challenge *challenge, const char *own_address, void *out);
size_t channel_welcome(struct channel *c, const struct challenge *challenge, void *out);

void challenge_make(struct challenge *out);

/* Open, in place, what came. DUST_OK. DUST_EXISTS: heard before, or so old that one cannot know; to be dropped silently.
 * DUST_REFUSED: sealed with another key, changed, not sealed, or our own; DUST_CORRUPT: authentic and makes no sense;
 * DUST_NOMEM. On failure *out is untouched. */
int channel_open(struct channel *c, void *data, size_t len, struct channel_received *out, struct err *e);

/* Does this look like a sealed message? For a member that has no key. */
bool channel_is_sealed(const void *data, size_t len);

#endif
