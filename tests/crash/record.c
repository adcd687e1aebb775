/* Records what a program does to the files of one folder: LD_PRELOAD, for the tests of power loss (replay.py).
 *
 *   CRASH_DIR   the folder, an absolute path without links in it
 *   CRASH_LOG   the log, not in that folder; several processes may share it
 *
 * Every change that goes through libc, and every flush, becomes a record, in the order in which they took effect: one
 * mutex is held over the call and its record. A call that failed leaves none. Which file a descriptor stands for is
 * left to replay.py, which follows the OPENs and CLOSEs.
 *
 * A write that is durable when it is done (O_DSYNC, as the log's are) takes its time, and others go on meanwhile: it is two
 * records, SUBMIT before the call and DONE after it, and the mutex is not held between them. There the write may be on
 * disk, or not, or in part. Of several processes each record is one append, made before the call returns: what another one
 * does because of it stands behind it.
 *
 * What cannot be followed (a shared mapping that is written to, a write by stdio, asynchronous ones …) is recorded as such;
 * replay.py knows which of these are harmless. crash_mark() puts a note into the log; after crash_stop() the process
 * can be killed without a change that has no record.
 *
 * A record: struct record, then path, path2 and data. Numbers are the machine's. */
#undef _FILE_OFFSET_BITS /* each name stands for itself here */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAGIC 0x43524153u
#define FDS_MAX 65536

enum kind { OPEN, CLOSE, WRITE, SIZE, ALLOC, RENAME, UNLINK, MKDIR, RMDIR, LINK, SYNC, SUBMIT, DONE, MARK, ODD, CUT };

struct record {
    uint32_t magic, kind;
    int32_t pid, fd;
    int32_t flags; /* OPEN: those of open() */
    uint32_t path_len, path2_len;
    uint32_t unused;
    int64_t off, len; /* len: of the data; SIZE: the size; ALLOC: of the range; DONE: the result */
    uint64_t id;      /* SUBMIT, DONE */
};

enum { FOLLOWED = 1, DSYNC = 2, APPEND = 4 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t none_under_way = PTHREAD_COND_INITIALIZER;
static unsigned under_way; /* SUBMITs without DONE */
static uint64_t last_id;
static uint8_t fds[FDS_MAX];
static char dir[PATH_MAX];
static size_t dir_len;
static int log_fd = -1;

void crash_mark(const char *text);
void crash_stop(void);

/* The function that this one stands before. */
#define REAL(name)                                                                                                     \
    static __typeof__(&name) real;                                                                                     \
    if (real == NULL) {                                                                                                \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                             \
    }

static void lock(void)
{
    pthread_mutex_lock(&mutex);
}

static void unlock(void)
{
    int saved = errno;

    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void die(const char *what)
{
    fprintf(stderr, "record: %s: %s\n", what, strerror(errno));
    _exit(99);
}

__attribute__((constructor)) static void init(void)
{
    static __typeof__(&open) real;
    const char *d = getenv("CRASH_DIR"), *l = getenv("CRASH_LOG");

    if (d == NULL || l == NULL || strlen(d) >= sizeof dir) {
        return;
    }
    real = (__typeof__(&open))dlsym(RTLD_NEXT, "open");
    log_fd = real(l, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) {
        die(l);
    }
    strcpy(dir, d);
    dir_len = strlen(dir);
}

/* ---- the log ---- */

static void append(struct record *r, const char *path, const char *path2, const struct iovec *data, int n_data)
{
    static __typeof__(&writev) real;
    struct iovec iov[3 + 1024];
    size_t total = 0, left = (size_t)r->len;
    int n = 3;

    if (real == NULL) {
        real = (__typeof__(&writev))dlsym(RTLD_NEXT, "writev");
    }
    r->magic = MAGIC;
    r->pid = getpid();
    r->path_len = path != NULL ? (uint32_t)strlen(path) : 0;
    r->path2_len = path2 != NULL ? (uint32_t)strlen(path2) : 0;
    iov[0] = (struct iovec){r, sizeof *r};
    iov[1] = (struct iovec){(void *)(uintptr_t)path, r->path_len};
    iov[2] = (struct iovec){(void *)(uintptr_t)path2, r->path2_len};
    for (int i = 0; i < n_data && left > 0; i++) {
        size_t part = data[i].iov_len < left ? data[i].iov_len : left;

        if (n == 3 + 1024) {
            errno = E2BIG;
            die("a write of too many parts");
        }
        iov[n++] = (struct iovec){data[i].iov_base, part};
        left -= part;
    }
    for (int i = 0; i < n; i++) {
        total += iov[i].iov_len;
    }
    if (n <= 1024) {
        if (real(log_fd, iov, n) != (ssize_t)total) {
            die("cannot write the log");
        }
        return;
    }
    errno = E2BIG;
    die("a write of too many parts");
}

static void note(enum kind kind, int fd, int flags, const char *path, const char *path2, int64_t off, int64_t len)
{
    struct record r = {.kind = kind, .fd = fd, .flags = flags, .off = off, .len = len};
    int saved = errno;

    append(&r, path, path2, NULL, 0);
    errno = saved;
}

void crash_mark(const char *text)
{
    lock();
    note(MARK, -1, 0, text, NULL, 0, 0);
    unlock();
}

/* From here on nothing is done to the folder: whoever tries waits until the process is killed. */
void crash_stop(void)
{
    lock();
    while (under_way != 0) {
        pthread_cond_wait(&none_under_way, &mutex);
    }
}

/* Its place under the folder ("" is the folder itself), or NULL. */
static const char *under(int at, const char *path, char out[PATH_MAX])
{
    char base[PATH_MAX], proc[64];
    ssize_t n;

    if (log_fd < 0 || path == NULL) {
        return NULL;
    }
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        if (at == AT_FDCWD) {
            snprintf(proc, sizeof proc, "/proc/self/cwd");
        } else {
            snprintf(proc, sizeof proc, "/proc/self/fd/%d", at);
        }
        n = readlink(proc, base, sizeof base - 1);
        if (n < 0) {
            return NULL;
        }
        base[n] = '\0';
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) {
            return NULL;
        }
    }
    if (strncmp(out, dir, dir_len) != 0 || (out[dir_len] != '/' && out[dir_len] != '\0')) {
        return NULL;
    }
    return out + dir_len + (out[dir_len] == '/');
}

