/* preload - bad disks, loss of power and a wrong clock, for one process (LD_PRELOAD).
 *
 * FAULTS_DIR      files whose full names begin with this are on the bad disk (files named `pages` are not: they are
 *                 never trusted after a crash)
 * FAULTS_CONTROL  a file of 4096 bytes that the test writes to, mapped: struct control
 * FAULTS_UNDO     where the undo log goes; absent: power is not lost
 *
 * Disk. With disk = 1 nothing that needs new space succeeds (ENOSPC), as on a full disk: creating a file, writing beyond
 * its end, allocating. With disk = 2 every write and flush fails (EIO). With disk = 3 every write fails for want of space,
 * also into what a file has already, as on a file system that never writes in place. Reads go on.
 *
 * Power. A process that is killed loses nothing that it has written; a machine loses what was not flushed. So before
 * each write the bytes that it replaces go to the undo log, with the file's size; and a note when a file, or a folder, has
 * been flushed, or a write to a file that was opened with O_DSYNC, as the log's are, has come to its end. When the process
 * has been killed, the test takes back some of what the undo log holds and no flush has made durable (power.py): any of it,
 * sector by sector, in any order. A file that is unlinked, or replaced by a rename, is kept under another name in
 * FAULTS_UNDO.d until its folder has been flushed.
 *
 *     record: magic 4 ("undo"), kind 4, path 4, other path 4, offset 8, size of the file before 8 (UNDO_WRITTEN: bytes
 *     written), length 4, then the paths and the old bytes. All little-endian.
 *
 * With `strike` the process kills itself after a write to app.db: in the middle of a checkpoint; with `strike_log` in the
 * middle of a write to a file of the log.
 *
 * Clock. The time of day (not the monotonic clock) is off by clock_ms. */
#undef _FILE_OFFSET_BITS /* it would make one of open and open64 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FDS 65536
#define CHUNK 65536

struct control {
    volatile int32_t disk;
    int32_t strike; /* the process is killed after so many more writes to app.db; 0: it is not */
    volatile int64_t clock_ms;
    int32_t strike_log; /* … to a file of the log */
};

enum kind { UNDO_WRITE = 1, UNDO_SYNC, UNDO_CREATE, UNDO_UNLINK, UNDO_RENAME, UNDO_SYNCDIR, UNDO_WRITTEN };

static struct control nothing, *control = &nothing;
static char dir[4096], undo_path[4096], *paths[FDS];
static bool flushing[FDS]; /* O_DSYNC or O_SYNC */
static size_t dir_len;
static int undo_fd = -1;
static unsigned stash;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static long raw(long number, long a, long b, long c, long d, long e, long f)
{
    static long (*real)(long, ...);

    if (real == NULL) {
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    }
    return real(number, a, b, c, d, e, f);
}

