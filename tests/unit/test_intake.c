/* intake: a transaction made for another host is taken in by this process. What was sent before may be in the log, or on
 * its way there: the answer has to be one that stays true. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/hosted.h"
#include "vfs/clock.h"
#include "vfs/intake.h"

static struct hosted_test hosted;
static struct database *db; /* hosted.db */
static struct vid first_id = {{7}};
static uint32_t n_pages;
static uint64_t applied;
static unsigned submitted;
static uint32_t slot;

/* What the log says: the first time, and from then on. */
static enum effect effects[2];
static int looks, look_code;

/* ---- the replicator ---- */

static void submit(void *ctx, struct sealed *sealed, const struct version *staged, struct commit *commit)
{
    struct version *v = store_oldest_speculative(db->store);

    (void)ctx;
    (void)staged;
    sealed_free(sealed);
    submitted++;
    store_publish(db->store, v, ++applied);
    commit_done(commit, DUST_OK, NULL);
}

static int took_effect(void *ctx, const struct vid *id, const struct vid *parent, uint32_t timeout_ms, enum effect *out,
    struct err *e)
{
    (void)ctx;
    (void)timeout_ms;
    (void)e;
    assert_false(vid_equal(id, parent));
    *out = effects[looks == 0 ? 0 : 1];
    looks++;
    return look_code;
}

/* ---- before and after ---- */

static int set_up(void **state)
{
    const struct database_options options = {.timeout_ms = 50, .turn_timeout_ms = 30000};
    struct err e;

    (void)state;
    if (hosted_open(&hosted, &first_id, &options) != 0) {
        return -1;
    }
    db = hosted.db;
    n_pages = hosted.n_pages;
    if (store_slot_take(db->store, &slot, &e) != DUST_OK) {
        return -1;
    }
    db->rep = (struct replicator){.submit = submit, .took_effect = took_effect};
    effects[0] = effects[1] = EFFECT_NONE;
    looks = look_code = 0;
    applied = submitted = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    return hosted_close(&hosted);
}

/* A transaction that adds one page. */
static struct sealed *transaction(const struct vid *parent, uint32_t pgno)
{
    struct entry_meta meta = {.parent = *parent, .origin = db->origin, .origin_seq = pgno, .page_size = db->page_size,
        .n_pages_after = pgno, .sql = "", .sql_len = 0};
    uint8_t page[65536];
    struct sealed *out;
    struct seal seal;
    struct err e;
    bool kept;

    memset(page, (int)pgno, sizeof page);
    assert_int_equal(seal_begin(&seal, &meta, ENTRY_PART_MAX, &e), DUST_OK);
    assert_int_equal(seal_page(&seal, pgno, page, NULL, &kept, &e), DUST_OK);
    assert_int_equal(seal_finish(&seal, &out, &e), DUST_OK);
    return out;
}

static int take(const struct sealed *s, bool again, struct snap *snap, struct err *e)
{
    uint64_t after;

    return intake_here(db, s, again, false, slot, snap, &after, clock_ms() + 50, e);
}

static void assert_head(const struct vid *id)
{
    struct head_info head;

    store_head(db->store, &head);
    assert_memory_equal(head.id.b, id->b, sizeof id->b);
}

/* ---- tests ---- */

static void test_what_was_never_sent(void **state)
{
    struct sealed *s = transaction(&first_id, n_pages + 1), *other = transaction(&first_id, n_pages + 2);
    struct snap snap;
    struct err e;

    (void)state;
    assert_int_equal(take(s, false, &snap, &e), DUST_OK);
    assert_int_equal(snap.n_pages, n_pages + 1);
    assert_head(&s->id);
    store_unpin(db->store, &snap);
    assert_int_equal(take(other, false, &snap, &e), DUST_STALE); /* for good: nobody else has it */
    assert_int_equal(looks, 0);
    assert_int_equal(submitted, 1);
    sealed_free(s);
    sealed_free(other);
}

static void test_sent_before_and_lost(void **state)
{
    struct sealed *s = transaction(&first_id, n_pages + 1);
    struct snap snap;
    struct err e;

    (void)state;
    assert_int_equal(take(s, true, &snap, &e), DUST_OK);
    assert_int_equal(looks, 1);
    assert_int_equal(submitted, 1);
    assert_head(&s->id);
    store_unpin(db->store, &snap);
    sealed_free(s);
}

static void test_sent_before_and_agreed(void **state)
{
    struct sealed *s = transaction(&first_id, n_pages + 1);
    struct snap snap;
    struct err e;

    (void)state;
    effects[0] = EFFECT_TAKEN;
    assert_int_equal(take(s, true, &snap, &e), DUST_OK);
    assert_int_equal(submitted, 0);
    store_unpin(db->store, &snap);
    sealed_free(s);
}

static void test_sent_before_and_another_agreed(void **state)
{
    struct sealed *s = transaction(&first_id, n_pages + 1);
    struct snap snap;
    struct err e;

    (void)state;
    effects[0] = EFFECT_NEVER;
    assert_int_equal(take(s, true, &snap, &e), DUST_VOID);
    assert_int_equal(submitted, 0);
    sealed_free(s);
}

/* What it was made on is not the head: it cannot be staged, but it may come by another way. */
static void test_sent_before_and_not_to_be_staged(void **state)
{
    struct vid nowhere = {{9}};
    struct sealed *s = transaction(&nowhere, n_pages + 1);
    struct snap snap;
    struct err e;

    (void)state;
    assert_int_equal(take(s, true, &snap, &e), DUST_UNKNOWN);
    assert_int_equal(looks, 2); /* before and after */
    looks = 0;
    effects[1] = EFFECT_NEVER;
    assert_int_equal(take(s, true, &snap, &e), DUST_VOID);
    looks = 0;
    effects[1] = EFFECT_TAKEN;
    assert_int_equal(take(s, true, &snap, &e), DUST_OK);
    store_unpin(db->store, &snap);
    look_code = DUST_BUSY;
    assert_int_equal(take(s, true, &snap, &e), DUST_UNKNOWN);
    assert_int_equal(submitted, 0);
    sealed_free(s);
}

/* What is not what it was said to be is noticed before anything is staged. */
static void test_what_cannot_be(void **state)
{
    struct sealed *s = transaction(&first_id, n_pages + 1);
    struct snap snap;
    struct err e;

    (void)state;
    s->id.b[0] ^= 1;
    assert_int_equal(take(s, false, &snap, &e), DUST_MISUSE);
    assert_int_equal(take(s, true, &snap, &e), DUST_UNKNOWN);
    s->id.b[0] ^= 1;
    s->parts[0].len -= 8;
    assert_int_not_equal(take(s, false, &snap, &e), DUST_OK);
    s->parts[0].len += 8;
    assert_int_equal(submitted, 0);
    assert_head(&first_id);
    assert_int_equal(take(s, false, &snap, &e), DUST_OK);
    store_unpin(db->store, &snap);
    sealed_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_was_never_sent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sent_before_and_lost, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sent_before_and_agreed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sent_before_and_another_agreed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_sent_before_and_not_to_be_staged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_cannot_be, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
