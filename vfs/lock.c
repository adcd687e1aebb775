/* The locks of a member's file: SQLite's states (file.h) as snapshots and the write turn.
 *
 * They are dust's own affair: no lock is taken on the real file, which only a checkpoint writes.
 *
 *   SHARED    pins the newest agreed version; with the turn in hand by the hook, the head
 *   RESERVED  needs the turn, and the snapshot to be the head. With the hook the turn was taken before the snapshot,
 *             so it is; without, the snapshot came first: if it is old and SQLite can begin again, it gets SQLITE_BUSY,
 *             and its place in the queue is kept while it does; in an open transaction, SQLITE_BUSY_SNAPSHOT
 *   PENDING, EXCLUSIVE  nothing more
 *
 * A writer without the hook that starts on a version not yet agreed waits here until it is; one with the hook is held
 * back only before it shows a row (file_wait_to_show) and at its commit. */
#include "vfs/file.h"

#include <sqlite3ext.h>

#include "vfs/attachment.h"
#include "vfs/bug.h"
#include "vfs/clock.h"
#include "vfs/forked.h"

/* Without the hook, the write lock waits this long for the turn at a time, then lets SQLite's busy handler decide
 * whether to go on. */
#define TURN_SLICE_MS 30
#define TURN_IN_TRANSACTION_MS 1000
#define TURN_AWAIT_MS 10 /* before the connection is asked how long it would wait */
/* … and the place that was reached in the queue is kept this long for the retry. */
#define TURN_RETRY_LEASE_MS 300
/* A read that has to be confirmed waits this long by itself, whatever the busy timeout; then SQLite's busy handler
 * decides whether to go on, and each retry waits a little: what the handler counts is only its own sleep. A linearizable
 * read begins again each time, and must have time for a round of messages. */
#define CONFIRM_WAIT_MS 5000
#define CONFIRM_RETRY_MS 2
#define CONFIRM_ROUND_MS 100
#define CONFIRM_RETRY_WITHIN_MS 500 /* SQLite's own handler sleeps 100 ms at most */

/* Another process may take over from the one that hosts the member. */
#define TAKEOVER_MS 8000u

void file_unbind(struct dfile *f)
{
    if (f->next_store != NULL) {
        store_slot_give(f->next_store, f->next_slot);
        store_close(f->next_store);
        f->next_store = NULL;
    }
    for (int i = 0; f->store != NULL && i < 2; i++) {
        if (f->has_slot[i]) {
            store_slot_give(f->store, f->slot[i]);
            f->has_slot[i] = false;
        }
    }
    store_close(f->store);
    f->store = NULL;
}

/* No snapshot is held. */
static void bind_now(struct dfile *f)
{
    struct store *s;

    if (f->store != NULL && f->db->attachment == NULL) {
        return; /* it has always been the same */
    }
    s = database_bound(f->db);
    if (s == f->store) {
        store_close(s);
        return;
    }
    file_unbind(f);
    f->store = s;
    f->pager_seq = f->pager_seq != 0 ? UINT64_MAX : 0; /* numbers of another store */
}

void file_bind(struct dfile *f)
{
    if (f->snap.seq == 0) {
        bind_now(f);
        if (store_attached(f->store)) {
            (void)file_take_slot(f, 0); /* without one, the turn is not kept when the host ends */
        }
    }
}

int file_pin(struct dfile *f)
{
    uint64_t until = clock_ms() + TAKEOVER_MS;

    for (;;) {
        uint32_t generation, owner;
        struct err e;
        int rv;

        bind_now(f);
        rv = file_take_slot(f, 0);
        if (rv != SQLITE_OK) {
            return rv;
        }
        store_pin(f->store, f->slot[0], &f->snap);
        if (store_state(f->store) == STORE_LIVE) {
            return SQLITE_OK;
        }
        store_unpin(f->store, &f->snap);
        rv = store_state(f->store) == STORE_LEFT
                 ? err_set(&e, DUST_CLOSED, "this database has left its cluster: close the connection and open it again")
                 : attachment_wait(f->db, until, &generation, &owner, &e);
        if (rv != DUST_OK && rv != DUST_EXISTS) {
            return file_fail(f, &e, false);
        }
        if (rv == DUST_OK && clock_ms() >= until) {
            return file_refuse(f, DUST_BUSY, "the process that hosted this member has ended, and no other has taken over yet");
        }
        if (rv == DUST_OK) {
            attachment_lost(f->db, generation);
        }
    }
}

