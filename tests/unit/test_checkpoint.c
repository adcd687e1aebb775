/* Tests of vfs/checkpoint: folds on real databases through the real VFS, and crashes at every call through a
 * file system in memory that knows what is flushed and what is not.
 *
 * The file system in memory has one database and its journal. Each file has a live content and a durable one,
 * with the writes and truncations in between; the directory the same. A fault plan names a call by its
 * number: it fails once, or it and all after it fail, or the machine stops there. After a stop the test takes
 * the live content (the process died) or the durable one with any part of what was not flushed, in any torn
 * form (the power went), writes it to real files, and lets plain SQLite and checkpoint_recover() open them.
 */
#undef NDEBUG
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "vfs/checkpoint.h"
#include "vfs/mark.h"

/* ---- small things ---- */

struct bytes {
    uint8_t *b;
    int64_t n;
    bool exists;
};

static uint64_t rng_state = 88172645463325252u;

static uint32_t rnd(uint32_t below)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (uint32_t)(rng_state >> 32) % below;
}

static char dir[64];

/* The path of a file in the test's folder; the same memory for the same name, for good. */
static const char *in_dir(const char *name)
{
    static char paths[32][160];
    char path[160];
    int i = 0;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    while (paths[i][0] != '\0' && strcmp(paths[i], path) != 0) {
        assert_true(++i < 32);
    }
    return strcpy(paths[i], path);
}

static struct bytes slurp(const char *path)
{
    struct bytes r = {0};
    FILE *f = fopen(path, "rb");

    if (f == NULL) {
        return r;
    }
    fseek(f, 0, SEEK_END);
    r.n = ftell(f);
    rewind(f);
    r.b = malloc((size_t)r.n + 1);
    r.exists = true;
    assert_int_equal(fread(r.b, 1, (size_t)r.n, f), r.n);
    fclose(f);
    return r;
}

/* A journal that SQLite, and we, take for none: not there, or empty. */
static void assert_no_journal(const char *journal)
{
    struct stat st;

    assert_true(stat(journal, &st) != 0 || st.st_size == 0);
}

static void spill(const char *path, const struct bytes *c)
{
    FILE *f;

    unlink(path);
    if (!c->exists) {
        return;
    }
    f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(c->b, 1, (size_t)c->n, f), c->n);
    assert_int_equal(fclose(f), 0);
}

static bool same(const struct bytes *a, const struct bytes *b)
{
    return a->exists == b->exists && a->n == b->n && (a->n == 0 || memcmp(a->b, b->b, (size_t)a->n) == 0);
}

static struct bytes copy_of(const struct bytes *a)
{
    struct bytes r = *a;

    r.b = malloc((size_t)a->n + 1);
    if (a->n > 0) {
        memcpy(r.b, a->b, (size_t)a->n);
    }
    return r;
}

static struct vid id_of(uint8_t c)
{
    struct vid id;

    memset(id.b, c, sizeof id.b);
    return id;
}

static void run(sqlite3 *db, const char *sql)
{
    char *msg = NULL;

    if (sqlite3_exec(db, sql, NULL, NULL, &msg) != SQLITE_OK) {
        fail_msg("%s: %s", sql, msg);
    }
}

static int64_t ask(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt;
    int64_t v = -1;

    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        v = sqlite3_column_int64(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return v;
}

static void assert_sound(sqlite3 *db)
{
    sqlite3_stmt *stmt;

    assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &stmt, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(stmt, 0), "ok");
    sqlite3_finalize(stmt);
}

static sqlite3 *open_plain(const char *path)
{
    sqlite3 *db;

    assert_int_equal(
        sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "unix"), SQLITE_OK);
    return db;
}

/* A database with some tables, indexes and overflow pages, about `rows` / 4 KiB large. */
static struct bytes make_db(int page_size, int rows)
{
    const char *path = in_dir("make.db");
    struct bytes r;
    char sql[400];
    sqlite3 *db;

    unlink(path);
    db = open_plain(path);
    snprintf(sql, sizeof sql,
        "PRAGMA synchronous=OFF; PRAGMA page_size=%d; CREATE TABLE t(a INTEGER PRIMARY KEY, b, c); "
        "CREATE INDEX i ON t(b); WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x<%d) "
        "INSERT INTO t SELECT x, hex(randomblob(16)), zeroblob(x %% 7 * 60) || randomblob(60) FROM n",
        page_size, rows);
    run(db, sql);
    sqlite3_close(db);
    r = slurp(path);
    unlink(path);
    return r;
}

static struct bytes change_db(const struct bytes *old, const char *sql)
{
    const char *path = in_dir("change.db");
    struct bytes r;
    sqlite3 *db;

    spill(path, old);
    db = open_plain(path);
    run(db, "PRAGMA synchronous=OFF");
    run(db, sql);
    sqlite3_close(db);
    r = slurp(path);
    unlink(path);
    return r;
}

/* ---- a source over two images ---- */

struct images {
    struct fold_source src;
    const struct bytes *from, *to; /* from may be NULL: every page */
    uint32_t pos;
    int n_rewinds, n_before;
    int fail_pass;       /* 1 or 2: next() fails halfway in that pass */
    uint32_t skip_later; /* leave this page out in the second pass */
    uint32_t more_later; /* and give this one */
    uint32_t first;      /* start with this page number */
    bool without_page1;
    bool (*on_busy)(void *arg);
    void *busy_arg;
    int n_places, moved_at; /* how often it was asked; when the answer is that the file is another one */
    uint8_t page[65536]; /* handed out, and spoilt at the next call */
};

static int images_next(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    struct images *im = ctx;
    uint32_t ps = im->src.page_size;

    memset(im->page, 0xdb, ps);
    while (im->pos < im->src.n_pages_after || (im->first != 0 && im->pos == 0)) {
        int64_t off = (int64_t)im->pos * ps;
        bool give;

        im->pos++;
        if (im->pos == 0x40000000 / ps + 1) {
            continue;
        }
        give =
            im->from == NULL || off + ps > im->from->n || memcmp(im->from->b + off, im->to->b + off, ps) != 0;
        if (im->n_rewinds > 0 && (im->pos == im->skip_later || im->pos == im->more_later)) {
            give = im->pos == im->more_later;
        }
        if (!give || (im->pos == 1 && im->without_page1)) {
            continue;
        }
        if (im->fail_pass == im->n_rewinds + 1 && im->pos > im->src.n_pages_after / 2) {
            return err_set(e, DUST_NOMEM, "source failed");
        }
        memcpy(im->page, im->to->b + off, ps);
        *pgno = im->pos;
        *page = im->page;
        return DUST_OK;
    }
    *pgno = 0;
    return DUST_OK;
}

static int images_rewind(void *ctx, struct err *e)
{
    struct images *im = ctx;

    (void)e;
    im->pos = 0;
    im->n_rewinds++;
    return DUST_OK;
}

static void images_before(void *ctx)
{
    ((struct images *)ctx)->n_before++;
}

static bool images_busy(void *ctx, int tries)
{
    struct images *im = ctx;

    return tries < 3 && im->on_busy != NULL && im->on_busy(im->busy_arg);
}

static int images_in_place(void *ctx, struct err *e)
{
    struct images *im = ctx;

    return ++im->n_places == im->moved_at ? err_set(e, DUST_MOVED, "moved away") : DUST_OK;
}

static struct images *images_new(const struct bytes *from, const struct bytes *to, const struct vid *id)
{
    struct images *im = calloc(1, sizeof *im);
    uint32_t ps = header_page_size(to->b);

    im->from = from != NULL && from->n > 0 && header_page_size(from->b) == ps ? from : NULL;
    im->to = to;
    im->src = (struct fold_source){.ctx = im,
        .page_size = ps,
        .n_pages_after = (uint32_t)(to->n / ps),
        .marked = id != NULL,
        .next = images_next,
        .rewind = images_rewind,
        .before_write = images_before,
        .in_place = images_in_place,
        .busy = images_busy};
    if (id != NULL) {
        im->src.id = *id;
    }
    return im;
}

