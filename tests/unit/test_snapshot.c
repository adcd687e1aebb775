/* The file of a log's snapshot: what is put in comes out, and a damaged one is refused. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <sodium.h>

#include "raft/servers.h"
#include "raft/snapshot.h"

static const uint8_t key[BATCH_KEY_SIZE] = "key", other_key[BATCH_KEY_SIZE] = "other";
static char dir[] = "/tmp/dust-snapshot-XXXXXX", file[sizeof dir + 10];

static struct raft_buffer bufs[2] = {{.base = (void *)"some cont", .len = 9}, {.base = (void *)"ent", .len = 3}};

static struct raft_snapshot sample(void)
{
    struct raft_snapshot s = {.index = 70, .term = 4, .configuration_index = 60, .bufs = bufs, .n_bufs = 2};

    raft_configuration_init(&s.configuration);
    assert_int_equal(raft_configuration_add(&s.configuration, 1, "10.0.0.1:4001", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&s.configuration, 7, "[::1]:4001", RAFT_SPARE), 0);
    return s;
}

static void save(void)
{
    struct raft_snapshot s = sample();
    struct err e;

    assert_int_equal(snapshot_save(dir, key, &s, &e), DUST_OK);
    raft_configuration_close(&s.configuration);
}

static void test_comes_out(void **state)
{
    struct raft_snapshot *s;
    struct err e;

    (void)state;
    assert_int_equal(snapshot_load(&s, dir, key, &e), DUST_OK);
    assert_null(s); /* there is none */
    save();
    save();
    assert_int_equal(snapshot_load(&s, dir, key, &e), DUST_OK);
    assert_true(s->index == 70 && s->term == 4 && s->configuration_index == 60 && s->n_bufs == 1);
    assert_int_equal(s->bufs[0].len, 12);
    assert_memory_equal(s->bufs[0].base, "some content", 12);
    assert_int_equal(s->configuration.n, 2);
    assert_true(s->configuration.servers[0].id == 1 && s->configuration.servers[0].role == RAFT_VOTER);
    assert_string_equal(s->configuration.servers[0].address, "10.0.0.1:4001");
    assert_true(s->configuration.servers[1].id == 7 && s->configuration.servers[1].role == RAFT_SPARE);
    assert_string_equal(s->configuration.servers[1].address, "[::1]:4001");
    snapshot_free(s);
    snapshot_free(NULL);
    assert_int_equal(snapshot_load(&s, dir, other_key, &e), DUST_CORRUPT);
    assert_null(s);
}

static void test_damaged(void **state)
{
    uint8_t data[4096], *cut;
    struct raft_snapshot *s = NULL;
    struct stat st;
    struct err e;
    size_t n;
    int fd;

    (void)state;
    save();
    fd = open(file, O_RDWR);
    assert_int_equal(fstat(fd, &st), 0);
    n = (size_t)st.st_size;
    assert_int_equal(read(fd, data, n), (ssize_t)n);
    for (size_t i = 0; i < n; i++) {
        data[i] ^= 2;
        assert_int_equal(snapshot_decode(&s, data, n, key), DUST_CORRUPT);
        data[i] ^= 2;
        cut = malloc(i + 1);
        memcpy(cut, data, i);
        assert_int_equal(snapshot_decode(&s, cut, i, key), DUST_CORRUPT);
        free(cut);
    }
    assert_null(s);
    assert_int_equal(pwrite(fd, "x", 1, 50), 1);
    close(fd);
    assert_int_equal(snapshot_load(&s, dir, key, &e), DUST_CORRUPT);
    assert_non_null(strstr(e.text, "/snapshot, is damaged"));
    assert_int_equal(truncate(file, 0), 0);
    assert_int_equal(snapshot_load(&s, dir, key, &e), DUST_CORRUPT);
    assert_int_equal(truncate(file, (off_t)SNAPSHOT_FILE_MAX + 1), 0);
    assert_int_equal(snapshot_load(&s, dir, key, &e), DUST_CORRUPT);
    unlink(file);
}

static void test_servers(void **state)
{
    struct raft_snapshot s = sample();
    struct raft_configuration c;
    struct raft_buffer buf;
    uint8_t *p, *cut;

    (void)state;
    assert_int_equal(raft_configuration_encode(&s.configuration, &buf), 0);
    p = buf.base;
    for (size_t n = 0; n < 8 + 8 + 14 + 1; n++) { /* the rest of the 8 that libraft rounds up to is not looked at */
        cut = malloc(n + 1);
        memcpy(cut, p, n);
        assert_int_equal(servers_decode(cut, n, &c), DUST_CORRUPT);
        free(cut);
    }
    assert_int_equal(servers_decode(p, buf.len, &c), DUST_OK);
    assert_int_equal(c.n, 2);
    raft_configuration_close(&c);
    p[0] = 2;
    assert_int_equal(servers_decode(p, buf.len, &c), DUST_VERSION);
    p[0] = 1;
    p[1] = 200;
    assert_int_equal(servers_decode(p, buf.len, &c), DUST_CORRUPT);
    p[1] = 2;
    p[9 + 8 + 14] = 9; /* a role */
    assert_int_equal(servers_decode(p, buf.len, &c), DUST_CORRUPT);
    p[9 + 8 + 14] = 1;
    p[9] = 7; /* two of one id */
    assert_int_equal(servers_decode(p, buf.len, &c), DUST_CORRUPT);
    raft_free(buf.base);
    raft_configuration_close(&s.configuration);
}

static void test_cannot_be_written(void **state)
{
    struct raft_snapshot s = sample();
    struct raft_buffer large = {.base = calloc(1, SNAPSHOT_FILE_MAX), .len = SNAPSHOT_FILE_MAX};
    struct err e;

    (void)state;
    assert_int_equal(snapshot_save("/nonexistent", key, &s, &e), DUST_IO);
    s.bufs = &large;
    s.n_bufs = 1;
    assert_int_equal(snapshot_save(dir, key, &s, &e), DUST_TOOBIG);
    raft_configuration_close(&s.configuration);
    free(large.base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_comes_out),
        cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_servers),
        cmocka_unit_test(test_cannot_be_written),
    };
    int failed;

    if (sodium_init() < 0 || mkdtemp(dir) == NULL) {
        return 1;
    }
    snprintf(file, sizeof file, "%s/snapshot", dir);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(file);
    rmdir(dir);
    return failed;
}
