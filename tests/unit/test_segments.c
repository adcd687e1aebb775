/* How far the log in libraft's files goes, by files written from the format. */
#include <dirent.h>
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

#include "raft/segments.h"

static char dir[] = "/tmp/dust-segments-XXXXXX";

/* Two batches, of one entry and of two, of 8 bytes each, as libraft 0.15 writes them. */
static const uint8_t two_batches[] = {
    1, 0, 0, 0, 0, 0, 0, 0, /* format */
    0x3c, 0x18, 0x3c, 0x84, 0x81, 0x36, 0x0f, 0x7d, 1, 0, 0, 0, 0, 0, 0, 0, /* checksums, count */
    3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0,                         /* term, type, size */
    1, 2, 3, 4, 5, 6, 7, 8,                                                 /* data */
    0x64, 0x70, 0x1a, 0x49, 0x8f, 0xc0, 0x5d, 0x4a, 2, 0, 0, 0, 0, 0, 0, 0, /* checksums, count */
    3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0,                         /* … */
    3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0,                         /* */
    1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2,
};
#define FIRST_END 48

static void make(const char *name, const void *data, size_t size, size_t zeros)
{
    char path[sizeof dir + 64];
    int fd;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    assert_int_equal(ftruncate(fd, (off_t)(size + zeros)), 0);
    close(fd);
}

static int rename_(const char *from, const char *to)
{
    char a[sizeof dir + 64], b[sizeof dir + 64];

    snprintf(a, sizeof a, "%s/%s", dir, from);
    snprintf(b, sizeof b, "%s/%s", dir, to);
    return rename(a, b);
}

static uint64_t last(void)
{
    uint64_t v = 12345;
    struct err e;

    assert_int_equal(segments_last(dir, &v, &e), DUST_OK);
    return v;
}