/* ---- the file system in memory ---- */

enum { DB, JRNL, N_FILES };
enum plan { PLAN_NONE, PLAN_ONCE, PLAN_ON, PLAN_CRASH };

struct op {
    bool truncate;
    int64_t off;
    int n;
    uint8_t *data;
};

struct inode {
    struct bytes live, durable;
    struct op ops[600]; /* since the last flush */
    int n_ops;
};

struct memfs {
    sqlite3_vfs vfs;
    struct inode *inodes[16];
    int n_inodes;
    struct inode *dir[N_FILES], *durable_dir[N_FILES];
    struct {
        int which;
        struct inode *ino;
    } dir_ops[16];
    int n_dir_ops;
    int lock;
    int sector;
    bool powersafe;
    enum plan plan;
    int at, calls;
    bool down, hit;
    const char *hit_name;
    int n_db_writes;
    char path[80];
};

struct memfile {
    sqlite3_file base;
    struct memfs *fs;
    struct inode *ino;
    int which;
    bool sync_dir;
};

static void put(struct bytes *c, int64_t off, const void *data, int64_t n)
{
    if (off + n > c->n) {
        c->b = realloc(c->b, (size_t)(off + n) + 1);
        memset(c->b + c->n, 0, (size_t)(off + n - c->n));
        c->n = off + n;
    }
    memcpy(c->b + off, data, (size_t)n);
}

static void cut(struct bytes *c, int64_t n)
{
    if (n < c->n) {
        c->n = n;
    } else if (n > c->n) {
        put(c, n - 1, "", 1);
    }
}

/* Count a call. Returns true if it fails by the plan. */
static bool fault(struct memfs *fs, const char *name)
{
    if (fs->down) {
        return true;
    }
    if (++fs->calls != fs->at || fs->plan == PLAN_NONE) {
        return false;
    }
    fs->hit = true;
    fs->hit_name = name;
    fs->down = fs->plan != PLAN_ONCE;
    return true;
}

static struct op *add_op(struct inode *ino)
{
    assert_true(ino->n_ops < (int)(sizeof ino->ops / sizeof *ino->ops));
    return &ino->ops[ino->n_ops++];
}

/* The database may change only under EXCLUSIVE, with a durable, finished journal; the journal is declared
 * finished (its magic is written) only when what is in it is durable. */
static void check_change(struct memfile *f, const uint8_t *data, int64_t off)
{
    struct inode *j = f->fs->durable_dir[JRNL];

    assert_true(f->fs->lock >= SQLITE_LOCK_RESERVED);
    if (f->which == DB) {
        assert_int_equal(f->fs->lock, SQLITE_LOCK_EXCLUSIVE);
        assert_non_null(j);
        assert_ptr_equal(j, f->fs->dir[JRNL]);
        assert_int_equal(j->n_ops, 0);
        assert_true(j->durable.n >= 28 && j->durable.b[0] == 0xd9);
        f->fs->n_db_writes++;
    } else if (data != NULL && off == 0 && data[0] != 0) {
        assert_int_equal(f->ino->n_ops, 0);
        assert_ptr_equal(j, f->ino);
    }
}

static void mem_put(struct memfile *f, const void *data, int n, int64_t off)
{
    struct op *op;

    if (n > 0) {
        op = add_op(f->ino);
        *op = (struct op){.off = off, .n = n, .data = malloc((size_t)n)};
        memcpy(op->data, data, (size_t)n);
        put(&f->ino->live, off, data, n);
    }
}

static int mem_close(sqlite3_file *file)
{
    struct memfile *f = (struct memfile *)file;

    if (f->which == DB && !f->fs->down) {
        f->fs->lock = 0;
    }
    return SQLITE_OK;
}

static int mem_read(sqlite3_file *file, void *buf, int n, sqlite3_int64 off)
{
    struct memfile *f = (struct memfile *)file;
    int64_t have = f->ino->live.n - off;

    if (fault(f->fs, "read")) {
        return SQLITE_IOERR_READ;
    }
    assert_true(f->which == JRNL || f->fs->lock >= SQLITE_LOCK_SHARED);
    have = have < 0 ? 0 : have > n ? n : have;
    memcpy(buf, f->ino->live.b + (have > 0 ? off : 0), (size_t)have);
    memset((char *)buf + have, 0, (size_t)(n - have));
    return have < n ? SQLITE_IOERR_SHORT_READ : SQLITE_OK;
}

static int mem_write(sqlite3_file *file, const void *data, int n, sqlite3_int64 off)
{
    struct memfile *f = (struct memfile *)file;
    bool was_down = f->fs->down;

    if (fault(f->fs, "write")) {
        if (!was_down) { /* a part of it may be done */
            check_change(f, data, off);
            mem_put(f, data, (int)rnd((uint32_t)n), off);
        }
        return f->fs->at % 2 ? SQLITE_FULL : SQLITE_IOERR_WRITE;
    }
    check_change(f, data, off);
    mem_put(f, data, n, off);
    return SQLITE_OK;
}

static int mem_truncate(sqlite3_file *file, sqlite3_int64 n)
{
    struct memfile *f = (struct memfile *)file;

    if (fault(f->fs, "truncate")) {
        return SQLITE_IOERR_TRUNCATE;
    }
    check_change(f, NULL, n);
    *add_op(f->ino) = (struct op){.truncate = true, .off = n};
    cut(&f->ino->live, n);
    return SQLITE_OK;
}

static void flush(struct inode *ino)
{
    for (int i = 0; i < ino->n_ops; i++) {
        free(ino->ops[i].data);
    }
    ino->n_ops = 0;
    free(ino->durable.b);
    ino->durable = copy_of(&ino->live);
}

static void flush_dir(struct memfs *fs)
{
    memcpy(fs->durable_dir, fs->dir, sizeof fs->dir);
    fs->n_dir_ops = 0;
}

static int mem_sync(sqlite3_file *file, int flags)
{
    struct memfile *f = (struct memfile *)file;

    (void)flags;
    if (fault(f->fs, "sync")) {
        return SQLITE_IOERR_FSYNC;
    }
    flush(f->ino);
    if (f->sync_dir) {
        if (fault(f->fs, "dirsync")) {
            return SQLITE_IOERR_DIR_FSYNC;
        }
        flush_dir(f->fs);
        f->sync_dir = false;
    }
    return SQLITE_OK;
}

static int mem_size(sqlite3_file *file, sqlite3_int64 *n)
{
    struct memfile *f = (struct memfile *)file;

    if (fault(f->fs, "size")) {
        return SQLITE_IOERR_FSTAT;
    }
    *n = f->ino->live.n;
    return SQLITE_OK;
}

static int mem_lock(sqlite3_file *file, int level)
{
    struct memfs *fs = ((struct memfile *)file)->fs;

    if (fault(fs, "lock")) {
        return fs->at % 2 ? SQLITE_BUSY : SQLITE_IOERR_LOCK;
    }
    assert_true(level != SQLITE_LOCK_NONE && level != SQLITE_LOCK_PENDING && level > fs->lock);
    assert_true(fs->lock != SQLITE_LOCK_NONE || level == SQLITE_LOCK_SHARED);
    fs->lock = level;
    return SQLITE_OK;
}

static int mem_unlock(sqlite3_file *file, int level)
{
    struct memfs *fs = ((struct memfile *)file)->fs;

    if (fault(fs, "unlock")) {
        return SQLITE_IOERR_UNLOCK;
    }
    assert_true(level <= SQLITE_LOCK_SHARED);
    fs->lock = level < fs->lock ? level : fs->lock;
    return SQLITE_OK;
}

static int mem_reserved(sqlite3_file *file, int *out)
{
    struct memfs *fs = ((struct memfile *)file)->fs;

    if (fault(fs, "reserved")) {
        return SQLITE_IOERR_CHECKRESERVEDLOCK;
    }
    *out = fs->lock >= SQLITE_LOCK_RESERVED;
    return SQLITE_OK;
}

