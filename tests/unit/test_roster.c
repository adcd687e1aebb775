/* What the leader says of the members: there and back, and nothing taken from garbage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "raft/roster.h"

static void test_there_and_back(void **state)
{
    const struct roster_line lines[] = {{1, 100, 0, 4}, {7, UINT64_MAX, -1, 0}, {9, 0, 123456, UINT64_MAX}};
    uint8_t bytes[sizeof lines / sizeof *lines * ROSTER_LINE_SIZE];
    struct roster r = {0};

    (void)state;
    roster_encode(lines, 3, bytes);
    assert_int_equal(bytes[0], 1); /* little-endian */
    assert_int_equal(bytes[8], 100);
    assert_true(roster_decode(&r, bytes, sizeof bytes, 55));
    assert_int_equal(r.at_ms, 55);
    for (int i = 0; i < 3; i++) {
        const struct roster_line *l = roster_find(&r, lines[i].id);

        assert_non_null(l);
        assert_true(l->match_index == lines[i].match_index);
        assert_true(l->heard_ms == lines[i].heard_ms);
        assert_true(l->boot == lines[i].boot);
    }
    assert_null(roster_find(&r, 2));
}

static void test_what_is_no_roster_changes_nothing(void **state)
{
    static uint8_t bytes[(ROSTER_MAX + 1) * ROSTER_LINE_SIZE];
    const struct roster_line one = {.id = 4, .match_index = 5, .heard_ms = 6};
    struct roster r = {0};

    (void)state;
    roster_encode(&one, 1, bytes);
    assert_true(roster_decode(&r, bytes, ROSTER_LINE_SIZE, 1));
    assert_false(roster_decode(&r, NULL, 0, 2)); /* a beacon without one */
    assert_false(roster_decode(&r, bytes, ROSTER_LINE_SIZE - 1, 2));
    assert_false(roster_decode(&r, bytes, sizeof bytes, 2)); /* more members than there can be */
    assert_int_equal(r.at_ms, 1);
    assert_int_equal(r.n, 1);
    assert_non_null(roster_find(&r, 4));
}

static void test_a_time_out_of_all_reason_is_unknown(void **state)
{
    const struct roster_line line = {.id = 4, .match_index = 5, .heard_ms = INT64_MAX};
    uint8_t bytes[ROSTER_LINE_SIZE];
    struct roster r = {0};

    (void)state;
    roster_encode(&line, 1, bytes);
    assert_true(roster_decode(&r, bytes, sizeof bytes, 0));
    assert_int_equal(roster_find(&r, 4)->heard_ms, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_what_is_no_roster_changes_nothing),
        cmocka_unit_test(test_a_time_out_of_all_reason_is_unknown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
