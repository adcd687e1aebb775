/* hostlock: one process at a time, named; gone with its process, and not inherited. */
#undef NDEBUG
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vfs/hostlock.h"

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/dust-test-hostlock-XXXXXX");
    return mkdtemp(dir) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    char path[96];

    (void)state;
    snprintf(path, sizeof path, "%s/host", dir);
    unlink(path);
    return rmdir(dir);
}

/* In a child: take it with a descriptor of its own; its exit status is 0 if the answer was this, naming `pid`. */
static int child_takes(int expected, long pid)
{
    pid_t child = fork();
    int status;

    if (child == 0) {
        struct hostlock l;
        struct err e = {0};
        char name[32];
        int rv = hostlock_open(&l, dir, &e);

        snprintf(name, sizeof name, "process %ld (", pid);
        rv = rv == DUST_OK ? hostlock_take(&l, dir, &e) : rv;
        _exit(rv == expected && (pid == 0 || (strstr(e.text, name) != NULL && hostlock_holder(&l) == pid)) ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void one_process_at_a_time(void **state)
{
    struct hostlock l;
    struct err e;

    (void)state;
    assert_int_equal(hostlock_open(&l, dir, &e), DUST_OK);
    assert_int_equal(child_takes(DUST_OK, 0), 0);
    assert_int_equal(hostlock_take(&l, dir, &e), DUST_OK); /* the child is gone */
    assert_int_equal(hostlock_take(&l, dir, &e), DUST_OK);
    assert_int_equal(hostlock_holder(&l), 0);
    assert_int_equal(child_takes(DUST_BUSY, (long)getpid()), 0);
    hostlock_drop(&l);
    assert_int_equal(child_takes(DUST_OK, 0), 0);
    hostlock_close(&l);
    hostlock_close(&l);
}

static void gone_with_its_process(void **state)
{
    struct hostlock l;
    struct err e;
    int ready[2];
    char c;
    pid_t child;

    (void)state;
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(hostlock_open(&l, dir, &e), DUST_OK);
    child = fork();
    if (child == 0) {
        _exit(hostlock_take(&l, dir, &e) == DUST_OK && write(ready[1], "", 1) == 1 ? pause() : 1);
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_int_equal(hostlock_take(&l, dir, &e), DUST_BUSY);
    assert_int_equal(hostlock_holder(&l), child);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(hostlock_take(&l, dir, &e), DUST_OK);
    hostlock_close(&l);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(one_process_at_a_time, set_up, tear_down),
        cmocka_unit_test_setup_teardown(gone_with_its_process, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
