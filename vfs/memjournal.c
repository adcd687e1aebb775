/* A rollback journal in memory: the file methods that SQLite's pager calls on it.
 *
 * The content is a row of chunks of CHUNK bytes, found through an array of pointers; the first few pointers
 * are inside the file itself, so that a small transaction costs one allocation. Invariant: chunks 0 to
 * n_chunks - 1 exist and hold at least `size` bytes; what lies behind `size` in them is undefined, and zeroed
 * when the file grows over it.
 *
 * Nobody else can see the file, so locks and syncs succeed and do nothing. One thread at a time, which SQLite
 * sees to. */
#include "vfs/memjournal.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK ((size_t)16 << 10)
#define N_FEW 4

struct memjournal {
    sqlite3_file file; /* first: SQLite knows us by it */
    sqlite3_int64 size;
    size_t n_chunks;
    size_t room;         /* pointers that fit into `many`, 0 while it is NULL */
    uint8_t **many;      /* the chunks, once they are more than N_FEW */
    uint8_t *few[N_FEW]; /* the chunks until then */
};

static struct memjournal *journal_of(sqlite3_file *f)
{
    return (struct memjournal *)f;
}

static uint8_t **chunks(struct memjournal *j)
{
    return j->many != NULL ? j->many : j->few;
}

static bool make_pointers(struct memjournal *j, size_t n)
{
    size_t room = j->room == 0 ? 64 : j->room;
    uint8_t **many;

    if (n <= (j->many != NULL ? j->room : N_FEW)) {
        return true;
    }
    while (room < n) {
        room *= 2;
    }
    many = realloc(j->many, room * sizeof *many);
    if (many == NULL) {
        return false;
    }
    if (j->many == NULL) {
        memcpy(many, j->few, sizeof j->few);
    }
    j->many = many;
    j->room = room;
    return true;
}

/* Make sure that there are chunks for `size` bytes. What was made before a failure stays, to no harm. */
static int reserve(struct memjournal *j, sqlite3_int64 size)
{
    size_t n = ((size_t)size + CHUNK - 1) / CHUNK;

    if (n <= j->n_chunks) {
        return SQLITE_OK;
    }
    if (!make_pointers(j, n)) {
        return SQLITE_IOERR_NOMEM;
    }
    while (j->n_chunks < n) {
        uint8_t *chunk = malloc(CHUNK);

        if (chunk == NULL) {
            return SQLITE_IOERR_NOMEM;
        }
        chunks(j)[j->n_chunks++] = chunk;
    }
    return SQLITE_OK;
}

static void release(struct memjournal *j, size_t keep)
{
    while (j->n_chunks > keep) {
        free(chunks(j)[--j->n_chunks]);
    }
}

/* The bytes at `offset` that lie in one chunk, at most n; *here is their number. */
static uint8_t *piece(struct memjournal *j, sqlite3_int64 offset, size_t n, size_t *here)
{
    size_t at = (size_t)offset % CHUNK;

    *here = n < CHUNK - at ? n : CHUNK - at;
    return chunks(j)[(size_t)offset / CHUNK] + at;
}

/* Make the file larger, with zeros. There are chunks for it. */
static void grow(struct memjournal *j, sqlite3_int64 size)
{
    while (j->size < size) {
        size_t here;
        uint8_t *p = piece(j, j->size, (size_t)(size - j->size), &here);

        memset(p, 0, here);
        j->size += (sqlite3_int64)here;
    }
}

static int j_close(sqlite3_file *f)
{
    struct memjournal *j = journal_of(f);

    release(j, 0);
    free(j->many);
    j->many = NULL;
    j->room = 0;
    j->size = 0;
    return SQLITE_OK;
}

static int j_read(sqlite3_file *f, void *buf, int n, sqlite3_int64 offset)
{
    struct memjournal *j = journal_of(f);
    uint8_t *out = buf;
    size_t left, want = n > 0 ? (size_t)n : 0;

    if (n < 0 || offset < 0) {
        return SQLITE_IOERR_READ;
    }
    left = offset >= j->size ? 0 : (size_t)(j->size - offset);
    left = left < want ? left : want;
    memset(out + left, 0, want - left);
    for (size_t done = 0; done < left;) {
        size_t here;
        const uint8_t *p = piece(j, offset + (sqlite3_int64)done, left - done, &here);

        memcpy(out + done, p, here);
        done += here;
    }
    return left == want ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int j_write(sqlite3_file *f, const void *buf, int n, sqlite3_int64 offset)
{
    struct memjournal *j = journal_of(f);
    const uint8_t *in = buf;
    int rc;

    if (n < 0 || offset < 0) {
        return SQLITE_IOERR_WRITE;
    }
    if (offset > MEMJOURNAL_MAX - n) {
        return SQLITE_FULL;
    }
    rc = reserve(j, offset + n);
    if (rc != SQLITE_OK) {
        return rc;
    }
    if (n > 0) {
        grow(j, offset);
    }
    for (size_t done = 0; done < (size_t)n;) {
        size_t here;
        uint8_t *p = piece(j, offset + (sqlite3_int64)done, (size_t)n - done, &here);

        memcpy(p, in + done, here);
        done += here;
    }
    if (n > 0 && offset + n > j->size) {
        j->size = offset + n;
    }
    return SQLITE_OK;
}

static int j_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    struct memjournal *j = journal_of(f);
    int rc;

    if (size < 0) {
        return SQLITE_IOERR_TRUNCATE;
    }
    if (size > MEMJOURNAL_MAX) {
        return SQLITE_FULL;
    }
    if (size > j->size) {
        rc = reserve(j, size);
        if (rc == SQLITE_OK) {
            grow(j, size);
        }
        return rc;
    }
    j->size = size;
    release(j, size == 0 ? 1 : ((size_t)size + CHUNK - 1) / CHUNK);
    return SQLITE_OK;
}

static int j_sync(sqlite3_file *f, int flags)
{
    (void)f;
    (void)flags;
    return SQLITE_OK;
}

static int j_file_size(sqlite3_file *f, sqlite3_int64 *size)
{
    *size = journal_of(f)->size;
    return SQLITE_OK;
}

static int j_lock(sqlite3_file *f, int level)
{
    (void)f;
    (void)level;
    return SQLITE_OK;
}

static int j_check_reserved_lock(sqlite3_file *f, int *held)
{
    (void)f;
    *held = 0;
    return SQLITE_OK;
}

static int j_file_control(sqlite3_file *f, int op, void *arg)
{
    (void)f;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int j_sector_size(sqlite3_file *f)
{
    (void)f;
    return 512;
}

static int j_device_characteristics(sqlite3_file *f)
{
    (void)f;
    return 0;
}

int memjournal_size(void)
{
    return (int)sizeof(struct memjournal);
}

int memjournal_open(sqlite3_file *f)
{
    static const struct sqlite3_io_methods methods = {
        .iVersion = 1,
        .xClose = j_close,
        .xRead = j_read,
        .xWrite = j_write,
        .xTruncate = j_truncate,
        .xSync = j_sync,
        .xFileSize = j_file_size,
        .xLock = j_lock,
        .xUnlock = j_lock,
        .xCheckReservedLock = j_check_reserved_lock,
        .xFileControl = j_file_control,
        .xSectorSize = j_sector_size,
        .xDeviceCharacteristics = j_device_characteristics,
    };

    memset(f, 0, sizeof(struct memjournal));
    f->pMethods = &methods;
    return SQLITE_OK;
}