static int empty(void **state)
{
    char path[sizeof dir + 300];
    struct dirent *d;
    DIR *folder = opendir(dir);

    (void)state;
    while (folder != NULL && (d = readdir(folder)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", dir, d->d_name);
        unlink(path);
    }
    closedir(folder);
    return 0;
}

static void test_names(void **state)
{
    (void)state;
    assert_true(last() == 0);
    make("metadata1", "", 0, 32);
    make("open-3x", two_batches, sizeof two_batches, 0); /* nobody's */
    assert_true(last() == 0);
    make("snapshot-2-7-99.meta", "", 0, 10);
    make("snapshot-2-7-99", "", 0, 10);
    assert_true(last() == 7);
    make("0000000000000005-0000000000000006", "", 0, 10);
    assert_true(last() == 7); /* the snapshot is beyond the segments */
    make("0000000000000007-0000000000000020", "", 0, 10);
    assert_true(last() == 20);
    make("open-1", two_batches, sizeof two_batches, 4096);
    make("open-2", "", 0, 4096);
    assert_true(last() == 23);
    make("open-2", two_batches, sizeof two_batches, 0);
    assert_true(last() == 26);
}

static void test_where_a_batch_is_not_whole(void **state)
{
    uint8_t bytes[sizeof two_batches];

    (void)state;
    make("snapshot-2-7-99.meta", "", 0, 10);
    for (size_t cut = 0; cut <= sizeof two_batches; cut++) {
        make("open-1", two_batches, cut, 4096);
        assert_true(last() == 7u + (cut >= FIRST_END) + 2 * (cut == sizeof two_batches));
    }
    for (size_t at = 8; at < sizeof two_batches; at++) {
        memcpy(bytes, two_batches, sizeof bytes);
        bytes[at] ^= 0x40;
        make("open-1", bytes, sizeof bytes, 100);
        assert_true(last() == 7u + (at >= FIRST_END));
    }
    make("open-2", two_batches, sizeof two_batches, 0); /* does not follow on what is broken */
    assert_true(last() == 8);
    make("open-1", two_batches, FIRST_END, 100); /* it was only not filled */
    assert_true(last() == 11);
}

static void test_another_format(void **state)
{
    uint8_t bytes[sizeof two_batches];
    struct err e;
    uint64_t v;

    (void)state;
    memcpy(bytes, two_batches, sizeof bytes);
    bytes[0] = 2;
    make("open-1", bytes, sizeof bytes, 0);
    assert_int_equal(segments_last(dir, &v, &e), DUST_VERSION);
    assert_int_not_equal(segments_last("/nonexistent", &v, &e), DUST_OK);
}

static bool truncated(uint64_t index)
{
    bool done;
    struct err e;

    assert_int_equal(segments_truncated(dir, index, &done, &e), DUST_OK);
    return done;
}

/* Cutting goes: the open segment is closed, a shorter one is made, the longer ones are removed. */
static void test_truncated(void **state)
{
    static const uint8_t zeros[64];

    (void)state;
    assert_true(truncated(8));
    make("0000000000000005-0000000000000007", "", 0, 10);
    make("open-4", two_batches, sizeof two_batches, 100); /* 8 to 10 */
    make("open-5", zeros, sizeof zeros, 100);
    assert_false(truncated(9));
    assert_false(truncated(8)); /* though no closed one reaches there */
    assert_int_equal(rename_("open-4", "0000000000000008-0000000000000010"), 0);
    assert_false(truncated(9));
    make("0000000000000008-0000000000000008", "", 0, 10);
    assert_false(truncated(9));
    assert_int_equal(rename_("0000000000000008-0000000000000010", "gone"), 0);
    assert_true(truncated(9));
    assert_false(truncated(8));
    make("open-5", two_batches, sizeof two_batches, 100);
    assert_false(truncated(9));
}

static bool there(const char *name)
{
    char path[sizeof dir + 64];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static void test_a_truncation_cut_short(void **state)
{
    struct err e;

    (void)state;
    assert_int_equal(segments_mend(dir, 7, &e), DUST_OK);
    make("0000000000000002-0000000000000004", "", 0, 10);
    make("0000000000000005-0000000000000007", "", 0, 10); /* cut at 8 */
    make("0000000000000012-0000000000000014", "", 0, 10);
    make("0000000000000015-0000000000000017", "", 0, 10);
    make("open-1", "", 0, 10);
    assert_int_equal(segments_mend(dir, 0, &e), DUST_OK); /* nothing is known to be promised */
    assert_int_equal(segments_mend(dir, 6, &e), DUST_OK); /* a gap for another reason */
    assert_int_equal(segments_mend(dir, 8, &e), DUST_OK);
    assert_int_equal(segments_mend(dir, 17, &e), DUST_OK);
    assert_true(there("0000000000000012-0000000000000014") && there("0000000000000015-0000000000000017"));
    assert_int_equal(segments_mend(dir, 7, &e), DUST_OK);
    assert_false(there("0000000000000012-0000000000000014") || there("0000000000000015-0000000000000017"));
    assert_true(there("0000000000000002-0000000000000004") && there("0000000000000005-0000000000000007") && there("open-1"));
    make("0000000000000005-0000000000000011", "", 0, 10); /* the one that was cut is still there */
    make("0000000000000012-0000000000000014", "", 0, 10);
    assert_int_equal(segments_mend(dir, 8, &e), DUST_OK);
    assert_int_equal(segments_mend(dir, 11, &e), DUST_OK);
    assert_int_equal(segments_mend(dir, 14, &e), DUST_OK);
    assert_true(there("0000000000000005-0000000000000011") && there("0000000000000012-0000000000000014"));
    assert_int_equal(segments_mend(dir, 7, &e), DUST_OK);
    assert_false(there("0000000000000005-0000000000000011") || there("0000000000000012-0000000000000014"));
    assert_true(there("0000000000000002-0000000000000004") && there("0000000000000005-0000000000000007") && there("open-1"));
    make("0000000000000008-0000000000000009", "", 0, 10); /* as it should be: the promise may be behind */
    make("0000000000000010-0000000000000014", "", 0, 10);
    assert_int_equal(segments_mend(dir, 7, &e), DUST_OK);
    assert_int_equal(segments_mend(dir, 4, &e), DUST_OK);
    assert_int_equal(segments_mend(dir, 9, &e), DUST_OK);
    assert_true(there("0000000000000008-0000000000000009") && there("0000000000000010-0000000000000014"));
    assert_int_equal(segments_mend("/nowhere", 7, &e), DUST_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_names, empty),
        cmocka_unit_test_teardown(test_where_a_batch_is_not_whole, empty),
        cmocka_unit_test_teardown(test_another_format, empty),
        cmocka_unit_test_teardown(test_truncated, empty),
        cmocka_unit_test_teardown(test_a_truncation_cut_short, empty),
    };
    int failed;

    if (mkdtemp(dir) == NULL) {
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return failed;
}
