/* Unit tests of vfs/memjournal: against a plain buffer under random calls, out of memory, and as the journal
 * of a real database that rolls back. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <sqlite3.h>

#include "vfs/memjournal.h"

/* Allocations that fail on purpose. Link with -Wl,--wrap=malloc,--wrap=realloc; without them, tests are
 * skipped. */
extern void *__real_malloc(size_t n) __attribute__((weak));
extern void *__real_realloc(void *p, size_t n) __attribute__((weak));
void *__wrap_malloc(size_t n);
void *__wrap_realloc(void *p, size_t n);

static bool counting;
static int fail_in = -1; /* the allocation to fail, from 0; -1: none */
static int n_mallocs, n_reallocs;

static bool fails(int *count)
{
    *count += counting;
    return counting && fail_in >= 0 && fail_in-- == 0;
}

void *__wrap_malloc(size_t n)
{
    return fails(&n_mallocs) ? NULL : __real_malloc(n);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails(&n_reallocs) ? NULL : __real_realloc(p, n);
}

static uint64_t seed = 0x9e3779b97f4a7c15u;

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % below);
}

#define MAX 300000

static sqlite3_file *open_journal(void)
{
    sqlite3_file *f = malloc((size_t)memjournal_size());

    memset(f, 0xee, (size_t)memjournal_size());
    assert_int_equal(memjournal_open(f), SQLITE_OK);
    return f;
}

static void close_journal(sqlite3_file *f)
{
    assert_int_equal(f->pMethods->xClose(f), SQLITE_OK);
    free(f);
}

static void test_basics(void **state)
{
    sqlite3_file *f = open_journal();
    char buf[8] = "xxxxxxx";
    sqlite3_int64 size = -1;
    int held = 7;

    (void)state;
    assert_int_equal(f->pMethods->xFileSize(f, &size), SQLITE_OK);
    assert_int_equal(size, 0);
    assert_int_equal(f->pMethods->xRead(f, buf, 4, 0), SQLITE_IOERR_SHORT_READ);
    assert_memory_equal(buf, "\0\0\0\0xxx", 8);
    assert_int_equal(f->pMethods->xWrite(f, "abc", 3, 0), SQLITE_OK);
    memset(buf, 'x', sizeof buf);
    assert_int_equal(f->pMethods->xRead(f, buf, 6, 1), SQLITE_IOERR_SHORT_READ);
    assert_memory_equal(buf, "bc\0\0\0\0xx", 8);
    assert_int_equal(f->pMethods->xRead(f, buf, 3, 0), SQLITE_OK);
    assert_int_equal(f->pMethods->xRead(f, buf, 0, 99), SQLITE_OK);
    assert_int_equal(f->pMethods->xWrite(f, "", 0, 99), SQLITE_OK);
    f->pMethods->xFileSize(f, &size);
    assert_int_equal(size, 3);
    assert_int_equal(f->pMethods->xWrite(f, "abc", 3, MEMJOURNAL_MAX - 2), SQLITE_FULL);
    assert_int_equal(f->pMethods->xWrite(f, "abc", 3, INT64_MAX), SQLITE_FULL);
    assert_int_equal(f->pMethods->xWrite(f, "abc", 3, -1), SQLITE_IOERR_WRITE);
    assert_int_equal(f->pMethods->xRead(f, buf, 3, -1), SQLITE_IOERR_READ);
    assert_int_equal(f->pMethods->xRead(f, buf, 3, INT64_MAX), SQLITE_IOERR_SHORT_READ);
    assert_int_equal(f->pMethods->xTruncate(f, -1), SQLITE_IOERR_TRUNCATE);
    assert_int_equal(f->pMethods->xTruncate(f, INT64_MAX), SQLITE_FULL);
    assert_int_equal(f->pMethods->xSync(f, SQLITE_SYNC_FULL), SQLITE_OK);
    assert_int_equal(f->pMethods->xLock(f, SQLITE_LOCK_EXCLUSIVE), SQLITE_OK);
    assert_int_equal(f->pMethods->xUnlock(f, SQLITE_LOCK_NONE), SQLITE_OK);
    assert_int_equal(f->pMethods->xCheckReservedLock(f, &held), SQLITE_OK);
    assert_int_equal(held, 0);
    assert_int_equal(f->pMethods->xFileControl(f, SQLITE_FCNTL_SIZE_HINT, &size), SQLITE_NOTFOUND);
    assert_int_equal(f->pMethods->xSectorSize(f), 512);
    assert_int_equal(f->pMethods->xDeviceCharacteristics(f), 0);
    f->pMethods->xFileSize(f, &size);
    assert_int_equal(size, 3);
    assert_int_equal(f->pMethods->xRead(f, buf, 3, 0), SQLITE_OK);
    assert_memory_equal(buf, "abc", 3);
    close_journal(f);
}

