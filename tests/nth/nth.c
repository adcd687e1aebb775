/* Lets the nth call of a kind fail: for the tests of tests/nth (runner.py), loaded into a program that has libdust.
 *
 * nth_setup() puts itself between four libraries and what they call, by their tables of imported functions: so it is
 * known who calls, nobody else's calls are met, and it works with a sanitizer's runtime as well as without. From then
 * on the control file, mapped here and in the test, says what is to fail:
 *
 *   kinds, libs   which calls count, and whose (enum kind, enum lib)
 *   n             the call that fails, from 1 on; 0: none, they are counted
 *   mode          once, or from then on; failing, or (writes only) writing the first half
 *   armed         not 0: now
 *
 * and says what came of it: how many were met, how many failed, and the stack of the first that did. With n = 0 it
 * keeps a hash of the stack of each call, so that the test can choose calls from different places.
 *
 * Of files only those in `dir` count. */
#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined __aarch64__
#define JUMP_SLOT R_AARCH64_JUMP_SLOT
#define ABSOLUTE R_AARCH64_ABS64
#define GLOB_DAT R_AARCH64_GLOB_DAT
#else
#define JUMP_SLOT R_X86_64_JUMP_SLOT
#define ABSOLUTE R_X86_64_64
#define GLOB_DAT R_X86_64_GLOB_DAT
#endif

#define FRAMES 16
#define CALLS_KEPT 65536
#define RAFT_NOMEM_CODE 1

enum kind { MEMORY = 1, DISK = 2, NETWORK = 4, LOOP = 8 };
enum lib { DUST, RAFT, UV, SQLITE, N_LIBS };
enum mode { ONCE, FROM_THEN_ON, SHORT };

struct frame {
    uint32_t lib, unused; /* N_LIBS: another */
    uint64_t offset;      /* in the library's file */
    char name[48];        /* of the symbol before it */
};

struct control {
    _Atomic uint32_t armed;
    uint32_t kinds, libs, mode;
    uint32_t error; /* 0: the usual one of each function */
    uint32_t n_frames;
    uint64_t n;
    _Atomic uint64_t met, failed;
    char call[32], dir[256];
    struct frame frames[FRAMES];
    uint64_t calls[CALLS_KEPT];
};

void nth_setup(const char *path);

static struct control nothing, *control = &nothing;
static struct {
    const char *part; /* of its file's name */
    uintptr_t base, begin, end;
    char path[256];
} libs[N_LIBS] = {{.part = "libdust.so"}, {.part = "libraft.so"}, {.part = "libuv.so"}, {.part = "libsqlite3.so"}};

static enum lib lib_of(uintptr_t address)
{
    enum lib i;

    for (i = 0; i < N_LIBS && (address < libs[i].begin || address >= libs[i].end); i++) {
    }
    return i;
}

static void keep_stack(const char *call, uintptr_t at[], int depth)
{
    Dl_info info;
    uint32_t n = 0;

    snprintf(control->call, sizeof control->call, "%s", call);
    for (int i = 0; i < depth && n < FRAMES; i++) {
        enum lib lib = lib_of(at[i]);

        if (lib != N_LIBS) {
            struct frame *f = &control->frames[n++];

            f->lib = lib;
            f->offset = at[i] - libs[lib].base - 1;
            f->name[0] = '\0';
            if (dladdr((void *)at[i], &info) != 0 && info.dli_sname != NULL) {
                snprintf(f->name, sizeof f->name, "%s", info.dli_sname);
            }
        }
    }
    control->n_frames = n;
}

