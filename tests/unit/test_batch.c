/* A batch: what is put in comes out, and nothing else is taken for one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sodium.h>

#include "raft/batch.h"

static const uint8_t key[BATCH_KEY_SIZE] = "a key", other_key[BATCH_KEY_SIZE] = "another key";
static uint8_t buf[4 * BATCH_BLOCK];

/* Three entries, of 0, 13 and `last` bytes. */
static struct batch make(size_t last, size_t *whole)
{
    uint8_t *data = calloc(1, last + 1);
    struct batch b = {.seq = (3ull << 32) + 7, .follows = (3ull << 32) + 6, .first = 100, .floor = 40, .n = 3};
    const struct batch_entry entries[3] = {{.term = 2, .type = 1, .size = 0},
        {.term = 2, .type = 2, .size = 13, .data = (const uint8_t *)"thirteen byte"},
        {.term = 3, .type = 3, .size = (uint32_t)last, .data = data}};
    size_t at = BATCH_HEAD;

    memset(buf, 0xee, sizeof buf);
    for (size_t i = 0; i < last; i++) {
        data[i] = (uint8_t)(i * 7 + 1);
    }
    for (int i = 0; i < 3; i++) {
        at = batch_put(buf, at, &entries[i]);
    }
    free(data);
    b.size = (uint32_t)at;
    *whole = batch_seal(buf, &b, key);
    return b;
}

static void test_comes_out(void **state)
{
    const size_t sizes[] = {1, 8, 100, BATCH_BLOCK - BATCH_HEAD - 3 * BATCH_ENTRY_HEAD - 16, BATCH_BLOCK, 9000};

    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t whole, at = BATCH_HEAD;
        struct batch_entry e;
        struct batch b = make(sizes[k], &whole), out;

        assert_int_equal(whole % BATCH_BLOCK, 0);
        assert_true(whole >= b.size && whole < b.size + BATCH_BLOCK);
        for (size_t i = b.size; i < whole; i++) {
            assert_int_equal(buf[i], 0);
        }
        assert_int_equal(buf[whole], 0xee);
        assert_true(batch_open(buf, b.size, key, &out));
        assert_true(out.seq == b.seq && out.follows == b.follows && out.first == 100 && out.floor == 40);
        assert_true(out.n == 3 && out.size == b.size && out.kind == BATCH_FOLLOWS);
        assert_true(batch_next(buf, &out, &at, &e) && e.term == 2 && e.type == 1 && e.size == 0);
        assert_true(batch_next(buf, &out, &at, &e) && e.term == 2 && e.type == 2 && e.size == 13);
        assert_memory_equal(e.data, "thirteen byte", 13);
        assert_true(batch_next(buf, &out, &at, &e) && e.term == 3 && e.type == 3 && e.size == sizes[k]);
        assert_int_equal(e.data[sizes[k] - 1], (uint8_t)((sizes[k] - 1) * 7 + 1));
        assert_false(batch_next(buf, &out, &at, &e));
    }
}

static void test_nothing_else(void **state)
{
    size_t whole;
    struct batch b = make(50, &whole), out;

    (void)state;
    assert_false(batch_open(buf, b.size, other_key, &out));
    assert_false(batch_open(buf, b.size - 1, key, &out));
    for (size_t i = 0; i < b.size; i++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            buf[i] ^= (uint8_t)(1u << bit);
            assert_false(batch_open(buf, whole, key, &out));
            buf[i] ^= (uint8_t)(1u << bit);
        }
    }
    assert_true(batch_open(buf, whole, key, &out));
    for (size_t n = 0; n < b.size; n++) {
        uint8_t *cut = malloc(n + 1);

        memcpy(cut, buf, n);
        assert_false(batch_open(cut, n, key, &out));
        free(cut);
    }
    memset(buf, 0, sizeof buf);
    assert_false(batch_begins(buf, sizeof buf));
    assert_false(batch_open(buf, sizeof buf, key, &out));
}

/* Sealed by somebody who knows the key, and makes no sense. */
static void test_does_not_hold_together(void **state)
{
    size_t whole;
    struct batch b = make(50, &whole), out, bad;

    (void)state;
    bad = b;
    bad.n = 2;
    batch_seal(buf, &bad, key);
    assert_false(batch_open(buf, whole, key, &out));
    bad.n = 4;
    batch_seal(buf, &bad, key);
    assert_false(batch_open(buf, whole, key, &out));
    bad = b;
    bad.first = 0;
    batch_seal(buf, &bad, key);
    assert_false(batch_open(buf, whole, key, &out));
    bad = b;
    bad.follows = bad.seq;
    batch_seal(buf, &bad, key);
    assert_false(batch_open(buf, whole, key, &out));
    bad = b;
    bad.first = UINT64_MAX - 2;
    batch_seal(buf, &bad, key);
    assert_false(batch_open(buf, whole, key, &out));
    buf[BATCH_HEAD + 8] = 200; /* the size of an entry, beyond the end */
    batch_seal(buf, &b, key);
    assert_false(batch_open(buf, whole, key, &out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comes_out),
        cmocka_unit_test(test_nothing_else),
        cmocka_unit_test(test_does_not_hold_together),
    };

    if (sodium_init() < 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
