/* fuzz - what the fuzz targets share: a check that is never compiled out, a cursor over the input, and copies that end
 * where their memory ends, so that a byte read too far is noticed.
 *
 * A target is one file with LLVMFuzzerTestOneInput(). It is linked with replay.c in the normal build, and with
 * libFuzzer by tests/fuzz/run. Whatever the input, the target returns 0; a property that does not hold ends the
 * process. */
#ifndef DUST_FUZZ_H
#define DUST_FUZZ_H

#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/err.h"
#include "vfs/vid.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define check(cond) ((cond) ? (void)0 : check_failed(#cond, __FILE__, __LINE__))

static inline void check_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "%s:%d: this does not hold: %s\n", file, line, cond);
    abort();
}

/* ---- the input ---- */

/* Beyond its end there are zeros. */
struct input {
    const uint8_t *p;
    size_t left;
};

static inline uint64_t input_number(struct input *in, unsigned n)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < n && in->left > 0; i++, in->left--) {
        v |= (uint64_t)*in->p++ << (8 * i);
    }
    return v;
}

/* Fill out with n bytes. */
static inline void input_bytes(struct input *in, void *out, size_t n)
{
    size_t have = n < in->left ? n : in->left;

    if (have != 0) {
        memcpy(out, in->p, have);
    }
    memset((uint8_t *)out + have, 0, n - have);
    in->p += have;
    in->left -= have;
}

/* ---- memory ---- */

static inline void *must_alloc(size_t n)
{
    void *p = malloc(n != 0 ? n : 1);

    check(p != NULL);
    return p;
}

/* A copy with nothing behind it. */
static inline uint8_t *exact_copy(const void *data, size_t n)
{
    uint8_t *p = must_alloc(n);

    if (n != 0) {
        memcpy(p, data, n);
    } else {
        *p = 0;
    }
    return p;
}

static inline bool all_are(const void *data, uint8_t value, size_t n)
{
    const uint8_t *p = data;

    return n == 0 || (*p == value && memcmp(p, p + 1, n - 1) == 0);
}

/* ---- errors ---- */

#define ERR_UNSET (-1)

static inline void err_clear(struct err *e)
{
    e->code = ERR_UNSET;
    memset(e->text, 0x5a, sizeof e->text);
}

/* A struct err is filled when, and only when, the call has failed; and then with that code and a text. */
static inline void check_err(const struct err *e, int rv)
{
    if (rv == DUST_OK) {
        check(e->code == ERR_UNSET);
    } else {
        check(rv > 0 && rv < DUST_N_CODES && e->code == rv);
        check(e->text[0] != '\0' && memchr(e->text, '\0', sizeof e->text) != NULL);
    }
}

/* ---- hashes ---- */

#define FUZZ_KEY "the key that the fuzzer knows!!" /* of the log, for what is keyed; 32 bytes */

/* BLAKE2b-128, of which dust's checksums and ids are made. */
static inline void blake(uint8_t out[16], const void *data, size_t n)
{
    crypto_generichash(out, 16, data, n, NULL, 0);
}

static inline void blake_keyed(uint8_t out[16], const void *data, size_t n, const uint8_t key[32])
{
    crypto_generichash(out, 16, data, n, key, 32);
}

/* ---- numbers in buffers ---- */

static inline void le_put(uint8_t *p, uint64_t v, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static inline uint64_t le_get(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < n; i++) {
        v |= (uint64_t)p[i] << (8 * i);
    }
    return v;
}

#endif
