/* storage - what libraft wants of a disk and a clock: the part of raft_io that is not about other members, on the log
 * (log.h), the file `term` (termfile.h) and the file `snapshot` (snapshot.h) in one folder, and a libuv loop.
 *
 * It keeps what libraft hands over until it is durable, in order; it does not judge (io.c and guard.c do). All on the loop
 * thread. Its life: storage_init, [raft_bootstrap], load, start, …, close, the loop drained, storage_deinit; close may
 * come at any time. */
#ifndef DUST_RAFT_STORAGE_H
#define DUST_RAFT_STORAGE_H

#include <raft.h>
#include <uv.h>

#include "raft/log.h"
#include "vfs/err.h"

struct storage;

/* Entries on their way to the disk; the caller's memory until done is called. */
struct storage_append {
    struct log_op op;
    void (*done)(struct storage_append *a, int status); /* of libraft: 0, RAFT_NOSPACE, RAFT_IOERR, … */
};

/* Make *io one on this folder, which exists. Its functions init, bootstrap, start, snapshot_get, time, random and
 * async_work are set, and those below are for the others. `term` is made if it is not there. DUST_OK; DUST_CORRUPT,
 * DUST_IO, DUST_FULL, DUST_NOMEM: nothing to be undone. */
int storage_init(struct storage **out, struct raft_io *io, uv_loop_t *loop, const char *dir, struct err *e);
void storage_deinit(struct storage *s); /* NULL is fine */

/* Before it is started: where the times of the log's writes are added up. */
void storage_measure(struct storage *s, struct times *flushes);

/* Before storage_load: what of a damaged log is before the damage will do (log_load). */
void storage_forgive(struct storage *s);

/* As raft_io's load; with DUST codes. */
int storage_load(struct storage *s, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot, raft_index *start,
    struct raft_entry *entries[], size_t *n, struct err *e);

/* Put entries behind what is there. done is called later, those of earlier calls before; never after storage_close. here:
 * as log_do's: the disk may be waited for. */
void storage_append(
    struct storage *s, struct storage_append *a, const struct raft_entry *entries, unsigned n, bool here);

/* The next entries are at index. What stands there now is void when they are on disk, and not before: until then the
 * member has not told anybody that it was void. */
void storage_truncate(struct storage *s, raft_index index);

/* As raft_io's set_term and set_vote. Blocking. False: it is not certain which will be found there; io->errmsg says why. */
bool storage_set_term(struct storage *s, raft_term term);
bool storage_set_vote(struct storage *s, raft_id vote);

/* As raft_io's snapshot_put: one at a time; cb is called even after storage_close. trailing 0: it was installed, and takes
 * the place of the log. Never fails at once. */
void storage_put(struct storage *s, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb);

/* How much of the log is on disk (log_disk_bytes). */
uint64_t storage_disk_bytes(struct storage *s);

/* Let what is being written come to its end, and close all handles on the loop. */
void storage_close(struct storage *s);

/* The loop has ended: wait for the disk if it has not, and let go of what was handed over. NULL is fine. */
void storage_join(struct storage *s);

/* Was a log ever begun in this folder? DUST_OK; DUST_IO, DUST_NOMEM: that cannot be told. Blocking; any thread. */
int storage_begun(const char *dir, bool *begun, struct err *e);

#endif