#define REAL(name) static __typeof__(&name) real; if (real == NULL) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void set_up(void)
{
    const char *d = getenv("FAULTS_DIR"), *c = getenv("FAULTS_CONTROL"), *u = getenv("FAULTS_UNDO");

    if (d == NULL) {
        return;
    }
    snprintf(dir, sizeof dir, "%s", d);
    if (c != NULL) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, c, O_RDWR | O_CLOEXEC, 0);

        if (fd >= 0) {
            void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

            control = p != MAP_FAILED ? p : control;
            syscall(SYS_close, fd);
        }
    }
    if (u != NULL) {
        snprintf(undo_path, sizeof undo_path, "%s", u);
        undo_fd = (int)syscall(SYS_openat, AT_FDCWD, u, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
    dir_len = strlen(dir);
}

__attribute__((constructor)) static void start(void)
{
    pthread_once(&once, set_up);
}

static bool ours(const char *path)
{
    const char *name = path != NULL ? strrchr(path, '/') : NULL;

    return dir_len != 0 && name != NULL && strncmp(path, dir, dir_len) == 0 && strcmp(name, "/pages") != 0;
}

static const char *path_of(int fd)
{
    return fd >= 0 && fd < FDS ? __atomic_load_n(&paths[fd], __ATOMIC_ACQUIRE) : NULL;
}

static void note(enum kind kind, const char *path, const char *other, uint64_t offset, uint64_t size, const void *data,
    uint32_t len)
{
    uint32_t head[4] = {0x6f646e75u, (uint32_t)kind, (uint32_t)strlen(path), other != NULL ? (uint32_t)strlen(other) : 0};
    struct iovec v[6] = {{head, sizeof head}, {&offset, 8}, {&size, 8}, {&len, 4}, {(void *)path, head[2]},
        {(void *)other, head[3]}};

    if (undo_fd < 0) {
        return;
    }
    pthread_mutex_lock(&mutex); /* the two parts of a record together */
    syscall(SYS_writev, undo_fd, v, 6);
    if (len != 0) {
        syscall(SYS_write, undo_fd, data, len);
    }
    pthread_mutex_unlock(&mutex);
}

static uint64_t size_of(int fd)
{
    struct stat st;

    return syscall(SYS_fstat, fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* The bytes at [offset, offset + len) are about to be replaced. */
static void before_write(int fd, uint64_t offset, uint64_t len)
{
    const char *path = path_of(fd);
    uint64_t size = size_of(fd);
    int again;

    if (undo_fd < 0 || path == NULL) {
        return;
    }
    again = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0); /* fd may be for writing only */
    for (uint64_t at = offset; at < offset + len; at += CHUNK) {
        static __thread uint8_t old[CHUNK];
        uint32_t n = offset + len - at < CHUNK ? (uint32_t)(offset + len - at) : CHUNK;

        memset(old, 0, n);
        if (again >= 0 && at < size) {
            ssize_t got = syscall(SYS_pread64, again, old, n, at);

            (void)got;
        }
        note(UNDO_WRITE, path, NULL, at, size, old, n);
    }
    if (len == 0) {
        note(UNDO_WRITE, path, NULL, offset, size, NULL, 0);
    }
    if (again >= 0) {
        syscall(SYS_close, again);
    }
}

static void strike(int32_t *count)
{
    if (__atomic_load_n(count, __ATOMIC_RELAXED) > 0 && __atomic_sub_fetch(count, 1, __ATOMIC_RELAXED) == 0) {
        kill(getpid(), SIGKILL);
    }
}

/* So much was written there. */
static ssize_t after_write(int fd, uint64_t offset, ssize_t done)
{
    const char *path = path_of(fd), *name = path != NULL ? strrchr(path, '/') : NULL;
    int saved = errno;

    if (name == NULL) {
        return done;
    }
    if (strcmp(name, "/app.db") == 0) {
        strike(&control->strike);
    } else if (strncmp(name, "/log-", 5) == 0) {
        strike(&control->strike_log);
    }
    if (flushing[fd] && done > 0) {
        note(UNDO_WRITTEN, path, NULL, offset, (uint64_t)done, NULL, 0);
    }
    errno = saved;
    return done;
}

static bool refuse(int fd, uint64_t end)
{
    if (path_of(fd) == NULL || control->disk == 0) {
        return false;
    }
    if (control->disk == 2) {
        errno = EIO;
        return true;
    }
    if (control->disk == 3 || end > size_of(fd)) {
        errno = ENOSPC;
        return true;
    }
    return false;
}

/* ---- files ---- */

static int opened(int fd, const char *path, int flags, bool existed)
{
    if (fd >= 0 && fd < FDS && !ours(path)) {
        __atomic_store_n(&paths[fd], NULL, __ATOMIC_RELEASE); /* closed in a way that we have not seen */
    } else if (fd >= 0 && fd < FDS) {
        flushing[fd] = (flags & O_DSYNC) != 0;
        char *old = __atomic_exchange_n(&paths[fd], strdup(path), __ATOMIC_ACQ_REL);

        (void)old; /* another thread may be looking at it: it is lost, and small */
        if ((flags & O_CREAT) != 0 && !existed) {
            note(UNDO_CREATE, path, NULL, 0, 0, NULL, 0);
        }
    }
    return fd;
}

static int open_it(int at, const char *path, int flags, mode_t mode)
{
    struct stat st;
    bool existed = ours(path) && syscall(SYS_newfstatat, at, path, &st, 0) == 0;

    if (ours(path) && (flags & O_CREAT) != 0 && !existed && control->disk != 0) {
        errno = control->disk == 2 ? EIO : ENOSPC;
        return -1;
    }
    if (ours(path) && existed && (flags & O_TRUNC) != 0 && undo_fd >= 0) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);

        if (fd >= 0 && fd < FDS) {
            opened(fd, path, 0, true);
            before_write(fd, 0, size_of(fd));
            paths[fd] = NULL;
            syscall(SYS_close, fd);
        }
    }
    return opened((int)syscall(SYS_openat, at, path, flags, mode), path, flags, existed);
}

