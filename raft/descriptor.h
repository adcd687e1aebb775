/* descriptor - what libraft stores and sends as a snapshot: app.db itself is the snapshot, this says only which
 * version. The format stands in descriptor.c.
 *
 * Pure functions; any thread. */
#ifndef DUST_RAFT_DESCRIPTOR_H
#define DUST_RAFT_DESCRIPTOR_H

#include <stddef.h>
#include <stdint.h>

#include "vfs/vid.h"

#define DESCRIPTOR_SIZE 56

struct descriptor {
    uint64_t index; /* of the entry that made the version; informative */
    uint32_t page_size, n_pages;
    struct vid id; /* of the version */
    struct vid cluster;
};

/* Write it into DESCRIPTOR_SIZE bytes. */
void descriptor_write(const struct descriptor *d, uint8_t *out);

/* Read one of any origin. DUST_OK; DUST_VERSION: a newer dust wrote it; DUST_CORRUPT: it is none. On failure *out is
 * untouched. */
int descriptor_read(const void *data, size_t len, struct descriptor *out);

#endif