static bool followed(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS_MAX && fds[fd] & FOLLOWED;
}

/* ---- open and close ---- */

static void opened(int fd, int at, const char *path, int flags)
{
    char buf[PATH_MAX];
    int saved = errno;
    const char *rel = under(at, path, buf);

    if (fd >= 0 && fd < FDS_MAX) {
        fds[fd] = 0;
        if (rel != NULL) {
            fds[fd] = (uint8_t)(FOLLOWED | (flags & O_DSYNC ? DSYNC : 0) | (flags & O_APPEND ? APPEND : 0));
            note(OPEN, fd, flags, rel, NULL, 0, 0);
        }
    }
    errno = saved;
}

#define MODE(flags, last)                                                                                              \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list ap;                                                                                                    \
        va_start(ap, last);                                                                                            \
        mode = va_arg(ap, mode_t);                                                                                     \
        va_end(ap);                                                                                                    \
    }

#define OPEN_FUNCTION(name)                                                                                            \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        int fd;                                                                                                        \
        REAL(name)                                                                                                     \
        MODE(flags, flags)                                                                                             \
        lock();                                                                                                        \
        fd = real(path, flags, mode);                                                                                  \
        opened(fd, AT_FDCWD, path, flags);                                                                             \
        unlock();                                                                                                      \
        return fd;                                                                                                     \
    }

#define OPENAT_FUNCTION(name)                                                                                          \
    int name(int at, const char *path, int flags, ...)                                                                 \
    {                                                                                                                  \
        int fd;                                                                                                        \
        REAL(name)                                                                                                     \
        MODE(flags, flags)                                                                                             \
        lock();                                                                                                        \
        fd = real(at, path, flags, mode);                                                                              \
        opened(fd, at, path, flags);                                                                                   \
        unlock();                                                                                                      \
        return fd;                                                                                                     \
    }

#define CREAT_FUNCTION(name)                                                                                           \
    int name(const char *path, mode_t mode)                                                                            \
    {                                                                                                                  \
        int fd;                                                                                                        \
        REAL(name)                                                                                                     \
        lock();                                                                                                        \
        fd = real(path, mode);                                                                                         \
        opened(fd, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC);                                                      \
        unlock();                                                                                                      \
        return fd;                                                                                                     \
    }

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int at, const char *path, int flags);
int __openat64_2(int at, const char *path, int flags);