static int mem_sector(sqlite3_file *file)
{
    return ((struct memfile *)file)->fs->sector;
}

static int mem_features(sqlite3_file *file)
{
    return ((struct memfile *)file)->fs->powersafe ? SQLITE_IOCAP_POWERSAFE_OVERWRITE : 0;
}

static int mem_control(sqlite3_file *file, int op, void *arg)
{
    (void)file;
    (void)op;
    (void)arg;
    return SQLITE_NOTFOUND;
}

static const sqlite3_io_methods mem_methods = {.iVersion = 1,
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
    .xSectorSize = mem_sector,
    .xDeviceCharacteristics = mem_features};

static int which_of(struct memfs *fs, const char *path)
{
    size_t n = strlen(fs->path);

    assert_true(strncmp(path, fs->path, n) == 0);
    return path[n] == '\0' ? DB : strcmp(path + n, "-journal") == 0 ? JRNL : -1;
}

static struct inode *new_inode(struct memfs *fs)
{
    assert_true(fs->n_inodes < 16);
    return fs->inodes[fs->n_inodes++] = calloc(1, sizeof(struct inode));
}

static void dir_op(struct memfs *fs, int which, struct inode *ino)
{
    assert_true(fs->n_dir_ops < 16);
    fs->dir_ops[fs->n_dir_ops].which = which;
    fs->dir_ops[fs->n_dir_ops++].ino = ino;
    fs->dir[which] = ino;
}

static int mem_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *file, int flags, int *out)
{
    struct memfs *fs = vfs->pAppData;
    struct memfile *f = (struct memfile *)file;
    char want[100];
    int which = which_of(fs, path);

    file->pMethods = NULL;
    if (fault(fs, "open")) {
        return SQLITE_CANTOPEN;
    }
    /* the names must lie in memory as SQLite's own do */
    assert_string_equal(sqlite3_filename_database(path), fs->path);
    snprintf(want, sizeof want, "%s-journal", fs->path);
    assert_string_equal(sqlite3_filename_journal(path), want);
    snprintf(want, sizeof want, "%s-wal", fs->path);
    assert_string_equal(sqlite3_filename_wal(path), want);
    assert_null(sqlite3_uri_parameter(sqlite3_filename_database(path), "psow"));
    assert_true(which >= 0);
    assert_true((which == DB) == ((flags & SQLITE_OPEN_MAIN_DB) != 0));
    assert_true((which == JRNL) == ((flags & SQLITE_OPEN_MAIN_JOURNAL) != 0));
    if (fs->dir[which] == NULL) {
        if (!(flags & SQLITE_OPEN_CREATE)) {
            return SQLITE_CANTOPEN;
        }
        dir_op(fs, which, new_inode(fs));
        fs->dir[which]->live.exists = fs->dir[which]->durable.exists = true;
    }
    *f = (struct memfile){.base.pMethods = &mem_methods,
        .fs = fs,
        .ino = fs->dir[which],
        .which = which,
        .sync_dir = which == JRNL && (flags & SQLITE_OPEN_CREATE)};
    if (out != NULL) {
        *out = flags;
    }
    return SQLITE_OK;
}

static int mem_delete(sqlite3_vfs *vfs, const char *path, int sync_dir)
{
    struct memfs *fs = vfs->pAppData;
    bool was_down = fs->down;
    int which = which_of(fs, path);

    assert_int_equal(which, JRNL);
    if (fault(fs, "delete")) {
        if (!was_down && fs->dir[JRNL] != NULL && rnd(2)) { /* done, but not flushed */
            dir_op(fs, which, NULL);
            return SQLITE_IOERR_DIR_FSYNC;
        }
        return SQLITE_IOERR_DELETE;
    }
    assert_true(fs->lock >= SQLITE_LOCK_RESERVED);
    assert_int_equal(fs->dir[DB]->n_ops, 0); /* or the journal would still be needed */
    if (fs->dir[which] == NULL) {
        return SQLITE_IOERR_DELETE_NOENT;
    }
    dir_op(fs, which, NULL);
    if (sync_dir) {
        flush_dir(fs);
    }
    return SQLITE_OK;
}

static int mem_access(sqlite3_vfs *vfs, const char *path, int flags, int *out)
{
    struct memfs *fs = vfs->pAppData;
    int which = which_of(fs, path);

    assert_int_equal(flags, SQLITE_ACCESS_EXISTS);
    if (fault(fs, "access")) {
        return SQLITE_IOERR_ACCESS;
    }
    *out = which >= 0 && fs->dir[which] != NULL;
    return SQLITE_OK;
}

static int mem_random(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    for (int i = 0; i < n; i++) {
        out[i] = (char)rnd(256);
    }
    return n;
}

static int mem_error(sqlite3_vfs *vfs, int n, char *out)
{
    (void)vfs;
    snprintf(out, (size_t)n, "made up by the test");
    return 0;
}

static struct memfs *memfs_new(const struct bytes files[N_FILES], int sector, bool powersafe)
{
    struct memfs *fs = calloc(1, sizeof *fs);

    fs->vfs = (sqlite3_vfs){.iVersion = 1,
        .szOsFile = (int)sizeof(struct memfile),
        .mxPathname = 100,
        .zName = "mem",
        .pAppData = fs,
        .xOpen = mem_open,
        .xDelete = mem_delete,
        .xAccess = mem_access,
        .xRandomness = mem_random,
        .xGetLastError = mem_error};
    fs->sector = sector;
    fs->powersafe = powersafe;
    strcpy(fs->path, "/mem/app.db");
    for (int i = 0; i < N_FILES; i++) {
        if (files[i].exists) {
            fs->dir[i] = new_inode(fs);
            fs->dir[i]->live = copy_of(&files[i]);
            flush(fs->dir[i]);
        }
    }
    flush_dir(fs);
    return fs;
}

static void memfs_free(struct memfs *fs)
{
    for (int i = 0; i < fs->n_inodes; i++) {
        flush(fs->inodes[i]);
        free(fs->inodes[i]->live.b);
        free(fs->inodes[i]->durable.b);
        free(fs->inodes[i]);
    }
    free(fs);
}

/* One write as a power loss may leave it: each sector done, not done, or garbage; without powersafe overwrite
 * the garbage takes the whole sector. */
static void tear(const struct memfs *fs, struct bytes *c, const struct op *op)
{
    int64_t s = fs->powersafe ? 512 : fs->sector;

    for (int64_t at = op->off / s * s; at < op->off + op->n; at += s) {
        int64_t from = at > op->off ? at : op->off;
        int64_t to = at + s < op->off + op->n ? at + s : op->off + op->n;
        uint32_t fate = rnd(3);

        if (fate == 0) {
            continue;
        }
        put(c, from, op->data + (from - op->off), to - from);
        if (fate == 2) {
            from = fs->powersafe ? from : at;
            to = fs->powersafe ? to : at + s < c->n ? at + s : c->n;
            for (int64_t i = from; i < to; i++) {
                c->b[i] = (uint8_t)rnd(256);
            }
        }
    }
}

/* What is on the disk after a power loss. style 0: only what was flushed; 1: all, but names only as flushed;
 * 2: any subset; 3: any subset, torn. */
static void power_loss(const struct memfs *fs, int style, struct bytes out[N_FILES])
{
    struct inode *names[N_FILES];
    int n_dir = style == 0 || style == 1 ? 0 : (int)rnd((uint32_t)fs->n_dir_ops + 1);

    memcpy(names, fs->durable_dir, sizeof names);
    for (int i = 0; i < n_dir; i++) {
        names[fs->dir_ops[i].which] = fs->dir_ops[i].ino;
    }
    for (int i = 0; i < N_FILES; i++) {
        uint32_t odds = 1 + rnd(4);

        out[i] = (struct bytes){0};
        if (names[i] == NULL) {
            continue;
        }
        out[i] = copy_of(&names[i]->durable);
        out[i].exists = true;
        for (int k = 0; style > 0 && k < names[i]->n_ops; k++) {
            const struct op *op = &names[i]->ops[k];

            if (style >= 2 && rnd(5) < odds) {
                continue;
            }
            if (op->truncate) {
                cut(&out[i], op->off);
            } else if (style == 3) {
                tear(fs, &out[i], op);
            } else {
                put(&out[i], op->off, op->data, op->n);
            }
        }
    }
}

