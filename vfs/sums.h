/* sums - a checksum for each page of app.db, so that a page that was changed underneath (a bad disk, a stray write, an
 * editor) is found out when it is read, and never served.
 *
 * They are of the pages as SQLite sees them (marks hidden), as of the version that app.db is at, and lie in
 * app.db-dust/sums. A checkpoint changes app.db and the sums together:
 *
 *     1. sums_begin   the new sums and the new version, into `sums-next`, flushed
 *     2. the fold     app.db, by its journal
 *     3. sums_end     done: into `sums`, flushed, and `sums-next` removed; not done: `sums-next` removed
 *
 * After a crash app.db says by its mark which version it is at: that of `sums-next`, then it is brought into `sums`; or
 * that of `sums`. If it is neither (the files come from elsewhere), the sums are made anew from what is there; so are those
 * that were damaged themselves.
 *
 * A sum of 0 means: not known, not checked. Checking takes no lock: it may be done by any number of threads while
 * another one changes the sums of pages that nobody reads from app.db (those being folded). */
#ifndef DUST_VFS_SUMS_H
#define DUST_VFS_SUMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"
#include "vfs/vid.h"

struct sums;

struct sums_change {
    uint32_t pgno;
    uint64_t sum;
};

/* The checksum of a page; size is a multiple of 32. Never 0. One changed word always changes it. */
uint64_t page_sum(const void *page, size_t size);

/* Read the sums of app.db at version `id`. *known: all of them; false: none, or some (the files are of another version,
 * or not what was written). */
int sums_open(struct sums **out, const char *dir, const struct vid *id, bool *known, struct err *e);
void sums_close(struct sums *s); /* NULL is fine */

/* Is this the page? True if its sum is not known. */
bool sums_check(const struct sums *s, uint32_t pgno, uint64_t sum);
bool sums_known(const struct sums *s, uint32_t pgno);

/* For making them anew: set one (without memory for it, it is not known; one thread at a time), then store them all as those of version `id` with n_pages. */
void sums_set(struct sums *s, uint32_t pgno, uint64_t sum);
int sums_store(struct sums *s, const struct vid *id, uint32_t n_pages, struct err *e);

/* See above. The changes are in ascending order, and are copied. One at a time. */
int sums_begin(struct sums *s, const struct vid *id, uint32_t n_pages, const struct sums_change *changes, uint32_t n,
    struct err *e);
int sums_end(struct sums *s, bool done, struct err *e);

/* ---- for a process that is attached: from the file, as the host keeps it ---- */

struct sums_peek; /* some blocks of it, for one thread at a time */

/* The sum of a page of app.db at version `id`, in *sum; 0: not known. *peek is made when it is NULL. False: the file is of
 * another version just now, or being written: what was read cannot be checked by it. */
bool sums_peek(struct sums_peek **peek, const char *dir, const struct vid *id, uint32_t pgno, uint64_t *sum);
void sums_peek_free(struct sums_peek *peek); /* NULL is fine */

#endif
