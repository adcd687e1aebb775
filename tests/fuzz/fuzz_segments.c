/* raft/segments: how far an open segment of libraft's log goes.
 *
 * Input: a byte of choices, and the segment.
 *   bit 0  its format is put right
 *   bit 1  the checksums of its batches are put right, as far as their lengths make sense
 *   bit 2  zeros are put behind it
 * A second reader, written from the format, agrees on the entries and on whether something else follows; and one byte
 * changed in what was counted is noticed. */
#include "raft/segments.h"
#include "tests/fuzz/fuzz.h"

#define ZEROS 64

static uint32_t slow_crc(const uint8_t *p, size_t n)
{
    uint32_t v = 0;

    for (size_t i = 0; i < n; i++) {
        for (int bit = 7; bit >= 0; bit--) {
            bool top = (v >> 31) != (p[i] >> bit & 1u);

            v = v << 1 ^ (top ? 0x04c11db7u : 0);
        }
    }
    return v;
}

static void put_crc(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

/* The lengths of the parts of the batch at `at`; false: there is none. */
static bool parts(const uint8_t *p, size_t size, size_t at, size_t *head, size_t *data)
{
    uint64_t n;

    if (size - at < 16) {
        return false;
    }
    n = le_get(p + at + 8, 8);
    if (n == 0 || n > size || 16 + n * 16 > size - at) {
        return false;
    }
    *head = 8 + (size_t)n * 16;
    *data = 0;
    for (uint64_t i = 0; i < n; i++) {
        *data += le_get(p + at + 16 + i * 16 + 12, 4);
    }
    return *data <= size - at - 8 - *head;
}

static void put_right(uint8_t *p, size_t size)
{
    size_t head, data;

    for (size_t at = 8; at <= size && parts(p, size, at, &head, &data); at += 8 + head + data) {
        put_crc(p + at, slow_crc(p + at + 8, head));
        put_crc(p + at + 4, slow_crc(p + at + 8 + head, data));
    }
}

/* The second reader. *end: of what it counted. */
static bool read_again(const uint8_t *p, size_t size, uint64_t *count, size_t *end)
{
    uint64_t format = size >= 8 ? le_get(p, 8) : 0;
    size_t head, data, at = 8;

    *count = 0;
    *end = 0;
    if (format != 1) {
        return format == 0;
    }
    while (parts(p, size, at, &head, &data) && slow_crc(p + at + 8, head) == le_get(p + at, 4) &&
           slow_crc(p + at + 8 + head, data) == le_get(p + at + 4, 4)) {
        *count += le_get(p + at + 8, 8);
        at += 8 + head + data;
    }
    *end = at;
    return true;
}

static bool anything(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (p[i] != 0) {
            return true;
        }
    }
    return false;
}

static void change_one(uint8_t *p, size_t size, size_t end, uint64_t count)
{
    uint64_t less;
    bool broken;
    size_t at = 8 + (size_t)(count * 7919 % (end - 8));

    p[at] ^= 0x20;
    check(segments_decode(p, size, &less, &broken));
    check(less < count && broken);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned choices = (unsigned)input_number(&in, 1);
    size_t len = in.left + (choices & 4 ? ZEROS : 0), end;
    uint8_t *all = must_alloc(len + 1), *copy;
    uint64_t count, again;
    bool broken, known;

    input_bytes(&in, all, len);
    if (choices & 1 && len >= 8) {
        memcpy(all, "\1\0\0\0\0\0\0\0", 8);
    }
    if (choices & 2) {
        put_right(all, len);
    }
    copy = exact_copy(all, len);
    known = segments_decode(copy, len, &count, &broken);
    check(known == read_again(all, len, &again, &end) && count == again);
    check(broken == anything(all + end, len - end));
    if (count != 0) {
        change_one(copy, len, end, count);
    }
    free(copy);
    free(all);
    return 0;
}
