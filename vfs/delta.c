/* The difference between two contents of one page.
 *
 * Format: runs, in ascending order:
 *     varint  gap: bytes that stay as they are, since the end of the run before
 *             (for the first run: since the start of the page)
 *     varint  length of the run, in bytes
 *     bytes   the new content of the run
 * A varint is 7 bits a byte, the lowest first, the high bit set in all but the last; up to 3 bytes here, and
 * as short as its value allows. Page sizes up to 65536.
 *
 * Valid: a gap may be 0 in the first run only; a length is at least 1; no run reaches beyond the page; the
 * last run's bytes end the difference; all of it is shorter than the page. An empty difference changes
 * nothing.
 *
 * Two runs become one where that is not longer: the bytes between them cost what they are, a run of its own
 * costs the two varints. The choice is made run by run from left to right, each time for the smaller sum so
 * far; the best of all choices would save a byte once in a while.
 *
 * Most of a changed page is unchanged, so what counts is the speed of skipping: 64 bytes at a time, by words
 * that the compiler makes vectors of. Pure functions; any thread. */
#include "vfs/delta.h"

#include <endian.h>
#include <stdbool.h>
#include <string.h>

#include "vfs/err.h"

#define BLOCK 64
#define VARINT_MAX 3

static inline uint64_t load(const uint8_t *p)
{
    uint64_t w;

    memcpy(&w, p, sizeof w);
    return le64toh(w);
}

/* Non-zero bytes where the pages differ; the lowest is the first. `at` is a multiple of 8. */
static inline uint64_t differ(const uint8_t *old, const uint8_t *new, size_t at)
{
    return load(new + at) ^ (old != NULL ? load(old + at) : 0);
}

static inline bool block_equal(const uint8_t *old, const uint8_t *new, size_t at)
{
    uint64_t x = 0;

    for (size_t i = 0; i < BLOCK; i += 8) {
        x |= differ(old, new, at + i);
    }
    return x == 0;
}

/* The first byte from `at` on that differs, or n. */
static inline size_t next_different(const uint8_t *old, const uint8_t *new, size_t at, size_t n)
{
    uint64_t x;

    if (at % 8 != 0) {
        x = differ(old, new, at - at % 8) >> (8 * (at % 8));
        if (x != 0) {
            return at + (size_t)__builtin_ctzll(x) / 8;
        }
        at += 8 - at % 8;
    }
    for (; at < n; at += 8) {
        if (at % BLOCK == 0) {
            while (at < n && block_equal(old, new, at)) {
                at += BLOCK;
            }
            if (at == n) {
                break;
            }
        }
        x = differ(old, new, at);
        if (x != 0) {
            return at + (size_t)__builtin_ctzll(x) / 8;
        }
    }
    return n;
}

/* The first byte after `at`, which differs, that does not, or n. */
static inline size_t next_equal(const uint8_t *old, const uint8_t *new, size_t at, size_t n)
{
    const uint64_t ones = 0x0101010101010101u, tops = ones << 7;
    uint64_t passed = ((uint64_t)1 << (8 * (at % 8))) - 1; /* bytes of the first word that do not count */

    for (at -= at % 8; at < n; at += 8) {
        uint64_t x = differ(old, new, at) | passed;
        uint64_t zero = (x - ones) & ~x & tops; /* its lowest bit marks the first zero byte of x */

        if (zero != 0) {
            return at + (size_t)__builtin_ctzll(zero) / 8;
        }
        passed = 0;
    }
    return n;
}

static inline size_t varint_size(size_t v)
{
    return v < (1u << 7) ? 1 : v < (1u << 14) ? 2 : 3;
}

static inline uint8_t *varint_put(uint8_t *p, size_t v)
{
    for (; v >= 0x80; v >>= 7) {
        *p++ = (uint8_t)(v | 0x80);
    }
    *p++ = (uint8_t)v;
    return p;
}

/* Returns what is behind it; NULL if there is no valid one. */
static const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, size_t *v)
{
    *v = 0;
    for (unsigned i = 0; i < VARINT_MAX && p < end; i++) {
        uint8_t byte = *p++;

        *v |= (size_t)(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            return byte == 0 && i > 0 ? NULL : p;
        }
    }
    return NULL;
}

/* One copy of this is made for each caller, so that a NULL for `old` costs nothing. */
static inline __attribute__((always_inline)) size_t encode(
    const uint8_t *old, const uint8_t *new, size_t n, uint8_t *out)
{
    size_t start = next_different(old, new, 0, n), stop, next = 0, next_stop = 0, end = 0;
    uint8_t *p = out;

    if (start == n) {
        return 0;
    }
    stop = next_equal(old, new, start, n);
    for (;;) {
        next = next_different(old, new, stop, n);
        if (next < n) {
            size_t gap = next - stop, apart, together;

            next_stop = next_equal(old, new, next, n);
            apart = varint_size(gap) + varint_size(next_stop - next);
            together = gap + varint_size(next_stop - start) - varint_size(stop - start);
            if (together <= apart) {
                stop = next_stop;
                continue;
            }
        }
        if ((size_t)(p - out) + varint_size(start - end) + varint_size(stop - start) + stop - start >= n) {
            return n;
        }
        p = varint_put(p, start - end);
        p = varint_put(p, stop - start);
        memcpy(p, new + start, stop - start);
        p += stop - start;
        if (next == n) {
            return (size_t)(p - out);
        }
        end = stop;
        start = next;
        stop = next_stop;
    }
}

size_t delta_encode(const uint8_t *old, const uint8_t *new, uint32_t page_size, uint8_t *out)
{
    return old != NULL ? encode(old, new, page_size, out) : encode(NULL, new, page_size, out);
}

/* The run at p begins at *at and has *len bytes; returns where its bytes are, or NULL if it is not valid. */
static const uint8_t *run_get(const uint8_t *p, const uint8_t *end, size_t *at, size_t *len)
{
    size_t gap;

    p = varint_get(p, end, &gap);
    if (p == NULL) {
        return NULL;
    }
    *at += gap;
    return varint_get(p, end, len);
}

int delta_check(uint32_t page_size, const uint8_t *delta, size_t len)
{
    const uint8_t *p = delta, *end = delta + len;
    size_t at = 0, n;

    if (len == 0) {
        return DUST_OK;
    }
    if (len >= page_size) {
        return DUST_CORRUPT;
    }
    while (p < end) {
        size_t before = at;
        bool first = p == delta;

        p = run_get(p, end, &at, &n);
        if (p == NULL || (at == before && !first) || n == 0 || at >= page_size || n > page_size - at ||
            n > (size_t)(end - p)) {
            return DUST_CORRUPT;
        }
        p += n;
        at += n;
    }
    return DUST_OK;
}

int delta_apply(uint8_t *page, uint32_t page_size, const uint8_t *delta, size_t len)
{
    const uint8_t *p = delta, *end = delta + len;
    size_t at = 0, n;

    if (delta_check(page_size, delta, len) != DUST_OK) {
        return DUST_CORRUPT;
    }
    while (p < end) {
        p = run_get(p, end, &at, &n);
        memcpy(page + at, p, n);
        p += n;
        at += n;
    }
    return DUST_OK;
}
