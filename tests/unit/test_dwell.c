/* dwell: given up where it does not pay, and tried again from time to time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "raft/dwell.h"

static uv_loop_t loop;
static struct dwell dwell;

static bool dwelling(void)
{
    return uv_is_active((uv_handle_t *)&dwell.idle) != 0;
}

static void until_it_sleeps(void)
{
    while (dwelling()) {
        uv_run(&loop, UV_RUN_ONCE); /* does not block while an idle handle is active */
    }
}

static int set_up(void **state)
{
    (void)state;
    uv_loop_init(&loop);
    dwell_init(&dwell, &loop);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    dwell_close(&dwell);
    dwell_close(&dwell); /* twice is fine */
    uv_run(&loop, UV_RUN_DEFAULT);
    return uv_loop_close(&loop);
}

static void test_it_ends_by_itself(void **state)
{
    uint64_t before;

    (void)state;
    assert_false(dwelling());
    before = uv_hrtime();
    dwell_event(&dwell);
    assert_true(dwelling());
    until_it_sleeps();
    assert_true(uv_hrtime() - before >= DWELL_US * 1000ull);
}

static void test_it_is_given_up_where_it_does_not_pay(void **state)
{
    int n = 0;

    (void)state;
    dwell_event(&dwell);
    until_it_sleeps();
    for (int i = 0; i < 10 * DWELL_PROBE_EVERY; i++) {
        dwell_event(&dwell);
        n += dwelling();
        until_it_sleeps();
    }
    assert_int_equal(n, 10); /* one try each */
}

static void test_it_comes_back_where_it_pays(void **state)
{
    (void)state;
    dwell_event(&dwell);
    until_it_sleeps();
    do {
        dwell_event(&dwell);
    } while (!dwelling());
    for (int i = 0; i < 5 * DWELL_WORTH_MAX; i++) {
        dwell_event(&dwell); /* caught while it looked */
    }
    for (int i = 0; i < DWELL_WORTH_MAX; i++) { /* what it is worth is bounded, and lasts for so many misses */
        until_it_sleeps();
        dwell_event(&dwell);
        assert_int_equal(dwelling(), i < DWELL_WORTH_MAX - 1 || dwell.events % DWELL_PROBE_EVERY == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_it_ends_by_itself, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_it_is_given_up_where_it_does_not_pay, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_it_comes_back_where_it_pays, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
