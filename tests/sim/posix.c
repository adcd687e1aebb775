/* The POSIX calls by which dust uses files, on the machines' file systems. Which machine is told by the path
 * (/sim/N/…); nothing else is to be seen. A descriptor belongs to its machine's process.
 *
 * A write through a descriptor that was opened with O_DSYNC takes the time of the disk, and is on it for certain when
 * it returns. Meanwhile, and if it fails, none, some or all of it can be read; a power loss leaves any sectors of that.
 *
 * A path /certain/N/… leads to what is on that machine's disk for certain, to read only: so the product's own functions
 * can look at it, without anything happening meanwhile (ondisk.c). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/sim/faults.h"
#include "tests/sim/files_impl.h"
#include "tests/sim/machine.h"
#include "tests/sim/ondisk.h"
#include "tests/sim/sched.h"

#define FD_BASE (1 << 24)
#define FDS_MAX 1024

struct folder;

struct descriptor {
    struct machine *machine; /* NULL: free */
    struct file *file;
    int flags; /* as opened */
    bool certain;
    bool writing; /* synchronously, just now */
    struct folder *folder; /* of opendir */
    size_t at;
};

static struct descriptor descriptors[FDS_MAX];

void files_close_all(struct machine *m)
{
    for (unsigned i = 0; i < FDS_MAX; i++) {
        if (descriptors[i].machine == m) {
            struct file *f = descriptors[i].file;

            if (f->map != NULL) {
                munmap(f->map, f->map_size);
                f->map = NULL;
            }
            tally()->writes_cut += descriptors[i].writing;
            descriptors[i].machine = NULL;
        }
    }
}

int __wrap_open64(const char *path, int flags, ...);
int __wrap_openat64(int dir, const char *name, int flags, ...);
int __wrap_close(int fd);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
ssize_t __wrap_pread64(int fd, void *buf, size_t n, off64_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off64_t offset);
int __wrap_fstat64(int fd, struct stat64 *st);
int __wrap_stat64(const char *path, struct stat64 *st);
int __wrap_ftruncate64(int fd, off64_t size);
int __wrap_truncate64(const char *path, off64_t size);
int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t n);
int __wrap_posix_fallocate64(int fd, off64_t offset, off64_t n);
int __wrap_fsync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fchmod(int fd, mode_t mode);
int __wrap_fcntl64(int fd, int cmd, ...);
int __wrap_unlink(const char *path);
int __wrap_rename(const char *from, const char *to);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_rmdir(const char *path);
int __wrap_access(const char *path, int mode);
DIR *__wrap_opendir(const char *path);
int __wrap_dirfd(DIR *dir);
struct dirent64 *__wrap_readdir64(DIR *dir);
void __wrap_rewinddir(DIR *dir);
int __wrap_closedir(DIR *dir);
void *__wrap_mmap64(void *address, size_t n, int prot, int flags, int fd, off64_t offset);
void *__real_mmap64(void *address, size_t n, int prot, int flags, int fd, off64_t offset);

static int fail(int error)
{
    errno = error;
    return -1;
}

static struct descriptor *descriptor(int fd)
{
    unsigned i = (unsigned)(fd - FD_BASE);

    return fd >= FD_BASE && i < FDS_MAX && descriptors[i].machine != NULL ? &descriptors[i] : NULL;
}

static int descriptor_new(const struct descriptor *d)
{
    for (unsigned i = 0; i < FDS_MAX; i++) {
        if (descriptors[i].machine == NULL) {
            descriptors[i] = *d;
            return FD_BASE + (int)i;
        }
    }
    return fail(EMFILE);
}

#define CERTAIN "/certain/"

/* NULL: not such a path. Else `plain` is the one that files go by. */
static struct machine *of_certain_path(const char *path, char plain[FILES_PATH_MAX])
{
    if (strncmp(path, CERTAIN, strlen(CERTAIN)) != 0) {
        return NULL;
    }
    snprintf(plain, FILES_PATH_MAX, "/sim/%s", path + strlen(CERTAIN));
    return machine_of_path(plain);
}

static int open_certain(struct machine *m, const char *path, int flags)
{
    struct file *f = file_certain(m, path);

    if (f == NULL || (flags & O_ACCMODE) != O_RDONLY) {
        return fail(f == NULL ? ENOENT : EROFS);
    }
    return descriptor_new(&(struct descriptor){.machine = m, .file = f, .certain = true});
}

