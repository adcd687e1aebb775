/* broken - a file that could not be opened, and says why.
 *
 * xOpen can return a code but no message, and a connection whose main file fails to open never gets as far as the
 * automatic extensions, which can give one. So a member's file that cannot be opened is opened as an empty file that
 * refuses every lock: the connection's automatic extension then finds the reason (host.failed) and fails the open with
 * it; ATTACH fails at the first lock. */
#ifndef DUST_VFS_BROKEN_H
#define DUST_VFS_BROKEN_H

#include "vfs/err.h"
#include "vfs/lib.h"

int broken_open(struct sqlite_lib *lib, sqlite3_file *file, const struct err *e);

#endif
