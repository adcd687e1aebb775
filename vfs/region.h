/* region - one file mapped shared at a fixed place, that grows without moving.
 *
 * A large range of addresses is reserved once; the file behind it is extended with allocated blocks, so that touching
 * a byte below `size` never raises SIGBUS for want of disk space. */
#ifndef DUST_VFS_REGION_H
#define DUST_VFS_REGION_H

#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"

struct region {
    int fd;
    uint8_t *base;  /* start of the mapping */
    size_t reserve; /* bytes of address space reserved, >= size */
    size_t size;    /* bytes of the file that are allocated and may be touched */
};

/* Map the open file fd (ownership stays with the caller). `reserve` is the wish in bytes; less is taken where the
 * process may not have that much address space. DUST_NOMEM, DUST_IO. */
int region_open(struct region *r, int fd, size_t reserve, struct err *e);

/* Make at least `size` bytes usable; new bytes read as zero. Never shrinks. DUST_FULL when disk or reserved range are
 * used up; then nothing has changed. */
int region_grow(struct region *r, size_t size, struct err *e);

/* Give the blocks of [from, from+n) back to the system; they read as zero and must pass region_back() before they are
 * written again. Failure is harmless and not reported. */
void region_release(struct region *r, size_t from, size_t n);

/* Allocate the blocks of [from, from+n) again. DUST_FULL, DUST_IO. */
int region_back(struct region *r, size_t from, size_t n, struct err *e);

/* Unmap. The file stays as it is. */
void region_close(struct region *r);

#endif
