/* turn: order, gate, time-outs, leases. Threads wait for each other through the turn's own state, never for time. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "vfs/clock.h"
#include "vfs/err.h"
#include "vfs/turn.h"

#define N 16

static struct turn turn;
static _Atomic int notified;

static void on_notify(void *ctx)
{
    (void)ctx;
    notified++;
}

static int set_up(void **state)
{
    (void)state;
    notified = 0;
    turn_init(&turn, 30000, on_notify, NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    turn_deinit(&turn);
    return 0;
}

static void wait_for_waiters(unsigned n)
{
    unsigned waiting;
    bool held;

    do {
        sched_yield();
        turn_state(&turn, &waiting, &held);
    } while (waiting != n);
}

struct writer {
    pthread_t thread;
    struct ticket ticket;
    int number, rv;
};
static _Atomic int order[N];
static _Atomic int n_order;

static void *write_once(void *arg)
{
    struct writer *w = arg;

    w->rv = turn_take(&turn, &w->ticket, 20000, 0);
    if (w->rv == DUST_OK) {
        order[n_order++] = w->number;
        turn_pass(&turn, &w->ticket);
    }
    return NULL;
}

static void first_come_first_served(void **state)
{
    struct writer w[N];

    (void)state;
    n_order = 0;
    for (int i = 0; i < N; i++) {
        w[i].number = i;
        ticket_init(&w[i].ticket);
        pthread_create(&w[i].thread, NULL, write_once, &w[i]);
        wait_for_waiters((unsigned)i + 1); /* the gate is shut: they queue up in this order */
    }
    assert_true(notified > 0);
    turn_open(&turn);
    for (int i = 0; i < N; i++) {
        pthread_join(w[i].thread, NULL);
        assert_int_equal(w[i].rv, DUST_OK);
        ticket_deinit(&w[i].ticket);
    }
    for (int i = 0; i < N; i++) {
        assert_int_equal(order[i], i);
    }
}

static void time_out_gives_up_the_place(void **state)
{
    struct ticket a, b;
    unsigned waiting;
    bool held;

    (void)state;
    ticket_init(&a);
    ticket_init(&b);
    turn_open(&turn);
    assert_int_equal(turn_take(&turn, &a, 0, 0), DUST_OK);
    assert_int_equal(turn_take(&turn, &b, 20, 0), DUST_BUSY);
    turn_state(&turn, &waiting, &held);
    assert_int_equal(waiting, 0);
    assert_true(held);
    assert_int_equal(turn_take_place(&turn, &b, 1, 0), DUST_BUSY);
    turn_state(&turn, &waiting, &held);
    assert_int_equal(waiting, 1); /* this one keeps its place */
    turn_pass(&turn, &a);
    assert_true(turn_held(&turn, &b));
    assert_int_equal(turn_take(&turn, &b, 0, 0), DUST_OK);
    turn_drop(&turn, &b);
    assert_false(turn_held(&turn, &b));
    ticket_deinit(&a);
    ticket_deinit(&b);
}

static void a_shut_gate_is_waited_for_once(void **state)
{
    struct ticket a;
    uint64_t begun;

    (void)state;
    ticket_init(&a);
    assert_int_equal(turn_take_place(&turn, &a, 1, 0), DUST_BUSY); /* it has queued up, */
    a.asked_us -= (TURN_GATE_GRACE_MS - 20) * 1000;                  /* some time ago */
    begun = clock_ms();
    assert_int_equal(turn_take(&turn, &a, 1, 0), DUST_BUSY);
    assert_in_range(clock_ms() - begun, 10, TURN_GATE_GRACE_MS / 2);
    ticket_deinit(&a);
}

static void a_lease_runs_out_only_for_others(void **state)
{
    struct ticket a, b;

    (void)state;
    ticket_init(&a);
    ticket_init(&b);
    turn_open(&turn);
    assert_int_equal(turn_take(&turn, &a, 0, 1), DUST_OK);
    turn_expire(&turn, false);
    assert_true(turn_held(&turn, &a)); /* nobody else wants it */
    assert_int_equal(turn_take(&turn, &b, 5000, 0), DUST_OK);
    assert_false(turn_held(&turn, &a));
    assert_false(turn_keep(&turn, &a));
    turn_pass(&turn, &a); /* harmless */
    assert_true(turn_held(&turn, &b));
    turn_pass(&turn, &b);
    ticket_deinit(&a);
    ticket_deinit(&b);
}

static void a_holder_keeps_it_across_a_recall(void **state)
{
    struct ticket a;

    (void)state;
    ticket_init(&a);
    turn_open(&turn);
    assert_int_equal(turn_take(&turn, &a, 0, 0), DUST_OK);
    turn_shut(&turn);
    assert_true(turn_keep(&turn, &a));
    notified = 0;
    turn_pass(&turn, &a);
    assert_int_equal(notified, 1); /* the gate's owner is told that it has come back */
    ticket_deinit(&a);
}

static void closing_wakes_everybody(void **state)
{
    struct writer w[4];

    (void)state;
    for (int i = 0; i < 4; i++) {
        ticket_init(&w[i].ticket);
        pthread_create(&w[i].thread, NULL, write_once, &w[i]);
    }
    wait_for_waiters(4);
    turn_close(&turn);
    for (int i = 0; i < 4; i++) {
        pthread_join(w[i].thread, NULL);
        assert_int_equal(w[i].rv, DUST_CLOSED);
        ticket_deinit(&w[i].ticket);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(first_come_first_served, set_up, tear_down),
        cmocka_unit_test_setup_teardown(time_out_gives_up_the_place, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_shut_gate_is_waited_for_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_lease_runs_out_only_for_others, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_holder_keeps_it_across_a_recall, set_up, tear_down),
        cmocka_unit_test_setup_teardown(closing_wakes_everybody, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
