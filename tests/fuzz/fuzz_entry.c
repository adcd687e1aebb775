/* vfs/entry: log entries.
 *
 * The first byte of the input chooses:
 *   0  one part, as it is
 *   1  one part, with magic, format, length, checksum put right
 *   2  parts of one transaction: a length (2 bytes) and the part, again and again, put right as above; those that
 * decode and fit together get the id that their content has, and then must pass the check 3  a transaction, described
 * by the rest, is sealed; its parts must decode, pass the check, and make the new pages of the old ones; and with any
 * byte changed, checksum put right or not, the content must not pass for the same
 *
 * Checksum and id are computed here a second time, by the format (entry.c). */
#include "tests/fuzz/fuzz.h"
#include "vfs/entry.h"

#define HEAD 76
#define PARTS 16

struct part {
    uint8_t *data;
    size_t len;
};

static void sum(struct part *p)
{
    uint8_t hash[16];

    blake(hash, p->data, p->len - 8);
    memcpy(p->data + p->len - 8, hash, 8);
}

/* A part that ends where its memory ends, with all right that does not lie in its content. */
static struct part part_of(const uint8_t *data, size_t size)
{
    size_t used = size < HEAD ? HEAD : size;
    struct part p = {.len = ((used + 7) & ~(size_t)7) + 8};

    p.data = must_alloc(p.len);
    memset(p.data, 0, p.len);
    memcpy(p.data, data, size);
    memcpy(p.data, "dle\1\1", 5);
    p.data[5] &= 1;
    p.data[6] = (uint8_t)(9 + p.data[6] % 8);
    p.data[7] = 0;
    le_put(p.data + 8, used, 4);
    sum(&p);
    return p;
}

/* ---- a part that has decoded ---- */

/* The record brings a page of its size to something, and leaves a page of another size alone if it does not fit. */
static void check_apply(const struct entry *entry, const struct entry_record *r)
{
    uint32_t other = entry->page_size == 512 ? 1024 : entry->page_size / 2;
    uint8_t *page = must_alloc(entry->page_size);
    int rv;

    memset(page, 0x33, entry->page_size);
    check(entry_record_apply(r, entry->page_size, page) == DUST_OK);
    check(r->kind != ENTRY_IMAGE || memcmp(page, r->data, r->len) == 0);
    free(page);
    page = must_alloc(other);
    memset(page, 0x33, other);
    rv = entry_record_apply(r, other, page);
    check(rv == DUST_OK || (rv == DUST_CORRUPT && all_are(page, 0x33, other)));
    free(page);
}

static void check_records(const struct entry *entry)
{
    unsigned apply = entry->page_size <= 4096 ? 64 : 4; /* large pages take long */
    const uint8_t *end = entry->records + entry->records_len;
    uint32_t n = 0, pgno = 0;
    struct entry_record r;

    for (bool more = entry_first(entry, &r); more; more = entry_next(entry, &r)) {
        check(r.pgno > pgno && r.pgno <= entry->n_pages_after);
        check(n != 0 || r.pgno == entry->first_pgno);
        check(r.data >= entry->records && r.data <= end && r.len <= (size_t)(end - r.data));
        check(r.kind == ENTRY_IMAGE ? r.len == entry->page_size : r.len < entry->page_size);
        check(r.kind != ENTRY_DELTA || r.len != 0);
        if (n < apply) {
            check_apply(entry, &r);
        }
        pgno = r.pgno;
        n++;
    }
    check(n == entry->n_records && pgno == entry->last_pgno);
    check(n != 0 || entry->first_pgno == 0);
}

static void check_entry(const struct entry *x, const struct part *p)
{
    const uint8_t *end = p->data + p->len - 8;

    check(x->page_size >= ENTRY_PAGE_SIZE_MIN && x->page_size <= ENTRY_PAGE_SIZE_MAX);
    check((x->page_size & (x->page_size - 1)) == 0);
    check(x->n_pages_after >= 1 && !vid_none(&x->id) && p->len % 8 == 0);
    check(x->sql != NULL && (x->part == 0 || x->sql_len == 0));
    check((const uint8_t *)x->sql + x->sql_len == x->records && x->records >= p->data + HEAD);
    check(x->records_len <= (size_t)(end - x->records));
    check_records(x);
}

static int decode(const struct part *p, struct entry *x)
{
    struct err e;
    int rv;

    err_clear(&e);
    memset(x, 0x5a, sizeof *x);
    rv = entry_decode(p->data, p->len, x, &e);
    check_err(&e, rv);
    check(rv == DUST_OK || rv == DUST_CORRUPT || rv == DUST_VERSION);
    if (rv == DUST_OK) {
        check_entry(x, p);
    } else {
        check(all_are(x, 0x5a, sizeof *x));
    }
    return rv;
}

/* ---- parts of one transaction ---- */

