/* What libraft's storage makes of a write cut off by a power loss, and where it needs help.
 *
 * It writes to the open segments (open-1, open-2 …: zeros, allocated beforehand) one after the other, one write at a
 * time. Loading, it takes from each the batches that are whole, by their checksums, and drops what follows: that was
 * under way, and nobody was told of it. But a segment begins with its format, 8 bytes, and a disk may have stored the
 * later sectors of the first write and not the first one. Then libraft reads "format version 0" and refuses the log.
 *
 * Such a segment is emptied here, which libraft takes for one never used. That is right if its first write was the last
 * one of all: no later segment may have anything but zeros. (Otherwise the disk has lost what it had stored, and the log
 * is refused as before.) A segment in which more than one write was done, and whose first sector then decayed, cannot be
 * told from it. */
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
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot mend %s", path);
}