static void process_death(const struct memfs *fs, struct bytes out[N_FILES])
{
    for (int i = 0; i < N_FILES; i++) {
        out[i] = fs->dir[i] == NULL ? (struct bytes){0} : copy_of(&fs->dir[i]->live);
        out[i].exists = fs->dir[i] != NULL;
    }
}

static sqlite3_file *open_base(sqlite3_vfs *vfs, const char *path)
{
    char *names = calloc(1, 4 + strlen(path) * 3 + 40); /* as pair_init() lays them out; leaked to the file */
    sqlite3_file *file = calloc(1, (size_t)vfs->szOsFile + sizeof names);
    char *s = names + 4;
    int out;

    s += sprintf(s, "%s", path) + 2;
    s += sprintf(s, "%s-journal", path) + 1;
    sprintf(s, "%s-wal", path);
    assert_int_equal(vfs->xOpen(vfs, names + 4, file,
                         SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_MAIN_DB, &out),
        SQLITE_OK);
    memcpy((char *)file + vfs->szOsFile, &names, sizeof names);
    return file;
}

static void close_base(sqlite3_vfs *vfs, sqlite3_file *file)
{
    char *names;

    memcpy(&names, (char *)file + vfs->szOsFile, sizeof names);
    file->pMethods->xClose(file);
    free(names);
    free(file);
}

/* ---- the crash loops ---- */

static sqlite3_vfs *unix_vfs;
static long n_points, n_states, n_hot, n_shell, n_old_seen, n_new_seen;

enum { MAY_OLD = 1, MAY_NEW = 2 };

static void judge(const char *who, const char *path, const struct bytes *old, const struct bytes *new,
    int may, const char *where, int at)
{
    struct bytes got = slurp(path);
    int is = (same(&got, old) ? MAY_OLD : 0) | (same(&got, new) ? MAY_NEW : 0);

    if (!(is & may)) {
        fail_msg("%s finds %s after %s, call %d (%ld bytes; old %ld, new %ld)", who,
            is == MAY_OLD   ? "the old content"
            : is == MAY_NEW ? "the new content"
                            : "a mixture",
            where, at, (long)got.n, (long)old->n, (long)new->n);
    }
    n_old_seen += is == MAY_OLD;
    n_new_seen += is == MAY_NEW;
    free(got.b);
}

/* Let plain SQLite, checkpoint_recover() and now and then the shell open the state; each must find old or
 * new. */
static void verify(const struct bytes files[N_FILES], const struct bytes *old, const struct bytes *new,
    int may, const char *where, int at)
{
    char path[160], journal[170], cmd[300], answer[64] = "";
    struct err e = {0};
    sqlite3 *db;
    FILE *f;

    snprintf(path, sizeof path, "%s", in_dir("app.db"));
    snprintf(journal, sizeof journal, "%s-journal", path);
    n_states++;
    n_hot += files[JRNL].exists && files[JRNL].n > 0 && files[JRNL].b[0] == 0xd9;

    spill(path, &files[DB]);
    spill(journal, &files[JRNL]);
    if (checkpoint_recover(unix_vfs, path, &e) != DUST_OK) {
        fail_msg("recover after %s, call %d: %s", where, at, e.text);
    }
    judge("checkpoint_recover", path, old, new, may, where, at);
    assert_no_journal(journal);

    spill(path, &files[DB]);
    spill(journal, &files[JRNL]);
    if (n_states % 50 == 0 && files[DB].n > 0) {
        n_shell++;
        snprintf(cmd, sizeof cmd, "sqlite3 %s 'pragma integrity_check'", path);
        f = popen(cmd, "r");
        assert_non_null(f);
        assert_non_null(fgets(answer, sizeof answer, f));
        assert_string_equal(answer, "ok\n");
        assert_int_equal(pclose(f), 0);
        judge("the sqlite3 shell", path, old, new, may, where, at);
    } else {
        db = open_plain(path);
        assert_sound(db);
        sqlite3_close(db);
        judge("plain SQLite", path, old, new, may, where, at);
    }
    unlink(path);
    unlink(journal);
}

static void free_files(struct bytes files[N_FILES])
{
    free(files[DB].b);
    free(files[JRNL].b);
}

/* Stop recovery itself at every call, in the same ways. */
static void crash_recovery(const struct bytes state[N_FILES], const struct bytes *old,
    const struct bytes *new, int sector, bool powersafe)
{
    for (int plan = PLAN_ONCE; plan <= PLAN_CRASH; plan++) {
        bool hit = true;

        for (int at = 1; hit; at++) {
            struct memfs *fs = memfs_new(state, sector, powersafe);
            struct bytes left[N_FILES];
            int rv;

            fs->plan = (enum plan)plan;
            fs->at = at;
            rv = checkpoint_recover(&fs->vfs, fs->path, NULL);
            hit = fs->hit;
            n_points++;
            assert_true(hit || rv == DUST_OK);
            process_death(fs, left);
            verify(left, old, new, MAY_OLD, "recovery", at);
            free_files(left);
            for (int style = 0; style < 4; style++) {
                power_loss(fs, style, left);
                verify(left, old, new, MAY_OLD, "recovery and power loss", at);
                free_files(left);
            }
            memfs_free(fs);
        }
    }
}

/* Fold old to new with each call failing in each way. `supplied` is new before it is marked. */
static void crash_fold(const char *name, const struct bytes *old, const struct bytes *supplied, int sector,
    bool powersafe, int rounds)
{
    struct vid id = id_of(0x77);
    struct bytes new = copy_of(supplied);
    struct bytes start[N_FILES] = {*old, {0}};
    struct bytes hot[N_FILES] = {{0}, {0}};
    long points = n_points, states = n_states, hots = n_hot;
    int calls = 0;

    mark_write(new.b, &id);
    for (int plan = PLAN_ONCE; plan <= PLAN_CRASH; plan++) {
        bool hit = true;

        for (int at = 1; hit; at++) {
            struct images *im = images_new(old, supplied, &id);
            struct memfs *fs = memfs_new(start, sector, powersafe);
            sqlite3_file *db = open_base(&fs->vfs, fs->path);
            struct bytes left[N_FILES];
            struct err e = {0};
            int may, rv;

            fs->calls = 0;
            fs->plan = (enum plan)plan;
            fs->at = at;
            rv = checkpoint_fold(&fs->vfs, db, fs->path, &im->src, &e);
            hit = fs->hit;
            calls = fs->calls;
            n_points++;
            assert_int_equal(im->n_before, fs->n_db_writes > 0 || (hit && im->n_before));
            assert_true(rv == e.code && (rv == DUST_OK) == (e.text[0] == '\0'));
            if (!hit) {
                assert_int_equal(rv, DUST_OK);
            }
            may = rv == DUST_OK                                              ? MAY_NEW
                  : fs->n_db_writes == 0                                     ? MAY_OLD
                  : plan == PLAN_ONCE && strcmp(fs->hit_name, "delete") != 0 ? MAY_OLD
                                                                             : MAY_OLD | MAY_NEW;
            process_death(fs, left);
            if (!fs->down) {
                assert_int_equal(fs->lock, SQLITE_LOCK_NONE);
            }
            if (rv != DUST_OK && plan == PLAN_ONCE && may == MAY_OLD) {
                assert_true(same(&left[DB], old)); /* put back at once, not only by the next opener */
                assert_true(!left[JRNL].exists || strcmp(fs->hit_name, "delete") == 0);
            }
            if (left[JRNL].exists && left[JRNL].b != NULL && left[JRNL].n > 28 && left[JRNL].b[0] == 0xd9 &&
                !same(&left[DB], old)) {
                free_files(hot);
                hot[DB] = copy_of(&left[DB]);
                hot[JRNL] = copy_of(&left[JRNL]);
            }
            verify(left, old, &new, may, name, at);
            free_files(left);
            for (int i = 0; i < rounds; i++) {
                power_loss(fs, i % 4, left);
                verify(left, old, &new, may, "power loss", at);
                free_files(left);
            }
            close_base(&fs->vfs, db);
            memfs_free(fs);
            free(im);
        }
    }
    if (hot[DB].exists) {
        crash_recovery(hot, old, &new, sector, powersafe);
    }
    print_message("    %-22s sector %5d%s: %3d calls, %4ld points, %6ld states, %5ld with a hot journal\n",
        name, sector, powersafe ? " psow" : "     ", calls, n_points - points, n_states - states,
        n_hot - hots);
    free_files(hot);
    free(new.b);
}

