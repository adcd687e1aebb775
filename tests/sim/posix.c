/* The POSIX calls by which dust uses files, on the machines' file systems. Which machine is told by the path
 * (/sim/N/…); nothing else is to be seen. A descriptor belongs to its machine's process. */
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

#include "tests/sim/files_impl.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"

#define FD_BASE (1 << 24)
#define FDS_MAX 256

struct descriptor {
    struct machine *machine; /* NULL: free */
    struct file *file;
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
            descriptors[i].machine = NULL;
        }
    }
}

int __wrap_open64(const char *path, int flags, ...);
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
DIR *__wrap_opendir(const char *path);
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

int __wrap_open64(const char *path, int flags, ...)
{
    struct machine *m = machine_of_path(path);
    struct file *f;

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
    for (unsigned i = 0; i < FDS_MAX; i++) {
        if (descriptors[i].machine == NULL) {
            descriptors[i] = (struct descriptor){.machine = m, .file = f};
            return FD_BASE + (int)i;
        }
    }
    return fail(EMFILE);
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

ssize_t __wrap_pread64(int fd, void *buf, size_t n, off64_t offset)
{
    struct descriptor *d = descriptor(fd);

    return d != NULL ? (ssize_t)file_read(d->file, buf, n, (size_t)offset) : fail(EBADF);
}

ssize_t __wrap_read(int fd, void *buf, size_t n)
{
    struct descriptor *d = descriptor(fd);
    ssize_t got = d != NULL ? (ssize_t)file_read(d->file, buf, n, d->at) : fail(EBADF);

    if (got > 0) {
        d->at += (size_t)got;
    }
    return got;
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t n, off64_t offset)
{
    struct descriptor *d = descriptor(fd);

    task_point();
    if (d == NULL || files_write_fails(d->machine)) {
        return fail(d == NULL ? EBADF : chance(5000) ? EIO : ENOSPC);
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

static int stat_of(const struct file *f, struct stat64 *st)
{
    memset(st, 0, sizeof *st);
    st->st_mode = f->folder ? S_IFDIR | 0700 : S_IFREG | 0600;
    st->st_size = (off64_t)f->now.size;
    return 0;
}

int __wrap_fstat64(int fd, struct stat64 *st)
{
    struct descriptor *d = descriptor(fd);

    return d != NULL ? stat_of(d->file, st) : fail(EBADF);
}

int __wrap_stat64(const char *path, struct stat64 *st)
{
    struct machine *m = machine_of_path(path);
    struct file *f = m != NULL ? file_find(m, path) : NULL;

    return f != NULL ? stat_of(f, st) : fail(ENOENT);
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

int __wrap_fsync(int fd)
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
    } else {
        file_flush(f);
        names_flush_to(&m->files, f);
    }
    return 0;
}

int __wrap_fdatasync(int fd)
{
    return __wrap_fsync(fd);
}

int __wrap_fchmod(int fd, mode_t mode)
{
    (void)fd;
    (void)mode;
    return 0;
}

/* Locks between processes: there is one on a machine. */
int __wrap_fcntl64(int fd, int cmd, ...)
{
    (void)cmd;
    return descriptor(fd) != NULL ? 0 : fail(EBADF);
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
    char path[FILES_PATH_MAX];
    unsigned next;
    struct dirent64 entry;
};

DIR *__wrap_opendir(const char *path)
{
    struct machine *m = machine_of_path(path);
    struct folder *d;

    if (m == NULL || file_find(m, path) == NULL) {
        errno = ENOENT;
        return NULL;
    }
    d = must(calloc(1, sizeof *d));
    d->machine = m;
    snprintf(d->path, sizeof d->path, "%s/", path);
    return (DIR *)d;
}

struct dirent64 *__wrap_readdir64(DIR *dir)
{
    struct folder *d = (struct folder *)dir;
    struct files *f = &d->machine->files;
    size_t n = strlen(d->path);

    while (d->next < f->n_now) {
        const char *path = f->now[d->next++].path;

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
