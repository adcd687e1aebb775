/* What a member has promised: kept, compared, and believed only if it is whole. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sodium.h>

#include "raft/promise.h"

static char dir[] = "/tmp/dust-promise-XXXXXX", file[sizeof dir + 10];

static int setup(void **state)
{
    (void)state;
    unlink(file);
    return 0;
}

static struct promise again(struct promise *p)
{
    struct promise q = {0};
    struct err e;

    promise_close(p);
    assert_int_equal(promise_open(&q, dir, &e), DUST_OK);
    return q;
}

static void test_kept(void **state)
{
    struct promise p = {0};
    struct err e;

    (void)state;
    assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
    assert_int_equal(promise_check_log(&p, dir, 0, &e), DUST_OK); /* nothing was promised */
    assert_int_equal(promise_check_vote(&p, dir, 0, 0, &e), DUST_OK);
    assert_true(promise_term(&p, 7));
    assert_true(promise_vote(&p, 2));
    assert_true(promise_stored(&p, 100));
    assert_true(promise_stored(&p, 90)); /* an earlier write is told of later: nothing changes */
    p = again(&p);
    assert_true(p.term == 7 && p.vote == 2 && p.index == 100);
    assert_true(promise_term(&p, 8));
    p = again(&p);
    assert_true(p.term == 8 && p.vote == 0 && p.index == 100);
    assert_int_equal(promise_open(&p, dir, &e), DUST_OK); /* it is open */
    promise_close(&p);
    promise_close(&p);
}

static void test_less_than_promised(void **state)
{
    struct promise p = {0};
    struct err e;

    (void)state;
    assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
    promise_term(&p, 7);
    promise_vote(&p, 2);
    promise_stored(&p, 100);
    assert_int_equal(promise_check_log(&p, dir, 100, &e), DUST_OK);
    assert_int_equal(promise_check_log(&p, dir, 101, &e), DUST_OK); /* a power loss took the last note */
    assert_int_equal(promise_check_log(&p, dir, 99, &e), DUST_CORRUPT);
    assert_non_null(strstr(e.text, dir));
    assert_non_null(strstr(e.text, "entry 100"));
    assert_int_equal(promise_check_vote(&p, dir, 7, 2, &e), DUST_OK);
    assert_int_equal(promise_check_vote(&p, dir, 8, 3, &e), DUST_OK);
    assert_int_equal(promise_check_vote(&p, dir, 6, 2, &e), DUST_CORRUPT);
    assert_non_null(strstr(e.text, dir));
    assert_int_equal(promise_check_vote(&p, dir, 7, 3, &e), DUST_CORRUPT);
    assert_int_equal(promise_check_vote(&p, dir, 7, 0, &e), DUST_CORRUPT);
    promise_term(&p, 9); /* no vote in it */
    assert_int_equal(promise_check_vote(&p, dir, 9, 3, &e), DUST_OK);
    promise_close(&p);
}

static void test_taken_back(void **state)
{
    struct promise p = {0};
    struct err e;

    (void)state;
    assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
    promise_stored(&p, 100);
    assert_true(promise_lower(&p, 200)); /* it ends before that anyhow */
    assert_true(p.index == 100);
    assert_true(promise_lower(&p, 50));
    p = again(&p);
    assert_true(p.index == 50);
    promise_stored(&p, 60);
    p = again(&p);
    assert_true(p.index == 60);
    promise_close(&p);
}

static void test_damaged(void **state)
{
    struct promise p = {0};
    struct err e;
    uint8_t byte;
    int fd;

    (void)state;
    for (int i = 0; i < 64; i++) {
        assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
        promise_term(&p, 3);
        promise_stored(&p, 40);
        p.index = 0; /* of the one before */
        promise_stored(&p, 40);
        promise_close(&p);
        fd = open(file, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, i), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, i), 1);
        close(fd);
        assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
        assert_true(p.term == 0 && p.vote == 0 && p.index == 0);
        promise_close(&p);
        p = (struct promise){0};
    }
    assert_int_equal(truncate(file, 20), 0);
    assert_int_equal(promise_open(&p, dir, &e), DUST_OK);
    assert_true(p.index == 0);
    promise_close(&p);
}

static void test_no_folder(void **state)
{
    struct promise p = {0};
    struct err e;

    (void)state;
    assert_int_not_equal(promise_open(&p, "/nonexistent", &e), DUST_OK);
    assert_false(p.open);
    promise_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_kept, setup),
        cmocka_unit_test_setup(test_less_than_promised, setup),
        cmocka_unit_test_setup(test_taken_back, setup),
        cmocka_unit_test_setup(test_damaged, setup),
        cmocka_unit_test_setup(test_no_folder, setup),
    };
    int failed;

    if (sodium_init() < 0 || mkdtemp(dir) == NULL) {
        return 1;
    }
    snprintf(file, sizeof file, "%s/promise", dir);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(dir);
    return failed;
}
