/* metrics: quantiles are never too low, and an eighth too high at most; nothing is lost among threads. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/metrics.h"

static struct times times;

static int set_up(void **state)
{
    (void)state;
    memset(&times, 0, sizeof times);
    return 0;
}

static void none(void **state)
{
    (void)state;
    assert_int_equal(times_quantile(&times, 50, 100), 0);
    assert_int_equal(times_quantile(&times, 999, 1000), 0);
}

static void each_value_is_near(void **state)
{
    uint64_t us[] = {0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 100, 1000, 4095, 4096, 4097, 123456789, (1ull << 36) - 1};

    (void)state;
    for (size_t i = 0; i < sizeof us / sizeof us[0]; i++) {
        memset(&times, 0, sizeof times);
        times_add(&times, us[i]);
        times_add(&times, UINT64_C(1) << 50); /* so that the longest does not tell */
        assert_true(times_quantile(&times, 1, 2) >= us[i]);
        assert_true(times_quantile(&times, 1, 2) <= us[i] + us[i] / 8);
    }
}

static void never_more_than_the_longest(void **state)
{
    (void)state;
    times_add(&times, 1000);
    assert_int_equal(times_quantile(&times, 50, 100), 1000);
    times_add(&times, UINT64_MAX);
    assert_int_equal(times_quantile(&times, 99, 100), UINT64_MAX);
    assert_int_equal(times.max_us, UINT64_MAX);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* Against what sorting says. */
static void quantiles(void **state)
{
    enum { N = 10007 };
    static uint64_t us[N];
    const unsigned parts[] = {1, 10, 500, 900, 990, 999, 1000};
    uint64_t sum = 0;

    (void)state;
    srand(1);
    for (unsigned i = 0; i < N; i++) {
        us[i] = (uint64_t)rand() >> rand() % 31;
        sum += us[i];
        times_add(&times, us[i]);
    }
    qsort(us, N, sizeof us[0], compare);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        uint64_t is = us[(N * parts[i] + 999) / 1000 - 1], said = times_quantile(&times, parts[i], 1000);

        assert_true(said >= is);
        assert_true(said <= is + is / 8);
    }
    assert_int_equal(times.count, N);
    assert_int_equal(times.sum_us, sum);
    assert_int_equal(times.max_us, us[N - 1]);
}

enum { THREADS = 4, EACH = 20000 };

static void *add_many(void *arg)
{
    struct metrics *m = arg;

    for (unsigned i = 0; i < EACH; i++) {
        metrics_add(m, METRIC_COMMITS, 2);
        times_add(&m->times[TIMING_COMMIT], i);
    }
    return NULL;
}

static void threads(void **state)
{
    static struct metrics m;
    pthread_t t[THREADS];

    (void)state;
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, add_many, &m), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    assert_int_equal(metrics_get(&m, METRIC_COMMITS), 2 * THREADS * EACH);
    assert_int_equal(m.times[TIMING_COMMIT].count, THREADS * EACH);
    assert_int_equal(m.times[TIMING_COMMIT].max_us, EACH - 1);
    assert_int_equal(times_quantile(&m.times[TIMING_COMMIT], 1, 1), EACH - 1);
}

static void each_has_a_name(void **state)
{
    (void)state;
    for (enum metric i = 0; i < METRIC_COUNT; i++) {
        assert_non_null(metric_name(i));
        for (enum metric j = 0; j < i; j++) {
            assert_string_not_equal(metric_name(i), metric_name(j));
        }
    }
    for (enum timing i = 0; i < TIMING_COUNT; i++) {
        assert_non_null(timing_name(i));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(none, set_up),
        cmocka_unit_test_setup(each_value_is_near, set_up),
        cmocka_unit_test_setup(never_more_than_the_longest, set_up),
        cmocka_unit_test_setup(quantiles, set_up),
        cmocka_unit_test(threads),
        cmocka_unit_test(each_has_a_name),
    };

    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
