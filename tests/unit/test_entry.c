/* Unit tests of vfs/entry: transactions of every shape through sealing and decoding, cut in any way; what it
 * costs; and everything that can arrive instead of an entry. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <sodium.h>
#include <sqlite3.h>

#include "vfs/delta.h"
#include "vfs/entry.h"

/* Allocations that fail on purpose. Link with -Wl,--wrap=malloc,--wrap=realloc; without them, tests are
 * skipped. */
extern void *__real_malloc(size_t n) __attribute__((weak));
extern void *__real_realloc(void *p, size_t n) __attribute__((weak));
void *__wrap_malloc(size_t n);
void *__wrap_realloc(void *p, size_t n);

static bool counting;
static int fail_in = -1; /* the allocation to fail, from 0; -1: none */
static int n_mallocs, n_reallocs;

static bool fails(int *count)
{
    *count += counting;
    return counting && fail_in >= 0 && fail_in-- == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails(&n_mallocs) ? NULL : __real_malloc(n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails(&n_reallocs) ? NULL : __real_realloc(p, n);
}

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % below);
}

#define N_PAGES_MAX 40
#define SQL "INSERT INTO foo(name) VALUES('fiona')"

/* A little database: its pages before and after a transaction. */
struct world {
    uint32_t page_size, n_before, n_after;
    uint8_t *before, *after; /* N_PAGES_MAX pages each; zeros beyond the end */
    bool written[N_PAGES_MAX];
    struct entry_meta meta;
};

static uint8_t *page_of(const struct world *w, uint8_t *pages, uint32_t pgno)
{
    return pages + (size_t)(pgno - 1) * w->page_size;
}

static void randomize(uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)rnd(256);
    }
}

static void world_make(struct world *w, uint32_t page_size, uint32_t n_max)
{
    memset(w, 0, sizeof *w);
    w->page_size = page_size;
    w->n_before = rnd(n_max);
    w->n_after = 1 + rnd(n_max - 1);
    w->before = calloc(N_PAGES_MAX, page_size);
    w->after = calloc(N_PAGES_MAX, page_size);
    randomize(w->before, (size_t)w->n_before * page_size);
    memcpy(w->after, w->before, (size_t)w->n_before * page_size);
    memset(w->after + (size_t)w->n_after * page_size, 0, (size_t)(N_PAGES_MAX - w->n_after) * page_size);
    for (uint32_t i = 0; i < w->n_after; i++) {
        uint8_t *p = w->after + (size_t)i * page_size;

        if (rnd(3) != 0) {
            continue;
        }
        w->written[i] = true;
        switch (rnd(6)) {
        case 0:
            randomize(p, page_size);
            break;
        case 1:
            memset(p, 0, page_size);
            p[rnd(page_size)] = (uint8_t)rnd(2);
            break;
        case 2:
            memset(p, 0, page_size);
            randomize(p + page_size / 2, page_size / 3);
            break;
        case 3:
            break;
        default:
            for (unsigned k = rnd(20); k > 0; k--) {
                p[rnd(page_size)] = (uint8_t)rnd(256);
            }
        }
    }
    w->meta = (struct entry_meta){.origin = 3,
        .origin_seq = (uint64_t)rnd(1000) << 33,
        .page_size = page_size,
        .n_pages_after = w->n_after,
        .sql = SQL,
        .sql_len = rnd(2) ? strlen(SQL) : 0};
    randomize(w->meta.parent.b, 16);
}

static void world_free(struct world *w)
{
    free(w->before);
    free(w->after);
}

static int world_seal_rv(struct world *w, size_t part_max, struct sealed **out)
{
    struct seal s;
    struct err e;
    int rv = seal_begin(&s, &w->meta, part_max, &e);

    for (uint32_t pgno = 1; rv == DUST_OK && pgno <= w->n_after; pgno++) {
        const uint8_t *old = pgno <= w->n_before ? page_of(w, w->before, pgno) : NULL;
        uint8_t *new = page_of(w, w->after, pgno);
        bool kept, changed = memcmp(page_of(w, w->before, pgno), new, w->page_size) != 0;

        if (!w->written[pgno - 1]) {
            continue;
        }
        rv = seal_page(&s, pgno, new, old, &kept, &e);
        assert_true(rv != DUST_OK || kept == changed);
    }
    if (rv != DUST_OK) {
        seal_abort(&s);
    } else {
        rv = seal_finish(&s, out, &e);
    }
    seal_abort(&s);
    assert_true(rv == DUST_OK || rv == e.code);
    return rv;
}

