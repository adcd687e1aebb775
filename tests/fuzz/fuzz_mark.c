/* vfs/mark: the marks in page 1, and the header's fields.
 *
 * The first 4 bytes of the input are where a read begins and how long it is; 16 bytes a version id; the rest is the
 * header, zeros behind it. What is hidden is compared with what the format says, byte by byte. */
#include "tests/fuzz/fuzz.h"
#include "vfs/mark.h"

#define PAGE 512

static void check_read(const uint8_t *page)
{
    struct vid id;
    enum mark m;
    bool named = memcmp(page + 72, "dus", 3) == 0, locked = page[18] == 3;

    memset(&id, 0x5a, sizeof id);
    m = mark_read(page, &id);
    check(m == mark_read(page, NULL));
    check(m == (!header_valid(page) || (!named && !locked) ? MARK_NONE
                   : named && page[75] != 1                ? MARK_NEWER
                   : named && locked                       ? MARK_DUST
                                                           : MARK_HALF));
    check(m == MARK_DUST ? memcmp(id.b, page + 76, 16) == 0 : all_are(&id, 0x5a, sizeof id));
}

static void check_header(const uint8_t *page)
{
    uint32_t size = header_page_size(page);

    check(size == 0 || (size >= 512 && size <= 65536 && (size & (size - 1)) == 0));
    check(header_valid(page) == (size != 0 && memcmp(page, "SQLite format 3", 16) == 0));
    check(header_n_pages(page) == __builtin_bswap32((uint32_t)le_get(page + 28, 4)));
}

static void check_advance(const uint8_t *page)
{
    uint8_t next[PAGE];
    bool valid = header_change_counter(page) == header_valid_for(page);

    memcpy(next, page, PAGE);
    header_advance(next);
    check(header_change_counter(next) != header_change_counter(page));
    check((header_change_counter(next) == header_valid_for(next)) == valid);
    check(memcmp(next, page, 24) == 0 && memcmp(next + 28, page + 28, 64) == 0);
    check(memcmp(next + 96, page + 96, PAGE - 96) == 0);
}

static void check_write_and_clear(const uint8_t *page, const struct vid *id)
{
    uint8_t marked[PAGE], cleared[PAGE];
    struct vid got;

    memcpy(marked, page, PAGE);
    mark_write(marked, id);
    check(mark_read(marked, &got) == (header_valid(page) ? MARK_DUST : MARK_NONE));
    check(!header_valid(page) || vid_equal(&got, id));
    memcpy(cleared, marked, PAGE);
    mark_clear(cleared);
    check(cleared[18] == page[19] && all_are(cleared + 72, 0, 20));
    check(mark_read(cleared, NULL) == (header_valid(page) && page[19] == 3 ? MARK_HALF : MARK_NONE));
    cleared[18] = page[18];
    memcpy(cleared + 72, page + 72, 20);
    check(memcmp(cleared, page, PAGE) == 0); /* nothing else was touched */
}

static void check_hide(const uint8_t *page, size_t from, size_t n)
{
    size_t in_page = from < PAGE ? (n < PAGE - from ? n : PAGE - from) : 0;
    uint8_t *part = must_alloc(n);

    memset(part, 0x5a, n);
    if (in_page != 0) {
        memcpy(part, page + from, in_page);
    }
    mark_hide(part, from, n);
    for (size_t i = 0; i < n; i++) {
        size_t at = from + i;
        uint8_t was = at < PAGE ? page[at] : 0x5a;

        check(part[i] == (at == 18 ? 1 : at >= 72 && at < 92 ? 0 : was));
    }
    free(part);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    size_t from = input_number(&in, 2) % 600, n = input_number(&in, 2) % 1200;
    struct vid id;
    uint8_t *page = must_alloc(PAGE), *header;

    input_bytes(&in, id.b, sizeof id.b);
    input_bytes(&in, page, PAGE);
    header = exact_copy(page, HEADER_SIZE);
    check_read(header);
    check_header(header);
    check_advance(page);
    check_write_and_clear(page, &id);
    check_hide(page, from, n);
    free(header);
    free(page);
    return 0;
}
