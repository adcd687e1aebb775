/* Unit tests of raft/member: addresses, and the identity file: written, read, cut at every length, every byte
 * changed, and written where it cannot be. */
#undef NDEBUG
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include <sodium.h>

#include "raft/member.h"

/* ---- addresses ---- */

static void test_address(void **state)
{
    static const struct {
        const char *given, *text;
        bool v6, loopback, any;
        uint16_t port;
    } good[] = {
        {"10.0.0.1:4001", "10.0.0.1:4001", false, false, false, 4001},
        {"127.0.0.1:0", "127.0.0.1:0", false, true, false, 0},
        {"127.9.8.7:65535", "127.9.8.7:65535", false, true, false, 65535},
        {"localhost:00080", "127.0.0.1:80", false, true, false, 80},
        {"0.0.0.0:1", "0.0.0.0:1", false, false, true, 1},
        {"[::1]:4001", "[::1]:4001", true, true, false, 4001},
        {"[0:0::0:1]:4001", "[::1]:4001", true, true, false, 4001},
        {"[::]:5", "[::]:5", true, false, true, 5},
        {"[::ffff:127.0.0.1]:5", "[::ffff:127.0.0.1]:5", true, true, false, 5},
        {"[::ffff:0:0]:5", "[::ffff:0.0.0.0]:5", true, false, true, 5},
        {"[FD00:AB::1]:4001", "[fd00:ab::1]:4001", true, false, false, 4001},
        {"[1111:2222:3333:4444:5555:6666:7777:8888]:65535", "[1111:2222:3333:4444:5555:6666:7777:8888]:65535",
            true, false, false, 65535},
    };
    struct address a, again;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(address_parse(good[i].given, &a, &e), DUST_OK);
        assert_string_equal(a.text, good[i].text);
        assert_int_equal(a.is_v6, good[i].v6);
        assert_int_equal(a.port, good[i].port);
        assert_int_equal(address_is_loopback(&a), good[i].loopback);
        assert_int_equal(address_is_any(&a), good[i].any);
        assert_int_equal(address_parse(a.text, &again, &e), DUST_OK);
        assert_memory_equal(&a, &again, sizeof a);
    }
}

static void test_address_refused(void **state)
{
    static const struct {
        const char *given, *says;
    } bad[] = {
        {"", "port"},
        {"10.0.0.1", "port"},
        {":4001", "no host"},
        {"10.0.0.1:", "port is not a number"},
        {"10.0.0.1:-1", "port is not a number"},
        {"10.0.0.1:+1", "port is not a number"},
        {"10.0.0.1: 1", "port is not a number"},
        {"10.0.0.1:65536", "port is not a number"},
        {"10.0.0.1:99999999999999999999", "port is not a number"},
        {"10.0.0.1:4001 ", "port is not a number"},
        {"10.0.0.1:4001,10.0.0.2:4001", "brackets"},
        {"10.0.0:4001", "numeric"},
        {"10.0.0.256:4001", "numeric"},
        {"10.0.0.01:4001", "numeric"},
        {"db1.example.org:4001", "use a numeric address"},
        {"a-very-long-name-that-goes-on-and-on-and-on-and-on-and-on-for-ever.example.org:4001", "numeric"},
        {"::1:4001", "brackets"},
        {"[::1]", "port"},
        {"[::1:4001", "closing bracket"},
        {"[]:4001", "no host"},
        {"[::1]4001", "port"},
        {"[::1]x:4001", "port"},
        {"[10.0.0.1]:4001", "not an IPv6"},
        {"[fe80::1%eth0]:4001", "not an IPv6"},
        {"[localhost]:4001", "not an IPv6"},
        {"tcp://10.0.0.1:4001", "brackets"},
        {"10.0.0.1:40\n01", "40?01"},
    };
    struct address a, blank;
    char given[ADDRESS_TEXT_MAX * 20];
    struct err e;

    (void)state;
    memset(&blank, 0x5a, sizeof blank);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        a = blank;
        assert_int_equal(address_parse(bad[i].given, &a, &e), DUST_MISUSE);
        assert_memory_equal(&a, &blank, sizeof a);
        if (strstr(e.text, bad[i].says) == NULL) {
            fail_msg("'%s' says %s", bad[i].given, e.text);
        }
        assert_non_null(strstr(e.text, "10.0.0.1:4001 or [fd00::1]:4001"));
        if (strlen(bad[i].given) < 70 && strchr(bad[i].given, '\n') == NULL) {
            assert_non_null(strstr(e.text, bad[i].given));
        }
        assert_int_equal(address_parse(bad[i].given, &a, NULL), DUST_MISUSE);
    }
    for (size_t n = 7; n < sizeof given - 1; n += 7) { /* long ones */
        memset(given, n % 2 ? '1' : '[', sizeof given);
        given[n] = '\0';
        assert_int_equal(address_parse(given, &a, &e), DUST_MISUSE);
        given[n / 2] = ':';
        assert_int_equal(address_parse(given, &a, &e), DUST_MISUSE);
        assert_non_null(strstr(e.text, "expected is"));
    }
}

