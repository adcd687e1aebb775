/* peer: messages between members in one process, over real sockets on loopback. Every wait is for an event, with a
 * deadline that only a broken machine reaches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <nanomsg/nn.h>
#include <nanomsg/pipeline.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "raft/key.h"
#include "raft/member.h"
#include "raft/peer.h"

#define DEADLINE_MS 60000

static const struct keys *keys; /* of those that are opened from now on */
static struct keys some_keys, other_keys;
static uv_loop_t loop;
static uv_timer_t deadline;
static int n_open;

struct end { /* what one of them has received */
    struct peers *peers;
    char address[ADDRESS_TEXT_MAX];
    int n;
    size_t bytes;
    char last[64];
    unsigned long sum; /* of the first bytes, as numbers */
    bool in_order;
    int refused, stale;
    char why[ERR_TEXT_MAX];
};

static void on_message(void *ctx, void *data, size_t len)
{
    struct end *e = ctx;
    unsigned number = 0;

    if (len >= sizeof number) {
        memcpy(&number, data, sizeof number);
        e->in_order = e->in_order && number == (unsigned)e->n;
        e->sum += number;
    }
    snprintf(e->last, sizeof e->last, "%.*s", (int)(len < 63 ? len : 63), (char *)data);
    e->bytes += len;
    e->n++;
}

static void on_stale(void *ctx, void *data, size_t len)
{
    struct end *e = ctx;

    assert_true(len > 0 && memchr(data, '\0', len) != NULL);
    e->stale++;
}

static void on_refused(void *ctx, const struct err *why)
{
    struct end *e = ctx;

    e->refused++;
    strcpy(e->why, why->text);
}

static void late(uv_timer_t *t)
{
    (void)t;
    fail_msg("nothing happened within %d ms", DEADLINE_MS);
}

static void open_at(struct end *e, const char *address)
{
    struct peers_options o = {.bind = address, .address = e->address, .keys = keys, .recv = on_message, .stale = on_stale,
        .refused = on_refused, .ctx = e};
    struct err err = {0};

    memset(e, 0, sizeof *e);
    e->in_order = true;
    if (peers_open(&e->peers, &loop, &o, &err) != DUST_OK) {
        fail_msg("%s", err.text);
    }
    snprintf(e->address, sizeof e->address, "%s", peers_bound_address(e->peers));
    n_open++;
}

static void on_closed(void *arg)
{
    ((struct end *)arg)->peers = NULL;
    n_open--;
}

static void close_it(struct end *e)
{
    peers_close(e->peers, on_closed, e);
    while (e->peers != NULL) {
        uv_run(&loop, UV_RUN_ONCE);
    }
}

static void send_text(struct end *from, const char *to, const char *text)
{
    void *body, *msg = peers_alloc(from->peers, strlen(text) + 1, &body);

    strcpy(body, text);
    peers_send(from->peers, to, msg, strlen(text) + 1, PEER_NORMAL, NULL, NULL);
}

static void wait_for(struct end *e, int n)
{
    while (e->n < n) {
        uv_run(&loop, UV_RUN_ONCE);
    }
}

static int set_up(void **state)
{
    char line[KEY_LINE_MAX];

    keys = *state; /* NULL: none */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(key_make(line, NULL), DUST_OK);
        assert_int_equal(keys_parse(line, strlen(line), "a test", i == 0 ? &some_keys : &other_keys, NULL), DUST_OK);
    }
    n_open = 0;
    uv_loop_init(&loop);
    uv_timer_init(&loop, &deadline);
    uv_timer_start(&deadline, late, DEADLINE_MS, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    uv_close((uv_handle_t *)&deadline, NULL);
    uv_run(&loop, UV_RUN_DEFAULT);
    return n_open == 0 ? uv_loop_close(&loop) : -1;
}

static void test_messages_arrive_whole_once_and_in_order(void **state)
{
    struct end a, b;
    char to[64];
    size_t sent = 0;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    open_at(&b, "127.0.0.1:0");
    snprintf(to, sizeof to, "%s", peers_bound_address(b.peers));
    for (unsigned i = 0; i < 1000; i++) {
        size_t len = 4 + i * 37 % 5000;
        void *body, *msg = peers_alloc(a.peers, len, &body);

        memset(body, 'x', len);
        memcpy(body, &i, 4);
        peers_send(a.peers, to, msg, len, PEER_NORMAL, NULL, NULL);
        sent += len;
    }
    wait_for(&b, 1000);
    assert_true(b.in_order);
    assert_int_equal(b.sum, 1000 * 999 / 2);
    assert_int_equal(b.bytes, sent);
    close_it(&a);
    close_it(&b);
    assert_int_equal(b.n, 1000);
}

