/* database: what app.db is when it is opened, marks put on and taken off, folding, and reading past the marks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/database.h"
#include "vfs/mark.h"

static char folder[64], path[96];
static struct database *db;
static struct database_content content;
static const struct database_options options = {.timeout_ms = 1000, .turn_timeout_ms = 30000};

static void plain(const char *sql)
{
    sqlite3 *c;
    char *text = NULL;

    assert_int_equal(sqlite3_open(path, &c), SQLITE_OK);
    if (sqlite3_exec(c, sql, NULL, NULL, &text) != SQLITE_OK) {
        fail_msg("%s: %s", sql, text);
    }
    assert_int_equal(sqlite3_close(c), SQLITE_OK);
}

static int plain_int(const char *sql)
{
    sqlite3 *c;
    sqlite3_stmt *s;
    int v;

    assert_int_equal(sqlite3_open_v2(path, &c, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(c, sql, -1, &s, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    v = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    sqlite3_close(c);
    return v;
}

static int set_up(void **state)
{
    char dust[128];

    (void)state;
    strcpy(folder, "/tmp/dust-test-database-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/app.db", folder);
    snprintf(dust, sizeof dust, "%s-dust", path);
    db = NULL;
    return mkdir(dust, 0700);
}

static int tear_down(void **state)
{
    char command[128];

    (void)state;
    database_free(db);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void open_it(void)
{
    struct err e = {0};

    if (database_new(&db, sqlite3_vfs_find("unix"), path, &options, &e) != DUST_OK ||
        database_open_file(db, &content, &e) != DUST_OK) {
        fail_msg("%s", e.text);
    }
}

static struct vid an_id(uint8_t first)
{
    struct vid id = {{first, 1, 2, 3}};

    return id;
}

static void test_an_empty_file_is_empty(void **state)
{
    (void)state;
    open_it();
    assert_false(content.marked);
    assert_int_equal(content.n_pages, 0);
}

/* Transactions of two processes that have made none yet do not get the same number. */
static void test_numbers_of_two(void **state)
{
    struct database *other;
    struct err e;

    (void)state;
    open_it();
    assert_int_equal(database_new(&other, sqlite3_vfs_find("unix"), path, &options, &e), DUST_OK);
    assert_true(atomic_load(&db->origin_seq) != atomic_load(&other->origin_seq));
    database_free(other);
}

static void test_an_ordinary_database_is_not_marked(void **state)
{
    (void)state;
    plain("PRAGMA page_size=1024; CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(5000))");
    open_it();
    assert_false(content.marked);
    assert_false(content.wal);
    assert_int_equal(content.page_size, 1024);
    assert_int_equal(content.n_pages, plain_int("PRAGMA page_count"));
}

static void test_a_wal_database_is_said_to_be_one(void **state)
{
    (void)state;
    plain("PRAGMA journal_mode=WAL; CREATE TABLE t(x)");
    open_it();
    assert_true(content.wal);
}

static void test_a_truncated_database_is_refused(void **state)
{
    struct err e = {0};

    (void)state;
    plain("CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(50000))");
    assert_int_equal(truncate(path, 5 * 4096), 0);
    assert_int_equal(database_new(&db, sqlite3_vfs_find("unix"), path, &options, &e), DUST_OK);
    assert_int_equal(database_open_file(db, &content, &e), DUST_CORRUPT);
    assert_non_null(strstr(e.text, "truncated"));
}

static void test_what_is_no_database_is_refused(void **state)
{
    struct err e = {0};
    FILE *f = fopen(path, "w");

    (void)state;
    for (int i = 0; i < 1000; i++) {
        fputs("not a database\n", f);
    }
    fclose(f);
    assert_int_equal(database_new(&db, sqlite3_vfs_find("unix"), path, &options, &e), DUST_OK);
    assert_int_not_equal(database_open_file(db, &content, &e), DUST_OK);
    assert_true(e.text[0] != '\0');
}

