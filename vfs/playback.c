/* Playing a rollback journal back, whether a checkpoint left it or SQLite, and settling what a crash has left: see
 * checkpoint.c for the model and the format. */
#include <stdlib.h>
#include <string.h>

#include "vfs/pair.h"

#define SECTOR_OLDEST 32u /* the least sector size that SQLite takes from a journal */
#define JOURNAL_FIELDS 28 /* bytes of a journal header before the padding */
#define COUNT_BY_SIZE 0xffffffffu

/* A journal of a transaction over several files ends in the name of a super-journal:
 *     lock-byte page number (4), name (n), n (4), sum of the name's bytes as signed (4), magic (8)
 * and counts only as long as the super-journal exists. *counts: whether this one does. */
static int super_journal(const struct pair *p, int64_t size, bool *counts, struct err *e)
{
    uint8_t tail[16];
    uint32_t n, sum;
    bool cut_off, exists;
    char *name; /* after four zeros, as for every name given to a VFS */
    int rv;

    *counts = true;
    if (size < (int64_t)sizeof tail) {
        return DUST_OK;
    }
    rv = journal_read(p, tail, sizeof tail, size - (int64_t)sizeof tail, &cut_off, e);
    if (rv != DUST_OK) {
        return rv;
    }
    n = get_be32(tail);
    sum = get_be32(tail + 4);
    if (cut_off || memcmp(tail + 8, journal_magic, sizeof journal_magic) != 0 || n == 0 ||
        n > (uint32_t)p->base->mxPathname || n > size - (int64_t)sizeof tail) {
        return DUST_OK;
    }
    name = calloc(1, (size_t)n + 8);
    if (name == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory while playing back %s", p->jrnl_path);
    }
    rv = journal_read(p, name + 4, n, size - (int64_t)sizeof tail - n, &cut_off, e);
    for (uint32_t i = 0; i < n; i++) {
        sum -= (uint32_t)(int)(char)name[4 + i];
    }
    if (rv == DUST_OK && !cut_off && sum == 0 && name[4] != '\0') {
        rv = pair_exists(p, name + 4, &exists, e);
        if (rv == DUST_OK) {
            *counts = exists;
        }
    }
    free(name);
    return rv;
}

/* A header of the journal, and where playback stands. */
struct play {
    int64_t size;   /* of the journal, bytes */
    int64_t offset; /* of what comes next */
    uint32_t sector, page_size, nonce;
    uint32_t n_pages;  /* of the database before; from the first header */
    uint32_t n_here;   /* records after this header */
    uint32_t n_played; /* records so far, from all headers */
};

/* Read the header at the next sector. *end: there is none, the playback is over. */
static int play_header(const struct pair *p, struct play *pl, bool *end, struct err *e)
{
    uint8_t h[JOURNAL_FIELDS];
    int64_t offset = pl->offset == 0 ? 0 : ((pl->offset - 1) / pl->sector + 1) * pl->sector;
    int rv;

    *end = true;
    if (offset + (offset == 0 ? JOURNAL_FIELDS : pl->sector) > pl->size) {
        return DUST_OK;
    }
    rv = journal_read(p, h, sizeof h, offset, end, e);
    if (rv != DUST_OK || *end) {
        return rv;
    }
    *end = true;
    if (memcmp(h, journal_magic, sizeof journal_magic) != 0) {
        return DUST_OK;
    }
    if (offset == 0) {
        pl->sector = get_be32(h + 20);
        pl->page_size = get_be32(h + 24);
        if (!power_of_two(pl->sector, SECTOR_OLDEST, SECTOR_MAX) ||
            !power_of_two(pl->page_size, SECTOR_MIN, PAGE_SIZE_MAX) || pl->sector > pl->size) {
            return DUST_OK;
        }
        pl->n_pages = get_be32(h + 16);
    }
    pl->n_here = get_be32(h + 8);
    pl->nonce = get_be32(h + 12);
    pl->offset = offset + pl->sector;
    if (pl->n_here == COUNT_BY_SIZE) {
        pl->n_here = (uint32_t)((pl->size - pl->offset) / (pl->page_size + RECORD_EXTRA));
    }
    *end = false;
    return DUST_OK;
}

/* Put one page back. *end: the record is not there or not whole, the playback is over. */
static int play_record(const struct pair *p, struct play *pl, bool *end, struct err *e)
{
    uint32_t n = pl->page_size + RECORD_EXTRA;
    uint32_t pgno;
    int rv = journal_read(p, p->buf, n, pl->offset, end, e);

    if (rv != DUST_OK || *end) {
        return rv;
    }
    pl->offset += n;
    pgno = get_be32(p->buf);
    if (pgno == 0 || pgno == lock_page(pl->page_size) ||
        (pgno <= pl->n_pages &&
            journal_checksum(pl->nonce, p->buf + 4, pl->page_size) != get_be32(p->buf + 4 + pl->page_size))) {
        *end = true;
        return DUST_OK;
    }
    pl->n_played++;
    if (pgno > pl->n_pages) {
        return DUST_OK;
    }
    return pair_write(p, p->buf + 4, pl->page_size, (int64_t)(pgno - 1) * pl->page_size, e);
}

/* (The same page may be in a journal twice, then the first is the original, but SQLite makes no such journal, so it is
 * not looked for.) */
