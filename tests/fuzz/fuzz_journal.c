/* vfs/playback by way of checkpoint_recover: a journal of any content beside a database, in a VFS in memory.
 *
 * The input: flags, the call that fails, the size of the database in units of 256 bytes, a byte that fills it, and the
 * journal. The upper two bits of the second byte: 2: instead of failing, somebody deletes the journal meanwhile; 3:
 * somebody makes it a hot one, or a cold one; both only while our lock allows it. Flags:
 *     1  the journal's magic, sizes and the checksums of its records are put right
 *     2  a super-journal, whatever it is called, exists
 *     4  somebody holds a RESERVED lock
 *     8  there is no database
 *    16  one call fails, and with 32 all from there on: the recovery may fail, and is then repeated without failures
 *    64  the VFS has words for its failures; 128: an errno
 *
 * What the database must hold in the end is computed here a second time (model_play), by SQLite's documentation of the
 * format: https://www.sqlite.org/fileformat2.html#the_rollback_journal. Whatever happens: nothing is written without
 * the EXCLUSIVE lock and before the journal is flushed, the journal is deleted only when the database is flushed, and
 * every file is closed again. */
#include <errno.h>
#include <sqlite3.h>

#include "tests/fuzz/fuzz.h"
#include "vfs/checkpoint.h"

#define ROOM (160u << 10) /* the disk is full beyond it */
#define DB_PATH "/m/db"
#define JRNL_PATH "/m/db-journal"
#define PATH_LONGEST 64

enum kind { VANISH = 2, TURN = 3 };
enum flags { RIGHT = 1, SUPER = 2, RESERVED = 4, NO_DB = 8, FAIL = 16, FAIL_ON = 32, WORDS = 64, ERRNO = 128 };

struct image {
    size_t len;
    bool full; /* it should have become longer than there is room */
    uint8_t b[ROOM];
};

struct disk {
    struct image db;
    uint8_t *jrnl;
    size_t jrnl_len;
    bool jrnl_there, jrnl_flushed, db_flushed;
    unsigned flags;
    int lock, n_open;
    int calls, fail_at; /* 0: none */
    unsigned kind;      /* of what happens then */
    bool failed, touched;
};

struct memfile {
    sqlite3_file base;
    bool is_db;
};

static struct disk disk;
static struct image wanted;
static size_t old_len;
static unsigned old_fill;

static const uint8_t magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

