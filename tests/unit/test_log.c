/* The log on disk: written, read again, cut, begun anew, its files used again. */
#include "tests/unit/logged.h"

static void test_empty(void **state)
{
    (void)state;
    assert_false(exists());
    open_log(0, 0);
    assert_true(content.n == 0 && content.start == 1);
    open_log(40, 3);
    assert_true(content.n == 0 && content.start == 41);
    assert_false(exists());
}

/* Whether there is a log must not be guessed: where there is none, one is begun. */
static void test_it_cannot_be_told(void **state)
{
    char path[128];
    struct err e;
    bool yes;

    (void)state;
    path_of(path, 7);
    assert_int_equal(symlink("log-7", path), 0);
    assert_int_equal(log_exists(dir, &yes, &e), DUST_IO);
    assert_non_null(strstr(e.text, dir));
    unlink(path);
    assert_false(exists());
    assert_int_equal(log_exists("/dev/null", &yes, &e), DUST_IO);
    assert_int_equal(log_exists("/dev/nothing", &yes, &e), DUST_OK);
    assert_false(yes);
}

static void test_written_and_read(void **state)
{
    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 0);
    append(2, 1, 3, 10);
    append(5, 2, 100, 5000); /* more than one block */
    assert_true(exists());
    for (int again = 0; again < 3; again++) {
        open_log(0, 0);
        assert_int_equal(content.start, 1);
        ends_at(104 + (uint64_t)again * 2);
        has(1, 1, 1, 0);
        has(2, 3, 1, 10);
        has(5, 100, 2, 5000);
        append(105 + (uint64_t)again * 2, 3, 2, 7);
    }
    assert_int_equal(files(), 1);
}

static void test_begun(void **state)
{
    struct raft_entry first = entry_of(1, 1, 20);
    struct err e;

    (void)state;
    assert_int_equal(log_begin(dir, key, ++life, &first, &e), DUST_OK);
    assert_int_equal(log_begin(dir, key, ++life, &first, &e), DUST_EXISTS);
    open_log(0, 0);
    ends_at(1);
    has(1, 1, 1, 20);
    append(2, 1, 1, 20);
    free(first.buf.base);
}

/* Many at once share a write, and are done in order. */
static void test_many_at_once(void **state)
{
    enum { N = 500 };
    struct raft_entry entries[N];
    struct log_op ops[N], *done;
    unsigned i, seen = 0;

    (void)state;
    open_log(0, 0);
    for (i = 0; i < N; i++) {
        entries[i] = entry_of(i + 1, 1, 100);
        ops[i] = (struct log_op){.index = i + 1, .entries = &entries[i], .n = 1};
        log_do(l, &ops[i], false);
    }
    while (seen < N) {
        for (done = wait_done(); done != NULL; done = done->next) {
            assert_ptr_equal(done, &ops[seen++]);
            assert_int_equal(done->status, DUST_OK);
        }
    }
    open_log(0, 0);
    ends_at(N);
    has(1, N, 1, 100);
    for (i = 0; i < N; i++) {
        free(entries[i].buf.base);
    }
}

/* Written by whoever hands it over: done before log_do returns; but not by a thread that would have to wait for the one of
 * the log, or for a disk that has been slow. In order in any case. */
static void test_here(void **state)
{
    enum { N = 100 };
    struct raft_entry entries[N];
    struct log_op ops[N];
    unsigned seen = 0;

    (void)state;
    for (unsigned i = 0; i < N; i++) {
        entries[i] = entry_of(i + 1, 1, i < 10 ? 100 : 100000);
        ops[i] = (struct log_op){.index = i + 1, .entries = &entries[i], .n = 1};
    }
    open_log(0, 0);
    for (unsigned i = 0; i < 10; i++) {
        l->flush_us = 0;
        log_do(l, &ops[i], true);
        assert_ptr_equal(log_done(l), &ops[seen++]);
        assert_true(pthread_equal(waker, pthread_self()));
    }
    l->flush_us = 2000;
    for (unsigned i = 10; i < N; i++) {
        log_do(l, &ops[i], i % 3 != 0);
    }
    while (seen < N) {
        for (const struct log_op *done = wait_done(); done != NULL; done = done->next) {
            assert_ptr_equal(done, &ops[seen++]);
            assert_int_equal(done->status, DUST_OK);
        }
    }
    open_log(0, 0);
    ends_at(N);
    has(1, 10, 1, 100);
    has(11, N - 10, 1, 100000);
    for (unsigned i = 0; i < N; i++) {
        free(entries[i].buf.base);
    }
}

