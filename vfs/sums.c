/* The files, little-endian:
 *
 *     sums        0   8  "dustsum2"
 *                 8  16  version
 *                24   8  number of pages
 *                32   8  page_sum over the 32 bytes before
 *              4096      blocks of 4096: the sums of 511 pages, 8 bytes each, from page 1 on; then 8 bytes: page_sum
 *                        over the block, with its number, from 0, in their place
 *     sums-next   0   8  "dustsumN"
 *                 8  16  version
 *                24  16  version before it: what `sums` has to be of, for the changes to be applied
 *                40   4  number of pages
 *                44   4  number of changes
 *                48      the changes: page number 8, sum 8
 *                 …   8  page_sum over all before, padded with zeros to a multiple of 32
 *
 * A block that is not what was written (torn, or damaged) is one of sums that are not known.
 *
 * In memory they are arrays, each of twice as many sums as the one before, made when they are needed; they never move. */
#include "vfs/sums.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/fd.h"

#define BLOCK 4096
#define PER_BLOCK (BLOCK / 8 - 1)
#define HEAD_NEXT 48

struct sums {
    char dir[PATH_MAX - 16];
    int fd;
    _Atomic(_Atomic uint64_t *) sum[32]; /* number i: of the pages from 1 << i on, as many */
    uint32_t n_pages;
    struct vid id;      /* the version that they are of */
    bool behind;        /* the file is of an older one: it could not be written */
    struct vid next_id; /* under way: not none */
    uint32_t next_n_pages, n_changes;
    struct sums_change *changes;
};

static void put(uint8_t *p, uint64_t v, int n)
{
    for (int i = 0; i < n; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static uint64_t get(const uint8_t *p, int n)
{
    uint64_t v = 0;

    for (int i = n; i-- > 0;) {
        v = v << 8 | p[i];
    }
    return v;
}

/* ---- one sum ---- */

/* Four lanes, each a chain of xor and multiplication by an odd number: both are bijections of the lane, so that a change
 * of one word cannot be undone by what follows. */
uint64_t page_sum(const void *page, size_t size)
{
    static const uint64_t odd[4] = {0x9e3779b97f4a7c15u, 0xc2b2ae3d27d4eb4fu, 0x165667b19e3779f9u, 0xd6e8feb86659fd93u};
    uint64_t lane[4] = {1, 2, 3, 4}, sum = size;
    const uint8_t *p = page;

    for (size_t at = 0; at + 32 <= size; at += 32) {
        uint64_t w[4];

        memcpy(w, p + at, sizeof w);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ w[i]) * odd[i];
            lane[i] ^= lane[i] >> 29;
        }
    }
    for (int i = 0; i < 4; i++) {
        sum = (sum ^ lane[i]) * odd[3 - i];
        sum ^= sum >> 32;
    }
    return sum != 0 ? sum : 1;
}

static unsigned array_of(uint32_t pgno)
{
    return 31 - (unsigned)__builtin_clz(pgno);
}

static uint64_t sum_of(const struct sums *s, uint32_t pgno)
{
    unsigned i = array_of(pgno);
    _Atomic uint64_t *sum = atomic_load_explicit(&s->sum[i], memory_order_acquire);

    return sum != NULL ? atomic_load_explicit(&sum[pgno - (1u << i)], memory_order_relaxed) : 0;
}

bool sums_check(const struct sums *s, uint32_t pgno, uint64_t sum)
{
    uint64_t known = sum_of(s, pgno);

    return known == 0 || known == sum;
}

bool sums_known(const struct sums *s, uint32_t pgno)
{
    return sum_of(s, pgno) != 0;
}

void sums_set(struct sums *s, uint32_t pgno, uint64_t value)
{
    unsigned i = array_of(pgno);
    _Atomic uint64_t *sum = atomic_load_explicit(&s->sum[i], memory_order_relaxed);

    if (sum == NULL && value != 0) {
        sum = calloc((size_t)1 << i, sizeof *sum);
        atomic_store_explicit(&s->sum[i], sum, memory_order_release);
    }
    if (sum != NULL) {
        atomic_store_explicit(&sum[pgno - (1u << i)], value, memory_order_relaxed);
    }
}

/* ---- the files ---- */

static void name(const struct sums *s, const char *file, char out[PATH_MAX])
{
    snprintf(out, PATH_MAX, "%s/%s", s->dir, file);
}

static int write_at(int fd, const void *buf, size_t n, off_t at)
{
    errno = 0;
    return pwrite(fd, buf, n, at) == (ssize_t)n ? 0 : errno != 0 ? errno : ENOSPC;
}

