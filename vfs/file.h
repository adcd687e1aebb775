/* file - the file methods that SQLite calls for the main database of a member.
 *
 * States of an open file, by its SQLite lock:
 *
 *   NONE ──xLock(SHARED): pin a snapshot──▶ SHARED ──xLock(RESERVED): have the turn, be at the head──▶ WRITING
 *     ▲                                       ▲                                                          │
 *     └────────────xUnlock(NONE)──────────────┴──xUnlock(SHARED): drop the pages, or move to the version ┘
 *                                                committed; pass the turn
 *
 * In WRITING, FCNTL_SYNC is the commit point (seal.c), and FCNTL_COMMIT_PHASETWO says that SQLite takes it for committed.
 * Everything is used by one thread at a time, under the mutex of SQLite's connection. */
#ifndef DUST_VFS_FILE_H
#define DUST_VFS_FILE_H

#include "vfs/database.h"
#include "vfs/lib.h"
#include "vfs/remote.h"
#include "vfs/sqltext.h"
#include "vfs/txn.h"

#define FRESHNESS_DEFAULT_MS 1000u
#define FILE_OWN_SIZE 16  /* bytes at the start of SQLite's memory for a file, before the file underneath */

struct dfile_methods {
    sqlite3_io_methods m; /* first */
    struct dfile *file;
    int (*inherited)(sqlite3_file *, int op, void *); /* forked.c: xFileControl as it was */
};

struct dfile {
    struct dfile_methods methods;
    struct sqlite_lib *lib;
    struct database *db;
    struct sums_peek *peek; /* hosted elsewhere: the checksums of app.db */
    struct store *store; /* in which `snap` is, or the next one will be; one reference */
    struct remote remote; /* used while the member is hosted by another process */
    struct dfile *next;  /* of the same connection */
    sqlite3 *conn;       /* NULL until known */
    bool shared;         /* another connection has it too, by a shared cache */
    sqlite3_file *real;  /* the file underneath */
    const sqlite3_io_methods *real_methods;
    bool forked; /* inherited from the process that this one was forked from: see forked.h */
    bool adopting;
    bool adopted; /* an open connection's own file, taken over */
    int lock;     /* SQLITE_LOCK_… */
    int consistency;
    uint32_t freshness_ms;
    uint64_t unconfirmed_ms; /* when a read was last refused for want of a confirmation, 0 if the last was not */

    struct snap snap;
    bool snap_ahead;    /* hosted elsewhere: its version may not be agreed yet */
    struct vid snap_id; /* … and is this one; none: not known */
    uint32_t slot[2]; /* slot[0] holds snap; slot[1] a version just committed */
    bool has_slot[2];
    struct store *next_store; /* hosted elsewhere: where next_snap is, in next_slot; may be that of another host */
    uint32_t next_slot;
    uint64_t pager_seq; /* the version that the pager's cache is of; 0: unknown */
    uint8_t pager_bytes[16]; /* bytes 24..39 as the pager last saw them */
    bool pager_known;   /* pager_bytes is valid */
    bool pager_differs; /* what the transaction being written has in page 1 is not what the pager has there */

    struct ticket ticket;
    bool has_turn;
    bool has_place; /* … or its ticket may be in the queue, with nobody waiting on it */
    bool by_hook; /* … taken by the statement hook, before the snapshot */

    struct txn txn;
    bool writing;    /* RESERVED or more */
    bool displaced;  /* `snap` is not what the pager has cached of, and a statement may be under way */
    bool committed;  /* the commit point was passed: `next_snap` holds the new version */
    bool accepted;   /* … and SQLite has not rolled back since */
    struct snap next_snap;
    struct vid next_id; /* of the version committed */
    uint64_t next_after;
    struct sqltext sql; /* of the transaction so far */
    struct err last;   /* of the last failure */
    struct vid unknown; /* the last transaction whose outcome was unknown; none: there was none */
    uint64_t unknown_after;
};

