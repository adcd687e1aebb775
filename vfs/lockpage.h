/* lockpage - the page that SQLite keeps for its locks: the one at 1 GiB, which never has content
 * (https://www.sqlite.org/fileformat2.html#lockbyte). */
#ifndef DUST_VFS_LOCKPAGE_H
#define DUST_VFS_LOCKPAGE_H

#include <stdint.h>

#define LOCK_BYTE 0x40000000u

static inline uint32_t lock_page(uint32_t page_size)
{
    return LOCK_BYTE / page_size + 1;
}

#endif