int journal_play(const struct pair *p, uint32_t *n_played, struct err *e)
{
    struct play pl = {.size = 0};
    sqlite3_int64 size = 0;
    bool counts, end;
    int rc = p->jrnl->pMethods->xFileSize(p->jrnl, &size);
    int rv;

    if (rc != SQLITE_OK) {
        return pair_err(p, rc, e, "get the size of", p->jrnl_path);
    }
    pl.size = size;
    rv = super_journal(p, pl.size, &counts, e);
    if (rv != DUST_OK) {
        return rv;
    }
    for (bool first = true; counts; first = false) {
        rv = play_header(p, &pl, &end, e);
        if (rv != DUST_OK) {
            return rv;
        }
        if (end) {
            break;
        }
        if (first) {
            rv = pair_resize(p, pl.n_pages, pl.page_size, p->buf, e);
        }
        for (uint32_t i = 0; rv == DUST_OK && !end && i < pl.n_here; i++) {
            rv = play_record(p, &pl, &end, e);
        }
        if (rv != DUST_OK) {
            return rv;
        }
        if (end) {
            break;
        }
    }
    *n_played = pl.n_played;
    return pair_sync(p, e);
}

/* ---- settling what a crash has left ---- */

enum heat {
    HEAT_NONE, /* no journal */
    HEAT_COLD, /* one that was never finished, or whose database is empty: to be deleted */
    HEAT_HOT   /* one to be played back, if nobody is at work on it */
};

static int look_at_journal(struct pair *p, enum heat *heat, struct err *e)
{
    struct err reason = {.code = DUST_OK};
    uint8_t first = 0;
    bool exists, cut_off;
    int64_t size;
    int rv = pair_exists(p, p->jrnl_path, &exists, e);

    *heat = HEAT_NONE;
    if (rv != DUST_OK || !exists) {
        return rv;
    }
    rv = pair_size(p, &size, e);
    if (rv != DUST_OK) {
        return rv;
    }
    *heat = HEAT_COLD;
    if (size == 0) {
        return DUST_OK;
    }
    rv = pair_open(p, p->jrnl, p->jrnl_path, SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_JOURNAL,
        "open the journal", &reason);
    if (rv != DUST_OK) {
        if (pair_exists(p, p->jrnl_path, &exists, NULL) == DUST_OK && !exists) {
            *heat = HEAT_NONE; /* somebody has deleted it just now */
            return DUST_OK;
        }
        return err_set(e, rv, "%s", reason.text);
    }
    rv = journal_read(p, &first, 1, 0, &cut_off, e);
    pair_close_file(p->jrnl);
    if (!cut_off && first != 0) {
        *heat = HEAT_HOT;
    }
    return rv;
}

/* Delete a journal that is not hot. RESERVED keeps others from beginning one meanwhile. The database is flushed before:
 * it may be empty because of a playback that was cut short when it had set the size. */
static int delete_cold(struct pair *p, struct err *e)
{
    enum heat heat;
    int rv = pair_lock(p, SQLITE_LOCK_RESERVED, e);

    if (rv == DUST_OK) {
        rv = look_at_journal(p, &heat, e);
    }
    if (rv == DUST_OK && heat == HEAT_HOT) {
        rv = err_set(e, DUST_BUSY, "another connection has just been writing %s", p->path);
    }
    if (rv == DUST_OK && heat == HEAT_COLD) {
        rv = pair_sync(p, e);
        rv = rv == DUST_OK ? journal_delete(p, e) : rv;
    }
    return rv != DUST_OK ? rv : pair_unlock(p, SQLITE_LOCK_SHARED, e);
}

/* Play a hot journal back. Not by way of RESERVED: others would take the journal for that of a writer at
 * work, and read. Nor is what is in the journal relied on before it is flushed. */
static int play_hot(struct pair *p, struct err *e)
{
    uint32_t n_played;
    bool exists;
    int rc;
    int rv = pair_lock(p, SQLITE_LOCK_EXCLUSIVE, e);

    if (rv == DUST_OK) {
        rv = pair_exists(p, p->jrnl_path, &exists, e);
    }
    if (rv == DUST_OK && exists) { /* else somebody else was faster */
        rv = pair_open(p, p->jrnl, p->jrnl_path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_MAIN_JOURNAL,
            "open the journal", e);
        if (rv == DUST_OK) {
            rc = p->jrnl->pMethods->xSync(p->jrnl, SQLITE_SYNC_NORMAL);
            rv = rc == SQLITE_OK ? journal_play(p, &n_played, e) : pair_err(p, rc, e, "flush", p->jrnl_path);
        }
        if (rv == DUST_OK) {
            rv = journal_delete(p, e);
        }
        pair_close_file(p->jrnl);
    }
    return rv != DUST_OK ? rv : pair_unlock(p, SQLITE_LOCK_SHARED, e);
}

int pair_settle(struct pair *p, struct err *e)
{
    enum heat heat;
    int reserved = 0;
    int rc;
    bool exists;
    int rv = pair_exists(p, p->jrnl_path, &exists, e);

    if (rv != DUST_OK || !exists) {
        return rv;
    }
    rc = p->db->pMethods->xCheckReservedLock(p->db, &reserved);
    if (rc != SQLITE_OK) {
        return pair_err(p, rc, e, "look at the locks of", p->path);
    }
    if (reserved) {
        return err_set(e, DUST_BUSY, "another connection is writing %s", p->path);
    }
    rv = look_at_journal(p, &heat, e);
    if (rv != DUST_OK || heat == HEAT_NONE) {
        return rv;
    }
    return heat == HEAT_HOT ? play_hot(p, e) : delete_cold(p, e);
}