/* Is this call to fail? */
static bool strikes(enum kind kind, enum lib lib, const char *call)
{
    struct control *c = control;
    uintptr_t at[24];
    uint64_t i, hash = 14695981039346656037u;
    int depth, kept = 0, error = errno;

    if (atomic_load(&c->armed) == 0 || (c->kinds & kind) == 0 || (c->libs & 1u << lib) == 0) {
        return false;
    }
    i = atomic_fetch_add(&c->met, 1) + 1;
    if (c->n == 0 && i <= CALLS_KEPT) {
        depth = backtrace((void **)at, 24);
        for (int k = 0; k < depth && kept < 5; k++) {
            if (lib_of(at[k]) != N_LIBS) {
                hash = (hash ^ at[k]) * 1099511628211u;
                kept++;
            }
        }
        c->calls[i - 1] = hash;
    }
    errno = error;
    if (c->n == 0 || i < c->n || (i > c->n && c->mode != FROM_THEN_ON)) {
        return false;
    }
    if (atomic_fetch_add(&c->failed, 1) == 0) {
        keep_stack(call, at, backtrace((void **)at, 24));
    }
    return true;
}

static int code(int usual)
{
    return control->error != 0 ? (int)control->error : usual;
}

/* ---- which files ---- */

static bool path_ours(const char *path)
{
    return control->dir[0] != '\0' && path != NULL && strncmp(path, control->dir, strlen(control->dir)) == 0;
}

