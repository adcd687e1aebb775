/* Unit tests of vfs/delta: round trips over pages of every kind, the size against the best possible, and
 * differences that nobody made. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vfs/delta.h"
#include "vfs/err.h"

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % below);
}

#define MAX 65536

static uint8_t old[MAX], new[MAX], page[MAX], before[MAX], out[MAX];

static void randomize(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)rnd(256);
    }
}

/* new becomes a variation of old: some number of stretches changed, each in one of several ways. */
static void vary(size_t n)
{
    unsigned changes = rnd(4) == 0 ? rnd(300) : rnd(8);

    memcpy(new, old, n);
    while (changes-- > 0) {
        size_t at = rnd((uint32_t)n), len = 1 + rnd(rnd(3) == 0 ? (uint32_t)n : 12);

        len = len < n - at ? len : n - at;
        switch (rnd(4)) {
        case 0:
            memset(new + at, 0, len);
            break;
        case 1:
            randomize(new + at, len);
            break;
        case 2:
            for (size_t i = at; i < at + len; i += 1 + rnd(5)) {
                new[i] ^= 0x10;
            }
            break;
        default:
            memmove(new + at, new + rnd((uint32_t)(n - len + 1)), len);
        }
    }
}

static size_t vsize(size_t v)
{
    return v < 128 ? 1 : v < 16384 ? 2 : 3;
}

/* The smallest encoding there is, by trying all ways to join runs (n at most 512). */
static size_t best(const uint8_t *a, const uint8_t *b, size_t n)
{
    size_t start[512], stop[512], sum[513] = {0}, runs = 0;

    for (size_t i = 0; i < n;) {
        if (a[i] == b[i]) {
            i++;
            continue;
        }
        start[runs] = i;
        while (i < n && a[i] != b[i]) {
            i++;
        }
        stop[runs++] = i;
    }
    for (size_t i = 0; i < runs; i++) {
        sum[i + 1] = SIZE_MAX;
        for (size_t j = 0; j <= i; j++) {
            size_t len = stop[i] - start[j], gap = start[j] - (j > 0 ? stop[j - 1] : 0);
            size_t s = sum[j] + vsize(gap) + vsize(len) + len;

            sum[i + 1] = s < sum[i + 1] ? s : sum[i + 1];
        }
    }
    return sum[runs];
}

static void round_trip(const uint8_t *from, uint32_t n)
{
    size_t len;

    memset(out, 0xee, sizeof out);
    len = delta_encode(from, new, n, out);
    assert_true(len <= delta_bound(n));
    assert_int_equal(delta_bound(n), n);
    if (from != NULL) {
        memcpy(page, from, n);
    } else {
        memset(page, 0, n);
    }
    if (len == 0) {
        assert_memory_equal(page, new, n);
    }
    if (len < n) {
        assert_int_equal(delta_check(n, out, len), DUST_OK);
        assert_int_equal(delta_apply(page, n, out, len), DUST_OK);
        assert_memory_equal(page, new, n);
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++) {
        uint32_t n = (uint32_t)512 << rnd(i % 20 == 0 ? 8 : 4);

        if (rnd(3) == 0) {
            memset(old, 0, n);
        } else if (rnd(50) == 0) {
            randomize(old, n);
        }
        vary(n);
        round_trip(old, n);
        round_trip(NULL, n);
        memcpy(old, new, n);
    }
}

/* One byte, and one run, at every place. */
static void test_places(void **state)
{
    (void)state;
    randomize(old, 512);
    for (size_t at = 0; at < 512; at++) {
        for (size_t len = 1; len <= 512 - at; len += 1 + len / 3) {
            size_t n;

            memcpy(new, old, 512);
            for (size_t i = at; i < at + len; i++) {
                new[i] ^= 0xff;
            }
            round_trip(old, 512);
            n = delta_encode(old, new, 512, out);
            assert_int_equal(n, vsize(at) + vsize(len) + len >= 512 ? 512 : vsize(at) + vsize(len) + len);
        }
    }
}