/* The marks: plain programs read the file, cannot write it, and what dust reads has none of them. */
static void test_begin_and_end(void **state)
{
    struct vid id = an_id(9);
    uint8_t header[HEADER_SIZE];
    struct err e = {0};
    struct vid found;
    sqlite3 *c;

    (void)state;
    plain("CREATE TABLE t(x); INSERT INTO t VALUES(41)");
    open_it();
    assert_int_equal(database_begin(db, &id, content.n_pages, &e), DUST_OK);
    assert_int_equal(store_format(db->store, content.page_size, &id, 0, content.n_pages, &e), DUST_OK);
    assert_int_equal(plain_int("SELECT x FROM t"), 41);
    assert_int_equal(sqlite3_open(path, &c), SQLITE_OK);
    assert_int_equal(sqlite3_exec(c, "INSERT INTO t VALUES(42)", NULL, NULL, NULL), SQLITE_READONLY);
    sqlite3_close(c);
    assert_int_equal(database_read_base(db, header, sizeof header, 0), SQLITE_OK);
    assert_int_equal(mark_read(header, &found), MARK_NONE);
    assert_int_equal(header[18], 1);
    assert_int_equal(database_end(db, &e), DUST_OK);
    plain("INSERT INTO t VALUES(42)");
    assert_int_equal(plain_int("SELECT count(*) FROM t"), 2);
}

/* Give the store a new version of the first page, as SQLite's commit would have made it. */
static struct vid agree_on_new_page1(void)
{
    struct vid id = an_id(10);
    struct version *voided;
    struct head_info head;
    uint8_t *page = malloc(db->page_size);
    struct err e = {0};
    uint32_t node;

    store_agreed(db->store, &head);
    assert_int_equal(database_read_base(db, page, db->page_size, 0), SQLITE_OK);
    header_advance(page);
    page[60 + 3] = 77; /* user_version, the last of its four bytes */
    assert_int_equal(store_frame_new(db->store, 1, &node, &e), DUST_OK);
    store_frame_write(db->store, node, 0, page, db->page_size);
    assert_int_equal(store_agree(db->store, &id, &head.id, head.n_pages, &node, 1, 5, &voided, &e), DUST_OK);
    assert_null(voided);
    free(page);
    return id;
}

static void test_a_checkpoint_brings_the_file_to_the_version(void **state)
{
    struct vid first = an_id(9), id, found;
    uint8_t header[HEADER_SIZE];
    struct head_info at;
    struct err e = {0};
    FILE *f;

    (void)state;
    plain("CREATE TABLE t(x); INSERT INTO t VALUES(41)");
    open_it();
    assert_int_equal(database_begin(db, &first, content.n_pages, &e), DUST_OK);
    assert_int_equal(store_format(db->store, content.page_size, &first, 0, content.n_pages, &e), DUST_OK);
    id = agree_on_new_page1();
    assert_int_equal(plain_int("PRAGMA user_version"), 0);
    assert_true(database_hold(db, true));
    assert_int_equal(database_checkpoint(db, &at, &e), DUST_BUSY);
    assert_int_equal(plain_int("PRAGMA user_version"), 0);
    assert_true(database_hold(db, false));
    assert_int_equal(database_checkpoint(db, &at, &e), DUST_OK);
    assert_int_equal(at.index, 5);
    assert_true(vid_equal(&at.id, &id));
    assert_int_equal(plain_int("PRAGMA user_version"), 77);
    f = fopen(path, "r");
    assert_int_equal(fread(header, 1, sizeof header, f), sizeof header);
    fclose(f);
    assert_int_equal(mark_read(header, &found), MARK_DUST);
    assert_true(vid_equal(&found, &id));
}

static void *checkpoint_thread(void *arg)
{
    struct err e;

    (void)arg;
    return (void *)(intptr_t)database_checkpoint(db, NULL, &e);
}