#define OPEN2_FUNCTION(name)                                                                                           \
    int name(const char *path, int flags)                                                                              \
    {                                                                                                                  \
        return open(path, flags);                                                                                      \
    }
#define OPENAT2_FUNCTION(name)                                                                                         \
    int name(int at, const char *path, int flags)                                                                      \
    {                                                                                                                  \
        return openat(at, path, flags);                                                                                \
    }

OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)
OPENAT_FUNCTION(openat)
OPENAT_FUNCTION(openat64)
CREAT_FUNCTION(creat)
CREAT_FUNCTION(creat64)
OPEN2_FUNCTION(__open_2)
OPEN2_FUNCTION(__open64_2)
OPENAT2_FUNCTION(__openat_2)
OPENAT2_FUNCTION(__openat64_2)

int close(int fd)
{
    int rv;
    REAL(close)

    if (!followed(fd)) {
        return real(fd);
    }
    lock();
    rv = real(fd);
    fds[fd] = 0;
    note(CLOSE, fd, 0, NULL, NULL, 0, 0);
    unlock();
    return rv;
}

/* ---- what is written ---- */

/* Where write() will put its bytes. */
static int64_t position(int fd)
{
    struct stat st;

    return fds[fd] & APPEND && fstat(fd, &st) == 0 ? st.st_size : lseek(fd, 0, SEEK_CUR);
}

static void written(int fd, const struct iovec *iov, int n, int64_t off, ssize_t len)
{
    struct record r = {.kind = WRITE, .fd = fd, .off = off, .len = len};
    int saved = errno;

    if (len > 0) {
        append(&r, NULL, NULL, iov, n);
    }
    errno = saved;
}

/* With the mutex. Gives the id for submitted(). */
static uint64_t submit(int fd, const struct iovec *iov, int n, int64_t off)
{
    struct record r = {.kind = SUBMIT, .fd = fd, .off = off, .id = ++last_id};

    for (int i = 0; i < n; i++) {
        r.len += (int64_t)iov[i].iov_len;
    }
    append(&r, NULL, NULL, iov, n);
    under_way++;
    return r.id;
}

static void submitted(int fd, uint64_t id, ssize_t result)
{
    struct record r = {.kind = DONE, .fd = fd, .off = result, .id = id}; /* len counts data behind the record */

    append(&r, NULL, NULL, NULL, 0);
    if (--under_way == 0) {
        pthread_cond_signal(&none_under_way);
    }
}

#define WRITE_BODY(call, fd, iov, n, offset, durable)                                                                  \
    ssize_t done;                                                                                                      \
    int64_t where;                                                                                                     \
    uint64_t id;                                                                                                       \
    int saved;                                                                                                         \
    if (!followed(fd)) {                                                                                               \
        return call;                                                                                                   \
    }                                                                                                                  \
    lock();                                                                                                            \
    where = offset;                                                                                                    \
    if (!(durable) && (fds[fd] & DSYNC) == 0) {                                                                        \
        done = call;                                                                                                   \
        written(fd, iov, n, where, done);                                                                              \
        unlock();                                                                                                      \
        return done;                                                                                                   \
    }                                                                                                                  \
    id = submit(fd, iov, n, where);                                                                                    \
    unlock();                                                                                                          \
    done = call;                                                                                                       \
    saved = errno;                                                                                                     \
    lock();                                                                                                            \
    submitted(fd, id, done);                                                                                           \
    unlock();                                                                                                          \
    errno = saved;                                                                                                     \
    return done;

ssize_t write(int fd, const void *buf, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    REAL(write)
    WRITE_BODY(real(fd, buf, len), fd, &iov, 1, position(fd), false)
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    REAL(writev)
    WRITE_BODY(real(fd, iov, n), fd, iov, n, position(fd), false)
}

#define PWRITE_FUNCTION(name)                                                                                          \
    ssize_t name(int fd, const void *buf, size_t len, off_t off)                                                       \
    {                                                                                                                  \
        struct iovec iov = {(void *)(uintptr_t)buf, len};                                                              \
        REAL(name)                                                                                                     \
        WRITE_BODY(real(fd, buf, len, off), fd, &iov, 1, off, false)                                                   \
    }
