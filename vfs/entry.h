/* entry - a log entry: one transaction, as the pages that it changed. The format, byte by byte, stands in
 * entry.c.
 *
 * A transaction travels in one or more parts, each a buffer of its own, each complete in what it says of the
 * transaction (id, parent, origin, sizes); the page records are spread over them in ascending order of page
 * number. The id covers what the transaction is, not how it was cut. A part by itself proves only that it
 * arrived as it was made (checksum); that the records are those the id names is known when all parts have
 * gone through an entry_check.
 *
 * Nothing here touches more than the memory it is given. Any thread; one object by one thread at a time. */
#ifndef DUST_VFS_ENTRY_H
#define DUST_VFS_ENTRY_H

#include "vfs/bug.h"
#include "vfs/err.h"
#include "vfs/vid.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENTRY_PART_MAX ((size_t)512 << 10) /* bytes of a part, unless told otherwise */
#define ENTRY_PAGE_SIZE_MIN 512u
#define ENTRY_PAGE_SIZE_MAX 65536u
#define ENTRY_OVERHEAD 128         /* bytes of a part beside SQL text and page records, at most */
#define ENTRY_RECORD_OVERHEAD 8    /* bytes of a page record beside the page, at most */
#define ENTRY_HASH_SIZE (384 + 64) /* libsodium's BLAKE2b state, wherever a 64-byte line begins in it */

/* What a transaction is, beside its pages. */
struct entry_meta {
    struct vid parent;      /* the version it was executed on */
    uint64_t origin;        /* the member where it was written */
    uint64_t origin_seq;    /* that member's own number for it; (origin, origin_seq) is never used twice */
    uint32_t page_size;     /* bytes, a power of two, ENTRY_PAGE_SIZE_MIN to ENTRY_PAGE_SIZE_MAX */
    uint32_t n_pages_after; /* size of the database after it, in pages; at least 1 */
    const char *sql;        /* its text, not NUL-terminated, or NULL: for the record only */
    size_t sql_len;         /* bytes; ENTRY_OVERHEAD + sql_len must fit into a part */
};

/* ---- making one ---- */

struct entry_part {
    uint8_t *data; /* malloc */
    size_t len;    /* bytes, a multiple of 8, at most the part_max it was sealed with */
};

/* A finished transaction. Free with sealed_free. */
struct sealed {
    struct vid id, parent;
    uint64_t origin_seq;
    uint32_t n_pages; /* page records in all parts */
    uint32_t n_parts; /* at least 1 */
    size_t bytes;     /* of all parts */
    struct entry_part *parts;
};

/* One in the making: begin, any number of pages, then finish or abort. Its fields are entry.c's own. Must
 * stay where it is from begin to end. */
struct seal {
    struct entry_meta meta;
    size_t part_max;
    uint8_t *buf; /* the part being filled */
    size_t used, room, hashed;
    uint32_t n_records; /* in this part */
    uint32_t last_pgno, n_pages;
    struct entry_part *parts; /* those that are full */
    uint32_t n_parts, parts_room;
    uint8_t hash[ENTRY_HASH_SIZE];
};

/* Start one. part_max: most bytes of a part, at least ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + page size, and
 * enough for the SQL text; ENTRY_PART_MAX unless in tests. *meta is copied; the text it points to need live
 * only during the call. DUST_OK, DUST_NOMEM, DUST_MISUSE (a value out of range). On failure there is nothing
 * to undo, and seal_abort is harmless. */
int seal_begin(struct seal *s, const struct entry_meta *meta, size_t part_max, struct err *e);

/* Add one page, in ascending order of page numbers from 1 to n_pages_after. `page` is its new content, `old`
 * the content in the parent version, or NULL if the page lies beyond the end of that (it then counts as
 * zeros). A page that did not change is left out. *kept (may be NULL) says whether it was taken in. DUST_OK,
 * DUST_NOMEM, DUST_MISUSE (number out of range or out of order). After a failure, abort. */
