/* Greeting peers, and opening what they have sealed: the channel (channel.h), put to use on the sockets of peer.c. Without
 * keys there is nothing to do.
 *
 *   unknown ──ask──▶ asking ──welcome──▶ open ──it has been started again──▶ open and asking
 *
 * While asking, a hello is sent again until there is an answer. A hello, or the answer to one, that cannot be sent at once
 * is sent before all else when the peer is writable. Messages wait for the first welcome only: after that they go on
 * with the session that is known, and are lost if it is over; whoever sends them sends them again. */
#include <nanomsg/nn.h>
#include <string.h>

#include "raft/peer_impl.h"

#define HELLO_AGAIN_MS 200

/* Without memory it is as if it had got lost. False: not writable. */
static bool send_greeting(struct peer *peer, bool hello)
{
    struct peers *p = peer->owner;
    uint8_t greeting[CHANNEL_GREETING_MAX];
    size_t len = hello ? channel_hello(p->channel, &peer->challenge, p->opt.address, greeting)
                       : channel_welcome(p->channel, &peer->theirs, greeting);
    void *msg = nn_allocmsg(len, 0);

    if (msg != NULL) {
        memcpy(msg, greeting, len);
        if (!peer_try_send(peer, msg, len)) {
            nn_freemsg(msg);
            return false;
        }
    }
    return true;
}

bool peer_send_greetings(struct peer *peer)
{
    if (peer->welcome_due && send_greeting(peer, false)) {
        peer->welcome_due = false;
    }
    if (peer->hello_due && !peer->welcome_due && send_greeting(peer, true)) {
        peer->hello_due = false;
    }
    return !peer->welcome_due && !peer->hello_due;
}

void peer_ask_session(struct peer *peer)
{
    uint64_t now = uv_now(peer->owner->loop);

    if (peer->asking && now - peer->asked_ms < HELLO_AGAIN_MS) {
        return;
    }
    if (!peer->asking) {
        challenge_make(&peer->challenge);
        peer->asking = true;
    }
    peer->asked_ms = now;
    peer->hello_due = true;
    if (!peer_send_greetings(peer)) {
        peer_wait_writable(peer);
    }
}

/* ---- receiving ---- */

static void hello_received(struct peers *p, const struct channel_received *r)
{
    struct peer *peer = peer_find_or_open(p, r->address);

    if (peer == NULL) {
        return;
    }
    peer->theirs = r->challenge;
    peer->welcome_due = true;
    if (!peer->open || memcmp(peer->session.b, r->from.b, sizeof r->from.b) != 0) {
        peer_ask_session(peer); /* it was started again, so what is sealed for it is for nobody */
    }
    if (!peer_send_greetings(peer)) {
        peer_wait_writable(peer);
    }
}

static void welcome_received(struct peers *p, const struct channel_received *r)
{
    struct peer *peer = p->first;

    while (peer != NULL && (!peer->asking || memcmp(peer->challenge.b, r->challenge.b, sizeof r->challenge.b) != 0)) {
        peer = peer->next;
    }
    if (peer != NULL) {
        peer->asking = peer->hello_due = false;
        peer->session = r->from;
        peer->open = true;
        peer_flush(peer);
    }
}

void peer_received(struct peers *p, void *msg, size_t len)
{
    struct channel_received r;
    struct err e;
    int rv;

    if (p->channel == NULL) {
        if (channel_is_sealed(msg, len)) {
            err_set(&e, DUST_REFUSED,
                "a sealed message was ignored: this member has no key, and whoever sent it has one (keyfile=FILE gives it the "
                "cluster's)");
            p->opt.refused(p->opt.ctx, &e);
        } else {
            p->opt.recv(p->opt.ctx, msg, len);
        }
        return;
    }
    rv = channel_open(p->channel, msg, len, &r, &e);
    if (rv != DUST_OK) {
        p->stats.dropped++;
        if (rv != DUST_EXISTS) {
            p->opt.refused(p->opt.ctx, &e);
        }
    } else if (r.kind == CHANNEL_MESSAGE) {
        p->opt.recv(p->opt.ctx, (void *)(uintptr_t)r.body, r.len);
    } else if (r.kind == CHANNEL_STALE) {
        p->stats.dropped++;
        p->opt.stale(p->opt.ctx, (void *)(uintptr_t)r.body, r.len);
    } else if (r.kind == CHANNEL_HELLO) {
        hello_received(p, &r);
    } else {
        welcome_received(p, &r);
    }
}