static void test_a_large_message_arrives(void **state)
{
    struct end a, b;
    size_t len = (size_t)20 << 20;
    void *body, *msg;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    open_at(&b, "127.0.0.1:0");
    msg = peers_alloc(a.peers, len, &body);
    memset(body, 0, len);
    peers_send(a.peers, peers_bound_address(b.peers), msg, len, PEER_BULK, NULL, NULL);
    wait_for(&b, 1);
    assert_int_equal(b.bytes, len);
    close_it(&a);
    close_it(&b);
}

static void test_a_peer_that_returns_is_reached_again(void **state)
{
    struct end a, b;
    char to[64];

    (void)state;
    open_at(&a, "127.0.0.1:0");
    open_at(&b, "127.0.0.1:0");
    snprintf(to, sizeof to, "%s", peers_bound_address(b.peers));
    send_text(&a, to, "first");
    wait_for(&b, 1);
    close_it(&b);
    open_at(&b, to);
    while (b.n == 0) { /* what goes out while the connection is down may be lost; the sender sends again */
        send_text(&a, to, "again");
        uv_run(&loop, UV_RUN_ONCE);
    }
    assert_string_equal(b.last, "again");
    close_it(&a);
    close_it(&b);
}

static int n_sent, sent_status;

static void on_sent(void *arg, int status)
{
    (void)arg;
    n_sent++;
    sent_status = status;
}

static void test_what_is_queued_at_the_end_is_given_back(void **state)
{
    struct end a;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    n_sent = 0;
    for (int i = 0; i < 10; i++) { /* nobody listens there */
        void *body, *msg = peers_alloc(a.peers, 100, &body);

        peers_send(a.peers, "127.0.0.1:1", msg, 100, PEER_NORMAL, on_sent, NULL);
    }
    close_it(&a);
    assert_int_equal(n_sent, 10);
    assert_int_equal(sent_status, DUST_CLOSED);
}

static void test_a_queue_is_bounded(void **state)
{
    struct end a;
    struct peers_stats st;
    int n = (int)(PEER_QUEUE_BYTES >> 20) + 20;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    n_sent = 0;
    for (int i = 0; i < n; i++) {
        void *body, *msg = peers_alloc(a.peers, 1 << 20, &body);

        peers_send(a.peers, "127.0.0.1:1", msg, 1 << 20, PEER_NORMAL, on_sent, NULL);
    }
    peers_stats(a.peers, &st);
    assert_true(st.dropped >= 20 && st.dropped < (uint64_t)n);
    assert_int_equal(n_sent, st.dropped);
    assert_int_equal(sent_status, DUST_AGAIN);
    close_it(&a);
    assert_int_equal(n_sent, n);
}

static void test_garbage_harms_nobody(void **state)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    struct end a, b;
    char address[64];
    char garbage[4096];
    int fd;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    open_at(&b, "127.0.0.1:0");
    snprintf(address, sizeof address, "%s", peers_bound_address(b.peers));
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    memset(garbage, 0xff, sizeof garbage);
    for (int i = 0; i < 3; i++) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
        if (i == 1) { /* a proper greeting, and then a message of 2^64 - 1 bytes */
            assert_int_equal(send(fd, "\0SP\0\0\x50\0\0", 8, MSG_NOSIGNAL), 8);
        }
        if (i < 2) {
            send(fd, garbage, sizeof garbage, MSG_NOSIGNAL);
        }
        close(fd);
    }
    send_text(&a, address, "hello");
    wait_for(&b, 1);
    assert_string_equal(b.last, "hello");
    close_it(&a);
    close_it(&b);
}

/* ---- keys ---- */

/* The other one is stale until it is told, by a greeting, that this is a new start. */
static void test_a_peer_started_again_is_greeted_anew(void **state)
{
    struct end a, b;

    (void)state;
    keys = &some_keys;
    open_at(&a, "127.0.0.1:0");
    open_at(&b, "127.0.0.1:0");
    send_text(&a, b.address, "first");
    wait_for(&b, 1);
    for (int i = 0; i < 3; i++) {
        char at[ADDRESS_TEXT_MAX];

        strcpy(at, b.address);
        close_it(&b);
        open_at(&b, at);
        while (b.stale == 0) { /* what is on its way to the one that is gone is lost */
            send_text(&a, at, "lost");
            uv_run(&loop, UV_RUN_ONCE);
        }
        assert_int_equal(b.n, 0);
        peers_greet(b.peers, a.address);
        while (b.n == 0) {
            send_text(&a, at, "again");
            uv_run(&loop, UV_RUN_ONCE);
        }
        assert_string_equal(b.last, "again");
    }
    assert_int_equal(a.refused + b.refused, 0);
    close_it(&a);
    close_it(&b);
}

