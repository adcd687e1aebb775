/* raft/snapshot and raft/servers: the file of the snapshot that the log stands on, and configurations.
 *
 * The first byte of the input chooses by bits 0 and 1:
 *   0  the file, as it is
 *   1  the file without its hash, which is put behind it, and with the magic put right
 *   2  the same, and the lengths fit: that of the configuration is no more than there is, and the rest is the content
 *   3  a configuration alone
 * Bits 2 to 4: which allocation fails, if not 0. Bits 5 to 7, all set: the content is filled up with zeros until the
 * file has the largest size, or one byte less, or one more. The next three bytes: which byte is changed of what was
 * read, and by what; a changed file is never taken.
 *
 * Second readers, written from the formats, agree; and what is read can be written again, which gives the same bytes if
 * the configuration is of the form that libraft gives it. */
#include "raft/member.h"
#include "raft/servers.h"
#include "raft/snapshot.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/heap.h"

#define HEAD 40u
#define HASH 16u
#define FILE_MAX ((size_t)65536)

static const uint8_t key[32] = FUZZ_KEY, other_key[32] = {1};

/* ---- configurations ---- */

/* The second reader: what servers_decode() must return. *used: bytes of it that mean something. */
static int servers_code(const uint8_t *p, size_t len, size_t *used)
{
    uint64_t n;
    size_t at = 9, first = 9;

    if (len < 9) {
        return DUST_CORRUPT;
    }
    if (p[0] != 1) {
        return DUST_VERSION;
    }
    n = le_get(p + 1, 8);
    for (uint64_t i = 0; i < n; i++) {
        size_t text = at + 8, end = text;

        while (end < len && p[end] != 0) {
            end++;
        }
        if (len - at < 10 || len - end < 2 || end - text > 63 || p[end + 1] > 2 || all_are(p + at, 0, 8)) {
            return DUST_CORRUPT;
        }
        for (size_t other = first; other < at;) { /* each is there once */
            size_t n_text = strlen((const char *)p + other + 8);

            if (memcmp(p + other, p + at, 8) == 0 ||
                (n_text == end - text && memcmp(p + other + 8, p + text, n_text) == 0)) {
                return DUST_CORRUPT;
            }
            other += 8 + n_text + 2;
        }
        at = end + 2;
    }
    *used = at;
    return DUST_OK;
}

static void check_servers(const struct raft_configuration *c, const uint8_t *p)
{
    size_t at = 9;

    check(c->n == le_get(p + 1, 8) && (c->servers != NULL) == (c->n != 0));
    for (unsigned i = 0; i < c->n; i++) {
        const struct raft_server *s = &c->servers[i];

        check(s->id == le_get(p + at, 8) && strcmp(s->address, (const char *)p + at + 8) == 0);
        check(strlen(s->address) < ADDRESS_TEXT_MAX);
        at += 8 + strlen(s->address) + 1;
        check(s->role == p[at++]);
    }
}

/* As libraft writes it, which leaves its last bytes as they happen to be: zeros here. Has nothing in it, if there is no
 * server: libraft writes no such thing. */
static struct raft_buffer encoded(const struct raft_configuration *c, size_t used)
{
    struct raft_buffer buf = {0};

    if (c->n != 0) {
        check(raft_configuration_encode(c, &buf) == 0 && buf.len == (used + 7) / 8 * 8);
        memset((uint8_t *)buf.base + used, 0, buf.len - used);
    }
    return buf;
}

static void configuration(const uint8_t *data, size_t len, unsigned refused)
{
    uint8_t *copy = exact_copy(data, len);
    struct raft_configuration c;
    size_t used = 0;
    int rv, code = servers_code(copy, len, &used);

    memset(&c, 0x5a, sizeof c);
    heap_begin(refused);
    rv = servers_decode(copy, len, &c);
    if (heap_end()) {
        check(rv == DUST_NOMEM);
    } else {
        check(rv == code);
    }
    if (rv == DUST_OK) {
        struct raft_buffer buf;

        check_servers(&c, copy);
        buf = encoded(&c, used);
        check(buf.base == NULL || memcmp(buf.base, copy, used) == 0);
        raft_free(buf.base);
        raft_configuration_close(&c);
    } else {
        check(c.n == 0 && c.servers == NULL);
    }
    check(n_held == 0);
    free(copy);
}

/* ---- snapshots ---- */

/* The second reader. *used: of the configuration. */
static int snapshot_code(const uint8_t *p, size_t len, size_t *used)
{
    uint8_t hash[16];
    uint64_t conf;

    if (len < HEAD + HASH || len > FILE_MAX || memcmp(p, "dustsnap", 8) != 0 || all_are(p + 8, 0, 8)) {
        return DUST_CORRUPT;
    }
    conf = le_get(p + 32, 4);
    blake_keyed(hash, p, len - HASH, key);
    if (memcmp(p + len - HASH, hash, HASH) != 0 || HEAD + conf + le_get(p + 36, 4) + HASH != len) {
        return DUST_CORRUPT;
    }
    return servers_code(p + HEAD, (size_t)conf, used);
}

