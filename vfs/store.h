/* store - the page versions newer than app.db.
 *
 * A database has one history of versions. Each version has a local sequence number ("seq"): unique in this store,
 * growing, never used twice, known to nobody else. The newest version that the cluster agreed on is `agreed`; versions
 * above it are speculative: sealed here, sent to the cluster, not yet agreed. The newest of all is the head.
 *
 *     app.db = base          agreed                    head
 *        |                     |                        |
 *   -----B----v----v----v------A- - - -s- - - -s- - - - H      seq grows to the right
 *
 * Reading page p at snapshot s means: the newest version of p with seq <= s, or app.db where there is none.
 *
 * Readers take no lock. A snapshot is a number written into the reader's slot; a lookup walks a hash chain; what was
 * read counts only if the generation (a seqlock: odd while chains are cut or frames freed) did not change meanwhile.
 * Changes are made under the store's mutex.
 *
 * All of this lives in one mapped file and refers to itself by numbers, never by address, so that other processes can
 * map it (docs/PROCESSES.md). It is made anew at each start and nothing in it is ever trusted after a crash. */
#ifndef DUST_VFS_STORE_H
#define DUST_VFS_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/err.h"
#include "vfs/vid.h"

struct store;

#define STORE_MAX_SLOTS 8192 /* snapshots that can be held at a time; an open file takes at most two */

enum version_state { VERSION_SPECULATIVE, VERSION_AGREED, VERSION_VOID };

/* One version. Owned by the store; fields other than `owner` are read under the store's mutex or by the thread that
 * staged or publishes it. */
struct version {
    struct version *prev, *next; /* older, newer */
    uint64_t seq;
    uint64_t index;   /* of the log entry that made it take effect; 0 while speculative */
    uint64_t after;   /* index applied when it was staged: that entry can only come later */
    struct vid id;
    struct vid parent;
    uint32_t n_pages; /* size of the database in pages */
    uint32_t nodes;   /* list of its page nodes, while speculative */
    enum version_state state;
    void *owner;      /* whoever waits for its outcome, or NULL */
};

/* A snapshot, held by one reader. */
struct snap {
    uint64_t seq;     /* 0: none held */
    uint32_t n_pages; /* size of the database at seq */
    uint32_t slot;
};

/* Read n bytes at `offset` of app.db as SQLite is to see it (marks hidden). Returns 0 or a code of the caller's own,
 * which store_read passes on negated. May be called with the store's mutex held. */
typedef int (*store_base_fn)(void *ctx, void *buf, uint32_t n, uint64_t offset);

/* Make a store in file `path`, 0600. An older file of that name is unlinked; processes that have it mapped keep it. */
int store_open(struct store **out, const char *path, struct err *e);

/* Lay the store out for a page size and a base version. Once per store. */
int store_format(struct store *s, uint32_t page_size, const struct vid *id, uint64_t index, uint32_t n_pages,
    struct err *e);

/* Map the store of another process, for reading it: what changes the history does not work on it (that is the
 * host's), and what waits for a change neither. `owner`: the number of this process, as the host has given it, for its
 * slots. Writes to it are this process's own memory (locals.h). DUST_AGAIN: it is not there yet, or not laid out. */
int store_attach(struct store **out, const char *path, uint32_t owner, struct err *e);

/* One more reference, and one less; with the last one it is unmapped and freed. No snapshot may be held then. NULL is
 * fine for the latter. */
struct store *store_ref(struct store *s);
void store_close(struct store *s);

/* What has become of it: see store_attach.c. */
enum store_state { STORE_LIVE, STORE_SUPERSEDED, STORE_CLOSED, STORE_LEFT };
enum store_state store_state(const struct store *s);
bool store_attached(const struct store *s);

/* Say so in a store that is attached, whose host is gone: this process is the host now. */
void store_set_state(struct store *s, enum store_state state);

/* Host: a local read need not be confirmed; attached: has that been said? */
void store_set_caught_up(struct store *s, bool yes);
bool store_caught_up(const struct store *s);

/* Host: the reader of this slot, of this attached process, has the write turn (owner 0: none has). Attached: which one had
 * it when that was last said? */