static void mark_image(struct bytes *c, uint8_t id)
{
    struct vid v = id_of(id);

    mark_write(c->b, &v);
}

#define GROW "INSERT INTO t SELECT a + 100000, b || 'x', c FROM t"
#define SHRINK "DELETE FROM t WHERE a % 4 <> 0; VACUUM"
#define EQUAL "UPDATE t SET c = zeroblob(length(c)) WHERE a % 3 = 0"

static void test_crashes(void **state)
{
    static const struct {
        int page_size, rows;
    } sizes[] = {{512, 20}, {4096, 100}, {65536, 500}};
    static const struct {
        const char *name, *sql;
    } changes[] = {{"grow", GROW}, {"shrink", SHRINK}, {"equal size", EQUAL}};
    struct bytes empty = {.b = malloc(1), .exists = true};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct bytes old = make_db(sizes[i].page_size, sizes[i].rows);
        char name[60];
        int rounds = sizes[i].page_size > 4096 ? 4 : 12;

        for (size_t k = 0; k < sizeof changes / sizeof *changes; k++) {
            struct bytes new = change_db(&old, changes[k].sql);
            struct bytes from = copy_of(&old);

            if (k % 2 == 0) {
                mark_image(&from, 0x11);
            }
            snprintf(name, sizeof name, "%s, %d", changes[k].name, sizes[i].page_size);
            crash_fold(name, &from, &new, 512, true, rounds);
            crash_fold(name, &from, &new, sizes[i].page_size == 4096 ? 16384 : 4096, false, rounds);
            free(from.b);
            free(new.b);
        }
        snprintf(name, sizeof name, "from empty, %d", sizes[i].page_size);
        crash_fold(name, &empty, &old, 4096, false, rounds);
        if (i < 2) {
            struct bytes other =
                change_db(&old, i == 0 ? "PRAGMA page_size=4096; VACUUM" : "PRAGMA page_size=512; VACUUM");

            assert_int_equal(header_page_size(other.b), i == 0 ? 4096 : 512);
            snprintf(name, sizeof name, "page size %d to %d", sizes[i].page_size, i == 0 ? 4096 : 512);
            crash_fold(name, &old, &other, 512, true, rounds);
            crash_fold(name, &old, &other, 4096, false, rounds);
            free(other.b);
        }
        free(old.b);
    }
    free(empty.b);
    print_message(
        "    points of failure tried: %ld; states opened by both: %ld, with a hot journal: %ld, by the "
        "shell: %ld; found old %ld times, new %ld times\n",
        n_points, n_states, n_hot, n_shell, n_old_seen, n_new_seen);
}

/* ---- the real VFS ---- */

/* Fold, and compare the file with `to`, marked or not. */
static int fold_real(const char *path, struct images *im, struct err *e)
{
    sqlite3_file *db = open_base(unix_vfs, path);
    int rv = checkpoint_fold(unix_vfs, db, path, &im->src, e);

    close_base(unix_vfs, db);
    return rv;
}

static void assert_content(const char *path, const struct bytes *want)
{
    struct bytes got = slurp(path);
    char journal[200];

    assert_true(same(&got, want));
    free(got.b);
    snprintf(journal, sizeof journal, "%s-journal", path);
    assert_no_journal(journal);
}

static void test_folds(void **state)
{
    static const int sizes[] = {512, 4096, 65536};
    static const char *const changes[] = {GROW, SHRINK, EQUAL, "DROP TABLE t; VACUUM"};
    const char *path = in_dir("real.db");
    struct vid id = id_of(0x42);

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct bytes old = make_db(sizes[i], 400);

        for (int k = 0; k < 4; k++) {
            struct bytes new = change_db(&old, changes[k]);
            struct bytes want = copy_of(&new);
            struct images *im = images_new(&old, &new, &id);
            struct err e = {0};
            struct stat st;
            sqlite3 *db;

            mark_write(want.b, &id);
            spill(path, &old);
            assert_int_equal(fold_real(path, im, &e), DUST_OK);
            assert_int_equal(im->n_before, 1);
            assert_int_equal(im->n_rewinds, 1);
            assert_content(path, &want);
            assert_int_equal(stat(path, &st), 0);
            db = open_plain(path);
            assert_sound(db);
            assert_int_equal(sqlite3_exec(db, "CREATE TABLE u(a)", NULL, NULL, NULL), SQLITE_READONLY);
            sqlite3_close(db);

            /* the same again, and from the file's own page 1, is a fold to the same bytes */
            im->n_rewinds = 0;
            im->pos = 0;
            im->from = &want;
            assert_int_equal(fold_real(path, im, &e), DUST_OK);
            assert_content(path, &want);
            im->n_rewinds = 0;
            im->pos = 0;
            im->without_page1 = true;
            im->src.id = id_of(0x43);
            mark_image(&want, 0x43);
            assert_int_equal(fold_real(path, im, &e), DUST_OK);
            assert_content(path, &want);

            /* leave: marks off, counter on */
            im->n_rewinds = 0;
            im->pos = 0;
            im->src.marked = false;
            mark_clear(want.b);
            header_advance(want.b);
            assert_int_equal(fold_real(path, im, &e), DUST_OK);
            assert_content(path, &want);
            db = open_plain(path);
            assert_sound(db);
            run(db, "CREATE TABLE u(a)");
            sqlite3_close(db);
            free(im);
            free(want.b);
            free(new.b);
        }
        free(old.b);
    }
    unlink(path);
}