int __wrap_open64(const char *path, int flags, ...)
{
    char plain[FILES_PATH_MAX];
    struct machine *m = of_certain_path(path, plain);
    struct file *f;

    if (m != NULL) {
        return open_certain(m, plain, flags);
    }
    m = machine_of_path(path);
    if (m == NULL) {
        return fail(ENOENT); /* nothing outside is to be seen */
    }
    task_point();
    f = file_find(m, path);
    if (f == NULL && (flags & O_CREAT) == 0) {
        return fail(ENOENT);
    }
    if (f != NULL && (flags & O_EXCL) != 0) {
        return fail(EEXIST);
    }
    if (f == NULL) {
        f = file_new(path);
        name_change(m, path, f);
    } else if ((flags & O_TRUNC) != 0) {
        file_resize(f, 0);
    }
    if ((flags & O_DIRECT) != 0 && m->cached_only) {
        return fail(EINVAL); /* and a file that was made stays */
    }
    return descriptor_new(&(struct descriptor){.machine = m, .file = f, .flags = flags});
}

int __wrap_close(int fd)
{
    struct descriptor *d = descriptor(fd);

    if (d == NULL) {
        return fail(EBADF);
    }
    d->machine = NULL;
    return 0;
}

static ssize_t read_from(const struct descriptor *d, void *buf, size_t n, size_t at)
{
    const struct bytes *safe = &d->file->safe;

    if (!d->certain) {
        return (ssize_t)file_read(d->file, buf, n, at);
    }
    n = at >= safe->size ? 0 : n < safe->size - at ? n : safe->size - at;
    if (n != 0) {
        memcpy(buf, safe->p + at, n);
    }
    return (ssize_t)n;
}

ssize_t __wrap_pread64(int fd, void *buf, size_t n, off64_t offset)
{
    struct descriptor *d = descriptor(fd);

    return d != NULL ? read_from(d, buf, n, (size_t)offset) : fail(EBADF);
}

ssize_t __wrap_read(int fd, void *buf, size_t n)
{
    struct descriptor *d = descriptor(fd);
    ssize_t got;

    if (d != NULL && !d->certain && d->machine->slow > 1) {
        files_take_time(d->machine);
    }
    got = d != NULL ? read_from(d, buf, n, d->at) : fail(EBADF);
    if (got > 0) {
        d->at += (size_t)got;
    }
    return got;
}

/* How many bytes the disk takes of n: all, unless it is a bad one; then some sectors, now and then any bytes. */
static size_t taken(const struct machine *m, size_t n)
{
    if (world.healing || m->failing == 0 || n <= FILES_SECTOR || !chance(300)) {
        return n;
    }
    return chance(2000) ? 1 + (size_t)chance_below(n) : (1 + (size_t)chance_below(n / FILES_SECTOR)) * FILES_SECTOR;
}

/* So many bytes of the first n, in whole blocks. */
static size_t some_blocks(size_t n)
{
    return chance(4000) ? 0 : chance(5000) ? n : (size_t)chance_below(n / FILES_BLOCK + 1) * FILES_BLOCK;
}

static ssize_t write_through(struct descriptor *d, const uint8_t *p, size_t n, size_t at)
{
    struct machine *m = d->machine;
    size_t first;

    n = taken(m, n);
    first = some_blocks(n);
    d->writing = true;
    faults_write(m, d->file->log && at == 0);
    file_store_blocks(d->file, at, p, first);
    for (unsigned n_times = chance(50) ? 20 : 1; n_times > 0; n_times--) { /* now and then a disk hesitates */
        files_take_time(m);
    }
    if (files_write_fails(m)) {
        file_store_blocks(d->file, at + first, p + first, some_blocks(n - first));
        d->writing = false;
        tally()->failed_writes++;
        return fail(chance(5000) ? EIO : ENOSPC);
    }
    file_store_blocks(d->file, at + first, p + first, n - first);
    file_flush_range(d->file, at, n);
    d->writing = false;
    if (d->file->log) {
        ondisk_written(m, d->file->safe.p, d->file->safe.size, at);
    }
    return (ssize_t)n;
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off64_t offset)
{
    struct descriptor *d = descriptor(fd);

    task_point();
    if (d == NULL || (d->flags & O_ACCMODE) == O_RDONLY) {
        return fail(EBADF);
    }
    if ((d->flags & O_DIRECT) != 0 && ((uintptr_t)buf | n | (size_t)offset) % FILES_SECTOR != 0) {
        return fail(EINVAL);
    }
    if ((d->flags & O_DSYNC) != 0 && !d->file->volatile_content) {
        return write_through(d, buf, n, (size_t)offset);
    }
    if (files_write_fails(d->machine)) {
        return fail(chance(5000) ? EIO : ENOSPC);
    }
    file_store(d->file, (size_t)offset, buf, n);
    return (ssize_t)n;
}