/* The thread has told of what it wrote, and is done with it soon. */
static void wait_idle(void)
{
    bool writing;

    do {
        pthread_mutex_lock(&l->mutex);
        writing = l->writing;
        pthread_mutex_unlock(&l->mutex);
    } while (writing);
}

/* While writes have been slow it is the log's thread that writes. */
static void test_slow_disk(void **state)
{
    (void)state;
    here = true;
    open_log(0, 0);
    for (unsigned i = 1; i < 20; i++) {
        wait_idle();
        l->flush_us = i % 2 == 0 ? 0 : 1000000;
        append(i, 1, 1, 10);
        assert_int_equal(pthread_equal(waker, pthread_self()), i % 2 == 0);
        assert_true(i % 2 == 0 || l->flush_us >= 875000); /* it was not a second */
    }
    open_log(0, 0);
    ends_at(19);
}

/* More than a file holds, in one operation and in many; entries of any size. */
static void test_over_files(void **state)
{
    const size_t large = LOG_ENTRY_MAX - 100;

    (void)state;
    open_log(0, 0);
    append(1, 1, 6, large);
    append(7, 1, 20000, 300);
    append(20007, 1, 1, LOG_ENTRY_MAX);
    open_log(0, 0);
    ends_at(20007);
    has(1, 6, 1, large);
    has(7, 20000, 1, 300);
    has(20007, 1, 1, LOG_ENTRY_MAX);
    assert_true(files() >= 3);
}

static void test_too_large(void **state)
{
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    assert_int_equal(append_some(2, 1, 1, 2 * LOG_ENTRY_MAX, false), DUST_TOOBIG);
    log_failure(l, &e);
    assert_non_null(strstr(e.text, "larger than"));
    assert_int_equal(append_some(2, 1, 1, 10, false), DUST_TOOBIG); /* it is not known what comes next */
    open_log(0, 0);
    ends_at(1);
}

/* A new leader's entries replace what was there: fewer, more, of the same size and others, once and again. */
static void test_cut(void **state)
{
    (void)state;
    open_log(0, 0);
    append(1, 1, 10, 50);
    append(5, 2, 1, 50);
    open_log(0, 0);
    ends_at(5);
    has(1, 4, 1, 50);
    has(5, 1, 2, 50);
    append(6, 2, 20, 50);
    append(3, 3, 2, 3000);
    append(5, 3, 2, 50);
    open_log(0, 0);
    ends_at(6);
    has(1, 2, 1, 50);
    has(3, 2, 3, 3000);
    has(5, 2, 3, 50);
    append(1, 4, 1, 9); /* all of it */
    open_log(0, 0);
    ends_at(1);
    has(1, 1, 4, 9);
}

static void test_cut_over_files(void **state)
{
    (void)state;
    open_log(0, 0);
    append(1, 1, 100, 100000);
    append(20, 2, 3, 100);
    open_log(0, 0);
    ends_at(22);
    has(1, 19, 1, 100000);
    has(20, 3, 2, 100);
    append(23, 2, 100, 100000);
    open_log(0, 0);
    ends_at(122);
    has(20, 3, 2, 100);
    has(23, 100, 2, 100000);
}

/* What was cut goes back over a file that is gone since: all that is needed is behind the cut. */
static void test_cut_and_beginning_gone(void **state)
{
    const size_t large = 900 * 1024; /* four in a file */
    char path[128];

    (void)state;
    open_log(0, 0);
    append(1, 1, 6, large);
    append(3, 2, 3, large);
    append(6, 2, 5, large);
    path_of(path, 1);
    log_release(l, 5);
    log_close(l);
    l = NULL;
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(truncate(path, LOG_FILE_BYTES), 0);
    open_log(9, 2);
    ends_at(10);
    assert_true(content.start <= 5);
    has(6, 5, 2, large);
}

