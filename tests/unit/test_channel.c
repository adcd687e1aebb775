/* Unit tests of raft/channel: what is sealed arrives, once, at whom it is for, and nothing else does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/channel.h"

#define ADDRESS "10.0.0.1:4001"
#define ROOM 4096

static struct keys keys;
static struct channel *a, *b, *c; /* members with one key */
static struct session of_a, of_b;

/* What `from` would be told of `to`'s session, by a greeting. */
static struct session greet(struct channel *from, struct channel *to)
{
    uint8_t hello[CHANNEL_GREETING_MAX], welcome[CHANNEL_GREETING_MAX];
    struct channel_received r;
    struct challenge ch;
    size_t n;

    challenge_make(&ch);
    n = channel_hello(from, &ch, ADDRESS, hello);
    assert_true(n <= sizeof hello && channel_is_sealed(hello, n));
    assert_int_equal(channel_open(to, hello, n, &r, NULL), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_HELLO);
    assert_string_equal(r.address, ADDRESS);
    assert_memory_equal(r.challenge.b, ch.b, sizeof ch.b);
    n = channel_welcome(to, &r.challenge, welcome);
    assert_int_equal(channel_open(from, welcome, n, &r, NULL), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_WELCOME);
    assert_memory_equal(r.challenge.b, ch.b, sizeof ch.b);
    return r.from;
}

static int set_up(void **state)
{
    char line[KEY_LINE_MAX];

    (void)state;
    assert_int_equal(key_make(line, NULL), DUST_OK);
    assert_int_equal(keys_parse(line, strlen(line), "a test", &keys, NULL), DUST_OK);
    assert_int_equal(channel_new(&a, &keys, NULL), DUST_OK);
    assert_int_equal(channel_new(&b, &keys, NULL), DUST_OK);
    assert_int_equal(channel_new(&c, &keys, NULL), DUST_OK);
    of_b = greet(a, b);
    of_a = greet(b, a);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    channel_free(a);
    channel_free(b);
    channel_free(c);
    return 0;
}

static size_t seal(struct channel *from, const struct session *to, unsigned lane, const void *body, size_t len, uint8_t *out)
{
    assert_true(len + CHANNEL_HEAD + CHANNEL_TAIL <= ROOM);
    memcpy(out + CHANNEL_HEAD, body, len);
    channel_seal(from, to, lane, out, len);
    return CHANNEL_HEAD + len + CHANNEL_TAIL;
}

/* Of a copy, since it is opened in place. */
static int open_copy(struct channel *by, const uint8_t *msg, size_t len, struct channel_received *r, struct err *e)
{
    static uint8_t copy[ROOM];

    memcpy(copy, msg, len);
    return channel_open(by, copy, len, r, e);
}

static void test_a_message_arrives(void **state)
{
    static const size_t lengths[] = {0, 1, 15, 16, 17, 1000, ROOM - CHANNEL_HEAD - CHANNEL_TAIL};
    uint8_t body[ROOM], msg[ROOM];
    struct channel_received r;

    (void)state;
    randombytes_buf(body, sizeof body);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        size_t n = seal(a, &of_b, i % 2, body, lengths[i], msg);

        assert_int_equal(channel_open(b, msg, n, &r, NULL), DUST_OK);
        assert_int_equal(r.kind, CHANNEL_MESSAGE);
        assert_int_equal(r.len, lengths[i]);
        assert_memory_equal(r.body, body, r.len);
        assert_memory_equal(r.from.b, of_a.b, sizeof of_a.b);
    }
}

static void test_nothing_of_it_can_be_read(void **state)
{
    uint8_t body[256], one[ROOM], two[ROOM];
    size_t n, same = 0;

    (void)state;
    memset(body, 'x', sizeof body);
    n = seal(a, &of_b, 0, body, sizeof body, one);
    assert_int_equal(seal(a, &of_b, 0, body, sizeof body, two), n);
    assert_null(memmem(one, n, "xxx", 3));
    assert_null(memmem(one, n, of_b.b, 16));
    for (size_t i = 32; i < n; i++) { /* and the same looks different each time */
        same += one[i] == two[i];
    }
    assert_true(same < 30);
}

