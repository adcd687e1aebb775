/* file, lock, seal, pragma: a member's file as SQLite drives it, with a replicator of the test's own: it agrees at
 * once, says that another transaction came first, or does not answer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/file.h"

enum mode { AGREE, SAY_VOID, SILENT, LATER };

static char folder[64], path[96];
static struct sqlite_lib lib;
static struct database *db;
static struct dfile *files;
static int n_references;
static enum mode mode;
static uint64_t applied;
static struct { /* LATER and SILENT: one at a time */
    struct version *v;
    struct commit *commit;
} waiting;

/* ---- the replicator ---- */

static void agree(struct version *v, struct commit *commit)
{
    store_publish(db->store, v, ++applied);
    commit_done(commit, DUST_OK, NULL);
}

static void void_it(struct version *v, struct commit *commit)
{
    struct version *gone = store_void(db->store, v), *next;

    for (; gone != NULL; gone = next) {
        next = gone->next;
        version_free(gone);
    }
    commit_done(commit, DUST_VOID, NULL);
}

static void submit(void *ctx, struct sealed *sealed, const struct version *staged, struct commit *commit)
{
    struct version *v = store_oldest_speculative(db->store);

    (void)ctx;
    while (v->seq != staged->seq) {
        v = v->next;
    }
    assert_true(sealed->n_parts >= 1);
    sealed_free(sealed);
    if (mode == AGREE) {
        agree(v, commit);
    } else if (mode == SAY_VOID) {
        void_it(v, commit);
    } else {
        waiting.v = v;
        waiting.commit = commit;
    }
}

static int confirm_read(void *ctx, int consistency, uint32_t freshness_ms, uint32_t timeout_ms, struct err *e)
{
    (void)ctx;
    (void)consistency;
    (void)freshness_ms;
    (void)timeout_ms;
    (void)e;
    return DUST_OK;
}

static void turn_changed(void *ctx)
{
    (void)ctx;
}

/* ---- the room above the VFS ---- */

static int h_open(struct sqlite_lib *l, const char *name, struct database **out, int *consistency, struct err *e)
{
    (void)l;
    (void)consistency;
    (void)e;
    if (strcmp(name, path) == 0) {
        *out = db;
        n_references++;
    }
    return DUST_OK;
}

static void h_close(struct database *d)
{
    assert_ptr_equal(d, db);
    n_references--;
}

static bool h_is_member(const char *p, int len)
{
    return (size_t)len == strlen(path) && memcmp(p, path, (size_t)len) == 0;
}

static void h_connected(struct sqlite_lib *l, struct dfile *file, sqlite3 *conn)
{
    (void)l;
    (void)conn;
    file->next = files;
    files = file;
}

static struct dfile *h_files_of(struct sqlite_lib *l, sqlite3 *conn)
{
    (void)l;
    (void)conn;
    return NULL; /* one database only */
}

static void h_closing(struct sqlite_lib *l, struct dfile *file)
{
    struct dfile **p = &files;

    (void)l;
    while (*p != NULL && *p != file) {
        p = &(*p)->next;
    }
    if (*p != NULL) {
        *p = file->next;
    }
}

static void h_failed(struct sqlite_lib *l, sqlite3 *conn, int rc, const struct err *e)
{
    (void)l;
    (void)conn;
    (void)rc;
    fail_msg("%s", e->text);
}

static const struct host host = {.open = h_open, .close = h_close, .is_member = h_is_member, .connected = h_connected,
    .files_of = h_files_of, .closing = h_closing, .failed = h_failed};

static int take_api(sqlite3 *c, char **text, const struct sqlite3_api_routines *api)
{
    (void)c;
    (void)text;
    lib.api = api;
    return SQLITE_OK;
}

/* ---- before and after ---- */

static sqlite3 *connection(void)
{
    sqlite3 *c;

    assert_int_equal(sqlite3_open(path, &c), SQLITE_OK);
    return c;
}

static int run(sqlite3 *c, const char *sql)
{
    sqlite3_exec(c, sql, NULL, NULL, NULL);
    return sqlite3_extended_errcode(c);
}

static int number(sqlite3 *c, const char *sql)
{
    sqlite3_stmt *s;
    int v = -1;

    assert_int_equal(sqlite3_prepare_v2(c, sql, -1, &s, NULL), SQLITE_OK);
    if (sqlite3_step(s) == SQLITE_ROW) {
        v = sqlite3_column_int(s, 0);
    }
    sqlite3_finalize(s);
    return v;
}

