/* checkpoint - folds pages into the database file by SQLite's own rollback-journal protocol, and undoes a
 * fold that was cut short (DESIGN.md section 6; https://www.sqlite.org/fileformat2.html#the_rollback_journal;
 * https://www.sqlite.org/lockingv3.html). How it works, and what is true at every instant, stands in
 * checkpoint.c.
 *
 * What is promised: at whatever instant the process or the machine stops, and whatever call of the base VFS
 * fails, the file together with its journal is the database before the fold or the one after it, and plain
 * SQLite and checkpoint_recover() both find it so.
 *
 * What is not: the file may be briefly locked against plain readers (EXCLUSIVE: while the pages are written
 * and flushed); a disk that reports a flush it has not done may lose both states, as with SQLite itself.
 *
 * Plain readers' caches. A plain SQLite connection keeps its cached pages from one transaction to the next if
 * bytes 24..39 of the file (change counter, page count, first free page, number of free pages) are what they
 * were. So a fold that changes anything a plain reader looks at must change these bytes. It does so by itself
 * in an ordinary checkpoint: a version's change counter is its parent's plus one, for SQLite's commit adds
 * one to the page 1 it has read, void versions are in no chain, and folds go down one chain. It does not when
 * the caller defines new content:
 *
 * (start) At dust_start or a restore the content may be the file's own with only the marks added, yet a
 * connection that is open from before must see byte 18, or it would go on writing. The caller calls
 * header_advance() on the page 1 that becomes its first version. checkpoint_fold() checks it: DUST_MISUSE.
 *
 * (leave) At dust_leave (marked == false) the fold calls header_advance() itself where it is needed, for no
 * cluster has an opinion on these bytes any more.
 *
 * So in a marked file bytes 24..27 are always those of the version, and what dust reads back is exactly what
 * was supplied. */
#ifndef DUST_VFS_CHECKPOINT_H
#define DUST_VFS_CHECKPOINT_H

#include "vfs/err.h"
#include "vfs/vid.h"
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

/* Where the pages come from. They are read twice, once to save what they replace and once to write them: in
 * between rewind() is called. Both passes must give the same page numbers. Callbacks run on the thread of the
 * fold. */
struct fold_source {
    void *ctx;              /* for the callbacks; the fold does not look at it */
    uint32_t page_size;     /* bytes; may differ from the page size the file has now */
    uint32_t n_pages_after; /* size of the database after the fold, in pages; >= 1. Every page that the file
                             * does not have yet should be supplied; one that is not (as the lock-byte page)
                             * becomes zeros */
    struct vid id;          /* the version the file is at afterwards; not looked at if !marked */
    bool marked;            /* true: write both marks; false: clear them (leave) */
    bool repeat_ok; /* do not insist that bytes 24..39 change (see above): the caller knows that no plain
                     * connection is open */

    /* The next page in ascending order, from 1 to n_pages_after, without the lock-byte page; *pgno = 0 after
     * the last. *page is page_size bytes of the source's, valid until the next call. Page 1 without marks (or
     * with: they are replaced). If page 1 is not supplied, the file's own is taken. Returns DUST_OK or a code
     * with *e. */
    int (*next)(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e);

    /* Go back to before the first page. Returns DUST_OK or a code with *e. Called once, before the second
     * pass. */
    int (*rewind)(void *ctx, struct err *e);

    /* Optional: called at most once, after the journal is durable and the EXCLUSIVE lock is held, before the
     * first byte of the database changes. */
    void (*before_write)(void *ctx);

    /* Optional: is `path` still the name of the file behind db? Asked before anything is looked at, and when the new
     * pages are flushed, before the journal is removed. If not, the fold is undone. Returns DUST_OK or a code with *e. */
    int (*in_place)(void *ctx, struct err *e);

    /* Optional: readers hold up the EXCLUSIVE lock (no new ones can come) and it was tried `tries` (>= 1)
     * times. Returns true to try again, after a wait of its own making, false to give up with DUST_BUSY.
     * NULL: give up. */
    bool (*busy)(void *ctx, int tries);
};

/* Fold the pages of `src` into the database.
 *
 * base: the VFS underneath, never dust's own.
 *
 * db: the database's main file, opened read-write by that VFS as SQLITE_OPEN_MAIN_DB; holds no lock on entry
 * and none on return. The caller keeps it. Nobody else may use this handle meanwhile, except to read.
 *
 * path: the file's full name, as base->xFullPathname gives it and as db was opened; the journal is
 * "<path>-journal".
 *
 * src: what to write; not changed, used only during the call.
 *
 * DUST_OK: the file has the new pages, is n_pages_after * page_size bytes long, and is flushed.
 *
 * Nothing changed, and no journal is left:
 *
 * - DUST_BUSY: a plain connection reads or writes. Try again later.
 *
 * - DUST_MISUSE: bytes 24..39 would not change (see above); the file is in WAL mode and has a log;
 *   n_pages_after or page_size is not possible; page 1 is neither supplied nor in the file.
 *
 * - DUST_CORRUPT: the source gave pages out of order or out of range, or other ones the second time (then the
 *   change was undone), or a page 1 that is not one, or one in WAL mode (byte 19 is not 1).
 *
 * - DUST_VERSION: the file has the mark of a newer dust. DUST_TOOBIG: it is larger than any database.
 *
 * DUST_FULL, DUST_IO, DUST_NOMEM, DUST_REFUSED (not permitted), or a callback's own code: nothing changed, or
 * the change was undone, or a hot journal was left behind that undoes it when the next fold,
 * checkpoint_recover() or any SQLite opens the file. Only if the very last steps failed (removal of the
 * journal not flushed, locks not released) may the file be at the new version: its mark tells.
 *
 * A hot journal found at the start is played back first. While a fold runs, or has left a hot journal, the
 * file holds a mixture: a reader that goes to it past SQLite's locks, as dust's readers do, must take every
 * page that is being folded from the page store, and may drop them there only after DUST_OK.
 *
 * Blocking (reads, writes and flushes); any thread, one fold at a time per file. */
int checkpoint_fold(
    sqlite3_vfs *base, sqlite3_file *db, const char *path, const struct fold_source *src, struct err *e);

/* Undo what a crash left half done: if the database at `path` (full name) has a hot journal, play it back,
 * flush, and remove it; remove a journal that is not hot (never finished, or of an empty database). Without a
 * journal, or without a database, there is nothing to do. Opens the file by `base` itself, and closes it.
 *
 * DUST_OK: the file is a consistent database (or was not there).
 *
 * DUST_BUSY: another connection holds a lock: it is writing, or playing the journal back itself. Try again.
 *
 * DUST_IO, DUST_FULL, DUST_NOMEM, DUST_REFUSED: as told; the journal is still there, and calling again is
 * harmless.
 *
 * For the start of a member, before anything else opens the file. Closing a file drops the process's POSIX
 * locks on it unless its SQLite library knows of the other handles: `base` must be of the same SQLite copy as
 * they. Any thread. */
int checkpoint_recover(sqlite3_vfs *base, const char *path, struct err *e);

#endif
