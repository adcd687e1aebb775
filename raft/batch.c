#include "raft/batch.h"

#include <sodium.h>
#include <string.h>

#include "vfs/bytes.h"

#define HASH_SIZE 16u
#define MAGIC "dustlog1"
#define MAGIC_SIZE 8u

size_t batch_put(uint8_t *buf, size_t at, const struct batch_entry *entry)
{
    size_t end = at + batch_room(entry->size);
    uint8_t *p = buf + at;

    put64(p, entry->term);
    put32(p + 8, entry->size);
    put32(p + 12, entry->type);
    if (entry->size != 0) {
        memcpy(p + BATCH_ENTRY_HEAD, entry->data, entry->size);
    }
    memset(p + BATCH_ENTRY_HEAD + entry->size, 0, end - at - BATCH_ENTRY_HEAD - entry->size);
    return end;
}

size_t batch_seal(uint8_t *buf, const struct batch *b, const uint8_t key[BATCH_KEY_SIZE])
{
    size_t whole = batch_blocks(b->size);

    memcpy(buf + 16, MAGIC, MAGIC_SIZE);
    put64(buf + 24, b->seq);
    put64(buf + 32, b->follows);
    put64(buf + 40, b->first);
    put64(buf + 48, b->floor);
    put32(buf + 56, b->n);
    put32(buf + 60, b->size);
    put64(buf + 64, b->kind);
    memset(buf + b->size, 0, whole - b->size);
    crypto_generichash(buf, HASH_SIZE, buf + HASH_SIZE, b->size - HASH_SIZE, key, BATCH_KEY_SIZE);
    return whole;
}

bool batch_begins(const uint8_t *p, size_t len)
{
    return len >= BATCH_HEAD && memcmp(p + HASH_SIZE, MAGIC, MAGIC_SIZE) == 0;
}

/* Whoever knows the key wrote it; but a program that has gone wrong knows it too. */
static bool holds_together(const uint8_t *p, const struct batch *b)
{
    size_t at = BATCH_HEAD;
    uint32_t n = 0;

    while (at < b->size) {
        size_t room;

        if (b->size - at < BATCH_ENTRY_HEAD || get32(p + at + 12) > UINT8_MAX || get32(p + at + 8) > b->size) {
            return false;
        }
        room = batch_room(get32(p + at + 8));
        if (room > b->size - at) {
            return false;
        }
        at += room;
        n++;
    }
    return n == b->n && b->first != 0 && b->seq > b->follows && b->first <= UINT64_MAX - n;
}

bool batch_open(const uint8_t *p, size_t len, const uint8_t key[BATCH_KEY_SIZE], struct batch *out)
{
    uint8_t hash[HASH_SIZE];
    struct batch b;

    if (!batch_begins(p, len)) {
        return false;
    }
    b = (struct batch){.seq = get64(p + 24), .follows = get64(p + 32), .first = get64(p + 40), .floor = get64(p + 48),
        .n = get32(p + 56), .size = get32(p + 60), .kind = get64(p + 64) == BATCH_ANEW ? BATCH_ANEW : BATCH_FOLLOWS};
    if (b.size < BATCH_HEAD || b.size > len || b.size > BATCH_MAX || get64(p + 64) > BATCH_ANEW) {
        return false;
    }
    crypto_generichash(hash, HASH_SIZE, p + HASH_SIZE, b.size - HASH_SIZE, key, BATCH_KEY_SIZE);
    if (memcmp(hash, p, HASH_SIZE) != 0 || !holds_together(p, &b)) {
        return false;
    }
    *out = b;
    return true;
}

bool batch_next(const uint8_t *p, const struct batch *b, size_t *at, struct batch_entry *out)
{
    if (*at >= b->size) {
        return false;
    }
    *out = (struct batch_entry){.term = get64(p + *at), .size = get32(p + *at + 8), .type = (uint8_t)get32(p + *at + 12),
        .data = p + *at + BATCH_ENTRY_HEAD};
    *at += batch_room(out->size);
    return true;
}