static struct sealed *world_seal(struct world *w, size_t part_max)
{
    struct sealed *s = NULL;

    assert_int_equal(world_seal_rv(w, part_max, &s), DUST_OK);
    return s;
}

/* Play the parts on the pages before, and compare with those after. */
static void world_verify(struct world *w, const struct sealed *s)
{
    size_t all = (size_t)N_PAGES_MAX * w->page_size, bytes = 0;
    uint8_t *pages = malloc(all);
    struct entry_check check;
    uint32_t n = 0;
    struct err e;

    memcpy(pages, w->before, all);
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct entry_record r;
        struct entry x;

        assert_int_equal(s->parts[i].len % 8, 0);
        assert_int_equal(entry_decode(s->parts[i].data, s->parts[i].len, &x, &e), DUST_OK);
        assert_true(vid_equal(&x.id, &s->id));
        assert_true(vid_equal(&x.parent, &w->meta.parent));
        assert_int_equal(x.origin, w->meta.origin);
        assert_int_equal(x.origin_seq, w->meta.origin_seq);
        assert_int_equal(x.page_size, w->page_size);
        assert_int_equal(x.n_pages_after, w->n_after);
        assert_int_equal(x.part, i);
        assert_int_equal(x.last, i == s->n_parts - 1);
        assert_int_equal(x.sql_len, i == 0 ? w->meta.sql_len : 0);
        assert_memory_equal(x.sql, SQL, x.sql_len);
        if (i == 0) {
            assert_int_equal(entry_check_begin(&check, &x, &e), DUST_OK);
        }
        assert_int_equal(entry_check_add(&check, &x, &e), DUST_OK);
        for (bool more = entry_first(&x, &r); more; more = entry_next(&x, &r)) {
            assert_true(r.pgno <= w->n_after);
            assert_int_equal(entry_record_apply(&r, w->page_size, page_of(w, pages, r.pgno)), DUST_OK);
            n++;
        }
        bytes += s->parts[i].len;
    }
    assert_int_equal(entry_check_end(&check, &e), DUST_OK);
    assert_int_equal(n, s->n_pages);
    assert_int_equal(bytes, s->bytes);
    assert_true(vid_equal(&s->parent, &w->meta.parent));
    assert_int_equal(s->origin_seq, w->meta.origin_seq);
    memset(pages + (size_t)w->n_after * w->page_size, 0, all - (size_t)w->n_after * w->page_size);
    assert_memory_equal(pages, w->after, all);
    free(pages);
}

static void test_round_trip(void **state)
{
    size_t most = 0;

    (void)state;
    for (int i = 0; i < 600; i++) {
        uint32_t page_size = (uint32_t)512 << rnd(i % 20 == 0 ? 8 : 4);
        size_t least = ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + page_size;
        struct sealed *whole, *cut, *cut2;
        struct world w;

        world_make(&w, page_size, N_PAGES_MAX);
        whole = world_seal(&w, (size_t)4 << 20);
        assert_int_equal(whole->n_parts, 1);
        world_verify(&w, whole);
        cut = world_seal(&w, least);
        world_verify(&w, cut);
        assert_true(vid_equal(&cut->id, &whole->id));
        for (uint32_t k = 0; k < cut->n_parts; k++) {
            assert_true(cut->parts[k].len <= least);
        }
        most = cut->n_parts > most ? cut->n_parts : most;
        cut2 = world_seal(&w, least + rnd(4 * page_size));
        world_verify(&w, cut2);
        assert_true(vid_equal(&cut2->id, &whole->id));
        w.meta.origin_seq++;
        sealed_free(cut2);
        cut2 = world_seal(&w, ENTRY_PART_MAX);
        assert_false(vid_equal(&cut2->id, &whole->id));
        sealed_free(whole);
        sealed_free(cut);
        sealed_free(cut2);
        world_free(&w);
    }
    assert_true(most > 5);
}

/* ---- what can arrive instead ---- */

static int decode_copy(const uint8_t *data, size_t len, struct entry *x, uint8_t **copy, struct err *e)
{
    *copy = malloc(len + (len == 0)); /* its own allocation, so that a sanitizer sees a read beyond it */
    if (len != 0) {
        memcpy(*copy, data, len);
    }
    return entry_decode(*copy, len, x, e);
}

