/* fence - a transaction that changes no page: a new version with the content of the head.
 *
 * Once it is agreed, nothing that was made before it and is not in the history can take effect any more, for an entry
 * takes effect only on the version it was made on. So whoever has to know the fate of a transaction whose outcome was
 * lost puts a fence behind it, and looks. */
#ifndef DUST_VFS_FENCE_H
#define DUST_VFS_FENCE_H

#include "vfs/database.h"

/* Take the turn, commit the fence, and wait until it is agreed; `why` is its text in the log. Waits at most timeout_ms
 * for the turn and the database's own timeout for a majority. DUST_BUSY: the turn was not to be had, or another
 * transaction took its place; DUST_UNKNOWN: no majority answered; DUST_NOMEM, DUST_CLOSED. SQL threads; not while the
 * thread's connection holds the turn. */
int database_fence(struct database *db, const char *why, uint32_t timeout_ms, struct err *e);

#endif
