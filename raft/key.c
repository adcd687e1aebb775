#include "raft/key.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "raft/smallfile.h"

#define PREFIX "dust-key-1:"
#define PREFIX_LEN (sizeof PREFIX - 1)
#define LINE_LEN (PREFIX_LEN + 2 * KEY_BYTES)
#define FILE_MAX 4096

_Static_assert(LINE_LEN + 2 <= KEY_LINE_MAX, "a line holds a key");

static void print_line(const uint8_t secret[KEY_BYTES], char line[KEY_LINE_MAX])
{
    memcpy(line, PREFIX, PREFIX_LEN);
    sodium_bin2hex(line + PREFIX_LEN, 2 * KEY_BYTES + 1, secret, KEY_BYTES);
    strcpy(line + LINE_LEN, "\n");
}

int key_make(char line[KEY_LINE_MAX], struct err *e)
{
    uint8_t secret[KEY_BYTES];

    if (sodium_init() < 0) {
        return err_set(e, DUST_IO, "no source of random numbers");
    }
    randombytes_buf(secret, sizeof secret);
    print_line(secret, line);
    sodium_memzero(secret, sizeof secret);
    return DUST_OK;
}

static bool parse_line(const char *line, size_t n, uint8_t secret[KEY_BYTES])
{
    size_t got;

    return n == LINE_LEN && memcmp(line, PREFIX, PREFIX_LEN) == 0 &&
           sodium_hex2bin(secret, KEY_BYTES, line + PREFIX_LEN, 2 * KEY_BYTES, NULL, &got, NULL) == 0 && got == KEY_BYTES;
}

static int add(struct keys *k, const uint8_t secret[KEY_BYTES], const char *name, struct err *e)
{
    uint8_t hash[16];

    if (k->n == KEYS_MAX) {
        return err_set(e, DUST_MISUSE, "%s holds more than %d keys", name, KEYS_MAX);
    }
    memcpy(k->key[k->n].secret, secret, KEY_BYTES);
    crypto_generichash(hash, sizeof hash, secret, KEY_BYTES, (const uint8_t *)"dust key hint", 13);
    memcpy(k->key[k->n].hint, hash, KEY_HINT_BYTES);
    for (unsigned i = 0; i < k->n; i++) {
        if (memcmp(k->key[i].hint, hash, KEY_HINT_BYTES) == 0) {
            return err_set(e, DUST_MISUSE, "%s holds a key twice, or two that cannot be told apart: make another one", name);
        }
    }
    k->n++;
    return DUST_OK;
}

int keys_parse(const char *text, size_t n, const char *name, struct keys *out, struct err *e)
{
    struct keys k = {.n = 0};
    uint8_t secret[KEY_BYTES];
    int rv = DUST_OK;

    for (unsigned number = 1; n > 0 && rv == DUST_OK; number++) {
        const char *end = memchr(text, '\n', n);
        size_t line = end != NULL ? (size_t)(end - text) : n, next = end != NULL ? line + 1 : n;

        while (line > 0 && (text[line - 1] == '\r' || text[line - 1] == ' ')) {
            line--;
        }
        if (line != 0 && text[0] != '#') {
            rv = parse_line(text, line, secret)
                     ? add(&k, secret, name, e)
                     : err_set(e, DUST_MISUSE, "%s: line %u is not a key (`dust key FILE` makes one)", name, number);
        }
        text += next;
        n -= next;
    }
    sodium_memzero(secret, sizeof secret);
    if (rv == DUST_OK && k.n == 0) {
        rv = err_set(e, DUST_MISUSE, "%s holds no key (`dust key FILE` makes one)", name);
    }
    if (rv == DUST_OK) {
        *out = k;
    }
    sodium_memzero(&k, sizeof k);
    return rv;
}

static int read_file(const char *path, struct keys *out, struct err *e)
{
    char text[FILE_MAX + 1];
    size_t n;
    int rv = smallfile_read(path, text, FILE_MAX, &n, e);

    if (rv == DUST_OK) {
        rv = keys_parse(text, n, smallfile_shown(path), out, e);
    }
    sodium_memzero(text, sizeof text);
    return rv == DUST_TOOBIG ? DUST_MISUSE : rv;
}

int keys_read(const char *path, struct keys *out, struct err *e)
{
    struct stat st;
    struct err why;
    int rv;

    if (*path == '\0') {
        return err_set(e, DUST_MISUSE, "keyfile: the name of a file is needed");
    }
    if (stat(path, &st) == 0 && (st.st_mode & (S_IROTH | S_IWOTH | S_IWGRP)) != 0) {
        return err_set(e, DUST_REFUSED, "keyfile: the key in %s is no secret: %s (chmod 600 %s, and better make another one)",
            smallfile_shown(path), (st.st_mode & S_IROTH) != 0 ? "everybody on this host may read it" : "others may change it",
            smallfile_shown(path));
    }
    rv = read_file(path, out, &why);
    return rv == DUST_OK ? DUST_OK : err_set(e, rv, "keyfile: %s", why.text);
}

int keys_load(const char *dir, struct keys *out, struct err *e)
{
    char path[PATH_MAX];
    int rv = smallfile_path(path, dir, "key", e);

    if (rv == DUST_OK) {
        rv = read_file(path, out, e);
    }
    if (rv == DUST_NOTFOUND) {
        out->n = 0;
        return DUST_OK;
    }
    return rv;
}

int keys_save(const char *dir, const struct keys *keys, struct err *e)
{
    static const char comment[] = "# dust: the keys of this member's cluster. Messages are sealed with the first one.\n";
    char text[sizeof comment + KEYS_MAX * KEY_LINE_MAX] = "";
    size_t n = sizeof comment - 1;
    int rv;

    memcpy(text, comment, n);
    for (unsigned i = 0; i < keys->n; i++) {
        print_line(keys->key[i].secret, text + n);
        n += LINE_LEN + 1;
    }
    rv = smallfile_save(dir, "key", text, n, e);
    sodium_memzero(text, sizeof text);
    return rv;
}

bool keys_equal(const struct keys *a, const struct keys *b)
{
    bool same = a->n == b->n;

    for (unsigned i = 0; same && i < a->n; i++) {
        same = sodium_memcmp(a->key[i].secret, b->key[i].secret, KEY_BYTES) == 0;
    }
    return same;
}

char *key_hint(const struct keys *keys, unsigned i, char out[KEY_HINT_TEXT])
{
    return sodium_bin2hex(out, KEY_HINT_TEXT, keys->key[i].hint, KEY_HINT_BYTES);
}
