/* A log entry: its format, how it is made, and how it is read and checked.
 *
 * Format of one part; all integers little-endian:
 *      0   3  magic "dle"
 *      3   1  format, 1
 *      4   1  kind, 1: pages of a transaction
 *      5   1  flags: bit 0: the last part; the others 0
 *      6   1  page size, as a power of two: 9 to 16
 *      7   1  0
 *      8   4  used: bytes of the part up to the end of its records
 *     12   4  number of the part, from 0
 *     16  16  id of the transaction, not all zeros
 *     32  16  id of its parent
 *     48   8  origin: the member where it was written
 *     56   8  origin_seq: that member's number for it
 *     64   4  size of the database after it, in pages; at least 1
 *     68   4  number of records in this part
 *     72   4  bytes of SQL text; 0 in all parts but the first
 *     76      SQL text, then the records, up to `used`
 *     then    zeros, up to a multiple of 8
 *     then 8  checksum: the first 8 bytes of BLAKE2b-128 over everything before it
 * The length of the part is exactly that, and so a multiple of 8, as libraft wants it.
 *
 * A record:
 *     varint  page number
 *     varint  0: a page follows
 *             2 * n: a difference of n bytes against the parent's page follows, n >= 1 (delta.c)
 *             2 * n + 1: a difference of n bytes against a page of zeros follows, n >= 0
 *     bytes
 * A varint is 7 bits a byte, the lowest first, the high bit set in all but the last, and as short as its
 * value allows. Page numbers ascend over all parts and lie between 1 and the size of the database after the
 * transaction.
 *
 * id = BLAKE2b-128 over
 *     12  "dust entry 1"
 *     16  parent
 *      8  origin
 *      8  origin_seq
 *      4  page size in bytes
 *      4  size of the database after it, in pages
 *      4  bytes of SQL text
 *         the SQL text, and the records of all parts
 * so it does not depend on where the parts were cut, and names the whole history through the parent.
 *
 * A part of another format is left to the dust that knows it (DUST_VERSION), as is a part of our format with
 * a right checksum but a kind or a flag that we do not know. The checksum is against decay, not against
 * malice: anybody can make one. Every value is checked all the same, and the id is what proves the content.
 *
 * Sealing fills one buffer until the next record would not fit, then begins another. A small transaction
 * costs two allocations: that buffer and the struct sealed. The id is complete only at the end, so
 * seal_finish puts it into all parts and makes their checksums.
 *
 * No state but what is passed in; any thread. */
#include "vfs/entry.h"

#include <assert.h>
#include <endian.h>
#include <sodium.h>
#include <stdlib.h>

#include "vfs/delta.h"

#define FORMAT 1
#define KIND_PAGES 1
#define FLAG_LAST 1
#define CHECKSUM_SIZE 8
#define ID_HEAD_SIZE 56
#define RECORDS_TYPICAL 1024 /* bytes of records up to which a part's first buffer lasts */

enum offset {
    OFF_FORMAT = 3,
    OFF_KIND = 4,
    OFF_FLAGS = 5,
    OFF_PAGE_SIZE = 6,
    OFF_ZERO = 7,
    OFF_USED = 8,
    OFF_PART = 12,
    OFF_ID = 16,
    OFF_PARENT = 32,
    OFF_ORIGIN = 48,
    OFF_ORIGIN_SEQ = 56,
    OFF_N_PAGES = 64,
    OFF_N_RECORDS = 68,
    OFF_SQL_LEN = 72,
    HEAD_SIZE = 76
};

static const char magic[3] = {'d', 'l', 'e'};

_Static_assert(HEAD_SIZE + 7 + CHECKSUM_SIZE <= ENTRY_OVERHEAD, "ENTRY_OVERHEAD is too small");
_Static_assert(ENTRY_HASH_SIZE >= sizeof(crypto_generichash_state) + 63, "ENTRY_HASH_SIZE is too small");

static void put32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof v);
}

static void put64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof v);
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return le64toh(v);
}

static uint8_t *varint_put(uint8_t *p, uint32_t v)
{
    for (; v >= 0x80; v >>= 7) {
        *p++ = (uint8_t)(v | 0x80);
    }
    *p++ = (uint8_t)v;
    return p;
}