static void test_truncated_and_flipped(void **state)
{
    static const uint8_t masks[] = {1, 2, 0x80, 0xff};
    struct entry x, blank;
    struct sealed *s;
    struct world w;
    struct err e;
    uint8_t *copy;

    (void)state;
    memset(&blank, 0x5a, sizeof blank);
    do {
        world_make(&w, 512, N_PAGES_MAX);
        s = world_seal(&w, 2048);
        if (s->n_parts != 3) {
            sealed_free(s);
            world_free(&w);
            s = NULL;
        }
    } while (s == NULL);
    for (uint32_t i = 0; i < s->n_parts; i++) {
        uint8_t *p = s->parts[i].data;
        size_t len = s->parts[i].len;

        for (size_t n = 0; n < len; n++) {
            x = blank;
            assert_int_equal(decode_copy(p, n, &x, &copy, &e), DUST_CORRUPT);
            assert_memory_equal(&x, &blank, sizeof x);
            assert_true(e.code == DUST_CORRUPT && strlen(e.text) > 20);
            free(copy);
            for (size_t k = 0; k < sizeof masks; k++) {
                int rv;

                p[n] ^= masks[k];
                rv = decode_copy(p, len, &x, &copy, &e);
                assert_true(rv == DUST_CORRUPT || (rv == DUST_VERSION && n == 3));
                p[n] ^= masks[k];
                free(copy);
            }
        }
        copy = calloc(1, len + 64); /* with something behind */
        memcpy(copy, p, len);
        for (size_t more = 1; more <= 64; more++) {
            assert_int_equal(entry_decode(copy, len + more, &x, NULL), DUST_CORRUPT);
        }
        free(copy);
        assert_int_equal(entry_decode(p, len, &x, NULL), DUST_OK);
    }
    assert_int_equal(entry_decode(NULL, 0, &x, &e), DUST_CORRUPT);
    sealed_free(s);
    world_free(&w);
}

static void sum_again(uint8_t *p, size_t len)
{
    uint8_t hash[16];

    crypto_generichash(hash, sizeof hash, p, len - 8, NULL, 0);
    memcpy(p + len - 8, hash, 8);
}

/* The checksum is no secret: whoever wants can make a right one. Then either the form is refused, or all that
 * came in can be read safely and the id is found wrong. */
static void test_forged(void **state)
{
    unsigned n_decoded = 0;

    (void)state;
    for (int i = 0; i < 300; i++) {
        struct sealed *s;
        struct world w;

        do {
            world_make(&w, 512, 12);
            s = world_seal(&w, ENTRY_PART_MAX);
            if (s->bytes > 3000) {
                sealed_free(s);
                world_free(&w);
                s = NULL;
            }
        } while (s == NULL);
        for (int k = 0; k < 300; k++) {
            size_t len = s->parts[0].len;
            struct entry_check check;
            uint8_t page[512], *p, was, *at;
            struct entry_record r;
            struct entry x;
            struct err e;
            int rv;

            p = malloc(len);
            memcpy(p, s->parts[0].data, len);
            at = p + rnd(rnd(2) ? 76 : (uint32_t)len - 8);
            was = *at;
            *at = rnd(2) ? (uint8_t)(*at ^ (1u << rnd(8))) : (uint8_t)rnd(256);
            if (*at == was) {
                *at ^= 0x40;
            }
            sum_again(p, len);
            rv = entry_decode(p, len, &x, &e);
            if (rv == DUST_OK) {
                n_decoded++;
                for (bool more = entry_first(&x, &r); more; more = entry_next(&x, &r)) {
                    assert_true(r.pgno >= 1 && r.pgno <= x.n_pages_after);
                    memset(page, 0, sizeof page);
                    rv = entry_record_apply(&r, 512, page);
                    assert_true(rv == DUST_OK || x.page_size != 512);
                }
                rv = entry_check_begin(&check, &x, &e);
                if (rv == DUST_OK) {
                    rv = entry_check_add(&check, &x, &e);
                }
                if (rv == DUST_OK) {
                    rv = entry_check_end(&check, &e);
                }
                assert_true(rv == DUST_CORRUPT || rv == DUST_MISUSE);
            } else {
                assert_true(rv == DUST_CORRUPT || rv == DUST_VERSION);
            }
            free(p);
        }
        sealed_free(s);
        world_free(&w);
    }
    assert_true(n_decoded > 1000);
}