int seal_page(
    struct seal *s, uint32_t pgno, const uint8_t *page, const uint8_t *old, bool *kept, struct err *e);

/* Complete it: *out is the caller's. DUST_OK or DUST_NOMEM. Either way the seal is used up. */
int seal_finish(struct seal *s, struct sealed **out, struct err *e);

/* Give it up. Harmless after a failed seal_begin, after seal_finish, and when called again. */
void seal_abort(struct seal *s);

/* NULL is fine. */
void sealed_free(struct sealed *s);

#if DUST_BUG == BUG_RESEND
void sealed_renumber(struct sealed *s, uint64_t origin_seq); /* as if it had been made once more */
#endif

/* ---- reading one ---- */

/* One part, decoded. Points into the buffer given to entry_decode, which must outlive it. */
struct entry {
    struct vid id, parent;
    uint64_t origin, origin_seq;
    uint32_t page_size, n_pages_after;
    uint32_t part;   /* from 0 */
    bool last;       /* no part follows this one */
    const char *sql; /* not NUL-terminated; only in part 0; never NULL */
    uint32_t sql_len;
    uint32_t n_records;             /* in this part */
    uint32_t first_pgno, last_pgno; /* of this part; 0 if it has no records */
    const uint8_t *records;
    size_t records_len;
};

enum entry_kind {
    ENTRY_IMAGE, /* data is the page */
    ENTRY_DELTA, /* data is a difference (delta.h) against the parent's page */
    ENTRY_FRESH  /* data is a difference against zeros; the old content does not matter */
};

/* One page. data points into the entry's buffer. The last two fields are the iterator's. */
struct entry_record {
    uint32_t pgno; /* 1 <= pgno <= n_pages_after */
    enum entry_kind kind;
    const uint8_t *data;
    size_t len;
    const uint8_t *next;
    uint32_t left; /* records after this one */
};

/* Read one part of any origin. Checks the checksum, every length, and every record, so that what follows can
 * rely on them. DUST_OK; DUST_VERSION: made by a newer dust; DUST_CORRUPT: anything else that is wrong. On
 * failure *out is untouched. */
int entry_decode(const void *buf, size_t len, struct entry *out, struct err *e);

/* The records of a decoded part, in ascending order of page numbers:
 *     for (bool more = entry_first(entry, &r); more; more = entry_next(entry, &r))
 * False at the end, and *r is then undefined. */
bool entry_first(const struct entry *entry, struct entry_record *r);
bool entry_next(const struct entry *entry, struct entry_record *r);

/* Bring a page of page_size bytes from its content in the parent version (zeros beyond the parent's end; any
 * bytes do where kind is not ENTRY_DELTA) to the new one. DUST_OK; or DUST_CORRUPT (the record is of an entry
 * with another page size), and then the page is untouched. */
int entry_record_apply(const struct entry_record *r, uint32_t page_size, uint8_t *page);

/* ---- are the parts what the id names? ---- */

/* Its fields are entry.c's own. Needs no cleanup; must stay where it is from begin to end. */
struct entry_check {
    struct vid id, parent;
    uint64_t origin, origin_seq;
    uint32_t page_size, n_pages_after;
    uint32_t next_part, last_pgno;
    bool begun, last;
    uint8_t hash[ENTRY_HASH_SIZE];
};

/* Start with part 0, decoded. It must still be added. DUST_OK, DUST_MISUSE (not part 0). */
int entry_check_begin(struct entry_check *c, const struct entry *part0, struct err *e);

/* Take in the next part (part 0 included). DUST_OK; DUST_CORRUPT: it does not belong to what came before:
 * another transaction, not the next part, page numbers not ascending, or behind the last part. */
int entry_check_add(struct entry_check *c, const struct entry *entry, struct err *e);

/* After the last part: DUST_OK if the parts are what the id names; DUST_CORRUPT if not, or if parts are
 * missing. */
int entry_check_end(struct entry_check *c, struct err *e);

/* Nothing to free; for symmetry. */
static inline void entry_check_drop(struct entry_check *c)
{
    c->begun = false;
}

#endif
