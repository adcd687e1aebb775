/* raft/descriptor: snapshots. The input is the descriptor, whole. */
#include "raft/descriptor.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = exact_copy(data, size), *again = must_alloc(DESCRIPTOR_SIZE);
    struct descriptor d;
    int rv;

    memset(&d, 0x5a, sizeof d);
    rv = descriptor_read(copy, size, &d);
    if (rv == DUST_OK) {
        check(size == DESCRIPTOR_SIZE && memcmp(copy, "dsnp", 4) == 0);
        check(
            d.index == le_get(copy + 8, 8) && d.page_size == le_get(copy + 16, 4) && d.n_pages == le_get(copy + 20, 4));
        descriptor_write(&d, again);
        check(memcmp(again, copy, size) == 0); /* every byte means something */
    } else {
        check(rv == DUST_VERSION ? size == DESCRIPTOR_SIZE && le_get(copy + 4, 4) != 1 : rv == DUST_CORRUPT);
        check(all_are(&d, 0x5a, sizeof d));
    }
    free(again);
    free(copy);
    return 0;
}