/* Numbers of batches do not run over into the next life's. */
static void test_many_batches(void **state)
{
    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    l->seq += 0xfffffffdull; /* as if so many had been written: the chain is broken there, and not needed */
    append(2, 1, 1, 10);
    append(3, 1, 1, 10);
    append(4, 1, 1, 10);
    append(5, 1, 1, 10);
    open_log(2, 1);
    ends_at(5);
    append(6, 1, 1, 10);
    open_log(2, 1);
    ends_at(6);
}

/* Only the file that is written to is open. */
static void test_descriptors(void **state)
{
    int before, after;

    (void)state;
    open_log(0, 0);
    append(1, 1, 1, 10);
    before = dup(0);
    close(before);
    append(2, 1, 40, LOG_ENTRY_MAX - 100);
    after = dup(0);
    close(after);
    assert_true(files() >= 10);
    assert_true(after <= before + 1);
}

/* A snapshot takes the place of the log: what was there is void, and so it is if a crash came before the next entry. */
static void test_anew(void **state)
{
    (void)state;
    open_log(0, 0);
    append(1, 1, 50, 100);
    open_log(200, 5); /* the snapshot was stored, and nothing after it */
    assert_true(content.n == 0 && content.start == 201);
    assert_int_equal(append_some(201, 5, 3, 100, false), DUST_OK);
    open_log(200, 5);
    assert_true(content.n == 3 && content.start == 201);
    has(201, 3, 5, 100);
    /* And one that ends where there are entries, of another term. */
    assert_int_equal(append_some(203, 7, 2, 100, true), DUST_OK);
    open_log(202, 6);
    assert_true(content.n == 2 && content.start == 203);
    has(203, 2, 7, 100);
    open_log(203, 7); /* one's own: they lead up to it */
    assert_true(content.n == 2 && content.start == 203);
    open_log(203, 8); /* not the same entry: what is here is void */
    assert_true(content.n == 0 && content.start == 204);
    append(204, 8, 1, 100);
    open_log(203, 8);
    assert_true(content.n == 1 && content.start == 204);
}

/* Files are used again when their entries are not needed, and the folder does not grow. */
static void test_files_used_again(void **state)
{
    struct err e;
    uint64_t next = 1;
    unsigned most = 0;

    (void)state;
    open_log(0, 0);
    for (int round = 0; round < 60; round++) {
        append(next, 1, 100, 10000);
        next += 100;
        if (round % 5 == 4) {
            log_release(l, next - 150);
            while (log_wants(l)) {
                assert_int_equal(log_tend(l, &e), DUST_OK);
            }
            append(next, 1, 100, 10000);
            next += 100;
            open_log(next - 150, 1);
            ends_at(next - 1);
            assert_true(content.start <= next - 249);
            has(content.start, next - content.start, 1, 10000);
            assert_true(content.n < 1500);
        }
        most = files() > most ? files() : most;
    }
    assert_true(most <= 5);
}

static void test_files_are_removed(void **state)
{
    struct err e;

    (void)state;
    open_log(0, 0);
    append(1, 1, 100, 1000000);
    assert_true(files() > 20);
    log_release(l, 90);
    while (log_wants(l)) {
        assert_int_equal(log_tend(l, &e), DUST_OK);
    }
    assert_true(files() <= LOG_FREE_MAX + 5);
    open_log(95, 1);
    ends_at(100);
    has(91, 10, 1, 1000000);
    append(101, 1, 10, 1000000);
    open_log(95, 1);
    ends_at(110);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_empty), TEST(test_it_cannot_be_told), TEST(test_written_and_read), TEST(test_begun),
        TEST(test_many_at_once), TEST(test_here), TEST(test_slow_disk), TEST(test_over_files), TEST(test_too_large),
        TEST(test_cut), TEST(test_cut_over_files), TEST(test_cut_and_beginning_gone), TEST(test_many_batches),
        TEST(test_descriptors), TEST(test_anew), TEST(test_files_used_again), TEST(test_files_are_removed),
    };

    return sodium_init() < 0 || sem_init(&woken, 0, 0) != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