static uint32_t be_get(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void be_put(uint8_t *p, uint32_t v)
{
    le_put(p, __builtin_bswap32(v), 4);
}

/* ---- images ---- */

static void image_resize(struct image *im, uint64_t len)
{
    if (len > ROOM) {
        im->full = true;
    } else {
        if (len > im->len) {
            memset(im->b + im->len, 0, len - im->len);
        }
        im->len = len;
    }
}

/* What the database holds at first. */
static void fill(struct image *im)
{
    im->len = old_len;
    for (size_t i = 0; i < im->len; i += 256) {
        memset(im->b + i, (int)(old_fill + i / 256), 256);
    }
}

static void image_write(struct image *im, uint64_t at, const void *data, size_t n)
{
    if (at + n > im->len) {
        image_resize(im, at + n);
    }
    if (at + n <= im->len) {
        memcpy(im->b + at, data, n);
    }
}

static bool image_same(const struct image *a, const struct image *b)
{
    return a->len == b->len && memcmp(a->b, b->b, a->len) == 0;
}

/* The file was to be lengthened by a page of zeros, and the machine stopped within that write. The next playback, ours
 * as SQLite's, leaves a file alone that lacks less than a page: what is missing reads as zeros, and is written if its
 * record is in the journal. */
static void image_complete(struct image *im, const struct image *want, uint32_t page_size)
{
    if (im->len < want->len && want->len - im->len < page_size && all_are(want->b + im->len, 0, want->len - im->len)) {
        image_resize(im, want->len);
    }
}

/* ---- the VFS ---- */

static bool fails(void)
{
    disk.calls++;
    if (disk.fail_at == 0 || disk.calls < disk.fail_at || (disk.calls > disk.fail_at && !(disk.flags & FAIL_ON))) {
        return false;
    }
    if (disk.kind == VANISH || disk.kind == TURN) {
        if (disk.jrnl_there && disk.lock <= SQLITE_LOCK_SHARED && disk.jrnl_len != 0 && !disk.touched) {
            disk.touched = true;
            disk.jrnl_there = disk.jrnl_there && disk.kind != VANISH;
            disk.jrnl[0] ^= disk.kind == TURN ? 0xd9 : 0;
        }
        return false;
    }
    disk.failed = true;
    return true;
}

static int mem_close(sqlite3_file *file)
{
    if (((struct memfile *)file)->is_db) {
        disk.lock = SQLITE_LOCK_NONE;
    }
    disk.n_open--;
    return SQLITE_OK;
}

static int mem_read(sqlite3_file *file, void *buf, int n, sqlite3_int64 at)
{
    bool is_db = ((struct memfile *)file)->is_db;
    const uint8_t *data = is_db ? disk.db.b : disk.jrnl;
    size_t len = is_db ? disk.db.len : disk.jrnl_len, have;

    check(n > 0 && at >= 0);
    check(disk.lock >= SQLITE_LOCK_SHARED);
    if (fails()) {
        return SQLITE_IOERR_READ;
    }
    have = (size_t)at >= len ? 0 : len - (size_t)at < (size_t)n ? len - (size_t)at : (size_t)n;
    if (have != 0) {
        memcpy(buf, data + at, have);
    }
    memset((uint8_t *)buf + have, 0, (size_t)n - have);
    return have < (size_t)n ? SQLITE_IOERR_SHORT_READ : SQLITE_OK;
}

/* The journal is never written by a recovery. */
static void check_change(const sqlite3_file *file)
{
    check(((const struct memfile *)file)->is_db && disk.lock == SQLITE_LOCK_EXCLUSIVE);
    check(disk.jrnl_there && disk.jrnl_flushed);
    disk.db_flushed = false;
}

static int mem_write(sqlite3_file *file, const void *data, int n, sqlite3_int64 at)
{
    check(n > 0 && at >= 0);
    check_change(file);
    if (fails()) {
        image_write(&disk.db, (uint64_t)at, data, (size_t)n / 3); /* a part of it is done */
        disk.db.full = false;
        return disk.calls % 2 ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    }
    image_write(&disk.db, (uint64_t)at, data, (size_t)n);
    return disk.db.full ? SQLITE_FULL : SQLITE_OK;
}

static int mem_truncate(sqlite3_file *file, sqlite3_int64 n)
{
    check(n >= 0 && (size_t)n < disk.db.len);
    check_change(file);
    if (fails()) {
        return SQLITE_IOERR_TRUNCATE;
    }
    disk.db.len = (size_t)n;
    return SQLITE_OK;
}

static int mem_sync(sqlite3_file *file, int flags)
{
    (void)flags;
    if (fails()) {
        return SQLITE_IOERR_FSYNC;
    }
    if (((struct memfile *)file)->is_db) {
        disk.db_flushed = true;
    } else {
        disk.jrnl_flushed = true;
    }
    return SQLITE_OK;
}

static int mem_size(sqlite3_file *file, sqlite3_int64 *n)
{
    *n = (sqlite3_int64)(((struct memfile *)file)->is_db ? disk.db.len : disk.jrnl_len);
    return fails() ? SQLITE_IOERR_FSTAT : SQLITE_OK;
}

static int mem_lock(sqlite3_file *file, int level)
{
    check(((struct memfile *)file)->is_db && level > disk.lock && level != SQLITE_LOCK_PENDING);
    check(disk.lock != SQLITE_LOCK_NONE || level == SQLITE_LOCK_SHARED);
    if (fails()) {
        return disk.calls % 2 ? SQLITE_BUSY : SQLITE_IOERR_LOCK;
    }
    disk.lock = level;
    return SQLITE_OK;
}

static int mem_unlock(sqlite3_file *file, int level)
{
    check(((struct memfile *)file)->is_db && level <= SQLITE_LOCK_SHARED);
    if (fails()) {
        return SQLITE_IOERR_UNLOCK;
    }
    disk.lock = level < disk.lock ? level : disk.lock;
    return SQLITE_OK;
}

static int mem_reserved(sqlite3_file *file, int *out)
{
    (void)file;
    *out = (disk.flags & RESERVED) != 0;
    return fails() ? SQLITE_IOERR_CHECKRESERVEDLOCK : SQLITE_OK;
}

static int mem_control(sqlite3_file *file, int op, void *arg)
{
    (void)file;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static int mem_zero(sqlite3_file *file)
{
    (void)file;
    return 0;
}

static const sqlite3_io_methods methods = {.iVersion = 1,
    .xClose = mem_close,
    .xRead = mem_read,
    .xWrite = mem_write,
    .xTruncate = mem_truncate,
    .xSync = mem_sync,
    .xFileSize = mem_size,
    .xLock = mem_lock,
    .xUnlock = mem_unlock,
    .xCheckReservedLock = mem_reserved,
    .xFileControl = mem_control,
    .xSectorSize = mem_zero,
    .xDeviceCharacteristics = mem_zero};

/* As the unix VFS has it: an empty file is none. */
static bool exists(const char *path)
{
    if (strcmp(path, DB_PATH) == 0) {
        return !(disk.flags & NO_DB) && disk.db.len != 0;
    }
    if (strcmp(path, JRNL_PATH) == 0) {
        return disk.jrnl_there && disk.jrnl_len != 0;
    }
    return (disk.flags & SUPER) != 0;
}

static int mem_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *out)
{
    struct memfile *f = (struct memfile *)file;
    bool is_db = strcmp(path, DB_PATH) == 0;

    (void)vfs;
    check(is_db || strcmp(path, JRNL_PATH) == 0);
    check(!(flags & SQLITE_OPEN_CREATE));
    check((flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_MAIN_JOURNAL)) ==
          (is_db ? SQLITE_OPEN_MAIN_DB : SQLITE_OPEN_MAIN_JOURNAL));
    f->base.pMethods = NULL;
    if (is_db ? (disk.flags & NO_DB) != 0 : !disk.jrnl_there) {
        return SQLITE_CANTOPEN;
    }
    if (fails()) {
        if (disk.calls % 3 != 0 || !(flags & SQLITE_OPEN_READWRITE)) {
            return disk.calls % 2 ? SQLITE_CANTOPEN : SQLITE_IOERR_NOMEM;
        }
        *out = SQLITE_OPEN_READONLY; /* no permission to write */
    }
    *f = (struct memfile){.base = {&methods}, .is_db = is_db};
    disk.n_open++;
    return SQLITE_OK;
}

