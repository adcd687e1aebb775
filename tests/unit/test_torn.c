/* Unit tests of raft/torn: which segments are emptied, which metadata removed, and what is left as it is. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "raft/torn.h"

#define SIZE 200000

enum { ZEROS, WHOLE, TORN, TORN_LATE, SHORT };

static char dir[] = "/tmp/dust-torn-XXXXXX";

static const char *path_of(unsigned number)
{
    static char path[100];

    snprintf(path, sizeof path, "%s/open-%u", dir, number);
    return path;
}

static void put(unsigned number, int kind)
{
    static uint8_t bytes[SIZE];
    FILE *f = fopen(path_of(number), "wb");

    memset(bytes, 0, sizeof bytes);
    bytes[0] = kind == WHOLE;
    bytes[kind == TORN_LATE ? SIZE - 1 : 512] = kind != ZEROS && kind != SHORT;
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, kind == SHORT ? 3 : SIZE, f), kind == SHORT ? 3 : SIZE);
    fclose(f);
}

static bool emptied(unsigned number)
{
    struct stat st;

    assert_int_equal(stat(path_of(number), &st), 0);
    return st.st_size == 0;
}

/* Segments 9, 10 and 11 of these kinds: which one is emptied, 0 for none. */
static void check(int nine, int ten, int eleven, unsigned which)
{
    struct err e = {.code = DUST_OK};
    int kinds[] = {nine, ten, eleven};

    for (unsigned i = 0; i < 3; i++) {
        put(9 + i, kinds[i]);
    }
    assert_int_equal(torn_mend(dir, &e), DUST_OK);
    for (unsigned i = 9; i <= 11; i++) {
        assert_int_equal(emptied(i), i == which);
    }
}

static void test_which(void **state)
{
    (void)state;
    check(ZEROS, ZEROS, ZEROS, 0);
    check(WHOLE, WHOLE, ZEROS, 0);
    check(TORN, ZEROS, ZEROS, 9);
    check(WHOLE, TORN, ZEROS, 10);
    check(WHOLE, TORN_LATE, ZEROS, 10);
    check(WHOLE, WHOLE, TORN_LATE, 11);
    check(SHORT, SHORT, SHORT, 0);
}

/* Something was written after it: the disk has lost what it had stored. */
static void test_not_the_last(void **state)
{
    (void)state;
    check(TORN, WHOLE, ZEROS, 0);
    check(TORN, ZEROS, WHOLE, 0);
}

static void test_others(void **state)
{
    struct err e = {.code = DUST_OK};
    char other[100];

    (void)state;
    assert_int_equal(torn_mend("/nonexistent/folder", &e), DUST_OK);
    check(ZEROS, ZEROS, ZEROS, 0);
    put(12, TORN);
    snprintf(other, sizeof other, "%s/open-12.old", dir);
    assert_int_equal(rename(path_of(12), other), 0);
    assert_int_equal(torn_mend(dir, &e), DUST_OK);
    assert_int_equal(rename(other, path_of(12)), 0);
    assert_false(emptied(12));
}

/* A metadata file: none, 32 bytes with this version, only zeros, or cut off. */
enum { NONE = -1, CUT = -2 };

static void put_metadata(int number, int version)
{
    uint8_t bytes[32] = {version > 0, 0, 0, 0, 0, 0, 0, 0, (uint8_t)version};
    size_t size = version == CUT ? 20 : sizeof bytes;
    char path[100];
    FILE *f;

    snprintf(path, sizeof path, "%s/metadata%d", dir, number);
    unlink(path);
    if (version != NONE) {
        f = fopen(path, "wb");
        assert_non_null(f);
        assert_int_equal(fwrite(bytes, 1, size, f), size);
        fclose(f);
    }
}

static void check_metadata(int one, int two, bool one_stays, bool two_stays)
{
    struct err e;
    char path[100];

    put_metadata(1, one);
    put_metadata(2, two);
    assert_int_equal(torn_mend(dir, &e), DUST_OK);
    snprintf(path, sizeof path, "%s/metadata1", dir);
    assert_int_equal(access(path, F_OK) == 0, one_stays);
    snprintf(path, sizeof path, "%s/metadata2", dir);
    assert_int_equal(access(path, F_OK) == 0, two_stays);
}

static void test_metadata(void **state)
{
    (void)state;
    check_metadata(NONE, NONE, false, false);
    check_metadata(0, NONE, false, false);
    check_metadata(1, 0, true, false);
    check_metadata(1, 2, true, true);
    check_metadata(0, 2, true, true); /* it had been whole */
    check_metadata(3, 0, true, true);
    check_metadata(0, 0, true, true);
    check_metadata(CUT, NONE, true, false);
    check_metadata(1, CUT, true, true);
    check_metadata(NONE, NONE, false, false);
}

static int remove_all(void **state)
{
    (void)state;
    for (unsigned i = 9; i <= 12; i++) {
        unlink(path_of(i));
    }
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which),
        cmocka_unit_test(test_not_the_last),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_metadata),
    };

    if (mkdtemp(dir) == NULL) {
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, remove_all);
}