static uint32_t block_of(uint32_t pgno)
{
    return (pgno - 1) / PER_BLOCK;
}

/* Of a block's content; the last 8 bytes are overwritten. */
static uint64_t block_sum(uint8_t buf[BLOCK], uint32_t block)
{
    put(buf + BLOCK - 8, block, 8);
    return page_sum(buf, BLOCK);
}

static int store_block(const struct sums *s, uint32_t block)
{
    uint8_t buf[BLOCK];
    uint64_t first = (uint64_t)block * PER_BLOCK + 1;

    for (uint32_t i = 0; i < PER_BLOCK; i++) {
        put(buf + 8 * i,
            first + i <= UINT32_MAX ? sum_of(s, (uint32_t)(first + i)) : 0, 8);
    }
    put(buf + BLOCK - 8, block_sum(buf, block), 8);
    return write_at(s->fd, buf, BLOCK, BLOCK * ((off_t)block + 1));
}

static int store_all(const struct sums *s, uint32_t n_pages)
{
    int rv = 0;

    for (uint32_t block = 0; rv == 0 && n_pages != 0 && block <= block_of(n_pages); block++) {
        rv = store_block(s, block);
    }
    return rv;
}

/* The header of `sums` last: until then it says the version that it was of. */
static int store_head(struct sums *s, const struct vid *id, uint32_t n_pages)
{
    uint8_t head[40] = "dustsum2";
    int rv;

    memcpy(head + 8, id->b, 16);
    put(head + 24, n_pages, 8);
    put(head + 32, page_sum(head, 32), 8);
    rv = fdatasync(s->fd) != 0 ? errno : 0;
    if (rv == 0) {
        rv = write_at(s->fd, head, sizeof head, 0);
    }
    if (rv == 0 && fdatasync(s->fd) != 0) {
        rv = errno;
    }
    if (rv == 0) {
        s->n_pages = n_pages;
        s->id = *id;
        s->behind = false;
    }
    return rv;
}

int sums_store(struct sums *s, const struct vid *id, uint32_t n_pages, struct err *e)
{
    int rv = store_all(s, n_pages);

    if (rv == 0) {
        rv = store_head(s, id, n_pages);
    }
    if (rv != 0) { /* those in memory are right all the same, and are written with the next checkpoint */
        s->n_pages = n_pages;
        s->id = *id;
        s->behind = true;
    }
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot write the checksums in %s", s->dir);
}

static int load(struct sums *s, struct vid *id)
{
    uint8_t head[40], buf[BLOCK];
    struct stat st;
    uint64_t n, sum;

    *id = (struct vid){{0}};
    if (fstat(s->fd, &st) != 0 || pread(s->fd, head, sizeof head, 0) != sizeof head ||
        memcmp(head, "dustsum2", 8) != 0 || get(head + 32, 8) != page_sum(head, 32) ||
        get(head + 24, 8) > UINT32_MAX) {
        return 0;
    }
    n = get(head + 24, 8);
    if (n != 0 && st.st_size < BLOCK * ((off_t)block_of((uint32_t)n) + 2)) {
        return 0; /* cut off */
    }
    for (uint32_t block = 0; n != 0 && block <= block_of((uint32_t)n); block++) {
        ssize_t got = pread(s->fd, buf, BLOCK, BLOCK * ((off_t)block + 1));

        if (got < 0) {
            return errno;
        }
        sum = get(buf + BLOCK - 8, 8);
        if (got != BLOCK || block_sum(buf, block) != sum) {
            continue;
        }
        for (uint32_t i = 0; i < PER_BLOCK && (uint64_t)block * PER_BLOCK + i < n; i++) {
            sums_set(s, block * PER_BLOCK + i + 1, get(buf + 8 * i, 8));
        }
    }
    s->n_pages = (uint32_t)n;
    memcpy(id->b, head + 8, 16);
    return 0;
}

static bool in_order(const uint8_t *change, uint32_t n, uint32_t n_pages)
{
    for (uint64_t before = 0; n > 0; n--, change += 16) {
        uint64_t pgno = get(change, 8);

        if (pgno <= before || pgno > n_pages) {
            return false;
        }
        before = pgno;
    }
    return true;
}

