/* folder - the folder app.db-dust beside a member's database: made and removed, durably. Any thread. */
#ifndef DUST_EXT_FOLDER_H
#define DUST_EXT_FOLDER_H

#include "vfs/err.h"

/* Make the folder of the database `path`. DUST_EXISTS, DUST_IO, DUST_FULL. */
int folder_make(const char *path, struct err *e);

/* Remove it, with all that dust makes in it. DUST_IO: it is still there, or a part of it; the text says what to do. e may
 * be NULL. */
int folder_remove(const char *path, struct err *e);

/* As folder_remove, after a failure that *e tells of: when something is left, its text says that as well. */
void folder_undo(const char *path, struct err *e);

/* Flush the names in the folder that `path` is in. */
int folder_flush_parent(const char *path, struct err *e);

#endif