static void test_every_changed_bit_is_noticed(void **state)
{
    struct channel_received r, untouched;
    uint8_t msg[ROOM];
    size_t n = seal(a, &of_b, 0, "a message", 10, msg);
    struct err e;

    (void)state;
    memset(&untouched, 0x5a, sizeof untouched);
    r = untouched;
    for (size_t bit = 0; bit < 8 * n; bit++) {
        msg[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(open_copy(b, msg, n, &r, &e), DUST_REFUSED);
        assert_memory_equal(&r, &untouched, sizeof r);
        msg[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < n; len++) {
        assert_int_equal(open_copy(b, msg, len, &r, &e), DUST_REFUSED);
    }
    assert_int_equal(open_copy(b, msg, n, &r, &e), DUST_OK);
}

static void test_a_message_is_taken_once(void **state)
{
    static uint8_t msgs[5][ROOM];
    struct channel_received r;
    size_t n = 0;

    (void)state;
    for (int i = 0; i < 5; i++) {
        n = seal(a, &of_b, i == 4, "again", 6, msgs[i]);
    }
    assert_int_equal(open_copy(b, msgs[2], n, &r, NULL), DUST_OK); /* in any order */
    assert_int_equal(open_copy(b, msgs[0], n, &r, NULL), DUST_OK);
    assert_int_equal(open_copy(b, msgs[4], n, &r, NULL), DUST_OK);
    assert_int_equal(open_copy(b, msgs[3], n, &r, NULL), DUST_OK);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(open_copy(b, msgs[i], n, &r, NULL), i == 1 ? DUST_OK : DUST_EXISTS);
    }
    assert_int_equal(open_copy(b, msgs[1], n, &r, NULL), DUST_EXISTS);
}

/* The window against a list of all counters taken: what is taken is new; what is new and not far behind is taken. */
static void test_the_window_of_what_was_heard(void **state)
{
    enum { N = 6000, BEHIND = 1024 };
    uint8_t(*msgs)[80] = calloc(N, sizeof *msgs), body[8] = {0};
    bool *taken = calloc(N, sizeof *taken);
    unsigned highest = 0, n_taken = 0;
    struct channel_received r;
    size_t n = 0;

    (void)state;
    assert_true(CHANNEL_HEAD + sizeof body + CHANNEL_TAIL <= sizeof *msgs);
    for (unsigned i = 0; i < N; i++) {
        n = seal(a, &of_b, 0, body, sizeof body, msgs[i]);
    }
    srand(1);
    for (unsigned round = 0; round < 20000; round++) {
        unsigned step = (unsigned)rand(), i;

        /* Mostly near the highest, at times far ahead or behind. */
        i = step % 5000 == 0 ? (unsigned)rand() % N
            : step % 3 == 0 ? (highest > 2 * BEHIND ? highest - (unsigned)rand() % (2 * BEHIND) : (unsigned)rand() % (highest + 1))
                            : highest + (unsigned)rand() % 2;
        i = i < N ? i : N - 1;
        if (open_copy(b, msgs[i], n, &r, NULL) == DUST_OK) {
            assert_false(taken[i]);
            taken[i] = true;
            n_taken++;
        } else {
            assert_true(taken[i] || highest - i >= BEHIND);
        }
        highest = i > highest ? i : highest;
    }
    assert_true(n_taken > BEHIND);
    free(taken);
    free(msgs);
}

static void test_it_is_for_one_start_of_one_member(void **state)
{
    struct channel_received r;
    uint8_t msg[ROOM];
    size_t n = seal(a, &of_b, 0, "for b", 6, msg);
    struct channel *later;
    struct err e;

    (void)state;
    assert_int_equal(open_copy(c, msg, n, &r, &e), DUST_OK); /* another member: is not what it was for */
    assert_int_equal(r.kind, CHANNEL_STALE);
    assert_string_equal(r.body, "for b");
    assert_int_equal(open_copy(a, msg, n, &r, &e), DUST_REFUSED); /* sent back to its sender */
    assert_non_null(strstr(e.text, "own"));
    assert_int_equal(channel_new(&later, &keys, NULL), DUST_OK); /* b, started again */
    assert_int_equal(open_copy(later, msg, n, &r, &e), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_STALE);
    assert_int_equal(open_copy(later, msg, n, &r, &e), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_STALE);
    of_b = greet(a, later);
    n = seal(a, &of_b, 0, "for b", 6, msg);
    assert_int_equal(open_copy(later, msg, n, &r, &e), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_MESSAGE);
    channel_free(later);
}

static void test_greetings_sent_back_are_not_answered(void **state)
{
    uint8_t greeting[CHANNEL_GREETING_MAX];
    struct channel_received r;
    struct challenge ch;
    size_t n;

    (void)state;
    challenge_make(&ch);
    n = channel_hello(a, &ch, ADDRESS, greeting);
    assert_int_equal(channel_open(a, greeting, n, &r, NULL), DUST_REFUSED);
    n = channel_welcome(a, &ch, greeting);
    assert_int_equal(channel_open(a, greeting, n, &r, NULL), DUST_REFUSED);
}

static void test_a_hello_from_nowhere(void **state)
{
    static const char *const bad[] = {"", "10.0.0.1", "10.0.0.1:0", "example.org:1", "010.0.0.1:4001", "localhost:1",
        "1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1"};
    uint8_t greeting[CHANNEL_GREETING_MAX];
    struct channel_received r;
    struct challenge ch;

    (void)state;
    challenge_make(&ch);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        size_t n = channel_hello(a, &ch, bad[i], greeting);

        assert_int_equal(channel_open(b, greeting, n, &r, NULL), DUST_CORRUPT);
    }
}

