/* delta - the difference between two contents of one page, as byte runs. The format, byte by byte, stands in
 * delta.c.
 *
 * Every function here is pure: it touches the bytes given to it and nothing else. Any thread. */
#ifndef DUST_VFS_DELTA_H
#define DUST_VFS_DELTA_H

#include <stddef.h>
#include <stdint.h>

/* How many bytes delta_encode may write, whatever the pages hold. */
static inline size_t delta_bound(uint32_t page_size)
{
    return page_size;
}

/* Write into `out` (delta_bound(page_size) bytes, overlapping neither page) what turns `old` into `new`, both
 * of page_size bytes: a multiple of 64, at most 65536. `old` may be NULL, for a page of zeros. Returns the
 * number of bytes written, less than page_size; 0 if the pages are equal; page_size if the difference is no
 * smaller than the page, and then `out` holds nothing of use: keep the page itself. */
size_t delta_encode(const uint8_t *old, const uint8_t *new, uint32_t page_size, uint8_t *out);

/* Is it what delta_encode may have made for such a page? `delta` may be anything. DUST_OK or DUST_CORRUPT. An
 * empty one (len 0) is: no change. */
int delta_check(uint32_t page_size, const uint8_t *delta, size_t len);

/* Turn the old content of `page` into the new one. `delta` may be anything, but must not overlap the page.
 * DUST_OK; or DUST_CORRUPT, and then the page is untouched. */
int delta_apply(uint8_t *page, uint32_t page_size, const uint8_t *delta, size_t len);

#endif
