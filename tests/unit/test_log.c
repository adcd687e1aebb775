/* The log on disk: written, read again, cut, begun anew, its files used again; and what is made of it when it was damaged,
 * or a write has failed. */
#include <dirent.h>
#include <fcntl.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <sodium.h>

#include "raft/log.h"
#include "raft/log_impl.h"

static const uint8_t key[BATCH_KEY_SIZE] = "the log's";
static char dir[64];
static struct log *l;
static struct log_content content;
static uint64_t life;
static sem_t woken;
static pthread_t waker; /* who has written last */
static bool here;       /* for append_some: written by this thread, if it may be */

static void wake(void *ctx)
{
    (void)ctx;
    waker = pthread_self();
    sem_post(&woken);
}

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/dust-log-XXXXXX");
    life = 0;
    here = false;
    l = NULL;
    content = (struct log_content){0};
    return mkdtemp(dir) == NULL;
}

static int tear_down(void **state)
{
    char command[128];

    (void)state;
    log_close(l);
    log_content_free(&content);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

/* Read it, as of this snapshot. */
static int read_log(uint64_t index, uint64_t term, struct err *e)
{
    int rv;

    log_close(l);
    l = NULL;
    log_content_free(&content);
    assert_int_equal(log_open(&l, dir, e), DUST_OK);
    rv = log_load(l, key, index, term, false, &content, e);
    return rv;
}

static void start(void)
{
    struct err e;

    assert_int_equal(log_start(l, ++life, wake, NULL, &e), DUST_OK);
}

static void open_log(uint64_t index, uint64_t term)
{
    struct err e;

    if (read_log(index, term, &e) != DUST_OK) {
        fail_msg("%s", e.text);
    }
    start();
}

static struct log_op *wait_done(void)
{
    struct log_op *done;

    while ((done = log_done(l)) == NULL) {
        sem_wait(&woken);
    }
    return done;
}

/* What an entry holds follows from its index and term. */
static struct raft_entry entry_of(uint64_t index, uint64_t term, size_t size)
{
    struct raft_entry e = {.term = term, .type = RAFT_COMMAND, .buf = {.base = malloc(size + 1), .len = size}};

    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)e.buf.base)[i] = (uint8_t)(index * 31 + term * 7 + i);
    }
    return e;
}

static int append_some(uint64_t index, uint64_t term, unsigned n, size_t size, bool anew)
{
    struct raft_entry *entries = calloc(n, sizeof *entries);
    struct log_op op = {.index = index, .entries = entries, .n = n, .anew = anew};

    for (unsigned i = 0; i < n; i++) {
        entries[i] = entry_of(index + i, term, size);
    }
    log_do(l, &op, here);
    assert_ptr_equal(wait_done(), &op);
    for (unsigned i = 0; i < n; i++) {
        free(entries[i].buf.base);
    }
    free(entries);
    return op.status;
}

static void append(uint64_t index, uint64_t term, unsigned n, size_t size)
{
    assert_int_equal(append_some(index, term, n, size, false), DUST_OK);
}

/* The content has entries from `first` on, n of them, of this term and size. */
static void has(uint64_t first, uint64_t n, uint64_t term, size_t size)
{
    assert_true(first >= content.start && first + n <= content.start + content.n);
    for (uint64_t i = first; i < first + n; i++) {
        const struct raft_entry *e = &content.entries[i - content.start];
        struct raft_entry want = entry_of(i, term, size);

        assert_int_equal(e->term, term);
        assert_int_equal(e->type, RAFT_COMMAND);
        assert_int_equal(e->buf.len, size);
        assert_memory_equal(e->buf.base, want.buf.base, size);
        assert_int_equal((uintptr_t)e->buf.base % 8, 0);
        free(want.buf.base);
    }
}

static void ends_at(uint64_t last)
{
    assert_int_equal(content.start + content.n - 1, last);
}

static unsigned files(void)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    unsigned n = 0, number;

    while ((e = readdir(d)) != NULL) {
        n += log_file_number(e->d_name, &number);
    }
    closedir(d);
    return n;
}

static void path_of(char path[128], unsigned number)
{
    snprintf(path, 128, "%s/log-%u", dir, number);
}

/* Change a byte of a file. */
static void flip(unsigned number, off_t at)
{
    char path[128];
    uint8_t byte;
    int fd;

    path_of(path, number);
    fd = open(path, O_RDWR);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x20;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static bool exists(void)
{
    bool yes;
    struct err e;

    assert_int_equal(log_exists(dir, &yes, &e), DUST_OK);
    return yes;
}

/* ---- */

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

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_empty), TEST(test_it_cannot_be_told), TEST(test_written_and_read), TEST(test_begun),
        TEST(test_many_at_once), TEST(test_here), TEST(test_slow_disk), TEST(test_over_files), TEST(test_too_large), TEST(test_cut), TEST(test_cut_over_files),
        TEST(test_cut_and_beginning_gone), TEST(test_many_batches), TEST(test_descriptors),
        TEST(test_anew), TEST(test_files_used_again), TEST(test_files_are_removed), TEST(test_damaged_in_between),
        TEST(test_damaged_at_the_end), TEST(test_file_is_gone), TEST(test_lookalike), TEST(test_write_fails),
        TEST(test_write_here_fails), TEST(test_late_batch), TEST(test_no_more_files), TEST(test_folder_is_another), TEST(test_stopped), TEST(test_life_counts), TEST(test_no_folder)};

    return sodium_init() < 0 || sem_init(&woken, 0, 0) != 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