#define PWRITEV_FUNCTION(name)                                                                                         \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off)                                                    \
    {                                                                                                                  \
        REAL(name)                                                                                                     \
        WRITE_BODY(real(fd, iov, n, off), fd, iov, n, off, false)                                                      \
    }
#define PWRITEV2_FUNCTION(name)                                                                                        \
    ssize_t name(int fd, const struct iovec *iov, int n, off_t off, int flags)                                         \
    {                                                                                                                  \
        REAL(name)                                                                                                     \
        WRITE_BODY(real(fd, iov, n, off, flags), fd, iov, n, off == -1 ? position(fd) : off,                           \
            (flags & (RWF_DSYNC | RWF_SYNC)) != 0)                                                                     \
    }

PWRITE_FUNCTION(pwrite)
PWRITE_FUNCTION(pwrite64)
PWRITEV_FUNCTION(pwritev)
PWRITEV_FUNCTION(pwritev64)
PWRITEV2_FUNCTION(pwritev2)
PWRITEV2_FUNCTION(pwritev64v2)

#define CHANGE_FD(name, declared, passed, kind, flags, off, len)                                                       \
    int name declared                                                                                                  \
    {                                                                                                                  \
        int rv;                                                                                                        \
        REAL(name)                                                                                                     \
        if (!followed(fd)) {                                                                                           \
            return real passed;                                                                                        \
        }                                                                                                              \
        lock();                                                                                                        \
        rv = real passed;                                                                                              \
        if (rv == 0) {                                                                                                 \
            note(kind, fd, flags, NULL, NULL, off, len);                                                               \
        }                                                                                                              \
        unlock();                                                                                                      \
        return rv;                                                                                                     \
    }

CHANGE_FD(ftruncate, (int fd, off_t size), (fd, size), SIZE, 0, 0, size)
CHANGE_FD(ftruncate64, (int fd, off_t size), (fd, size), SIZE, 0, 0, size)
CHANGE_FD(fallocate, (int fd, int mode, off_t off, off_t n), (fd, mode, off, n), ALLOC, mode, off, n)
CHANGE_FD(fallocate64, (int fd, int mode, off_t off, off_t n), (fd, mode, off, n), ALLOC, mode, off, n)
CHANGE_FD(posix_fallocate, (int fd, off_t off, off_t n), (fd, off, n), ALLOC, 0, off, n)
CHANGE_FD(posix_fallocate64, (int fd, off_t off, off_t n), (fd, off, n), ALLOC, 0, off, n)
CHANGE_FD(fsync, (int fd), (fd), SYNC, 0, 0, 0)
CHANGE_FD(fdatasync, (int fd), (fd), SYNC, 0, 0, 0)

/* ---- names ---- */

#define CHANGE_NAME(name, declared, passed, at, path, kind, len)                                                       \
    int name declared                                                                                                  \
    {                                                                                                                  \
        char buf[PATH_MAX];                                                                                            \
        const char *rel = under(at, path, buf);                                                                        \
        int rv;                                                                                                        \
        REAL(name)                                                                                                     \
        lock();                                                                                                        \
        rv = real passed;                                                                                              \
        if (rv == 0 && rel != NULL) {                                                                                  \
            note(kind, -1, 0, rel, NULL, 0, len);                                                                      \
        }                                                                                                              \
        unlock();                                                                                                      \
        return rv;                                                                                                     \
    }

#define CHANGE_NAMES(name, declared, passed, at, path, at2, path2, kind)                                               \
    int name declared                                                                                                  \
    {                                                                                                                  \
        char buf[PATH_MAX], buf2[PATH_MAX];                                                                            \
        const char *rel = under(at, path, buf), *rel2 = under(at2, path2, buf2);                                       \
        int rv;                                                                                                        \
        REAL(name)                                                                                                     \
        lock();                                                                                                        \
        rv = real passed;                                                                                              \
        if (rv == 0 && (rel != NULL || rel2 != NULL)) {                                                                \
            note(rel != NULL && rel2 != NULL ? kind : ODD, -1, 0, rel, rel2, 0, 0);                                    \
        }                                                                                                              \
        unlock();                                                                                                      \
        return rv;                                                                                                     \
    }

