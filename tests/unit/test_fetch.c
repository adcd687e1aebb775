/* The messages of a state transfer: what makes sense is taken, and nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "raft/fetch.h"
#include "vfs/lockpage.h"

#define PAGE 512u

static uint8_t data[3 * (4 + PAGE)];

/* An answer for pages 5 to 7 of 9, with as many of them. */
static struct note answer(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        uint8_t *page = fetch_page_put(data + i * fetch_page_bytes(PAGE), 5 + i);

        memset(page, (int)i, PAGE);
    }
    return (struct note){
        .num = {5, 3, 100, 9, PAGE}, .id = {{{1}}}, .data = data, .data_len = n * fetch_page_bytes(PAGE)};
}

static void test_questions(void **state)
{
    struct note note = {.num = {5, 3}, .data = data, .data_len = 32};
    struct fetch f = {0};

    (void)state;
    assert_true(fetch_decode(&note, &f));
    assert_true(f.first == 5 && f.n == 3 && f.n_hashes == 2 && f.hashes == data);
    f.first = 0;
    note.data_len = 33;
    assert_false(fetch_decode(&note, &f));
    note.data_len = 64; /* more hashes than pages */
    assert_false(fetch_decode(&note, &f));
    note = (struct note){.num = {0, 3}};
    assert_false(fetch_decode(&note, &f));
    note.num[0] = 1;
    note.num[1] = 0;
    assert_false(fetch_decode(&note, &f));
    note.num[1] = FETCH_PAGES_MAX + 1;
    assert_false(fetch_decode(&note, &f));
    note.num[1] = ((uint64_t)1 << 32) + 1;
    assert_false(fetch_decode(&note, &f));
    assert_int_equal(f.first, 0); /* untouched */
    note.num[0] = UINT32_MAX - 2;
    note.num[1] = 10;
    assert_true(fetch_decode(&note, &f));
    assert_int_equal(f.n, 2);
}

static void test_an_answer(void **state)
{
    struct note note = answer(3);
    struct fetch_reply r;
    const uint8_t *page;
    uint32_t pgno;

    (void)state;
    assert_true(fetch_reply_decode(&note, 5, PAGE, &r));
    assert_true(r.n == 3 && r.n_pages == 9 && r.index == 100 && r.id.b[0] == 1);
    for (unsigned i = 0; i < 3; i++) {
        assert_true(fetch_reply_next(&r, &pgno, &page));
        assert_int_equal(pgno, 5 + i);
        assert_int_equal(page[PAGE - 1], i);
    }
    assert_false(fetch_reply_next(&r, &pgno, &page));
    note = answer(0); /* we have them all */
    assert_true(fetch_reply_decode(&note, 5, PAGE, &r));
    assert_false(fetch_reply_next(&r, &pgno, &page));
}

static void refused(const struct note *note, uint32_t first, uint32_t page_size)
{
    struct fetch_reply r = {.first = 99};

    assert_false(fetch_reply_decode(note, first, page_size, &r));
    assert_int_equal(r.first, 99);
}

static void test_answers_that_make_no_sense(void **state)
{
    struct note note = answer(3);
    static const struct {
        unsigned i;
        uint64_t v;
    } bad[] = {
        {0, 4}, {1, 0}, {1, 2}, {1, 6}, {1, FETCH_PAGES_MAX + 1}, {3, 0}, {3, 4}, {3, (uint64_t)1 << 32}, {4, 1024}};

    (void)state;
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t was = note.num[bad[i].i];

        note.num[bad[i].i] = bad[i].v;
        refused(&note, 5, PAGE);
        note.num[bad[i].i] = was;
    }
    note.data_len--;
    refused(&note, 5, PAGE);
    note = answer(3);
    fetch_page_put(data + fetch_page_bytes(PAGE), 5); /* twice */
    refused(&note, 5, PAGE);
    fetch_page_put(data + fetch_page_bytes(PAGE), 8); /* not covered */
    refused(&note, 5, PAGE);
    note = answer(2); /* the lock byte's page */
    note.num[0] = 0x40000000 / PAGE;
    note.num[3] = UINT32_MAX;
    fetch_page_put(data, 0x40000000 / PAGE);
    fetch_page_put(data + fetch_page_bytes(PAGE), 0x40000000 / PAGE + 1);
    refused(&note, 0x40000000 / PAGE, PAGE);
    assert_int_equal(lock_page(PAGE), 0x40000000 / PAGE + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_questions),
        cmocka_unit_test(test_an_answer),
        cmocka_unit_test(test_answers_that_make_no_sense),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
