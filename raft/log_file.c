#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/log_impl.h"
#include "raft/smallfile.h"
#include "vfs/fd.h"

#define CHUNK ((size_t)256 << 10)

bool log_file_number(const char *name, unsigned *number)
{
    char again[32];

    if (sscanf(name, "log-%u", number) != 1) {
        return false;
    }
    snprintf(again, sizeof again, "log-%u", *number);
    return strcmp(again, name) == 0;
}

static int path_of(char path[PATH_MAX], const char *dir, unsigned number, struct err *e)
{
    char name[32];

    snprintf(name, sizeof name, "log-%u", number);
    return smallfile_path(path, dir, name, e);
}

/* Past the page cache where the file system can. */
static int open_to_write(const char *path, int flags)
{
    int fd = fd_high(open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_DIRECT | flags, 0600));

    if (fd < 0 && errno == EINVAL) {
        fd = fd_high(open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW | (flags & ~O_EXCL), 0600));
    }
    return fd;
}

static int write_all(int fd, const uint8_t *p, size_t n, size_t at)
{
    while (n > 0) {
        ssize_t done = pwrite(fd, p, n, (off_t)at);

        if (done > 0) {
            p += done;
            at += (size_t)done;
            n -= (size_t)done;
        } else if (done == 0) {
            return ENOSPC;
        } else if (errno == EINVAL && (fcntl(fd, F_GETFL) & O_DIRECT) != 0) {
            /* its blocks are larger than ours, or a write came to an end in the middle of one */
            if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT) != 0) {
                return errno;
            }
        } else if (errno != EINTR) {
            return errno;
        }
    }
    return 0;
}

static int fill(int fd, size_t bytes)
{
    uint8_t *zeros = NULL;
    int rv = 0;

    /* In one piece, and no half of it on a disk that is full. Some file systems cannot. */
    if (fallocate(fd, 0, 0, (off_t)bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR) {
        return errno;
    }
    if (posix_memalign((void **)&zeros, BATCH_BLOCK, CHUNK) != 0) {
        return ENOMEM;
    }
    memset(zeros, 0, CHUNK);
    for (size_t at = 0; rv == 0 && at < bytes; at += CHUNK) {
        rv = write_all(fd, zeros, CHUNK, at);
    }
    free(zeros);
    return rv == 0 && fdatasync(fd) != 0 ? errno : rv;
}

int log_file_make(struct log_file **out, const char *dir, unsigned number, struct err *e)
{
    struct log_file *f = calloc(1, sizeof *f);
    char path[PATH_MAX];
    int rv = path_of(path, dir, number, e), fd;

    if (rv != DUST_OK || f == NULL) {
        free(f);
        return rv != DUST_OK ? rv : err_set(e, DUST_NOMEM, "out of memory");
    }
    fd = open_to_write(path, O_CREAT | O_EXCL);
    rv = fd < 0 ? errno : fill(fd, LOG_FILE_BYTES);
    if (fd >= 0) {
        close(fd);
    }
    rv = rv != 0 ? err_sys(e, rv, "cannot make %s", smallfile_shown(path)) : folder_flush(dir, e);
    if (rv != DUST_OK) {
        if (fd >= 0) {
            unlink(path);
        }
        free(f);
        return rv;
    }
    *f = (struct log_file){.number = number, .fd = -1, .bytes = LOG_FILE_BYTES};
    *out = f;
    return DUST_OK;
}

int log_file_open(struct log_file *f, const char *dir, struct err *e)
{
    char path[PATH_MAX];
    int rv;

    if (f->fd >= 0) {
        return DUST_OK;
    }
    rv = path_of(path, dir, f->number, e);
    if (rv != DUST_OK) {
        return rv;
    }
    f->fd = open_to_write(path, O_DSYNC);
    return f->fd < 0 ? err_sys(e, errno, "cannot open %s", smallfile_shown(path)) : DUST_OK;
}

void log_file_close(struct log_file *f)
{
    if (f->fd >= 0) {
        close(f->fd);
    }
    f->fd = -1;
}

int log_file_look(struct log_file *f, const char *dir, struct err *e)
{
    char path[PATH_MAX];
    struct stat st;
    int rv = path_of(path, dir, f->number, e), fd;

    if (rv != DUST_OK) {
        return rv;
    }
    fd = fd_high(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    rv = fd < 0 || fstat(fd, &st) != 0 ? err_sys(e, errno, "cannot look at %s", smallfile_shown(path)) : DUST_OK;
    if (fd >= 0) {
        close(fd);
    }
    if (rv == DUST_OK && (!S_ISREG(st.st_mode) || (size_t)st.st_size > LOG_FILE_MAX)) {
        rv = err_set(e, DUST_CORRUPT, "%s is not a file of the log", smallfile_shown(path));
    }
    f->bytes = rv == DUST_OK ? (size_t)st.st_size / BATCH_BLOCK * BATCH_BLOCK : 0;
    return rv;
}

int log_file_read(struct log_file *f, const char *dir, uint8_t *p, size_t n, size_t at, struct err *e)
{
    char path[PATH_MAX];
    int rv = path_of(path, dir, f->number, e), fd;
    ssize_t got = 0;

    if (rv != DUST_OK) {
        return rv;
    }
    fd = fd_high(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (fd < 0) {
        return err_sys(e, errno, "cannot open %s", smallfile_shown(path));
    }
    while (n > 0 && (got = pread(fd, p, n, (off_t)at)) != 0) {
        if (got > 0) {
            p += got;
            at += (size_t)got;
            n -= (size_t)got;
        } else if (errno != EINTR) {
            rv = err_sys(e, errno, "cannot read %s", smallfile_shown(path));
            break;
        }
    }
    close(fd);
    return n != 0 && rv == DUST_OK ? err_set(e, DUST_IO, "%s has become shorter", smallfile_shown(path)) : rv;
}

int log_file_write(struct log_file *f, const uint8_t *p, size_t n, size_t at, struct err *e)
{
    int rv = write_all(f->fd, p, n, at);

    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot write to log-%u", f->number);
}

void log_file_free(struct log_file *f)
{
    if (f != NULL) {
        log_file_close(f);
    }
    free(f);
}

void log_file_remove(struct log_file *f, const char *dir)
{
    char path[PATH_MAX];

    if (path_of(path, dir, f->number, NULL) == DUST_OK) {
        unlink(path); /* if it stays, the next start finds nothing of use in it */
    }
    log_file_free(f);
}

static void free_all(struct log_file *f)
{
    while (f != NULL) {
        struct log_file *next = f->next;

        log_file_free(f);
        f = next;
    }
}

void log_files_free(struct log_files *s)
{
    free_all(s->live);
    free_all(s->idle);
    free_all(s->doomed);
    *s = (struct log_files){0};
}