static void check_snapshot(const struct raft_snapshot *s, const uint8_t *p, size_t len, size_t used)
{
    size_t conf = (size_t)le_get(p + 32, 4), content = len - HEAD - conf - HASH, at = HEAD;
    struct raft_buffer buf;

    check(s->index == le_get(p + 8, 8) && s->term == le_get(p + 16, 8) && s->configuration_index == le_get(p + 24, 8));
    check_servers(&s->configuration, p + HEAD);
    check(s->n_bufs == 1 && s->bufs != NULL && s->bufs[0].base != NULL && s->bufs[0].len == content);
    check(content == 0 || memcmp(s->bufs[0].base, p + HEAD + conf, content) == 0);
    buf = encoded(&s->configuration, used);
    if (buf.len == conf && all_are(p + HEAD + used, 0, conf - used)) {
        uint8_t *again = must_alloc(len);

        memcpy(again, "dustsnap", 8);
        le_put(again + 8, s->index, 8);
        le_put(again + 16, s->term, 8);
        le_put(again + 24, s->configuration_index, 8);
        le_put(again + 32, buf.len, 4);
        le_put(again + 36, s->bufs[0].len, 4);
        memcpy(again + at, buf.base, buf.len);
        at += buf.len;
        memcpy(again + at, s->bufs[0].base, s->bufs[0].len);
        at += s->bufs[0].len;
        blake_keyed(again + at, again, at, key);
        check(at + HASH == len && memcmp(again, p, len) == 0);
        free(again);
    }
    raft_free(buf.base);
}

static int decode(struct raft_snapshot **s, const uint8_t *p, size_t len, const uint8_t *with)
{
    static struct raft_snapshot untouched;
    int rv;

    *s = &untouched;
    rv = snapshot_decode(s, p, len, with);
    check(rv == DUST_OK ? *s != NULL && *s != &untouched : *s == &untouched);
    return rv;
}

/* It takes all of its bytes, as they are, and the key. */
static void check_whole(uint8_t *p, size_t len, size_t at, uint8_t by)
{
    uint8_t *less = exact_copy(p, len - 1);
    struct raft_snapshot *s;

    check(decode(&s, p, len, other_key) == DUST_CORRUPT);
    check(decode(&s, less, len - 1, key) == DUST_CORRUPT);
    p[at % len] ^= by != 0 ? by : 0x20;
    check(decode(&s, p, len, key) == DUST_CORRUPT);
    free(less);
}

/* How many zeros fill it up, to one of three lengths. */
static size_t filling(unsigned choices, size_t length, size_t n)
{
    size_t all = FILE_MAX - 1 + length % 3 - HASH;

    return choices >> 5 != 7 || n > all ? 0 : all - n;
}

/* The file that the rest of the input is, or is made to be. */
static uint8_t *file_of(struct input *in, unsigned choices, size_t at, size_t *len)
{
    size_t n = in->left, zeros = filling(choices, at, n);
    uint8_t *p;

    if ((choices & 3) == 0 || n < HEAD) {
        *len = n;
        return exact_copy(in->p, n);
    }
    *len = n + zeros + HASH;
    p = must_alloc(*len);
    input_bytes(in, p, n + zeros);
    memcpy(p, "dustsnap", 8);
    if ((choices & 3) == 2) {
        uint64_t most = n - HEAD, conf = le_get(p + 32, 4);

        conf = conf <= most ? conf : conf % (most + 1);
        le_put(p + 32, conf, 4);
        le_put(p + 36, n + zeros - HEAD - conf, 4);
    }
    blake_keyed(p + n + zeros, p, n + zeros, key);
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned choices = (unsigned)input_number(&in, 1), refused = choices >> 2 & 7;
    size_t at = (size_t)input_number(&in, 2), len, used = 0;
    uint8_t by = (uint8_t)input_number(&in, 1), *file;
    struct raft_snapshot *s;
    int rv, code;

    if ((choices & 3) == 3) {
        configuration(in.p, in.left, refused);
        return 0;
    }
    file = file_of(&in, choices, at, &len);
    code = snapshot_code(file, len, &used);
    heap_begin(refused);
    rv = decode(&s, file, len, key);
    if (heap_end()) {
        check(rv == DUST_NOMEM);
    } else {
        check(rv == code);
    }
    if (rv == DUST_OK) {
        check_snapshot(s, file, len, used);
        snapshot_free(s);
    }
    check(n_held == 0);
    if (rv == DUST_OK) {
        check_whole(file, len, at, by);
    }
    free(file);
    return 0;
}
