/* A log entry: its format, and how it is read and checked. How it is made: entry_seal.c.
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
 * No state but what is passed in; any thread. */
#include "vfs/entry.h"

#include <assert.h>
#include <sodium.h>
#include <stdlib.h>

#include "vfs/delta.h"
#include "vfs/entry_impl.h"

_Static_assert(HEAD_SIZE + 7 + CHECKSUM_SIZE <= ENTRY_OVERHEAD, "ENTRY_OVERHEAD is too small");
_Static_assert(ENTRY_HASH_SIZE >= sizeof(crypto_generichash_state) + 63, "ENTRY_HASH_SIZE is too small");

void entry_checksum(const uint8_t *part, size_t len, uint8_t out[CHECKSUM_SIZE])
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

void entry_id_begin(uint8_t room[ENTRY_HASH_SIZE], const struct vid *parent, uint64_t origin,
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

void entry_id_add(uint8_t room[ENTRY_HASH_SIZE], const void *data, size_t len)
{
    if (len != 0) {
        crypto_generichash_update(hash_state(room), data, len);
    }
}

void entry_id_end(uint8_t room[ENTRY_HASH_SIZE], struct vid *id)
{
    crypto_generichash_final(hash_state(room), id->b, sizeof id->b);
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

    if (p == NULL || len <= OFF_FORMAT || memcmp(p, ENTRY_MAGIC, 3) != 0) {
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
    entry_checksum(p, len, sum);
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
    entry_id_begin(c->hash, &c->parent, c->origin, c->origin_seq, c->page_size, c->n_pages_after, part0->sql_len);
    entry_id_add(c->hash, part0->sql, part0->sql_len);
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
    entry_id_add(c->hash, entry->records, entry->records_len);
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
    entry_id_end(c->hash, &id);
    if (!vid_equal(&id, &c->id)) {
        return err_set(e, DUST_CORRUPT, "the pages of transaction %s are not those that its id names",
            vid_hex(&c->id, hex));
    }
    return DUST_OK;
}