static int set_up(void **state)
{
    struct database_options options = {
        .timeout_ms = 50, .turn_timeout_ms = 30000, .consistency = CONSISTENCY_LOCAL};
    struct database_content content;
    struct vid id = {{7}};
    struct err e = {0};
    char dust[128];
    sqlite3 *c;

    (void)state;
    strcpy(folder, "/tmp/dust-test-file-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/app.db", folder);
    snprintf(dust, sizeof dust, "%s-dust", path);
    if (mkdir(dust, 0700) != 0) {
        return -1;
    }
    if (lib.base == NULL) {
        sqlite3_auto_extension((void (*)(void))take_api);
        sqlite3_open(":memory:", &c);
        sqlite3_close(c);
        sqlite3_reset_auto_extension();
        lib.base = sqlite3_vfs_find(NULL);
        lib.host = &host;
        vfs_init(&lib);
        sqlite3_vfs_register(&lib.vfs, 1);
    }
    sqlite3_open_v2(path, &c, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, lib.base->zName);
    if (sqlite3_exec(c, "CREATE TABLE t(x); INSERT INTO t VALUES(1)", NULL, NULL, NULL) != SQLITE_OK) {
        return -1;
    }
    sqlite3_close(c);
    if (database_new(&db, lib.base, path, &options, &e) != DUST_OK || database_open_file(db, &content, &e) != DUST_OK ||
        database_begin(db, &id, content.n_pages, &e) != DUST_OK ||
        store_format(db->store, content.page_size, &id, 0, content.n_pages, &e) != DUST_OK) {
        print_error("%s\n", e.text);
        return -1;
    }
    db->rep = (struct replicator){.submit = submit, .confirm_read = confirm_read, .turn_changed = turn_changed};
    db->caught_up = true;
    turn_open(&db->turn);
    mode = AGREE;
    applied = 0;
    return 0;
}

static int tear_down(void **state)
{
    char command[128];

    (void)state;
    assert_int_equal(n_references, 0);
    assert_null(files);
    database_free(db);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

/* ---- tests ---- */

static void test_what_is_written_is_read(void **state)
{
    sqlite3 *a = connection(), *b = connection();

    (void)state;
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_OK);
    assert_int_equal(applied, 1);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 3);
    assert_int_equal(run(b, "CREATE TABLE u(y); INSERT INTO u SELECT zeroblob(100000)"), SQLITE_OK);
    assert_int_equal(number(a, "SELECT length(y) FROM u"), 100000);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_a_rollback_leaves_no_trace(void **state)
{
    sqlite3 *a = connection();
    struct store_stats before, after;

    (void)state;
    store_stats(db->store, &before);
    assert_int_equal(run(a, "BEGIN; INSERT INTO t SELECT zeroblob(50000); SAVEPOINT s; INSERT INTO t VALUES(2);"
                            "ROLLBACK TO s; ROLLBACK"), SQLITE_OK);
    store_stats(db->store, &after);
    assert_int_equal(applied, 0);
    assert_int_equal(after.frames_used, before.frames_used);
    assert_int_equal(number(a, "SELECT count(*) FROM t"), 1);
    sqlite3_close(a);
}

static void test_a_transaction_that_changes_nothing_makes_no_version(void **state)
{
    sqlite3 *a = connection();

    (void)state;
    assert_int_equal(run(a, "BEGIN IMMEDIATE; UPDATE t SET x = 2 WHERE x = 77; COMMIT"), SQLITE_OK);
    assert_int_equal(applied, 0);
    sqlite3_close(a);
}