/* The id of what the parts hold. */
static struct vid id_of(const struct entry *x, unsigned n)
{
    crypto_generichash_state state;
    uint8_t head[56];
    struct vid id;

    memcpy(head, "dust entry 1", 12);
    memcpy(head + 12, x->parent.b, 16);
    le_put(head + 28, x->origin, 8);
    le_put(head + 36, x->origin_seq, 8);
    le_put(head + 44, x->page_size, 4);
    le_put(head + 48, x->n_pages_after, 4);
    le_put(head + 52, x->sql_len, 4);
    crypto_generichash_init(&state, NULL, 0, 16);
    crypto_generichash_update(&state, head, sizeof head);
    crypto_generichash_update(&state, (const uint8_t *)x->sql, x->sql_len);
    for (unsigned i = 0; i < n; i++) {
        crypto_generichash_update(&state, x[i].records, x[i].records_len);
    }
    crypto_generichash_final(&state, id.b, 16);
    return id;
}

/* Take them all in. Returns the code of the first call that fails. */
static int check_all(const struct entry *x, unsigned n)
{
    struct entry_check c;
    struct err e;
    int rv;

    err_clear(&e);
    rv = entry_check_begin(&c, &x[0], &e);
    check(rv == (x[0].part == 0 ? DUST_OK : DUST_MISUSE));
    for (unsigned i = 0; rv == DUST_OK && i < n; i++) {
        rv = entry_check_add(&c, &x[i], &e);
        check(rv == DUST_OK || rv == DUST_CORRUPT);
    }
    if (rv == DUST_OK) {
        rv = entry_check_end(&c, &e);
        check(rv == DUST_OK || rv == DUST_CORRUPT);
    }
    check_err(&e, rv);
    entry_check_drop(&c);
    return rv;
}

/* Do they fit together, in everything but what the id says of the content? */
static bool fits(const struct entry *x, unsigned n)
{
    uint32_t last = 0;

    for (unsigned i = 0; i < n; i++) {
        if (x[i].part != i || !vid_equal(&x[i].id, &x[0].id) || !vid_equal(&x[i].parent, &x[0].parent) ||
            x[i].origin != x[0].origin || x[i].origin_seq != x[0].origin_seq || x[i].page_size != x[0].page_size ||
            x[i].n_pages_after != x[0].n_pages_after || x[i].last != (i == n - 1) ||
            (x[i].n_records != 0 && x[i].first_pgno <= last)) {
            return false;
        }
        last = x[i].n_records != 0 ? x[i].last_pgno : last;
    }
    return true;
}

static void try_parts(struct input *in)
{
    struct part parts[PARTS];
    struct entry x[PARTS];
    unsigned n = 0;
    struct vid id;
    bool good;

    while (in->left > 0 && n < PARTS) {
        size_t len = input_number(in, 2);

        len = len < in->left ? len : in->left;
        parts[n] = part_of(in->p, len);
        in->p += len;
        in->left -= len;
        if (decode(&parts[n], &x[n]) == DUST_OK) {
            n++;
        } else {
            free(parts[n].data);
        }
    }
    if (n != 0) {
        good = fits(x, n);
        id = id_of(x, n);
        check((check_all(x, n) == DUST_OK) == (good && vid_equal(&id, &x[0].id)));
        for (unsigned i = 0; good && i < n; i++) {
            memcpy(parts[i].data + 16, id.b, 16);
            sum(&parts[i]);
            check(decode(&parts[i], &x[i]) == DUST_OK);
        }
        check(!good || check_all(x, n) == DUST_OK);
    }
    for (unsigned i = 0; i < n; i++) {
        free(parts[i].data);
    }
}

/* ---- a transaction ---- */

#define PAGES 8

/* Old and new content of a small database. */
struct pages {
    uint32_t size, n_old, n_new;
    uint8_t *old[PAGES], *new[PAGES]; /* the old ones beyond n_old are zeros */
};

static void pages_init(struct pages *p, struct input *in)
{
    p->size = 512u << input_number(in, 1) % 3;
    p->n_old = (uint32_t)input_number(in, 1) % (PAGES + 1);
    p->n_new = 1 + (uint32_t)input_number(in, 1) % PAGES;
    for (unsigned i = 0; i < PAGES; i++) {
        unsigned how = (unsigned)input_number(in, 1);
        uint32_t at = (uint32_t)input_number(in, 1) * 4, edit = (how >> 4) * 15;

        p->old[i] = must_alloc(p->size);
        memset(p->old[i], i < p->n_old ? (int)how : 0, p->size);
        p->new[i] = exact_copy(p->old[i], p->size);
        if (how & 4) {
            memset(p->new[i], 0, p->size);
        }
        if (how & 2) {
            for (uint32_t k = 0; k < 256; k++) {
                p->new[i][k] = (uint8_t)(k * how + at);
            }
            for (uint32_t k = 256; k < p->size; k += 256) {
                memcpy(p->new[i] + k, p->new[i], 256);
            }
        }
        if (how & 1) {
            input_bytes(in, p->new[i] + at % (p->size - edit), edit);
        }
    }
}

