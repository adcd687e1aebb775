/* In a child nanomsg is as the parent had it at that moment, save for its threads: whatever is called waits for them for
 * ever, and there is no call to begin anew. All it knows hangs on its static variables, some kilobytes. They are kept as
 * they are when this library is loaded, before it has used nanomsg, and a child that is to host the member puts them
 * back; what hangs on the others is given up. (If the program itself has used nanomsg before it loaded this library, they
 * are not what they were in the beginning; then such a child cannot host.) */
#include "raft/forked.h"

#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <nanomsg/nn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include "raft/node_impl.h"

#define RANGES_MAX 4

static struct {
    struct range {
        uint8_t *at;
        size_t size;
        uint8_t *kept;
    } ranges[RANGES_MAX];
    unsigned n;
    _Atomic pid_t pid; /* in which they are in use, and libuv too; 0: not yet */
} nanomsg;

static void keep(uintptr_t from, uintptr_t to)
{
    struct range *r = &nanomsg.ranges[nanomsg.n];

    if (from >= to || nanomsg.n == RANGES_MAX || (r->kept = malloc(to - from)) == NULL) {
        return;
    }
    r->at = (uint8_t *)from;
    r->size = to - from;
    memcpy(r->kept, r->at, r->size);
    nanomsg.n++;
}

/* The writable parts of the object that nanomsg is in; without what the dynamic linker has made read-only again. */
static int look_at_object(struct dl_phdr_info *info, size_t size, void *ctx)
{
    uintptr_t code = (uintptr_t)ctx, relro = 0, relro_end = 0, page = (uintptr_t)sysconf(_SC_PAGESIZE);
    bool its = false;

    (void)size;
    for (unsigned i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        uintptr_t at = info->dlpi_addr + h->p_vaddr;

        its = its || (h->p_type == PT_LOAD && code >= at && code < at + h->p_memsz);
        if (h->p_type == PT_GNU_RELRO) {
            relro = at;
            relro_end = (at + h->p_memsz) & ~(page - 1);
        }
    }
    for (unsigned i = 0; its && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        uintptr_t at = info->dlpi_addr + h->p_vaddr, end = at + h->p_memsz;

        if (h->p_type != PT_LOAD || (h->p_flags & PF_W) == 0) {
            continue;
        }
        if (relro < end && relro_end > at) {
            keep(at, relro);
            keep(relro_end, end);
        } else {
            keep(at, end);
        }
    }
    return its;
}

__attribute__((constructor)) static void keep_nanomsg(void)
{
    Dl_info object, own;

    /* Built into one object with us, its variables cannot be told from ours. */
    if (dladdr((void *)nn_socket, &object) != 0 && dladdr((void *)keep_nanomsg, &own) != 0 &&
        object.dli_fbase != own.dli_fbase) {
        dl_iterate_phdr(look_at_object, (void *)nn_socket);
    }
}

void forked_nanomsg(void)
{
    pid_t now = getpid(), was = atomic_exchange(&nanomsg.pid, now);

    for (unsigned i = 0; was != 0 && was != now && i < nanomsg.n; i++) {
        memcpy(nanomsg.ranges[i].at, nanomsg.ranges[i].kept, nanomsg.ranges[i].size);
    }
}

static void nothing(uv_work_t *work)
{
    (void)work;
}

static void nothing_done(uv_work_t *work, int status)
{
    (void)work;
    (void)status;
}

void forked_before_exit(void)
{
    pid_t was = atomic_load(&nanomsg.pid);
    uv_loop_t loop;
    uv_work_t work;

    if (was == 0 || was == getpid() || uv_loop_init(&loop) != 0) {
        return;
    }
    if (uv_queue_work(&loop, &work, nothing, nothing_done) == 0) {
        uv_run(&loop, UV_RUN_DEFAULT);
    }
    uv_loop_close(&loop);
}

void forked_close(const struct node *node, const char *dir)
{
    DIR *all = opendir("/proc/self/fd");
    size_t n = strlen(dir);
    struct dirent *d;

    while (all != NULL && (d = readdir(all)) != NULL) {
        int fd = atoi(d->d_name);
        char link[64], target[4200];
        ssize_t len;

        if (d->d_name[0] == '.' || fd == dirfd(all)) {
            continue;
        }
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        len = readlink(link, target, sizeof target);
        if (len > 0 && ((size_t)len > n && memcmp(target, dir, n) == 0 && target[n] == '/')) {
            close(fd);
        } else if (len > 7 && memcmp(target, "socket:", 7) == 0 && node != NULL && node->peers != NULL &&
                   peers_has_socket(node->peers, fd)) {
            close(fd);
        }
    }
    if (all != NULL) {
        closedir(all);
    }
}
