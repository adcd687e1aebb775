/* Copies told from members by the number of their start. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "raft/starts.h"

static void test_verdicts(void **state)
{
    struct starts s;
    struct member m = {.n_seen = 1, .seen = {{.id = 7, .starts = 3}}};
    uint64_t known = 0;

    (void)state;
    starts_load(&s, &m);
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(2, 9), &known), STARTS_COPY); /* older than what is remembered */
    assert_true(known == STARTS_BOOT(3, 0));
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(3, 1), &known), STARTS_NEW); /* the first of that number stays */
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(3, 1), &known), STARTS_KNOWN);
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(3, 2), &known), STARTS_COPY);
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(4, 2), &known), STARTS_NEW);
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(3, 1), &known), STARTS_COPY); /* what was well is passed over now */
    assert_true(known == STARTS_BOOT(4, 2));
    assert_int_equal(starts_judge(&s, 8, STARTS_BOOT(1, 5), &known), STARTS_NEW);
    starts_save(&s, &m);
    assert_int_equal(m.n_seen, 2);
    assert_int_equal(m.seen[0].starts, 4);
    assert_true(m.seen[1].id == 8 && m.seen[1].starts == 1);
    starts_load(&s, &m); /* and so after a restart of who remembers */
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(4, 3), &known), STARTS_COPY); /* an old folder's next start */
    assert_true(known == STARTS_BOOT(4, 2));
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(4, 2), &known), STARTS_KNOWN);
}

static void test_what_is_known(void **state)
{
    struct starts s;
    struct member m = {.n_seen = 1, .seen = {{.id = 7, .starts = 3}}};
    uint64_t known;

    (void)state;
    starts_load(&s, &m);
    assert_true(starts_known(&s, 7) == 0); /* the number is, its nonce is not */
    assert_int_equal(starts_judge(&s, 7, STARTS_BOOT(3, 1), &known), STARTS_NEW);
    assert_true(starts_known(&s, 7) == STARTS_BOOT(3, 1));
    assert_true(starts_known(&s, 8) == 0);
}

/* Told of a start of this member, which is at its third, with nonce 5. */
static void test_is_it_me(void **state)
{
    uint64_t own = STARTS_BOOT(3, 5);

    (void)state;
    assert_false(starts_is_copy(own, own));
    assert_false(starts_is_copy(own, STARTS_BOOT(2, 9))); /* the one before */
    assert_false(starts_is_copy(own, STARTS_BOOT(3, 0))); /* this one, for all that is known */
    assert_true(starts_is_copy(own, STARTS_BOOT(3, 6)));
    assert_true(starts_is_copy(own, STARTS_BOOT(4, 0)));
}

static void test_more_members_than_lines(void **state)
{
    struct starts s = {.n = 0};
    struct member m = {.n_seen = 0};
    uint64_t known;

    (void)state;
    for (uint64_t id = 1; id <= 100; id++) {
        assert_int_equal(starts_judge(&s, id, STARTS_BOOT(1, id), &known), STARTS_NEW);
    }
    starts_save(&s, &m);
    assert_int_equal(m.n_seen, MEMBER_SEEN_MAX);
    for (unsigned i = 0; i < m.n_seen; i++) {
        assert_true(m.seen[i].id > 100 - MEMBER_SEEN_MAX); /* the newest members are remembered */
    }
    assert_int_equal(starts_judge(&s, 100, STARTS_BOOT(1, 100), &known), STARTS_KNOWN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_what_is_known),
        cmocka_unit_test(test_is_it_me),
        cmocka_unit_test(test_more_members_than_lines),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
