/* The format of messages, little-endian:
 *
 *     0   4  magic "dust"
 *     4   1  version of this format (1)
 *     5   1  type: 1 to 6 as libraft's RAFT_IO_…, 16 a note
 *     6  16  cluster id
 *    22   8  sender's member id
 *    30   8  receiver's member id
 *    38   8  sender's boot nonce
 *    46   1  length of the sender's address (at most 63), and the address
 *     …   4  length of the body; nothing follows it
 *
 * Bodies, by type:
 *   AppendEntries         term 8, prev index 8, prev term 8, leader commit 8, n 4,
 *                         n times: term 8, type 1, length 4; then the payloads one after the other
 *   AppendEntriesResult   term 8, rejected 8, last index 8
 *   RequestVote           term 8, candidate 8, last index 8, last term 8, flags 1 (bit 0 disrupt, bit 1 pre-vote)
 *   RequestVoteResult     term 8, granted 1, pre-vote 1 (libraft's tribool)
 *   InstallSnapshot       term 8, last index 8, last term 8, configuration index 8, n servers 4,
 *                         n times: id 8, role 1, address length 1 (at most 63), address; data length 4, data
 *   TimeoutNow            term 8, last index 8, last term 8
 *   note                  kind 2, mask 2, then the fields whose bit is set, in this order: code 4 (bit 0), term 8 (1),
 *                         req 8 (2), num[i] 8 (3 to 10), id[i] 16 (11 to 13), text length 4 and text (14),
 *                         data length 4 and data (15)
 *
 * Payloads of entries are a non-zero multiple of 8 bytes long, as all that dust and libraft make are, and fit into the log
 * (LOG_ENTRY_MAX). */
#include "raft/wire.h"

#include <string.h>

#include "raft/log.h"

#define MAGIC "dust"
#define HEAD_FIXED 47
#define SERVERS_MAX 1024u

/* ---- writing ---- */

struct out {
    uint8_t *p;
};

static void put(struct out *o, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) {
        *o->p++ = (uint8_t)(v >> (8 * i));
    }
}

static void put_bytes(struct out *o, const void *data, size_t n)
{
    if (n != 0) {
        memcpy(o->p, data, n);
    }
    o->p += n;
}

static void put_head(struct out *o, const struct wire_head *h, int type, size_t body)
{
    size_t n = strnlen(h->address, sizeof h->address - 1);

    put_bytes(o, MAGIC, 4);
    put(o, WIRE_VERSION, 1);
    put(o, (uint64_t)type, 1);
    put_bytes(o, h->cluster, sizeof h->cluster);
    put(o, h->from, 8);
    put(o, h->to, 8);
    put(o, h->boot, 8);
    put(o, n, 1);
    put_bytes(o, h->address, n);
    put(o, body, 4);
}

static size_t head_size(const struct wire_head *h)
{
    return HEAD_FIXED + strnlen(h->address, sizeof h->address - 1) + 4;
}

static size_t body_size(const struct raft_message *m)
{
    size_t size = 0;

    switch (m->type) {
    case RAFT_IO_APPEND_ENTRIES:
        size = 36;
        for (unsigned i = 0; i < m->append_entries.n_entries; i++) {
            size += 13 + m->append_entries.entries[i].buf.len;
        }
        break;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
    case RAFT_IO_TIMEOUT_NOW:
        size = 24;
        break;
    case RAFT_IO_REQUEST_VOTE:
        size = 33;
        break;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        size = 10;
        break;
    case RAFT_IO_INSTALL_SNAPSHOT:
        size = 40 + m->install_snapshot.data.len;
        for (unsigned i = 0; i < m->install_snapshot.conf.n; i++) {
            size += 10 + strlen(m->install_snapshot.conf.servers[i].address);
        }
        break;
    default:
        break;
    }
    return size;
}

size_t wire_raft_size(const struct wire_head *h, const struct raft_message *m)
{
    return head_size(h) + body_size(m);
}

