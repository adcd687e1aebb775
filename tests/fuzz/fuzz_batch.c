/* raft/batch: batches of the log.
 *
 * The first byte of the input chooses by bits 0 and 1:
 *   0  what lies on disk, as it is
 *   1  the same, with magic and hash put right
 *   2  the same, with the size (all there is, as far as whole entries go) and the number of the entries put right, too
 *   3  a batch, described by the rest, is written; it must be read as what it was
 * Bits 2 and 3: there are that many times 300 bytes of something else behind it. The next three bytes: which byte is
 * changed of what was read, and by what; a changed one is never taken.
 *
 * A second reader, written from the format, agrees on whether it is a batch and on what is in it; and what is read can
 * be written again, which gives the same bytes, save that those between entries are zeros then. */
#include "raft/batch.h"
#include "tests/fuzz/fuzz.h"

#define HEAD 72u
#define BLOCK 4096u
#define OTHER 300u
#define ENTRIES_MAX 24u
#define ROOM 5000u /* bytes of a batch that is written */

static const uint8_t key[32] = FUZZ_KEY, other_key[32] = {1};

struct image {
    uint8_t *p;
    size_t len;
};

/* ---- the second reader ---- */

static void hash_of(uint8_t out[16], const uint8_t *p, size_t size)
{
    blake_keyed(out, p + 16, size - 16, key);
}

static size_t up(size_t n, size_t to)
{
    return n % to != 0 ? n + to - n % to : n;
}

/* How far whole entries go, at most to `end`; *n: their number. */
static size_t walk(const uint8_t *p, size_t end, uint32_t *n)
{
    size_t at = HEAD;

    for (*n = 0; end - at >= 16; ++*n) {
        uint64_t size = le_get(p + at + 8, 4);

        if (up(size, 8) > end - at - 16 || !all_are(p + at + 13, 0, 3)) {
            break;
        }
        at += 16 + up(size, 8);
    }
    return at;
}

static bool is_batch(const uint8_t *p, size_t len)
{
    uint8_t hash[16];
    uint64_t size, first;
    uint32_t n;

    if (len < HEAD || memcmp(p + 16, "dustlog1", 8) != 0) {
        return false;
    }
    size = le_get(p + 60, 4);
    first = le_get(p + 40, 8);
    if (size < HEAD || size > len || p[64] > 1 || !all_are(p + 65, 0, 7)) {
        return false;
    }
    hash_of(hash, p, size);
    return memcmp(p, hash, 16) == 0 && walk(p, size, &n) == size && n == le_get(p + 56, 4) &&
           le_get(p + 24, 8) > le_get(p + 32, 8) && first != 0 && first + n >= first;
}

/* ---- what is read ---- */

static bool open_untouched(const uint8_t *p, size_t len, const uint8_t *with, struct batch *b)
{
    memset(b, 0x5a, sizeof *b);
    if (batch_open(p, len, with, b)) {
        return true;
    }
    check(all_are(b, 0x5a, sizeof *b));
    return false;
}

static void check_head(const struct batch *b, const uint8_t *p)
{
    check(b->seq == le_get(p + 24, 8) && b->follows == le_get(p + 32, 8) && b->first == le_get(p + 40, 8));
    check(b->floor == le_get(p + 48, 8) && b->n == le_get(p + 56, 4) && b->size == le_get(p + 60, 4));
    check((uint64_t)b->kind == le_get(p + 64, 8));
}

/* The entries are those that stand there, and written again they make the same batch. */
static void check_entries(const struct batch *b, const uint8_t *p)
{
    uint8_t *again = must_alloc(up(b->size, BLOCK)), *was = exact_copy(p, b->size);
    size_t at = HEAD, expected = HEAD, end = HEAD;
    struct batch_entry x;
    uint32_t n = 0;

    memset(again, 0x77, up(b->size, BLOCK));
    while (batch_next(p, b, &at, &x)) {
        check(x.term == le_get(p + expected, 8) && x.size == le_get(p + expected + 8, 4) && x.type == p[expected + 12]);
        check(x.data == p + expected + 16 && x.size <= b->size - expected - 16);
        memset(was + expected + 16 + x.size, 0, up(x.size, 8) - x.size);
        expected += 16 + up(x.size, 8);
        check(at == expected);
        end = batch_put(again, end, &x);
        check(end == expected);
        n++;
    }
    check(at == b->size && n == b->n);
    check(batch_seal(again, b, key) == up(b->size, BLOCK));
    hash_of(was, was, b->size);
    check(memcmp(again, was, b->size) == 0 && all_are(again + b->size, 0, up(b->size, BLOCK) - b->size));
    free(was);
    free(again);
}

/* It takes all of its bytes, as they are, and the key; and nothing behind it. */
static void check_whole(const struct batch *b, const uint8_t *p, size_t at, uint8_t by)
{
    uint8_t *alone = exact_copy(p, b->size), *less = exact_copy(p, b->size - 1);
    struct batch again;

    check(batch_begins(alone, b->size));
    check(open_untouched(alone, b->size, key, &again) && again.seq == b->seq && again.n == b->n);
    check(!open_untouched(alone, b->size, other_key, &again));
    check(!open_untouched(less, b->size - 1, key, &again));
    alone[at % b->size] ^= by != 0 ? by : 0x20;
    check(!open_untouched(alone, b->size, key, &again));
    free(less);
    free(alone);
}

/* ---- what is there to be read ---- */