/* Returns what is behind it; NULL if there is no valid one of 32 bits. */
static const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, uint32_t *v)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < 5 && p < end; i++) {
        uint8_t byte = *p++;

        sum |= (uint64_t)(byte & 0x7f) << (7 * i);
        if (byte < 0x80) {
            *v = (uint32_t)sum;
            return (byte == 0 && i > 0) || sum > UINT32_MAX ? NULL : p;
        }
    }
    return NULL;
}

static bool page_size_valid(uint32_t size)
{
    return size >= ENTRY_PAGE_SIZE_MIN && size <= ENTRY_PAGE_SIZE_MAX && (size & (size - 1)) == 0;
}

/* Bytes of a part with `used` of them in use. */
static size_t part_size(size_t used)
{
    return ((used + 7) & ~(size_t)7) + CHECKSUM_SIZE;
}

static void checksum(const uint8_t *part, size_t len, uint8_t out[CHECKSUM_SIZE])
{
    uint8_t hash[16];

    crypto_generichash(hash, sizeof hash, part, len - CHECKSUM_SIZE, NULL, 0);
    memcpy(out, hash, CHECKSUM_SIZE);
}

/* ---- the id ---- */

/* The hash's state within the room for it. */
static crypto_generichash_state *hash_state(uint8_t room[ENTRY_HASH_SIZE])
{
    return (crypto_generichash_state *)(void *)(room + (-(uintptr_t)room & 63));
}

static void id_begin(uint8_t room[ENTRY_HASH_SIZE], const struct vid *parent, uint64_t origin,
    uint64_t origin_seq, uint32_t page_size, uint32_t n_pages_after, uint32_t sql_len)
{
    uint8_t head[ID_HEAD_SIZE];

    memcpy(head, "dust entry 1", 12);
    memcpy(head + 12, parent->b, 16);
    put64(head + 28, origin);
    put64(head + 36, origin_seq);
    put32(head + 44, page_size);
    put32(head + 48, n_pages_after);
    put32(head + 52, sql_len);
    crypto_generichash_init(hash_state(room), NULL, 0, sizeof(struct vid));
    crypto_generichash_update(hash_state(room), head, sizeof head);
}

static void id_add(uint8_t room[ENTRY_HASH_SIZE], const void *data, size_t len)
{
    if (len != 0) {
        crypto_generichash_update(hash_state(room), data, len);
    }
}

static void id_end(uint8_t room[ENTRY_HASH_SIZE], struct vid *id)
{
    crypto_generichash_final(hash_state(room), id->b, sizeof id->b);
}

/* ---- sealing ---- */

/* The head of a part, as far as it is known when the part begins. */
static void part_begin(struct seal *s, uint32_t number)
{
    uint8_t *p = s->buf;

    memset(p, 0, HEAD_SIZE);
    memcpy(p, magic, sizeof magic);
    p[OFF_FORMAT] = FORMAT;
    p[OFF_KIND] = KIND_PAGES;
    p[OFF_PAGE_SIZE] = (uint8_t)__builtin_ctz(s->meta.page_size);
    put32(p + OFF_PART, number);
    memcpy(p + OFF_PARENT, s->meta.parent.b, 16);
    put64(p + OFF_ORIGIN, s->meta.origin);
    put64(p + OFF_ORIGIN_SEQ, s->meta.origin_seq);
    put32(p + OFF_N_PAGES, s->meta.n_pages_after);
    s->used = s->hashed = HEAD_SIZE;
    s->n_records = 0;
}

/* Close the part in s->buf, save for id, last flag and checksum. The buffer is cut to its size. */
static struct entry_part part_end(struct seal *s)
{
    struct entry_part part = {.data = s->buf, .len = part_size(s->used)};
    uint8_t *fit;

    id_add(s->hash, s->buf + s->hashed, s->used - s->hashed);
    put32(s->buf + OFF_USED, (uint32_t)s->used);
    put32(s->buf + OFF_N_RECORDS, s->n_records);
    memset(s->buf + s->used, 0, part.len - s->used); /* there is always room: see room_for */
    fit = realloc(part.data, part.len);
    if (fit != NULL) {
        part.data = fit;
    }
    s->buf = NULL;
    return part;
}

/* Bytes of a buffer with room for a part's end, or one record and a second difference beside it, behind
 * `used`. */
