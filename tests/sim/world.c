/* Chance (xorshift128+), the trace and the end of a run. See world.h. */
#include "tests/sim/world.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct world world = {.rng = {1, 2}, .now_ns = 1000 * S_NS};

static uint64_t split(uint64_t *x)
{
    uint64_t z = (*x += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

void chance_begin(uint64_t seed)
{
    world.rng[0] = split(&seed);
    world.rng[1] = split(&seed) | 1;
}

uint64_t chance64(void)
{
    uint64_t x = world.rng[0], y = world.rng[1];

    world.rng[0] = y;
    x ^= x << 23;
    world.rng[1] = x ^ y ^ (x >> 17) ^ (y >> 26);
    return world.rng[1] + y;
}

uint64_t chance_below(uint64_t n)
{
    return chance64() % n;
}

uint64_t chance_between(uint64_t from, uint64_t to)
{
    return from + chance64() % (to - from + 1);
}

bool chance(unsigned per_10000)
{
    return per_10000 != 0 && chance_below(10000) < per_10000;
}

void chance_bytes(void *buf, size_t n)
{
    uint8_t *p = buf;

    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(chance64() >> 32);
    }
}

uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdull;
    return h ^ (h >> 32);
}

uint64_t mix_bytes(uint64_t h, const void *p, size_t n)
{
    const uint8_t *b = p;
    uint64_t w;

    for (; n >= 8; n -= 8, b += 8) {
        memcpy(&w, b, 8);
        h = mix(h, w);
    }
    w = 0;
    memcpy(&w, b, n);
    return mix(h, w ^ (uint64_t)n << 56);
}

void trace(uint64_t what, uint64_t a, uint64_t b)
{
    world.hash = mix(mix(world.hash, what ^ a << 8), b ^ world.now_ns);
}

void say(unsigned level, const char *fmt, ...)
{
    va_list ap;

    if (world.verbose < level) {
        return;
    }
    printf("%10.4f ", (double)world.now_ns / S_NS - 1000);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    putchar('\n');
}

static void __attribute__((format(printf, 2, 0), noreturn)) end_run(enum verdict verdict, const char *fmt, va_list ap)
{
    char text[REASON_MAX - 40];

    vsnprintf(text, sizeof text, fmt, ap);
    snprintf(world.result->reason, sizeof world.result->reason, "%.3f s: %s", (double)world.now_ns / S_NS - 1000, text);
    world.result->verdict = verdict;
    world.result->hash = world.hash;
    say(1, "end: %s", text);
    fflush(stdout);
    if (!world.running) {
        fprintf(stderr, "node_sim: the cluster cannot be set up: %s\n", text);
        _exit(2);
    }
    _exit(0);
}

void violation(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(VERDICT_VIOLATION, fmt, ap);
}

void stuck(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(VERDICT_STUCK, fmt, ap);
}

void passed(void)
{
    world.result->verdict = VERDICT_PASSED;
    world.result->hash = world.hash;
    fflush(stdout);
    _exit(0);
}

void *must(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "node_sim: out of memory\n");
        _exit(1);
    }
    return p;
}
