/* entry_impl - what entry.c (reading) and entry_seal.c (making) share of the format. Not for others. */
#ifndef DUST_VFS_ENTRY_IMPL_H
#define DUST_VFS_ENTRY_IMPL_H

#include "vfs/bytes.h"
#include "vfs/entry.h"

#define ENTRY_MAGIC "dle"
#define FORMAT 1
#define KIND_PAGES 1
#define FLAG_LAST 1
#define CHECKSUM_SIZE 8
#define ID_HEAD_SIZE 56

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

static inline uint8_t *varint_put(uint8_t *p, uint32_t v)
{
    for (; v >= 0x80; v >>= 7) {
        *p++ = (uint8_t)(v | 0x80);
    }
    *p++ = (uint8_t)v;
    return p;
}

/* Returns what is behind it; NULL if there is no valid one of 32 bits. */
static inline const uint8_t *varint_get(const uint8_t *p, const uint8_t *end, uint32_t *v)
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

static inline bool page_size_valid(uint32_t size)
{
    return size >= ENTRY_PAGE_SIZE_MIN && size <= ENTRY_PAGE_SIZE_MAX && (size & (size - 1)) == 0;
}

/* Bytes of a part with `used` of them in use. */
static inline size_t part_size(size_t used)
{
    return ((used + 7) & ~(size_t)7) + CHECKSUM_SIZE;
}

/* The checksum of a part of len bytes, its own place at the end left out. */
void entry_checksum(const uint8_t *part, size_t len, uint8_t out[CHECKSUM_SIZE]);

/* The id: begin with what the transaction is, add text and records, end. */
void entry_id_begin(uint8_t room[ENTRY_HASH_SIZE], const struct vid *parent, uint64_t origin, uint64_t origin_seq,
    uint32_t page_size, uint32_t n_pages_after, uint32_t sql_len);
void entry_id_add(uint8_t room[ENTRY_HASH_SIZE], const void *data, size_t len);
void entry_id_end(uint8_t room[ENTRY_HASH_SIZE], struct vid *id);

#endif