/* Send until the other one has refused it, in these words; nothing arrives. */
static void refuses(struct end *from, struct end *to, const char *words)
{
    while (to->refused == 0) {
        send_text(from, to->address, "listen");
        uv_run(&loop, UV_RUN_ONCE);
    }
    if (strstr(to->why, words) == NULL) {
        fail_msg("%s", to->why);
    }
    assert_int_equal(to->n + to->stale, 0);
    to->refused = 0;
}

static void test_who_has_another_key_or_none_is_not_heard(void **state)
{
    struct end a, b, none;
    char hint[KEY_HINT_TEXT];

    (void)state;
    keys = &some_keys;
    open_at(&a, "127.0.0.1:0");
    keys = &other_keys;
    open_at(&b, "127.0.0.1:0");
    keys = NULL;
    open_at(&none, "127.0.0.1:0");
    refuses(&a, &b, key_hint(&some_keys, 0, hint));
    refuses(&b, &a, key_hint(&other_keys, 0, hint));
    refuses(&none, &a, "not sealed");
    refuses(&a, &none, "has no key");
    close_it(&a);
    close_it(&b);
    close_it(&none);
}

/* The first key seals, any opens: so one can be replaced while all talk. */
static void test_a_key_is_replaced_step_by_step(void **state)
{
    struct keys before = some_keys, both = some_keys, swapped = other_keys, after = other_keys;
    const struct keys *const steps[][2] = {{&before, &before}, {&before, &both}, {&both, &both}, {&both, &swapped},
        {&swapped, &swapped}, {&swapped, &after}, {&after, &after}};
    struct end a, b;

    (void)state;
    both.key[both.n++] = other_keys.key[0];
    swapped.key[swapped.n++] = some_keys.key[0];
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        keys = steps[i][0];
        open_at(&a, "127.0.0.1:0");
        keys = steps[i][1];
        open_at(&b, "127.0.0.1:0");
        send_text(&a, b.address, "there");
        wait_for(&b, 1);
        send_text(&b, a.address, "and back");
        wait_for(&a, 1);
        assert_string_equal(b.last, "there");
        assert_string_equal(a.last, "and back");
        close_it(&a);
        close_it(&b);
    }
}

static void test_addresses_that_cannot_be_listened_on(void **state)
{
    struct peers_options o = {.recv = on_message};
    struct peers *p = NULL;
    struct err e;
    struct end a;

    (void)state;
    o.bind = "no port";
    assert_int_equal(peers_open(&p, &loop, &o, &e), DUST_MISUSE);
    open_at(&a, "127.0.0.1:0");
    o.bind = peers_bound_address(a.peers);
    assert_int_equal(peers_open(&p, &loop, &o, &e), DUST_EXISTS);
    assert_non_null(strstr(e.text, o.bind));
    assert_null(p);
    close_it(&a);
}

static void test_hearing_is_remembered(void **state)
{
    struct end a;

    (void)state;
    open_at(&a, "127.0.0.1:0");
    assert_int_equal(peers_last_heard_ms(a.peers, "127.0.0.1:1"), -1);
    peers_heard(a.peers, "127.0.0.1:1");
    assert_true(peers_last_heard_ms(a.peers, "127.0.0.1:1") >= 0);
    assert_int_equal(peers_last_heard_ms(a.peers, "127.0.0.1:2"), -1);
    close_it(&a);
}

int main(void)
{
#define WITH(test, with) {#test ", " #with, test, set_up, tear_down, with}
#define BOTH(test) WITH(test, NULL), WITH(test, &some_keys)
    const struct CMUnitTest tests[] = {
        BOTH(test_messages_arrive_whole_once_and_in_order),
        BOTH(test_a_large_message_arrives),
        cmocka_unit_test_setup_teardown(test_a_peer_that_returns_is_reached_again, set_up, tear_down),
        BOTH(test_what_is_queued_at_the_end_is_given_back),
        BOTH(test_a_queue_is_bounded),
        BOTH(test_garbage_harms_nobody),
        cmocka_unit_test_setup_teardown(test_a_peer_started_again_is_greeted_anew, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_who_has_another_key_or_none_is_not_heard, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_key_is_replaced_step_by_step, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_addresses_that_cannot_be_listened_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hearing_is_remembered, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
