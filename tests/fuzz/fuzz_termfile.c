/* raft/termfile: the file that a member's term is in.
 *
 * The first byte of the input chooses: bits 0 to 2: the magic and the hash of that block are put right; bits 3 and 4:
 * the counts are those that fit the place of their block, so that both count; bit 5: the rest of the input is the file
 * as it is, of whatever length; else the rest is what the three blocks begin with, 64 bytes each, and the file has its
 * length. Bit 6: what lies behind these bytes is not zeros. The next three bytes: which byte is changed of these 64 of
 * each, and by what.
 *
 * A second reader, written from the format, agrees; what is read is what one block has, and can be written again; with
 * a byte changed in the key nothing is read, with one changed in a term that term is not; the term before is, if there
 * is one. */
#include "raft/termfile.h"
#include "tests/fuzz/fuzz.h"

#define BLOCK 4096u
#define FILE_SIZE (3 * BLOCK)
#define MEANT 64u /* bytes of a block */

static void hash_of(uint8_t out[16], const uint8_t *block, const uint8_t *key)
{
    if (key == NULL) {
        blake(out, block, 48);
    } else {
        blake_keyed(out, block, 48, key);
    }
}

/* ---- the second reader ---- */

static bool whole(const uint8_t *block, const char *magic, const uint8_t *key)
{
    uint8_t hash[16];

    hash_of(hash, block, key);
    return memcmp(block, magic, 8) == 0 && memcmp(block + 48, hash, 16) == 0;
}

static bool term_at(const uint8_t *file, unsigned i)
{
    const uint8_t *p = file + (size_t)i * BLOCK;

    return whole(p, "dustterm", file + 8) && (p[8] & 1u) == i - 1;
}

/* The block of the term that counts; 0: there is none. */
static unsigned counts(const uint8_t *file, size_t len)
{
    bool a, b;

    if (len != FILE_SIZE || !whole(file, "dustkey1", NULL)) {
        return 0;
    }
    a = term_at(file, 1);
    b = term_at(file, 2);
    if (a && b) {
        return le_get(file + BLOCK + 8, 8) > le_get(file + 2 * BLOCK + 8, 8) ? 1 : 2;
    }
    return a ? 1 : b ? 2 : 0;
}

/* ---- what is read ---- */

static bool read_it(struct termfile *t, const uint8_t *file, size_t len)
{
    uint8_t *copy = exact_copy(file, len);
    struct termfile untouched;
    bool ok;

    memset(&untouched, 0x5a, sizeof untouched);
    untouched.open = true;
    memcpy(t, &untouched, sizeof untouched);
    ok = termfile_decode(t, copy, len);
    check(ok ? t->open && t->fd == untouched.fd : memcmp(t, &untouched, sizeof untouched) == 0);
    free(copy);
    return ok;
}

static void check_read(const uint8_t *file, size_t len, unsigned at)
{
    const uint8_t *p = file + (size_t)at * BLOCK;
    struct termfile t;

    check(read_it(&t, file, len) == (at != 0));
    if (at != 0) {
        uint8_t again[MEANT] = "dustterm";

        check(memcmp(t.key, file + 8, 32) == 0 && t.count == le_get(p + 8, 8) && t.term == le_get(p + 16, 8));
        check(t.vote == le_get(p + 24, 8) && t.life == le_get(p + 32, 8));
        le_put(again + 8, t.count, 8);
        le_put(again + 16, t.term, 8);
        le_put(again + 24, t.vote, 8);
        le_put(again + 32, t.life, 8);
        hash_of(again + 48, again, t.key);
        check(memcmp(p, again, 40) == 0);
        check(!all_are(p + 40, 0, 8) || memcmp(p + 48, again + 48, 16) == 0);
    }
}

static void check_changed(uint8_t *file, unsigned at, size_t which, uint8_t by)
{
    unsigned block = (unsigned)(which / MEANT) % 3, after;

    file[block * BLOCK + which % MEANT] ^= by != 0 ? by : 1;
    after = counts(file, FILE_SIZE);
    check(block != 0 || after == 0);
    check(block != at || after != at);
    check_read(file, FILE_SIZE, after);
}

/* ---- the file ---- */

/* One that may be right: 64 bytes for each block. */
static void make(uint8_t *file, struct input *in, unsigned choices)
{
    memset(file, choices & 64 ? 'x' : 0, FILE_SIZE);
    for (unsigned i = 0; i < 3; i++) {
        uint8_t *p = file + (size_t)i * BLOCK;

        input_bytes(in, p, MEANT);
        if (i != 0 && choices >> (2 + i) & 1) {
            p[8] = (uint8_t)((p[8] & ~1u) | (i - 1));
        }
        if (choices >> i & 1) {
            memcpy(p, i == 0 ? "dustkey1" : "dustterm", 8);
            hash_of(p + 48, p, i == 0 ? NULL : file + 8);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned choices = (unsigned)input_number(&in, 1), at;
    size_t which = (size_t)input_number(&in, 2), len;
    uint8_t by = (uint8_t)input_number(&in, 1), *file;

    if (choices & 32) {
        len = in.left;
        file = exact_copy(in.p, len);
    } else {
        len = FILE_SIZE;
        file = must_alloc(len);
        make(file, &in, choices);
    }
    at = counts(file, len);
    check_read(file, len, at);
    check_read(file, len == FILE_SIZE ? len - 1 : 0, 0); /* it must be whole */
    if (at != 0) {
        check_changed(file, at, which, by);
    }
    free(file);
    return 0;
}
