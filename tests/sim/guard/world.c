/* guard_sim: chance, and how a run ends. */
#include "tests/sim/guard/world.h"

uint64_t random64(struct sim *s)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return s->rng;
}

unsigned random_below(struct sim *s, unsigned n)
{
    return (unsigned)(random64(s) % n);
}

bool chance(struct sim *s, unsigned per_10000)
{
    return random_below(s, 10000) < per_10000;
}

uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdull;
    return h ^ (h >> 32);
}

/* End the run: this seed has failed. */
static void __attribute__((format(printf, 3, 0), noreturn))
end_run(struct sim *s, enum verdict verdict, const char *fmt, va_list ap)
{
    char text[REASON_MAX - 40];

    vsnprintf(text, sizeof text, fmt, ap);
    snprintf(s->outcome->reason, sizeof s->outcome->reason, "step %lu: %s", s->step, text);
    s->outcome->verdict = verdict;
    _exit(0);
}

/* A promise was broken. */
void __attribute__((format(printf, 2, 3), noreturn)) violation(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(s, UNSAFE, fmt, ap);
}

/* Nothing was broken, but there is no way on. */
void __attribute__((format(printf, 2, 3), noreturn)) stuck(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(s, STUCK, fmt, ap);
}

void *must(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "guard_sim: out of memory\n");
        _exit(1);
    }
    return p;
}
