/* A transaction that is sent here again, after the host before had sent it: it may be agreed on at any moment, by what that
 * one sent. Whoever waits for it has to hear so. And one that was lost on its way to the leader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "tests/unit/hosted.h"
#include "vfs/intake.h"

static struct hosted_test hosted;
static struct database *db; /* hosted.db */
static struct node *n;
static struct vid first_id = {{7}};

/* To be applied before the next transaction's job is run. */
static const struct sealed *early;

/* Jobs that were run. They are by the thread that posts them, and whatever the loop does otherwise by the test's. */
static _Atomic unsigned posted;

static void apply(const struct sealed *s, unsigned part)
{
    struct raft_buffer buf = {.base = malloc(s->parts[part].len), .len = s->parts[part].len};
    void *result;

    assert_non_null(buf.base);
    memcpy(buf.base, s->parts[part].data, buf.len);
    assert_int_equal(n->fsm.raft_fsm.apply(&n->fsm.raft_fsm, &buf, &result), 0);
    n->raft.last_applied++;
    free(buf.base);
}

static void submit(void *ctx, struct sealed *sealed, const struct version *v, struct commit *commit)
{
    const struct sealed *s = early;

    early = NULL;
    if (s != NULL) {
        apply(s, 0);
    }
    submit_from_sql(ctx, sealed, v, commit);
    atomic_fetch_add(&posted, 1);
}

/* It is not in the log yet. */
static int took_effect(void *ctx, const struct vid *id, const struct vid *parent, uint32_t timeout_ms, enum effect *out,
    struct err *e)
{
    (void)ctx;
    (void)id;
    (void)parent;
    (void)timeout_ms;
    (void)e;
    *out = EFFECT_NONE;
    return DUST_OK;
}

static int set_up(void **state)
{
    const struct database_options options = {.timeout_ms = 1500, .turn_timeout_ms = 30000};
    struct err e;

    (void)state;
    if (hosted_open(&hosted, &first_id, &options) != 0) {
        return -1;
    }
    db = hosted.db;
    db->origin = 3;
    n = calloc(1, sizeof *n);
    if (n == NULL) {
        return -1;
    }
    n->db = db;
    n->self.id = 3;
    n->jobs_tail = &n->jobs;
    pthread_mutex_init(&n->mutex, NULL);
    uv_loop_init(&n->loop);
    n->state = NODE_RUNNING;
    n->running = n->halted = n->loop_done = true; /* there is no loop: jobs are run by whoever posts them */
    fsm_init(n);
    heads_begin(&n->fsm.heads, 0, &first_id);
    db->rep = (struct replicator){.ctx = n, .room = sizeof(struct inflight), .submit = submit, .took_effect = took_effect};
    early = NULL;
    atomic_store(&posted, 0);
    return submit_init(n, &e) == DUST_OK ? 0 : -1;
}

