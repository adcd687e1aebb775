/* key - the secrets by which members of a cluster know each other, and the files that hold them.
 *
 * A file of keys is text. Empty lines and lines that begin with # count for nothing; each other line is one key,
 *
 *     dust-key-1:<64 hexadecimal digits>
 *
 * and there are one to four. Messages are sealed with the first; one sealed with any of them is opened. So a key is
 * replaced without a pause: the new one is added behind the old one on all members, then put first on all, then the old
 * one is taken out on all (a member reads its keys when it is started).
 *
 * A member keeps its keys in app.db-dust/key (mode 0600). A hint, some digits of a key's hash, tells keys apart without
 * giving them away: it stands in messages, and people are shown it. */
#ifndef DUST_RAFT_KEY_H
#define DUST_RAFT_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"

#define KEYS_MAX 4
#define KEY_BYTES 32
#define KEY_HINT_BYTES 3
#define KEY_HINT_TEXT (2 * KEY_HINT_BYTES + 1) /* with the NUL */
#define KEY_LINE_MAX 80                        /* bytes of a line that holds a key, with newline and NUL */

struct keys {
    unsigned n; /* 0: there is none, and messages are not sealed */
    struct {
        uint8_t secret[KEY_BYTES];
        uint8_t hint[KEY_HINT_BYTES];
    } key[KEYS_MAX];
};

/* A new key, as a line. DUST_OK; DUST_IO: no source of random numbers. Any thread. */
int key_make(char line[KEY_LINE_MAX], struct err *e);

/* Read the keys in a text of n bytes that is not trusted. `name` is what messages call it. On failure *out is untouched.
 * DUST_OK; DUST_MISUSE: what is wrong with it, never what it says. Any thread. */
int keys_parse(const char *text, size_t n, const char *name, struct keys *out, struct err *e);

/* Read a file that a person names. As keys_parse; and DUST_NOTFOUND, DUST_IO; DUST_REFUSED: everybody on this host may read
 * it, or others may write it. */
int keys_read(const char *path, struct keys *out, struct err *e);

/* Read and replace the keys of a member, dir/key; keys_load: n is 0 if there are none. As smallfile_save and keys_read. */
int keys_load(const char *dir, struct keys *out, struct err *e);
int keys_save(const char *dir, const struct keys *keys, struct err *e);

/* Are they the same, in the same order? */
bool keys_equal(const struct keys *a, const struct keys *b);

/* The hint of key i as text. */
char *key_hint(const struct keys *keys, unsigned i, char out[KEY_HINT_TEXT]);

#endif
