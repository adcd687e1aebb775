#include "raft/snapshot.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "raft/servers.h"
#include "raft/smallfile.h"
#include "vfs/bytes.h"

#define NAME "snapshot"
#define MAGIC "dustsnap"
#define HEAD 40u
#define HASH_SIZE 16u

int snapshot_save(const char *dir, const uint8_t key[BATCH_KEY_SIZE], const struct raft_snapshot *s, struct err *e)
{
    struct raft_buffer conf = {0};
    size_t n = HEAD + HASH_SIZE;
    uint8_t *p, *at;
    int rv = servers_encode(&s->configuration, &conf);

    if (rv != DUST_OK) {
        return err_set(e, rv, "out of memory");
    }
    n += conf.len;
    for (unsigned i = 0; i < s->n_bufs; i++) {
        n += s->bufs[i].len;
    }
    p = n <= SNAPSHOT_FILE_MAX ? malloc(n) : NULL;
    if (p == NULL) {
        raft_free(conf.base);
        return n > SNAPSHOT_FILE_MAX ? err_set(e, DUST_TOOBIG, "a snapshot of %zu bytes is too large", n)
                                     : err_set(e, DUST_NOMEM, "out of memory");
    }
    memcpy(p, MAGIC, 8);
    put64(p + 8, s->index);
    put64(p + 16, s->term);
    put64(p + 24, s->configuration_index);
    put32(p + 32, (uint32_t)conf.len);
    put32(p + 36, (uint32_t)(n - HEAD - conf.len - HASH_SIZE));
    memcpy(p + HEAD, conf.base, conf.len);
    at = p + HEAD + conf.len;
    for (unsigned i = 0; i < s->n_bufs; i++) {
        memcpy(at, s->bufs[i].base, s->bufs[i].len);
        at += s->bufs[i].len;
    }
    crypto_generichash(at, HASH_SIZE, p, n - HASH_SIZE, key, BATCH_KEY_SIZE);
    raft_free(conf.base);
    rv = smallfile_save(dir, NAME, (const char *)p, n, e);
    free(p);
    return rv;
}

void snapshot_free(struct raft_snapshot *s)
{
    if (s == NULL) {
        return;
    }
    raft_configuration_close(&s->configuration);
    for (unsigned i = 0; i < s->n_bufs; i++) {
        raft_free(s->bufs[i].base);
    }
    raft_free(s->bufs);
    raft_free(s);
}

int snapshot_decode(struct raft_snapshot **out, const uint8_t *data, size_t len, const uint8_t key[BATCH_KEY_SIZE])
{
    struct raft_snapshot *s;
    uint8_t hash[HASH_SIZE];
    uint64_t conf, content;
    int rv;

    if (len < HEAD + HASH_SIZE || len > SNAPSHOT_FILE_MAX || memcmp(data, MAGIC, 8) != 0) {
        return DUST_CORRUPT;
    }
    conf = get32(data + 32);
    content = get32(data + 36);
    crypto_generichash(hash, HASH_SIZE, data, len - HASH_SIZE, key, BATCH_KEY_SIZE);
    if (conf + content != len - HEAD - HASH_SIZE || memcmp(hash, data + len - HASH_SIZE, HASH_SIZE) != 0 ||
        get64(data + 8) == 0) {
        return DUST_CORRUPT;
    }
    s = raft_calloc(1, sizeof *s);
    if (s == NULL) {
        return DUST_NOMEM;
    }
    s->index = get64(data + 8);
    s->term = get64(data + 16);
    s->configuration_index = get64(data + 24);
    rv = servers_decode(data + HEAD, (size_t)conf, &s->configuration);
    s->bufs = rv == DUST_OK ? raft_calloc(1, sizeof *s->bufs) : NULL;
    if (s->bufs != NULL) {
        s->n_bufs = 1;
        s->bufs[0] = (struct raft_buffer){.base = raft_malloc((size_t)content + 1), .len = (size_t)content};
    }
    if (s->bufs == NULL || s->bufs[0].base == NULL) {
        snapshot_free(s);
        return rv != DUST_OK ? rv : DUST_NOMEM;
    }
    memcpy(s->bufs[0].base, data + HEAD + conf, (size_t)content);
    *out = s;
    return DUST_OK;
}

int snapshot_load(struct raft_snapshot **out, const char *dir, const uint8_t key[BATCH_KEY_SIZE], struct err *e)
{
    char path[PATH_MAX], *text;
    size_t n;
    int rv = smallfile_path(path, dir, NAME, e);

    *out = NULL;
    if (rv != DUST_OK) {
        return rv;
    }
    text = malloc(SNAPSHOT_FILE_MAX + 1);
    if (text == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = smallfile_read(path, text, SNAPSHOT_FILE_MAX, &n, e);
    if (rv == DUST_OK || rv == DUST_TOOBIG) {
        rv = rv == DUST_OK ? snapshot_decode(out, (const uint8_t *)text, n, key) : DUST_CORRUPT;
        if (rv != DUST_OK) {
            err_set(e, rv, rv == DUST_NOMEM ? "out of memory" : "the snapshot of the log, %s, is damaged", smallfile_shown(path));
        }
    }
    free(text);
    return rv == DUST_NOTFOUND ? DUST_OK : rv;
}

int snapshot_exists(const char *dir, bool *exists, struct err *e)
{
    char path[PATH_MAX];
    int rv = smallfile_path(path, dir, NAME, e);

    if (rv == DUST_OK) {
        *exists = access(path, F_OK) == 0;
        rv = *exists || errno == ENOENT ? DUST_OK : err_sys(e, errno, "cannot look for %s", smallfile_shown(path));
    }
    return rv;
}
