/* wire: what is encoded comes back; nothing else is taken. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "raft/log.h"
#include "raft/wire.h"

static const struct wire_head head = {
    .cluster = {1, 2, 3}, .from = 7, .to = 9, .boot = 99, .address = "127.0.0.1:4001"};

/* Decode from a buffer of exactly that size, so that reading on is noticed. */
static int decode(const uint8_t *data, size_t len, struct wire_head *h, struct wire_body *b)
{
    uint8_t *copy = malloc(len + (len == 0));
    struct err e;
    int rv;

    memcpy(copy, data, len);
    rv = wire_decode(copy, len, h, b, &e);
    if (rv == DUST_OK && h->type == WIRE_NOTE) {
        b->note.text = NULL;
        b->note.data = NULL;
    }
    free(copy);
    return rv;
}

/* Every shorter message and every flip of a byte is refused, or at least harmless. */
static void torment(const uint8_t *data, size_t len)
{
    struct wire_head h;
    struct wire_body b;
    uint8_t *bad = malloc(len + 1);

    for (size_t n = 0; n < len; n++) {
        assert_int_not_equal(decode(data, n, &h, &b), DUST_OK);
    }
    memcpy(bad, data, len);
    bad[len] = 0;
    assert_int_not_equal(decode(bad, len + 1, &h, &b), DUST_OK);
    for (size_t n = 0; n < len; n++) {
        for (int x = 1; x < 256; x += 37) {
            bad[n] = (uint8_t)(data[n] ^ x);
            if (decode(bad, len, &h, &b) == DUST_OK) {
                wire_body_free(&h, &b);
            }
        }
        bad[n] = data[n];
    }
    free(bad);
}

static struct raft_message round_trip(const struct raft_message *m, struct wire_body *b)
{
    size_t len = wire_raft_size(&head, m);
    uint8_t *buf = malloc(len);
    struct wire_head h;

    wire_raft_put(&head, m, buf);
    assert_int_equal(decode(buf, len, &h, b), DUST_OK);
    assert_int_equal(h.type, m->type);
    assert_int_equal(h.from, 7);
    assert_int_equal(h.to, 9);
    assert_int_equal(h.boot, 99);
    assert_memory_equal(h.cluster, head.cluster, 16);
    assert_string_equal(h.address, head.address);
    torment(buf, len);
    free(buf);
    return b->message;
}

static void append_entries(void **state)
{
    uint8_t payload[3][24];
    struct raft_entry entries[3];
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES}, out;
    struct wire_head h = {.type = RAFT_IO_APPEND_ENTRIES};
    struct wire_body b;

    (void)state;
    m.append_entries = (struct raft_append_entries){5, 6, 7, 8, NULL, 0};
    out = round_trip(&m, &b);
    assert_int_equal(out.append_entries.leader_commit, 8);
    assert_null(out.append_entries.entries);
    for (int i = 0; i < 3; i++) {
        memset(payload[i], i + 1, sizeof payload[i]);
        entries[i] = (struct raft_entry){.term = 40 + (raft_term)i, .type = (unsigned short)(1 + i),
            .buf = {payload[i], 8 + 8 * (size_t)i}};
    }
    m.append_entries.entries = entries;
    m.append_entries.n_entries = 3;
    out = round_trip(&m, &b);
    assert_int_equal(out.append_entries.n_entries, 3);
    for (int i = 0; i < 3; i++) {
        const struct raft_entry *e = &out.append_entries.entries[i];

        assert_int_equal(e->term, 40 + i);
        assert_int_equal(e->type, 1 + i);
        assert_int_equal(e->buf.len, 8 + 8 * i);
        assert_memory_equal(e->buf.base, payload[i], e->buf.len);
        assert_ptr_equal(e->batch, out.append_entries.entries[0].batch);
    }
    wire_body_free(&h, &b);
}

static void hostile_entries(void **state)
{
    static const size_t lengths[] = {0, 7, 12, 0xfffffff8u};
    uint8_t payload[8] = {0};
    struct raft_entry entry = {.term = 1, .type = RAFT_COMMAND, .buf = {payload, 8}};
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES};
    size_t len, at;
    struct wire_head h;
    struct wire_body b;
    uint8_t *buf;

    (void)state;
    m.append_entries.entries = &entry;
    m.append_entries.n_entries = 1;
    len = wire_raft_size(&head, &m);
    buf = malloc(len);
    wire_raft_put(&head, &m, buf);
    at = len - 8 - 4; /* the length of the entry */
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (int k = 0; k < 4; k++) {
            buf[at + (size_t)k] = (uint8_t)(lengths[i] >> (8 * k));
        }
        assert_int_equal(decode(buf, len, &h, &b), DUST_CORRUPT);
    }
    memset(buf + at - 13, 0xff, 4); /* the number of entries */
    assert_int_equal(decode(buf, len, &h, &b), DUST_CORRUPT);
    buf[4] = WIRE_VERSION + 1;
    assert_int_equal(decode(buf, len, &h, &b), DUST_VERSION);
    free(buf);
}

/* The log takes no larger one; a message whose lengths add up is refused for that alone. */
static void entry_too_large_for_the_log(void **state)
{
    struct raft_entry entry = {.term = 1, .type = RAFT_COMMAND, .buf = {.base = calloc(1, LOG_ENTRY_MAX + 8)}};
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES};
    struct wire_head h;
    struct wire_body b;

    (void)state;
    m.append_entries.entries = &entry;
    m.append_entries.n_entries = 1;
    for (unsigned more = 0; more <= 8; more += 8) {
        size_t len;
        uint8_t *buf;

        entry.buf.len = LOG_ENTRY_MAX + more;
        len = wire_raft_size(&head, &m);
        buf = malloc(len);
        wire_raft_put(&head, &m, buf);
        assert_int_equal(decode(buf, len, &h, &b), more == 0 ? DUST_OK : DUST_CORRUPT);
        if (more == 0) {
            wire_body_free(&h, &b);
        }
        free(buf);
    }
    free(entry.buf.base);
}