void store_set_turn_of(struct store *s, uint32_t owner, uint32_t slot);
uint32_t store_turn_of(const struct store *s, uint32_t *slot);
uint32_t store_owner(const struct store *s); /* this process's own number */

/* Host: a version of this seq was written in this process; attached: is any of those not agreed yet? */
void store_set_hosts_own(struct store *s, uint64_t seq);
bool store_ahead_of_host(const struct store *s);

uint32_t store_page_size(const struct store *s);

/* ---- readers: any thread, no lock ---- */

/* A slot for one reader. DUST_TOOBIG when all are taken. */
int store_slot_take(struct store *s, uint32_t *slot, struct err *e);
void store_slot_give(struct store *s, uint32_t slot);

/* Hold the newest agreed version. */
void store_pin(struct store *s, uint32_t slot, struct snap *snap);

/* Hold the head, agreed or not. */
void store_pin_head(struct store *s, uint32_t slot, struct snap *snap);

/* Hold a version that this thread has staged and not yet submitted: nobody can publish it before, but it may be void by
 * now, and the commit will say so. */
void store_pin_staged(struct store *s, uint32_t slot, struct snap *snap, const struct version *v);

/* Was the snapshot ahead, and has its version become void? */
bool store_snap_void(struct store *s, const struct snap *snap);

void store_unpin(struct store *s, struct snap *snap);

/* Read n bytes of page pgno, from `offset` within it, as of the snapshot. DUST_CORRUPT if the frame was changed by
 * somebody else. DUST_VOID if the snapshot was ahead and its
 * version has become void; negative: what `base` returned. */
int store_read(struct store *s, struct snap *snap, uint32_t pgno, uint32_t offset, uint32_t n, void *buf,
    store_base_fn base, void *ctx);

/* ---- slots of attached processes, for the host; any thread ---- */

/* Is it one of that owner's? */
bool store_slot_is(struct store *s, uint32_t slot, uint32_t owner);

/* Free all of its slots, of a process that is gone. Returns how many there were. */
uint32_t store_free_slots(struct store *s, uint32_t owner);

/* The number of snapshots it holds (0: all hold), and the oldest of them. */
uint32_t store_held_by(struct store *s, uint32_t owner, uint64_t *oldest);

/* ---- versions: any thread, under the store's mutex inside ---- */

/* A private frame for one page of a transaction. DUST_FULL. */
int store_frame_new(struct store *s, uint32_t pgno, uint32_t *node, struct err *e);
void store_frame_free(struct store *s, const uint32_t *nodes, uint32_t n);
void store_frame_write(struct store *s, uint32_t node, uint32_t offset, const void *buf, uint32_t n);
void store_frame_read(struct store *s, uint32_t node, uint32_t offset, void *buf, uint32_t n);
const uint8_t *store_frame(struct store *s, uint32_t node); /* private frames, and those being folded */
bool store_frame_sound(struct store *s, uint32_t node, uint64_t sum); /* is its page_sum still what it was when staged? */

/* Does a page have a node, or is app.db all there is of it? */
bool store_has(struct store *s, uint32_t pgno);

/* Put a transaction's frames on top of the head as a speculative version. `parent` has to be the head: DUST_STALE
 * otherwise (the frames stay the caller's). On success the frames belong to the store, and *copy says what it is (its links
 * mean nothing): the version itself may be voided and freed at any moment, by whoever applies what others wrote. */
int store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version *copy, struct err *e);

/* The oldest speculative version took effect at `index`. */
void store_publish(struct store *s, struct version *v, uint64_t index);

/* A version made elsewhere took effect at `index` on top of the agreed version, its parent: every speculative version
 * is void (returned in *voided as by store_void, or NULL), and this one is the head and agreed. All in one step, so
 * that nothing can be staged in between. DUST_EXISTS: it was the oldest speculative version itself, sent here again after
 * another host had sent it; so it took effect as by store_publish, nothing is void, and the frames stay the caller's.
 * On failure (DUST_NOMEM) nothing has changed. */
int store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e);

/* v and everything above it is void. The versions are unlinked and handed to the caller, oldest first, linked by
 * `next`, to be freed with version_free. */
struct version *store_void(struct store *s, struct version *v);
void version_free(struct version *v);

