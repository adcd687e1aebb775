/* Snapshots' descriptors: there and back, byte by byte; and what is none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "raft/descriptor.h"
#include "vfs/err.h"

static const struct descriptor some = {
    .index = 0x0102030405060708u, .page_size = 4096, .n_pages = 77, .id = {{1, 2}}, .cluster = {{3, 4}}};

static void test_there_and_back(void **state)
{
    static const uint8_t begin[24] = {'d', 's', 'n', 'p', 1, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 16, 0, 0, 77, 0, 0, 0};
    uint8_t bytes[DESCRIPTOR_SIZE];
    struct descriptor d;

    (void)state;
    descriptor_write(&some, bytes);
    assert_memory_equal(bytes, begin, sizeof begin);
    assert_memory_equal(bytes + 24, some.id.b, 16);
    assert_memory_equal(bytes + 40, some.cluster.b, 16);
    assert_int_equal(descriptor_read(bytes, sizeof bytes, &d), DUST_OK);
    assert_true(d.index == some.index && d.page_size == 4096 && d.n_pages == 77);
    assert_true(vid_equal(&d.id, &some.id) && vid_equal(&d.cluster, &some.cluster));
}

static void test_what_is_none(void **state)
{
    uint8_t bytes[DESCRIPTOR_SIZE + 1] = {0};
    struct descriptor d = {.index = 5};

    (void)state;
    descriptor_write(&some, bytes);
    assert_int_equal(descriptor_read(bytes, DESCRIPTOR_SIZE - 1, &d), DUST_CORRUPT);
    assert_int_equal(descriptor_read(bytes, DESCRIPTOR_SIZE + 1, &d), DUST_CORRUPT);
    bytes[4] = 2;
    assert_int_equal(descriptor_read(bytes, DESCRIPTOR_SIZE, &d), DUST_VERSION);
    bytes[0] = 'x';
    assert_int_equal(descriptor_read(bytes, DESCRIPTOR_SIZE, &d), DUST_CORRUPT);
    assert_true(d.index == 5 && d.page_size == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_there_and_back),
        cmocka_unit_test(test_what_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