#define OPEN(name)                                                                                                   \
    int name(const char *path, int flags, ...)                                                                       \
    {                                                                                                                \
        va_list ap;                                                                                                  \
        mode_t mode;                                                                                                 \
        va_start(ap, flags);                                                                                         \
        mode = (mode_t)va_arg(ap, int);                                                                              \
        va_end(ap);                                                                                                  \
        return open_it(AT_FDCWD, path, flags, mode);                                                                 \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                 \
    int name(int at, const char *path, int flags, ...)                                                               \
    {                                                                                                                \
        va_list ap;                                                                                                  \
        mode_t mode;                                                                                                 \
        va_start(ap, flags);                                                                                         \
        mode = (mode_t)va_arg(ap, int);                                                                              \
        va_end(ap);                                                                                                  \
        return open_it(at, path, flags, mode);                                                                       \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd)
{
    if (fd >= 0 && fd < FDS) {
        __atomic_store_n(&paths[fd], NULL, __ATOMIC_RELEASE);
    }
    return (int)raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

ssize_t write(int fd, const void *buf, size_t n)
{
    uint64_t at;

    if (path_of(fd) == NULL) {
        return syscall(SYS_write, fd, buf, n);
    }
    at = (uint64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
    if (refuse(fd, at + n)) {
        return -1;
    }
    before_write(fd, at, n);
    return after_write(fd, at, syscall(SYS_write, fd, buf, n));
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t offset)
{
    if (path_of(fd) == NULL) {
        return syscall(SYS_pwrite64, fd, buf, n, offset);
    }
    if (refuse(fd, (uint64_t)offset + n)) {
        return -1;
    }
    before_write(fd, (uint64_t)offset, n);
    return after_write(fd, (uint64_t)offset, syscall(SYS_pwrite64, fd, buf, n, offset));
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t offset)
{
    return pwrite(fd, buf, n, offset);
}

static ssize_t vector(int fd, const struct iovec *v, int n, off_t offset)
{
    size_t len = 0;

    for (int i = 0; i < n; i++) {
        len += v[i].iov_len;
    }
    if (refuse(fd, (uint64_t)offset + len)) {
        return -1;
    }
    before_write(fd, (uint64_t)offset, len);
    return 0;
}

ssize_t pwritev(int fd, const struct iovec *v, int n, off_t offset)
{
    if (path_of(fd) != NULL && vector(fd, v, n, offset) != 0) {
        return -1;
    }
    return after_write(fd, (uint64_t)offset, syscall(SYS_pwritev, fd, v, n, offset, 0));
}

ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t offset)
{
    return pwritev(fd, v, n, offset);
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    off_t at = path_of(fd) != NULL ? syscall(SYS_lseek, fd, 0, SEEK_CUR) : 0;

    if (path_of(fd) != NULL && vector(fd, v, n, at) != 0) {
        return -1;
    }
    return after_write(fd, (uint64_t)at, syscall(SYS_writev, fd, v, n));
}

int ftruncate(int fd, off_t size)
{
    if (path_of(fd) != NULL) {
        uint64_t before = size_of(fd);

        if (refuse(fd, (uint64_t)size)) {
            return -1;
        }
        if (!flushing[fd]) {
            before_write(fd, (uint64_t)size, before > (uint64_t)size ? before - (uint64_t)size : 0);
        }
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    if (path_of(fd) != NULL) {
        if (control->disk != 0) {
            errno = control->disk == 2 ? EIO : ENOSPC;
            return -1;
        }
        before_write(fd, (uint64_t)offset, 0);
    }
    return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
    return fallocate(fd, mode, offset, len);
}

int posix_fallocate(int fd, off_t offset, off_t len)
{
    REAL(posix_fallocate);

    if (path_of(fd) != NULL) {
        if (control->disk != 0) {
            return control->disk == 2 ? EIO : ENOSPC;
        }
        before_write(fd, (uint64_t)offset, 0);
    }
    return real(fd, offset, len);
}

int posix_fallocate64(int fd, off64_t offset, off64_t len)
{
    return posix_fallocate(fd, offset, len);
}

static int flushed(int fd, int rv)
{
    const char *path = path_of(fd);
    struct stat st;

    if (rv == 0 && path != NULL) {
        note(syscall(SYS_fstat, fd, &st) == 0 && S_ISDIR(st.st_mode) ? UNDO_SYNCDIR : UNDO_SYNC, path, NULL, 0, 0, NULL, 0);
    }
    return rv;
}

int fsync(int fd)
{
    if (path_of(fd) != NULL && control->disk == 2) {
        errno = EIO;
        return -1;
    }
    return flushed(fd, (int)syscall(SYS_fsync, fd));
}

int fdatasync(int fd)
{
    if (path_of(fd) != NULL && control->disk == 2) {
        errno = EIO;
        return -1;
    }
    return flushed(fd, (int)syscall(SYS_fdatasync, fd));
}

/* Keep a file that is about to lose its name. */
static void keep(const char *path, char kept[4200])
{
    snprintf(kept, 4200, "%s.d/%u", undo_path, __atomic_add_fetch(&stash, 1, __ATOMIC_RELAXED) + (unsigned)getpid() * 100000u);
    if (undo_fd < 0 || syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, kept, 0) != 0) {
        kept[0] = '\0';
    }
}

int unlink(const char *path)
{
    char kept[4200];

    if (ours(path)) {
        keep(path, kept);
        if (kept[0] != '\0') {
            note(UNDO_UNLINK, path, kept, 0, 0, NULL, 0);
        }
    }
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rename(const char *from, const char *to)
{
    char kept[4200];

    if (ours(to)) {
        if (control->disk == 2) {
            errno = EIO;
            return -1;
        }
        keep(to, kept);
        note(UNDO_RENAME, from, to, 0, 0, kept, (uint32_t)strlen(kept));
    }
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

long syscall(long number, ...)
{
    long a[6];
    va_list ap;

    va_start(ap, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(ap, long);
    }
    va_end(ap);
    if (number == SYS_close) { /* libuv's way */
        return close((int)a[0]);
    }
    return raw(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- the time of day ---- */

int clock_gettime(clockid_t clock, struct timespec *t)
{
    REAL(clock_gettime);
    int rv = real(clock, t);

    if (rv == 0 && clock == CLOCK_REALTIME && control->clock_ms != 0) {
        t->tv_sec += control->clock_ms / 1000;
    }
    return rv;
}

int gettimeofday(struct timeval *t, void *zone)
{
    REAL(gettimeofday);
    int rv = real(t, zone);

    if (rv == 0) {
        t->tv_sec += control->clock_ms / 1000;
    }
    return rv;
}

time_t time(time_t *t)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (t != NULL) {
        *t = now.tv_sec;
    }
    return now.tv_sec;
}
