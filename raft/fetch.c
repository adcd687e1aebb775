/* The messages of a state transfer (besides kind, req = session of the receiver's choice):
 *   FETCH        num0 first page, num1 number of pages; data: 16-byte hashes of the receiver's pages from the first on
 *   FETCH_REPLY  code; num0 first page, num1 pages covered, num2 index, num3 pages in all, num4 page size; id0 version;
 *                data: for each page that differs, its number (4 bytes, little-endian) and content */
#include "raft/fetch.h"

#include <sodium.h>

#include "vfs/lockpage.h"

bool fetch_decode(const struct note *note, struct fetch *out)
{
    uint64_t first = note->num[0], n = note->num[1], n_hashes = note->data_len / FETCH_HASH_SIZE;

    if (first == 0 || first >= UINT32_MAX || n == 0 || n > FETCH_PAGES_MAX || n_hashes > n ||
        note->data_len % FETCH_HASH_SIZE != 0) {
        return false;
    }
    n = n > UINT32_MAX - first ? UINT32_MAX - first : n;
    *out = (struct fetch){.first = (uint32_t)first,
        .n = (uint32_t)n,
        .hashes = note->data,
        .n_hashes = (uint32_t)(n_hashes < n ? n_hashes : n)};
    return true;
}

bool fetch_reply_decode(const struct note *note, uint32_t first, uint32_t page_size, struct fetch_reply *out)
{
    uint64_t n = note->num[1], n_pages = note->num[3];
    struct fetch_reply r = {.first = first,
        .n = (uint32_t)n,
        .n_pages = (uint32_t)n_pages,
        .page_size = page_size,
        .index = note->num[2],
        .id = note->id[0],
        .next = note->data,
        .left = note->data_len};
    struct fetch_reply at = r;
    const uint8_t *page;
    uint32_t pgno, before = 0;

    if (note->num[0] != first || first == 0 || note->num[4] != page_size || n_pages > UINT32_MAX || first > n_pages ||
        n == 0 || n > FETCH_PAGES_MAX || n > n_pages - first + 1 || note->data_len % fetch_page_bytes(page_size) != 0) {
        return false;
    }
    while (fetch_reply_next(&at, &pgno, &page)) {
        if (pgno < first || pgno - first >= n || pgno <= before || pgno == lock_page(page_size)) {
            return false;
        }
        before = pgno;
    }
    *out = r;
    return true;
}

bool fetch_reply_next(struct fetch_reply *r, uint32_t *pgno, const uint8_t **page)
{
    const uint8_t *p = r->next;

    if (r->left == 0) {
        return false;
    }
    *pgno = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    *page = p + 4;
    r->next = p + fetch_page_bytes(r->page_size);
    r->left -= fetch_page_bytes(r->page_size);
    return true;
}

uint8_t *fetch_page_put(uint8_t *out, uint32_t pgno)
{
    for (int i = 0; i < 4; i++) {
        *out++ = (uint8_t)(pgno >> (8 * i));
    }
    return out;
}

void fetch_hash(uint8_t out[FETCH_HASH_SIZE], const uint8_t *page, uint32_t page_size)
{
    crypto_generichash(out, FETCH_HASH_SIZE, page, page_size, NULL, 0);
}
