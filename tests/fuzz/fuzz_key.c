/* raft/key: files of keys. The input is the file. */
#include "raft/key.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = exact_copy(data, size);
    struct keys k, again;
    struct err e;
    int rv;

    memset(&k, 0x5a, sizeof k);
    err_clear(&e);
    rv = keys_parse((const char *)copy, size, "the file", &k, &e);
    check_err(&e, rv);
    if (rv != DUST_OK) {
        check(rv == DUST_MISUSE && all_are(&k, 0x5a, sizeof k));
    } else {
        char text[KEYS_MAX * KEY_LINE_MAX], hint[KEY_HINT_TEXT];
        size_t n = 0;

        check(k.n > 0 && k.n <= KEYS_MAX);
        for (unsigned i = 0; i < k.n; i++) { /* what was read can be written, and read again */
            char hex[65];

            sodium_bin2hex(hex, sizeof hex, k.key[i].secret, KEY_BYTES);
            n += (size_t)snprintf(text + n, sizeof text - n, "dust-key-1:%s\n", hex);
            check(strlen(key_hint(&k, i, hint)) == KEY_HINT_TEXT - 1);
        }
        check(keys_parse(text, n, "it", &again, NULL) == DUST_OK && keys_equal(&k, &again));
    }
    free(copy);
    return 0;
}
