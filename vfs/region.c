/* The mapping behind the page store. Not locked: the owner serialises the calls that change it. */
#include "vfs/region.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define REGION_RESERVE_MIN ((size_t)64 << 20)

int region_open(struct region *r, int fd, size_t reserve, struct err *e)
{
    void *p = MAP_FAILED;

    while (reserve >= REGION_RESERVE_MIN) {
        p = mmap(NULL, reserve, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        if (p != MAP_FAILED) {
            break;
        }
        reserve /= 2;
    }
    if (p == MAP_FAILED) {
        return err_sys(e, errno, "cannot map the page store");
    }
    madvise(p, reserve, MADV_DONTDUMP);
    *r = (struct region){.fd = fd, .base = p, .reserve = reserve, .size = 0};
    return DUST_OK;
}

int region_grow(struct region *r, size_t size, struct err *e)
{
    int rv;

    if (size <= r->size) {
        return DUST_OK;
    }
    if (size > r->reserve) {
        return err_set(e, DUST_FULL,
            "the page store would need %zu bytes, over the %zu reserved: a checkpoint has to run first "
            "(is another program holding app.db locked?)",
            size, r->reserve);
    }
    rv = region_back(r, r->size, size - r->size, e);
    if (rv == DUST_OK) {
        r->size = size;
    }
    return rv;
}

void region_release(struct region *r, size_t from, size_t n)
{
    (void)fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)n);
}

int region_back(struct region *r, size_t from, size_t n, struct err *e)
{
    int rv;

    do {
        rv = posix_fallocate(r->fd, (off_t)from, (off_t)n);
    } while (rv == EINTR);
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot extend the page store by %zu bytes", n);
}

void region_close(struct region *r)
{
    if (r->base != NULL) {
        munmap(r->base, r->reserve);
        r->base = NULL;
    }
}
