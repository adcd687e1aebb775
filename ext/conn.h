/* conn - what dust keeps for one connection (sqlite3*): its dust files, and the state of the statement hook.
 *
 * Found by the connection's address, which the next connection may reuse. So it is forgotten with the connection: the
 * destructor of one of the SQL functions registered on it tells (functions.c), after all files were closed. */
#ifndef DUST_EXT_CONN_H
#define DUST_EXT_CONN_H

#include "vfs/file.h"

struct conn {
    struct conn *next;
    struct sqlite_lib *lib;
    sqlite3 *db;
    struct dfile *files;
    bool set_up;      /* dust's functions and tables are registered on it */
    bool hooked;      /* the trace hook has been set by us (somebody may have replaced it since) */
    void *writer;     /* the statement that is writing, between its STMT and PROFILE events */
    bool inside;      /* one of our own nested statements is running */
    bool maybe_exclusive; /* a dust file may have been opened so: see end_exclusive */
    int saved_timeout; /* busy timeout taken away for one statement, in ms; -1: none */
    int failed_rc;    /* an open that failed: what to tell */
    char *failed;
};

/* Get the connection's, made if need be; NULL without memory. */
struct conn *conn_of(struct sqlite_lib *lib, sqlite3 *db);
struct conn *conn_find(sqlite3 *db);

/* The connection is gone. */
void conn_forget(struct conn *c);

/* In a forked child, before anything else: all files that are open are the parent's (vfs/forked.h). */
void conns_forked(void);

/* The host callbacks of the VFS that are about connections. */
void conn_connected(struct sqlite_lib *lib, struct dfile *f, sqlite3 *db);
struct dfile *conn_files(struct sqlite_lib *lib, sqlite3 *db);
void conn_closing(struct sqlite_lib *lib, struct dfile *f);
void conn_failed(struct sqlite_lib *lib, sqlite3 *db, int rc, const struct err *e);

#endif
