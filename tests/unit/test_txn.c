/* txn: the map of a transaction's pages, against a plain array, with random operations. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs/txn.h"

#define PAGE 512
#define PAGES 3000

struct fixture {
    char path[64];
    struct store *store;
};

static int set_up(void **state)
{
    static struct fixture f;
    struct err e;

    strcpy(f.path, "/tmp/dust-test-txn-XXXXXX");
    close(mkstemp(f.path));
    if (store_open(&f.store, f.path, &e) != DUST_OK ||
        store_format(f.store, PAGE, &(struct vid){{1}}, 0, 0, &e) != DUST_OK) {
        return -1;
    }
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_close(f->store);
    unlink(f->path);
    return 0;
}

static uint64_t used(struct store *s)
{
    struct store_stats st;

    store_stats(s, &st);
    return st.frames_used;
}

static void random_operations(void **state)
{
    struct fixture *f = *state;
    static uint32_t model[PAGES + 1]; /* frame of each page, 0: none */
    struct txn t = {0};
    struct err e;

    srand(7);
    txn_begin(&t, f->store, 0);
    for (int i = 0; i < 20000; i++) {
        uint32_t pgno = 1 + (uint32_t)rand() % PAGES, node, count = 0;
        bool fresh;

        if (rand() % 2000 == 0) {
            txn_truncate(&t, pgno);
            for (uint32_t p = pgno + 1; p <= PAGES; p++) {
                model[p] = 0;
            }
        } else if (rand() % 5000 == 0) {
            txn_reset(&t);
            memset(model, 0, sizeof model);
        } else {
            assert_int_equal(txn_frame(&t, pgno, &node, &fresh, &e), DUST_OK);
            assert_int_equal(fresh, model[pgno] == 0);
            assert_true(fresh || node == model[pgno]);
            model[pgno] = node;
        }
        if (i % 500 == 0) {
            struct txn_page *sorted = txn_sorted(&t);

            for (uint32_t p = 1; p <= PAGES; p++) {
                assert_int_equal(txn_find(&t, p), model[p]);
                if (model[p] != 0) {
                    assert_int_equal(sorted[count].pgno, p);
                    assert_int_equal(sorted[count++].node, model[p]);
                }
            }
            assert_int_equal(count, t.n);
            assert_int_equal(used(f->store), t.n);
            free(sorted);
        }
    }
    txn_deinit(&t);
    assert_int_equal(used(f->store), 0);
}

static void disowned_frames_stay(void **state)
{
    struct fixture *f = *state;
    struct txn t = {0};
    uint32_t node;
    struct err e;
    bool fresh;

    txn_begin(&t, f->store, 0);
    assert_int_equal(txn_frame(&t, 5, &node, &fresh, &e), DUST_OK);
    txn_disown(&t);
    assert_int_equal(txn_find(&t, 5), 0);
    assert_int_equal(used(f->store), 1);
    store_frame_free(f->store, &node, 1);
    txn_deinit(&t);
    assert_int_equal(used(f->store), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(random_operations, set_up, tear_down),
        cmocka_unit_test_setup_teardown(disowned_frames_stay, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
