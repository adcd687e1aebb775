/* Unit tests of raft/key: what is a file of keys, and what is not; who may read it; how a member keeps its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/key.h"

#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"
#define LINE(digit) "dust-key-1:" digit "000000000000000000000000000000000000000000000000000000000000000\n"

static char dir[64], file[96];

static int set_up(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/dust-key-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/key", dir);
    return 0;
}

static int tear_down(void **state)
{
    char fresh[96];

    (void)state;
    snprintf(fresh, sizeof fresh, "%s/key.new", dir);
    unlink(file);
    assert_int_equal(access(fresh, F_OK), -1); /* nothing is left behind */
    return rmdir(dir);
}

static void write_file(const char *text, mode_t mode)
{
    FILE *f = fopen(file, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0 && fclose(f) == 0 && chmod(file, mode) == 0);
}

static int parse(const char *text, struct keys *k, struct err *e)
{
    return keys_parse(text, strlen(text), "it", k, e);
}

static void test_keys_that_are_made_differ_and_are_read(void **state)
{
    char one[KEY_LINE_MAX], two[KEY_LINE_MAX], hint[KEY_HINT_TEXT];
    struct keys a, b;

    (void)state;
    assert_int_equal(key_make(one, NULL), DUST_OK);
    assert_int_equal(key_make(two, NULL), DUST_OK);
    assert_int_equal(parse(one, &a, NULL), DUST_OK);
    assert_int_equal(parse(two, &b, NULL), DUST_OK);
    assert_true(a.n == 1 && b.n == 1 && !keys_equal(&a, &b) && keys_equal(&a, &a));
    assert_int_equal(strlen(key_hint(&a, 0, hint)), 2 * KEY_HINT_BYTES);
    assert_null(strstr(one, hint)); /* it is not a part of the secret */
}

static void test_lines_that_count_for_nothing(void **state)
{
    struct keys k;

    (void)state;
    assert_int_equal(parse("# a comment\n\n" LINE("1") "\r\n# dust-key-1:\n" LINE("2") "dust-key-1:3" ZEROS, &k, NULL), DUST_MISUSE);
    assert_int_equal(parse("# a comment\n\n" LINE("1") "\r\n# dust-key-1:\n" LINE("2"), &k, NULL), DUST_OK);
    assert_int_equal(k.n, 2);
    assert_int_equal(k.key[1].secret[0], 0x20);
    assert_int_equal(parse("dust-key-1:" ZEROS, &k, NULL), DUST_OK); /* the last one without its newline */
    assert_int_equal(parse("dust-key-1:" ZEROS " \r\n", &k, NULL), DUST_OK);
    assert_int_equal(k.n, 1);
}

static void test_what_is_no_key_is_told_and_never_shown(void **state)
{
    static const char *const bad[] = {"", "\n\n# nothing\n", "hunter2\n", "dust-key-1:\n", "dust-key-1:" ZEROS "00\n",
        "dust-key-2:" ZEROS "\n", "Dust-key-1:" ZEROS "\n", " dust-key-1:" ZEROS "\n", LINE("g"), LINE("1") LINE("1"),
        LINE("1") LINE("2") LINE("3") LINE("4") LINE("5"), LINE("1") "hunter2"};
    struct keys k, untouched;
    struct err e;

    (void)state;
    memset(&untouched, 0x5a, sizeof untouched);
    k = untouched;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(parse(bad[i], &k, &e), DUST_MISUSE);
        assert_memory_equal(&k, &untouched, sizeof k);
        assert_non_null(strstr(e.text, "it"));
        assert_null(strstr(e.text, "hunter2"));
        assert_null(strstr(e.text, "0000"));
    }
    assert_int_equal(keys_parse("dust-key-1:" ZEROS "\0\n", 77, "it", &k, &e), DUST_MISUSE);
}

static void test_a_key_that_is_no_secret_is_refused(void **state)
{
    static const struct {
        mode_t mode;
        int rv;
    } modes[] = {{0600, DUST_OK}, {0400, DUST_OK}, {0640, DUST_OK}, {0644, DUST_REFUSED}, {0604, DUST_REFUSED},
        {0660, DUST_REFUSED}, {0602, DUST_REFUSED}};
    struct keys k;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        write_file(LINE("1"), modes[i].mode);
        assert_int_equal(keys_read(file, &k, &e), modes[i].rv);
        assert_true(modes[i].rv == DUST_OK || strstr(e.text, "chmod 600") != NULL);
    }
    unlink(file);
    assert_int_equal(keys_read(file, &k, &e), DUST_NOTFOUND);
    assert_non_null(strstr(e.text, file));
    assert_int_not_equal(keys_read(dir, &k, &e), DUST_OK);
}

static void test_a_file_too_long_is_refused(void **state)
{
    char text[6000];
    struct keys k;

    (void)state;
    memset(text, '#', sizeof text);
    text[sizeof text - 1] = '\0';
    write_file(text, 0600);
    assert_int_equal(keys_read(file, &k, NULL), DUST_MISUSE);
}

static void test_a_member_keeps_its_keys(void **state)
{
    struct keys a, b;
    struct stat st;

    (void)state;
    b.n = 7;
    assert_int_equal(keys_load(dir, &b, NULL), DUST_OK);
    assert_int_equal(b.n, 0);
    assert_int_equal(parse(LINE("1") LINE("2") LINE("3") LINE("4"), &a, NULL), DUST_OK);
    assert_int_equal(keys_save(dir, &a, NULL), DUST_OK);
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(keys_load(dir, &b, NULL), DUST_OK);
    assert_true(keys_equal(&a, &b));
    a.n = 1;
    assert_int_equal(keys_save(dir, &a, NULL), DUST_OK);
    assert_int_equal(keys_load(dir, &b, NULL), DUST_OK);
    assert_true(keys_equal(&a, &b));
    write_file("damaged\n", 0600);
    assert_int_equal(keys_load(dir, &b, NULL), DUST_MISUSE);
    assert_int_equal(keys_save("/nowhere/at/all", &a, NULL), DUST_IO);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_keys_that_are_made_differ_and_are_read),
        TEST(test_lines_that_count_for_nothing),
        TEST(test_what_is_no_key_is_told_and_never_shown),
        TEST(test_a_key_that_is_no_secret_is_refused),
        TEST(test_a_file_too_long_is_refused),
        TEST(test_a_member_keeps_its_keys),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
