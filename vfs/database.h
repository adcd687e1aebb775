/* database - one member's database in this process: its files, its page store, its turn, and who replicates it.
 *
 * One per path and process; made and freed by whoever owns the registry of members, used by every open file. */
#ifndef DUST_VFS_DATABASE_H
#define DUST_VFS_DATABASE_H

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "vfs/checkpoint.h"
#include "vfs/hostlock.h"
#include "vfs/metrics.h"
#include "vfs/place.h"
#include "vfs/report.h"
#include "vfs/replicator.h"
#include "vfs/store.h"
#include "vfs/sums.h"
#include "vfs/turn.h"

enum statements { STATEMENTS_OFF, STATEMENTS_TEXT, STATEMENTS_EXPANDED };

struct database_options {
    uint32_t timeout_ms; /* how long a commit waits for a majority that was lost */
    uint32_t turn_timeout_ms;
    enum consistency consistency; /* of a connection that does not say */
    enum statements statements;
};

struct database {
    char *path; /* full name of app.db */
    char *dir;  /* app.db-dust */
    uint32_t page_size;
    struct database_options options;
    struct hostlock lock;
    struct store *store; /* NULL while another process hosts the member */
    struct store *bound; /* in which snapshots are taken: by database_bound (attachment.h) only */
    struct attachment *attachment; /* NULL: this process has been the host from the beginning */
    struct turn turn;
    struct ticket reserved; /* holds the turn for an attached process that had it from the host before */
    _Atomic uint32_t reserved_for; /* that process's number then; 0: none; RESERVED_FOR_SENT: whoever has sent `awaited` */
    struct vid awaited;            /* the head of the host before, which was not agreed; set before this one serves */
    _Atomic int taking_in;         /* how many transactions of this process, sealed for that one, are being taken in here */
    struct replicator rep;
    struct report report;
    struct metrics metrics;
    sqlite3_vfs *base;  /* the VFS underneath, of the SQLite copy that opened the member first */
    sqlite3_file *file; /* our own handle, for checkpoints and for reading pages of app.db */
    struct file_place app_place, host_place, raft_place; /* of app.db, and of two things in the folder */
    pthread_mutex_t fold_mutex; /* one fold at a time */
    struct sums *sums;          /* of the pages of app.db; NULL: not checked */
    _Atomic uint32_t damaged;   /* a page that was found damaged, 0: none since the last repair */
    uint64_t origin;            /* this member's id */
    _Atomic uint64_t origin_seq;
    bool held; /* under fold_mutex: no checkpoint for now */
    bool held_for_old; /* likewise: what a former host had is still being read */
    bool repairing; /* a checkpoint may change pages without a new version: they were damaged */
    _Atomic bool caught_up; /* a local read need not ask: the commit index known at start has been reached */
    _Atomic bool left;      /* no member any more: connections that are open are refused */
    _Atomic int n_files;    /* open files on it */
};

/* Make a database object for a member that another process may host. `dir` has to exist. */
int database_prepare(struct database **out, sqlite3_vfs *base, const char *path, const struct database_options *opt,
    struct err *e);

/* The lock is this process's: make it the host, with an empty store. Nothing is replicated until `rep` is filled in. */
int database_host(struct database *db, struct err *e);

/* Undo what was done since database_host, which has not led to a host. */
void database_unhost(struct database *db);

/* database_prepare, the lock, and database_host: DUST_BUSY, with a text naming the process, if another one is the host. */
int database_new(struct database **out, sqlite3_vfs *base, const char *path, const struct database_options *opt,
    struct err *e);

/* Open app.db through the base VFS and learn page size, size and version of what it holds (its journal played back
 * first). *marked: it carries the marks of version *id. n_pages 0: the file is empty, page size unknown. */
struct database_content {
    bool marked;
    struct vid id;
    uint32_t page_size, n_pages;
    bool wal; /* the file is in WAL mode */
};
int database_open_file(struct database *db, struct database_content *out, struct err *e);

/* Are app.db and the folder, as they are open here, still under their names? DUST_MOVED, with what to do. Blocking; any
 * thread (place.c). */
int database_in_place(struct database *db, struct err *e);
int database_file_in_place(struct database *db, struct err *e); /* only app.db */

/* Close and free everything. No file may be open on it. NULL is fine. */
void database_free(struct database *db);

/* Read app.db as SQLite is to see it: marks hidden, zeros beyond the end. A store_base_fn; ctx is the database. */
int database_read_base(void *ctx, void *buf, uint32_t n, uint64_t offset);

/* As database_read_base, whatever the page's checksum says: for comparing with others. */
int database_read_raw(void *ctx, void *buf, uint32_t n, uint64_t offset);

/* Read the checksums of app.db, which is at version `id`, and make those anew that are not known. Before anything reads.
 * DUST_IO, DUST_NOMEM, DUST_FULL. */
int database_sums_open(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e);

/* Make all of them anew, as those of version `id`: of what app.db holds and has been found to be right. */
int database_sums_renew(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e);

/* A store_base_fn's read, by whatever handle, of n bytes at `offset` of app.db, has given buf: is it what was written?
 * `read` reads more of the page if need be. SQLITE_OK or SQLITE_CORRUPT, which only counts if no checkpoint wrote the page
 * meanwhile: store_read knows; then it is for the caller to report it (database_found_damage). */
int database_check(struct database *db, store_base_fn read, void *ctx, const void *buf, uint32_t n, uint64_t offset);

/* A page is not what it was: say so, and have it repaired. `where`: app.db, or pages. */
void database_found_damage(struct database *db, uint32_t pgno, const char *where);

/* Somebody says that this page is damaged: look, and if it is, database_found_damage. */
void database_look_for_damage(struct database *db, uint32_t pgno);

/* Bring app.db to the newest agreed version. DUST_BUSY: a plain reader is in the way. DUST_MOVED: app.db or the folder is
 * not under its name any more, and nothing was changed; then the log must not be cut. Blocking; any thread but the
 * loop's. *at (may be NULL): the version app.db is at afterwards. */
int database_checkpoint(struct database *db, struct head_info *at, struct err *e);

/* A new host: keep the turn for the process that had it from the one before (0: nobody), and then for those who had sent
 * transactions to it, up to the version `awaited` (none: there are none), and will send them again. */
#define RESERVED_FOR_SENT UINT32_MAX
void database_reserve_turn(struct database *db, uint32_t owner, const struct vid *awaited);

/* Give up what is kept for that process, or for those. */
void database_unreserve_turn(struct database *db, uint32_t owner);

/* As database_hold, waiting for the one that is running; for as long as what a former host had is still being read. */
void database_hold_for_old(struct database *db, bool hold);

/* What this process has is as new as the cluster was when it began: from now on a local read need not ask. */
void database_caught_up(struct database *db);

/* Hold off checkpoints (database_checkpoint answers DUST_BUSY), or let them go on. Returns false if one is running. */
bool database_hold(struct database *db, bool hold);

/* Make app.db, as it stands, version `id` of a new cluster: both marks, and a change counter advanced by one so that
 * connections that are open on it notice. Before store_format. */
int database_begin(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e);

/* Take both marks off app.db: an ordinary database again. Everything has to be folded. */
int database_end(struct database *db, struct err *e);

#endif