static void fixed_messages(void **state)
{
    struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES_RESULT}, out;
    struct wire_body b;

    (void)state;
    m.append_entries_result = (struct raft_append_entries_result){1, 2, 3};
    out = round_trip(&m, &b);
    assert_memory_equal(&out.append_entries_result, &m.append_entries_result, sizeof m.append_entries_result);
    for (int flags = 0; flags < 4; flags++) {
        m = (struct raft_message){.type = RAFT_IO_REQUEST_VOTE};
        m.request_vote.term = 4;
        m.request_vote.candidate_id = 5;
        m.request_vote.last_log_index = 6;
        m.request_vote.last_log_term = 7;
        m.request_vote.disrupt_leader = (flags & 1) != 0;
        m.request_vote.pre_vote = (flags & 2) != 0;
        out = round_trip(&m, &b);
        assert_int_equal(out.request_vote.candidate_id, 5);
        assert_int_equal(out.request_vote.disrupt_leader, flags & 1);
        assert_int_equal(out.request_vote.pre_vote, flags >> 1);
    }
    for (int v = raft_tribool_unknown; v <= raft_tribool_false; v++) {
        m = (struct raft_message){.type = RAFT_IO_REQUEST_VOTE_RESULT};
        m.request_vote_result.term = 8;
        m.request_vote_result.vote_granted = v == raft_tribool_true;
        m.request_vote_result.pre_vote = (raft_tribool)v;
        out = round_trip(&m, &b);
        assert_int_equal(out.request_vote_result.pre_vote, v);
        assert_int_equal(out.request_vote_result.vote_granted, v == raft_tribool_true);
    }
    m = (struct raft_message){.type = RAFT_IO_TIMEOUT_NOW};
    m.timeout_now = (struct raft_timeout_now){9, 10, 11};
    out = round_trip(&m, &b);
    assert_memory_equal(&out.timeout_now, &m.timeout_now, sizeof m.timeout_now);
}

static void install_snapshot(void **state)
{
    struct raft_message m = {.type = RAFT_IO_INSTALL_SNAPSHOT}, out;
    struct wire_head h = {.type = RAFT_IO_INSTALL_SNAPSHOT};
    char data[] = "a descriptor";
    struct wire_body b;

    (void)state;
    m.install_snapshot.term = 1;
    m.install_snapshot.last_index = 2;
    m.install_snapshot.last_term = 3;
    m.install_snapshot.conf_index = 4;
    m.install_snapshot.data = (struct raft_buffer){data, sizeof data};
    raft_configuration_init(&m.install_snapshot.conf);
    assert_int_equal(raft_configuration_add(&m.install_snapshot.conf, 1, "127.0.0.1:1", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&m.install_snapshot.conf, 8, "127.0.0.1:2", RAFT_SPARE), 0);
    out = round_trip(&m, &b);
    assert_int_equal(out.install_snapshot.conf.n, 2);
    assert_int_equal(out.install_snapshot.conf.servers[1].id, 8);
    assert_int_equal(out.install_snapshot.conf.servers[1].role, RAFT_SPARE);
    assert_string_equal(out.install_snapshot.conf.servers[1].address, "127.0.0.1:2");
    assert_int_equal(out.install_snapshot.data.len, sizeof data);
    assert_memory_equal(out.install_snapshot.data.base, data, sizeof data);
    wire_body_free(&h, &b);
    raft_configuration_close(&m.install_snapshot.conf);
}

static void notes(void **state)
{
    struct note full = {.kind = 3, .code = -4, .term = 5, .req = 6, .text = "text", .text_len = 4,
        .data = (const uint8_t *)"data!", .data_len = 5};
    struct note empty = {.kind = 12};
    struct wire_head h;
    struct wire_body b;
    struct err e;
    uint8_t *buf;
    size_t len;

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        full.num[i] = 1ull << (8 * i);
    }
    full.id[1].b[3] = 77;
    len = wire_note_size(&head, &full);
    buf = malloc(len);
    wire_note_put(&head, &full, buf);
    assert_int_equal(wire_decode(buf, len, &h, &b, &e), DUST_OK);
    assert_int_equal(b.note.kind, 3);
    assert_int_equal(b.note.code, -4);
    assert_int_equal(b.note.term, 5);
    assert_int_equal(b.note.req, 6);
    assert_memory_equal(b.note.num, full.num, sizeof full.num);
    assert_memory_equal(b.note.id, full.id, sizeof full.id);
    assert_int_equal(b.note.text_len, 4);
    assert_memory_equal(b.note.text, "text", 4);
    assert_int_equal(b.note.data_len, 5);
    assert_memory_equal(b.note.data, "data!", 5);
    torment(buf, len);
    free(buf);
    assert_true(wire_note_size(&head, &empty) < 80);
    len = wire_note_size(&head, &empty);
    buf = malloc(len);
    wire_note_put(&head, &empty, buf);
    assert_int_equal(decode(buf, len, &h, &b), DUST_OK);
    assert_memory_equal(&b.note, &empty, sizeof empty);
    free(buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(append_entries),
        cmocka_unit_test(entry_too_large_for_the_log),
        cmocka_unit_test(hostile_entries),
        cmocka_unit_test(fixed_messages),
        cmocka_unit_test(install_snapshot),
        cmocka_unit_test(notes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