static void test_equal_and_incompressible(void **state)
{
    (void)state;
    randomize(old, MAX);
    assert_int_equal(delta_encode(old, old, MAX, out), 0);
    assert_int_equal(delta_encode(old, old, 512, out), 0);
    memset(new, 0, MAX);
    assert_int_equal(delta_encode(NULL, new, MAX, out), 0);
    randomize(new, MAX);
    assert_int_equal(delta_encode(old, new, MAX, out), MAX);
    memset(page, 0x77, 512);
    assert_int_equal(delta_apply(page, 512, NULL, 0), DUST_OK);
    assert_int_equal(page[0], 0x77);
}

static void test_smallest(void **state)
{
    size_t sum = 0, least = 0;

    (void)state;
    for (int i = 0; i < 3000; i++) {
        size_t len, least_here;

        randomize(old, 512);
        vary(512);
        len = delta_encode(old, new, 512, out);
        least_here = best(old, new, 512);
        least_here = least_here < 512 ? least_here : 512;
        assert_true(len >= least_here && len <= least_here + 2);
        sum += len;
        least += least_here;
    }
    assert_true(sum - least <= sum / 1000);
    print_message("%zu bytes, the best possible are %zu\n", sum, least);
}

/* Anything may come in: it is refused and the page untouched, or it is applied within the page. */
static void test_garbage(void **state)
{
    unsigned good = 0;

    (void)state;
    randomize(old, 4096);
    for (int i = 0; i < 200000; i++) {
        uint32_t n = 512;
        uint8_t *d;
        size_t len;

        if (i % 2 == 0) {
            len = rnd(20);
            randomize(out, len);
            for (size_t k = 0; k < len; k++) {
                out[k] = rnd(2) ? (uint8_t)rnd(8) : out[k];
            }
        } else {
            vary(n);
            len = delta_encode(old, new, n, out);
            if (len == 0 || len == n) {
                continue;
            }
            if (rnd(2) == 0) {
                len = rnd((uint32_t)len);
            } else {
                out[rnd((uint32_t)len)] ^= (uint8_t)(1 + rnd(255));
            }
        }
        d = malloc(len + (len == 0)); /* so that a sanitizer sees a read beyond it */
        memcpy(d, out, len);
        memcpy(page, old, 2 * n);
        memcpy(before, page, 2 * n);
        if (delta_apply(page, n, d, len) == DUST_OK) {
            good++;
            assert_int_equal(delta_check(n, d, len), DUST_OK);
        } else {
            assert_int_equal(delta_check(n, d, len), DUST_CORRUPT);
            assert_memory_equal(page, before, n);
        }
        assert_memory_equal(page + n, before + n, n);
        free(d);
    }
    assert_true(good > 1000);
}

static void test_malformed(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
        int code;
    } cases[] = {
        {"\0\1x", 3, DUST_OK},
        {"\0\1x\1\1y", 6, DUST_OK},
        {"\0\1x\0\1y", 6, DUST_CORRUPT},          /* the second run has no gap */
        {"\0\0", 2, DUST_CORRUPT},                /* nothing in the run */
        {"\0", 1, DUST_CORRUPT},                  /* no length */
        {"\0\2x", 3, DUST_CORRUPT},               /* bytes missing */
        {"\0\1xy", 4, DUST_CORRUPT},              /* bytes left over */
        {"\x80\0\1x", 4, DUST_CORRUPT},           /* a varint longer than need be */
        {"\0\x81\0x", 4, DUST_CORRUPT},           /* the same */
        {"\x80\x80\x80\x01\1x", 6, DUST_CORRUPT}, /* a varint too long */
        {"\xff\x03\1x", 4, DUST_OK},              /* the last byte of the page */
        {"\x80\x04\1x", 4, DUST_CORRUPT},         /* behind the page */
        {"\xff\x03\2xy", 5, DUST_CORRUPT},        /* over its end */
        {"\xff\xff\x7f\1x", 5, DUST_CORRUPT},
        {"\0\xff\xff\x7fx", 5, DUST_CORRUPT},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(delta_check(512, (const uint8_t *)cases[i].bytes, cases[i].len), cases[i].code);
    }
    memset(out, 0, sizeof out);
    memcpy(out, "\0\xfe\x03", 3); /* a run of 510: with its head longer than the page, never made */
    assert_int_equal(delta_check(512, out, 513), DUST_CORRUPT);
    memcpy(out, "\0\xfc\x03", 3);
    assert_int_equal(delta_check(512, out, 511), DUST_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_equal_and_incompressible),
        cmocka_unit_test(test_smallest),
        cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_malformed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