static void test_newer(void **state)
{
    static const struct {
        size_t at;
        uint8_t value;
    } changes[] = {{3, 2}, {4, 2}, {5, 3}, {7, 1}};
    struct entry_meta meta = {.page_size = 4096, .n_pages_after = 1, .origin = 1};
    struct sealed *d;
    struct entry x;
    struct seal s;
    struct err e;

    (void)state;
    assert_int_equal(seal_begin(&s, &meta, ENTRY_PART_MAX, &e), DUST_OK);
    assert_int_equal(seal_finish(&s, &d, &e), DUST_OK);
    assert_int_equal(d->n_pages, 0);
    assert_int_equal(entry_decode(d->parts[0].data, d->parts[0].len, &x, &e), DUST_OK);
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        uint8_t p[256];

        memcpy(p, d->parts[0].data, d->parts[0].len);
        p[changes[i].at] = changes[i].value;
        sum_again(p, d->parts[0].len);
        assert_int_equal(entry_decode(p, d->parts[0].len, &x, &e), DUST_VERSION);
        assert_non_null(strstr(e.text, "newer"));
        assert_non_null(strstr(e.text, "upgrade"));
    }
    sealed_free(d);
    sealed_free(NULL);
}

/* Parts in any order but the right one. */
static void test_order(void **state)
{
    struct entry x[8], y;
    struct entry_check c;
    struct sealed *s, *other;
    struct world w;
    struct err e;
    uint32_t n;

    (void)state;
    do {
        world_make(&w, 1024, N_PAGES_MAX);
        s = world_seal(&w, 2048);
        n = s->n_parts;
        if (n < 4 || n > 8) {
            sealed_free(s);
            world_free(&w);
            n = 0;
        }
    } while (n == 0);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(entry_decode(s->parts[i].data, s->parts[i].len, &x[i], &e), DUST_OK);
    }
    assert_int_equal(entry_check_begin(&c, &x[1], &e), DUST_MISUSE);
    assert_int_equal(entry_check_add(&c, &x[1], &e), DUST_CORRUPT);

    assert_int_equal(entry_check_begin(&c, &x[0], &e), DUST_OK);
    assert_int_equal(entry_check_end(&c, &e), DUST_CORRUPT);

    assert_int_equal(entry_check_begin(&c, &x[0], &e), DUST_OK);
    assert_int_equal(entry_check_add(&c, &x[0], &e), DUST_OK);
    assert_int_equal(entry_check_add(&c, &x[0], &e), DUST_CORRUPT);
    assert_int_equal(entry_check_add(&c, &x[2], &e), DUST_CORRUPT);
    assert_int_equal(entry_check_add(&c, &x[1], &e), DUST_OK); /* a refused part changes nothing */
    y = x[2];
    y.origin_seq++;
    assert_int_equal(entry_check_add(&c, &y, &e), DUST_CORRUPT);
    y = x[2];
    y.first_pgno = x[1].last_pgno;
    assert_int_equal(entry_check_add(&c, &y, &e), DUST_CORRUPT);
    for (uint32_t i = 2; i < n; i++) {
        assert_int_equal(entry_check_add(&c, &x[i], &e), DUST_OK);
    }
    assert_int_equal(entry_check_add(&c, &x[n - 1], &e), DUST_CORRUPT);
    assert_int_equal(entry_check_end(&c, &e), DUST_OK);
    assert_int_equal(entry_check_end(&c, &e), DUST_CORRUPT);

    page_of(&w, w.after, w.n_after)[7] ^= 1; /* another transaction under the first one's id */
    w.written[w.n_after - 1] = true;
    other = world_seal(&w, (size_t)1 << 20);
    assert_int_equal(entry_decode(other->parts[0].data, other->parts[0].len, &y, &e), DUST_OK);
    assert_false(vid_equal(&y.id, &s->id));
    y.id = s->id;
    assert_int_equal(entry_check_begin(&c, &y, &e), DUST_OK);
    assert_int_equal(entry_check_add(&c, &y, &e), DUST_OK);
    assert_int_equal(entry_check_end(&c, &e), DUST_CORRUPT);
    entry_check_drop(&c);
    sealed_free(other);
    sealed_free(s);
    world_free(&w);
}

