/* lib - one copy of SQLite in this process, and dust's VFS in it.
 *
 * A process may hold several copies of SQLite (Debian's library, and one bundled inside a driver), and all of them may
 * load the one libdust. So nothing here goes through a global table of SQLite's functions: each copy has its own
 * struct, found by the pointer that copy passes in. Made once per copy and never freed: SQLite may call the VFS until
 * the process ends. */
#ifndef DUST_VFS_LIB_H
#define DUST_VFS_LIB_H

#include <sqlite3.h>
#include <stdbool.h>

struct sqlite3_api_routines;
struct database;
struct dfile;
struct err;
struct sqlite_lib;

/* What the VFS asks of the room above it (ext/). All may be called from any thread. */
struct host {
    /* The full path of a main database is being opened, with its URI parameters behind the name. If it is a member's,
     * *db is set and a reference taken; it stays NULL for any other file. */
    int (*open)(struct sqlite_lib *lib, const char *name, struct database **db, int *consistency, struct err *e);
    /* In a forked child: the member that a file inherited from the parent belongs to, as this process's own client of it,
     * or its host. A reference is taken. */
    int (*rejoin)(struct sqlite_lib *lib, const struct database *inherited, struct database **db, struct err *e);
    /* The reference is given back. */
    void (*close)(struct database *db);
    /* Is the path (without -journal or -wal) that of a member open in this process? */
    bool (*is_member)(const char *path, int len);
    /* The connection of a file is known. */
    void (*connected)(struct sqlite_lib *lib, struct dfile *file, sqlite3 *conn);
    /* The dust files of a connection, linked by `next`. Under that connection's mutex. */
    struct dfile *(*files_of)(struct sqlite_lib *lib, sqlite3 *conn);
    /* A file is about to be closed. */
    void (*closing)(struct sqlite_lib *lib, struct dfile *file);
    /* A file of this connection could not be opened; the reason is for whoever can still tell it (see broken.h). */
    void (*failed)(struct sqlite_lib *lib, sqlite3 *conn, int rc, const struct err *e);
};

struct sqlite_lib {
    const struct sqlite3_api_routines *api;
    sqlite3_vfs *base; /* the VFS that was the default before us */
    sqlite3_vfs vfs;   /* ours */
    const struct host *host;
    unsigned number; /* of this copy, from 0 */
};

/* Fill in lib->vfs, leading to lib->base. */
void vfs_init(struct sqlite_lib *lib);

#endif
