/* The format of a snapshot's descriptor, 56 bytes, little-endian:
 *     0   4  magic "dsnp"
 *     4   4  format 1
 *     8   8  index of the entry that made the version (informative)
 *    16   4  page size
 *    20   4  number of pages
 *    24  16  version id
 *    40  16  cluster id */
#include "raft/descriptor.h"

#include <string.h>

#include "vfs/bytes.h"
#include "vfs/err.h"

#define MAGIC "dsnp"
#define FORMAT 1

void descriptor_write(const struct descriptor *d, uint8_t *out)
{
    memcpy(out, MAGIC, 4);
    put32(out + 4, FORMAT);
    put64(out + 8, d->index);
    put32(out + 16, d->page_size);
    put32(out + 20, d->n_pages);
    memcpy(out + 24, d->id.b, 16);
    memcpy(out + 40, d->cluster.b, 16);
}

int descriptor_read(const void *data, size_t len, struct descriptor *out)
{
    const uint8_t *p = data;

    if (len != DESCRIPTOR_SIZE || memcmp(p, MAGIC, 4) != 0) {
        return DUST_CORRUPT;
    }
    if (get32(p + 4) != FORMAT) {
        return DUST_VERSION;
    }
    out->index = get64(p + 8);
    out->page_size = get32(p + 16);
    out->n_pages = get32(p + 20);
    memcpy(out->id.b, p + 24, 16);
    memcpy(out->cluster.b, p + 40, 16);
    return DUST_OK;
}