static void test_journal_mode_of_file(void **state)
{
    const char *path = in_dir("perm.db");
    struct bytes old = make_db(4096, 100), new = change_db(&old, GROW);
    struct vid id = id_of(1);
    struct images *im = images_new(&old, &new, &id);
    struct err e = {0};
    struct stat st;
    char journal[200];

    (void)state;
    snprintf(journal, sizeof journal, "%s-journal", path);
    spill(path, &old);
    chmod(path, 0640);
    im->fail_pass = 2;
    mkdir(journal, 0700); /* nobody can make a journal of it */
    assert_int_equal(fold_real(path, im, &e), DUST_IO);
    rmdir(journal);
    assert_content(path, &old);
    im->fail_pass = 0;
    im->pos = 0;
    im->n_rewinds = 0;
    assert_int_equal(fold_real(path, im, &e), DUST_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    unlink(path);
    free(im);
    free(old.b);
    free(new.b);
}

static bool end_read(void *arg)
{
    run(*(sqlite3 **)arg, "COMMIT");
    return true;
}

static void test_busy(void **state)
{
    const char *path = in_dir("busy.db");
    struct bytes old = make_db(4096, 300), new = change_db(&old, GROW), want = copy_of(&new);
    struct vid id = id_of(2);
    struct images *im = images_new(&old, &new, &id);
    struct err e = {0};
    sqlite3 *reader;
    char reading[200], cmd[600];
    FILE *f;

    (void)state;
    snprintf(reading, sizeof reading, "%s-reading", path);
    mark_write(want.b, &id);
    spill(path, &old);
    reader = open_plain(path);
    run(reader, "BEGIN");
    assert_int_equal(ask(reader, "SELECT count(*) FROM t"), 300);
    assert_int_equal(fold_real(path, im, &e), DUST_BUSY);
    assert_non_null(strstr(e.text, path));
    assert_int_equal(im->n_before, 0);
    assert_content(path, &old);
    assert_int_equal(ask(reader, "SELECT count(*) FROM t"), 300);
    run(reader, "COMMIT");

    run(reader, "BEGIN IMMEDIATE"); /* a writer */
    im->pos = 0;
    assert_int_equal(fold_real(path, im, &e), DUST_BUSY);
    run(reader, "COMMIT");
    assert_content(path, &old);

    /* a reader in another process */
    snprintf(cmd, sizeof cmd,
        "sqlite3 %s 'begin; select count(*) from t;' '.shell touch %s; cat >/dev/null' 'commit;' >/dev/null 2>&1", path,
        reading);
    f = popen(cmd, "w");
    assert_non_null(f);
    for (int i = 0; access(reading, F_OK) != 0; i++) {
        assert_true(i < 60000);
        usleep(1000);
    }
    im->pos = 0;
    assert_int_equal(fold_real(path, im, &e), DUST_BUSY);
    assert_content(path, &old);
    pclose(f);
    unlink(reading);

    run(reader, "BEGIN");
    assert_int_equal(ask(reader, "SELECT count(*) FROM t"), 300);
    im->pos = 0;
    im->n_rewinds = 0;
    im->on_busy = end_read;
    im->busy_arg = &reader;
    e = (struct err){0};
    assert_int_equal(fold_real(path, im, &e), DUST_OK);
    assert_int_equal(e.code, DUST_OK);
    assert_content(path, &want);
    assert_int_equal(ask(reader, "SELECT count(*) FROM t"), 600);
    sqlite3_close(reader);
    unlink(path);
    free(im);
    free(old.b);
    free(new.b);
    free(want.b);
}

/* A plain connection with a warm cache: it sees every fold, and cannot write once the file is marked. */
static void test_warm_caches(void **state)
{
    const char *path = in_dir("warm.db");
    struct bytes old = make_db(4096, 300), marked_only = copy_of(&old), new = change_db(&old, EQUAL);
    struct vid id = id_of(3);
    struct images *im = images_new(&old, &marked_only, &id);
    struct images *im2;
    struct err e = {0};
    sqlite3 *plain;

    (void)state;
    spill(path, &old);
    plain = open_plain(path);
    assert_int_equal(ask(plain, "SELECT count(*) FROM t WHERE a >= 0"), 300);

    /* start, with the content as it is: refused, for this connection would go on writing */
    assert_int_equal(fold_real(path, im, &e), DUST_MISUSE);
    assert_content(path, &old);
    im->pos = 0;
    header_advance(marked_only.b);
    assert_int_equal(fold_real(path, im, &e), DUST_OK);
    assert_int_equal(sqlite3_exec(plain, "DELETE FROM t", NULL, NULL, NULL), SQLITE_READONLY);
    assert_int_equal(ask(plain, "SELECT count(*) FROM t"), 300);

    /* a version that has the counter of the file, and another content */
    memcpy(new.b + 24, marked_only.b + 24, 16);
    memcpy(new.b + 92, marked_only.b + 92, 4);
    id = id_of(4);
    im2 = images_new(&marked_only, &new, &id);
    assert_int_equal(fold_real(path, im2, &e), DUST_MISUSE);
    im2->pos = 0;
    im2->n_rewinds = 0;
    im2->src.repeat_ok = true;
    assert_int_equal(fold_real(path, im2, &e), DUST_OK);
    mark_write(new.b, &id);
    assert_content(path, &new);
    free(im2);

    /* leave: the connection sees it */
    assert_int_equal(ask(plain, "SELECT sum(length(hex(c))) FROM t") > 0, 1);
    im2 = images_new(&new, &new, NULL);
    assert_int_equal(fold_real(path, im2, &e), DUST_OK);
    assert_sound(plain);
    sqlite3_close(plain);
    plain =
        open_plain(path); /* a connection that saw the mark stays read-only for good: SQLite remembers it */
    run(plain, "DELETE FROM t WHERE a = 1");
    sqlite3_close(plain);
    unlink(path);
    free(im);
    free(im2);
    free(old.b);
    free(new.b);
    free(marked_only.b);
}

static int one_page_next(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    struct images *im = ctx;

    (void)e;
    *pgno = im->pos == 0 ? im->first : im->pos == 1 ? im->more_later : 0;
    im->pos++;
    *page = im->to->b;
    return DUST_OK;
}

static void test_bad_sources(void **state)
{
    const char *path = in_dir("bad.db");
    struct bytes old = make_db(512, 300), new = change_db(&old, GROW), bad = copy_of(&new);
    struct vid id = id_of(5);
    struct images *im = images_new(&old, &new, &id);
    struct images fresh = *im;
    struct err e = {0};
    uint32_t last = im->src.n_pages_after, untouched = 0;

    (void)state;
    spill(path, &old);
    for (uint32_t i = 2; i < old.n / 512 && untouched == 0; i++) {
        untouched = memcmp(old.b + (i - 1) * 512, new.b + (i - 1) * 512, 512) == 0 ? i : 0;
    }
    assert_true(untouched > 1);
#define TRY(want, setup)                                                                                     \
    do {                                                                                                     \
        *im = fresh;                                                                                         \
        im->src.ctx = im;                                                                                    \
        setup;                                                                                               \
        e = (struct err){0};                                                                                 \
        assert_int_equal(fold_real(path, im, &e), want);                                                     \
        assert_int_equal(e.code, want);                                                                      \
        assert_content(path, &old);                                                                          \
    } while (0)
    TRY(DUST_NOMEM, im->fail_pass = 1);
    TRY(DUST_NOMEM, im->fail_pass = 2);
    assert_int_equal(im->n_before, 1);
    TRY(DUST_CORRUPT, im->skip_later = last);
    TRY(DUST_CORRUPT, im->more_later = untouched);
    TRY(DUST_CORRUPT,
        (im->src.next = one_page_next, im->src.repeat_ok = true, im->first = 3, im->more_later = 2));
    TRY(DUST_CORRUPT,
        (im->src.next = one_page_next, im->src.repeat_ok = true, im->first = 1, im->more_later = 1));
    TRY(DUST_CORRUPT, (im->src.next = one_page_next, im->src.repeat_ok = true, im->first = last + 1));
    TRY(DUST_CORRUPT, (im->src.next = one_page_next, im->src.repeat_ok = true,
                          im->first = 0x40000000 / 512 + 1, im->src.n_pages_after = 1u << 31));
    TRY(DUST_MISUSE, im->src.n_pages_after = 0);
    TRY(DUST_MISUSE, im->src.page_size = 1000);
    TRY(DUST_MISUSE, im->src.page_size = 256);
    bad.b[19] = 2;
    TRY(DUST_CORRUPT, im->to = &bad);
    bad.b[19] = 1;
    bad.b[16] = 0x10;
    TRY(DUST_CORRUPT, im->to = &bad);
    bad.b[16] = 2;
    bad.b[0] = 0;
    TRY(DUST_CORRUPT, im->to = &bad);

    bad.b[0] = 'S';
    mark_write(bad.b, &id);
    bad.b[75]++;
    free(old.b);
    old = copy_of(&bad);
    spill(path, &old);
    TRY(DUST_VERSION, (void)0);
    old.n = 0;
    spill(path, &old);
    TRY(DUST_MISUSE, (im->without_page1 = true, im->from = NULL));
    unlink(path);
    free(im);
    free(old.b);
    free(new.b);
    free(bad.b);
}

static int failing_rewind(void *ctx, struct err *e)
{
    (void)ctx;
    return err_set(e, DUST_AGAIN, "no second pass");
}

enum { PS = 65536, LOCK = 0x40000000 / PS + 1, BEFORE = LOCK + 5, AFTER = LOCK - 3, MORE = LOCK + 9 };

/* Pages from..filled have their number in every byte, those up to `to` zeros, as the lock-byte page has. */
static void check_big(const char *path, int from, int filled, int to)
{
    uint8_t *page = malloc(PS), *want = malloc(PS);
    FILE *f = fopen(path, "rb");

    for (int i = from; i <= to; i++) {
        memset(want, i <= filled && i != LOCK ? i & 0xff : 0, PS);
        fseeko(f, (off_t)(i - 1) * PS, SEEK_SET);
        assert_int_equal(fread(page, PS, 1, f), 1);
        assert_memory_equal(page, want, PS);
    }
    fclose(f);
    free(page);
    free(want);
}

/* Around the page with SQLite's lock bytes, at 1 GiB; the file is sparse. */
static void test_lock_page(void **state)
{
    const char *path = in_dir("big.db");
    struct bytes db = make_db(PS, 10);
    struct vid id = id_of(6);
    struct images *im = images_new(NULL, &db, &id);
    struct err e = {0};
    uint8_t *page = malloc(PS);
    struct stat st;
    FILE *f;

    (void)state;
    spill(path, &db);
    f = fopen(path, "r+b");
    for (int i = LOCK - 8; i <= BEFORE; i++) {
        memset(page, i == LOCK ? 0 : i & 0xff, PS);
        fseeko(f, (off_t)(i - 1) * PS, SEEK_SET);
        assert_int_equal(fwrite(page, PS, 1, f), 1);
    }
    fclose(f);
    header_advance(db.b);
    for (int round = 0; round < 3; round++) { /* shrink undone, shrink, grow */
        *im = (struct images){.src = im->src, .to = &db, .first = 1};
        im->src.next = one_page_next;
        im->src.n_pages_after = round < 2 ? AFTER : MORE;
        im->src.rewind = round == 0 ? failing_rewind : images_rewind;
        e = (struct err){0};
        assert_int_equal(fold_real(path, im, &e), round == 0 ? DUST_AGAIN : DUST_OK);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, (int64_t)(round == 0 ? BEFORE : im->src.n_pages_after) * PS);
        header_advance(db.b);
        if (round == 0) {
            check_big(path, LOCK - 8, BEFORE, BEFORE);
        }
    }
    check_big(path, LOCK - 8, AFTER, MORE);
    unlink(path);
    free(page);
    free(im);
    free(db.b);
}

