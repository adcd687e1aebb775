/* vid - a version id: the 16-byte BLAKE2b hash that names one version of the database and, through its parent, the
 * whole history up to it. All zeros means "none"; no version has that id. */
#ifndef DUST_VFS_VID_H
#define DUST_VFS_VID_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VID_HEX_SIZE 33 /* 32 hex digits and the terminating NUL */

struct vid {
    uint8_t b[16];
};

static inline bool vid_equal(const struct vid *a, const struct vid *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

static inline bool vid_none(const struct vid *a)
{
    static const struct vid none;

    return vid_equal(a, &none);
}

/* Write the id as lower-case hex into out. Returns out. */
static inline char *vid_hex(const struct vid *a, char out[VID_HEX_SIZE])
{
    static const char digits[] = "0123456789abcdef";

    for (int i = 0; i < 16; i++) {
        out[2 * i] = digits[a->b[i] >> 4];
        out[2 * i + 1] = digits[a->b[i] & 15];
    }
    out[32] = '\0';
    return out;
}

/* Read exactly 32 hex digits (either case) followed by NUL. Returns false, with *a untouched, on anything else. */
static inline bool vid_parse(struct vid *a, const char *hex)
{
    struct vid v;

    for (int i = 0; i < 32; i++) {
        char c = hex[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;

        if (d < 0) {
            return false;
        }
        v.b[i / 2] = (uint8_t)(i % 2 == 0 ? d << 4 : v.b[i / 2] | d);
    }
    if (hex[32] != '\0') {
        return false;
    }
    *a = v;
    return true;
}

#endif