static void test_model(void **state)
{
    static uint8_t model[MAX], buf[MAX], got[MAX];

    (void)state;
    for (int round = 0; round < 20; round++) {
        sqlite3_file *f = open_journal();
        sqlite3_int64 size = 0, n;

        memset(model, 0, sizeof model);
        for (int i = 0; i < 500; i++) {
            uint32_t at = rnd(round < 10 ? 20000 : MAX - 1), len = rnd(rnd(3) ? 5000 : MAX - at);
            bool is_short;

            len = len < MAX - at ? len : MAX - at;
            switch (rnd(8)) {
            case 0:
                at = rnd(4) ? at : 0;
                assert_int_equal(f->pMethods->xTruncate(f, at), SQLITE_OK);
                if (at < size) {
                    memset(model + at, 0, (size_t)size - at);
                }
                size = at;
                break;
            case 1:
            case 2:
            case 3:
                memset(got, 0xee, len);
                is_short = len > 0 && at + len > size;
                assert_int_equal(
                    f->pMethods->xRead(f, got, (int)len, at), is_short ? SQLITE_IOERR_SHORT_READ : SQLITE_OK);
                assert_memory_equal(got, model + at, len);
                break;
            default:
                if (rnd(2)) {
                    at = (uint32_t)size < MAX - len ? (uint32_t)size : at; /* append, as journals do */
                }
                memset(buf, (int)rnd(256), len);
                assert_int_equal(f->pMethods->xWrite(f, buf, (int)len, at), SQLITE_OK);
                memcpy(model + at, buf, len);
                size = len > 0 && at + len > size ? at + len : size;
            }
            f->pMethods->xFileSize(f, &n);
            assert_int_equal(n, size);
        }
        assert_int_equal(f->pMethods->xRead(f, got, (int)size, 0), SQLITE_OK);
        assert_memory_equal(got, model, (size_t)size);
        close_journal(f);
    }
}

static void test_no_memory(void **state)
{
    static uint8_t buf[MAX], got[MAX];
    sqlite3_int64 size;
    sqlite3_file *f;
    int rc, failed = 0;

    (void)state;
    if (__real_malloc == NULL) {
        skip();
    }
    memset(buf, 'b', sizeof buf);
    for (int at = 0;; at++) {
        bool done;

        f = open_journal();
        assert_int_equal(f->pMethods->xWrite(f, "abc", 3, 0), SQLITE_OK);
        fail_in = at;
        counting = true;
        rc = at % 2 ? f->pMethods->xTruncate(f, MAX) : f->pMethods->xWrite(f, buf, MAX - 1, 1);
        counting = false;
        done = fail_in >= 0;
        fail_in = -1;
        f->pMethods->xFileSize(f, &size);
        if (rc == SQLITE_OK) {
            assert_true(done);
            assert_int_equal(size, MAX);
            close_journal(f);
            break;
        }
        failed++;
        assert_int_equal(rc, SQLITE_IOERR_NOMEM);
        assert_int_equal(size, 3);
        assert_int_equal(f->pMethods->xRead(f, got, 4, 0), SQLITE_IOERR_SHORT_READ);
        assert_memory_equal(got, "abc", 4);
        assert_int_equal(f->pMethods->xWrite(f, buf, MAX - 1, 1), SQLITE_OK); /* once there is memory again */
        assert_int_equal(f->pMethods->xRead(f, got, MAX, 0), SQLITE_OK);
        assert_int_equal(got[0], 'a');
        assert_memory_equal(got + 1, buf, MAX - 1);
        close_journal(f);
    }
    assert_true(failed > 10);
}

