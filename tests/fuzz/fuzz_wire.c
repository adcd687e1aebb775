/* raft/wire: messages between members.
 *
 * The first byte of the input: bit 0: magic, version and length of the body are put right, else the rest is the message
 * as it is; bits 1 to 3: which allocation fails, if not 0. What decodes has values within bounds, and comes back the
 * same when it is encoded and decoded again. */
#include "raft/wire.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/heap.h"

#define HEAD_FIXED 47

/* ---- messages ---- */

/* Put right what a random message has wrong. Returns its length. */
static size_t put_right(uint8_t *p, size_t len)
{
    size_t body;

    if (len < HEAD_FIXED) {
        return len;
    }
    memcpy(p, "dust", 4);
    p[4] = WIRE_VERSION;
    p[46] &= 63;
    body = HEAD_FIXED + p[46] + 4u;
    if (len >= body) {
        le_put(p + body - 4, len - body, 4);
    }
    return len;
}

static bool within(const void *p, size_t n, const uint8_t *buf, size_t len)
{
    const uint8_t *b = p;

    return n == 0 || (b >= buf && n <= len && (size_t)(b - buf) <= len - n);
}

static void check_entries(const struct raft_append_entries *a)
{
    const uint8_t *at = a->n_entries != 0 ? a->entries[0].batch : NULL;

    check(a->n_entries <= WIRE_ENTRIES_MAX);
    check((a->entries != NULL) == (a->n_entries != 0));
    for (unsigned i = 0; i < a->n_entries; i++) {
        const struct raft_entry *x = &a->entries[i];

        check(x->type >= RAFT_COMMAND && x->type <= RAFT_CHANGE);
        check(x->buf.len != 0 && x->buf.len % 8 == 0);
        check(x->batch == a->entries[0].batch && x->buf.base == at);
        at += x->buf.len;
    }
}

static void check_configuration(const struct raft_configuration *c)
{
    check(c->n <= 1024);
    for (unsigned i = 0; i < c->n; i++) {
        check(c->servers[i].id != 0 && strlen(c->servers[i].address) < ADDRESS_TEXT_MAX);
        check(c->servers[i].role >= RAFT_STANDBY && c->servers[i].role <= RAFT_SPARE);
        for (unsigned k = 0; k < i; k++) {
            check(c->servers[i].id != c->servers[k].id);
        }
    }
}

static void check_message(const struct wire_head *h, const struct wire_body *b, const uint8_t *buf, size_t len)
{
    const struct note *note = &b->note;
    char text[8];

    check((h->type >= RAFT_IO_APPEND_ENTRIES && h->type <= RAFT_IO_TIMEOUT_NOW) || h->type == WIRE_NOTE);
    check(memchr(h->address, '\0', sizeof h->address) != NULL);
    if (h->type == WIRE_NOTE) {
        check(within(note->text, note->text_len, buf, len) && within(note->data, note->data_len, buf, len));
        note_text(note, text, sizeof text);
        check(strlen(text) <= note->text_len);
        return;
    }
    check(b->message.type == h->type);
    if (h->type == RAFT_IO_APPEND_ENTRIES) {
        check_entries(&b->message.append_entries);
    } else if (h->type == RAFT_IO_REQUEST_VOTE_RESULT) {
        check(b->message.request_vote_result.pre_vote <= raft_tribool_false);
    } else if (h->type == RAFT_IO_INSTALL_SNAPSHOT) {
        check_configuration(&b->message.install_snapshot.conf);
        check(b->message.install_snapshot.data.len != 0 && b->message.install_snapshot.data.base != NULL);
    }
}

static bool same_bytes(const void *a, size_t a_len, const void *b, size_t b_len)
{
    return a_len == b_len && (a_len == 0 || memcmp(a, b, a_len) == 0);
}

static bool same_entries(const struct raft_append_entries *a, const struct raft_append_entries *b)
{
    bool same = a->term == b->term && a->prev_log_index == b->prev_log_index && a->prev_log_term == b->prev_log_term &&
                a->leader_commit == b->leader_commit && a->n_entries == b->n_entries;

    for (unsigned i = 0; same && i < a->n_entries; i++) {
        const struct raft_entry *x = &a->entries[i], *y = &b->entries[i];

        same = x->term == y->term && x->type == y->type && same_bytes(x->buf.base, x->buf.len, y->buf.base, y->buf.len);
    }
    return same;
}

