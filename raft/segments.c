#include "raft/segments.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT 1u
#define FORMAT_SIZE 8u
#define PREAMBLE_SIZE 8u /* of a batch: both checksums */
#define ENTRY_HEAD_SIZE 16u
#define SEGMENT_MAX ((off_t)64 << 20) /* bytes; libraft's are 8 MiB */

struct crc {
    uint32_t table[256];
};

static void crc_init(struct crc *c)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t v = i << 24;

        for (int bit = 0; bit < 8; bit++) {
            v = v << 1 ^ ((v & 0x80000000u) != 0 ? 0x04c11db7u : 0);
        }
        c->table[i] = v;
    }
}

static uint32_t crc_of(const struct crc *c, const uint8_t *p, size_t n)
{
    uint32_t v = 0;

    for (; n > 0; n--) {
        v = v << 8 ^ c->table[(v >> 24 ^ *p++) & 255];
    }
    return v;
}

static uint64_t get(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;

    memcpy(&v, p, bytes);
    return le64toh(v);
}

/* Entries of the batch at p, and its length; 0: it is not whole. */
static uint64_t batch(const struct crc *c, const uint8_t *p, size_t left, size_t *len)
{
    uint64_t n, data = 0;
    size_t head;

    if (left < PREAMBLE_SIZE + 8) {
        return 0;
    }
    n = get(p + PREAMBLE_SIZE, 8);
    if (n == 0 || n > (left - PREAMBLE_SIZE - 8) / ENTRY_HEAD_SIZE) {
        return 0;
    }
    head = 8 + (size_t)n * ENTRY_HEAD_SIZE;
    if (crc_of(c, p + PREAMBLE_SIZE, head) != get(p, 4)) {
        return 0;
    }
    for (uint64_t i = 0; i < n; i++) {
        data += get(p + PREAMBLE_SIZE + 8 + i * ENTRY_HEAD_SIZE + 12, 4);
    }
    if (data > left - PREAMBLE_SIZE - head || crc_of(c, p + PREAMBLE_SIZE + head, (size_t)data) != get(p + 4, 4)) {
        return 0;
    }
    *len = PREAMBLE_SIZE + head + (size_t)data;
    return n;
}

#define OPEN_MAX 64 /* open segments; libraft makes three ahead */

struct open_segment {
    unsigned long long number;
    uint64_t count; /* of entries in whole batches */
    bool broken;    /* something else follows */
};

static bool only_zeros(const uint8_t *p, size_t n)
{
    while (n > 0 && *p == 0) {
        p++;
        n--;
    }
    return n == 0;
}