/* Read `sums-next`, if it is there and whole, and leads from the one version to the other. */
static uint8_t *load_next(const struct sums *s, const struct vid *id, const struct vid *from, uint32_t *n_changes)
{
    char path[PATH_MAX];
    struct stat st;
    uint8_t *buf = NULL;
    size_t padded;
    int fd;

    name(s, "sums-next", path);
    fd = fd_high(open(path, O_RDONLY | O_CLOEXEC));
    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &st) == 0 && st.st_size >= HEAD_NEXT + 8 && (buf = calloc(1, (size_t)st.st_size + 32)) != NULL &&
        pread(fd, buf, (size_t)st.st_size, 0) == st.st_size) {
        uint64_t sum = get(buf + st.st_size - 8, 8);

        *n_changes = (uint32_t)get(buf + 44, 4);
        padded = ((size_t)st.st_size - 8 + 31) / 32 * 32;
        memset(buf + st.st_size - 8, 0, 8);
        if ((uint64_t)st.st_size == HEAD_NEXT + 16 * (uint64_t)*n_changes + 8 && memcmp(buf, "dustsumN", 8) == 0 &&
            memcmp(buf + 8, id->b, 16) == 0 && memcmp(buf + 24, from->b, 16) == 0 && page_sum(buf, padded) == sum &&
            in_order(buf + HEAD_NEXT, *n_changes, (uint32_t)get(buf + 40, 4))) {
            close(fd);
            return buf;
        }
    }
    close(fd);
    free(buf);
    return NULL;
}

static void forget_beyond(struct sums *s, uint32_t n_pages)
{
    for (uint32_t pgno = n_pages + 1; pgno <= s->n_pages && pgno != 0; pgno++) {
        sums_set(s, pgno, 0);
    }
}

