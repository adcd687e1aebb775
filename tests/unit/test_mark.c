/* Unit tests of vfs/mark: the marks, hiding them in any partial read, and the header's fields; and what
 * SQLite itself makes of a marked file. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "vfs/mark.h"

static void fill(uint8_t *page, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        page[i] = (uint8_t)(i * 7 + 1);
    }
    memcpy(page, "SQLite format 3", 16);
    page[16] = 0x10;
    page[17] = 0;
    page[18] = 1;
    page[19] = 1;
    memset(page + 72, 0, 20);
}

static struct vid some_id(void)
{
    struct vid id;

    for (int i = 0; i < 16; i++) {
        id.b[i] = (uint8_t)(0xf0 - i);
    }
    return id;
}

static void test_write_read_clear(void **state)
{
    uint8_t page[512], orig[512], changed[512];
    struct vid id = some_id(), got;

    (void)state;
    fill(page, sizeof page);
    memcpy(orig, page, sizeof page);
    memset(&got, 0x55, sizeof got);
    assert_int_equal(mark_read(page, &got), MARK_NONE);
    assert_int_equal(got.b[0], 0x55);

    mark_write(page, &id);
    assert_int_equal(page[18], 3);
    assert_int_equal(page[19], 1);
    assert_memory_equal(page + 72, "dus\1", 4);
    assert_memory_equal(page + 76, id.b, 16);
    assert_int_equal(mark_read(page, &got), MARK_DUST);
    assert_true(vid_equal(&id, &got));
    assert_int_equal(mark_read(page, NULL), MARK_DUST);

    memcpy(changed, page, sizeof page);
    changed[75] = 2;
    memset(&got, 0x55, sizeof got);
    assert_int_equal(mark_read(changed, &got), MARK_NEWER);
    changed[18] = 1;
    assert_int_equal(mark_read(changed, &got), MARK_NEWER);
    changed[75] = 1;
    assert_int_equal(mark_read(changed, &got), MARK_HALF);
    memcpy(changed, page, sizeof page);
    changed[73] = 0;
    assert_int_equal(mark_read(changed, &got), MARK_HALF);
    memcpy(changed, page, sizeof page);
    changed[3] = 'x';
    assert_int_equal(mark_read(changed, &got), MARK_NONE);
    assert_int_equal(got.b[0], 0x55);
    memset(changed, 0, sizeof changed);
    assert_int_equal(mark_read(changed, &got), MARK_NONE);

    mark_clear(page);
    assert_memory_equal(page, orig, sizeof page);
    page[19] = 2;
    mark_clear(page);
    assert_int_equal(page[18], 2);
}

/* Every (offset, length) against hiding the whole page; the bytes around the buffer must not be touched. */
static void test_hide(void **state)
{
    enum { N = 130 };
    uint8_t page[N], hidden[N], buf[N + 2];
    struct vid id = some_id();

    (void)state;
    fill(page, sizeof page);
    mark_write(page, &id);
    memcpy(hidden, page, sizeof page);
    hidden[18] = 1;
    memset(hidden + 72, 0, 20);
    for (size_t off = 0; off < N; off++) {
        for (size_t n = 0; n <= N - off; n++) {
            memset(buf, 0xee, sizeof buf);
            memcpy(buf + 1, page + off, n);
            mark_hide(buf + 1, off, n);
            assert_memory_equal(buf + 1, hidden + off, n);
            assert_int_equal(buf[0], 0xee);
            assert_int_equal(buf[n + 1], 0xee);
        }
    }
    memcpy(buf, page, N);
    mark_hide(buf, (size_t)1 << 40, N);
    mark_hide(buf, SIZE_MAX - N, N);
    assert_memory_equal(buf, page, N);
}

static void test_header(void **state)
{
    static const struct {
        uint8_t hi, lo;
        uint32_t size;
    } sizes[] = {{0, 1, 65536}, {2, 0, 512}, {0x10, 0, 4096}, {0x80, 0, 32768}, {1, 0, 0}, {0, 0, 0},
        {3, 0, 0}, {0, 2, 0}, {0x10, 1, 0}};
    uint8_t page[512];

    (void)state;
    fill(page, sizeof page);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        page[16] = sizes[i].hi;
        page[17] = sizes[i].lo;
        assert_int_equal(header_page_size(page), sizes[i].size);
        assert_int_equal(header_valid(page), sizes[i].size != 0);
    }
    fill(page, sizeof page);
    memcpy(page + 24, "\x81\x02\x03\x04\xff\x06\x07\x08", 8);
    memcpy(page + 92, "\xfe\x01\x00\x02", 4);
    assert_int_equal(header_change_counter(page), 0x81020304);
    assert_int_equal(header_n_pages(page), 0xff060708);
    assert_int_equal(header_valid_for(page), 0xfe010002);
}

static void test_advance(void **state)
{
    uint8_t page[512], before[512];

    (void)state;
    fill(page, sizeof page);
    memset(page + 24, 0xff, 4);
    memset(page + 92, 0xff, 4);
    memcpy(before, page, sizeof page);
    header_advance(page);
    assert_int_equal(header_change_counter(page), 0);
    assert_int_equal(header_valid_for(page), 0);
    memset(page + 24, 0xff, 4);
    memset(page + 92, 0xff, 4);
    assert_memory_equal(page, before, sizeof page);

    memcpy(page + 24, "\0\0\0\5", 4); /* not valid, and stays so */
    header_advance(page);
    assert_int_equal(header_change_counter(page), 6);
    assert_int_equal(header_valid_for(page), 0xffffffff);
    memcpy(page + 92, "\0\0\0\7", 4);
    header_advance(page);
    assert_int_equal(header_change_counter(page), 8);
    assert_int_equal(header_valid_for(page), 7);
}

static int answer(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *stmt;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, NULL);
    int value = -1;

    assert_int_equal(rc, SQLITE_OK);
    if (sqlite3_step(stmt) == SQLITE_ROW) {
        value = sqlite3_column_int(stmt, 0);
    }
    sqlite3_finalize(stmt);
    return value;
}

/* Plain SQLite reads a marked file, refuses to write it, and writes it again once the marks are gone. */
static void test_sqlite_agrees(void **state)
{
    char dir[] = "/tmp/dust-mark-XXXXXX", path[64];
    uint8_t header[HEADER_SIZE];
    struct vid id = some_id();
    sqlite3 *db;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(
        sqlite3_exec(db, "CREATE TABLE t(a); INSERT INTO t VALUES(42)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    for (int marked = 1; marked >= 0; marked--) {
        f = fopen(path, "r+b");
        assert_int_equal(fread(header, 1, sizeof header, f), sizeof header);
        assert_true(header_valid(header));
        assert_int_equal(header_page_size(header), 4096);
        assert_int_equal(header_n_pages(header), 2);
        assert_int_equal(header_change_counter(header), header_valid_for(header));
        if (marked) {
            mark_write(header, &id);
        } else {
            assert_int_equal(mark_read(header, NULL), MARK_DUST);
            mark_clear(header);
        }
        rewind(f);
        assert_int_equal(fwrite(header, 1, sizeof header, f), sizeof header);
        fclose(f);
        assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
        assert_int_equal(answer(db, "SELECT a FROM t"), 42);
        assert_int_equal(
            sqlite3_exec(db, "UPDATE t SET a = 42", NULL, NULL, NULL), marked ? SQLITE_READONLY : SQLITE_OK);
        sqlite3_close(db);
    }
    unlink(path);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_write_read_clear),
        cmocka_unit_test(test_hide),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_advance),
        cmocka_unit_test(test_sqlite_agrees),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
