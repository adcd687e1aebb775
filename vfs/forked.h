/* forked - what an open file is in a process that was forked while it was open.
 *
 * The child has the parent's memory, and the page store is even shared with it; but it has none of the parent's threads,
 * sockets or locks. So nothing that the file holds there may be touched: its slots are the parent's.
 *
 *   FORKED, no transaction ──next use──▶ an open file of this process's own client of the member (file_rejoin)
 *   FORKED, in the middle of one: reading and committing fail, with an error that says so ──rolled back──▶ as above */
#ifndef DUST_VFS_FORKED_H
#define DUST_VFS_FORKED_H

#include "vfs/file.h"

/* In the child, for each file that is open: before anything else uses it. Takes no lock. */
void file_forked(struct dfile *f);

/* Make it this process's own, if it was inherited. Under the connection's mutex. DUST_OK: it is. DUST_VOID: it is in the
 * middle of a transaction. Otherwise what opening the member says. */
int file_rejoin(struct dfile *f, struct err *e);

#endif