/* ---- the turn and waiting, here or with the host ---- */

static int take_turn(struct dfile *f, uint32_t timeout_ms)
{
    return store_attached(f->store) ? remote_take_turn(f, timeout_ms, 0, false)
                                    : turn_take(&f->db->turn, &f->ticket, timeout_ms, 0);
}

/* As turn_take_place. */
static int take_place(struct dfile *f, uint32_t timeout_ms, uint32_t lease_ms)
{
    int rv = store_attached(f->store) ? remote_take_turn(f, timeout_ms, lease_ms, true)
                                      : turn_take_place(&f->db->turn, &f->ticket, timeout_ms, lease_ms);

    f->has_place = rv == DUST_BUSY;
    return rv;
}

static bool holds_turn(struct dfile *f)
{
    return store_attached(f->store) || remote_has_turn(f) ? remote_turn_held(f) : turn_held(&f->db->turn, &f->ticket);
}

static bool keep_turn(struct dfile *f)
{
    return store_attached(f->store) || remote_has_turn(f) ? remote_turn_keep(f) : turn_keep(&f->db->turn, &f->ticket);
}

static int wait_agreed(struct dfile *f, uint64_t seq, const struct vid *id, uint32_t timeout_ms)
{
    if (store_attached(f->store) && seq == f->snap.seq && !f->snap_ahead) {
        return DUST_OK; /* as it was when it was taken */
    }
    return store_attached(f->store) ? remote_wait_agreed(f, seq, id, timeout_ms)
                                    : store_wait_agreed(f->store, seq, timeout_ms);
}

int file_wait_agreed(struct dfile *f, uint64_t seq, const struct vid *id)
{
    uint64_t since = clock_ms(), now = since, until = since + f->db->options.timeout_ms;
    int rv;

    do {
        rv = wait_agreed(f, seq, id, (uint32_t)(until - now));
        now = clock_ms();
        if (rv != DUST_BUSY || now < until) {
            break; /* (busy before its time: nobody is there to agree any more) */
        }
        until = store_patience(f->store, since, f->db->options.timeout_ms);
    } while (until > now);
    return rv;
}

/* What the next writer would stand on. */
static int wait_for_head(struct dfile *f)
{
    struct head_info head;

    store_head(f->store, &head);
    return file_wait_agreed(f, head.seq, &head.id);
}

/* May what this member has be shown, at the connection's level? */
static int confirm_read(struct dfile *f)
{
    struct database *db = f->db;
    uint32_t wait_ms = CONFIRM_WAIT_MS;
    struct err e;
    int rv;

    if (f->consistency == CONSISTENCY_STALE || f->adopting ||
        (f->consistency == CONSISTENCY_LOCAL && store_caught_up(f->store) && store_state(f->store) == STORE_LIVE)) {
        return SQLITE_OK;
    }
    if (f->unconfirmed_ms != 0 && clock_ms() - f->unconfirmed_ms < CONFIRM_RETRY_WITHIN_MS) {
        wait_ms = f->consistency == CONSISTENCY_LINEARIZABLE ? CONFIRM_ROUND_MS : CONFIRM_RETRY_MS;
    }
    rv = store_attached(f->store) ? remote_confirm(f, wait_ms, &e)
                                  : db->rep.confirm_read(db->rep.ctx, f->consistency, f->freshness_ms, wait_ms, &e);
    f->unconfirmed_ms = rv == DUST_OK ? 0 : clock_ms();
    if (rv == DUST_OK) {
        return SQLITE_OK;
    }
    rv = file_fail(f, &e, false);
    return rv == SQLITE_READONLY ? SQLITE_CANTOPEN : rv; /* it is reading that is refused */
}

