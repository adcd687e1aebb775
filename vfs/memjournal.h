/* memjournal - a sqlite3_file that lives in memory: the rollback journal of a member's database file. Its
 * content has to outlive nothing but the transaction, so it is never on disk; it is gone when the file is
 * closed.
 *
 * A file by one thread at a time, as SQLite does anyway. Uses malloc, and nothing of SQLite but its types. */
#ifndef DUST_VFS_MEMJOURNAL_H
#define DUST_VFS_MEMJOURNAL_H

#include <sqlite3.h>

/* Bytes of memory that memjournal_open needs behind its pointer. */
int memjournal_size(void);

/* Make a new, empty file in the memory at `f`: memjournal_size() bytes, aligned as malloc's. Returns
 * SQLITE_OK; nothing is allocated until the first write. Freed by its xClose. Reads beyond the end give zeros
 * and SQLITE_IOERR_SHORT_READ; a write or truncate fails with SQLITE_IOERR_NOMEM when memory is out, with
 * SQLITE_FULL beyond MEMJOURNAL_MAX, and has then changed nothing. */
int memjournal_open(sqlite3_file *f);

#define MEMJOURNAL_MAX ((sqlite3_int64)1 << 40) /* bytes */

#endif
