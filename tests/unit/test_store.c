/* store: snapshots, speculative versions, folding.
 *
 * A page's content is the number of the version that wrote it, all over; which versions write which pages is a
 * function of both, so that what any snapshot has to see can be computed. Page 1 is written by every version. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfs/store.h"

#define PAGE 512
#define PAGES 48
#define VERSIONS 2000 /* at least */
#if defined(__SANITIZE_THREAD__)
#define SNAPSHOTS 1000
#else
#define SNAPSHOTS 30000 /* to be looked through meanwhile, at least */
#endif
#define READERS 5 /* the last two attached, as another process is */
#define ATTACHED 3

static char path[64];
static struct store *store;
static _Atomic uint64_t base[PAGES + 1][PAGE / 8]; /* what app.db would be */
static _Atomic bool over;
static _Atomic int n_checked; /* snapshots that readers have looked through */

static int read_base(void *ctx, void *buf, uint32_t n, uint64_t offset)
{
    uint64_t *out = buf;

    (void)ctx;
    for (uint32_t i = 0; i < n / 8; i++) {
        out[i] = atomic_load_explicit(&base[offset / PAGE + 1][offset % PAGE / 8 + i], memory_order_relaxed);
    }
    return 0;
}

static struct vid id_of(uint64_t version)
{
    struct vid id = {{1}};

    memcpy(id.b + 1, &version, sizeof version);
    return id;
}

static bool writes(uint64_t version, uint32_t pgno)
{
    return pgno == 1 || (version * 2654435761u + pgno * 40503u) % 7 == 0;
}

static uint64_t expected(uint64_t version, uint32_t pgno)
{
    while (version > 0 && !writes(version, pgno)) {
        version--;
    }
    return version;
}

static int set_up(void **state)
{
    struct vid first = id_of(0);
    struct err e;

    (void)state;
    strcpy(path, "/tmp/dust-test-store-XXXXXX");
    close(mkstemp(path));
    memset((void *)base, 0, sizeof base);
    over = false;
    n_checked = 0;
    return store_open(&store, path, &e) == DUST_OK && store_format(store, PAGE, &first, 0, PAGES, &e) == DUST_OK ? 0
                                                                                                                : -1;
}

static int tear_down(void **state)
{
    (void)state;
    store_close(store);
    unlink(path);
    return 0;
}

static struct version *stage(uint64_t version)
{
    struct vid id = id_of(version), parent = id_of(version - 1);
    uint32_t nodes[PAGES], n = 0;
    uint64_t page[PAGE / 8];
    struct version copy, *v;
    struct err e;

    for (int i = 0; i < PAGE / 8; i++) {
        page[i] = version;
    }
    for (uint32_t pgno = 1; pgno <= PAGES; pgno++) {
        if (writes(version, pgno)) {
            assert_int_equal(store_frame_new(store, pgno, &nodes[n], &e), DUST_OK);
            store_frame_write(store, nodes[n++], 0, page, PAGE);
        }
    }
    assert_int_equal(store_stage(store, &id, &parent, PAGES, nodes, n, NULL, &copy, &e), DUST_OK);
    for (v = store_oldest_speculative(store); v->seq != copy.seq; v = v->next) {
    }
    return v;
}

static uint64_t read_page_of(struct store *of, struct snap *snap, uint32_t pgno)
{
    uint64_t page[PAGE / 8];

    assert_int_equal(store_read(of, snap, pgno, 0, PAGE, page, read_base, NULL), DUST_OK);
    for (int i = 1; i < PAGE / 8; i++) {
        assert_int_equal(page[i], page[0]);
    }
    return page[0];
}

static uint64_t read_page(struct snap *snap, uint32_t pgno)
{
    return read_page_of(store, snap, pgno);
}

static void check_snapshot_of(struct store *of, struct snap *snap)
{
    uint64_t version = read_page_of(of, snap, 1);

    for (uint32_t pgno = 2; pgno <= PAGES; pgno++) {
        assert_int_equal(read_page_of(of, snap, pgno), expected(version, pgno));
    }
}

static void check_snapshot(struct snap *snap)
{
    check_snapshot_of(store, snap);
}

static void fold(void)
{
    struct fold f;
    struct err e;

    assert_int_equal(store_fold_begin(store, &f, &e), DUST_OK);
    assert_int_equal(store_fold_keep(store, &f, read_base, NULL, &e), DUST_OK);
    for (uint32_t i = 0; i < f.n; i++) {
        const uint64_t *page = (const uint64_t *)(const void *)store_frame(store, f.pages[i].node);

        for (int k = 0; k < PAGE / 8; k++) {
            atomic_store_explicit(&base[f.pages[i].pgno][k], page[k], memory_order_relaxed);
        }
    }
    store_fold_end(store, &f, DUST_OK);
}