static bool fd_ours(int fd)
{
    char link[64], path[512];
    ssize_t n;

    if (atomic_load(&control->armed) == 0 || (control->kinds & DISK) == 0) {
        return false;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    if (n <= 0) {
        return false;
    }
    path[n] = '\0';
    return path_ours(path);
}

/* ---- the wrappers: one for each library ---- */

#define FAIL(usual, value)                                                                                             \
    do {                                                                                                               \
        errno = code(usual);                                                                                           \
        return value;                                                                                                  \
    } while (0)

/* A function `name`, of these parameters: when it counts, and how it fails. */
#define WRAPPER(ret, name, lib, kind, params, args, counts, failure)                                                   \
    static ret name##_##lib params                                                                                     \
    {                                                                                                                  \
        if ((counts) && strikes(kind, lib, #name)) {                                                                   \
            failure;                                                                                                   \
        }                                                                                                              \
        return real_##name args;                                                                                       \
    }
#define WRAP(ret, name, kind, params, args, counts, failure)                                                           \
    static ret(*real_##name) params;                                                                                   \
    WRAPPER(ret, name, DUST, kind, params, args, counts, failure)                                                      \
    WRAPPER(ret, name, RAFT, kind, params, args, counts, failure)                                                      \
    WRAPPER(ret, name, UV, kind, params, args, counts, failure)                                                        \
    WRAPPER(ret, name, SQLITE, kind, params, args, counts, failure)
#define WRAP_DUST(ret, name, kind, params, args, counts, failure)                                                      \
    static ret(*real_##name) params;                                                                                   \
    WRAPPER(ret, name, DUST, kind, params, args, counts, failure)                                                      \
    WRAPPER(ret, name, RAFT, kind, params, args, false, failure)                                                       \
    WRAPPER(ret, name, UV, kind, params, args, false, failure)                                                         \
    WRAPPER(ret, name, SQLITE, kind, params, args, false, failure)

#define NO_MEMORY FAIL(ENOMEM, NULL)
WRAP(void *, malloc, MEMORY, (size_t n), (n), true, NO_MEMORY)
WRAP(void *, calloc, MEMORY, (size_t n, size_t m), (n, m), true, NO_MEMORY)
WRAP(void *, realloc, MEMORY, (void *p, size_t n), (p, n), true, NO_MEMORY)
WRAP(char *, strdup, MEMORY, (const char *s), (s), true, NO_MEMORY)
WRAP(char *, strndup, MEMORY, (const char *s, size_t n), (s, n), true, NO_MEMORY)
WRAP(int, posix_memalign, MEMORY, (void **p, size_t a, size_t n), (p, a, n), true, return ENOMEM)
WRAP(void *, aligned_alloc, MEMORY, (size_t a, size_t n), (a, n), true, NO_MEMORY)
WRAP(void *, raft_malloc, MEMORY, (size_t n), (n), true, NO_MEMORY)
WRAP(void *, nn_allocmsg, MEMORY, (size_t n, int type), (n, type), true, NO_MEMORY)

#define SHORT_OR(usual, part)                                                                                          \
    if (control->mode == SHORT) {                                                                                      \
        n = n > 1 ? n / 2 : n;                                                                                         \
        return part;                                                                                                   \
    }                                                                                                                  \
    FAIL(usual, -1)
#define FD_WHOLE (fd_ours(fd) && control->mode != SHORT)
#define PATH_WHOLE (path_ours(path) && control->mode != SHORT)
WRAP(ssize_t, pwrite, DISK, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at), fd_ours(fd),
    SHORT_OR(EIO, real_pwrite(fd, b, n, at)))
WRAP(ssize_t, pwrite64, DISK, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at), fd_ours(fd),
    SHORT_OR(EIO, real_pwrite64(fd, b, n, at)))
WRAP(ssize_t, write, DISK, (int fd, const void *b, size_t n), (fd, b, n), fd_ours(fd),
    SHORT_OR(EIO, real_write(fd, b, n)))
WRAP(ssize_t, pread, DISK, (int fd, void *b, size_t n, off_t at), (fd, b, n, at), FD_WHOLE, FAIL(EIO, -1))
WRAP(ssize_t, pread64, DISK, (int fd, void *b, size_t n, off_t at), (fd, b, n, at), FD_WHOLE, FAIL(EIO, -1))
WRAP(ssize_t, read, DISK, (int fd, void *b, size_t n), (fd, b, n), FD_WHOLE, FAIL(EIO, -1))
WRAP(int, fsync, DISK, (int fd), (fd), FD_WHOLE, FAIL(EIO, -1))
WRAP(int, fdatasync, DISK, (int fd), (fd), FD_WHOLE, FAIL(EIO, -1))
WRAP(int, ftruncate64, DISK, (int fd, off_t n), (fd, n), FD_WHOLE, FAIL(EIO, -1))
WRAP(int, truncate64, DISK, (const char *path, off_t n), (path, n), PATH_WHOLE, FAIL(EIO, -1))
WRAP(int, fallocate64, DISK, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), FD_WHOLE, FAIL(ENOSPC, -1))
WRAP(int, posix_fallocate, DISK, (int fd, off_t at, off_t n), (fd, at, n), FD_WHOLE, return code(ENOSPC))
WRAP(int, posix_fallocate64, DISK, (int fd, off_t at, off_t n), (fd, at, n), FD_WHOLE, return code(ENOSPC))
WRAP(int, rename, DISK, (const char *path, const char *to), (path, to), PATH_WHOLE, FAIL(EIO, -1))
WRAP(int, unlink, DISK, (const char *path), (path), PATH_WHOLE, FAIL(EIO, -1))
WRAP(int, rmdir, DISK, (const char *path), (path), PATH_WHOLE, FAIL(EIO, -1))
WRAP(int, mkdir, DISK, (const char *path, mode_t mode), (path, mode), PATH_WHOLE, FAIL(ENOSPC, -1))
WRAP(int, fchmod, DISK, (int fd, mode_t mode), (fd, mode), FD_WHOLE, FAIL(EIO, -1))
WRAP(FILE *, fopen64, DISK, (const char *path, const char *mode), (path, mode), PATH_WHOLE, FAIL(EMFILE, NULL))
WRAP(DIR *, opendir, DISK, (const char *path), (path), PATH_WHOLE, FAIL(EMFILE, NULL))
WRAP(int, stat64, DISK, (const char *path, void *st), (path, st), PATH_WHOLE, FAIL(EIO, -1))
WRAP(char *, fgets, DISK, (char *s, int n, FILE *f), (s, n, f), fd_ours(fileno(f)) && control->mode != SHORT,
    FAIL(EIO, NULL))
/* A lock is let go of in any case: SQLite counts on it, and never gets over one that was not. */
WRAP(int, fcntl64, DISK, (int fd, int command, long arg), (fd, command, arg),
    (command == F_SETLK || command == F_GETLK) && ((struct flock *)arg)->l_type != F_UNLCK && FD_WHOLE, FAIL(ENOLCK, -1))
WRAP(int, scandir64, DISK, (const char *path, void *list, void *filter, void *compare), (path, list, filter, compare),
    PATH_WHOLE, FAIL(EMFILE, -1))
WRAP(ssize_t, writev, DISK, (int fd, const struct iovec *v, int n), (fd, v, n), fd_ours(fd),
    SHORT_OR(EIO, real_writev(fd, v, n)))
WRAP(int, open64, DISK, (const char *path, int flags, mode_t mode), (path, flags, mode), PATH_WHOLE, FAIL(EMFILE, -1))
WRAP(void *, mmap64, DISK, (void *p, size_t n, int prot, int flags, int fd, off_t at), (p, n, prot, flags, fd, at),
    FD_WHOLE, FAIL(ENOMEM, MAP_FAILED))
WRAP(int, eventfd, DISK, (unsigned first, int flags), (first, flags), control->mode != SHORT, FAIL(EMFILE, -1))

/* Whether a file is there, and what kind: SQLite has a table of these, and takes a failure for "no". */
WRAP_DUST(int, access, DISK, (const char *path, int mode), (path, mode), PATH_WHOLE, FAIL(EIO, -1))
WRAP_DUST(int, fstat64, DISK, (int fd, void *st), (fd, st), FD_WHOLE, FAIL(EIO, -1))
WRAP_DUST(int, openat64, DISK, (int fd, const char *path, int flags, mode_t mode), (fd, path, flags, mode), FD_WHOLE,
    FAIL(EMFILE, -1))
WRAP_DUST(void *, readdir64, DISK, (DIR *d), (d), fd_ours(dirfd(d)) && control->mode != SHORT, FAIL(EIO, NULL))

WRAP(int, socket, NETWORK, (int domain, int type, int protocol), (domain, type, protocol), true, FAIL(EMFILE, -1))
WRAP(int, bind, NETWORK, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n), true, FAIL(EADDRINUSE, -1))
WRAP(int, nn_socket, NETWORK, (int domain, int protocol), (domain, protocol), true, FAIL(EMFILE, -1))
WRAP(int, nn_bind, NETWORK, (int s, const char *address), (s, address), true, FAIL(EADDRINUSE, -1))
WRAP(int, nn_connect, NETWORK, (int s, const char *address), (s, address), true, FAIL(EMFILE, -1))
WRAP(int, nn_send, NETWORK, (int s, const void *b, size_t n, int flags), (s, b, n, flags), true, FAIL(EAGAIN, -1))
WRAP(int, nn_recv, NETWORK, (int s, void *b, size_t n, int flags), (s, b, n, flags), true, FAIL(EAGAIN, -1))
WRAP(int, nn_setsockopt, NETWORK, (int s, int level, int option, const void *v, size_t n), (s, level, option, v, n),
    true, FAIL(ENOMEM, -1))
