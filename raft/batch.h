/* batch - what one write of the log puts on disk: some entries that follow each other, in whole blocks of the file.
 *
 * A batch says which one it follows, so that the batches of a log are a chain: what was cut off, was never acknowledged,
 * or lies in a file that is used again is not part of it. It begins where nothing else was written, so that no write
 * touches a block that holds what was acknowledged before.
 *
 * Format, little-endian; a block has 4096 bytes:
 *     0  16  BLAKE2b-128 of what follows, up to `size`, keyed with the log's key
 *    16   8  magic "dustlog1"
 *    24   8  seq: of this batch; those of one log only rise. life of the log << 40, plus a number
 *    32   8  follows: the seq of the batch before; 0: there is none
 *    40   8  first: the index of its first entry; entries of earlier batches from here on are void
 *    48   8  floor: entries before this index are not needed any more
 *    56   4  n: entries
 *    60   4  size: bytes, from the beginning of the batch; the rest of the last block is zeros
 *    64   1  kind: 0, or 1 for a log that begins anew here: all earlier entries are void, and there may be a gap
 *    65   7  zeros
 *    72      for each entry: term 8, size 4, type 1, zeros 3; then its bytes, and zeros up to a multiple of 8
 *
 * The key keeps bytes of a user's, which lie in entries, from being taken for a batch.
 *
 * Pure functions; any thread. */
#ifndef DUST_RAFT_BATCH_H
#define DUST_RAFT_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BATCH_BLOCK 4096u
#define BATCH_HEAD 72u
#define BATCH_ENTRY_HEAD 16u
#define BATCH_KEY_SIZE 32u
#define BATCH_MAX (((size_t)1 << 20) + ((size_t)64 << 10)) /* bytes */
#define BATCH_LIFE_SHIFT 40 /* 2^40 batches in a life, 2^24 lives */

enum batch_kind { BATCH_FOLLOWS, BATCH_ANEW };

struct batch {
    uint64_t seq, follows, first, floor;
    uint32_t n, size;
    enum batch_kind kind;
};

struct batch_entry {
    uint64_t term;
    const uint8_t *data;
    uint32_t size;
    uint8_t type;
};

/* Bytes that an entry of `size` bytes takes in a batch. */
static inline size_t batch_room(size_t size)
{
    return BATCH_ENTRY_HEAD + (size + 7) / 8 * 8;
}

/* Bytes on disk of one of `size` bytes: whole blocks. */
static inline size_t batch_blocks(size_t size)
{
    return (size + BATCH_BLOCK - 1) / BATCH_BLOCK * BATCH_BLOCK;
}

/* Write an entry at buf + at, where there must be batch_room() of it; at: BATCH_HEAD for the first. Returns where the next
 * one goes. */
size_t batch_put(uint8_t *buf, size_t at, const struct batch_entry *entry);

/* Write the head in front of the entries, which go up to b->size, and zeros behind them up to a whole block; for those
 * there must be room. Returns batch_blocks(). */
size_t batch_seal(uint8_t *buf, const struct batch *b, const uint8_t key[BATCH_KEY_SIZE]);

/* Could a batch begin here? Cheap. len: what can be read from p on. */
bool batch_begins(const uint8_t *p, size_t len);

/* Read one of any origin; len: what can be read from p on. True: it is one, and whole, with this key; *out is filled. */
bool batch_open(const uint8_t *p, size_t len, const uint8_t key[BATCH_KEY_SIZE], struct batch *out);

/* The entry at p + *at of a batch that was opened, and *at behind it; *at: BATCH_HEAD at first. False: there are no more. */
bool batch_next(const uint8_t *p, const struct batch *b, size_t *at, struct batch_entry *out);

#endif
