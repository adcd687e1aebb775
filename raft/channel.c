/* The format, byte by byte, numbers little-endian:
 *
 *      0   4  "dse1"
 *      4   1  kind: 1 message, 2 hello, 3 welcome
 *      5   3  hint of the key (key.h)
 *      8  16  session of the sender: random, new whenever it begins to listen
 *     24   8  counter of the sender, never used twice; the highest bit is the lane
 *     32   n  encrypted:    message: 16 session of the receiver, then the body
 *                           hello:   16 challenge, 1 length of the own address, the address
 *                           welcome: 16 challenge
 *   32+n  16  tag
 *
 * XChaCha20-Poly1305 (libsodium's crypto_aead_xchacha20poly1305_ietf) with bytes 8 to 31 as nonce and 0 to 7 as additional
 * data, under a key derived of the cluster's (crypto_kdf, context "dustpeer"). So all of it is authenticated. The nonce
 * is unique: the session is random, 128 bits, and its counter only grows. A forked child makes a session of its own.
 *
 * What an attacker without the key can do is to lose, delay, repeat, and send elsewhere:
 *
 * - Repeated, or sent back: a message names the session of the receiver, so it is of no use to any other member, to its
 *   sender, or to a later start of the receiver; and of each sender's session a window of counters is remembered (RFC
 *   4303, 3.4.3), so it is taken once. Sessions that were heard are never forgotten while this one lasts: only who has
 *   the key can add one.
 * - The sender learns the receiver's session by a challenge: hello asks, welcome answers with the same 16 random bytes,
 *   which were never sent before. An old welcome answers nobody. One's own hello, sent back, is not answered, else
 *   one's own session would be taken for the receiver's.
 * - A hello that is repeated has an answer that helps nobody. A hello, or a message for a start of ours that is over,
 *   makes the members greet each other anew; they go on with what they have until that is answered.
 * - A hello sent on to another member is answered by that one, whose session is then taken for the one meant: what is
 *   sealed for it is opened there, and ignored there, since it names the member it is for (recv.c).
 *
 *   sender, for each address:  unknown ──hello──▶ asked ──welcome──▶ open ──stale or a new hello──▶ open, asked again
 *
 * Who may do what is the same for all who have the key: it tells members from strangers, not from each other. There is no
 * forward secrecy: who records messages, and later gets the key, can read them. */
#include "raft/channel.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/bytes.h"

/* A member that was given a wrong key has kept it, and hears nobody: it is the one that has to say what to do. */
#define IF_HERE                                                                                                             \
    "If it is this member's that is wrong, end whatever has its database open, then open that with keyfile=FILE: what is in " \
    "there takes the place of the file `key` in its folder"

#define MAGIC "dse1"
#define AT_KIND 4
#define AT_HINT 5
#define AT_NONCE 8
#define AT_COUNTER 24
#define AT_CIPHER 32
#define OVERHEAD (AT_CIPHER + CHANNEL_TAIL)
#define WINDOW 1024u /* messages of a lane that may come out of order, since a connection was made anew */
#define LANE_BIT (1ull << 63)

_Static_assert(CHANNEL_HEAD == AT_CIPHER + sizeof(struct session), "the body stands behind the receiver's session");
_Static_assert(crypto_aead_xchacha20poly1305_ietf_NPUBBYTES == AT_CIPHER - AT_NONCE, "the nonce fits");
_Static_assert(crypto_aead_xchacha20poly1305_ietf_ABYTES == CHANNEL_TAIL, "the tag fits");
_Static_assert(OVERHEAD + 17 + ADDRESS_TEXT_MAX <= CHANNEL_GREETING_MAX, "a hello fits");

struct window {
    uint64_t highest; /* 0: none yet; the first counter is 1 */
    uint64_t seen[WINDOW / 64]; /* bit number counter % WINDOW, of the last WINDOW up to the highest */
};

struct heard { /* a session that messages came from */
    struct heard *next;
    struct session session;
    struct window lane[CHANNEL_LANES];
};

struct channel {
    struct keys keys; /* whose secrets are those derived for messages */
    struct session own;
    uint64_t counter[CHANNEL_LANES]; /* last used */
    struct heard *heard;             /* who was heard last is first */
};

