/* backup - an ordinary SQLite database with what another one has, a member's mostly, made while writes go on. */
#ifndef DUST_EXT_BACKUP_H
#define DUST_EXT_BACKUP_H

#include "vfs/err.h"
#include "vfs/lib.h"

/* Copy the database `path`, a member's or any other without marks, as of one moment, to `dest`, which must not exist. It is written under the name
 * DEST.partial, flushed, and then given its own, so that a file of that name is always whole. Writers and readers are not
 * held up; the copy has no marks of dust's. *n_pages: how many, *page_size bytes each.
 *
 * DUST_EXISTS: dest, or the folder of a member at dest. DUST_MISUSE: it is no name of a file. DUST_BUSY: the database
 * cannot be read now. DUST_FULL, DUST_IO, DUST_NOMEM. On failure nothing is left. By another connection of this copy of
 * SQLite; blocking. SQL threads. */
int backup_run(struct sqlite_lib *lib, const char *path, const char *dest, int *n_pages, int *page_size, struct err *e);

#endif
