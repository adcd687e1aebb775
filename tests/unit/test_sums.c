/* Checksums of pages: each flipped bit is seen, and what a crash leaves fits the version that app.db is at. */
#undef NDEBUG
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "vfs/sums.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/dust-test-sums-XXXXXX");
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    char path[128];

    (void)state;
    snprintf(path, sizeof path, "%s/sums", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/sums-next", dir);
    unlink(path);
    return rmdir(dir);
}

static struct vid id_of(uint8_t n)
{
    struct vid v = {{n, 1}};

    return v;
}

static void test_every_bit(void **state)
{
    uint8_t page[512];
    uint64_t sum;

    (void)state;
    for (size_t i = 0; i < sizeof page; i++) {
        page[i] = (uint8_t)(i * 7 + 3);
    }
    sum = page_sum(page, sizeof page);
    for (size_t i = 0; i < 8 * sizeof page; i++) {
        page[i / 8] ^= (uint8_t)(1u << (i % 8));
        assert_true(page_sum(page, sizeof page) != sum);
        assert_true((uint32_t)page_sum(page, sizeof page) != (uint32_t)sum);
        page[i / 8] ^= (uint8_t)(1u << (i % 8));
    }
    assert_true(page_sum(page, sizeof page) == sum);
    memset(page, 0, sizeof page);
    assert_true(page_sum(page, 512) != page_sum(page, 256) && page_sum(page, 512) != 0);
}

static struct sums *must_open(uint8_t id, bool want_known)
{
    struct vid v = id_of(id);
    struct sums *s;
    bool known = !want_known;

    assert_int_equal(sums_open(&s, dir, &v, &known, NULL), DUST_OK);
    assert_int_equal(known, want_known);
    return s;
}

/* Version 1: page n has sum 100 + n, ten pages. */
static struct sums *first_version(void)
{
    struct vid v = id_of(1);
    struct sums *s = must_open(1, false);

    assert_true(sums_check(s, 5, 4711)); /* not known */
    for (uint32_t pgno = 1; pgno <= 10; pgno++) {
        sums_set(s, pgno, 100 + pgno);
    }
    assert_int_equal(sums_store(s, &v, 10, NULL), DUST_OK);
    return s;
}

static void assert_version(struct sums *s, uint8_t id)
{
    for (uint32_t pgno = 1; pgno <= 10; pgno++) {
        bool changed = id == 2 && (pgno == 2 || pgno == 3 || pgno == 8);

        assert_true(sums_check(s, pgno, (changed ? 200 : 100) + pgno) || (id == 2 && pgno > 8));
        assert_int_equal(sums_check(s, pgno, 1), id == 2 && pgno > 8); /* beyond the end: not known */
    }
}

static const struct sums_change changes[] = {{2, 202}, {3, 203}, {8, 208}};

static void test_kept(void **state)
{
    struct sums *s = first_version();

    (void)state;
    assert_version(s, 1);
    sums_close(s);
    s = must_open(1, true);
    assert_version(s, 1);
    sums_close(s);
    sums_close(must_open(3, false)); /* app.db is from elsewhere */
}

static void begin(struct sums *s)
{
    struct vid v = id_of(2);

    assert_int_equal(sums_begin(s, &v, 8, changes, 3, NULL), DUST_OK);
}

static void test_change(void **state)
{
    struct sums *s = first_version();

    (void)state;
    begin(s);
    assert_version(s, 1); /* until app.db is changed */
    assert_int_equal(sums_end(s, true, NULL), DUST_OK);
    assert_version(s, 2);
    sums_close(s);
    s = must_open(2, true);
    assert_version(s, 2);
    begin(s);
    assert_int_equal(sums_end(s, false, NULL), DUST_OK);
    sums_close(s);
    sums_close(must_open(2, true));
}

/* A crash between begin and end: app.db is at the one version or the other. */
static void test_crash(void **state)
{
    (void)state;
    for (uint8_t at = 1; at <= 2; at++) {
        struct sums *s = first_version();

        begin(s);
        sums_close(s);
        s = must_open(at, true);
        assert_version(s, at);
        sums_close(s);
        s = must_open(at, true); /* and so it stays */
        assert_version(s, at);
        sums_close(s);
        assert_int_equal(remove_dir(NULL), 0);
        assert_int_equal(mkdir(dir, 0700), 0);
    }
}

static void test_torn_next(void **state)
{
    char path[128];
    struct stat st;

    (void)state;
    snprintf(path, sizeof path, "%s/sums-next", dir);
    for (int how = 0; how < 3; how++) {
        struct sums *s = first_version();
        int fd;

        begin(s);
        sums_close(s);
        fd = open(path, O_RDWR);
        assert_int_equal(fstat(fd, &st), 0);
        if (how == 0) {
            assert_int_equal(ftruncate(fd, st.st_size - 8), 0);
        } else {
            assert_int_equal(pwrite(fd, "\xff", 1, how == 1 ? 60 : st.st_size - 1), 1);
        }
        close(fd);
        sums_close(must_open(2, false)); /* nothing is believed that is not whole */
        assert_int_equal(remove_dir(NULL), 0);
        assert_int_equal(mkdir(dir, 0700), 0);
    }
}

/* `sums-next` leads from a version that `sums` is not of. */
static void test_next_of_another(void **state)
{
    char path[128], kept[128];
    struct vid v = id_of(5);
    struct sums *s = first_version();

    (void)state;
    snprintf(path, sizeof path, "%s/sums-next", dir);
    snprintf(kept, sizeof kept, "%s/kept", dir);
    begin(s);
    assert_int_equal(rename(path, kept), 0);
    assert_int_equal(sums_end(s, false, NULL), DUST_OK);
    assert_int_equal(sums_store(s, &v, 10, NULL), DUST_OK);
    sums_close(s);
    assert_int_equal(rename(kept, path), 0);
    sums_close(must_open(2, false));
}

/* A bad block costs the sums that are in it, and no others. */
static void test_damaged_block(void **state)
{
    char path[128];
    struct vid v = id_of(1);
    struct sums *s = must_open(1, false);
    int fd;

    (void)state;
    for (uint32_t pgno = 1; pgno <= 1200; pgno++) {
        sums_set(s, pgno, 100 + pgno);
    }
    assert_int_equal(sums_store(s, &v, 1200, NULL), DUST_OK);
    sums_close(s);
    snprintf(path, sizeof path, "%s/sums", dir);
    fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, "\xff", 1, 4096 + 4096 + 80), 1); /* of page 522 */
    close(fd);
    s = must_open(1, false);
    for (uint32_t pgno = 1; pgno <= 1200; pgno++) {
        assert_int_equal(sums_known(s, pgno), pgno < 512 || pgno > 1022);
        assert_true(sums_check(s, pgno, 100 + pgno));
    }
    for (uint32_t pgno = 512; pgno <= 1022; pgno++) {
        sums_set(s, pgno, 100 + pgno);
    }
    assert_int_equal(sums_store(s, &v, 1200, NULL), DUST_OK);
    sums_close(s);
    sums_close(must_open(1, true));
    fd = open(path, O_RDWR);
    assert_int_equal(pwrite(fd, "\xff", 1, 26), 1); /* the number of pages */
    close(fd);
    s = must_open(1, false);
    assert_false(sums_known(s, 1));
    sums_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_bit),
        cmocka_unit_test_setup_teardown(test_kept, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_change, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_crash, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_torn_next, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_next_of_another, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_damaged_block, make_dir, remove_dir),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