static size_t room_for(const struct seal *s, size_t used)
{
    return used + ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + 2 * (size_t)s->meta.page_size;
}

int seal_begin(struct seal *s, const struct entry_meta *meta, size_t part_max, struct err *e)
{
    s->buf = NULL;
    s->parts = NULL;
    s->n_parts = s->parts_room = 0;
    if (!page_size_valid(meta->page_size)) {
        return err_set(
            e, DUST_MISUSE, "cannot seal a transaction: a page size of %u is not possible", meta->page_size);
    }
    if (meta->n_pages_after == 0) {
        return err_set(e, DUST_MISUSE, "cannot seal a transaction that leaves the database without pages");
    }
    if (part_max > INT32_MAX || part_max < ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + (size_t)meta->page_size ||
        meta->sql_len > part_max - ENTRY_OVERHEAD) {
        return err_set(e, DUST_MISUSE,
            "cannot seal a transaction: %zu bytes of SQL text in parts of %zu bytes", meta->sql_len,
            part_max);
    }
    s->meta = *meta;
    s->part_max = part_max;
    s->last_pgno = s->n_pages = 0;
    s->room = room_for(s, HEAD_SIZE + meta->sql_len + RECORDS_TYPICAL);
    s->buf = malloc(s->room);
    if (s->buf == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    part_begin(s, 0);
    put32(s->buf + OFF_SQL_LEN, (uint32_t)meta->sql_len);
    if (meta->sql_len != 0) {
        memcpy(s->buf + s->used, meta->sql, meta->sql_len);
        s->used += meta->sql_len;
    }
    s->meta.sql = NULL; /* the caller's, and maybe gone by now */
    id_begin(s->hash, &meta->parent, meta->origin, meta->origin_seq, meta->page_size, meta->n_pages_after,
        (uint32_t)meta->sql_len);
    return DUST_OK;
}

/* Close the part and begin the next one with the record, of which `data` may lie in the old buffer. */
static int next_part(struct seal *s, const uint8_t *head, size_t head_len, const uint8_t *data, size_t len)
{
    size_t room = room_for(s, s->part_max);
    uint8_t *buf;

    if (s->n_parts == s->parts_room) {
        uint32_t more = s->parts_room == 0 ? 8 : s->parts_room * 2;
        struct entry_part *parts = realloc(s->parts, more * sizeof *parts);

        if (parts == NULL) {
            return DUST_NOMEM;
        }
        s->parts = parts;
        s->parts_room = more;
    }
    buf = malloc(room);
    if (buf == NULL) {
        return DUST_NOMEM;
    }
    memcpy(buf + HEAD_SIZE, head, head_len);
    if (len != 0) {
        memcpy(buf + HEAD_SIZE + head_len, data, len);
    }
    s->parts[s->n_parts++] = part_end(s);
    s->buf = buf;
    s->room = room;
    part_begin(s, s->n_parts);
    s->used += head_len + len;
    return DUST_OK;
}

static int make_room(struct seal *s)
{
    size_t room = room_for(s, s->used);
    uint8_t *buf;

    if (room <= s->room) {
        return DUST_OK;
    }
    room += s->used; /* double it, as far as a part goes */
    if (room > room_for(s, s->part_max)) {
        room = room_for(s, s->part_max);
    }
    buf = realloc(s->buf, room);
    if (buf == NULL) {
        return DUST_NOMEM;
    }
    s->buf = buf;
    s->room = room;
    return DUST_OK;
}

int seal_page(
    struct seal *s, uint32_t pgno, const uint8_t *page, const uint8_t *old, bool *kept, struct err *e)
{
    uint8_t head[ENTRY_RECORD_OVERHEAD + 2], *p, *space;
    uint32_t size = s->meta.page_size, tag;
    const uint8_t *data;
    size_t len;

    if (s->buf == NULL || pgno <= s->last_pgno || pgno > s->meta.n_pages_after) {
        return err_set(e, DUST_MISUSE, "cannot seal page %u after page %u of %u", pgno, s->last_pgno,
            s->meta.n_pages_after);
    }
    if (make_room(s) != DUST_OK) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    data = space = s->buf + s->used + ENTRY_RECORD_OVERHEAD;
    len = delta_encode(old, page, size, space);
    if (kept != NULL) {
        *kept = len != 0;
    }
    s->last_pgno = pgno;
    if (len == 0) {
        return DUST_OK;
    }
    tag = (uint32_t)len << 1 | (old == NULL);
    if (old != NULL &&
        len > size / 4) { /* a page put to another use: what was there before may be of no help */
        size_t fresh = delta_encode(NULL, page, size, space + size);

        if (fresh < len) {
            data = space + size;
            len = fresh;
            tag = (uint32_t)len << 1 | 1;
        }
    }
    if (len == size) {
        data = page;
        tag = 0;
    }
    p = varint_put(varint_put(head, pgno), tag);
    assert(p <= head + ENTRY_RECORD_OVERHEAD);
    if (part_size(s->used + (size_t)(p - head) + len) > s->part_max) {
        if (next_part(s, head, (size_t)(p - head), data, len) != DUST_OK) {
            return err_set(e, DUST_NOMEM, "out of memory");
        }
    } else {
        memcpy(s->buf + s->used, head, (size_t)(p - head));
        s->used += (size_t)(p - head);
        memmove(s->buf + s->used, data, len);
        s->used += len;
    }
    s->n_records++;
    s->n_pages++;
    return DUST_OK;
}

int seal_finish(struct seal *s, struct sealed **out, struct err *e)
{
    struct sealed *d;

    if (s->buf == NULL) {
        return err_set(e, DUST_MISUSE, "cannot finish a transaction that was not begun");
    }
    d = malloc(sizeof *d + (s->n_parts + 1) * sizeof *d->parts);
    if (d == NULL) {
        seal_abort(s);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    *d = (struct sealed){
        .parent = s->meta.parent,
        .origin_seq = s->meta.origin_seq,
        .n_pages = s->n_pages,
        .n_parts = s->n_parts + 1,
        .parts = (struct entry_part *)(d + 1),
    };
    if (s->n_parts != 0) {
        memcpy(d->parts, s->parts, s->n_parts * sizeof *d->parts);
    }
    d->parts[s->n_parts] = part_end(s);
    id_end(s->hash, &d->id);
    for (uint32_t i = 0; i < d->n_parts; i++) {
        struct entry_part *part = &d->parts[i];

        memcpy(part->data + OFF_ID, d->id.b, 16);
        if (i == d->n_parts - 1) {
            part->data[OFF_FLAGS] = FLAG_LAST;
        }
        checksum(part->data, part->len, part->data + part->len - CHECKSUM_SIZE);
        d->bytes += part->len;
    }
    s->n_parts = 0; /* their memory is d's now */
    seal_abort(s);
    *out = d;
    return DUST_OK;
}

#if DUST_BUG == BUG_RESEND
void sealed_renumber(struct sealed *s, uint64_t origin_seq)
{
    const uint8_t *p = s->parts[0].data;
    uint8_t hash[ENTRY_HASH_SIZE];

    s->origin_seq = origin_seq;
    id_begin(hash, &s->parent, get64(p + OFF_ORIGIN), origin_seq, 1u << p[OFF_PAGE_SIZE], get32(p + OFF_N_PAGES),
        get32(p + OFF_SQL_LEN));
    for (uint32_t i = 0; i < s->n_parts; i++) {
        id_add(hash, s->parts[i].data + HEAD_SIZE, get32(s->parts[i].data + OFF_USED) - HEAD_SIZE);
    }
    id_end(hash, &s->id);
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct entry_part *part = &s->parts[i];

        memcpy(part->data + OFF_ID, s->id.b, 16);
        put64(part->data + OFF_ORIGIN_SEQ, origin_seq);
        checksum(part->data, part->len, part->data + part->len - CHECKSUM_SIZE);
    }
}
#endif

void seal_abort(struct seal *s)
{
    for (uint32_t i = 0; i < s->n_parts; i++) {
        free(s->parts[i].data);
    }
    free(s->parts);
    free(s->buf);
    s->parts = NULL;
    s->buf = NULL;
    s->n_parts = s->parts_room = 0;
}

void sealed_free(struct sealed *s)
{
    if (s == NULL) {
        return;
    }
    for (uint32_t i = 0; i < s->n_parts; i++) {
        free(s->parts[i].data);
    }
    free(s);
}

/* ---- reading ---- */

/* Read the record at r->next. Returns false if it is not a valid one or reaches beyond `end`. */
static bool record_get(struct entry_record *r, const uint8_t *end, uint32_t page_size)
{
    const uint8_t *p = r->next;
    uint32_t pgno, tag;

    p = varint_get(p, end, &pgno);
    p = p != NULL ? varint_get(p, end, &tag) : NULL;
    if (p == NULL) {
        return false;
    }
    r->pgno = pgno;
    r->kind = tag == 0 ? ENTRY_IMAGE : (tag & 1) != 0 ? ENTRY_FRESH : ENTRY_DELTA;
    r->len = tag == 0 ? page_size : tag >> 1;
    if (r->len > (size_t)(end - p)) {
        return false;
    }
    r->data = p;
    r->next = p + r->len;
    return true;
}

bool entry_next(const struct entry *entry, struct entry_record *r)
{
    if (r->left == 0) {
        return false;
    }
    r->left--;
    return record_get(r, entry->records + entry->records_len, entry->page_size);
}

bool entry_first(const struct entry *entry, struct entry_record *r)
{
    r->next = entry->records;
    r->left = entry->n_records;
    return entry_next(entry, r);
}

/* Every record, in itself and in its place. Fills in the first and last page number. */
static bool records_valid(struct entry *x)
{
    const uint8_t *end = x->records + x->records_len;
    struct entry_record r = {.next = x->records};

    for (uint32_t i = 0; i < x->n_records; i++) {
        if (!record_get(&r, end, x->page_size) || r.pgno <= x->last_pgno || r.pgno > x->n_pages_after ||
            (r.kind != ENTRY_IMAGE && delta_check(x->page_size, r.data, r.len) != DUST_OK)) {
            return false;
        }
        if (i == 0) {
            x->first_pgno = r.pgno;
        }
        x->last_pgno = r.pgno;
    }
    return r.next == end;
}

static bool all_zeros(const uint8_t *p, size_t n)
{
    while (n > 0 && *p == 0) {
        p++;
        n--;
    }
    return n == 0;
}

static int damaged(struct err *e, const char *how)
{
    return err_set(e, DUST_CORRUPT, "the log entry is damaged: %s", how);
}

int entry_decode(const void *buf, size_t len, struct entry *out, struct err *e)
{
    const uint8_t *p = buf;
    uint8_t sum[CHECKSUM_SIZE];
    struct entry x;
    uint32_t used;

    if (p == NULL || len <= OFF_FORMAT || memcmp(p, magic, sizeof magic) != 0) {
        return damaged(e, "it does not begin as one");
    }
    if (p[OFF_FORMAT] > FORMAT) {
        return err_set(e, DUST_VERSION,
            "the log entry has format %u and this dust knows formats up to %u: a newer dust wrote it; "
            "upgrade this one",
            p[OFF_FORMAT], FORMAT);
    }
    if (p[OFF_FORMAT] != FORMAT) {
        return damaged(e, "it has no format");
    }
    if (len < part_size(HEAD_SIZE)) {
        return damaged(e, "it is cut short");
    }
    used = get32(p + OFF_USED);
    if (used < HEAD_SIZE || used > len || part_size(used) != len) {
        return damaged(e, "it is cut short or has grown");
    }
    checksum(p, len, sum);
    if (memcmp(sum, p + len - CHECKSUM_SIZE, CHECKSUM_SIZE) != 0) {
        return damaged(e, "its checksum is wrong");
    }
    if (p[OFF_KIND] != KIND_PAGES || (p[OFF_FLAGS] & ~FLAG_LAST) != 0 || p[OFF_ZERO] != 0) {
        return err_set(e, DUST_VERSION,
            "the log entry is of a kind (%u, flags %u) that this dust does not know: a newer one wrote it; "
            "upgrade this "
            "one",
            p[OFF_KIND], p[OFF_FLAGS]);
    }
    x = (struct entry){
        .origin = get64(p + OFF_ORIGIN),
        .origin_seq = get64(p + OFF_ORIGIN_SEQ),
        .n_pages_after = get32(p + OFF_N_PAGES),
        .part = get32(p + OFF_PART),
        .last = p[OFF_FLAGS] == FLAG_LAST,
        .sql = (const char *)p + HEAD_SIZE,
        .sql_len = get32(p + OFF_SQL_LEN),
        .n_records = get32(p + OFF_N_RECORDS),
    };
    memcpy(x.id.b, p + OFF_ID, 16);
    memcpy(x.parent.b, p + OFF_PARENT, 16);
    if (p[OFF_PAGE_SIZE] < 9 || p[OFF_PAGE_SIZE] > 16 || x.n_pages_after == 0 || vid_none(&x.id) ||
        !all_zeros(p + used, len - CHECKSUM_SIZE - used)) {
        return damaged(e, "a value in it is out of range");
    }
    x.page_size = (uint32_t)1 << p[OFF_PAGE_SIZE];
    if (x.sql_len > used - HEAD_SIZE || (x.sql_len != 0 && x.part != 0)) {
        return damaged(e, "its SQL text does not fit");
    }
    x.records = p + HEAD_SIZE + x.sql_len;
    x.records_len = used - HEAD_SIZE - x.sql_len;
    if (!records_valid(&x)) {
        return damaged(e, "a page in it is malformed");
    }
    *out = x;
    return DUST_OK;
}

int entry_record_apply(const struct entry_record *r, uint32_t page_size, uint8_t *page)
{
    switch (r->kind) {
    case ENTRY_IMAGE:
        if (r->len != page_size) {
            return DUST_CORRUPT;
        }
        memcpy(page, r->data, page_size);
        return DUST_OK;
    case ENTRY_DELTA:
        return delta_apply(page, page_size, r->data, r->len);
    case ENTRY_FRESH:
        if (delta_check(page_size, r->data, r->len) != DUST_OK) {
            return DUST_CORRUPT;
        }
        memset(page, 0, page_size);
        return delta_apply(page, page_size, r->data, r->len);
    }
    return DUST_CORRUPT;
}

/* ---- checking the id ---- */

int entry_check_begin(struct entry_check *c, const struct entry *part0, struct err *e)
{
    c->begun = false;
    if (part0->part != 0) {
        return err_set(e, DUST_MISUSE, "a transaction begins with part 0, not %u", part0->part);
    }
    c->id = part0->id;
    c->parent = part0->parent;
    c->origin = part0->origin;
    c->origin_seq = part0->origin_seq;
    c->page_size = part0->page_size;
    c->n_pages_after = part0->n_pages_after;
    c->next_part = c->last_pgno = 0;
    c->last = false;
    c->begun = true;
    id_begin(c->hash, &c->parent, c->origin, c->origin_seq, c->page_size, c->n_pages_after, part0->sql_len);
    id_add(c->hash, part0->sql, part0->sql_len);
    return DUST_OK;
}

int entry_check_add(struct entry_check *c, const struct entry *entry, struct err *e)
{
    char hex[VID_HEX_SIZE];

    if (!c->begun || c->last || entry->part != c->next_part || !vid_equal(&entry->id, &c->id) ||
        !vid_equal(&entry->parent, &c->parent) || entry->origin != c->origin ||
        entry->origin_seq != c->origin_seq || entry->page_size != c->page_size ||
        entry->n_pages_after != c->n_pages_after ||
        (entry->n_records != 0 && entry->first_pgno <= c->last_pgno)) {
        return err_set(e, DUST_CORRUPT, "part %u of transaction %s does not fit what came before",
            entry->part, vid_hex(&entry->id, hex));
    }
    id_add(c->hash, entry->records, entry->records_len);
    if (entry->n_records != 0) {
        c->last_pgno = entry->last_pgno;
    }
    c->next_part++;
    c->last = entry->last;
    return DUST_OK;
}

int entry_check_end(struct entry_check *c, struct err *e)
{
    char hex[VID_HEX_SIZE];
    struct vid id;

    if (!c->begun || !c->last) {
        return err_set(e, DUST_CORRUPT, "the last part of a transaction is missing");
    }
    c->begun = false;
    id_end(c->hash, &id);
    if (!vid_equal(&id, &c->id)) {
        return err_set(e, DUST_CORRUPT, "the pages of transaction %s are not those that its id names",
            vid_hex(&c->id, hex));
    }
    return DUST_OK;
}