/* ---- journals that SQLite made ---- */

/* The files of a transaction in the middle, after its cache has spilled: as a crash would leave them. */
static void sqlite_crash(const struct bytes *old, const char *pragmas, struct bytes out[N_FILES])
{
    const char *path = in_dir("victim.db");
    char journal[200];
    sqlite3 *db;

    snprintf(journal, sizeof journal, "%s-journal", path);
    spill(path, old);
    db = open_plain(path);
    run(db, "PRAGMA cache_size=8");
    run(db, pragmas);
    run(db, "BEGIN; UPDATE t SET b = a || 'yy', c = randomblob(300); INSERT INTO t SELECT a + 70000, b, c "
            "FROM t");
    out[DB] = slurp(path);
    out[JRNL] = slurp(journal);
    run(db, "ROLLBACK");
    sqlite3_close(db);
    unlink(path);
    assert_true(out[JRNL].exists && !same(&out[DB], old));
}

static void add_super(struct bytes *journal, const char *name, uint32_t page_size)
{
    uint8_t tail[300];
    uint32_t n = (uint32_t)strlen(name), lock = 0x40000000 / page_size + 1, sum = 0, at;

    for (uint32_t i = 0; i < n; i++) {
        sum += (uint32_t)(int)name[i];
    }
    for (int i = 0; i < 4; i++) {
        tail[i] = (uint8_t)(lock >> (24 - 8 * i));
        tail[4 + n + (uint32_t)i] = (uint8_t)(n >> (24 - 8 * i));
        tail[8 + n + (uint32_t)i] = (uint8_t)(sum >> (24 - 8 * i));
    }
    memcpy(tail + 4, name, n);
    memcpy(tail + 12 + n, "\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", 8);
    at = (uint32_t)journal->n;
    put(journal, at, tail, n + 20);
}

/* recover() and plain SQLite must come to the same bytes, whatever the journal. */
static struct bytes recover_both(const struct bytes files[N_FILES])
{
    const char *path = in_dir("both.db");
    struct bytes ours, theirs;
    char journal[200];
    struct err e = {0};
    sqlite3 *db;

    snprintf(journal, sizeof journal, "%s-journal", path);
    spill(path, &files[DB]);
    spill(journal, &files[JRNL]);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_OK);
    ours = slurp(path);
    assert_no_journal(journal);
    spill(path, &files[DB]);
    spill(journal, &files[JRNL]);
    db = open_plain(path);
    sqlite3_exec(db, "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
    sqlite3_close(db);
    theirs = slurp(path);
    assert_true(same(&ours, &theirs));
    unlink(path);
    unlink(journal);
    free(theirs.b);
    return ours;
}

static void test_journals_of_sqlite(void **state)
{
    static const int sizes[] = {512, 1024, 4096, 65536};

    (void)state;
    for (int i = 0; i < 8; i++) {
        struct bytes old = make_db(sizes[i / 2], 1500), files[N_FILES], got, journal;
        bool sync = i % 2 == 0;
        const char *super = in_dir("super");
        FILE *f;

        sqlite_crash(&old, sync ? "PRAGMA synchronous=FULL" : "PRAGMA synchronous=OFF", files);
        got = recover_both(files);
        assert_true(same(&got, &old));
        free(got.b);
        journal = files[JRNL];

        /* a super-journal that is there, and one that is not */
        files[JRNL] = copy_of(&journal);
        add_super(&files[JRNL], super, (uint32_t)sizes[i / 2]);
        got = recover_both(files);
        assert_true(same(&got, &files[DB]));
        free(got.b);
        f = fopen(super, "wb");
        fputs("x", f);
        fclose(f);
        got = recover_both(files);
        assert_true(same(&got, &old));
        free(got.b);
        unlink(super);
        free(files[JRNL].b);

        /* cut off or damaged anywhere: what comes out is SQLite's affair, but it must be the same */
        for (int k = 0; k < 60; k++) {
            files[JRNL] = copy_of(&journal);
            if (k % 2 == 0) {
                files[JRNL].n = rnd((uint32_t)(k % 4 == 0 ? 3000 : journal.n));
            } else {
                /* not the page size: a wrong one makes SQLite itself grow a file without bounds */
                uint32_t at = rnd((uint32_t)(k % 4 == 1 ? 20 : journal.n));

                at = at >= 16 && at < 28 ? 30 : at;
                files[JRNL].b[at] ^= (uint8_t)(1 + rnd(255));
            }
            got = recover_both(files);
            free(got.b);
            free(files[JRNL].b);
        }
        free(journal.b);
        free(files[DB].b);
        free(old.b);
    }
}

static void test_recover_oddities(void **state)
{
    char path[160], journal[170];
    struct bytes old = make_db(4096, 100), files[N_FILES], none = {.b = malloc(1), .exists = true};
    struct err e = {0};
    sqlite3 *db;

    (void)state;
    snprintf(path, sizeof path, "%s", in_dir("odd.db"));
    snprintf(journal, sizeof journal, "%s-journal", path);
    unlink(path);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_OK);
    assert_int_equal(access(path, F_OK), -1);
    sqlite_crash(&old, "", files);
    spill(journal, &files[JRNL]);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_OK); /* a journal without a database */
    assert_int_equal(access(path, F_OK), -1);
    spill(path, &none);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_OK);
    assert_content(path, &none);
    spill(path, &old);
    spill(journal, &none);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_OK);
    assert_content(path, &old);

    db = open_plain(path); /* the journal of a writer at work is left alone */
    run(db, "BEGIN IMMEDIATE; DELETE FROM t");
    assert_int_equal(access(journal, F_OK), 0);
    assert_int_equal(checkpoint_recover(unix_vfs, path, &e), DUST_BUSY);
    assert_int_equal(access(journal, F_OK), 0);
    run(db, "ROLLBACK");
    sqlite3_close(db);
    assert_content(path, &old);
    unlink(path);
    unlink(journal);
    free(old.b);
    free(none.b);
    free_files(files);
}