/* The hook knows that a writer comes, and holds back what it shows. A turn that is left from a write lock that was tried
 * in vain is for the same statement begun again; but the program may have given up, and this be a read. */
static void pin_with_turn(struct dfile *f)
{
    /* What dies with the host is not built on. */
    bool ahead = f->by_hook && !(store_attached(f->store) && store_ahead_of_host(f->store));
    struct head_info head;

    if (ahead || BUG(ROW)) {
        store_pin_head(f->store, f->slot[0], &f->snap);
        f->snap_ahead = true;
        if (store_attached(f->store) && !store_id_of(f->store, f->snap.seq, &f->snap_id)) {
            f->snap_id = (struct vid){{0}};
        }
        return;
    }
    if (f->by_hook) {
        wait_for_head(f);
    } else {
        store_head(f->store, &head);
        wait_agreed(f, head.seq, &head.id, TURN_RETRY_LEASE_MS); /* as long as its place is kept */
    }
    store_pin(f->store, f->slot[0], &f->snap);
}

static int lock_shared(struct dfile *f)
{
    int rc;

    if (atomic_load_explicit(&f->db->left, memory_order_relaxed)) {
        return file_refuse(
            f, DUST_CLOSED, "this database has left its cluster: close the connection and open it again");
    }
    bind_now(f);
    rc = confirm_read(f);
    if (rc == SQLITE_OK) {
        rc = file_pin(f);
    }
    if (rc != SQLITE_OK) {
        return rc;
    }
    f->snap_ahead = f->displaced = false;
    f->snap_id = (struct vid){{0}};
    if (f->has_turn && holds_turn(f)) {
        pin_with_turn(f);
    }
    if (f->pager_seq == 0 && !f->adopted) {
        f->pager_seq = f->snap.seq; /* a new pager has nothing cached, and does not ask */
    }
    f->lock = SQLITE_LOCK_SHARED;
    return SQLITE_OK;
}

static void drop_turn(struct dfile *f)
{
    if (store_attached(f->store) || remote_has_turn(f)) {
        remote_pass_turn(f);
    } else {
        turn_drop(&f->db->turn, &f->ticket);
    }
}

void file_pass_turn(struct dfile *f)
{
    if (f->has_turn) {
        f->has_turn = f->has_place = false;
        drop_turn(f);
    }
}

/* Has the connection a transaction open already, so that SQLite cannot begin it again on a newer snapshot? */
static bool in_transaction(const struct dfile *f)
{
    if (f->conn == NULL) {
        return false;
    }
    if (f->lib->api->libversion_number() >= 3034000) {
        return f->lib->api->txn_state(f->conn, NULL) != SQLITE_TXN_NONE;
    }
    return f->lib->api->get_autocommit(f->conn) == 0;
}

/* Within an open transaction SQLite does not ask again, so this is the only time to wait. */
static uint32_t late_wait_ms(const struct dfile *f)
{
    return in_transaction(f) ? TURN_IN_TRANSACTION_MS : TURN_SLICE_MS;
}

static const char *no_turn(int code)
{
    switch (code) {
    case DUST_FULL:
        return "the disk that this member's log is on is full: nothing can be written here until there is space again; "
               "reading goes on";
    case DUST_CLOSED:
        return "this member is shutting down";
    case DUST_MOVED:
        return "this member's database file or folder was removed, renamed or replaced (dust_status says more): nothing can "
               "be written here until it is back under its name; reading goes on";
    default:
        return "the disk that this member's log is on fails: nothing can be written here until it is well again "
               "(dust_status says more); reading goes on";
    }
}