static void test_a_reader_keeps_its_snapshot(void **state)
{
    sqlite3 *a = connection(), *b = connection();

    (void)state;
    assert_int_equal(run(b, "BEGIN"), SQLITE_OK);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_OK);
    }
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    assert_int_equal(database_checkpoint(db, NULL, NULL), DUST_OK);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    assert_int_equal(run(b, "COMMIT"), SQLITE_OK);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 101);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_one_writer_at_a_time(void **state)
{
    sqlite3 *a = connection(), *b = connection();

    (void)state;
    assert_int_equal(run(a, "BEGIN IMMEDIATE"), SQLITE_OK);
    assert_int_equal(run(b, "BEGIN IMMEDIATE"), SQLITE_BUSY);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    assert_int_equal(run(a, "INSERT INTO t VALUES(2); COMMIT"), SQLITE_OK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(3)"), SQLITE_OK);
    assert_int_equal(number(a, "SELECT sum(x) FROM t"), 6);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_an_old_snapshot_cannot_write(void **state)
{
    sqlite3 *a = connection(), *b = connection();

    (void)state;
    assert_int_equal(run(b, "BEGIN"), SQLITE_OK);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_OK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(3)"), SQLITE_BUSY_SNAPSHOT);
    assert_int_equal(run(b, "ROLLBACK"), SQLITE_OK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(3)"), SQLITE_OK);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_a_void_transaction_is_undone(void **state)
{
    sqlite3 *a = connection(), *b = connection();

    (void)state;
    mode = SAY_VOID;
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_BUSY_SNAPSHOT);
    assert_int_equal(number(a, "SELECT count(*) FROM t"), 1);
    assert_int_equal(number(b, "SELECT count(*) FROM t"), 1);
    mode = AGREE;
    assert_int_equal(run(a, "INSERT INTO t VALUES(3)"), SQLITE_OK); /* and its cache is not of the void version */
    assert_int_equal(number(a, "SELECT sum(x) FROM t"), 4);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 4);
    assert_int_equal(number(a, "SELECT count(*) FROM pragma_integrity_check"), 1);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_silence_is_an_unknown_outcome(void **state)
{
    sqlite3 *a = connection();

    (void)state;
    mode = SILENT;
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_IOERR_COMMIT_ATOMIC);
    assert_int_equal(number(a, "SELECT count(*) FROM t"), 1); /* what is not agreed is not shown */
    agree(waiting.v, waiting.commit);
    assert_int_equal(number(a, "SELECT count(*) FROM t"), 2);
    sqlite3_close(a);
}

static void test_the_pragmas_that_are_answered(void **state)
{
    sqlite3 *a = connection();
    sqlite3_stmt *s;

    (void)state;
    assert_int_equal(sqlite3_prepare_v2(a, "PRAGMA journal_mode=WAL", -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    assert_string_equal(sqlite3_column_text(s, 0), "wal");
    sqlite3_finalize(s);
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_OK); /* and there is no WAL */
    assert_int_equal(number(a, "PRAGMA page_size"), 4096);
    sqlite3_close(a);
}

static void test_other_files_are_not_ours(void **state)
{
    char other[128];
    sqlite3 *c;
    sqlite3_file *f = NULL;

    (void)state;
    snprintf(other, sizeof other, "%s/other.db", folder);
    assert_int_equal(sqlite3_open(other, &c), SQLITE_OK);
    assert_int_equal(run(c, "CREATE TABLE t(x)"), SQLITE_OK);
    assert_int_equal(sqlite3_file_control(c, "main", SQLITE_FCNTL_FILE_POINTER, &f), SQLITE_OK);
    assert_null(file_of(f));
    assert_int_equal(n_references, 0);
    sqlite3_close(c);
}

static int open_for_reading_only(const char *p, int flags, int permissions)
{
    if ((flags & O_ACCMODE) == O_RDWR && strcmp(p, path) == 0) {
        errno = EMFILE;
        return -1;
    }
    return open(p, flags, permissions);
}

static ssize_t read_error(int fd, void *buf, size_t n, off_t offset)
{
    (void)fd;
    (void)buf;
    (void)n;
    (void)offset;
    errno = EIO;
    return -1;
}

static void replace_call(const char *name, void (*call)(void))
{
    assert_int_equal(lib.base->xSetSystemCall(lib.base, name, call), SQLITE_OK);
}

static void test_too_many_open_files_make_nothing_read_only(void **state)
{
    sqlite3 *a;

    (void)state;
    replace_call("open", (void (*)(void))open_for_reading_only);
    a = connection();
    replace_call("open", NULL);
    assert_int_equal(run(a, "INSERT INTO t VALUES(2)"), SQLITE_OK);
    sqlite3_close(a);
}

static void test_a_page_that_cannot_be_read_is_not_called_malformed(void **state)
{
    sqlite3 *a = connection();

    (void)state;
    replace_call("pread", (void (*)(void))read_error);
    replace_call("pread64", (void (*)(void))read_error);
    assert_int_equal(run(a, "SELECT * FROM t"), SQLITE_IOERR_READ);
    replace_call("pread", NULL);
    replace_call("pread64", NULL);
    assert_int_equal(number(a, "SELECT count(*) FROM t"), 1);
    sqlite3_close(a);
}

static ssize_t no_space(int fd, const void *buf, size_t n, off_t offset)
{
    (void)fd;
    (void)buf;
    (void)n;
    (void)offset;
    errno = ENOSPC;
    return -1;
}

static void test_a_rollback_after_the_commit_point_changes_nothing(void **state)
{
    sqlite3 *a = connection(), *b = connection();
    char sql[192];
    struct vid head;
    struct store_stats before, after;

    (void)state;
    snprintf(sql, sizeof sql, "ATTACH '%s/other.db' AS o; PRAGMA o.journal_mode=MEMORY; CREATE TABLE o.u(y)", folder);
    assert_int_equal(run(a, sql), SQLITE_OK);
    assert_int_equal(run(a, "CREATE TABLE big(z); INSERT INTO big SELECT zeroblob(100000)"), SQLITE_OK);
    store_stats(db->store, &before);
    assert_int_equal(run(a, "BEGIN; INSERT INTO t VALUES(2); UPDATE big SET z = randomblob(100000); INSERT INTO o.u VALUES(2)"),
        SQLITE_OK);
    replace_call("pwrite", (void (*)(void))no_space);
    replace_call("pwrite64", (void (*)(void))no_space);
    assert_int_equal(run(a, "COMMIT"), SQLITE_FULL);
    replace_call("pwrite", NULL);
    replace_call("pwrite64", NULL);
    assert_int_equal(sqlite3_get_autocommit(a), 1);
    assert_int_equal(applied, 3);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 3); /* it is agreed on */
    assert_int_equal(number(a, "SELECT sum(x) FROM t"), 3);
    assert_int_equal(number(a, "SELECT count(*) FROM o.u"), 0);
    assert_true(store_id_of(db->store, before.head_seq + 1, &head));
    assert_true(vid_equal(&files->next->unknown, &head));
    assert_int_equal(run(a, "INSERT INTO t VALUES(3)"), SQLITE_OK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(4)"), SQLITE_OK);
    assert_int_equal(number(a, "SELECT sum(x) FROM t"), 10);
    assert_int_equal(number(b, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
    assert_int_equal(database_checkpoint(db, NULL, NULL), DUST_OK);
    assert_int_equal(number(b, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'"), 1);
    assert_int_equal(number(a, "SELECT sum(x) FROM t"), 10);
    store_stats(db->store, &after);
    assert_int_equal(after.readers, 0);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_what_keeps_its_lock_writes_once(void **state)
{
    sqlite3 *a, *b = connection();
    char sql[192];

    (void)state;
    assert_int_equal(sqlite3_open(":memory:", &a), SQLITE_OK);
    snprintf(sql, sizeof sql, "ATTACH '%s' AS d; PRAGMA locking_mode=EXCLUSIVE", path);
    assert_int_equal(run(a, sql), SQLITE_OK);
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(2)"), SQLITE_OK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(3)"), SQLITE_OK); /* the turn was passed on */
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(100)"), SQLITE_IOERR_LOCK);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 6);
    assert_int_equal(run(a, "PRAGMA d.locking_mode=NORMAL"), SQLITE_OK);
    run(a, "SELECT count(*) FROM d.t"); /* its cache is gone, and now it lets go of the lock */
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(4)"), SQLITE_OK);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 10);
    assert_int_equal(number(a, "SELECT sum(x) FROM d.t"), 10);
    sqlite3_close(a);
    sqlite3_close(b);
}

static void test_what_keeps_its_lock_may_begin_again_after_a_void_commit(void **state)
{
    sqlite3 *a, *b = connection();
    char sql[192];

    (void)state;
    assert_int_equal(sqlite3_open(":memory:", &a), SQLITE_OK);
    snprintf(sql, sizeof sql, "ATTACH '%s' AS d; PRAGMA locking_mode=EXCLUSIVE", path);
    assert_int_equal(run(a, sql), SQLITE_OK);
    mode = SAY_VOID;
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(100)"), SQLITE_BUSY_SNAPSHOT);
    mode = AGREE;
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(2)"), SQLITE_OK); /* it is the first commit still */
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 3);
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(100)"), SQLITE_IOERR_LOCK);
    assert_int_equal(run(b, "INSERT INTO t VALUES(3)"), SQLITE_OK);
    assert_int_equal(run(a, "PRAGMA d.locking_mode=NORMAL"), SQLITE_OK);
    run(a, "SELECT count(*) FROM d.t");
    assert_int_equal(run(a, "INSERT INTO d.t VALUES(4)"), SQLITE_OK);
    assert_int_equal(number(a, "SELECT sum(x) FROM d.t"), 10);
    assert_int_equal(number(b, "SELECT sum(x) FROM t"), 10);
    sqlite3_close(a);
    sqlite3_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_is_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_rollback_leaves_no_trace, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_transaction_that_changes_nothing_makes_no_version, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_reader_keeps_its_snapshot, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_writer_at_a_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_an_old_snapshot_cannot_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_void_transaction_is_undone, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_silence_is_an_unknown_outcome, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_the_pragmas_that_are_answered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_files_are_not_ours, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_too_many_open_files_make_nothing_read_only, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_page_that_cannot_be_read_is_not_called_malformed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_rollback_after_the_commit_point_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_keeps_its_lock_writes_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_what_keeps_its_lock_may_begin_again_after_a_void_commit, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
