/* commit: where the thread that waits for an outcome meets the one that learns it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "vfs/commit.h"

static void *complete(void *arg)
{
    commit_done(arg, DUST_OK, NULL);
    return NULL;
}

static void test_the_waiter_gets_the_outcome(void **state)
{
    struct commit *c = commit_new(0);
    struct err e = {.code = -1};
    pthread_t t;

    (void)state;
    assert_int_equal(pthread_create(&t, NULL, complete, c), 0);
    assert_int_equal(commit_wait(c, 60000, &e), DUST_OK);
    assert_int_equal(e.code, DUST_OK);
    pthread_join(t, NULL);
    commit_unref(c);
}

static void test_an_error_comes_with_its_words(void **state)
{
    struct commit *c = commit_new(0);
    struct err e;

    (void)state;
    commit_done(c, DUST_VOID, "somebody else was first");
    assert_int_equal(commit_wait(c, 0, &e), DUST_VOID);
    assert_string_equal(e.text, "somebody else was first");
    commit_unref(c);
    c = commit_new(0);
    commit_done(c, DUST_FULL, NULL);
    assert_int_equal(commit_wait(c, 0, &e), DUST_FULL);
    assert_string_equal(e.text, err_text(DUST_FULL));
    commit_unref(c);
}

static void test_pending_is_no_outcome(void **state)
{
    struct commit *c = commit_new(0);

    (void)state;
    assert_int_equal(commit_wait(c, 1, NULL), COMMIT_PENDING);
    commit_unref(c); /* given up: the completer still can */
    commit_done(c, DUST_OK, NULL);
}

static void test_the_room_is_zeroed_aligned_and_outlives_the_completer(void **state)
{
    struct commit *c = commit_new(1000);
    unsigned char *room = commit_room(c);

    (void)state;
    assert_true((uintptr_t)room % _Alignof(max_align_t) == 0);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(room[i], 0);
        room[i] = (unsigned char)i;
    }
    commit_done(c, DUST_OK, NULL);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(room[i], (unsigned char)i);
    }
    commit_unref(c);
}

static void test_a_gift_is_taken_or_freed(void **state)
{
    struct commit *c = commit_new(0);
    void *gift;

    (void)state;
    c->gift = malloc(10); /* freed with the commit: the leak checker looks */
    commit_done(c, DUST_OK, NULL);
    commit_unref(c);
    c = commit_new(0);
    c->gift = malloc(10);
    commit_done(c, DUST_OK, NULL);
    gift = c->gift;
    c->gift = NULL;
    commit_unref(c);
    memset(gift, 1, 10);
    free(gift);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_waiter_gets_the_outcome),
        cmocka_unit_test(test_an_error_comes_with_its_words),
        cmocka_unit_test(test_pending_is_no_outcome),
        cmocka_unit_test(test_the_room_is_zeroed_aligned_and_outlives_the_completer),
        cmocka_unit_test(test_a_gift_is_taken_or_freed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