static void ignore(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

static int tear_down(void **state)
{
    (void)state;
    submit_fail(n, DUST_CLOSED, "over");
    fsm_deinit(n);
    submit_deinit(n);
    uv_walk(&n->loop, ignore, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    uv_loop_close(&n->loop);
    pthread_mutex_destroy(&n->mutex);
    free(n);
    return hosted_close(&hosted);
}

/* A transaction that adds `count` pages, on what is agreed, in parts of that size. */
static struct sealed *transaction(uint64_t origin, uint32_t count, size_t part_max)
{
    struct entry_meta meta = {.origin = origin, .page_size = db->page_size, .sql = "", .sql_len = 0};
    struct head_info head;
    uint8_t page[65536];
    struct sealed *out;
    struct seal seal;
    struct err e;
    bool kept;

    store_agreed(db->store, &head);
    meta.parent = head.id;
    meta.origin_seq = head.n_pages;
    meta.n_pages_after = head.n_pages + count;
    assert_int_equal(seal_begin(&seal, &meta, part_max, &e), DUST_OK);
    for (uint32_t i = 1; i <= count; i++) {
        randombytes_buf_deterministic(page, db->page_size, (const uint8_t[randombytes_SEEDBYTES]){(uint8_t)i});
        assert_int_equal(seal_page(&seal, head.n_pages + i, page, NULL, &kept, &e), DUST_OK);
    }
    assert_int_equal(seal_finish(&seal, &out, &e), DUST_OK);
    return out;
}

/* A writer of another process, who sends it, and waits. */
struct writer {
    const struct sealed *sealed;
    bool again;
    pthread_t thread;
    int rv;
    struct err e;
};

static void *run_writer(void *arg)
{
    struct writer *w = arg;
    struct snap snap = {0};
    uint64_t after = 0;
    uint32_t slot;

    w->rv = store_slot_take(db->store, &slot, &w->e);
    if (w->rv == DUST_OK) {
        w->rv = intake_here(db, w->sealed, w->again, false, slot, &snap, &after, UINT64_MAX / 4, &w->e);
        if (snap.seq != 0) {
            store_unpin(db->store, &snap);
        }
        store_slot_give(db->store, slot);
    }
    return NULL;
}

static void begin(struct writer *w, const struct sealed *s, bool again)
{
    *w = (struct writer){.sealed = s, .again = again};
    assert_int_equal(pthread_create(&w->thread, NULL, run_writer, w), 0);
}

static void wait_posted(unsigned count)
{
    while (atomic_load(&posted) != count) {
        sched_yield();
    }
}

static int end(struct writer *w)
{
    pthread_join(w->thread, NULL);
    return w->rv;
}

static bool is_agreed(const struct sealed *s)
{
    struct head_info head;

    store_agreed(db->store, &head);
    return vid_equal(&head.id, &s->id);
}

/* The first parts are in the log here when it is staged, the others come then: by both ways, or by one. */
static void test_between_its_parts(void **state)
{
    struct sealed *s = transaction(3, 3, 8192);
    struct writer w;

    (void)state;
    assert_true(s->n_parts >= 3);
    apply(s, 0);
    begin(&w, s, true);
    wait_posted(1);
    assert_int_equal(n->submit.first->applied, 1); /* the first is not sent any more */
    for (unsigned i = 1; i < s->n_parts; i++) {
        apply(s, i);
    }
    assert_int_equal(end(&w), DUST_OK);
    assert_true(is_agreed(s));
    assert_int_equal(atomic_load(&n->submit.count), 0);
    sealed_free(s);
}

/* It is agreed on between its being staged and its job. What comes after it is told of all the same. */
static void test_before_its_job(void **state)
{
    struct sealed *s = transaction(3, 1, ENTRY_PART_MAX), *later;
    struct writer w;

    (void)state;
    early = s;
    begin(&w, s, true);
    assert_int_equal(end(&w), DUST_OK);
    assert_true(is_agreed(s));
    assert_null(n->submit.first);
    later = transaction(3, 1, ENTRY_PART_MAX);
    begin(&w, later, false);
    wait_posted(2);
    apply(later, 0);
    assert_int_equal(end(&w), DUST_OK);
    assert_true(is_agreed(later));
    sealed_free(s);
    sealed_free(later);
}

/* Another one is agreed on in its place, before its job and after. */
static void test_another_one(void **state)
{
    struct sealed *s = transaction(3, 1, ENTRY_PART_MAX), *other = transaction(4, 1, ENTRY_PART_MAX);
    struct writer w;

    (void)state;
    assert_false(vid_equal(&s->id, &other->id));
    early = other;
    begin(&w, s, true);
    assert_int_equal(end(&w), DUST_VOID);
    assert_true(is_agreed(other));
    sealed_free(s);
    sealed_free(other);
    s = transaction(3, 1, ENTRY_PART_MAX);
    other = transaction(4, 1, ENTRY_PART_MAX);
    begin(&w, s, true);
    wait_posted(2);
    apply(other, 0);
    assert_int_equal(end(&w), DUST_VOID);
    assert_true(is_agreed(other));
    sealed_free(s);
    sealed_free(other);
}

/* A member that was stopped does not know what becomes of what another host had sent. */
static void test_stopped(void **state)
{
    struct sealed *s = transaction(3, 1, ENTRY_PART_MAX);
    struct writer w;

    (void)state;
    n->state = NODE_FAILED;
    begin(&w, s, true);
    assert_int_equal(end(&w), DUST_UNKNOWN);
    begin(&w, s, false);
    assert_int_not_equal(end(&w), DUST_OK);
    n->state = NODE_RUNNING;
    sealed_free(s);
}

/* An entry that was passed over, for whatever reason, is not void. */
static void test_passed_over(void **state)
{
    struct sealed *s = transaction(3, 1, ENTRY_PART_MAX);
    struct raft_entry entries[4] = {
        {.term = 1, .type = RAFT_COMMAND, .buf = {.base = s->parts[0].data, .len = s->parts[0].len}}};
    enum outcome what;
    struct err e;

    (void)state;
    n->raft.log.entries = entries;
    n->raft.log.size = 4;
    n->raft.log.back = 1;
    for (int i = 0; i < 3; i++) {
        n->fsm.paused = i == 0;
        n->fsm.stuck = i == 1;
        n->state = i == 2 ? NODE_FAILED : NODE_RUNNING;
        n->raft.last_applied = 0;
        apply(s, 0);
        assert_false(is_agreed(s));
        assert_int_equal(node_outcome(n, &s->id, 0, 100, &what, &e), DUST_OK);
        assert_int_equal(what, OUTCOME_PENDING);
    }
    n->fsm.paused = n->fsm.stuck = false;
    n->state = NODE_RUNNING;
    n->raft.last_applied = 0;
    apply(s, 0);
    assert_int_equal(node_outcome(n, &s->id, 0, 100, &what, &e), DUST_OK);
    assert_int_equal(what, OUTCOME_AGREED);
    n->raft.log.entries = NULL;
    n->raft.log.size = n->raft.log.back = 0;
    sealed_free(s);
}

/* Of three on their way the second was lost. The leader refuses the third, and says what it would take: it has the first. */
static void test_one_that_was_lost_is_sent_again(void **state)
{
    struct sealed one = {.n_parts = 1};
    struct inflight f[3];
    struct note note = {.num = {1}};

    (void)state;
    memset(f, 0, sizeof f);
    for (unsigned i = 0; i < 3; i++) {
        f[i].sealed = &one;
        f[i].parent.b[0] = (uint8_t)(100 + i);
        f[i].id.b[0] = (uint8_t)(101 + i);
        f[i].seq = i + 1;
        f[i].sent = 1;
        f[i].next = i < 2 ? &f[i + 1] : NULL;
    }
    n->submit.first = f;
    note.id[0] = f[2].id;
    note.id[1] = f[0].id;
    submit_refused(n, &note); /* (there is no leader to send anything to) */
    assert_true(f[0].sent == 1 && f[1].sent == 0 && f[2].sent == 0);
    f[1].sent = f[2].sent = 1;
    submit_refused(n, &note);
    assert_true(f[1].sent == 1 && f[2].sent == 1); /* the same news again, of another one behind it */
    note.id[1] = f[2].id;
    submit_refused(n, &note); /* what it stands on is none of these: it is still to be applied here */
    assert_true(f[0].sent == 1 && f[1].sent == 1 && f[2].sent == 1);
    n->submit.first = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_between_its_parts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_before_its_job, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_another_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stopped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_passed_over, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_that_was_lost_is_sent_again, set_up, tear_down),
    };

    return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
