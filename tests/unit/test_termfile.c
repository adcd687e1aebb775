/* Term, vote and life of a member: kept, and found as they were, or as they were before. */
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

#include "raft/termfile.h"

static char dir[] = "/tmp/dust-termfile-XXXXXX", file[sizeof dir + 10];

static int setup(void **state)
{
    (void)state;
    unlink(file);
    return 0;
}

static struct termfile opened(bool make)
{
    struct termfile t;
    struct err e;

    assert_int_equal(termfile_open(&t, dir, make, &e), DUST_OK);
    return t;
}

static void set(struct termfile *t, uint64_t term, uint64_t vote, uint64_t life)
{
    struct err e;

    assert_int_equal(termfile_set(t, term, vote, life, &e), DUST_OK);
    assert_true(t->term == term && t->vote == vote && t->life == life);
}

static void read_file(uint8_t data[TERMFILE_SIZE])
{
    int fd = open(file, O_RDONLY);

    assert_int_equal(read(fd, data, TERMFILE_SIZE), TERMFILE_SIZE);
    close(fd);
}

static void write_file(const uint8_t *data, size_t n)
{
    int fd = open(file, O_WRONLY | O_TRUNC);

    assert_int_equal(write(fd, data, n), (ssize_t)n);
    close(fd);
}

static void test_kept(void **state)
{
    struct termfile t, u;
    struct err e;

    (void)state;
    assert_int_equal(termfile_open(&t, dir, false, &e), DUST_NOTFOUND);
    t = opened(true);
    assert_true(t.term == 0 && t.vote == 0 && t.life == 0);
    for (uint64_t i = 1; i < 10; i++) {
        set(&t, i, i % 3, i / 2);
        u = opened(false);
        assert_true(u.term == i && u.vote == i % 3 && u.life == i / 2);
        assert_memory_equal(u.key, t.key, sizeof t.key);
        termfile_close(&u);
    }
    termfile_close(&t);
    termfile_close(&t);
    unlink(file);
    u = opened(true);
    assert_memory_not_equal(u.key, t.key, sizeof t.key);
    termfile_close(&u);
}

/* A write that was torn leaves what was there before, wherever it was torn; so does a damaged one. */
static void test_torn(void **state)
{
    uint8_t before[TERMFILE_SIZE], after[TERMFILE_SIZE], mixed[TERMFILE_SIZE];
    struct termfile t = opened(true), u;

    (void)state;
    set(&t, 5, 1, 1);
    set(&t, 6, 2, 1);
    read_file(before);
    set(&t, 7, 3, 1);
    read_file(after);
    for (size_t cut = 0; cut <= TERMFILE_SIZE; cut += 4) {
        memcpy(mixed, after, cut);
        memcpy(mixed + cut, before + cut, TERMFILE_SIZE - cut);
        write_file(mixed, sizeof mixed);
        u = opened(false);
        assert_true((u.term == 6 && u.vote == 2) || (u.term == 7 && u.vote == 3));
        set(&u, 9, 1, 1);
        termfile_close(&u);
        u = opened(false);
        assert_true(u.term == 9 && u.vote == 1);
        termfile_close(&u);
    }
    write_file(after, sizeof after);
    for (size_t i = TERMFILE_BLOCK; i < TERMFILE_SIZE; i += i % TERMFILE_BLOCK == 63 ? TERMFILE_BLOCK - 63 : 1) {
        memcpy(mixed, after, sizeof mixed);
        mixed[i] ^= 1;
        write_file(mixed, sizeof mixed);
        u = opened(false);
        assert_true(u.term == 6 || u.term == 7);
        termfile_close(&u);
    }
    termfile_close(&t);
}

static void test_damaged(void **state)
{
    uint8_t data[TERMFILE_SIZE], bad[TERMFILE_SIZE];
    struct termfile t = opened(true);
    struct err e;

    (void)state;
    set(&t, 5, 1, 1);
    set(&t, 6, 1, 1);
    termfile_close(&t);
    read_file(data);
    for (size_t i = 0; i < 64; i++) { /* the key */
        memcpy(bad, data, sizeof bad);
        bad[i] ^= 0x40;
        write_file(bad, sizeof bad);
        assert_int_equal(termfile_open(&t, dir, true, &e), DUST_CORRUPT);
        assert_non_null(strstr(e.text, "/term is damaged"));
    }
    memcpy(bad, data, sizeof bad);
    memset(bad + TERMFILE_BLOCK, 0, 2 * TERMFILE_BLOCK); /* both */
    write_file(bad, sizeof bad);
    assert_int_equal(termfile_open(&t, dir, true, &e), DUST_CORRUPT);
    write_file(data, sizeof data - 1);
    assert_int_equal(termfile_open(&t, dir, true, &e), DUST_CORRUPT);
    write_file(data, 0);
    assert_int_equal(termfile_open(&t, dir, true, &e), DUST_CORRUPT);
}

/* What could not be written is not believed, and what comes next counts. */
static void test_failing(void **state)
{
    struct termfile t = opened(true), u;
    struct err e;
    int fd;

    (void)state;
    set(&t, 5, 1, 1);
    fd = t.fd;
    t.fd = open("/dev/full", O_WRONLY);
    assert_int_equal(termfile_set(&t, 6, 2, 1, &e), DUST_FULL);
    assert_true(t.term == 5 && t.vote == 1);
    close(t.fd);
    t.fd = fd;
    set(&t, 7, 2, 1);
    u = opened(false);
    assert_true(u.term == 7 && u.vote == 2);
    termfile_close(&u);
    set(&t, 8, 0, 1);
    u = opened(false);
    assert_true(u.term == 8 && u.vote == 0);
    termfile_close(&u);
    termfile_close(&t);
    assert_int_equal(termfile_open(&t, "/nonexistent", true, &e), DUST_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_kept, setup),
        cmocka_unit_test_setup(test_torn, setup),
        cmocka_unit_test_setup(test_damaged, setup),
        cmocka_unit_test_setup(test_failing, setup),
    };
    int failed;

    if (sodium_init() < 0 || mkdtemp(dir) == NULL) {
        return 1;
    }
    snprintf(file, sizeof file, "%s/term", dir);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(dir);
    return failed;
}