static void put_append_entries(struct out *o, const struct raft_append_entries *a)
{
    put(o, a->term, 8);
    put(o, a->prev_log_index, 8);
    put(o, a->prev_log_term, 8);
    put(o, a->leader_commit, 8);
    put(o, a->n_entries, 4);
    for (unsigned i = 0; i < a->n_entries; i++) {
        put(o, a->entries[i].term, 8);
        put(o, a->entries[i].type, 1);
        put(o, a->entries[i].buf.len, 4);
    }
    for (unsigned i = 0; i < a->n_entries; i++) {
        put_bytes(o, a->entries[i].buf.base, a->entries[i].buf.len);
    }
}

static void put_install_snapshot(struct out *o, const struct raft_install_snapshot *s)
{
    put(o, s->term, 8);
    put(o, s->last_index, 8);
    put(o, s->last_term, 8);
    put(o, s->conf_index, 8);
    put(o, s->conf.n, 4);
    for (unsigned i = 0; i < s->conf.n; i++) {
        size_t n = strlen(s->conf.servers[i].address);

        put(o, s->conf.servers[i].id, 8);
        put(o, (uint64_t)s->conf.servers[i].role, 1);
        put(o, n, 1);
        put_bytes(o, s->conf.servers[i].address, n);
    }
    put(o, s->data.len, 4);
    put_bytes(o, s->data.base, s->data.len);
}

void wire_raft_put(const struct wire_head *h, const struct raft_message *m, void *out)
{
    struct out o = {.p = out};

    put_head(&o, h, m->type, body_size(m));
    switch (m->type) {
    case RAFT_IO_APPEND_ENTRIES:
        put_append_entries(&o, &m->append_entries);
        break;
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        put(&o, m->append_entries_result.term, 8);
        put(&o, m->append_entries_result.rejected, 8);
        put(&o, m->append_entries_result.last_log_index, 8);
        break;
    case RAFT_IO_REQUEST_VOTE:
        put(&o, m->request_vote.term, 8);
        put(&o, m->request_vote.candidate_id, 8);
        put(&o, m->request_vote.last_log_index, 8);
        put(&o, m->request_vote.last_log_term, 8);
        put(&o, (m->request_vote.disrupt_leader ? 1u : 0u) | (m->request_vote.pre_vote ? 2u : 0u), 1);
        break;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        put(&o, m->request_vote_result.term, 8);
        put(&o, m->request_vote_result.vote_granted, 1);
        put(&o, (uint64_t)m->request_vote_result.pre_vote, 1);
        break;
    case RAFT_IO_INSTALL_SNAPSHOT:
        put_install_snapshot(&o, &m->install_snapshot);
        break;
    case RAFT_IO_TIMEOUT_NOW:
        put(&o, m->timeout_now.term, 8);
        put(&o, m->timeout_now.last_log_index, 8);
        put(&o, m->timeout_now.last_log_term, 8);
        break;
    default:
        break;
    }
}

static unsigned mask_of(const struct note *note)
{
    unsigned mask = (note->code != 0 ? 1u : 0u) | (note->term != 0 ? 2u : 0u) | (note->req != 0 ? 4u : 0u);

    for (unsigned i = 0; i < 8; i++) {
        mask |= note->num[i] != 0 ? 8u << i : 0u;
    }
    for (unsigned i = 0; i < 3; i++) {
        mask |= vid_none(&note->id[i]) ? 0u : 1u << (11 + i);
    }
    return mask | (note->text_len != 0 ? 1u << 14 : 0u) | (note->data_len != 0 ? 1u << 15 : 0u);
}

static size_t note_size(const struct note *note)
{
    unsigned mask = mask_of(note);
    size_t size = 4 + (mask & 1 ? 4 : 0) + (mask & 2 ? 8 : 0) + (mask & 4 ? 8 : 0);

    for (unsigned i = 0; i < 8; i++) {
        size += mask & (8u << i) ? 8 : 0;
    }
    for (unsigned i = 0; i < 3; i++) {
        size += mask & (1u << (11 + i)) ? 16 : 0;
    }
    return size + (note->text_len != 0 ? 4 + (size_t)note->text_len : 0) +
           (note->data_len != 0 ? 4 + (size_t)note->data_len : 0);
}

