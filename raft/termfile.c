#include "raft/termfile.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "raft/smallfile.h"
#include "vfs/bytes.h"
#include "vfs/fd.h"

#define NAME "term"
#define MAGIC_KEY "dustkey1"
#define MAGIC_TERM "dustterm"
#define BODY 48u
#define HASH_SIZE 16u

static void seal(uint8_t *block, const uint8_t *key)
{
    crypto_generichash(block + BODY, HASH_SIZE, block, BODY, key, key != NULL ? BATCH_KEY_SIZE : 0);
}

static bool whole(const uint8_t *block, const char *magic, const uint8_t *key)
{
    uint8_t hash[HASH_SIZE];

    crypto_generichash(hash, HASH_SIZE, block, BODY, key, key != NULL ? BATCH_KEY_SIZE : 0);
    return memcmp(block, magic, 8) == 0 && memcmp(hash, block + BODY, HASH_SIZE) == 0;
}

static void encode(uint8_t block[TERMFILE_BLOCK], const struct termfile *t)
{
    memset(block, 0, TERMFILE_BLOCK);
    memcpy(block, MAGIC_TERM, 8);
    put64(block + 8, t->count);
    put64(block + 16, t->term);
    put64(block + 24, t->vote);
    put64(block + 32, t->life);
    seal(block, t->key);
}

bool termfile_decode(struct termfile *t, const uint8_t *data, size_t len)
{
    struct termfile found = *t;
    bool any = false;

    if (len != TERMFILE_SIZE || !whole(data, MAGIC_KEY, NULL)) {
        return false;
    }
    memcpy(found.key, data + 8, BATCH_KEY_SIZE);
    for (unsigned i = 1; i <= 2; i++) {
        const uint8_t *p = data + (size_t)i * TERMFILE_BLOCK;
        uint64_t count = get64(p + 8);

        if (count % 2 + 1 == i && whole(p, MAGIC_TERM, found.key) && (!any || count > found.count)) {
            found.count = count;
            found.term = get64(p + 16);
            found.vote = get64(p + 24);
            found.life = get64(p + 32);
            any = true;
        }
    }
    if (any) {
        *t = found;
    }
    return any;
}

static int make_file(const char *dir, struct err *e)
{
    uint8_t data[TERMFILE_SIZE] = MAGIC_KEY;
    struct termfile t = {.count = 0};

    randombytes_buf(t.key, sizeof t.key);
    memcpy(data + 8, t.key, sizeof t.key);
    seal(data, NULL);
    encode(data + TERMFILE_BLOCK, &t);
    return smallfile_save(dir, NAME, (const char *)data, sizeof data, e);
}

int termfile_open(struct termfile *t, const char *dir, bool make, struct err *e)
{
    char path[PATH_MAX], data[TERMFILE_SIZE + 1];
    size_t n;
    int rv = smallfile_path(path, dir, NAME, e);

    *t = (struct termfile){0};
    rv = rv == DUST_OK ? smallfile_read(path, data, TERMFILE_SIZE, &n, e) : rv;
    if (rv == DUST_NOTFOUND && make) {
        rv = make_file(dir, e);
        rv = rv == DUST_OK ? smallfile_read(path, data, TERMFILE_SIZE, &n, e) : rv;
    }
    if (rv == DUST_TOOBIG || (rv == DUST_OK && !termfile_decode(t, (const uint8_t *)data, n))) {
        return err_set(e, DUST_CORRUPT, "%s is damaged: it does not hold a term", smallfile_shown(path));
    }
    if (rv != DUST_OK) {
        return rv;
    }
    t->fd = fd_high(open(path, O_WRONLY | O_DSYNC | O_CLOEXEC | O_NOFOLLOW));
    if (t->fd < 0) {
        return err_sys(e, errno, "cannot open %s", smallfile_shown(path));
    }
    t->open = true;
    return DUST_OK;
}

void termfile_close(struct termfile *t)
{
    if (t->open) {
        close(t->fd);
    }
    t->open = false;
}

int termfile_set(struct termfile *t, uint64_t term, uint64_t vote, uint64_t life, struct err *e)
{
    struct termfile next = *t;
    uint8_t block[TERMFILE_BLOCK];
    off_t at;
    ssize_t n;

    next.count++;
    next.term = term;
    next.vote = vote;
    next.life = life;
    encode(block, &next);
    at = (off_t)(next.count % 2 + 1) * TERMFILE_BLOCK;
    do {
        n = pwrite(t->fd, block, sizeof block, at);
    } while (n < 0 && errno == EINTR);
    if (n != (ssize_t)sizeof block) {
        t->count += 2; /* whatever this one is found to hold, the other block has what is known, and is not written next */
        return err_sys(e, n < 0 ? errno : ENOSPC, "cannot write the term of this member");
    }
    *t = next;
    return DUST_OK;
}
