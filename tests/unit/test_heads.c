/* What is remembered of the versions that entries made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "raft/heads.h"

static struct vid id_of(uint64_t n)
{
    struct vid v = {{1}};

    memcpy(v.b + 8, &n, sizeof n);
    return v;
}

static void test_remembered(void **state)
{
    struct heads *h = calloc(1, sizeof *h);

    (void)state;
    assert_null(heads_at(h, 1));
    for (uint64_t i = 1; i <= 3 * HEADS_MAX; i++) {
        struct vid id = id_of(i), before = id_of(i - 1);

        heads_note(h, 3 * i, &id); /* other entries in between */
        assert_true(vid_equal(heads_at(h, 3 * i), &id));
        assert_true(vid_equal(heads_at(h, 3 * i + 1), &id));
        assert_true(i == 1 ? heads_at(h, 3 * i - 1) == NULL : vid_equal(heads_at(h, 3 * i - 1), &before));
    }
    for (uint64_t i = 1; i <= 3 * HEADS_MAX; i++) {
        struct vid id = id_of(i);
        const struct vid *got = heads_at(h, 3 * i);

        assert_true(i <= 2 * HEADS_MAX ? got == NULL : vid_equal(got, &id));
        assert_true(heads_has(h, &id) == (i > 2 * HEADS_MAX));
    }
    heads_begin(h, 500, &(struct vid){{7}});
    assert_null(heads_at(h, 499));
    assert_true(heads_has(h, &(struct vid){{7}}));
    assert_false(heads_has(h, &(struct vid){{8}}));
    assert_true(vid_equal(heads_at(h, 500), &(struct vid){{7}}));
    assert_true(vid_equal(heads_at(h, 100000), &(struct vid){{7}}));
    free(h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_remembered)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
