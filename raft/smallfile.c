#include "raft/smallfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vfs/fd.h"

#define NAME_MAX_SHOWN 160

int smallfile_path(char path[PATH_MAX], const char *dir, const char *name, struct err *e)
{
    if (snprintf(path, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX) {
        return err_set(e, DUST_MISUSE, "the path of %s is too long", smallfile_shown(dir));
    }
    return DUST_OK;
}

const char *smallfile_shown(const char *path)
{
    size_t n = strlen(path);

    return n > NAME_MAX_SHOWN ? path + n - NAME_MAX_SHOWN : path;
}

/* ---- reading ---- */

static ssize_t read_all(int fd, char *buf, size_t size)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = read(fd, buf + done, size - done);

        if (n == 0) {
            break;
        }
        if (n > 0) {
            done += (size_t)n;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return (ssize_t)done;
}

int smallfile_read(const char *path, char *text, size_t max, size_t *n, struct err *e)
{
    int fd = fd_high(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)), rv; /* whatever lies there, do not hang on it */
    ssize_t got;

    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        return err_set(e, DUST_NOTFOUND, "%s does not exist", smallfile_shown(path));
    }
    if (fd < 0) {
        return err_sys(e, errno, "cannot open %s", smallfile_shown(path));
    }
    got = read_all(fd, text, max + 1);
    if (got < 0) {
        rv = err_sys(e, errno, "cannot read %s", smallfile_shown(path));
        close(fd);
        return rv;
    }
    close(fd);
    if ((size_t)got > max) {
        return err_set(e, DUST_TOOBIG, "%s is longer than %zu bytes", smallfile_shown(path), max);
    }
    text[got] = '\0';
    *n = (size_t)got;
    return DUST_OK;
}

/* ---- writing ---- */

static int write_all(int fd, const char *buf, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, buf, size);

        if (n >= 0) {
            buf += n;
            size -= (size_t)n;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return 0;
}

static int create(const char *path, const char *text, size_t n, struct err *e)
{
    int fd = fd_high(open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)), rv;

    if (fd < 0) {
        return err_sys(e, errno, "cannot create %s", smallfile_shown(path));
    }
    if (fchmod(fd, 0600) != 0 || write_all(fd, text, n) != 0 || fsync(fd) != 0) {
        rv = err_sys(e, errno, "cannot write %s", smallfile_shown(path));
        close(fd);
        unlink(path);
        return rv;
    }
    if (close(fd) != 0) {
        rv = err_sys(e, errno, "cannot write %s", smallfile_shown(path));
        unlink(path);
        return rv;
    }
    return DUST_OK;
}

int folder_flush(const char *dir, struct err *e)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rv = DUST_OK;

    if (fd < 0 || fsync(fd) != 0) {
        rv = err_sys(e, errno, "cannot flush the folder %s", smallfile_shown(dir));
    }
    if (fd >= 0) {
        close(fd);
    }
    return rv;
}

int smallfile_save(const char *dir, const char *name, const char *text, size_t n, struct err *e)
{
    char path[PATH_MAX], fresh[PATH_MAX], fresh_name[64];
    int rv;

    snprintf(fresh_name, sizeof fresh_name, "%s.new", name);
    rv = smallfile_path(path, dir, name, e);
    if (rv == DUST_OK) {
        rv = smallfile_path(fresh, dir, fresh_name, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    unlink(fresh); /* left by a crash */
    rv = create(fresh, text, n, e);
    if (rv != DUST_OK) {
        return rv;
    }
    if (rename(fresh, path) != 0) {
        rv = err_sys(e, errno, "cannot replace %s", smallfile_shown(path));
        unlink(fresh);
        return rv;
    }
    return folder_flush(dir, e);
}

int smallfile_make(const char *path, const char *text, size_t n, struct err *e)
{
    const char *slash = strrchr(path, '/');
    char dir[PATH_MAX] = ".";
    int rv;

    if (slash != NULL && snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path) >= PATH_MAX) {
        return err_set(e, DUST_MISUSE, "the path %s is too long", smallfile_shown(path));
    }
    rv = create(path, text, n, e);
    return rv == DUST_OK ? folder_flush(dir, e) : rv;
}