/* Open the member's file in memory of lib->vfs.szOsFile bytes. Takes over the reference on db, on success only. */
int file_open(struct sqlite_lib *lib, struct database *db, int consistency, const char *name, sqlite3_file *memory,
    int flags, int *out_flags);

/* Take over a file that a connection has open and idle. Takes over the reference on db. DUST_NOMEM. Until file_adopted
 * is called, PRAGMA journal_mode is SQLite's own, so that the connection can be told to keep its journal in memory. */
int file_adopt(struct sqlite_lib *lib, struct database *db, sqlite3_file *real, sqlite3 *conn, struct err *e);

/* The adoption is complete (ok), or is to be undone. */
void file_adopted(sqlite3_file *file, bool ok);

/* Is this one of ours? Returns its dfile or NULL. */
struct dfile *file_of(sqlite3_file *f);

/* Give it the methods below, which it has when it is open. */
void file_own_methods(struct dfile *f);

/* ---- for the statement hook ---- */

/* Take the write turn before a statement takes its snapshot, waiting a few milliseconds at most. DUST_OK; DUST_BUSY: it
 * has a place in the queue, which it keeps for file_take_turn or until file_return_turn; others: as that. */
int file_await_turn(struct dfile *f);

/* And wait longer. DUST_OK; DUST_BUSY: not within that time, the place is given up; DUST_CLOSED, DUST_FULL, DUST_IO. */
int file_take_turn(struct dfile *f, uint32_t timeout_ms);

/* A statement ended: give back the turn, or the place in the queue, if nothing is being written. */
void file_return_turn(struct dfile *f);

/* Wait until the version that the next row would come from is agreed: the snapshot held or, before one is taken, the
 * head if the file has the turn. DUST_OK, DUST_VOID, DUST_BUSY. */
int file_wait_to_show(struct dfile *f);

/* ---- between file.c, forked.c, lock.c, seal.c and pragma.c ---- */

/* A connection has this file. A second one is refused, and from then on any lock: a file has one connection's hook and
 * transaction, and does not know which of them it is that calls. */
void file_connection(struct dfile *f, sqlite3 *conn);

/* Take or raise, lower or give up SQLite's lock. A SQLite code. */
int file_lock(struct dfile *f, int level);
void file_unlock(struct dfile *f, int level);

/* Hold the newest agreed version in the store as it is now. A SQLite code. */
int file_pin(struct dfile *f);

/* If no snapshot is held, go on in the store of the host as it is now, and have slot[0] there if that is another process. */
void file_bind(struct dfile *f);

/* Give up everything in the store, which must not be in use, and the store. */
void file_unbind(struct dfile *f);

/* Have a place for slot[i], 0 or 1, in the page store. A SQLite code. */
int file_take_slot(struct dfile *f, int i);

/* Wait until a version of the file's store is agreed, as store_wait_agreed, with store_patience. id: what is known of it,
 * or none. */
int file_wait_agreed(struct dfile *f, uint64_t seq, const struct vid *id);

/* Pass the turn on, if the file has it. */
void file_pass_turn(struct dfile *f);

/* An error of this code and text, as file_fail. */
int file_refuse(struct dfile *f, int code, const char *text);

/* Read page bytes as the file's transaction or snapshot sees them. Returns a SQLite code. */
int file_read_page(struct dfile *f, uint32_t pgno, uint32_t offset, uint32_t n, void *buf);

/* The commit point. Returns a SQLite code. */
int file_commit(struct dfile *f);

/* Answer a PRAGMA. Returns SQLITE_OK (answered), SQLITE_NOTFOUND (not ours), or an error with *arg[0] set. */
int file_pragma(struct dfile *f, char **arg);

/* dust's code as one of SQLite's; remembers and logs the error. `committing`: a plain SQLITE_BUSY would keep the
 * transaction open, so it becomes SQLITE_BUSY_SNAPSHOT. */
int file_fail(struct dfile *f, const struct err *e, bool committing);
int sqlite_code(int code);

#endif
