/* smallfile - files of a page or less, which are read whole and replaced whole: app.db-dust/member and key.
 *
 * Replacing: written beside it as NAME.new, flushed, renamed over it, and the folder flushed. A crash leaves the old one
 * or the new one, and a NAME.new at worst, which the next save removes.
 *
 * No state; the calls are for one thread at a time for one folder. They read, write and flush the disk. */
#ifndef DUST_RAFT_SMALLFILE_H
#define DUST_RAFT_SMALLFILE_H

#include <limits.h>
#include <stddef.h>

#include "vfs/err.h"

/* dir/name. DUST_OK; DUST_MISUSE: too long. */
int smallfile_path(char path[PATH_MAX], const char *dir, const char *name, struct err *e);

/* A path as messages show it: its end, if it is long. Leads into `path`. */
const char *smallfile_shown(const char *path);

/* Read a file of at most max bytes into text, which has room for one more, a NUL; *n: its bytes. DUST_OK; DUST_NOTFOUND;
 * DUST_TOOBIG; DUST_IO, DUST_NOMEM. The texts name the file. */
int smallfile_read(const char *path, char *text, size_t max, size_t *n, struct err *e);

/* Replace dir/name, durably; mode 0600. The folder must exist. DUST_OK; DUST_MISUSE; DUST_IO, DUST_FULL, DUST_NOMEM: the
 * old one is still there (or the new one already, if only the folder could not be flushed). */
int smallfile_save(const char *dir, const char *name, const char *text, size_t n, struct err *e);

/* Make a new file, durably; mode 0600. As smallfile_save; a file that is there already is left alone: DUST_IO. */
int smallfile_make(const char *path, const char *text, size_t n, struct err *e);

/* Make what was created in, renamed in and removed from a folder durable. DUST_OK, DUST_IO, DUST_NOMEM. Any thread. */
int folder_flush(const char *dir, struct err *e);

#endif