/* A version is agreed when a majority has it; this member's own log may not be on disk up to there. */
static void test_a_checkpoint_waits_for_the_log(void **state)
{
    struct vid first = an_id(9), none = {{0}}, id;
    struct err e = {0};
    pthread_t thread;
    void *rv;

    (void)state;
    plain("CREATE TABLE t(x)");
    open_it();
    assert_int_equal(database_begin(db, &first, content.n_pages, &e), DUST_OK);
    assert_int_equal(store_format(db->store, content.page_size, &first, 0, content.n_pages, &e), DUST_OK);
    store_set_durable(db->store, 4, &none);
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_OK); /* nothing to do */
    id = agree_on_new_page1();
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_BUSY);
    assert_non_null(strstr(e.text, "flushed"));
    assert_int_equal(plain_int("PRAGMA user_version"), 0);
    assert_int_equal(pthread_create(&thread, NULL, checkpoint_thread, NULL), 0);
    store_set_durable(db->store, 4, &none);
    store_set_durable(db->store, 5, &none);
    assert_int_equal(pthread_join(thread, &rv), 0);
    assert_int_equal((intptr_t)rv, DUST_OK);
    assert_int_equal(plain_int("PRAGMA user_version"), 77);
    /* … or it is noted elsewhere. */
    store_set_durable(db->store, 3, &none);
    assert_int_equal(store_wait_durable(db->store, &(struct head_info){.index = 5, .id = id}, 0), DUST_BUSY);
    store_set_durable(db->store, 3, &id);
    assert_int_equal(store_wait_durable(db->store, &(struct head_info){.index = 5, .id = id}, 0), DUST_OK);
}

static void rename_file(const char *from, const char *to)
{
    assert_int_equal(rename(from, to), 0);
}

/* What is folded into a file without the name is found by nobody. Another name that leads to it is as good. */
static void test_nothing_is_folded_into_a_file_that_was_moved(void **state)
{
    struct vid first = an_id(9);
    struct err e = {0};
    char aside[128], host[128], host_aside[128];

    (void)state;
    snprintf(aside, sizeof aside, "%s.aside", path);
    snprintf(host, sizeof host, "%s-dust/host", path);
    snprintf(host_aside, sizeof host_aside, "%s-dust/host.aside", path);
    plain("CREATE TABLE t(x)");
    open_it();
    assert_int_equal(database_begin(db, &first, content.n_pages, &e), DUST_OK);
    assert_int_equal(store_format(db->store, content.page_size, &first, 0, content.n_pages, &e), DUST_OK);
    agree_on_new_page1();
    rename_file(path, aside);
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_MOVED);
    assert_non_null(strstr(e.text, path));
    plain("CREATE TABLE another(x)"); /* in its place */
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_MOVED);
    rename_file(aside, path);
    rename_file(host, host_aside);
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_MOVED);
    assert_non_null(strstr(e.text, db->dir));
    rename_file(host_aside, host);
    assert_int_equal(plain_int("PRAGMA user_version"), 0);
    rename_file(path, aside);
    assert_int_equal(symlink(aside, path), 0);
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_OK);
    assert_int_equal(plain_int("PRAGMA user_version"), 77);
}

static void test_what_it_is_when_opened_again(void **state)
{
    struct vid first = an_id(9), id;
    struct err e = {0};

    (void)state;
    plain("CREATE TABLE t(x)");
    open_it();
    assert_int_equal(database_begin(db, &first, content.n_pages, &e), DUST_OK);
    assert_int_equal(store_format(db->store, content.page_size, &first, 0, content.n_pages, &e), DUST_OK);
    id = agree_on_new_page1();
    assert_int_equal(database_checkpoint(db, NULL, &e), DUST_OK);
    database_free(db);
    open_it();
    assert_true(content.marked);
    assert_true(vid_equal(&content.id, &id));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_an_empty_file_is_empty, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_numbers_of_two, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_an_ordinary_database_is_not_marked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_wal_database_is_said_to_be_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_truncated_database_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_is_no_database_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_begin_and_end, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_checkpoint_brings_the_file_to_the_version, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_checkpoint_waits_for_the_log, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_nothing_is_folded_into_a_file_that_was_moved, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_it_is_when_opened_again, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