size_t wire_note_size(const struct wire_head *h, const struct note *note)
{
    return head_size(h) + note_size(note);
}

void wire_note_put(const struct wire_head *h, const struct note *note, void *out)
{
    unsigned mask = mask_of(note);
    struct out o = {.p = out};

    put_head(&o, h, WIRE_NOTE, note_size(note));
    put(&o, note->kind, 2);
    put(&o, mask, 2);
    if (mask & 1) {
        put(&o, (uint32_t)note->code, 4);
    }
    if (mask & 2) {
        put(&o, note->term, 8);
    }
    if (mask & 4) {
        put(&o, note->req, 8);
    }
    for (unsigned i = 0; i < 8; i++) {
        if (mask & (8u << i)) {
            put(&o, note->num[i], 8);
        }
    }
    for (unsigned i = 0; i < 3; i++) {
        if (mask & (1u << (11 + i))) {
            put_bytes(&o, note->id[i].b, 16);
        }
    }
    if (note->text_len != 0) {
        put(&o, note->text_len, 4);
        put_bytes(&o, note->text, note->text_len);
    }
    if (note->data_len != 0) {
        put(&o, note->data_len, 4);
        put_bytes(&o, note->data, note->data_len);
    }
}

/* ---- reading ---- */

/* A cursor that, once it has run off the end, yields zeros and stays bad. */
struct in {
    const uint8_t *p;
    size_t left;
    bool bad;
};

static uint64_t get(struct in *i, unsigned n)
{
    uint64_t v = 0;

    if (i->left < n) {
        i->bad = true;
        i->left = 0;
        return 0;
    }
    for (unsigned k = 0; k < n; k++) {
        v |= (uint64_t)i->p[k] << (8 * k);
    }
    i->p += n;
    i->left -= n;
    return v;
}

static const uint8_t *get_bytes(struct in *i, size_t n)
{
    const uint8_t *p = i->p;

    if (i->left < n) {
        i->bad = true;
        i->left = 0;
        return NULL;
    }
    i->p += n;
    i->left -= n;
    return p;
}

static int corrupt(struct err *e, const char *what)
{
    return err_set(e, DUST_CORRUPT, "a message was ignored: %s", what);
}