/* ---- the file ---- */

static char dir[64], path[128], fresh[128];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/dust-member-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/member", dir);
    snprintf(fresh, sizeof fresh, "%s/member.new", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    unlink(fresh);
    return rmdir(dir);
}

static struct member some_member(void)
{
    struct member m;

    memset(&m, 0, sizeof m);
    assert_true(vid_parse(&m.cluster, "00112233445566778899aabbccddeeff"));
    m.id = UINT64_MAX;
    strcpy(m.address, "10.0.0.1:4001");
    strcpy(m.bind, "[::]:4001");
    m.page_size = 65536;
    m.role = MEMBER_STANDBY;
    return m;
}

static size_t get(char *text, size_t max)
{
    FILE *f = fopen(path, "rb");
    size_t n;

    assert_non_null(f);
    n = fread(text, 1, max, f);
    fclose(f);
    return n;
}

static void put(const char *text, size_t n)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

static void test_save_load(void **state)
{
    struct member m = some_member(), got;
    char text[4096];
    struct stat st;
    struct err e;

    (void)state;
    memset(&got, 0x5a, sizeof got);
    assert_int_equal(member_load(dir, &got, &e), DUST_NOTFOUND);
    assert_non_null(strstr(e.text, path));
    assert_int_equal(member_load("/nowhere/at/all", &got, NULL), DUST_NOTFOUND);
    put("", 0);
    rename(path, fresh); /* as a crash leaves it */
    umask(0);
    assert_int_equal(member_save(dir, &m, &e), DUST_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_not_equal(access(fresh, F_OK), 0);
    assert_int_equal(member_load(dir, &got, &e), DUST_OK);
    assert_memory_equal(&m, &got, sizeof m);

    umask(0777);
    assert_true(vid_parse(&m.file_version, "ffeeddccbbaa99887766554433221100"));
    m.role = MEMBER_VOTER;
    m.promotion = 81;
    m.page_size = 512;
    m.id = 1;
    m.starts = 17;
    m.n_seen = 2;
    m.seen[0].id = 5;
    m.seen[0].starts = 1;
    m.seen[1].id = UINT64_MAX;
    m.seen[1].starts = UINT32_MAX;
    m.seen[1].nonce = UINT32_MAX;
    for (uint64_t i = 0; i <= 1; i++) {
        m.file_index = i * 12345678901234567u;
        assert_int_equal(member_save(dir, &m, &e), DUST_OK);
        memset(&got, 0x5a, sizeof got);
        assert_int_equal(member_load(dir, &got, &e), DUST_OK);
        assert_memory_equal(&m.file_version, &got.file_version, sizeof m.file_version);
        assert_int_equal(m.file_index, got.file_index);
        assert_memory_equal(&m.prior_version, &got.prior_version, sizeof m.prior_version);
        assert_int_equal(m.prior_index, got.prior_index);
        assert_true(vid_parse(&m.prior_version, "0123456789abcdef0123456789abcdef"));
        m.prior_index = 44;
        assert_int_equal(m.refused, got.refused);
        m.refused = true;
        assert_int_equal(got.promotion, 81);
        assert_int_equal(got.starts, 17);
        assert_int_equal(got.n_seen, 2);
        assert_memory_equal(m.seen, got.seen, 2 * sizeof m.seen[0]);
        assert_string_equal(m.bind, got.bind);
    }
    umask(022);
    text[get(text, sizeof text - 1)] = '\0';
    assert_non_null(
        strstr(text, "\nformat=1\ncluster=00112233445566778899aabbccddeeff\nid=1\naddress=10.0.0.1:4001\n"
                     "bind=[::]:4001\npage_size=512\nrole=voter\npromotion=81\n"
                     "starts=17\nseen=5:1\nseen=18446744073709551615:4294967295:4294967295\nrefused=copy\n"
                     "file_version=ffeeddccbbaa99887766554433221100\nfile_index=12345678901234567\n"
                     "prior_version=0123456789abcdef0123456789abcdef\nprior_index=44\n"
                     "checksum="));
}

static void test_damaged(void **state)
{
    struct member m = some_member(), got, blank;
    static char text[8192], changed[8192];
    struct err e;
    size_t n;
    int rv;

    (void)state;
    memset(&blank, 0x5a, sizeof blank);
    assert_true(vid_parse(&m.file_version, "ffeeddccbbaa99887766554433221100"));
    m.file_index = 7;
    assert_int_equal(member_save(dir, &m, &e), DUST_OK);
    n = get(text, sizeof text);
    for (size_t i = 0; i <= n + 1; i++) {
        static const char masks[] = {1, 4, 0x20, 0x7f};

        got = blank;
        put(text, i);
        if (i == n + 1) {
            put(text, n);
            assert_int_equal(member_load(dir, &got, &e), DUST_OK);
            break;
        }
        rv = member_load(dir, &got, &e);
        if (i == n) {
            assert_int_equal(rv, DUST_OK);
            continue;
        }
        assert_int_equal(rv, DUST_CORRUPT);
        assert_memory_equal(&got, &blank, sizeof got);
        assert_non_null(strstr(e.text, path));
        assert_non_null(strstr(e.text, "join anew"));
        for (size_t k = 0; k < sizeof masks; k++) {
            memcpy(changed, text, n);
            changed[i] ^= masks[k];
            put(changed, n);
            rv = member_load(dir, &got, &e);
            assert_true(rv == DUST_CORRUPT || (rv == DUST_VERSION && text[i] == '1'));
        }
    }
    put(text, n);
    text[n] = '\n'; /* something behind */
    put(text, n + 1);
    assert_int_equal(member_load(dir, &got, &e), DUST_CORRUPT);
    memset(text, '#', sizeof text);
    put(text, 4096);
    assert_int_equal(member_load(dir, &got, &e), DUST_CORRUPT);
    put(text, sizeof text);
    assert_int_equal(member_load(dir, &got, &e), DUST_CORRUPT);
    assert_non_null(strstr(e.text, "too long"));
    put("# x\nformat=2\nwhatever=1\n", 24);
    assert_int_equal(member_load(dir, &got, &e), DUST_VERSION);
    assert_non_null(strstr(e.text, "format 2"));
    assert_non_null(strstr(e.text, "upgrade"));
    put("format=18446744073709551616\n", 28);
    assert_int_equal(member_load(dir, &got, &e), DUST_CORRUPT);
}

/* A right checksum under impossible values. */
static void test_forged(void **state)
{
    static const char *const lines[][2] = {
        {"id=1\n", "id=0\n"},
        {"id=1\n", "id=01\n"},
        {"id=1\n", "id=\n"},
        {"id=1\n", "id=18446744073709551616\n"},
        {"id=1\n", "id=1\nid=1\n"},
        {"id=1\n", ""},
        {"cluster=0011", "cluster=001"},
        {"cluster=00112233445566778899aabbccddeeff", "cluster=00000000000000000000000000000000"},
        {"address=10.0.0.1:4001", "address=10.0.0.1:0"},
        {"address=10.0.0.1:4001", "address=localhost:4001"},
        {"address=10.0.0.1:4001", "address="},
        {"bind=[::]:4001",
            "bind=1111111111111111111111111111111111111111111111111111111111111111111111111111111111"},
        {"page_size=4096", "page_size=4097"},
        {"page_size=4096", "page_size=256"},
        {"page_size=4096", "page_size=4294971392"},
        {"role=voter", "role=king"},
        {"role=voter\n", "role=voter\nextra=1\n"},
        {"role=voter\n", "role=voter\npromotion=0\n"},
        {"role=voter\n", "role=standby\npromotion=3\n"},
        {"role=voter\n", "role=voter\nstarts=1\npromotion=3\n"},
        {"role=voter\n", "role=voter\nstarts=0\n"},
        {"role=voter\n", "role=voter\nstarts=4294967296\n"},
        {"role=voter\n", "role=voter\nseen=5\n"},
        {"role=voter\n", "role=voter\nseen=0:5\n"},
        {"role=voter\n", "role=voter\nseen=5:0\n"},
        {"role=voter\n", "role=voter\nseen=5:1:0\n"},
        {"role=voter\n", "role=voter\nseen=5:1:\n"},
        {"role=voter\n", "role=voter\nseen=5:1:2:3\n"},
        {"role=voter\n", "role=voter\nseen=5:1:4294967296\n"},
        {"role=voter\n", "role=voter\nseen=5:1\nstarts=1\n"},
        {"role=voter\n", "role=voter\nrefused=\n"},
        {"role=voter\n", "role=voter\nrefused=copy \n"},
        {"role=voter\n", "role=voter\nrefused=copy\nrefused=copy\n"},
        {"role=voter\n", "role=voter\nrefused=copy\nstarts=1\n"},
        {"role=voter\n", "role=voter\nfile_index=3\n"},
        {"role=voter\n", "role=voter\nfile_version=00112233445566778899aabbccddeeff\n"},
        {"role=voter\n", "role=voter\nfile_version=00000000000000000000000000000000\nfile_index=3\n"},
        {"role=voter\n", "role=voter\nprior_version=00112233445566778899aabbccddeeff\nprior_index=3\n"},
        {"role=voter\n", "role=voter\nfile_version=00112233445566778899aabbccddeeff\nfile_index=3\nprior_index=3\n"},
    };
    char text[4096], made[4096], hex[VID_HEX_SIZE];
    struct member m = some_member(), got;
    struct vid sum;
    struct err e;

    (void)state;
    m.id = 1;
    m.role = MEMBER_VOTER;
    m.page_size = 4096;
    assert_int_equal(member_save(dir, &m, &e), DUST_OK);
    text[get(text, sizeof text - 1)] = '\0';
    *strstr(text, "checksum=") = '\0';
    for (size_t i = 0; i <= sizeof lines / sizeof *lines; i++) {
        bool last = i == sizeof lines / sizeof *lines;
        const char *from = last ? "# dust" : lines[i][0], *to = last ? "# Rust" : lines[i][1];
        const char *at = strstr(text, from);

        assert_non_null(at);
        snprintf(made, sizeof made, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
        crypto_generichash(sum.b, sizeof sum.b, (uint8_t *)made, strlen(made), NULL, 0);
        snprintf(made + strlen(made), sizeof made - strlen(made), "checksum=%s\n", vid_hex(&sum, hex));
        put(made, strlen(made));
        assert_int_equal(member_load(dir, &got, &e), last ? DUST_OK : DUST_CORRUPT);
    }
}

static void test_save_refused(void **state)
{
    struct member m = some_member(), bad, got;
    char deep[6000];
    struct err e;

    (void)state;
    assert_int_equal(member_save(dir, &m, &e), DUST_OK);
    bad = m;
    bad.id = 0;
    assert_int_equal(member_save(dir, &bad, &e), DUST_MISUSE);
    bad = m;
    memset(bad.address, '1', sizeof bad.address);
    assert_int_equal(member_save(dir, &bad, &e), DUST_MISUSE);
    bad = m;
    strcpy(bad.bind, "localhost:1");
    assert_int_equal(member_save(dir, &bad, &e), DUST_MISUSE);
    bad = m;
    bad.page_size = 0;
    assert_int_equal(member_save(dir, &bad, &e), DUST_MISUSE);
    bad = m;
    bad.file_index = 1;
    assert_int_equal(member_save(dir, &bad, &e), DUST_MISUSE);
    assert_int_equal(member_save("/nowhere/at/all", &m, &e), DUST_IO);
    assert_non_null(strstr(e.text, "/nowhere/at/all/member.new"));
    memset(deep, 'd', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    assert_int_equal(member_save(deep, &m, &e), DUST_MISUSE);
    assert_int_equal(member_load(deep, &got, &e), DUST_MISUSE);
    assert_int_equal(member_save("/dev", &(struct member){.id = 1}, &e), DUST_MISUSE);
    assert_int_equal(member_load(dir, &got, &e), DUST_OK);
    assert_memory_equal(&m, &got, sizeof m);

    unlink(path); /* a folder in its place */
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(member_load(dir, &got, &e), DUST_IO);
    assert_int_equal(member_save(dir, &m, &e), DUST_IO);
    assert_int_not_equal(access(fresh, F_OK), 0);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_address),
        cmocka_unit_test(test_address_refused),
        cmocka_unit_test_setup_teardown(test_save_load, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_damaged, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_forged, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_save_refused, make_dir, remove_dir),
    };

    if (sodium_init() < 0) {
        return 1;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