int channel_new(struct channel **out, const struct keys *keys, struct err *e)
{
    struct channel *c;

    if (sodium_init() < 0) {
        return err_set(e, DUST_IO, "no source of random numbers");
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    c->keys = *keys;
    for (unsigned i = 0; i < keys->n; i++) {
        crypto_kdf_derive_from_key(c->keys.key[i].secret, KEY_BYTES, 1, "dustpeer", keys->key[i].secret);
    }
    randombytes_buf(c->own.b, sizeof c->own.b);
    *out = c;
    return DUST_OK;
}

void channel_free(struct channel *c)
{
    if (c == NULL) {
        return;
    }
    while (c->heard != NULL) {
        struct heard *h = c->heard;

        c->heard = h->next;
        free(h);
    }
    sodium_memzero(c, sizeof *c);
    free(c);
}

/* ---- sealing ---- */

/* Head, and tag behind n bytes that are encrypted in place. */
static void seal(struct channel *c, enum channel_kind kind, unsigned lane, uint8_t *msg, size_t n)
{
    memcpy(msg, MAGIC, 4);
    msg[AT_KIND] = (uint8_t)kind;
    memcpy(msg + AT_HINT, c->keys.key[0].hint, KEY_HINT_BYTES);
    memcpy(msg + AT_NONCE, c->own.b, sizeof c->own.b);
    put64(msg + AT_COUNTER, ++c->counter[lane] | (lane != 0 ? LANE_BIT : 0));
    crypto_aead_xchacha20poly1305_ietf_encrypt_detached(msg + AT_CIPHER, msg + AT_CIPHER + n, NULL, msg + AT_CIPHER, n, msg,
        AT_NONCE, NULL, msg + AT_NONCE, c->keys.key[0].secret);
}

void channel_seal(struct channel *c, const struct session *to, unsigned lane, void *msg, size_t len)
{
    memcpy((uint8_t *)msg + AT_CIPHER, to->b, sizeof to->b);
    seal(c, CHANNEL_MESSAGE, lane, msg, sizeof to->b + len);
}

size_t channel_hello(struct channel *c, const struct challenge *challenge, const char *own_address, void *out)
{
    uint8_t *p = (uint8_t *)out + AT_CIPHER;
    size_t n = strnlen(own_address, ADDRESS_TEXT_MAX - 1);

    memcpy(p, challenge->b, sizeof challenge->b);
    p[16] = (uint8_t)n;
    memcpy(p + 17, own_address, n);
    seal(c, CHANNEL_HELLO, 0, out, 17 + n);
    return OVERHEAD + 17 + n;
}

size_t channel_welcome(struct channel *c, const struct challenge *challenge, void *out)
{
    memcpy((uint8_t *)out + AT_CIPHER, challenge->b, sizeof challenge->b);
    seal(c, CHANNEL_WELCOME, 0, out, sizeof challenge->b);
    return OVERHEAD + sizeof challenge->b;
}

void challenge_make(struct challenge *out)
{
    randombytes_buf(out->b, sizeof out->b);
}

/* ---- opening ---- */

static struct heard *heard_of(struct channel *c, const struct session *session)
{
    struct heard **p = &c->heard, *h;

    while (*p != NULL && memcmp((*p)->session.b, session->b, sizeof session->b) != 0) {
        p = &(*p)->next;
    }
    h = *p;
    if (h != NULL) {
        *p = h->next;
    } else {
        h = calloc(1, sizeof *h);
        if (h == NULL) {
            return NULL;
        }
        h->session = *session;
    }
    h->next = c->heard;
    c->heard = h;
    return h;
}

/* Take a counter; false: it was taken before, or one cannot know. */
static bool take(struct window *w, uint64_t counter)
{
    uint64_t *word = &w->seen[counter % WINDOW / 64], bit = 1ull << counter % 64;

    if (counter == 0 || (counter <= w->highest && w->highest - counter >= WINDOW)) {
        return false;
    }
    if (counter <= w->highest) {
        if ((*word & bit) != 0) {
            return false;
        }
    } else if (counter - w->highest >= WINDOW) {
        memset(w->seen, 0, sizeof w->seen);
        w->highest = counter;
    } else {
        while (w->highest < counter) {
            w->highest++;
            w->seen[w->highest % WINDOW / 64] &= ~(1ull << w->highest % 64);
        }
    }
    *word |= bit;
    return true;
}

static const uint8_t *secret_of(const struct channel *c, const uint8_t *hint)
{
    for (unsigned i = 0; i < c->keys.n; i++) {
        if (memcmp(c->keys.key[i].hint, hint, KEY_HINT_BYTES) == 0) {
            return c->keys.key[i].secret;
        }
    }
    return NULL;
}

bool channel_is_sealed(const void *data, size_t len)
{
    return len >= OVERHEAD && memcmp(data, MAGIC, 4) == 0;
}

/* n bytes at p, decrypted, of a hello. */
static bool read_hello(const uint8_t *p, size_t n, struct channel_received *r)
{
    struct address a;

    if (n < 17 || p[16] >= ADDRESS_TEXT_MAX || n != 17u + p[16] || memchr(p + 17, '\0', p[16]) != NULL) {
        return false;
    }
    memcpy(r->challenge.b, p, sizeof r->challenge.b);
    memcpy(r->address, p + 17, p[16]);
    return address_parse(r->address, &a, NULL) == DUST_OK && a.port != 0 && strcmp(a.text, r->address) == 0;
}

static int read_message(struct channel *c, const uint8_t *p, size_t n, uint64_t counter, struct channel_received *r)
{
    struct heard *h;

    if (n < sizeof c->own.b) {
        return DUST_CORRUPT;
    }
    r->body = p + sizeof c->own.b;
    r->len = n - sizeof c->own.b;
    if (memcmp(p, c->own.b, sizeof c->own.b) != 0) {
        r->kind = CHANNEL_STALE;
        return DUST_OK;
    }
    h = heard_of(c, &r->from);
    return h == NULL ? DUST_NOMEM
           : take(&h->lane[(counter & LANE_BIT) != 0], counter & ~LANE_BIT) ? DUST_OK
                                                                            : DUST_EXISTS;
}

int channel_open(struct channel *c, void *data, size_t len, struct channel_received *out, struct err *e)
{
    uint8_t *p = data;
    struct channel_received r = {.len = 0};
    size_t n = len - OVERHEAD;
    const uint8_t *secret;
    char hint[KEY_HINT_TEXT];
    int rv;

    if (!channel_is_sealed(data, len)) {
        return err_set(e, DUST_REFUSED,
            "a message that is not sealed was ignored: this member has the key %s, and whoever sent it has none (keyfile=FILE, "
            "when it is started, gives it one). If it is this member that is wrong, since its cluster has no key, end whatever "
            "has its database open and delete the file `key` in its folder",
            key_hint(&c->keys, 0, hint));
    }
    secret = secret_of(c, p + AT_HINT);
    if (secret == NULL) {
        return err_set(e, DUST_REFUSED,
            "a message was ignored: it was sealed with the key %s, which this member does not have. " IF_HERE,
            sodium_bin2hex(hint, sizeof hint, p + AT_HINT, KEY_HINT_BYTES));
    }
    if (crypto_aead_xchacha20poly1305_ietf_decrypt_detached(p + AT_CIPHER, NULL, p + AT_CIPHER, n, p + AT_CIPHER + n, p,
            AT_NONCE, p + AT_NONCE, secret) != 0) {
        return err_set(e, DUST_REFUSED, "a message was ignored: it was changed on its way, or made by somebody without the key");
    }
    memcpy(r.from.b, p + AT_NONCE, sizeof r.from.b);
    if (memcmp(r.from.b, c->own.b, sizeof r.from.b) == 0) {
        return err_set(e, DUST_REFUSED, "a message of this member's own came back to it, and was ignored");
    }
    r.kind = (enum channel_kind)p[AT_KIND];
    switch (p[AT_KIND]) {
    case CHANNEL_MESSAGE:
        rv = read_message(c, p + AT_CIPHER, n, get64(p + AT_COUNTER), &r);
        break;
    case CHANNEL_HELLO:
        rv = read_hello(p + AT_CIPHER, n, &r) ? DUST_OK : DUST_CORRUPT;
        break;
    case CHANNEL_WELCOME:
        rv = n == sizeof r.challenge.b ? DUST_OK : DUST_CORRUPT;
        if (rv == DUST_OK) {
            memcpy(r.challenge.b, p + AT_CIPHER, sizeof r.challenge.b);
        }
        break;
    default:
        rv = DUST_CORRUPT;
    }
    if (rv != DUST_OK) {
        return err_set(e, rv, "%s",
            rv == DUST_CORRUPT  ? "a sealed message that makes no sense was ignored: is another member of a newer dust?"
            : rv == DUST_EXISTS ? "a message came twice, and was ignored"
                                : "out of memory");
    }
    *out = r;
    return DUST_OK;
}
