/* pair - a database file and its rollback journal, seen through one VFS: what a checkpoint and a playback do to either,
 * with errors in words. checkpoint.c tells when; nothing here knows of dust.
 *
 * Everything blocks; any thread, one at a time for a pair. Codes: DUST_OK; DUST_BUSY (locked), DUST_FULL, DUST_NOMEM,
 * DUST_REFUSED (not permitted), DUST_IO, with *e, which may be NULL. Format of the journal: checkpoint.c. */
#ifndef DUST_VFS_PAIR_H
#define DUST_VFS_PAIR_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/bytes.h"
#include "vfs/err.h"
#include "vfs/lockpage.h"

#define PAGE_SIZE_MAX 65536u
#define SECTOR_MIN 512u
#define SECTOR_MAX 65536u
#define RECORD_EXTRA 8u /* bytes of a record of the journal beside the page */

static const uint8_t journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

/* A database file and its journal, through one VFS. */
struct pair {
    sqlite3_vfs *base;
    sqlite3_file *db;   /* the caller's, or opened by checkpoint_recover() */
    sqlite3_file *jrnl; /* base->szOsFile bytes of ours; open if pMethods is not NULL */
    char *names;        /* the memory behind the next three */
    const char *path, *jrnl_path, *wal_path;
    uint8_t *buf; /* a record of the largest page */
};

static inline bool power_of_two(uint32_t v, uint32_t min, uint32_t max)
{
    return v >= min && v <= max && (v & (v - 1)) == 0;
}

static inline uint32_t journal_checksum(uint32_t nonce, const uint8_t *page, uint32_t page_size)
{
    uint32_t sum = nonce;

    for (int i = (int)page_size - 200; i > 0; i -= 200) {
        sum += page[i];
    }
    return sum;
}

/* Lay out the names and allocate; to be undone with pair_deinit whatever it returns. */
int pair_init(struct pair *p, sqlite3_vfs *base, sqlite3_file *db, const char *path, struct err *e);
void pair_deinit(struct pair *p);

/* Turn a result of the VFS into a code of ours, with the VFS's own words or errno where it has them: "cannot `what`
 * `path`". Call it at once after the failure. */
int pair_err(const struct pair *p, int rc, struct err *e, const char *what, const char *path);

/* Open `file` (pMethods is NULL), or leave pMethods NULL. Close it, if it is open. */
int pair_open(const struct pair *p, sqlite3_file *file, const char *path, int flags, const char *what, struct err *e);
void pair_close_file(sqlite3_file *file);

/* To the unix VFS an empty file does not exist. For a journal that is as well: an empty one means nothing. */
int pair_exists(const struct pair *p, const char *path, bool *exists, struct err *e);

/* The database. Size in bytes. Reading: what lies past the end of the file becomes zeros. */
int pair_size(const struct pair *p, int64_t *size, struct err *e);
int pair_read(const struct pair *p, void *buf, uint32_t n, int64_t offset, struct err *e);
int pair_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e);
int pair_sync(const struct pair *p, struct err *e);
int pair_lock(const struct pair *p, int level, struct err *e);
int pair_unlock(const struct pair *p, int level, struct err *e);

/* Make the database n_pages long. `scratch` is page_size bytes. As SQLite does it: longer by a last page of zeros, and
 * with less than a page missing not at all. */
int pair_resize(const struct pair *p, uint32_t n_pages, uint32_t page_size, uint8_t *scratch, struct err *e);

/* The journal, which is open. *cut_off: it ends before. */
int journal_read(const struct pair *p, void *buf, uint32_t n, int64_t offset, bool *cut_off, struct err *e);
int journal_write(const struct pair *p, const void *buf, uint32_t n, int64_t offset, struct err *e);
int journal_sync(const struct pair *p, struct err *e);

/* Close and delete the journal, and flush the directory. It is no error if there is none. */
int journal_delete(const struct pair *p, struct err *e);

/* playback.c */

/* Play the open journal back into the database and flush that. EXCLUSIVE is held. The journal stays as it is.
 * *n_played becomes the number of records. */
int journal_play(const struct pair *p, uint32_t *n_played, struct err *e);

/* With SHARED held: leave no journal behind but that of a connection at work (DUST_BUSY). SHARED is held after success;
 * after a failure any lock, for the caller to drop. */
int pair_settle(struct pair *p, struct err *e);

#endif
