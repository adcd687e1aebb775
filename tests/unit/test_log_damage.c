/* The log on disk, when it was damaged, or a write has failed. */
#include "tests/unit/logged.h"

/* ---- damage ---- */

/* Each byte of a batch that was followed by another one. */
static void test_damaged_in_between(void **state)
{
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 30);
    append(2, 1, 1, 30);
    append(3, 1, 1, 30);
    log_close(l);
    l = NULL;
    for (off_t at = 0; at < BATCH_HEAD + BATCH_ENTRY_HEAD + 32; at++) {
        flip(1, BATCH_BLOCK + at);
        assert_int_equal(read_log(0, 0, &e), DUST_CORRUPT);
        assert_non_null(strstr(e.text, dir));
        assert_non_null(strstr(e.text, "before byte 8192 of log-1"));
        assert_int_equal(read_log(2, 1, &e), DUST_OK); /* it is not needed */
        assert_true(content.start == 3 && content.n == 1);
        flip(1, BATCH_BLOCK + at);
    }
    flip(1, 2 * BATCH_BLOCK - 1); /* behind its end */
    open_log(0, 0);
    ends_at(3);
}

/* The last one looks as if it had not been written: that is for promise.h to tell. And one writes on. */
static void test_damaged_at_the_end(void **state)
{
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 30);
    append(2, 1, 1, 9000);
    log_close(l);
    l = NULL;
    flip(1, 3 * BATCH_BLOCK);
    assert_int_equal(read_log(0, 0, &e), DUST_OK);
    ends_at(1);
    start();
    append(2, 2, 1, 30);
    flip(1, 3 * BATCH_BLOCK); /* as it was */
    open_log(0, 0);
    ends_at(2);
    has(2, 1, 2, 30);
}

static void test_file_is_gone(void **state)
{
    char path[128];
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 12, 1000000);
    log_close(l);
    l = NULL;
    path_of(path, 2);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(read_log(0, 0, &e), DUST_CORRUPT);
    path_of(path, 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(read_log(0, 0, &e), DUST_CORRUPT);
}

/* Bytes that look like a batch, in an entry, are none: they are not sealed with the key. */
static void test_lookalike(void **state)
{
    uint8_t *inner = calloc(1, 3 * BATCH_BLOCK);
    struct batch b = {.seq = 99ull << 32, .follows = 1, .first = 1, .floor = 1, .n = 1};
    struct batch_entry fake = {.term = 9, .type = RAFT_COMMAND, .size = 10, .data = (const uint8_t *)"0123456789"};
    const uint8_t guess[BATCH_KEY_SIZE] = "a guess";
    struct raft_entry e = {.term = 1, .type = RAFT_COMMAND};
    struct log_op op = {.index = 2, .entries = &e, .n = 1};

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    b.size = (uint32_t)batch_put(inner + BATCH_BLOCK - BATCH_HEAD - BATCH_ENTRY_HEAD, BATCH_HEAD, &fake);
    batch_seal(inner + BATCH_BLOCK - BATCH_HEAD - BATCH_ENTRY_HEAD, &b, guess);
    e.buf = (struct raft_buffer){.base = inner, .len = 3 * BATCH_BLOCK};
    log_do(l, &op, false);
    assert_int_equal(wait_done()->status, DUST_OK);
    log_close(l);
    l = NULL;
    flip(1, BATCH_BLOCK + 20); /* its real head is damaged */
    open_log(0, 0);
    ends_at(1);
    free(inner);
}

/* ---- failures ---- */

/* A write fails: that one and all after it are told; what was acknowledged is there; it can be begun again. */
static void write_fails(void)
{
    struct raft_entry entries[3];
    struct log_op ops[3], *done;
    unsigned failed = 0;
    int keep;

    open_log(0, 0);
    append(1, 1, 3, 100);
    keep = l->files.current->fd;
    l->files.current->fd = open("/dev/full", O_WRONLY);
    for (unsigned i = 0; i < 3; i++) {
        entries[i] = entry_of(4 + i, 1, 10);
        ops[i] = (struct log_op){.index = 4 + i, .entries = &entries[i], .n = 1};
        log_do(l, &ops[i], here);
    }
    while (failed < 3) {
        for (done = wait_done(); done != NULL; done = done->next) {
            assert_ptr_equal(done, &ops[failed++]);
            assert_int_equal(done->status, DUST_FULL);
        }
    }
    close(l->files.current->fd);
    l->files.current->fd = keep;
    assert_int_equal(append_some(7, 1, 1, 10, false), DUST_FULL); /* though it would work now */
    open_log(0, 0);
    ends_at(3);
    append(4, 2, 2, 10);
    open_log(0, 0);
    ends_at(5);
    has(4, 2, 2, 10);
    for (unsigned i = 0; i < 3; i++) {
        free(entries[i].buf.base);
    }
}

static void test_write_fails(void **state)
{
    (void)state;
    write_fails();
}

static void test_write_here_fails(void **state)
{
    (void)state;
    here = true;
    write_fails();
}

