/* raft/channel: sealed messages, as they come from whoever reaches the socket.
 *
 * The first byte of the input chooses: bit 0: the rest is what came, as it is; else the rest is what a member with the key
 * has sealed, of the kind in bits 1 to 3 (kinds that there are not, too), so that it gets past the tag; bit 4: it is for
 * this start of the receiver; bit 5: it is opened twice; bits 6 and 7: one byte of it is changed, at the place and by the
 * value that the next three bytes say. */
#include "raft/channel.h"
#include "tests/fuzz/fuzz.h"

static struct channel *by;
static uint8_t session[16]; /* of the receiver */
static struct keys keys;

/* A copy of the receiver's session, as a greeting tells it. */
static void set_up(void)
{
    static const char line[] = "dust-key-1:5151515151515151515151515151515151515151515151515151515151515151\n";
    uint8_t welcome[CHANNEL_GREETING_MAX];
    struct challenge challenge = {{0}};
    struct channel_received r;
    struct channel *other;
    size_t n;

    check(keys_parse(line, sizeof line - 1, "it", &keys, NULL) == DUST_OK);
    check(channel_new(&by, &keys, NULL) == DUST_OK && channel_new(&other, &keys, NULL) == DUST_OK);
    n = channel_welcome(by, &challenge, welcome);
    check(channel_open(other, welcome, n, &r, NULL) == DUST_OK && r.kind == CHANNEL_WELCOME);
    memcpy(session, r.from.b, sizeof session);
    channel_free(other);
}

/* As channel.c writes it down, by the library alone. */
static void seal(uint8_t *msg, unsigned kind, uint64_t counter, size_t n)
{
    uint8_t secret[32];

    crypto_kdf_derive_from_key(secret, sizeof secret, 1, "dustpeer", keys.key[0].secret);
    memcpy(msg, "dse1", 4);
    msg[4] = (uint8_t)kind;
    memcpy(msg + 5, keys.key[0].hint, 3);
    memset(msg + 8, 0x77, 16);
    le_put(msg + 24, counter, 8);
    crypto_aead_xchacha20poly1305_ietf_encrypt_detached(
        msg + 32, msg + 32 + n, NULL, msg + 32, n, msg, 8, NULL, msg + 8, secret);
}

static void check_opened(const struct channel_received *r, unsigned kind, const uint8_t *plain, size_t n, bool ours)
{
    check(memcmp(r->from.b, "\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77\x77", 16) == 0);
    if (kind == 1) {
        check(n >= 16 && r->kind == (ours ? CHANNEL_MESSAGE : CHANNEL_STALE) && r->len == n - 16);
        check(r->len == 0 || memcmp(r->body, plain + 16, r->len) == 0);
    } else if (kind == 2) {
        struct address a;

        check(n == 17u + plain[16] && memcmp(r->challenge.b, plain, 16) == 0 && strlen(r->address) == plain[16]);
        check(memcmp(r->address, plain + 17, plain[16]) == 0);
        check(address_parse(r->address, &a, NULL) == DUST_OK && a.port != 0 && strcmp(a.text, r->address) == 0);
    } else {
        check(kind == 3 && n == 16 && memcmp(r->challenge.b, plain, 16) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint64_t counter;
    struct input in = {data, size};
    unsigned flags = (unsigned)input_number(&in, 1), kind = flags >> 1 & 7;
    bool raw = (flags & 1) != 0, ours = false, changed = false;
    struct channel_received r, untouched;
    uint8_t *plain, *msg, *copy;
    size_t n, len;
    size_t at = (flags & 0xc0) == 0xc0 ? (size_t)input_number(&in, 2) : 0;
    uint8_t by_what = (flags & 0xc0) == 0xc0 ? (uint8_t)input_number(&in, 1) : 0;
    struct err e;
    int rv;

    if (by == NULL) {
        set_up();
    }
    plain = exact_copy(in.p, in.left);
    n = in.left;
    if (raw) {
        len = n;
        msg = exact_copy(plain, n);
    } else {
        if (kind == 1 && (flags & 16) != 0 && n >= 16) {
            memcpy(plain, session, 16);
        }
        ours = n >= 16 && memcmp(plain, session, 16) == 0;
        len = 32 + n + 16;
        msg = must_alloc(len);
        memcpy(msg + 32, plain, n);
        seal(msg, kind, ++counter, n);
        if (by_what != 0) {
            msg[at % len] ^= by_what;
            changed = true;
        }
    }
    memset(&untouched, 0x5a, sizeof untouched);
    r = untouched;
    copy = exact_copy(msg, len);
    err_clear(&e);
    rv = channel_open(by, copy, len, &r, &e);
    check_err(&e, rv);
    check(!changed || rv == DUST_REFUSED);
    if (rv == DUST_OK && raw) { /* (of the corpus: sealed with this key) */
        check(r.kind == CHANNEL_STALE && (const uint8_t *)r.body == copy + CHANNEL_HEAD && r.len == len - CHANNEL_HEAD - 16);
    } else if (rv == DUST_OK) {
        check_opened(&r, kind, plain, n, ours);
    } else {
        check(all_are(&r, 0x5a, sizeof r));
        check(raw || changed || rv == DUST_CORRUPT);
    }
    if (!raw && rv == DUST_OK && kind == 1 && ours && (flags & 32) != 0) { /* once more */
        memcpy(copy, msg, len);
        check(channel_open(by, copy, len, &r, &e) == DUST_EXISTS);
    }
    free(copy);
    free(msg);
    free(plain);
    return 0;
}