CHANGE_NAME(unlink, (const char *path), (path), AT_FDCWD, path, UNLINK, 0)
CHANGE_NAME(unlinkat, (int at, const char *path, int flags), (at, path, flags), at, path,
    flags &AT_REMOVEDIR ? RMDIR : UNLINK, 0)
CHANGE_NAME(mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, MKDIR, 0)
CHANGE_NAME(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), at, path, MKDIR, 0)
CHANGE_NAME(rmdir, (const char *path), (path), AT_FDCWD, path, RMDIR, 0)
CHANGE_NAME(truncate, (const char *path, off_t size), (path, size), AT_FDCWD, path, CUT, size)
CHANGE_NAME(truncate64, (const char *path, off_t size), (path, size), AT_FDCWD, path, CUT, size)
CHANGE_NAME(symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path, ODD, 0)
CHANGE_NAME(remove, (const char *path), (path), AT_FDCWD, path, ODD, 0)
CHANGE_NAMES(rename, (const char *old, const char *new), (old, new), AT_FDCWD, old, AT_FDCWD, new, RENAME)
CHANGE_NAMES(
    renameat, (int at, const char *old, int at2, const char *new), (at, old, at2, new), at, old, at2, new, RENAME)
CHANGE_NAMES(link, (const char *old, const char *new), (old, new), AT_FDCWD, old, AT_FDCWD, new, LINK)

/* ---- what cannot be followed ---- */

static void odd(int fd, const char *what)
{
    if (followed(fd)) {
        lock();
        note(ODD, fd, 0, what, NULL, 0, 0);
        unlock();
    }
}

#define MMAP_FUNCTION(name)                                                                                            \
    void *name(void *at, size_t n, int prot, int flags, int fd, off_t off)                                             \
    {                                                                                                                  \
        REAL(name)                                                                                                     \
        if ((flags & MAP_TYPE) != MAP_PRIVATE && prot & PROT_WRITE) {                                                  \
            odd(fd, "mmap");                                                                                           \
        }                                                                                                              \
        return real(at, n, prot, flags, fd, off);                                                                      \
    }

MMAP_FUNCTION(mmap)
MMAP_FUNCTION(mmap64)

#define FOPEN_FUNCTION(name)                                                                                           \
    FILE *name(const char *path, const char *mode)                                                                     \
    {                                                                                                                  \
        char buf[PATH_MAX];                                                                                            \
        const char *rel = strpbrk(mode, "wa+") != NULL ? under(AT_FDCWD, path, buf) : NULL;                            \
        REAL(name)                                                                                                     \
        if (rel != NULL) {                                                                                             \
            lock();                                                                                                    \
            note(ODD, -1, 0, rel, NULL, 0, 0);                                                                         \
            unlock();                                                                                                  \
        }                                                                                                              \
        return real(path, mode);                                                                                       \
    }

FOPEN_FUNCTION(fopen)
FOPEN_FUNCTION(fopen64)

#define DUP_FUNCTION(name, declared, passed, fd)                                                                       \
    int name declared                                                                                                  \
    {                                                                                                                  \
        REAL(name)                                                                                                     \
        odd(fd, "dup");                                                                                                \
        return real passed;                                                                                            \
    }

DUP_FUNCTION(dup, (int old), (old), old)
DUP_FUNCTION(dup2, (int old, int new), (old, new), old)
DUP_FUNCTION(dup3, (int old, int new, int flags), (old, new, flags), old)

/* ---- syscall() ---- */

long syscall(long number, ...)
{
    long a[6];
    va_list ap;
    REAL(syscall)

    va_start(ap, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(ap, long);
    }
    va_end(ap);
    if (log_fd < 0) {
        return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    }
    switch (number) {
    case SYS_close: /* libuv */
        return close((int)a[0]);
    case SYS_pwritev:
        return pwritev((int)a[0], (const struct iovec *)a[1], (int)a[2], a[3]);
    case SYS_pwritev2:
        return pwritev2((int)a[0], (const struct iovec *)a[1], (int)a[2], a[3], (int)a[5]);
    case SYS_copy_file_range:
        odd((int)a[2], "copy_file_range");
        break;
    case SYS_io_setup:
    case SYS_io_uring_setup:
        lock();
        note(ODD, -1, 0, "asynchronous writes", NULL, 0, 0);
        unlock();
        break;
    default:
        break;
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