WRAP(int, nn_getsockopt, NETWORK, (int s, int level, int option, void *v, size_t *n), (s, level, option, v, n), true,
    FAIL(EBADF, -1))
/* What is watched can always be watched no longer, or for something else. */
WRAP(int, epoll_ctl, NETWORK, (int ep, int op, int fd, void *event), (ep, op, fd, event), op == EPOLL_CTL_ADD,
    FAIL(ENOMEM, -1))
WRAP(int, epoll_create1, NETWORK, (int flags), (flags), true, FAIL(EMFILE, -1))
WRAP(int, pipe2, NETWORK, (int fds[2], int flags), (fds, flags), true, FAIL(EMFILE, -1))
WRAP(int, listen, NETWORK, (int fd, int n), (fd, n), true, FAIL(EADDRINUSE, -1))
WRAP(int, accept4, NETWORK, (int fd, void *a, void *n, int flags), (fd, a, n, flags), true, FAIL(EMFILE, -1))
WRAP(int, connect, NETWORK, (int fd, const void *a, socklen_t n), (fd, a, n), true, FAIL(ECONNREFUSED, -1))
WRAP(ssize_t, send, NETWORK, (int fd, const void *b, size_t n, int flags), (fd, b, n, flags), true, FAIL(ECONNRESET, -1))
WRAP(ssize_t, sendmsg, NETWORK, (int fd, const void *m, int flags), (fd, m, flags), true, FAIL(ECONNRESET, -1))
WRAP(ssize_t, recv, NETWORK, (int fd, void *b, size_t n, int flags), (fd, b, n, flags), true, FAIL(ECONNRESET, -1))
WRAP(int, getsockopt, NETWORK, (int fd, int level, int option, void *v, void *n), (fd, level, option, v, n), true,
    FAIL(ENOBUFS, -1))