/* The rest of the input, with something else behind it. */
static struct image image_of(struct input *in, size_t behind)
{
    struct image image = {.len = in->left + behind};
    size_t n = in->left;

    image.p = must_alloc(image.len);
    input_bytes(in, image.p, n);
    memset(image.p + n, 'o', behind);
    return image;
}

static void put_right(struct image *image, size_t len, bool all)
{
    uint8_t *p = image->p;
    uint64_t size;
    uint32_t n;

    if (len < HEAD) {
        return;
    }
    memcpy(p + 16, "dustlog1", 8);
    if (all) {
        le_put(p + 60, walk(p, len, &n), 4);
        le_put(p + 56, n, 4);
    }
    size = le_get(p + 60, 4);
    if (size < HEAD || size > image->len) {
        size = len;
        le_put(p + 60, size, 4);
    }
    hash_of(p, p, size);
}

/* Numbers are small or large, as few bytes as it goes. */
static uint64_t some_number(struct input *in)
{
    uint8_t n = (uint8_t)input_number(in, 1);

    return n < 0xf0 ? n : input_number(in, 8);
}

/* For entries: ROOM of them, from any of the first 256 on. */
static const uint8_t *some_bytes(void)
{
    static uint8_t bytes[ROOM + 256];

    for (size_t i = 0; bytes[sizeof bytes - 1] == 0 && i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)(1 + i * 37 % 255);
    }
    return bytes;
}

static size_t room_of(const struct batch_entry *x)
{
    return 16 + up(x->size, 8);
}

/* A batch that the rest of the input describes; *wanted and x: what must be read. */
static struct image written(struct input *in, size_t behind, struct batch *wanted, struct batch_entry *x)
{
    const uint8_t *bytes = some_bytes();
    struct image image;
    size_t at = HEAD, end;

    *wanted = (struct batch){.kind = input_number(in, 1) & 1 ? BATCH_ANEW : BATCH_FOLLOWS, .size = HEAD};
    wanted->follows = some_number(in);
    wanted->follows -= wanted->follows == UINT64_MAX;
    wanted->seq = wanted->follows + 1 + some_number(in);
    wanted->seq = wanted->seq > wanted->follows ? wanted->seq : UINT64_MAX;
    wanted->first = some_number(in);
    wanted->first = wanted->first == 0 ? 1 : wanted->first;
    wanted->floor = some_number(in);
    while (in->left > 0 && wanted->n < ENTRIES_MAX && wanted->first < UINT64_MAX - wanted->n) {
        struct batch_entry *e = &x[wanted->n];

        *e = (struct batch_entry){.term = some_number(in), .type = (uint8_t)input_number(in, 1)};
        e->size = (uint32_t)some_number(in) % ROOM;
        e->data = bytes + input_number(in, 1);
        if (wanted->size + room_of(e) > ROOM) {
            break;
        }
        wanted->size += (uint32_t)room_of(e);
        wanted->n++;
    }
    end = up(wanted->size, BLOCK);
    check(batch_blocks(wanted->size) == end && batch_room(5) == 24);
    image = (struct image){.p = must_alloc(end + behind), .len = end + behind};
    memset(image.p, 'o', image.len);
    for (uint32_t i = 0; i < wanted->n; i++) {
        at = batch_put(image.p, at, &x[i]);
    }
    check(at == wanted->size && batch_seal(image.p, wanted, key) == end);
    check(all_are(image.p + at, 0, end - at) && all_are(image.p + end, 'o', behind));
    return image;
}

static void check_written(
    const struct batch *b, const uint8_t *p, const struct batch *wanted, const struct batch_entry *x)
{
    struct batch_entry entry;
    size_t at = HEAD;

    check(b->seq == wanted->seq && b->follows == wanted->follows && b->first == wanted->first);
    check(b->floor == wanted->floor && b->n == wanted->n && b->size == wanted->size && b->kind == wanted->kind);
    for (uint32_t i = 0; i < wanted->n; i++) {
        check(batch_next(p, b, &at, &entry));
        check(entry.term == x[i].term && entry.type == x[i].type && entry.size == x[i].size);
        check(entry.size == 0 || memcmp(entry.data, x[i].data, entry.size) == 0);
    }
    check(!batch_next(p, b, &at, &entry));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned choices = (unsigned)input_number(&in, 1), how = choices & 3;
    size_t behind = (size_t)(choices >> 2 & 3) * OTHER, at = (size_t)input_number(&in, 2);
    uint8_t by = (uint8_t)input_number(&in, 1);
    struct batch_entry entries[ENTRIES_MAX];
    struct batch b, wanted;
    struct image image;
    bool taken;

    if (how == 3) {
        image = written(&in, behind, &wanted, entries);
    } else {
        image = image_of(&in, behind);
        if (how != 0) {
            put_right(&image, image.len - behind, how == 2);
        }
    }
    taken = open_untouched(image.p, image.len, key, &b);
    check(taken == is_batch(image.p, image.len) && (how != 3 || taken));
    if (taken) {
        check_head(&b, image.p);
        check_entries(&b, image.p);
        check_whole(&b, image.p, at, by);
    } else {
        check(batch_begins(image.p, image.len) == (image.len >= HEAD && memcmp(image.p + 16, "dustlog1", 8) == 0));
    }
    if (how == 3) {
        check_written(&b, image.p, &wanted, entries);
    }
    free(image.p);
    return 0;
}
