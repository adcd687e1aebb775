/* report: what is kept of what went wrong, and what the host is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "vfs/report.h"

static char logged[ERR_TEXT_MAX];
static int n_logged;

static void on_log(void *ctx, int code, const char *text)
{
    (void)code;
    assert_ptr_equal(ctx, &n_logged);
    n_logged++;
    strcpy(logged, text);
}

static void test_the_newest_comes_first_and_the_oldest_go(void **state)
{
    struct report_line lines[REPORT_KEPT];
    struct report r = {0};

    (void)state;
    report_init(&r);
    r.log = on_log;
    r.log_ctx = &n_logged;
    n_logged = 0;
    assert_int_equal(report_last(&r, lines, REPORT_KEPT), 0);
    for (int i = 0; i < REPORT_KEPT + 5; i++) {
        report(&r, DUST_IO, "number %d", i);
    }
    assert_int_equal(n_logged, REPORT_KEPT + 5);
    assert_string_equal(logged, "number 20");
    assert_int_equal(report_last(&r, lines, REPORT_KEPT), REPORT_KEPT);
    assert_string_equal(lines[0].text, "number 20");
    assert_string_equal(lines[REPORT_KEPT - 1].text, "number 5");
    assert_int_equal(report_last(&r, lines, 2), 2);
    assert_int_equal(lines[1].code, DUST_IO);
    report_deinit(&r);
}

static void test_the_same_line_is_not_repeated(void **state)
{
    struct report_line lines[REPORT_KEPT];
    struct report r = {0};
    struct err e;

    (void)state;
    report_init(&r);
    err_set(&e, DUST_IO, "the disk has a hiccup");
    for (int i = 0; i < 3; i++) {
        report_err(&r, &e);
    }
    report(&r, DUST_OK, "the disk is well");
    report_err(&r, &e);
    assert_int_equal(report_last(&r, lines, REPORT_KEPT), 3);
    assert_string_equal(lines[1].text, "the disk is well");
    report_deinit(&r);
}

static void test_a_long_line_is_cut(void **state)
{
    struct report_line lines[1];
    struct report r = {0};
    char text[3 * ERR_TEXT_MAX];

    (void)state;
    report_init(&r);
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    report(&r, DUST_OK, "%s", text);
    assert_int_equal(report_last(&r, lines, 1), 1);
    assert_true(strlen(lines[0].text) < ERR_TEXT_MAX && strlen(lines[0].text) > ERR_TEXT_MAX / 2);
    report_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_newest_comes_first_and_the_oldest_go),
        cmocka_unit_test(test_the_same_line_is_not_repeated),
        cmocka_unit_test(test_a_long_line_is_cut),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