static bool same_snapshot(const struct raft_install_snapshot *a, const struct raft_install_snapshot *b)
{
    bool same = a->term == b->term && a->last_index == b->last_index && a->last_term == b->last_term &&
                a->conf_index == b->conf_index && a->conf.n == b->conf.n;

    for (unsigned i = 0; same && i < a->conf.n; i++) {
        const struct raft_server *x = &a->conf.servers[i], *y = &b->conf.servers[i];

        same = x->id == y->id && x->role == y->role && strcmp(x->address, y->address) == 0;
    }
    return same && same_bytes(a->data.base, a->data.len, b->data.base, b->data.len);
}

static bool same_message(const struct raft_message *a, const struct raft_message *b)
{
    switch (a->type) {
    case RAFT_IO_APPEND_ENTRIES:
        return same_entries(&a->append_entries, &b->append_entries);
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        return a->append_entries_result.term == b->append_entries_result.term &&
               a->append_entries_result.rejected == b->append_entries_result.rejected &&
               a->append_entries_result.last_log_index == b->append_entries_result.last_log_index;
    case RAFT_IO_REQUEST_VOTE:
        return a->request_vote.term == b->request_vote.term &&
               a->request_vote.candidate_id == b->request_vote.candidate_id &&
               a->request_vote.last_log_index == b->request_vote.last_log_index &&
               a->request_vote.last_log_term == b->request_vote.last_log_term &&
               a->request_vote.disrupt_leader == b->request_vote.disrupt_leader &&
               a->request_vote.pre_vote == b->request_vote.pre_vote;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        return a->request_vote_result.term == b->request_vote_result.term &&
               a->request_vote_result.vote_granted == b->request_vote_result.vote_granted &&
               a->request_vote_result.pre_vote == b->request_vote_result.pre_vote;
    case RAFT_IO_INSTALL_SNAPSHOT:
        return same_snapshot(&a->install_snapshot, &b->install_snapshot);
    default:
        return a->timeout_now.term == b->timeout_now.term &&
               a->timeout_now.last_log_index == b->timeout_now.last_log_index &&
               a->timeout_now.last_log_term == b->timeout_now.last_log_term;
    }
}

static bool same_note(const struct note *a, const struct note *b)
{
    return a->kind == b->kind && a->code == b->code && a->term == b->term && a->req == b->req &&
           memcmp(a->num, b->num, sizeof a->num) == 0 && memcmp(a->id, b->id, sizeof a->id) == 0 &&
           same_bytes(a->text, a->text_len, b->text, b->text_len) &&
           same_bytes(a->data, a->data_len, b->data, b->data_len);
}

/* Encode and decode it again. */
static void round_trip(const struct wire_head *h, const struct wire_body *b, const uint8_t *was, size_t was_len)
{
    bool is_note = h->type == WIRE_NOTE;
    size_t len = is_note ? wire_note_size(h, &b->note) : wire_raft_size(h, &b->message);
    uint8_t *buf = must_alloc(len);
    struct wire_head h2;
    struct wire_body b2;
    struct err e;

    check(len <= was_len); /* what is zero, or ignored, may fall away; nothing is added */
    if (is_note) {
        wire_note_put(h, &b->note, buf);
    } else {
        wire_raft_put(h, &b->message, buf);
    }
    if (h->type != WIRE_NOTE && h->type != RAFT_IO_REQUEST_VOTE && h->type != RAFT_IO_REQUEST_VOTE_RESULT) {
        check(same_bytes(buf, len, was, was_len));
    }
    check(wire_decode(buf, len, &h2, &b2, &e) == DUST_OK);
    check(memcmp(h, &h2, sizeof h2) == 0);
    check(is_note ? same_note(&b->note, &b2.note) : same_message(&b->message, &b2.message));
    wire_body_free(&h2, &b2);
    free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_head h;
    struct wire_body b;
    struct err e;
    uint8_t *buf;
    int rv;

    if (size == 0) {
        return 0;
    }
    buf = exact_copy(data + 1, size - 1);
    if (data[0] & 1) {
        put_right(buf, size - 1);
    }
    heap_begin(data[0] >> 1 & 7);
    err_clear(&e);
    rv = wire_decode(buf, size - 1, &h, &b, &e);
    check_err(&e, rv);
    if (heap_end()) {
        check(rv == DUST_NOMEM);
    } else {
        check(rv == DUST_OK || rv == DUST_CORRUPT || rv == DUST_VERSION);
    }
    if (rv == DUST_OK) {
        check_message(&h, &b, buf, size - 1);
        round_trip(&h, &b, buf, size - 1);
    }
    wire_body_free(&h, &b); /* harmless after a failure */
    check(n_held == 0);
    free(buf);
    return 0;
}