/* Get the turn without the hook's help: the snapshot exists already. */
static int take_turn_late(struct dfile *f)
{
    struct head_info head;
    int rv;

    store_head(f->store, &head);
    if (head.seq != f->snap.seq && in_transaction(f)) {
        return SQLITE_BUSY_SNAPSHOT;
    }
    rv = take_place(f, late_wait_ms(f), TURN_RETRY_LEASE_MS);
    if (rv != DUST_OK) {
        return rv == DUST_BUSY ? SQLITE_BUSY : file_refuse(f, rv, no_turn(rv));
    }
    f->has_turn = true;
    f->by_hook = false;
    return SQLITE_OK;
}

static int refuse_second(struct dfile *f)
{
    struct dfile *g = f->conn != NULL ? f->lib->host->files_of(f->lib, f->conn) : NULL;

    while (g != NULL && (g == f || !g->writing)) {
        g = g->next;
    }
    return g == NULL ? SQLITE_OK
                     : file_refuse(f, DUST_REFUSED,
                           "one transaction cannot write to two databases that are members of clusters: commit the "
                           "first one before writing to the second");
}

static int lock_reserved(struct dfile *f)
{
    struct head_info head;
    int rc = refuse_second(f);

    if (rc != SQLITE_OK) {
        return rc;
    }
    if (f->displaced) {
        return SQLITE_BUSY_SNAPSHOT;
    }
    if (f->has_turn && !holds_turn(f)) {
        file_pass_turn(f); /* it took too long */
    }
    if (!f->has_turn) {
        rc = take_turn_late(f);
        if (rc != SQLITE_OK) {
            return rc;
        }
    }
    store_head(f->store, &head);
    if (head.seq != f->snap.seq || !keep_turn(f)) {
        if (in_transaction(f)) {
            file_pass_turn(f);
            return SQLITE_BUSY_SNAPSHOT;
        }
        return SQLITE_BUSY; /* SQLite lets go of the snapshot and begins again; the turn waits for it a while */
    }
    if (!f->by_hook && !BUG(ROW)) {
        int rv = file_wait_agreed(f, f->snap.seq, &head.id);

        if (rv == DUST_OK && store_snap_void(f->store, &f->snap)) {
            rv = DUST_VOID;
        }
        if (rv != DUST_OK) {
            file_pass_turn(f);
            return rv == DUST_VOID ? SQLITE_BUSY_SNAPSHOT : SQLITE_BUSY;
        }
    }
    txn_begin(&f->txn, f->store, f->snap.n_pages);
    f->writing = true;
    f->committed = false;
    return SQLITE_OK;
}

static void say_shared(struct err *e)
{
    err_set(e, DUST_REFUSED,
        "two connections share one cache of a member's database, which dust does not support: leave the shared cache out "
        "and close both");
}

void file_connection(struct dfile *f, sqlite3 *conn)
{
    struct err e;

    if (conn == NULL || conn == f->conn) {
        return;
    }
    if (f->conn == NULL) {
        f->conn = conn;
        f->lib->host->connected(f->lib, f, conn);
        return;
    }
    f->shared = true;
    say_shared(&e);
    f->lib->host->failed(f->lib, conn, SQLITE_CANTOPEN, &e);
}

int file_lock(struct dfile *f, int level)
{
    struct err e;
    int rc = SQLITE_OK;

    if (f->lock >= level) {
        return SQLITE_OK;
    }
    if (f->shared) {
        say_shared(&e);
        file_fail(f, &e, false);
        return SQLITE_CANTOPEN;
    }
    if (f->lock == SQLITE_LOCK_NONE) {
        rc = lock_shared(f);
    }
    if (rc == SQLITE_OK && level >= SQLITE_LOCK_RESERVED && !f->writing) {
        rc = lock_reserved(f);
    }
    if (rc == SQLITE_OK) {
        f->lock = level;
    }
    return rc;
}

