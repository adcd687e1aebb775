/* vfs/delta: differences of pages.
 *
 * The first byte of the input: bit 0: garbage to be applied, else pages to be told apart; the upper bits choose the
 * page size. The second byte fills the old page. Then garbage:  the difference, checked and applied here a second time,
 * by the format and byte by byte pages:    edits of the new page, of 3 bytes (where, how long) and the bytes; with bit
 * 1, the old page is zeros */
#include "tests/fuzz/fuzz.h"
#include "vfs/delta.h"

static const uint32_t sizes[] = {64, 128, 192, 512, 1024, 4096, 16384, 65536};

static void fill(uint8_t *page, uint32_t size, uint8_t how)
{
    for (uint32_t i = 0; i < 64; i++) {
        page[i] = (uint8_t)(how == 0 ? 0 : how < 128 ? how : i * how >> 3);
    }
    for (uint32_t i = 64; i < size; i += 64) {
        memcpy(page + i, page, 64);
    }
}

/* ---- garbage ---- */

/* A varint at *at; -1 if there is none. */
static int32_t varint(const uint8_t *p, size_t len, size_t *at)
{
    int32_t v = 0;

    for (int i = 0; i < 3; i++) {
        if (*at >= len) {
            return -1;
        }
        v |= (p[*at] & 0x7f) << (7 * i);
        if (p[(*at)++] < 0x80) {
            return p[*at - 1] == 0 && i > 0 ? -1 : v;
        }
    }
    return -1;
}

/* What the format says, byte by byte. False: not valid. */
static bool apply(uint8_t *page, uint32_t size, const uint8_t *p, size_t len)
{
    size_t at = 0, to = 0;

    if (len >= size) {
        return false;
    }
    while (at < len) {
        bool first = at == 0;
        int32_t gap = varint(p, len, &at), n = gap >= 0 ? varint(p, len, &at) : -1;

        if (n < 1 || (gap == 0 && !first)) {
            return false;
        }
        for (to += (uint32_t)gap; n > 0; n--) {
            if (to >= size || at >= len) {
                return false;
            }
            page[to++] = p[at++];
        }
    }
    return true;
}

static void try_garbage(struct input *in, uint32_t size, uint8_t how)
{
    uint8_t *page = must_alloc(size), *was, *want, *delta = exact_copy(in->p, in->left);
    bool valid;
    int rv;

    fill(page, size, how);
    was = exact_copy(page, size);
    want = exact_copy(page, size);
    valid = apply(want, size, delta, in->left);
    rv = delta_check(size, delta, in->left);
    check(rv == (valid ? DUST_OK : DUST_CORRUPT));
    check(delta_apply(page, size, delta, in->left) == rv);
    check(memcmp(page, rv == DUST_OK ? want : was, size) == 0);
    free(page);
    free(was);
    free(want);
    free(delta);
}

/* ---- pages ---- */

static void try_pages(struct input *in, uint32_t size, uint8_t how, bool zeros)
{
    uint8_t *old = must_alloc(size), *new, *out = must_alloc(delta_bound(size)), *page, *delta;
    size_t len;

    fill(old, size, zeros ? 0 : how);
    new = exact_copy(old, size);
    while (in->left > 0) {
        uint32_t at = (uint32_t)input_number(in, 2) % size, n = (uint32_t)input_number(in, 1) + 1;

        input_bytes(in, new + at, n < size - at ? n : size - at);
    }
    len = delta_encode(zeros ? NULL : old, new, size, out);
    check(len <= size && (len == 0) == (memcmp(old, new, size) == 0));
    if (len < size) {
        delta = exact_copy(out, len);
        page = exact_copy(old, size);
        check(delta_check(size, delta, len) == DUST_OK);
        check(delta_apply(page, size, delta, len) == DUST_OK);
        check(memcmp(page, new, size) == 0);
        if (len != 0) { /* a byte less is none */
            check(delta_apply(page, size, delta, len - 1) == DUST_CORRUPT || len == 1);
            check(memcmp(page, new, size) == 0);
        }
        free(delta);
        free(page);
    }
    free(old);
    free(new);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned flags = (unsigned)input_number(&in, 1), how = (unsigned)input_number(&in, 1);
    uint32_t page_size = sizes[flags >> 2 & 7];

    if (flags & 1) {
        try_garbage(&in, page_size, (uint8_t)how);
    } else {
        try_pages(&in, page_size, (uint8_t)how, (flags & 2) != 0);
    }
    return 0;
}
