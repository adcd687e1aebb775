/* What libraft's storage makes of a write cut off by a power loss, and where it needs help.
 *
 * It writes to the open segments (open-1, open-2 …: zeros, allocated beforehand) one after the other, one write at a
 * time. Loading, it takes from each the batches that are whole, by their checksums, and drops what follows: that was
 * under way, and nobody was told of it. But a segment begins with its format, 8 bytes, and a disk may have stored the
 * later sectors of the first write and not the first one. Then libraft reads "format version 0" and refuses the log.
 *
 * Such a segment is emptied here, which libraft takes for one never used. That is right if its first write was the last
 * one of all: no later segment may have anything but zeros. (Otherwise the disk has lost what it had stored, and the
 * log is refused as before.) A segment in which more than one write was done, and whose first sector then decayed,
 * cannot be told from it.
 *
 * Term and vote are in metadata1 and metadata2, written in turns, with a version that counts up: the first is the one
 * with version 1, the second comes into being with version 2. After a power loss a new file may have its size and
 * nothing but zeros, which libraft refuses. Such a file is removed here, as long as the other one is as it was before
 * it was made: nobody was told of what it was to hold. */
#include "raft/torn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FORMAT_SIZE 8 /* bytes at the beginning of a segment; not zero */
#define CHUNK (64u << 10)
#define METADATA_SIZE 32 /* bytes: format, version, term, vote; 8 each, little-endian */
#define METADATA_NONE UINT64_MAX
#define METADATA_OTHER (UINT64_MAX - 1)

/* The open segment with the lowest number above `after`. False: there is none. */
static bool next_segment(DIR *dir, unsigned long long after, unsigned long long *number)
{
    struct dirent *d;
    bool found = false;

    rewinddir(dir);
    while ((d = readdir(dir)) != NULL) {
        unsigned long long n;
        int end = 0;

        if (sscanf(d->d_name, "open-%llu%n", &n, &end) == 1 && d->d_name[end] == '\0' && n > after &&
            (!found || n < *number)) {
            *number = n;
            found = true;
        }
    }
    return found;
}

/* Of a segment: does it have its format, and anything else? */
static int look(int fd, bool *format, bool *content)
{
    static const uint8_t zeros[CHUNK];
    uint8_t *buf = malloc(CHUNK);
    ssize_t n = 0;

    if (buf == NULL) {
        return ENOMEM;
    }
    *format = *content = false;
    for (off_t at = 0; !*format && !*content && (n = pread(fd, buf, CHUNK, at)) > 0; at += n) {
        size_t first = at == 0 && n >= FORMAT_SIZE ? FORMAT_SIZE : 0;

        *format = memcmp(buf, zeros, first) != 0;
        *content = memcmp(buf + first, zeros, (size_t)n - first) != 0;
    }
    free(buf);
    return n < 0 ? errno : 0;
}

/* What stands in a metadata file: its version (0: only zeros), or METADATA_NONE, METADATA_OTHER. */
static uint64_t metadata_version(const char *path)
{
    uint8_t buf[METADATA_SIZE];
    uint64_t version = METADATA_OTHER;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        return errno == ENOENT ? METADATA_NONE : METADATA_OTHER;
    }
    if (read(fd, buf, sizeof buf) == sizeof buf) {
        version = 0;
        for (int i = 7; i >= 0; i--) {
            version = version << 8 | buf[8 + i];
        }
        for (size_t i = 0; i < sizeof buf && version == 0; i++) {
            version = buf[i] != 0 ? METADATA_OTHER : 0;
        }
    }
    close(fd);
    return version;
}

static void mend_metadata(const char *dir)
{
    char one[PATH_MAX], two[PATH_MAX];
    uint64_t v1, v2;

    snprintf(one, sizeof one, "%s/metadata1", dir);
    snprintf(two, sizeof two, "%s/metadata2", dir);
    v1 = metadata_version(one);
    v2 = metadata_version(two);
    if (v1 == 0 && v2 == METADATA_NONE) {
        unlink(one);
    } else if (v1 == 1 && v2 == 0) {
        unlink(two);
    }
}

int torn_mend(const char *dir, struct err *e)
{
    unsigned long long number = 0, last = 0; /* last: with anything but zeros */
    bool format = false, content = false, torn = false;
    char path[PATH_MAX];
    DIR *d = opendir(dir);
    int rv = 0;

    if (d == NULL) {
        return errno == ENOENT ? DUST_OK : err_sys(e, errno, "cannot read the folder %s", dir);
    }
    mend_metadata(dir);
    while (rv == 0 && next_segment(d, number, &number)) {
        int fd;

        snprintf(path, sizeof path, "%s/open-%llu", dir, number);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        rv = fd < 0 ? errno : look(fd, &format, &content);
        if (fd >= 0) {
            close(fd);
        }
        if (rv == 0 && (format || content)) {
            last = number;
            torn = !format;
        }
    }
    closedir(d);
    if (rv == 0 && torn) {
        snprintf(path, sizeof path, "%s/open-%llu", dir, last);
        rv = truncate(path, 0) != 0 ? errno : 0;
    }
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot mend what a power loss left of %s", path);
}
