/* intake - a transaction that was sealed in another process, or for another host, is taken in here. */
#ifndef DUST_VFS_INTAKE_H
#define DUST_VFS_INTAKE_H

#include "vfs/database.h"

/* This process hosts the member: have the transaction agreed on, until `until_ms` (clock_ms). again: it may have got into
 * the log through an earlier host; kept: it has not, but what it stands on may have been sent there, and still be on its
 * way here. DUST_OK: *snap, in `slot`, holds its version or a later one. Otherwise a code of commit_wait's, or
 * COMMIT_PENDING. SQL threads. */
int intake_here(struct database *db, const struct sealed *sealed, bool again, bool kept, uint32_t slot, struct snap *snap,
    uint64_t *after, uint64_t until_ms, struct err *e);

#endif