static int mem_delete(sqlite3_vfs *vfs, const char *path, int sync_dir)
{
    (void)vfs;
    check(strcmp(path, JRNL_PATH) == 0 && sync_dir && disk.db_flushed && disk.lock >= SQLITE_LOCK_RESERVED);
    if (fails()) {
        return disk.calls % 2 ? SQLITE_IOERR_DELETE : SQLITE_READONLY;
    }
    if (!disk.jrnl_there) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    disk.jrnl_there = false;
    return SQLITE_OK;
}

static int mem_access(sqlite3_vfs *vfs, const char *path, int what, int *out)
{
    (void)vfs;
    check(what == SQLITE_ACCESS_EXISTS);
    check(strncmp(path, DB_PATH, strlen(DB_PATH)) == 0 || all_are(path - 4, 0, 4));
    *out = exists(path);
    return fails() ? SQLITE_IOERR_ACCESS : SQLITE_OK;
}

static int mem_last_error(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    snprintf(out, (size_t)n, "%s", disk.flags & WORDS ? "the disk is tired" : "");
    return disk.flags & ERRNO ? (disk.calls % 2 ? ENOSPC : EACCES) : 0;
}

static sqlite3_vfs vfs = {.iVersion = 1,
    .szOsFile = sizeof(struct memfile),
    .mxPathname = PATH_LONGEST,
    .zName = "mem",
    .xOpen = mem_open,
    .xDelete = mem_delete,
    .xAccess = mem_access,
    .xGetLastError = mem_last_error};

/* ---- the model ---- */

static bool power_of_two_in(uint32_t v, uint32_t min, uint32_t max)
{
    return v >= min && v <= max && (v & (v - 1)) == 0;
}

static uint32_t page_sum(uint32_t nonce, const uint8_t *page, uint32_t size)
{
    for (uint32_t i = size - 200; i > 0 && i < size; i -= 200) {
        nonce += page[i];
    }
    return nonce;
}

/* The journal belongs to a super-journal that is gone. */
static bool super_gone(const uint8_t *j, size_t len)
{
    char name[PATH_LONGEST + 1];
    uint32_t n, sum = 0;

    if (len < 16 || memcmp(j + len - 8, magic, 8) != 0) {
        return false;
    }
    n = be_get(j + len - 16);
    if (n == 0 || n > PATH_LONGEST || n > len - 16 || j[len - 16 - n] == 0) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        name[i] = (char)j[len - 16 - n + i];
        sum += (uint32_t)(int32_t)(signed char)name[i];
    }
    name[n] = '\0';
    return sum == be_get(j + len - 12) && !exists(name);
}