ssize_t __wrap_write(int fd, const void *buf, size_t n)
{
    struct descriptor *d = descriptor(fd);
    ssize_t done = d != NULL ? __wrap_pwrite64(fd, buf, n, (off64_t)d->at) : fail(EBADF);

    if (done > 0) {
        d->at += (size_t)done;
    }
    return done;
}

static int stat_of(const struct file *f, bool certain, struct stat64 *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = (ino64_t)(uintptr_t)f; /* only ever compared */
    st->st_mode = f->folder ? S_IFDIR | 0700 : S_IFREG | 0600;
    st->st_size = (off64_t)(certain ? f->safe.size : f->now.size);
    return 0;
}

int __wrap_fstat64(int fd, struct stat64 *st)
{
    struct descriptor *d = descriptor(fd);

    return d != NULL ? stat_of(d->file, d->certain, st) : fail(EBADF);
}

int __wrap_stat64(const char *path, struct stat64 *st)
{
    struct machine *m = machine_of_path(path);
    struct file *f = m != NULL ? file_find(m, path) : NULL;

    return f != NULL ? stat_of(f, false, st) : fail(ENOENT);
}

int __wrap_access(const char *path, int mode)
{
    struct machine *m = machine_of_path(path);

    (void)mode;
    return m != NULL && file_find(m, path) != NULL ? 0 : fail(ENOENT);
}

int __wrap_ftruncate64(int fd, off64_t size)
{
    struct descriptor *d = descriptor(fd);

    if (d == NULL) {
        return fail(EBADF);
    }
    file_resize(d->file, (size_t)size);
    return 0;
}

int __wrap_truncate64(const char *path, off64_t size)
{
    struct machine *m = machine_of_path(path);
    struct file *f = m != NULL ? file_find(m, path) : NULL;

    if (f == NULL) {
        return fail(ENOENT);
    }
    file_resize(f, (size_t)size);
    return 0;
}

int __wrap_fallocate64(int fd, int mode, off64_t offset, off64_t n)
{
    struct descriptor *d = descriptor(fd);

    if (d == NULL || d->file->map == NULL || (mode & FALLOC_FL_PUNCH_HOLE) == 0) {
        return fail(EOPNOTSUPP);
    }
    madvise((char *)d->file->map + offset, (size_t)n, MADV_DONTNEED);
    return 0;
}

int __wrap_posix_fallocate64(int fd, off64_t offset, off64_t n)
{
    struct descriptor *d = descriptor(fd);

    if (d == NULL) {
        return EBADF;
    }
    if (!d->file->volatile_content && files_write_fails(d->machine)) {
        return ENOSPC;
    }
    if ((size_t)(offset + n) > d->file->now.size) {
        file_resize(d->file, (size_t)(offset + n));
    }
    return 0;
}

static int flush(int fd, bool name)
{
    struct descriptor *d = descriptor(fd);
    struct machine *m = d != NULL ? d->machine : NULL;
    struct file *f = d != NULL ? d->file : NULL;

    if (d == NULL) {
        return fail(EBADF);
    }
    files_take_time(m);
    if (files_write_fails(m)) {
        return fail(EIO);
    }
    if (f->folder) {
        names_flush(&m->files, m->files.n_changes);
        return 0;
    }
    file_flush(f);
    if (name) {
        names_flush_to(&m->files, f);
    }
    if (f->log) {
        ondisk_forget(m);
    }
    return 0;
}

int __wrap_fsync(int fd)
{
    return flush(fd, true);
}

int __wrap_fdatasync(int fd)
{
    return flush(fd, false);
}

int __wrap_fchmod(int fd, mode_t mode)
{
    (void)fd;
    (void)mode;
    return 0;
}