static void test_misuse(void **state)
{
    struct entry_meta meta = {.page_size = 512, .n_pages_after = 3}, bad;
    uint8_t page[512] = {1};
    struct seal s;
    struct err e;
    bool kept;

    (void)state;
    bad = meta;
    bad.page_size = 513;
    assert_int_equal(seal_begin(&s, &bad, ENTRY_PART_MAX, &e), DUST_MISUSE);
    seal_abort(&s);
    bad.page_size = 131072;
    assert_int_equal(seal_begin(&s, &bad, ENTRY_PART_MAX, &e), DUST_MISUSE);
    bad = meta;
    bad.n_pages_after = 0;
    assert_int_equal(seal_begin(&s, &bad, ENTRY_PART_MAX, &e), DUST_MISUSE);
    assert_int_equal(seal_begin(&s, &meta, 512, &e), DUST_MISUSE);
    bad = meta;
    bad.sql_len = 4096;
    assert_int_equal(seal_begin(&s, &bad, 4096, &e), DUST_MISUSE);

    assert_int_equal(seal_begin(&s, &meta, ENTRY_PART_MAX, &e), DUST_OK);
    assert_int_equal(seal_page(&s, 0, page, NULL, NULL, &e), DUST_MISUSE);
    assert_int_equal(seal_page(&s, 2, page, NULL, NULL, &e), DUST_OK);
    assert_int_equal(seal_page(&s, 2, page, NULL, NULL, &e), DUST_MISUSE);
    assert_int_equal(seal_page(&s, 1, page, NULL, NULL, &e), DUST_MISUSE);
    assert_int_equal(seal_page(&s, 4, page, NULL, NULL, NULL), DUST_MISUSE);
    assert_int_equal(seal_page(&s, 3, page, page, &kept, &e), DUST_OK);
    assert_false(kept);
    seal_abort(&s);
    seal_abort(&s);
    assert_int_equal(seal_page(&s, 3, page, NULL, NULL, &e), DUST_MISUSE);
    assert_int_equal(seal_finish(&s, NULL, &e), DUST_MISUSE);
}

/* A page put to another use is best seen against zeros; one of noise is kept whole. */
static void test_kinds(void **state)
{
    static const enum entry_kind kinds[] = {ENTRY_DELTA, ENTRY_FRESH, ENTRY_IMAGE, ENTRY_FRESH, ENTRY_FRESH};
    struct entry_meta meta = {.page_size = 4096, .n_pages_after = 5};
    static uint8_t old[4096], new[5][4096], page[4096];
    struct entry_record r;
    struct sealed *d;
    struct entry x;
    struct seal s;
    struct err e;
    unsigned i = 0;

    (void)state;
    randomize(old, sizeof old);
    memcpy(new[0], old, sizeof old);
    new[0][99] ^= 1;
    new[1][4000] = 1;
    randomize(new[2], 4096);
    new[4][5] = 1;
    assert_int_equal(seal_begin(&s, &meta, ENTRY_PART_MAX, &e), DUST_OK);
    for (uint32_t k = 0; k < 5; k++) {
        assert_int_equal(seal_page(&s, k + 1, new[k], k < 4 ? old : NULL, NULL, &e), DUST_OK);
    }
    assert_int_equal(seal_finish(&s, &d, &e), DUST_OK);
    assert_int_equal(entry_decode(d->parts[0].data, d->parts[0].len, &x, &e), DUST_OK);
    for (bool more = entry_first(&x, &r); more; more = entry_next(&x, &r), i++) {
        assert_int_equal(r.kind, kinds[i]);
        assert_int_equal(r.pgno, i + 1);
        memcpy(page, old, sizeof page);
        assert_int_equal(entry_record_apply(&r, 4096, page), DUST_OK);
        assert_memory_equal(page, new[i], sizeof page);
        if (r.kind == ENTRY_IMAGE) {
            memcpy(page, old, sizeof page);
            assert_int_equal(entry_record_apply(&r, 2048, page), DUST_CORRUPT);
            assert_memory_equal(page, old, sizeof page);
        }
    }
    assert_int_equal(i, 5);
    sealed_free(d);
}

/* ---- what it costs ---- */

static size_t read_file(const char *path, uint8_t *buf, size_t max)
{
    FILE *f = fopen(path, "rb");
    size_t n;

    assert_non_null(f);
    n = fread(buf, 1, max, f);
    fclose(f);
    return n;
}