static void pages_free(struct pages *p)
{
    for (unsigned i = 0; i < PAGES; i++) {
        free(p->old[i]);
        free(p->new[i]);
    }
}

static struct sealed *seal(const struct pages *p, struct input *in)
{
    char sql[64];
    struct entry_meta meta = {.page_size = p->size, .n_pages_after = p->n_new, .sql = sql};
    struct sealed *out;
    size_t part_max;
    struct seal s;
    bool kept;

    input_bytes(in, meta.parent.b, 16);
    meta.origin = input_number(in, 8);
    meta.origin_seq = input_number(in, 8);
    meta.sql_len = input_number(in, 1) % sizeof sql;
    input_bytes(in, sql, meta.sql_len);
    part_max = ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + p->size + sizeof sql + input_number(in, 2) % 4096;
    check(seal_begin(&s, &meta, part_max, NULL) == DUST_OK);
    for (uint32_t i = 0; i < p->n_new; i++) {
        check(seal_page(&s, i + 1, p->new[i], i < p->n_old ? p->old[i] : NULL, &kept, NULL) == DUST_OK);
        check(kept == (memcmp(p->new[i], p->old[i], p->size) != 0));
    }
    check(seal_finish(&s, &out, NULL) == DUST_OK);
    for (uint32_t i = 0; i < out->n_parts; i++) {
        check(out->parts[i].len <= part_max);
    }
    return out;
}

static void check_pages(const struct pages *p, const struct entry *x, unsigned n)
{
    uint8_t *page[PAGES];
    struct entry_record r;

    for (unsigned i = 0; i < PAGES; i++) {
        page[i] = exact_copy(p->old[i], p->size);
    }
    for (unsigned i = 0; i < n; i++) {
        for (bool more = entry_first(&x[i], &r); more; more = entry_next(&x[i], &r)) {
            check(entry_record_apply(&r, p->size, page[r.pgno - 1]) == DUST_OK);
        }
    }
    for (unsigned i = 0; i < PAGES; i++) {
        check(i >= p->n_new || memcmp(page[i], p->new[i], p->size) == 0);
        free(page[i]);
    }
}

/* Change a byte of one part. Decay must be seen by itself; with a right checksum, by the id, if not before. What is in
 * no record and in no id, as how a transaction is cut, cannot change: the parts would not fit. */
static void try_damage(struct part *parts, unsigned n, struct input *in)
{
    struct part *p = &parts[input_number(in, 1) % n];
    size_t at = input_number(in, 2) % p->len;
    uint8_t x = (uint8_t)input_number(in, 1);
    struct entry all[PARTS];
    bool decoded = true;

    p->data[at] ^= (uint8_t)(x | (x == 0));
    check(decode(p, &all[0]) != DUST_OK);
    if (at < p->len - 8) {
        sum(p);
        for (unsigned i = 0; i < n; i++) {
            decoded = decode(&parts[i], &all[i]) == DUST_OK && decoded;
        }
        check(!decoded || check_all(all, n) != DUST_OK);
    }
}

static void try_transaction(struct input *in)
{
    struct part parts[PARTS];
    struct entry x[PARTS];
    struct sealed *s;
    struct pages p;
    struct vid id;

    pages_init(&p, in);
    s = seal(&p, in);
    check(s->n_parts <= PARTS);
    for (unsigned i = 0; i < s->n_parts; i++) {
        parts[i] = (struct part){exact_copy(s->parts[i].data, s->parts[i].len), s->parts[i].len};
        check(decode(&parts[i], &x[i]) == DUST_OK);
    }
    id = id_of(x, s->n_parts);
    check(vid_equal(&id, &s->id) && fits(x, s->n_parts));
    check(check_all(x, s->n_parts) == DUST_OK);
    check(s->n_parts == 1 || check_all(x, s->n_parts - 1) != DUST_OK);
    check_pages(&p, x, s->n_parts);
    try_damage(parts, s->n_parts, in);
    for (unsigned i = 0; i < s->n_parts; i++) {
        free(parts[i].data);
    }
    sealed_free(s);
    pages_free(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned mode = (unsigned)input_number(&in, 1) % 4;
    struct entry x;
    struct part p;

    if (mode == 2) {
        try_parts(&in);
    } else if (mode == 3) {
        try_transaction(&in);
    } else {
        p = mode == 1 ? part_of(in.p, in.left) : (struct part){exact_copy(in.p, in.left), in.left};
        decode(&p, &x);
        free(p.data);
    }
    return 0;
}