/* A batch that a failed write left behind after all, when the log has gone on without it. */
static void test_late_batch(void **state)
{
    uint8_t block[BATCH_BLOCK];
    char path[128];
    int fd;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    append(2, 1, 1, 10);
    path_of(path, 1);
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, block, sizeof block, BATCH_BLOCK), BATCH_BLOCK);
    log_close(l);
    l = NULL;
    flip(1, BATCH_BLOCK + 40); /* it cannot be read at first */
    open_log(0, 0);
    ends_at(1);
    append(2, 2, 1, 11);
    append(3, 2, 1, 11);
    assert_int_equal(pwrite(fd, block, sizeof block, 6 * BATCH_BLOCK), BATCH_BLOCK); /* and then turns up */
    close(fd);
    open_log(0, 0);
    ends_at(3);
    has(2, 2, 2, 11);
}

/* No space for another file: the log goes on in the one there is, and says so when that is full. */
static void test_no_more_files(void **state)
{
    struct rlimit before, none;
    struct err e;
    uint64_t next = 1;
    int rv;

    (void)state;
    open_log(0, 0);
    append(next++, 1, 1, 100);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    none = before;
    none.rlim_cur = LOG_FILE_BYTES - 1;
    setrlimit(RLIMIT_FSIZE, &none);
    assert_true(log_wants(l));
    assert_int_not_equal(log_tend(l, &e), DUST_OK);
    assert_non_null(strstr(e.text, "cannot make"));
    assert_true(log_wants(l));
    assert_int_equal(files(), 1);
    while ((rv = append_some(next, 1, 1, 500000, false)) == DUST_OK) {
        next++;
    }
    assert_true(next > 7);
    log_failure(l, &e);
    assert_int_equal(e.code, rv);
    assert_non_null(strstr(e.text, "cannot make"));
    assert_int_equal(files(), 1);
    setrlimit(RLIMIT_FSIZE, &before);
    open_log(0, 0);
    ends_at(next - 1);
    append(next, 1, 1, 500000);
    open_log(0, 0);
    ends_at(next);
}

/* The folder was moved, and a copy is in its place: nothing is written into that one. */
static void test_folder_is_another(void **state)
{
    char aside[80], command[256];
    struct err e;
    uint64_t next = 1;
    int rv;

    (void)state;
    snprintf(aside, sizeof aside, "%s.aside", dir);
    open_log(0, 0);
    append(next++, 1, 1, 100);
    assert_int_equal(rename(dir, aside), 0);
    snprintf(command, sizeof command, "cp -a %s %s", aside, dir);
    assert_int_equal(system(command), 0);
    while ((rv = append_some(next, 1, 1, 500000, false)) == DUST_OK) {
        next++;
    }
    assert_int_equal(rv, DUST_IO);
    log_failure(l, &e);
    assert_non_null(strstr(e.text, "is not the folder any more"));
    assert_int_equal(log_tend(l, &e), DUST_IO);
    snprintf(command, sizeof command, "rm -r %s && mv %s %s", dir, aside, dir);
    assert_int_equal(system(command), 0);
    open_log(0, 0);
    ends_at(next - 1);
    append(next, 1, 1, 500000);
    open_log(0, 0);
    ends_at(next);
}

/* The thread is stopped while there is much to be written: it ends, and nothing is told of any more. */
static void test_stopped(void **state)
{
    enum { N = 50 };
    struct raft_entry e = entry_of(1, 1, 500000);
    struct log_op ops[N];

    (void)state;
    open_log(0, 0);
    for (unsigned i = 0; i < N; i++) {
        ops[i] = (struct log_op){.index = i + 1, .entries = &e, .n = 1};
        log_do(l, &ops[i], false);
    }
    log_stop(l);
    while (!log_stopped(l)) {
        sem_wait(&woken);
    }
    log_done(l);
    open_log(0, 0);
    assert_true(content.n < N);
    free(e.buf.base);
}

static void test_life_counts(void **state)
{
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    assert_int_equal(read_log(0, 0, &e), DUST_OK);
    assert_int_equal(log_start(l, life, wake, NULL, &e), DUST_CORRUPT); /* two of one number would be told apart by nobody */
    assert_int_equal(read_log(0, 0, &e), DUST_OK);
    start();
}

static void test_no_folder(void **state)
{
    struct log_content none;
    struct log *other;
    struct err e;

    (void)state;
    assert_int_equal(log_open(&other, "/nonexistent", &e), DUST_OK);
    assert_int_equal(log_load(other, key, 0, 0, false, &none, &e), DUST_IO);
    log_close(other);
    log_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_damaged_in_between), TEST(test_damaged_at_the_end), TEST(test_file_is_gone), TEST(test_lookalike),
        TEST(test_write_fails), TEST(test_write_here_fails), TEST(test_late_batch), TEST(test_no_more_files),
        TEST(test_folder_is_another), TEST(test_stopped), TEST(test_life_counts), TEST(test_no_folder),
    };

    return sodium_init() < 0 || sem_init(&woken, 0, 0) != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
