/* Making a log entry. The format stands in entry.c.
 *
 * Sealing fills one buffer until the next record would not fit, then begins another. A small transaction
 * costs two allocations: that buffer and the struct sealed. The id is complete only at the end, so
 * seal_finish puts it into all parts and makes their checksums. */
#include <assert.h>
#include <sodium.h>
#include <stdlib.h>

#include "vfs/delta.h"
#include "vfs/entry_impl.h"

#define RECORDS_TYPICAL 1024 /* bytes of records up to which a part's first buffer lasts */

/* The head of a part, as far as it is known when the part begins. */
static void part_begin(struct seal *s, uint32_t number)
{
    uint8_t *p = s->buf;

    memset(p, 0, HEAD_SIZE);
    memcpy(p, ENTRY_MAGIC, 3);
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

    entry_id_add(s->hash, s->buf + s->hashed, s->used - s->hashed);
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
    entry_id_begin(s->hash, &meta->parent, meta->origin, meta->origin_seq, meta->page_size, meta->n_pages_after,
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
    entry_id_end(s->hash, &d->id);
    for (uint32_t i = 0; i < d->n_parts; i++) {
        struct entry_part *part = &d->parts[i];

        memcpy(part->data + OFF_ID, d->id.b, 16);
        if (i == d->n_parts - 1) {
            part->data[OFF_FLAGS] = FLAG_LAST;
        }
        entry_checksum(part->data, part->len, part->data + part->len - CHECKSUM_SIZE);
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
    entry_id_begin(hash, &s->parent, get64(p + OFF_ORIGIN), origin_seq, 1u << p[OFF_PAGE_SIZE], get32(p + OFF_N_PAGES),
        get32(p + OFF_SQL_LEN));
    for (uint32_t i = 0; i < s->n_parts; i++) {
        entry_id_add(hash, s->parts[i].data + HEAD_SIZE, get32(s->parts[i].data + OFF_USED) - HEAD_SIZE);
    }
    entry_id_end(hash, &s->id);
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct entry_part *part = &s->parts[i];

        memcpy(part->data + OFF_ID, s->id.b, 16);
        put64(part->data + OFF_ORIGIN_SEQ, origin_seq);
        entry_checksum(part->data, part->len, part->data + part->len - CHECKSUM_SIZE);
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