static void *reader(void *arg)
{
    int number = *(int *)arg;
    bool slow = number == 0 || number == ATTACHED;
    struct store *mine = NULL;
    struct head_info told;
    struct snap snap;
    uint32_t slot;
    uint64_t last = 0;

    if (number < ATTACHED) {
        mine = store_ref(store);
    } else {
        assert_int_equal(store_attach(&mine, path, (uint32_t)number, NULL), DUST_OK);
    }
    assert_int_equal(store_slot_take(mine, &slot, NULL), DUST_OK);
    while (!over) {
        store_pin(mine, slot, &snap);
        store_agreed(mine, &told);
        assert_true(told.seq >= snap.seq && told.n_pages == PAGES && snap.n_pages == PAGES);
        for (int i = 0; i < (slow ? 50 : 1); i++) {
            uint64_t version = read_page_of(mine, &snap, 1);

            assert_true(version >= last); /* monotonic, and the same within a snapshot */
            assert_true(i == 0 || version == last);
            last = version;
            check_snapshot_of(mine, &snap);
        }
        n_checked++;
        store_unpin(mine, &snap);
    }
    store_slot_give(mine, slot);
    store_close(mine);
    return NULL;
}

static void readers_see_their_version(void **state)
{
    static int numbers[READERS] = {0, 1, 2, 3, 4};
    pthread_t threads[READERS];
    struct store_stats st;
    struct snap old;
    uint32_t slot;

    (void)state;
    store_publish(store, stage(1), 1);
    assert_int_equal(store_slot_take(store, &slot, NULL), DUST_OK);
    store_pin(store, slot, &old); /* held through everything that follows */
    for (int i = 0; i < READERS; i++) {
        pthread_create(&threads[i], NULL, reader, &numbers[i]);
    }
    for (uint64_t v = 2; v <= VERSIONS || n_checked < SNAPSHOTS; v++) {
        store_publish(store, stage(v), v);
        if (v % 11 == 0) {
            fold();
        }
    }
    over = true;
    for (int i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(read_page(&old, 1), 1);
    check_snapshot(&old);
    store_unpin(store, &old);
    store_slot_give(store, slot);
    fold();
    store_stats(store, &st);
    assert_int_equal(st.frames_used, 0); /* all is in the base, and nobody needs anything older */
    assert_int_equal(st.versions, 0);
}

/* While a checkpoint writes app.db, a new version must not take away what a reader has been left instead. */
static void a_version_comes_in_the_middle_of_a_checkpoint(void **state)
{
    struct snap old, older;
    struct fold f;
    uint32_t slot[2];
    struct err e;

    (void)state;
    assert_int_equal(store_slot_take(store, &slot[0], NULL), DUST_OK);
    assert_int_equal(store_slot_take(store, &slot[1], NULL), DUST_OK);
    store_publish(store, stage(1), 1);
    store_pin(store, slot[1], &older);
    store_publish(store, stage(2), 2);
    fold(); /* page 1 stays in the store, for `older` has need of what was before it */
    store_pin(store, slot[0], &old);
    store_publish(store, stage(3), 3);
    assert_int_equal(store_fold_begin(store, &f, &e), DUST_OK);
    assert_int_equal(store_fold_keep(store, &f, read_base, NULL, &e), DUST_OK);
    check_snapshot(&older);
    store_unpin(store, &older);
    store_publish(store, stage(4), 4);
    for (uint32_t i = 0; i < f.n; i++) {
        const uint64_t *page = (const uint64_t *)(const void *)store_frame(store, f.pages[i].node);

        for (int k = 0; k < PAGE / 8; k++) {
            atomic_store_explicit(&base[f.pages[i].pgno][k], page[k], memory_order_relaxed);
        }
        assert_int_equal(read_page(&old, 1), 2);
        check_snapshot(&old);
    }
    store_fold_end(store, &f, DUST_OK);
    check_snapshot(&old);
    store_unpin(store, &old);
    store_slot_give(store, slot[0]);
    store_slot_give(store, slot[1]);
}

static void a_reader_of_app_db_in_the_middle_of_a_checkpoint(void **state)
{
    struct snap old;
    struct fold f;
    uint32_t slot;
    struct err e;

    (void)state;
    assert_int_equal(store_slot_take(store, &slot, NULL), DUST_OK);
    store_publish(store, stage(1), 1);
    fold();
    store_pin(store, slot, &old); /* all that it reads is in app.db */
    store_publish(store, stage(2), 2);
    assert_int_equal(store_fold_begin(store, &f, &e), DUST_OK);
    assert_int_equal(store_fold_keep(store, &f, read_base, NULL, &e), DUST_OK);
    store_publish(store, stage(3), 3);
    for (uint32_t i = 0; i < f.n; i++) {
        const uint64_t *page = (const uint64_t *)(const void *)store_frame(store, f.pages[i].node);

        for (int k = 0; k < PAGE / 8; k++) {
            atomic_store_explicit(&base[f.pages[i].pgno][k], page[k], memory_order_relaxed);
        }
        assert_int_equal(read_page(&old, 1), 1);
        check_snapshot(&old);
    }
    store_fold_end(store, &f, DUST_OK);
    check_snapshot(&old);
    store_unpin(store, &old);
    store_slot_give(store, slot);
}

static void a_void_version_takes_its_readers_along(void **state)
{
    struct snap ahead, agreed;
    uint32_t slot[2];
    uint64_t page[PAGE / 8];
    struct version *v;
    struct vid head = id_of(1), found;

    (void)state;
    store_publish(store, stage(1), 1);
    v = stage(2);
    stage(3);
    assert_int_equal(store_slot_take(store, &slot[0], NULL), DUST_OK);
    assert_int_equal(store_slot_take(store, &slot[1], NULL), DUST_OK);
    store_pin_head(store, slot[0], &ahead);
    store_pin(store, slot[1], &agreed);
    assert_int_equal(read_page(&ahead, 1), 3);
    assert_int_equal(read_page(&agreed, 1), 1);
    assert_int_equal(store_wait_agreed(store, ahead.seq, 1), DUST_BUSY);
    v = store_void(store, v);
    assert_int_equal(v->state, VERSION_VOID);
    version_free(v->next);
    version_free(v);
    assert_int_equal(store_read(store, &ahead, 1, 0, PAGE, page, read_base, NULL), DUST_VOID);
    assert_int_equal(store_wait_agreed(store, ahead.seq, 1000), DUST_VOID);
    assert_int_equal(read_page(&agreed, 1), 1);
    store_unpin(store, &ahead);
    store_pin_head(store, slot[0], &ahead);
    assert_int_equal(read_page(&ahead, 1), 1);
    assert_true(store_id_of(store, ahead.seq, &found) && vid_equal(&found, &head));
    store_unpin(store, &ahead);
    store_unpin(store, &agreed);
    check_snapshot((store_pin(store, slot[0], &agreed), &agreed));
    store_unpin(store, &agreed);
}

static void a_void_version_stays_void(void **state)
{
    struct vid id = id_of(7), parent = id_of(0);
    struct version *v, *voided;
    struct snap ahead;
    uint32_t slot, node;
    struct err e;

    (void)state;
    assert_int_equal(store_slot_take(store, &slot, NULL), DUST_OK);
    v = stage(1);
    store_pin_head(store, slot, &ahead);
    assert_false(store_snap_void(store, &ahead));
    assert_int_equal(store_frame_new(store, 1, &node, &e), DUST_OK);
    assert_int_equal(store_agree(store, &id, &parent, PAGES, &node, 1, 1, &voided, &e), DUST_OK);
    assert_ptr_equal(voided, v);
    version_free(v);
    fold(); /* app.db is at a newer version now */
    assert_true(store_snap_void(store, &ahead));
    store_unpin(store, &ahead);
    store_pin_head(store, slot, &ahead);
    assert_false(store_snap_void(store, &ahead));
    store_unpin(store, &ahead);
    store_slot_give(store, slot);
}

/* What the cluster agreed on was sent by another host, and then staged here, with another one on top. */
static void agreed_is_staged(void **state)
{
    struct version *v = stage(1), *above = stage(2), *voided;
    struct vid id = v->id, parent = id_of(0);
    struct head_info head, agreed;
    uint32_t node;
    struct err e;

    (void)state;
    assert_int_equal(store_frame_new(store, 1, &node, &e), DUST_OK);
    assert_int_equal(store_agree(store, &id, &parent, PAGES, &node, 1, 4, &voided, &e), DUST_EXISTS);
    assert_null(voided);
    store_frame_free(store, &node, 1);
    store_agreed(store, &agreed);
    assert_true(vid_equal(&agreed.id, &id) && agreed.index == 4);
    store_head(store, &head);
    assert_int_equal(head.seq, above->seq);
    assert_ptr_equal(store_oldest_speculative(store), above);
    store_publish(store, above, 5);
}

static void only_on_the_head(void **state)
{
    struct vid id = id_of(9), wrong = id_of(8), parent = id_of(0);
    struct head_info head, agreed;
    struct version copy, *voided;
    uint32_t node;
    struct err e;

    (void)state;
    assert_int_equal(store_frame_new(store, 1, &node, &e), DUST_OK);
    assert_int_equal(store_stage(store, &id, &wrong, PAGES, &node, 1, NULL, &copy, &e), DUST_STALE);
    store_frame_free(store, &node, 1);
    stage(1);
    /* What the cluster agreed on replaces what was staged here. */
    assert_int_equal(store_frame_new(store, 1, &node, &e), DUST_OK);
    assert_int_equal(store_agree(store, &id, &parent, PAGES, &node, 1, 4, &voided, &e), DUST_OK);
    assert_non_null(voided);
    assert_null(voided->next);
    version_free(voided);
    store_head(store, &head);
    store_agreed(store, &agreed);
    assert_true(head.seq == agreed.seq && vid_equal(&head.id, &id));
    assert_int_equal(store_applied(store), 4);
}

/* Another process's store: what is read there, what is told, and whose slots are whose. */
static void attached(void **state)
{
    struct vid id = id_of(2), found;
    struct store *other;
    struct head_info head, agreed;
    struct snap snap, ahead;
    uint32_t slot[2], node;
    uint64_t oldest;
    struct err e;

    (void)state;
    store_publish(store, stage(1), 1);
    assert_int_equal(store_attach(&other, path, 7, &e), DUST_OK);
    assert_int_equal(store_page_size(other), PAGE);
    assert_int_equal(store_slot_take(other, &slot[0], &e), DUST_OK);
    assert_int_equal(store_slot_take(other, &slot[1], &e), DUST_OK);
    store_pin(other, slot[0], &snap);
    stage(2);
    store_pin_head(other, slot[1], &ahead);
    assert_int_equal(read_page_of(other, &snap, 1), 1);
    assert_int_equal(read_page_of(other, &ahead, 1), 2);
    store_head(other, &head);
    store_agreed(other, &agreed);
    assert_true(head.seq == ahead.seq && vid_equal(&head.id, &id) && agreed.seq == snap.seq && agreed.index == 1);
    assert_true(store_id_of(other, ahead.seq, &found) && vid_equal(&found, &id));
    assert_int_equal(store_applied(other), 1);
    /* its own transaction's pages are its own memory */
    assert_int_equal(store_frame_new(other, 3, &node, &e), DUST_OK);
    store_frame_write(other, node, 8, "12345678", 8);
    assert_memory_equal(store_frame(other, node) + 8, "12345678", 8);
    store_frame_free(other, &node, 1);
    /* many new nodes are found, though they were not there when it was mapped */
    for (uint64_t v = 3; v < 300; v++) {
        stage(v);
    }
    store_unpin(other, &ahead);
    store_pin_head(other, slot[1], &ahead);
    check_snapshot_of(other, &ahead);
    assert_true(store_slot_is(store, slot[0], 7) && !store_slot_is(store, slot[0], 8));
    assert_int_equal(store_held_by(store, 7, &oldest), 2);
    assert_int_equal(oldest, snap.seq);
    /* it is gone without a word */
    assert_int_equal(store_free_slots(store, 7), 2);
    assert_int_equal(store_held_by(store, 0, &oldest), 0);
    store_close(other);
}

/* A new store of that name takes nothing away from whoever has the old one mapped. */
static void a_new_host(void **state)
{
    struct vid first = id_of(0);
    struct store *other, *fresh;
    struct snap snap;
    uint32_t slot;
    uint64_t page[PAGE / 8];
    struct err e;

    (void)state;
    store_publish(store, stage(1), 1);
    assert_int_equal(store_attach(&other, path, 7, &e), DUST_OK);
    assert_int_equal(store_slot_take(other, &slot, &e), DUST_OK);
    store_pin(other, slot, &snap);
    assert_int_equal(store_open(&fresh, path, &e), DUST_OK);
    check_snapshot_of(other, &snap);
    assert_int_equal(store_format(fresh, PAGE, &first, 0, PAGES, &e), DUST_OK);
    check_snapshot_of(other, &snap);
    assert_int_equal(store_state(other), STORE_LIVE);
    store_close(store); /* the old host ends */
    assert_int_equal(store_state(other), STORE_CLOSED);
    assert_int_equal(store_read(other, &snap, 1, 0, PAGE, page, read_base, NULL), DUST_CLOSED);
    store_close(other);
    store = fresh;
}

static void not_there_yet(void **state)
{
    struct store *other;
    struct err e;

    (void)state;
    assert_int_equal(store_attach(&other, "/tmp/dust-test-store-nowhere", 7, &e), DUST_AGAIN);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(store_attach(&other, path, 7, &e), DUST_AGAIN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(readers_see_their_version, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_version_comes_in_the_middle_of_a_checkpoint, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reader_of_app_db_in_the_middle_of_a_checkpoint, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_void_version_takes_its_readers_along, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_void_version_stays_void, set_up, tear_down),
        cmocka_unit_test_setup_teardown(agreed_is_staged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(only_on_the_head, set_up, tear_down),
        cmocka_unit_test_setup_teardown(attached, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_new_host, set_up, tear_down),
        cmocka_unit_test_setup_teardown(not_there_yet, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