/* The entry for SQL on a real database with a hundred rows. */
static struct sealed *seal_insert(unsigned *n_changed)
{
    static uint8_t before[1 << 20], after[1 << 20];
    char dir[] = "/tmp/dust-entry-XXXXXX", path[64];
    struct entry_meta meta = {
        .page_size = 4096, .origin = 2, .origin_seq = 77, .sql = SQL, .sql_len = strlen(SQL)};
    struct sealed *d;
    struct seal s;
    size_t n, m;
    sqlite3 *db;

    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db,
                         "PRAGMA page_size=4096; CREATE TABLE foo(id INTEGER PRIMARY KEY, name TEXT);"
                         "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM c WHERE x<100)"
                         "INSERT INTO foo(name) SELECT 'name '||x FROM c",
                         NULL, NULL, NULL),
        SQLITE_OK);
    n = read_file(path, before, sizeof before);
    assert_int_equal(sqlite3_exec(db, SQL, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    m = read_file(path, after, sizeof after);
    unlink(path);
    rmdir(dir);
    meta.n_pages_after = (uint32_t)(m / 4096);
    assert_int_equal(seal_begin(&s, &meta, ENTRY_PART_MAX, NULL), DUST_OK);
    *n_changed = 0;
    for (uint32_t pgno = 1; pgno <= meta.n_pages_after; pgno++) {
        size_t at = (size_t)(pgno - 1) * 4096;
        bool kept;

        assert_int_equal(seal_page(&s, pgno, after + at, at < n ? before + at : NULL, &kept, NULL), DUST_OK);
        *n_changed += kept;
    }
    assert_int_equal(seal_finish(&s, &d, NULL), DUST_OK);
    return d;
}

static void test_compact(void **state)
{
    struct entry_record r;
    struct sealed *d;
    struct entry x;
    unsigned n;

    (void)state;
    counting = true;
    n_mallocs = n_reallocs = 0;
    d = seal_insert(&n);
    counting = false;
    assert_int_equal(n, 2);
    assert_int_equal(d->n_parts, 1);
    assert_true(d->bytes < 200);
    assert_int_equal(entry_decode(d->parts[0].data, d->parts[0].len, &x, NULL), DUST_OK);
    print_message("%zu bytes for " SQL ", of which records %zu\n", d->bytes, x.records_len);
    for (bool more = entry_first(&x, &r); more; more = entry_next(&x, &r)) {
        print_message("  page %u: a difference of %zu bytes\n", r.pgno, r.len);
    }
    sealed_free(d);
}

static void test_few_allocations(void **state)
{
    struct entry_meta meta = {.page_size = 4096, .n_pages_after = 3, .sql = SQL, .sql_len = strlen(SQL)};
    uint8_t old[4096] = {0}, new[4096] = {0};
    struct sealed *d;
    struct seal s;

    (void)state;
    if (__real_malloc == NULL) {
        skip();
    }
    new[77] = 1;
    n_mallocs = n_reallocs = 0;
    counting = true;
    assert_int_equal(seal_begin(&s, &meta, ENTRY_PART_MAX, NULL), DUST_OK);
    assert_int_equal(seal_page(&s, 1, new, old, NULL, NULL), DUST_OK);
    assert_int_equal(seal_page(&s, 3, new, old, NULL, NULL), DUST_OK);
    assert_int_equal(seal_finish(&s, &d, NULL), DUST_OK);
    counting = false;
    assert_int_equal(n_mallocs, 2);
    assert_int_equal(n_reallocs, 1); /* to give back what was too much */
    sealed_free(d);
}

/* Each allocation fails once; nothing leaks (a sanitizer looks), and without failure all is well. */
static void test_no_memory(void **state)
{
    struct sealed *d = NULL;
    struct world w;
    const size_t part_max = ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + 4096;
    int failed = 0, rv;

    (void)state;
    if (__real_malloc == NULL) {
        skip();
    }
    do {
        world_make(&w, 4096, N_PAGES_MAX);
        d = world_seal(&w, part_max);
        if (d->n_parts < 9) { /* so that the array of parts grows */
            sealed_free(d);
            world_free(&w);
            d = NULL;
        }
    } while (d == NULL);
    sealed_free(d);
    for (int at = 0;; at++) {
        bool ran_out;

        d = NULL;
        fail_in = at;
        counting = true;
        rv = world_seal_rv(&w, part_max, &d);
        counting = false;
        ran_out = fail_in >= 0; /* there were fewer allocations */
        fail_in = -1;
        if (rv == DUST_OK) {
            world_verify(&w, d); /* a buffer that could not be made smaller stays as it is */
            sealed_free(d);
        } else {
            assert_int_equal(rv, DUST_NOMEM);
            assert_null(d);
            failed++;
        }
        if (ran_out) {
            break;
        }
    }
    assert_true(failed > 10);
    world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_truncated_and_flipped),
        cmocka_unit_test(test_forged),
        cmocka_unit_test(test_newer),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_misuse),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_compact),
        cmocka_unit_test(test_few_allocations),
        cmocka_unit_test(test_no_memory),
    };

    if (sodium_init() < 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