/* A fold meets a hot journal: it settles it first. */
static void test_fold_settles(void **state)
{
    const char *path = in_dir("settle.db");
    struct bytes old = make_db(4096, 1500), new = change_db(&old, SHRINK), files[N_FILES];
    struct vid id = id_of(7);
    struct images *im = images_new(&old, &new, &id);
    struct err e = {0};
    char journal[200];

    (void)state;
    snprintf(journal, sizeof journal, "%s-journal", path);
    sqlite_crash(&old, "", files);
    spill(path, &files[DB]);
    spill(journal, &files[JRNL]);
    assert_int_equal(fold_real(path, im, &e), DUST_OK);
    mark_write(new.b, &id);
    assert_content(path, &new);
    unlink(path);
    free_files(files);
    free(im);
    free(old.b);
    free(new.b);
}

/* A file that is not under its name any more is left, or put back, as it was; and no journal is left beside whatever is
 * under that name. */
static void test_moved_away(void **state)
{
    const char *path = in_dir("moved.db");
    struct vid id = id_of(7);
    struct bytes old = make_db(4096, 300), new = change_db(&old, GROW);

    (void)state;
    for (int at = 1; at <= 2; at++) {
        struct images *im = images_new(&old, &new, &id);
        struct err e = {0};

        spill(path, &old);
        im->moved_at = at;
        assert_int_equal(fold_real(path, im, &e), DUST_MOVED);
        assert_string_equal(e.text, "moved away");
        assert_int_equal(im->n_before, at - 1);
        assert_content(path, &old);
        im->moved_at = 0;
        im->pos = 0;
        im->n_rewinds = 0;
        assert_int_equal(fold_real(path, im, &e), DUST_OK);
        unlink(path);
        free(im);
    }
    free(old.b);
    free(new.b);
}

/* ---- processes ---- */

/* Two contents of a file, folded to and fro. Each fold is a version of its own: the counter goes up. */
struct see_saw {
    const char *path;
    struct bytes c[2];
    int at; /* the content that the file has */
};

static void see_saw_init(struct see_saw *s, const char *path)
{
    struct vid id = id_of(0);

    s->path = path;
    s->c[0] = make_db(4096, 600);
    s->c[1] = change_db(&s->c[0], GROW);
    s->at = 0;
    mark_write(s->c[0].b, &id);
    spill(path, &s->c[0]);
}

static int see_saw_move(struct see_saw *s, sqlite3_file *db)
{
    struct vid id = id_of((uint8_t)(s->at + 1));
    struct bytes *from = &s->c[s->at], *to = &s->c[!s->at];
    struct images *im = images_new(from, to, &id);
    struct err e = {0};
    int rv;

    memcpy(to->b + 24, from->b + 24, 4);
    memcpy(to->b + 92, from->b + 24, 4);
    header_advance(to->b);
    rv = checkpoint_fold(unix_vfs, db, s->path, &im->src, &e);
    if (rv == DUST_OK) {
        s->at = !s->at;
    }
    free(im);
    return rv;
}

static void see_saw_deinit(struct see_saw *s)
{
    unlink(s->path);
    free(s->c[0].b);
    free(s->c[1].b);
}

/* Plain readers in another process, with warm caches and new ones, see one content or the other. Returns 0 if
 * so. */
static int read_on(const char *path, int n_reads)
{
    sqlite3 *warm = NULL, *cold = NULL;
    int bad = sqlite3_open_v2(path, &warm, SQLITE_OPEN_READWRITE, "unix") != SQLITE_OK;

    sqlite3_busy_timeout(warm, 5000);
    for (int i = 0; i < n_reads && !bad; i++) {
        int64_t n =
            ask(warm, "SELECT count(*) * 1000 + (SELECT count(b) FROM t NOT INDEXED) - count(*) FROM t");

        bad = n != 600 * 1000 && n != 1200 * 1000;
        if (i % 10 == 0 && !bad) {
            bad = sqlite3_open_v2(path, &cold, SQLITE_OPEN_READWRITE, "unix") != SQLITE_OK;
            sqlite3_busy_timeout(cold, 5000);
            bad = bad ||
                  ask(cold, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'") != 1;
            sqlite3_close(cold);
        }
    }
    sqlite3_close(warm);
    return bad;
}

static void test_readers_meanwhile(void **state)
{
    struct see_saw s;
    sqlite3_file *db;
    int moved = 0, busy = 0, status = 0;
    pid_t pid;

    (void)state;
    see_saw_init(&s, in_dir("meanwhile.db"));
    pid = fork();
    if (pid == 0) {
        _exit(read_on(s.path, 400));
    }
    db = open_base(unix_vfs, s.path);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        int rv = see_saw_move(&s, db);

        assert_true(rv == DUST_OK || rv == DUST_BUSY);
        moved += rv == DUST_OK;
        busy += rv == DUST_BUSY;
        usleep(300);
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    print_message("    %d folds while another process read; busy %d times\n", moved, busy);
    assert_true(moved > 0);
    close_base(unix_vfs, db);
    see_saw_deinit(&s);
}

/* A process that folds is killed at any time. */
static void test_killed(void **state)
{
    const char *path = in_dir("killed.db");
    char journal[200];
    int n_mixed = 0, found[2] = {0};

    (void)state;
    snprintf(journal, sizeof journal, "%s-journal", path);
    for (int round = 0; round < 100; round++) {
        struct see_saw s;
        struct bytes files[N_FILES], got;
        int is = -1, status;
        pid_t pid;

        see_saw_init(&s, path);
        pid = fork();
        if (pid == 0) {
            sqlite3_file *db = open_base(unix_vfs, path);

            for (;;) {
                if (see_saw_move(&s, db) != DUST_OK) {
                    _exit(1);
                }
            }
        }
        usleep(2000 + rnd(6000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        files[DB] = slurp(path);
        files[JRNL] = slurp(journal);
        n_mixed += files[JRNL].exists && files[JRNL].n > 0 && files[JRNL].b[0] == 0xd9;
        got = recover_both(files);
        for (int i = 0; i < 2; i++) {
            memcpy(s.c[i].b + 24, got.b + 24, 4); /* not which version it is, only which content */
            memcpy(s.c[i].b + 92, got.b + 92, 4);
            memcpy(s.c[i].b + 76, got.b + 76, 16);
            s.c[i].b[18] = 3;
            memcpy(s.c[i].b + 72, "dus\1", 4);
            is = same(&got, &s.c[i]) ? i : is;
        }
        assert_true(is >= 0);
        found[is]++;
        unlink(journal);
        free_files(files);
        free(got.b);
        see_saw_deinit(&s);
    }
    print_message("    100 kills: %d left a hot journal; found one content %d times, the other %d\n", n_mixed,
        found[0], found[1]);
}

static int setup(void **state)
{
    (void)state;
    strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/dust-ckpt-XXXXXX" : "/tmp/dust-ckpt-XXXXXX");
    unix_vfs = sqlite3_vfs_find("unix");
    return mkdtemp(dir) == NULL || unix_vfs == NULL;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folds),
        cmocka_unit_test(test_journal_mode_of_file),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_warm_caches),
        cmocka_unit_test(test_bad_sources),
        cmocka_unit_test(test_lock_page),
        cmocka_unit_test(test_journals_of_sqlite),
        cmocka_unit_test(test_recover_oddities),
        cmocka_unit_test(test_fold_settles),
        cmocka_unit_test(test_moved_away),
        cmocka_unit_test(test_readers_meanwhile),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_crashes),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