int sums_open(struct sums **out, const char *dir, const struct vid *id, bool *known, struct err *e)
{
    struct sums *s = calloc(1, sizeof *s);
    char path[PATH_MAX];
    struct vid have;
    uint32_t n;
    uint8_t *next;
    int rv;

    if (s == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    name(s, "sums", path);
    s->fd = fd_high(open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    rv = s->fd < 0 ? errno : load(s, &have);
    if (rv != 0) {
        rv = err_sys(e, rv, "cannot read the checksums in %s", path);
        sums_close(s);
        return rv;
    }
    next = load_next(s, id, &have, &n);
    if (next != NULL && !vid_equal(&have, id)) {
        uint32_t n_pages = (uint32_t)get(next + 40, 4);

        for (uint32_t i = 0; i < n; i++) {
            const uint8_t *p = next + HEAD_NEXT + 16 * (size_t)i;

            sums_set(s, (uint32_t)get(p, 8), get(p + 8, 8));
        }
        forget_beyond(s, n_pages);
        rv = sums_store(s, id, n_pages, e);
        have = *id;
    }
    free(next);
    if (rv != DUST_OK) {
        sums_close(s);
        return rv;
    }
    if (!vid_equal(&have, id) || vid_none(id)) {
        forget_beyond(s, 0);
        s->n_pages = 0;
        *known = false;
    } else {
        *known = true;
        for (uint32_t pgno = 1; pgno <= s->n_pages && pgno != 0 && *known; pgno++) {
            *known = sums_known(s, pgno);
        }
    }
    s->id = *id;
    name(s, "sums-next", path);
    unlink(path);
    *out = s;
    return DUST_OK;
}

void sums_close(struct sums *s)
{
    if (s != NULL) {
        if (s->fd >= 0) {
            close(s->fd);
        }
        for (unsigned i = 0; i < 32; i++) {
            free((void *)atomic_load_explicit(&s->sum[i], memory_order_relaxed));
        }
        free(s->changes);
        free(s);
    }
}

/* ---- with a checkpoint ---- */

int sums_begin(struct sums *s, const struct vid *id, uint32_t n_pages, const struct sums_change *changes, uint32_t n,
    struct err *e)
{
    size_t len = HEAD_NEXT + 16 * (size_t)n, padded = (len + 31) / 32 * 32;
    uint8_t *buf = calloc(1, padded + 8);
    char path[PATH_MAX];
    int fd, rv;

    s->changes = malloc((n + 1) * sizeof *s->changes);
    if (buf == NULL || s->changes == NULL) {
        free(buf);
        free(s->changes);
        s->changes = NULL;
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    memcpy(s->changes, changes, n * sizeof *changes);
    s->n_changes = n;
    s->next_id = *id;
    s->next_n_pages = n_pages;
    memcpy(buf, "dustsumN", 8);
    memcpy(buf + 8, id->b, 16);
    memcpy(buf + 24, s->id.b, 16);
    put(buf + 40, n_pages, 4);
    put(buf + 44, n, 4);
    for (uint32_t i = 0; i < n; i++) {
        put(buf + HEAD_NEXT + 16 * (size_t)i, changes[i].pgno, 8);
        put(buf + HEAD_NEXT + 16 * (size_t)i + 8, changes[i].sum, 8);
    }
    put(buf + len, page_sum(buf, padded), 8);
    name(s, "sums-next", path);
    fd = fd_high(open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    rv = fd < 0 ? errno : write_at(fd, buf, len + 8, 0);
    if (rv == 0 && fsync(fd) != 0) {
        rv = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    free(buf);
    if (rv != 0) {
        sums_end(s, false, NULL);
        return err_sys(e, rv, "cannot write %s", path);
    }
    return DUST_OK;
}

int sums_end(struct sums *s, bool done, struct err *e)
{
    char path[PATH_MAX];
    int rv = 0;

    if (done) {
        for (uint32_t i = 0; i < s->n_changes; i++) {
            sums_set(s, s->changes[i].pgno, s->changes[i].sum);
        }
        forget_beyond(s, s->next_n_pages);
        s->id = s->next_id;
        if (s->behind) {
            rv = store_all(s, s->next_n_pages);
        }
        for (uint32_t i = 0; rv == 0 && i < s->n_changes; i++) {
            if (i == 0 || block_of(s->changes[i].pgno) != block_of(s->changes[i - 1].pgno)) {
                rv = store_block(s, block_of(s->changes[i].pgno));
            }
        }
        if (rv == 0) {
            rv = store_head(s, &s->next_id, s->next_n_pages);
        }
        s->behind = rv != 0;
    }
    free(s->changes);
    s->changes = NULL;
    name(s, "sums-next", path);
    if (rv == 0) {
        unlink(path); /* else it is still needed */
    }
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot write the checksums in %s", s->dir);
}

/* ---- attached ---- */

#define PEEK_BLOCKS 64u

struct sums_peek {
    int fd;
    struct vid id;   /* that the blocks were read at */
    uint32_t n_pages;
    struct {
        bool known;
        uint32_t block;
        uint8_t bytes[BLOCK];
    } at[PEEK_BLOCKS]; /* a block is at its number, modulo this */
};

static struct sums_peek *peek_new(const char *dir)
{
    struct sums_peek *p = calloc(1, sizeof *p);
    char path[PATH_MAX];

    if (p == NULL) {
        return NULL;
    }
    snprintf(path, sizeof path, "%s/sums", dir);
    p->fd = fd_high(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (p->fd < 0) {
        free(p);
        return NULL;
    }
    return p;
}

void sums_peek_free(struct sums_peek *p)
{
    if (p != NULL) {
        close(p->fd);
        free(p);
    }
}

/* Is the file of this version? */
static bool peek_head(struct sums_peek *p, const struct vid *id)
{
    uint8_t head[40];

    if (vid_equal(&p->id, id)) {
        return true;
    }
    if (pread(p->fd, head, sizeof head, 0) != sizeof head || memcmp(head, "dustsum2", 8) != 0 ||
        get(head + 32, 8) != page_sum(head, 32) || get(head + 24, 8) > UINT32_MAX || memcmp(head + 8, id->b, 16) != 0) {
        return false;
    }
    for (uint32_t i = 0; i < PEEK_BLOCKS; i++) {
        p->at[i].known = false;
    }
    p->n_pages = (uint32_t)get(head + 24, 8);
    p->id = *id;
    return true;
}

bool sums_peek(struct sums_peek **peek, const char *dir, const struct vid *id, uint32_t pgno, uint64_t *sum)
{
    uint32_t block = block_of(pgno), at = block % PEEK_BLOCKS;
    struct sums_peek *p = *peek;

    if (p == NULL) {
        p = *peek = peek_new(dir);
    }
    if (p == NULL || !peek_head(p, id)) {
        return false;
    }
    *sum = 0;
    if (pgno > p->n_pages) {
        return true;
    }
    if (!p->at[at].known || p->at[at].block != block) {
        uint64_t stored;

        p->at[at].known = false;
        if (pread(p->fd, p->at[at].bytes, BLOCK, BLOCK * ((off_t)block + 1)) != BLOCK) {
            return false;
        }
        stored = get(p->at[at].bytes + BLOCK - 8, 8);
        if (block_sum(p->at[at].bytes, block) != stored) {
            return false; /* it is being written; or damaged, and then its pages are not checked */
        }
        p->at[at].known = true;
        p->at[at].block = block;
    }
    *sum = get(p->at[at].bytes + 8 * ((pgno - 1) % PER_BLOCK), 8);
    return true;
}