WRAP(int, getsockname, NETWORK, (int fd, void *a, void *n), (fd, a, n), true, FAIL(ENOBUFS, -1))
WRAP(int, uv_loop_init, LOOP, (void *loop), (loop), true, return -EMFILE)
WRAP(int, uv_async_init, LOOP, (void *loop, void *h, void *cb), (loop, h, cb), true, return -EMFILE)
WRAP(int, uv_poll_init, LOOP, (void *loop, void *h, int fd), (loop, h, fd), true, return -ENOMEM)
WRAP(int, uv_poll_start, LOOP, (void *h, int events, void *cb), (h, events, cb), true, return -EBADF)
WRAP(int, pthread_create, LOOP, (void *t, const void *a, void *run, void *arg), (t, a, run, arg), true, return EAGAIN)
WRAP(int, raft_apply, LOOP, (void *r, void *req, const void *bufs, unsigned n, void *cb), (r, req, bufs, n, cb), true,
    return RAFT_NOMEM_CODE)
WRAP(int, raft_barrier, LOOP, (void *r, void *req, void *cb), (r, req, cb), true, return RAFT_NOMEM_CODE)
WRAP(int, raft_add, LOOP, (void *r, void *req, uint64_t id, const char *a, void *cb), (r, req, id, a, cb), true,
    return RAFT_NOMEM_CODE)
WRAP(int, raft_assign, LOOP, (void *r, void *req, uint64_t id, int role, void *cb), (r, req, id, role, cb), true,
    return RAFT_NOMEM_CODE)
WRAP(int, raft_remove, LOOP, (void *r, void *req, uint64_t id, void *cb), (r, req, id, cb), true,
    return RAFT_NOMEM_CODE)
WRAP(int, raft_transfer, LOOP, (void *r, void *req, uint64_t id, void *cb), (r, req, id, cb), true,
    return RAFT_NOMEM_CODE)
WRAP(int, raft_configuration_add, LOOP, (void *c, uint64_t id, const char *a, int role), (c, id, a, role), true,
    return RAFT_NOMEM_CODE)