/* Walk through the journal as a reader does. With fix, put the records' checksums right; else play into db. */
static void walk(uint8_t *j, size_t len, struct image *db, bool fix)
{
    uint32_t sector = 0, size = 0, n_pages = 0;

    for (size_t at = 0, head = 0;; head = (at + sector - 1) / sector * sector) {
        uint32_t count, nonce;

        if (head + (head == 0 ? 28 : sector) > len || memcmp(j + head, magic, 8) != 0) {
            return;
        }
        if (head == 0) {
            sector = be_get(j + 20);
            size = be_get(j + 24);
            n_pages = be_get(j + 16);
            if (!power_of_two_in(sector, 32, 65536) || !power_of_two_in(size, 512, 65536) || sector > len) {
                return;
            }
            if (!fix && (db->len > (uint64_t)n_pages * size || db->len + size <= (uint64_t)n_pages * size)) {
                image_resize(db, (uint64_t)n_pages * size);
            }
        }
        count = be_get(j + head + 8);
        nonce = be_get(j + head + 12);
        at = head + sector;
        if (count == UINT32_MAX) {
            count = (uint32_t)((len - at) / (size + 8));
        }
        for (; count > 0; count--, at += size + 8) {
            uint32_t pgno;

            if (at + size + 8 > len) {
                return;
            }
            pgno = be_get(j + at);
            if (fix) {
                be_put(j + at + 4 + size, page_sum(nonce, j + at + 4, size));
            }
            if (pgno == 0 || (uint64_t)(pgno - 1) * size == 0x40000000) {
                return;
            }
            if (pgno <= n_pages) {
                if (be_get(j + at + 4 + size) != page_sum(nonce, j + at + 4, size)) {
                    return;
                }
                if (!fix) {
                    image_write(db, (uint64_t)(pgno - 1) * size, j + at + 4, size);
                }
            }
        }
    }
}

/* What recovery must make of `wanted`. Returns whether the journal is gone then. */
static bool model_play(uint8_t *j, size_t len)
{
    if (len == 0 || disk.flags & (NO_DB | RESERVED)) {
        return false;
    }
    if (wanted.len != 0 && j[0] != 0 && !super_gone(j, len)) {
        walk(j, len, &wanted, false);
    }
    return true;
}

/* ---- a run ---- */

static void put_right(uint8_t *j, size_t len)
{
    if (len >= 28) {
        memcpy(j, magic, 8);
        if (!power_of_two_in(be_get(j + 20), 32, 4096)) {
            be_put(j + 20, 32u << j[23] % 6);
        }
        if (!power_of_two_in(be_get(j + 24), 512, 65536)) {
            be_put(j + 24, 512u << j[27] % 3);
        }
        walk(j, len, NULL, true);
    }
}

static int recover(void)
{
    struct err e;
    int rv;

    disk.calls = 0;
    disk.failed = false;
    err_clear(&e);
    rv = checkpoint_recover(&vfs, DB_PATH, &e);
    check_err(&e, rv);
    check(disk.n_open == 0 && disk.lock == SQLITE_LOCK_NONE);
    return rv;
}

static void check_settled(int rv, bool journal_gone)
{
    if (wanted.full) {
        check(rv == DUST_FULL && disk.jrnl_there);
        return;
    }
    if (rv == DUST_BUSY) {
        check(disk.flags & RESERVED && disk.jrnl_len != 0);
    } else {
        check(rv == DUST_OK);
    }
    if (wanted.len != 0 || !disk.failed) { /* an empty database that cannot be opened counts as none */
        check(disk.jrnl_there == !journal_gone);
    }
    check(image_same(&disk.db, &wanted));
}

/* Somebody else was at it. If the journal is gone that one has settled it, and we leave the database alone. */
static void check_touched(int rv)
{
    check(rv == DUST_OK || rv == DUST_BUSY || (rv == DUST_FULL && disk.db.full));
    if (disk.kind == VANISH || rv == DUST_BUSY) {
        fill(&wanted);
        check(image_same(&disk.db, &wanted));
    }
}

static void init(struct input *in)
{
    disk.flags = (unsigned)input_number(in, 1);
    disk.fail_at = (int)input_number(in, 1);
    disk.kind = (unsigned)disk.fail_at >> 6;
    disk.fail_at = disk.flags & FAIL ? disk.fail_at % 64 + 1 : 0;
    disk.touched = false;
    old_len = input_number(in, 1) * 256;
    old_fill = (unsigned)input_number(in, 1);
    disk.db.full = wanted.full = disk.jrnl_flushed = false;
    disk.db_flushed = disk.jrnl_there = true;
    disk.lock = disk.n_open = 0;
    fill(&disk.db);
    fill(&wanted);
    disk.jrnl = exact_copy(in->p, in->left);
    disk.jrnl_len = in->left;
    if (disk.flags & RIGHT) {
        put_right(disk.jrnl, disk.jrnl_len);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    bool journal_gone;
    int rv;

    init(&in);
    journal_gone = model_play(disk.jrnl, disk.jrnl_len);
    rv = recover();
    if (disk.touched) {
        check_touched(rv);
        free(disk.jrnl);
        return 0;
    }
    if (disk.failed && rv != DUST_OK && !disk.db.full) {
        disk.fail_at = 0; /* calling again is harmless */
        disk.jrnl_flushed = false;
        rv = recover();
        image_complete(&disk.db, &wanted, disk.jrnl_len >= 28 ? be_get(disk.jrnl + 24) : 0);
    }
    check_settled(rv, journal_gone);
    free(disk.jrnl);
    return 0;
}