/* Locks between processes always succeed: there is one on a machine. */
int __wrap_fcntl64(int fd, int cmd, ...)
{
    struct descriptor *d = descriptor(fd);
    va_list ap;

    if (d == NULL) {
        return fail(EBADF);
    }
    if (cmd == F_SETFL) {
        va_start(ap, cmd);
        d->flags = (d->flags & ~O_DIRECT) | (va_arg(ap, int) & O_DIRECT); /* of those in use, it alone can be changed */
        va_end(ap);
    }
    return cmd == F_GETFL ? d->flags : 0;
}

int __wrap_unlink(const char *path)
{
    struct machine *m = machine_of_path(path);

    task_point();
    if (m == NULL || file_find(m, path) == NULL) {
        return fail(ENOENT);
    }
    name_change(m, path, NULL);
    return 0;
}

int __wrap_rename(const char *from, const char *to)
{
    struct machine *m = machine_of_path(from);
    struct file *f = m != NULL ? file_find(m, from) : NULL;

    task_point();
    if (f == NULL) {
        return fail(ENOENT);
    }
    name_change(m, to, f);
    name_change(m, from, NULL);
    return 0;
}

int __wrap_mkdir(const char *path, mode_t mode)
{
    struct machine *m = machine_of_path(path);
    struct file *f;

    (void)mode;
    if (m == NULL || file_find(m, path) != NULL) {
        return fail(m == NULL ? EACCES : EEXIST);
    }
    f = file_new(path);
    f->folder = true;
    name_change(m, path, f);
    return 0;
}

int __wrap_rmdir(const char *path)
{
    return __wrap_unlink(path);
}

struct folder {
    struct machine *machine;
    int fd;
    bool certain;
    char path[FILES_PATH_MAX + 1];
    unsigned next;
    struct dirent64 entry;
};

DIR *__wrap_opendir(const char *path)
{
    char plain[FILES_PATH_MAX];
    struct machine *m = of_certain_path(path, plain);
    bool certain = m != NULL;
    struct file *f;
    struct folder *d;

    m = certain ? m : machine_of_path(path);
    path = certain ? plain : path;
    f = m == NULL ? NULL : certain ? file_certain(m, path) : file_find(m, path);
    if (f == NULL) {
        errno = ENOENT;
        return NULL;
    }
    d = must(calloc(1, sizeof *d));
    d->machine = m;
    d->certain = certain;
    d->fd = descriptor_new(&(struct descriptor){.machine = m, .file = f, .certain = certain, .folder = d});
    snprintf(d->path, sizeof d->path, "%s/", path);
    return (DIR *)d;
}

int __wrap_dirfd(DIR *dir)
{
    return ((struct folder *)dir)->fd;
}

int __wrap_openat64(int dir, const char *name, int flags, ...)
{
    struct descriptor *d = descriptor(dir);
    char path[2 * FILES_PATH_MAX];

    if (d == NULL || d->folder == NULL || d->certain || (flags & O_CREAT) != 0) {
        return fail(EBADF); /* nobody does that */
    }
    snprintf(path, sizeof path, "%s%s", d->folder->path, name);
    return __wrap_open64(path, flags);
}

struct dirent64 *__wrap_readdir64(DIR *dir)
{
    struct folder *d = (struct folder *)dir;
    struct files *f = &d->machine->files;
    const struct files_name *names = d->certain ? f->safe : f->now;
    unsigned n_names = d->certain ? f->n_safe : f->n_now;
    size_t n = strlen(d->path);

    while (d->next < n_names) {
        const char *path = names[d->next++].path;

        if (strncmp(path, d->path, n) == 0 && strchr(path + n, '/') == NULL) {
            snprintf(d->entry.d_name, sizeof d->entry.d_name, "%s", path + n);
            return &d->entry;
        }
    }
    return NULL;
}

void __wrap_rewinddir(DIR *dir)
{
    ((struct folder *)dir)->next = 0;
}

int __wrap_closedir(DIR *dir)
{
    __wrap_close(((struct folder *)dir)->fd);
    free(dir);
    return 0;
}

void *__wrap_mmap64(void *address, size_t n, int prot, int flags, int fd, off64_t offset)
{
    struct descriptor *d = descriptor(fd);

    if (d == NULL) {
        return __real_mmap64(address, n, prot, flags, fd, offset);
    }
    address = __real_mmap64(address, n, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address != MAP_FAILED) {
        d->file->map = address;
        d->file->map_size = n;
    }
    return address;
}