static int read_whole(const char *path, uint8_t **buf, size_t *len, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), rv = DUST_OK;
    ssize_t n = 1;
    struct stat st;

    *buf = NULL;
    *len = 0;
    if (fd < 0 || fstat(fd, &st) != 0) {
        rv = err_sys(e, errno, "cannot read %s", path);
    } else if (st.st_size > SEGMENT_MAX) {
        rv = err_set(e, DUST_VERSION, "%s is larger than any segment of the log", path);
    } else {
        *buf = malloc((size_t)st.st_size + 1);
        rv = *buf == NULL ? err_set(e, DUST_NOMEM, "out of memory") : DUST_OK;
    }
    while (rv == DUST_OK && *len < (size_t)st.st_size && n > 0) {
        n = read(fd, *buf + *len, (size_t)st.st_size - *len);
        if (n < 0) {
            rv = err_sys(e, errno, "cannot read %s", path);
        } else {
            *len += (size_t)n;
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

bool segments_decode(const uint8_t *data, size_t len, uint64_t *count, bool *broken)
{
    uint64_t format = len >= FORMAT_SIZE ? get(data, FORMAT_SIZE) : 0, n;
    size_t at = 0, size;
    struct crc c;

    *count = 0;
    if (format == FORMAT) {
        crc_init(&c);
        for (at = FORMAT_SIZE; (n = batch(&c, data + at, len - at, &size)) != 0; at += size) {
            *count += n;
        }
    }
    *broken = !only_zeros(data + at, len - at);
    return format == FORMAT || format == 0;
}

static int look(const char *path, struct open_segment *s, struct err *e)
{
    uint8_t *buf;
    size_t len;
    int rv = read_whole(path, &buf, &len, e);

    if (rv == DUST_OK && !segments_decode(buf, len, &s->count, &s->broken)) {
        rv = err_set(e, DUST_VERSION, "%s is of a format that is not known here", path);
    }
    free(buf);
    return rv;
}

/* What is behind one that is broken does not follow on it. */
static uint64_t entries_of(const struct open_segment *s, unsigned n)
{
    unsigned long long until = ~0ull;
    uint64_t count = 0;

    for (unsigned i = 0; i < n; i++) {
        if (s[i].broken && s[i].number < until) {
            until = s[i].number;
        }
    }
    for (unsigned i = 0; i < n; i++) {
        count += s[i].number <= until ? s[i].count : 0;
    }
    return count;
}

int segments_last(const char *dir, uint64_t *last, struct err *e)
{
    struct open_segment open[OPEN_MAX];
    unsigned n_open = 0;
    uint64_t closed = 0, snapshot = 0;
    char path[4096 + 300];
    struct dirent *d;
    int rv = DUST_OK;
    DIR *folder = opendir(dir);

    if (folder == NULL) {
        return err_sys(e, errno, "cannot read %s", dir);
    }
    while (rv == DUST_OK && (d = readdir(folder)) != NULL) {
        unsigned long long v[3];
        int end = 0;

        if (sscanf(d->d_name, "open-%llu%n", &v[0], &end) == 1 && d->d_name[end] == '\0') {
            if (n_open == OPEN_MAX) {
                rv = err_set(e, DUST_VERSION, "%s has more open segments than libraft makes", dir);
                break;
            }
            open[n_open] = (struct open_segment){.number = v[0]};
            snprintf(path, sizeof path, "%s/%s", dir, d->d_name);
            rv = look(path, &open[n_open++], e);
        } else if (sscanf(d->d_name, "snapshot-%llu-%llu-%llu.meta%n", &v[0], &v[1], &v[2], &end) == 3 && end != 0 &&
                   d->d_name[end] == '\0') {
            snapshot = v[1] > snapshot ? v[1] : snapshot;
        } else if (sscanf(d->d_name, "%16llu-%16llu%n", &v[0], &v[1], &end) == 2 && d->d_name[end] == '\0') {
            closed = v[1] > closed ? v[1] : closed;
        }
    }
    closedir(folder);
    if (rv == DUST_OK) {
        uint64_t n = (closed != 0 ? closed : snapshot) + entries_of(open, n_open);

        *last = n > snapshot ? n : snapshot;
    }
    return rv;
}

/* One that was never written to begins with zeros. */
static int in_use(const char *dir, const char *name, bool *yes, struct err *e)
{
    char path[4096 + 300];
    uint64_t format = 0;
    ssize_t n;
    int fd;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        return DUST_OK; /* it has just been closed, or removed */
    }
    n = fd >= 0 ? pread(fd, &format, sizeof format, 0) : -1;
    if (n < 0) {
        int rv = err_sys(e, errno, "cannot read %s", path);

        if (fd >= 0) {
            close(fd);
        }
        return rv;
    }
    close(fd);
    *yes = *yes || format != 0;
    return DUST_OK;
}

int segments_truncated(const char *dir, uint64_t index, bool *done, struct err *e)
{
    DIR *folder = opendir(dir);
    bool there = false;
    struct dirent *d;
    int rv = DUST_OK;

    *done = false;
    if (folder == NULL) {
        return err_sys(e, errno, "cannot read %s", dir);
    }
    while (rv == DUST_OK && !there && (d = readdir(folder)) != NULL) {
        unsigned long long first, last;
        int end = 0;

        if (sscanf(d->d_name, "open-%llu%n", &first, &end) == 1 && d->d_name[end] == '\0') {
            rv = in_use(dir, d->d_name, &there, e);
        } else if (sscanf(d->d_name, "%16llu-%16llu%n", &first, &last, &end) == 2 && d->d_name[end] == '\0') {
            there = last >= index;
        }
    }
    if (rv == DUST_OK && !there) {
        *done = fsync(dirfd(folder)) == 0;
        rv = *done ? DUST_OK : err_sys(e, errno, "cannot flush the folder %s", dir);
    }
    closedir(folder);
    return rv;
}

/* ---- what a truncation cut short leaves ---- */

struct closed_segment {
    uint64_t first, last;
    char name[40];
};

static int by_first(const void *a, const void *b)
{
    const struct closed_segment *x = a, *y = b;

    return x->first != y->first ? (x->first < y->first ? -1 : 1) : x->last < y->last ? -1 : x->last > y->last;
}

static int list_closed(const char *dir, struct closed_segment **list, size_t *n, struct err *e)
{
    DIR *folder = opendir(dir);
    struct dirent *d;
    size_t room = 0;

    *list = NULL;
    *n = 0;
    if (folder == NULL) {
        return err_sys(e, errno, "cannot read %s", dir);
    }
    while ((d = readdir(folder)) != NULL) {
        unsigned long long first, last;
        int end = 0;

        if (sscanf(d->d_name, "%16llu-%16llu%n", &first, &last, &end) != 2 || d->d_name[end] != '\0' || end >= 40) {
            continue;
        }
        if (*n == room) {
            struct closed_segment *more = realloc(*list, (room + 64) * sizeof *more);

            if (more == NULL) {
                closedir(folder);
                free(*list);
                return err_set(e, DUST_NOMEM, "out of memory");
            }
            *list = more;
            room += 64;
        }
        (*list)[*n] = (struct closed_segment){.first = first, .last = last};
        memcpy((*list)[(*n)++].name, d->d_name, (size_t)end + 1);
    }
    closedir(folder);
    return DUST_OK;
}

static int remove_all(const char *dir, const struct closed_segment *s, size_t n, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rv = fd < 0 ? errno : 0;

    while (rv == 0 && n > 0) { /* the last one first, so that it can be gone on with */
        rv = unlinkat(fd, s[--n].name, 0) != 0 ? errno : 0;
    }
    if (rv == 0 && fsync(fd) != 0) {
        rv = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot remove what is left of a truncation in %s", dir);
}

/* The one that was to be the last, made by cutting a longer one that begins where it does; or one that ended there. */
static const struct closed_segment *last_of(const struct closed_segment *list, size_t n, uint64_t index)
{
    for (size_t i = 0; i < n; i++) {
        if (list[i].last == index) {
            return &list[i];
        }
    }
    return NULL;
}

int segments_mend(const char *dir, uint64_t promised, struct err *e)
{
    const struct closed_segment *last;
    struct closed_segment *list;
    bool gap = true, twice = false;
    size_t n, beyond;
    int rv = list_closed(dir, &list, &n, e);

    last = rv == DUST_OK && promised != 0 ? last_of(list, n, promised) : NULL;
    if (last != NULL) {
        uint64_t first = last->first;

        qsort(list, n, sizeof *list, by_first);
        for (size_t i = beyond = n; i-- > 0 && list[i].last > promised && list[i].first >= first;) {
            beyond = i;
        }
        for (size_t i = 0; i < n; i++) {
            gap = gap && list[i].first != promised + 1;
            twice = twice || (list[i].first == first && list[i].last > promised);
        }
        if (beyond < n && (gap || twice)) {
            rv = remove_all(dir, list + beyond, n - beyond, e);
        }
    }
    free(list);
    return rv;
}