struct head_info {
    uint64_t seq;
    uint64_t index; /* of the agreed version */
    struct vid id;
    uint32_t n_pages;
};
void store_agreed(struct store *s, struct head_info *out);
void store_head(struct store *s, struct head_info *out);
void store_base(struct store *s, struct head_info *out); /* what app.db is at */

/* app.db was empty, nothing was staged, and now it holds this version (`seq` is chosen here). */
void store_rebase(struct store *s, const struct head_info *head);

/* The id of the version with that seq, if it is known still (not older than the base). */
bool store_id_of(struct store *s, uint64_t seq, struct vid *id);

/* The reverse; 0 if it is not known. */
uint64_t store_seq_of(struct store *s, const struct vid *id);

/* The oldest speculative version, or NULL. */
struct version *store_oldest_speculative(struct store *s);

/* Wait, at most timeout_ms, until the version with that seq is agreed (DUST_OK), void (DUST_VOID) or the time is up
 * (DUST_BUSY). One that became void before app.db came to a newer version counts as agreed: whoever holds a snapshot of
 * it asks store_snap_void. Any thread but the one that publishes. */
int store_wait_agreed(struct store *s, uint64_t seq, uint32_t timeout_ms);

/* Have `changed` called whenever versions were staged, published or voided and `on` was last said; with the store's mutex
 * held, so that it may do nothing but pass the news on. */
void store_watch(struct store *s, void (*changed)(void *ctx), void *ctx);
void store_watching(struct store *s, bool on);

/* The index of the last log entry looked at, void ones included: what dust_wait() waits for. store_wait_applied
 * returns DUST_BUSY when the time is up. */
void store_set_applied(struct store *s, uint64_t index);
void store_rewind_applied(struct store *s, uint64_t index); /* what comes after it will be looked at once more */
uint64_t store_applied(struct store *s);
int store_wait_applied(struct store *s, uint64_t index, uint32_t timeout_ms);

/* Until when, by clock_ms(), to wait for the cluster to agree on something: timeout_ms from `since_ms` on, or from the last
 * log entry on if one was looked at since. While entries come there is a majority, and what takes long is large. */
uint64_t store_patience(struct store *s, uint64_t since_ms, uint32_t timeout_ms);

/* What app.db may be brought to: versions of entries up to `index`, which this member's log on disk leads to, and the
 * version `noted`, which is noted elsewhere on disk. What is agreed may be ahead of that: a majority is enough for it, and
 * this member's own disk may be the slowest. Until the first call there is no limit. One thread calls it. */
void store_set_durable(struct store *s, uint64_t index, const struct vid *noted);

/* Wait, at most timeout_ms, until app.db may be brought to this version. DUST_OK, DUST_BUSY. Any thread but the one that
 * calls store_set_durable. */
int store_wait_durable(struct store *s, const struct head_info *head, uint32_t timeout_ms);

/* Wake everybody in store_wait_agreed or store_wait_index to look again (shutdown). */
void store_wake(struct store *s, bool closing);

/* ---- folding into app.db: one at a time, any thread ---- */

struct fold_page {
    uint32_t pgno;
    uint32_t node;
};
struct fold {
    struct snap snap;
    uint32_t slot;
    struct head_info target;
    uint32_t n_pages_before;
    struct fold_page *pages; /* ascending */
    uint32_t n;
    bool empty; /* app.db is at the target already */
};

/* Choose the newest agreed version as the target and list the pages to write. `base` reads app.db as it is, so that
 * pages which an old reader still needs can be kept before they are overwritten. DUST_NOMEM, DUST_FULL. */
int store_fold_begin(struct store *s, struct fold *f, struct err *e);
int store_fold_keep(struct store *s, struct fold *f, store_base_fn base, void *ctx, struct err *e);
/* The fold is over; `outcome` DUST_OK: app.db now is at the target; DUST_BUSY: nothing was written; anything else:
 * app.db may be half-way (with a journal that undoes it), and no page of the fold may be read from it before the next
 * fold has succeeded. Releases the fold. */
void store_fold_end(struct store *s, struct fold *f, int outcome);

struct store_stats {
    uint64_t frames_used, frames_all, bytes, versions, readers, base_seq, agreed_seq, head_seq, oldest_reader;
};
void store_stats(struct store *s, struct store_stats *out);

#endif
