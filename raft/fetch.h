/* fetch - the two messages of a state transfer, as transfer.c and give.c send them: checked whole before anything of them is
 * used. Their fields stand in fetch.c.
 *
 * Pure functions; any thread. What is decoded leads into the note, which must outlive it. */
#ifndef DUST_RAFT_FETCH_H
#define DUST_RAFT_FETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "raft/wire.h"
#include "vfs/vid.h"

#define FETCH_PAGES_MAX 4096u /* that a message asks for or covers */
#define FETCH_HASH_SIZE 16    /* BLAKE2b-128 of a page */
#define FETCH_CHUNK_BYTES (256u << 10) /* of pages, in one message */

/* "Send me these pages, save those that I have." */
struct fetch {
    uint32_t first, n;     /* pages; 1 <= n <= FETCH_PAGES_MAX; cut so that first + n does not overflow */
    const uint8_t *hashes; /* of the first n_hashes of them, at the asker */
    uint32_t n_hashes;     /* at most n */
};

/* Read a question. False, with *out untouched, if it makes no sense. */
bool fetch_decode(const struct note *note, struct fetch *out);

/* The pages of an answer with code DUST_OK. */
struct fetch_reply {
    uint32_t first, n;  /* pages covered: those of them that are not in it, the asker has; 1 <= n <= FETCH_PAGES_MAX */
    uint32_t n_pages;   /* of the version; first + n - 1 <= n_pages */
    uint32_t page_size; /* as the asker has it */
    uint64_t index;     /* of the version */
    struct vid id;
    const uint8_t *next; /* the last two are the iterator's */
    uint32_t left;
};

/* Read the answer to a question for pages from `first` on, by a member whose pages have this size (not 0). False, with
 * *out untouched, if it is not one that a member gives: every page in it is looked at. */
bool fetch_reply_decode(const struct note *note, uint32_t first, uint32_t page_size, struct fetch_reply *out);

/* The next page of the answer: numbers ascend, lie among the pages covered, and are not that of the lock byte's page.
 * *page is page_size bytes. False at the end. */
bool fetch_reply_next(struct fetch_reply *r, uint32_t *pgno, const uint8_t **page);

/* Bytes that a page of an answer takes, and how it is put down: the number here, behind it the page. Returns where. */
static inline uint32_t fetch_page_bytes(uint32_t page_size)
{
    return 4 + page_size;
}
uint8_t *fetch_page_put(uint8_t *out, uint32_t pgno);

void fetch_hash(uint8_t out[FETCH_HASH_SIZE], const uint8_t *page, uint32_t page_size);

#endif
