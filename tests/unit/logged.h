/* A log in a folder of its own, for the tests of log.c and log_load.c: opened and read again, written to by what follows from
 * indexes and terms, and damaged. */
#ifndef DUST_UNIT_LOGGED_H
#define DUST_UNIT_LOGGED_H

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

static inline void wake(void *ctx)
{
    (void)ctx;
    waker = pthread_self();
    sem_post(&woken);
}

static inline int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/dust-log-XXXXXX");
    life = 0;
    here = false;
    l = NULL;
    content = (struct log_content){0};
    return mkdtemp(dir) == NULL;
}

static inline int tear_down(void **state)
{
    char command[128];

    (void)state;
    log_close(l);
    log_content_free(&content);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command);
}

/* Read it, as of this snapshot. */
static inline int read_log(uint64_t index, uint64_t term, struct err *e)
{
    int rv;

    log_close(l);
    l = NULL;
    log_content_free(&content);
    assert_int_equal(log_open(&l, dir, e), DUST_OK);
    rv = log_load(l, key, index, term, false, &content, e);
    return rv;
}

static inline void start(void)
{
    struct err e;

    assert_int_equal(log_start(l, ++life, wake, NULL, &e), DUST_OK);
}

static inline void open_log(uint64_t index, uint64_t term)
{
    struct err e;

    if (read_log(index, term, &e) != DUST_OK) {
        fail_msg("%s", e.text);
    }
    start();
}

static inline struct log_op *wait_done(void)
{
    struct log_op *done;

    while ((done = log_done(l)) == NULL) {
        sem_wait(&woken);
    }
    return done;
}

/* What an entry holds follows from its index and term. */
static inline struct raft_entry entry_of(uint64_t index, uint64_t term, size_t size)
{
    struct raft_entry e = {.term = term, .type = RAFT_COMMAND, .buf = {.base = malloc(size + 1), .len = size}};

    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)e.buf.base)[i] = (uint8_t)(index * 31 + term * 7 + i);
    }
    return e;
}

static inline int append_some(uint64_t index, uint64_t term, unsigned n, size_t size, bool anew)
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

static inline void append(uint64_t index, uint64_t term, unsigned n, size_t size)
{
    assert_int_equal(append_some(index, term, n, size, false), DUST_OK);
}

/* The content has entries from `first` on, n of them, of this term and size. */
static inline void has(uint64_t first, uint64_t n, uint64_t term, size_t size)
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

static inline void ends_at(uint64_t last)
{
    assert_int_equal(content.start + content.n - 1, last);
}

static inline unsigned files(void)
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

static inline void path_of(char path[128], unsigned number)
{
    snprintf(path, 128, "%s/log-%u", dir, number);
}

/* Change a byte of a file. */
static inline void flip(unsigned number, off_t at)
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

static inline bool exists(void)
{
    bool yes;
    struct err e;

    assert_int_equal(log_exists(dir, &yes, &e), DUST_OK);
    return yes;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