static const struct import {
    const char *name;
    void **real;
    void *wrapper[N_LIBS];
} imports[] = {
#define X(name)                                                                                                        \
    {#name, (void **)&real_##name,                                                                                     \
        {(void *)name##_DUST, (void *)name##_RAFT, (void *)name##_UV, (void *)name##_SQLITE}},
    X(malloc) X(calloc) X(realloc) X(strdup) X(strndup) X(posix_memalign) X(aligned_alloc) X(raft_malloc) X(nn_allocmsg)
    X(pwrite) X(pwrite64) X(write) X(pread) X(pread64) X(read) X(fsync) X(fdatasync) X(ftruncate64) X(truncate64)
    X(fallocate64) X(posix_fallocate) X(posix_fallocate64) X(rename) X(unlink) X(rmdir) X(mkdir) X(fchmod) X(stat64)
    X(fgets) X(fcntl64) X(scandir64) X(writev) X(fopen64) X(opendir) X(open64) X(mmap64) X(eventfd) X(access) X(fstat64)
    X(openat64) X(readdir64) X(socket) X(bind) X(nn_socket) X(nn_bind) X(nn_connect) X(nn_send) X(nn_recv)
    X(nn_setsockopt) X(nn_getsockopt) X(epoll_ctl) X(epoll_create1) X(pipe2) X(listen) X(accept4) X(connect) X(send)
    X(sendmsg) X(recv) X(getsockopt) X(getsockname) X(uv_loop_init) X(uv_async_init) X(uv_poll_init) X(uv_poll_start)
    X(pthread_create) X(raft_apply) X(raft_barrier) X(raft_add) X(raft_assign) X(raft_remove) X(raft_transfer)
    X(raft_configuration_add)
#undef X
};

/* ---- the tables of imported functions ---- */

static void patch_slot(void **slot, void *to)
{
    uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

    mprotect((void *)page, (uintptr_t)(slot + 1) - page, PROT_READ | PROT_WRITE);
    *slot = to;
}

static void patch_name(enum lib lib, void *handle, const char *name, void **slot)
{
    for (size_t i = 0; i < sizeof imports / sizeof imports[0]; i++) {
        if (strcmp(imports[i].name, name) == 0) {
            if (*imports[i].real == NULL) {
                void *first = dlsym(RTLD_DEFAULT, name); /* a sanitizer's, if there is one */

                *imports[i].real = first != NULL ? first : dlsym(handle, name);
            }
            patch_slot(slot, imports[i].wrapper[lib]);
        }
    }
}

static void patch_relocations(enum lib lib, void *handle, const ElfW(Rela) *r, size_t size, const ElfW(Sym) *symbols,
    const char *names)
{
    for (size_t i = 0; i < size / sizeof *r; i++) {
        unsigned type = ELF64_R_TYPE(r[i].r_info);

        if (type == JUMP_SLOT || type == GLOB_DAT || type == ABSOLUTE) { /* the last: SQLite's table of system calls */
            patch_name(lib, handle, names + symbols[ELF64_R_SYM(r[i].r_info)].st_name,
                (void **)(libs[lib].base + r[i].r_offset));
        }
    }
}

static void patch_lib(enum lib lib, const ElfW(Dyn) *d)
{
    const ElfW(Rela) *jump = NULL, *other = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t jump_size = 0, other_size = 0;
    void *handle = dlopen(libs[lib].path, RTLD_LAZY | RTLD_NOLOAD);

    for (; d->d_tag != DT_NULL; d++) {
        switch (d->d_tag) {
        case DT_JMPREL: jump = (const void *)d->d_un.d_ptr; break;
        case DT_PLTRELSZ: jump_size = d->d_un.d_val; break;
        case DT_RELA: other = (const void *)d->d_un.d_ptr; break;
        case DT_RELASZ: other_size = d->d_un.d_val; break;
        case DT_SYMTAB: symbols = (const void *)d->d_un.d_ptr; break;
        case DT_STRTAB: names = (const void *)d->d_un.d_ptr; break;
        }
    }
    patch_relocations(lib, handle, jump, jump_size, symbols, names);
    patch_relocations(lib, handle, other, other_size, symbols, names);
}

static const ElfW(Dyn) *dynamic[N_LIBS];

static int find_lib(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    (void)arg;
    for (enum lib i = 0; i < N_LIBS; i++) {
        const char *name = strrchr(info->dlpi_name, '/');

        if (name == NULL || strncmp(name + 1, libs[i].part, strlen(libs[i].part)) != 0) {
            continue;
        }
        snprintf(libs[i].path, sizeof libs[i].path, "%s", info->dlpi_name);
        libs[i].base = info->dlpi_addr;
        libs[i].begin = UINTPTR_MAX;
        for (unsigned k = 0; k < info->dlpi_phnum; k++) {
            const ElfW(Phdr) *p = &info->dlpi_phdr[k];
            uintptr_t begin = info->dlpi_addr + p->p_vaddr;

            if (p->p_type == PT_LOAD) {
                libs[i].begin = begin < libs[i].begin ? begin : libs[i].begin;
                libs[i].end = begin + p->p_memsz > libs[i].end ? begin + p->p_memsz : libs[i].end;
            } else if (p->p_type == PT_DYNAMIC) {
                dynamic[i] = (const void *)begin;
            }
        }
    }
    return 0;
}

void nth_setup(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *p = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *at[4];

    close(fd);
    if (p == MAP_FAILED) {
        return;
    }
    control = p;
    backtrace(at, 4); /* loads what it needs */
    dl_iterate_phdr(find_lib, NULL);
    for (enum lib i = 0; i < N_LIBS; i++) {
        if (dynamic[i] != NULL) {
            patch_lib(i, dynamic[i]);
        }
    }
}