static int get_append_entries(struct in *i, struct raft_append_entries *a, struct err *e)
{
    const uint8_t *heads;
    size_t total = 0;
    uint8_t *batch;
    uint32_t n;

    a->term = get(i, 8);
    a->prev_log_index = get(i, 8);
    a->prev_log_term = get(i, 8);
    a->leader_commit = get(i, 8);
    n = (uint32_t)get(i, 4);
    a->entries = NULL;
    a->n_entries = 0;
    if (i->bad || n > WIRE_ENTRIES_MAX || (size_t)n * 13 > i->left) {
        return corrupt(e, "AppendEntries is cut short");
    }
    if (n == 0) {
        return DUST_OK;
    }
    heads = get_bytes(i, (size_t)n * 13);
    for (uint32_t k = 0; k < n; k++) {
        struct in h = {.p = heads + (size_t)k * 13 + 8, .left = 5};
        uint64_t type = get(&h, 1), len = get(&h, 4);

        if (type < RAFT_COMMAND || type > RAFT_CHANGE || len == 0 || len % 8 != 0 || len > LOG_ENTRY_MAX) {
            return corrupt(e, "an entry has an impossible type or length");
        }
        total += len;
    }
    if (total != i->left) {
        return corrupt(e, "the lengths of the entries do not add up");
    }
    a->entries = raft_malloc(n * sizeof *a->entries);
    batch = raft_malloc(total);
    if (a->entries == NULL || batch == NULL) {
        raft_free(a->entries);
        raft_free(batch);
        a->entries = NULL;
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    memcpy(batch, get_bytes(i, total), total);
    a->n_entries = n;
    total = 0;
    for (uint32_t k = 0; k < n; k++) {
        struct in h = {.p = heads + (size_t)k * 13, .left = 13};

        a->entries[k].term = get(&h, 8);
        a->entries[k].type = (unsigned short)get(&h, 1);
        a->entries[k].buf.len = get(&h, 4);
        a->entries[k].buf.base = batch + total;
        a->entries[k].batch = batch;
        total += a->entries[k].buf.len;
    }
    return DUST_OK;
}

static int get_install_snapshot(struct in *i, struct raft_install_snapshot *s, struct err *e)
{
    char address[ADDRESS_TEXT_MAX];
    const uint8_t *data;
    uint32_t n;
    size_t len;
    int rv;

    s->term = get(i, 8);
    s->last_index = get(i, 8);
    s->last_term = get(i, 8);
    s->conf_index = get(i, 8);
    n = (uint32_t)get(i, 4);
    raft_configuration_init(&s->conf);
    s->data = (struct raft_buffer){0};
    if (i->bad || n > SERVERS_MAX) {
        return corrupt(e, "InstallSnapshot is cut short");
    }
    for (uint32_t k = 0; k < n; k++) {
        raft_id id = get(i, 8);
        int role = (int)get(i, 1);
        size_t address_len = get(i, 1);
        const uint8_t *text = get_bytes(i, address_len);

        if (i->bad || role > RAFT_SPARE || id == 0 || address_len >= sizeof address ||
            memchr(text, 0, address_len) != NULL) {
            return corrupt(e, "a server of the configuration is impossible");
        }
        memcpy(address, text, address_len);
        address[address_len] = '\0';
        rv = raft_configuration_add(&s->conf, id, address, role);
        if (rv != 0) {
            return rv == RAFT_NOMEM ? err_set(e, DUST_NOMEM, "out of memory")
                                    : corrupt(e, "the configuration does not hold together");
        }
    }
    len = get(i, 4);
    data = get_bytes(i, len);
    if (i->bad || len == 0) {
        return corrupt(e, "InstallSnapshot is cut short");
    }
    s->data.base = raft_malloc(len);
    if (s->data.base == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    memcpy(s->data.base, data, len);
    s->data.len = len;
    return DUST_OK;
}

static void get_note(struct in *i, struct note *note)
{
    unsigned mask;

    memset(note, 0, sizeof *note);
    note->kind = (uint16_t)get(i, 2);
    mask = (unsigned)get(i, 2);
    note->code = mask & 1 ? (int32_t)get(i, 4) : 0;
    note->term = mask & 2 ? get(i, 8) : 0;
    note->req = mask & 4 ? get(i, 8) : 0;
    for (unsigned k = 0; k < 8; k++) {
        note->num[k] = mask & (8u << k) ? get(i, 8) : 0;
    }
    for (unsigned k = 0; k < 3; k++) {
        const uint8_t *id = mask & (1u << (11 + k)) ? get_bytes(i, 16) : NULL;

        if (id != NULL) {
            memcpy(note->id[k].b, id, 16);
        }
    }
    if (mask & (1u << 14)) {
        note->text_len = (uint32_t)get(i, 4);
        note->text = (const char *)get_bytes(i, note->text_len);
    }
    if (mask & (1u << 15)) {
        note->data_len = (uint32_t)get(i, 4);
        note->data = get_bytes(i, note->data_len);
    }
}

static int get_body(struct in *i, int type, struct wire_body *b, struct err *e)
{
    struct raft_message *m = &b->message;
    unsigned flags;

    switch (type) {
    case RAFT_IO_APPEND_ENTRIES:
        return get_append_entries(i, &m->append_entries, e);
    case RAFT_IO_APPEND_ENTRIES_RESULT:
        m->append_entries_result.term = get(i, 8);
        m->append_entries_result.rejected = get(i, 8);
        m->append_entries_result.last_log_index = get(i, 8);
        return DUST_OK;
    case RAFT_IO_REQUEST_VOTE:
        m->request_vote.term = get(i, 8);
        m->request_vote.candidate_id = get(i, 8);
        m->request_vote.last_log_index = get(i, 8);
        m->request_vote.last_log_term = get(i, 8);
        flags = (unsigned)get(i, 1);
        m->request_vote.disrupt_leader = (flags & 1) != 0;
        m->request_vote.pre_vote = (flags & 2) != 0;
        return DUST_OK;
    case RAFT_IO_REQUEST_VOTE_RESULT:
        m->request_vote_result.term = get(i, 8);
        m->request_vote_result.vote_granted = get(i, 1) != 0;
        flags = (unsigned)get(i, 1);
        m->request_vote_result.pre_vote = (raft_tribool)flags;
        return flags <= raft_tribool_false ? DUST_OK : corrupt(e, "RequestVoteResult is impossible");
    case RAFT_IO_INSTALL_SNAPSHOT:
        return get_install_snapshot(i, &m->install_snapshot, e);
    case RAFT_IO_TIMEOUT_NOW:
        m->timeout_now.term = get(i, 8);
        m->timeout_now.last_log_index = get(i, 8);
        m->timeout_now.last_log_term = get(i, 8);
        return DUST_OK;
    case WIRE_NOTE:
        get_note(i, &b->note);
        return DUST_OK;
    default:
        return corrupt(e, "its type is unknown");
    }
}

int wire_decode(const void *data, size_t len, struct wire_head *h, struct wire_body *b, struct err *e)
{
    struct in i = {.p = data, .left = len};
    const uint8_t *magic = get_bytes(&i, 4), *p;
    uint64_t version = get(&i, 1);
    size_t n;
    int rv;

    memset(h, 0, sizeof *h);
    memset(b, 0, sizeof *b);
    if (i.bad || memcmp(magic, MAGIC, 4) != 0) {
        return corrupt(e, "it is not one of dust's");
    }
    if (version != WIRE_VERSION) {
        return err_set(e, DUST_VERSION,
            "a message of wire version %u was ignored (this dust speaks version %u): bring all members to one version",
            (unsigned)version, WIRE_VERSION);
    }
    h->type = (uint8_t)get(&i, 1);
    p = get_bytes(&i, sizeof h->cluster);
    if (p != NULL) {
        memcpy(h->cluster, p, sizeof h->cluster);
    }
    h->from = get(&i, 8);
    h->to = get(&i, 8);
    h->boot = get(&i, 8);
    n = get(&i, 1);
    p = get_bytes(&i, n);
    if (i.bad || n >= sizeof h->address || memchr(p, 0, n) != NULL) {
        return corrupt(e, "its head is cut short");
    }
    memcpy(h->address, p, n);
    n = get(&i, 4);
    if (i.bad || n != i.left) {
        return corrupt(e, "its length is wrong");
    }
    b->message.type = h->type;
    rv = get_body(&i, h->type, b, e);
    if (rv == DUST_OK && (i.bad || i.left != 0)) {
        rv = corrupt(e, "its body is cut short, or has too much");
    }
    if (rv != DUST_OK) {
        wire_body_free(h, b);
    }
    return rv;
}

void wire_body_free(const struct wire_head *h, struct wire_body *b)
{
    if (h->type == RAFT_IO_APPEND_ENTRIES && b->message.append_entries.entries != NULL) {
        raft_free(b->message.append_entries.entries[0].batch);
        raft_free(b->message.append_entries.entries);
    } else if (h->type == RAFT_IO_INSTALL_SNAPSHOT) {
        raft_configuration_close(&b->message.install_snapshot.conf);
        raft_free(b->message.install_snapshot.data.base);
    }
    memset(b, 0, sizeof *b);
}

void note_text(const struct note *note, char *out, size_t size)
{
    size_t len = note->text_len < size - 1 ? note->text_len : size - 1;

    if (len != 0) {
        memcpy(out, note->text, len);
    }
    out[len] = '\0';
}