static void test_another_key_is_named_and_the_second_of_two_opens(void **state)
{
    struct keys other, both;
    struct channel *stranger, *d;
    struct channel_received r;
    char line[KEY_LINE_MAX], hint[KEY_HINT_TEXT];
    uint8_t msg[ROOM];
    struct err e;
    size_t n;

    (void)state;
    assert_int_equal(key_make(line, NULL), DUST_OK);
    assert_int_equal(keys_parse(line, strlen(line), "a test", &other, NULL), DUST_OK);
    assert_int_equal(channel_new(&stranger, &other, NULL), DUST_OK);
    n = seal(stranger, &of_b, 0, "hello", 6, msg);
    assert_int_equal(open_copy(b, msg, n, &r, &e), DUST_REFUSED);
    assert_non_null(strstr(e.text, key_hint(&other, 0, hint)));
    memcpy(msg + 5, keys.key[0].hint, KEY_HINT_BYTES); /* a lie */
    assert_int_equal(open_copy(b, msg, n, &r, &e), DUST_REFUSED);
    memset(msg, 'x', n);
    assert_int_equal(open_copy(b, msg, n, &r, &e), DUST_REFUSED);
    assert_non_null(strstr(e.text, "not sealed"));

    both = keys;
    both.key[both.n++] = other.key[0];
    assert_int_equal(channel_new(&d, &both, NULL), DUST_OK);
    of_b = greet(a, d); /* (an answer is sealed with the first) */
    n = seal(stranger, &of_b, 0, "hello", 6, msg);
    assert_int_equal(open_copy(d, msg, n, &r, &e), DUST_OK);
    assert_int_equal(r.kind, CHANNEL_MESSAGE);
    channel_free(stranger);
    channel_free(d);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_a_message_arrives),
        TEST(test_nothing_of_it_can_be_read),
        TEST(test_every_changed_bit_is_noticed),
        TEST(test_a_message_is_taken_once),
        TEST(test_the_window_of_what_was_heard),
        TEST(test_it_is_for_one_start_of_one_member),
        TEST(test_greetings_sent_back_are_not_answered),
        TEST(test_a_hello_from_nowhere),
        TEST(test_another_key_is_named_and_the_second_of_two_opens),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