/* To the version committed, which may be in another store: there was another host meanwhile. */
static void move_on(struct dfile *f)
{
    uint32_t slot = f->slot[0];

    store_unpin(f->store, &f->snap);
    if (f->next_store == NULL) {
        txn_disown(&f->txn);
        f->slot[0] = f->slot[1];
        f->slot[1] = slot;
    } else {
        struct store *s = f->next_store;

        txn_reset(&f->txn); /* its own memory */
        slot = f->next_slot;
        f->next_store = NULL;
        if (s != f->store) {
            file_unbind(f);
            f->store = s;
        } else {
            store_slot_give(f->store, f->slot[0]);
            store_close(s);
        }
        f->slot[0] = slot;
        f->has_slot[0] = true;
    }
    f->snap = f->next_snap;
    f->displaced = f->remote.resent; /* found in the log, it may have others on top */
    f->pager_seq = f->displaced ? UINT64_MAX : f->snap.seq;
}

/* The transaction was one over several files, and SQLite could not commit another of them, so it has rolled back here too:
 * too late, for this file's part of it is agreed on. The pager believes that it is where the transaction began, and so is
 * the snapshot; the next one finds the version committed, and the program can find out. */
static void step_back(struct dfile *f)
{
    char hex[VID_HEX_SIZE];
    struct err e;

    if (f->next_store == NULL) {
        txn_disown(&f->txn);
        store_unpin(f->store, &f->next_snap);
    } else {
        txn_reset(&f->txn);
        store_unpin(f->next_store, &f->next_snap);
    }
    f->pager_seq = UINT64_MAX;
    f->unknown = f->next_id;
    f->unknown_after = f->next_after;
    err_set(&e, DUST_UNKNOWN,
        "another database of the same transaction could not be committed, but this one's part of it has taken effect: it is "
        "transaction %s",
        vid_hex(&f->next_id, hex));
    file_fail(f, &e, true);
}

/* Leave WRITING: to the version committed, or back to where the transaction began. */
static void end_writing(struct dfile *f)
{
    if (!f->writing) {
        return;
    }
    if (f->accepted) {
        move_on(f);
    } else if (f->committed) {
        step_back(f);
    } else {
        txn_reset(&f->txn);
    }
    if (f->pager_differs) {
        f->pager_seq = UINT64_MAX;
    }
    f->writing = f->committed = f->accepted = f->pager_differs = f->remote.resent = false;
    sqltext_forget(&f->sql);
    file_pass_turn(f);
}

void file_unlock(struct dfile *f, int level)
{
    if (f->lock <= level) {
        return;
    }
    if (level <= SQLITE_LOCK_SHARED) {
        end_writing(f);
    }
    if (level == SQLITE_LOCK_NONE && f->snap.seq != 0) {
        store_unpin(f->store, &f->snap);
    }
    f->lock = level;
}

/* ---- for the statement hook ---- */

int file_await_turn(struct dfile *f)
{
    struct err e;
    int rv = file_rejoin(f, &e);

    if (rv != DUST_OK || f->has_turn || f->writing) {
        return DUST_OK; /* (the lock says why) */
    }
    file_bind(f);
    rv = store_attached(f->store) ? DUST_BUSY : take_place(f, TURN_AWAIT_MS, 0);
    f->has_turn = f->by_hook = rv == DUST_OK;
    return rv;
}

int file_take_turn(struct dfile *f, uint32_t timeout_ms)
{
    int rv = take_turn(f, timeout_ms);

    f->has_place = false;
    f->has_turn = f->by_hook = rv == DUST_OK;
    return rv;
}

void file_return_turn(struct dfile *f)
{
    if (!f->writing && !f->forked) {
        if (f->has_place && !f->has_turn) { /* nobody would wait at it */
            f->has_place = false;
            drop_turn(f);
        }
        file_pass_turn(f);
        sqltext_forget(&f->sql);
    }
}

int file_wait_to_show(struct dfile *f)
{
    int rv;

    if (BUG(ROW) || f->forked || (f->snap.seq == 0 && !f->has_turn)) {
        return DUST_OK;
    }
    rv = f->snap.seq == 0 ? wait_for_head(f) : file_wait_agreed(f, f->snap.seq, &f->snap_id);
    return rv == DUST_OK && f->snap.seq != 0 && store_snap_void(f->store, &f->snap) ? DUST_VOID : rv;
}