/* ---- as SQLite uses it ---- */

static sqlite3_vfs *base;
static int n_opened;

static int shim_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
    (void)vfs;
    if ((flags & SQLITE_OPEN_MAIN_JOURNAL) != 0) {
        n_opened++;
        return memjournal_open(f);
    }
    return base->xOpen(base, name, f, flags, out_flags);
}

static int shim_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    int rc = base->xDelete(base, name, sync);

    (void)vfs;
    return rc == SQLITE_IOERR_DELETE_NOENT ? SQLITE_OK : rc;
}

static sqlite3_int64 answer(sqlite3 *db, const char *sql)
{
    sqlite3_int64 value = -1;
    sqlite3_stmt *stmt;

    assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        value = sqlite3_column_type(stmt, 0) == SQLITE_TEXT
                    ? strcmp((const char *)sqlite3_column_text(stmt, 0), "ok") == 0
                    : sqlite3_column_int64(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return value;
}

static void run(sqlite3 *db, const char *sql)
{
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
}

static void test_sqlite(void **state)
{
    static const char *const modes[] = {"DELETE", "TRUNCATE", "PERSIST"};
    char dir[] = "/tmp/dust-memjournal-XXXXXX", path[64], sql[80];
    sqlite3_vfs shim;
    sqlite3 *db;

    (void)state;
    base = sqlite3_vfs_find(NULL);
    shim = *base;
    shim.zName = "shim";
    shim.xOpen = shim_open;
    shim.xDelete = shim_delete;
    shim.szOsFile = base->szOsFile > memjournal_size() ? base->szOsFile : memjournal_size();
    assert_int_equal(sqlite3_vfs_register(&shim, 0), SQLITE_OK);
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.db", dir);
    assert_int_equal(
        sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "shim"), SQLITE_OK);
    run(db, "PRAGMA cache_size=10; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);"
            "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x+1 FROM c WHERE x<2000)"
            "INSERT INTO t SELECT x, zeroblob(500) FROM c");
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        snprintf(sql, sizeof sql, "PRAGMA journal_mode=%s", modes[i]);
        run(db, sql);
        for (int k = 0; k < 3;
             k++) { /* with cache spills: the journal is played back from the middle of it all */
            run(db, "BEGIN; UPDATE t SET b = randomblob(600); SAVEPOINT s; DELETE FROM t WHERE a > 50;"
                    "ROLLBACK TO s; INSERT INTO t(b) SELECT b FROM t; ROLLBACK");
            assert_int_equal(answer(db, "SELECT count(*) FROM t WHERE b = zeroblob(500)"), 2000);
            assert_int_equal(answer(db, "PRAGMA integrity_check"), 1);
        }
        run(db, "BEGIN; DELETE FROM t WHERE a % 2; UPDATE t SET b = zeroblob(500); COMMIT; VACUUM");
        run(db, "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x+2 FROM c WHERE x<1999)"
                "INSERT INTO t SELECT x, zeroblob(500) FROM c");
        assert_int_equal(answer(db, "SELECT count(*) FROM t"), 2000);
        assert_int_equal(answer(db, "PRAGMA integrity_check"), 1);
    }
    assert_true(n_opened > 5);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    snprintf(sql, sizeof sql, "%s-journal", path);
    assert_int_not_equal(access(sql, F_OK), 0);
    sqlite3_vfs_unregister(&shim);
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_basics),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_sqlite),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
