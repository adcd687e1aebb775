/* What a member says that a failing disk keeps from taking part. The guard's work is tested in sim/guard. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "raft/guard.h"

/* It begins anew without anybody's help (raft/again.c), and must not ask for it. */
static void test_comes_back(void **state)
{
    struct raft r = {0};
    struct guard g;
    struct err e;

    (void)state;
    guard_init(&g, &r);
    assert_int_equal(guard_status(&g, &e), DUST_OK);
    guard_metadata_failed(&g);
    assert_true(guard_dead(&g));
    assert_int_equal(guard_status(&g, &e), DUST_IO);
    assert_non_null(strstr(e.text, "the term or the vote could not be stored"));
    assert_non_null(strstr(e.text, "comes back by itself"));
    assert_null(strstr(e.text, "start it"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_comes_back)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
