/* recover - an ordinary database out of what a member left behind: the way on when a majority of its cluster is lost for
 * good, and the way back from a copy of app.db. */
#ifndef DUST_EXT_RECOVER_H
#define DUST_EXT_RECOVER_H

#include <stdbool.h>

#include "vfs/err.h"
#include "vfs/lib.h"

/* Make `dest`, which must not exist, an ordinary SQLite database with what `src` holds, and leave src as it is.
 *
 * If src is the database of a member (its folder is beside it), all that its log has is in it, beyond what app.db has
 * been brought to; no process may have the member open, no page may be damaged, and a majority of its cluster must not
 * answer (`force`: neither is asked). If it is a copy without a folder, it is as of the checkpoint that the copy was made after.
 *
 * A cluster started on dest (dust_start) is a new one: members of the old one that come back are refused.
 *
 * said: what was done, for people. DUST_BUSY: a process has the member open. DUST_REFUSED: its cluster has a majority.
 * DUST_EXISTS, DUST_NOTFOUND, DUST_CORRUPT, DUST_IO, DUST_FULL. On failure nothing is left of dest. SQL threads. */
int recover_run(struct sqlite_lib *lib, const char *src, const char *dest, bool force, char said[ERR_TEXT_MAX],
    struct err *e);

#endif
