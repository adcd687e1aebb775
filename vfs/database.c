/* The database object: app.db through the base VFS, and checkpoints of the page store into it.
 *
 * database.file is used by pread-like xRead calls from any thread (the unix VFS keeps no position) and locked by one
 * fold at a time. dust's own connections take no lock on app.db at all: what they must not see half-written they find
 * in the page store. */
#include "vfs/database.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vfs/attachment.h"
#include "vfs/clock.h"
#include "vfs/fd.h"
#include "vfs/mark.h"

#define DURABLE_WAIT_MS 2000u /* for the log to be on disk up to the version that is to be folded */

static void turn_changed(void *ctx)
{
    struct database *db = ctx;

    if (db->rep.turn_changed != NULL) {
        db->rep.turn_changed(db->rep.ctx);
    }
}

static void reserved_told(struct ticket *k, int code)
{
    (void)k;
    (void)code;
}

int database_prepare(
    struct database **out, sqlite3_vfs *base, const char *path, const struct database_options *opt, struct err *e)
{
    struct database *db = calloc(1, sizeof *db);
    size_t n = strlen(path);
    int rv;

    if (db == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    /* Two NULs behind the name: SQLite's VFS looks there for URI parameters. */
    db->path = calloc(1, n + 8);
    db->dir = malloc(n + 8);
    if (db->path == NULL || db->dir == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
        goto fail;
    }
    memcpy(db->path, path, n);
    sprintf(db->dir, "%s-dust", path);
    db->base = base;
    db->options = *opt;
    randombytes_buf(&db->origin_seq, sizeof db->origin_seq); /* no two processes make the same ids (entry.h) */
    fd_reserve();
    rv = hostlock_open(&db->lock, db->dir, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    place_note_fd(&db->host_place, db->lock.fd);
    report_init(&db->report);
    turn_init(&db->turn, opt->turn_timeout_ms, turn_changed, db);
    db->turn.waits = &db->metrics.times[TIMING_TURN];
    ticket_init(&db->reserved);
    db->reserved.told = reserved_told;
    pthread_mutex_init(&db->fold_mutex, NULL);
    *out = db;
    return DUST_OK;
fail:
    free(db->path);
    free(db->dir);
    free(db);
    return rv;
}

int database_host(struct database *db, struct err *e)
{
    char *pages = malloc(strlen(db->dir) + 16);
    int rv;

    if (pages == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    sprintf(pages, "%s/pages", db->dir);
    rv = store_open(&db->store, pages, e);
    if (rv == DUST_OK && db->attachment == NULL) {
        db->bound = store_ref(db->store);
    }
    free(pages);
    return rv;
}

static void close_file(struct database *db)
{
    if (db->file != NULL) {
        if (db->file->pMethods != NULL) {
            db->file->pMethods->xClose(db->file);
        }
        free(db->file);
        db->file = NULL;
        db->app_place.known = false;
    }
}

void database_unhost(struct database *db)
{
    close_file(db);
    db->raft_place.known = false;
    sums_close(db->sums);
    db->sums = NULL;
    store_close(db->store);
    db->store = NULL;
    turn_reopen(&db->turn); /* shut by the node that was to serve it */
}

int database_new(
    struct database **out, sqlite3_vfs *base, const char *path, const struct database_options *opt, struct err *e)
{
    struct database *db;
    int rv = database_prepare(&db, base, path, opt, e);

    if (rv != DUST_OK) {
        return rv;
    }
    rv = hostlock_take(&db->lock, db->dir, e);
    if (rv == DUST_OK) {
        rv = database_host(db, e);
    }
    if (rv != DUST_OK) {
        database_free(db);
        return rv;
    }
    *out = db;
    return DUST_OK;
}

void database_free(struct database *db)
{
    if (db == NULL) {
        return;
    }
    attachment_close(db->attachment);
    database_unhost(db);
    store_close(db->bound);
    hostlock_close(&db->lock);
    turn_drop(&db->turn, &db->reserved);
    ticket_deinit(&db->reserved);
    turn_deinit(&db->turn);
    report_deinit(&db->report);
    pthread_mutex_destroy(&db->fold_mutex);
    free(db->path);
    free(db->dir);
    free(db);
}

void database_reserve_turn(struct database *db, uint32_t owner, const struct vid *awaited)
{
    db->awaited = *awaited;
    owner = owner != 0 || vid_none(awaited) ? owner : RESERVED_FOR_SENT;
    if (owner != 0) {
        atomic_store(&db->reserved_for, owner);
        turn_ask(&db->turn, &db->reserved, 0);
    }
}

void database_unreserve_turn(struct database *db, uint32_t owner)
{
    uint32_t next = owner == RESERVED_FOR_SENT || vid_none(&db->awaited) ? 0 : RESERVED_FOR_SENT;

    if (owner != 0 && atomic_compare_exchange_strong(&db->reserved_for, &owner, next) && next == 0) {
        turn_drop(&db->turn, &db->reserved);
    }
}

void database_caught_up(struct database *db)
{
    atomic_store(&db->caught_up, true);
    store_set_caught_up(db->store, true);
}

int database_open_file(struct database *db, struct database_content *out, struct err *e)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_MAIN_DB;
    uint8_t header[HEADER_SIZE];
    sqlite3_int64 size = 0;
    int rv;

    rv = checkpoint_recover(db->base, db->path, e);
    if (rv != DUST_OK) {
        return rv;
    }
    db->file = calloc(1, (size_t)db->base->szOsFile);
    if (db->file == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    if (db->base->xOpen(db->base, db->path, db->file, flags, &flags) != SQLITE_OK) {
        return err_set(e, DUST_IO, "cannot open %s for reading and writing", db->path);
    }
    if ((flags & SQLITE_OPEN_READONLY) != 0) {
        return err_set(e, DUST_REFUSED, "%s is read-only for this user: a member has to be able to write it", db->path);
    }
    place_note(&db->app_place, db->path);
    memset(out, 0, sizeof *out);
    if (db->file->pMethods->xFileSize(db->file, &size) != SQLITE_OK) {
        return err_set(e, DUST_IO, "cannot learn the size of %s", db->path);
    }
    if (size == 0) {
        return DUST_OK;
    }
    memset(header, 0, sizeof header);
    rv = db->file->pMethods->xRead(db->file, header, sizeof header, 0);
    if (rv != SQLITE_OK && rv != SQLITE_IOERR_SHORT_READ) {
        return err_set(e, DUST_IO, "cannot read the header of %s", db->path);
    }
    if (!header_valid(header)) {
        return err_set(e, DUST_CORRUPT, "%s is not a SQLite database", db->path);
    }
    switch (mark_read(header, &out->id)) {
    case MARK_DUST:
        out->marked = true;
        break;
    case MARK_NEWER:
        return err_set(e, DUST_VERSION, "%s was written by a newer version of dust: use that one", db->path);
    case MARK_HALF:
        return err_set(e, DUST_CORRUPT,
            "%s carries one of dust's two marks without the other: it was changed by something other than SQLite and "
            "dust; restore it from another member",
            db->path);
    case MARK_NONE:
        break;
    }
    out->page_size = header_page_size(header);
    out->n_pages = header_n_pages(header);
    if (header_change_counter(header) != header_valid_for(header) || out->n_pages == 0) {
        out->n_pages = (uint32_t)(size / out->page_size);
    }
    if ((sqlite3_int64)out->n_pages * out->page_size > size) {
        return err_set(e, DUST_CORRUPT, "%s is truncated: %lld bytes instead of %lld", db->path, (long long)size,
            (long long)out->n_pages * out->page_size);
    }
    out->wal = header[19] == 2;
    db->page_size = out->page_size;
    return DUST_OK;
}

int database_read_raw(void *ctx, void *buf, uint32_t n, uint64_t offset)
{
    struct database *db = ctx;
    int rv = db->file->pMethods->xRead(db->file, buf, (int)n, (sqlite3_int64)offset);

    if (rv == SQLITE_IOERR_SHORT_READ) {
        rv = SQLITE_OK; /* the rest has been zeroed */
    }
    if (rv == SQLITE_OK && offset < HEADER_SIZE) {
        mark_hide(buf, (size_t)offset, n);
    }
    return rv;
}

int database_read_base(void *ctx, void *buf, uint32_t n, uint64_t offset)
{
    int rv = database_read_raw(ctx, buf, n, offset);

    return rv == SQLITE_OK ? database_check(ctx, database_read_raw, ctx, buf, n, offset) : rv;
}

/* ---- checksums ---- */

static int renew(struct database *db, bool all, const struct vid *id, uint32_t n_pages, struct err *e)
{
    uint8_t *page = malloc(db->page_size + 1);
    int rv = page != NULL ? DUST_OK : err_set(e, DUST_NOMEM, "out of memory");

    for (uint32_t pgno = 1; rv == DUST_OK && pgno <= n_pages; pgno++) {
        if (!all && sums_known(db->sums, pgno)) {
            continue;
        }
        if (database_read_raw(db, page, db->page_size, (uint64_t)(pgno - 1) * db->page_size) != SQLITE_OK) {
            rv = err_set(e, DUST_IO, "cannot read page %u of %s", pgno, db->path);
        } else {
            sums_set(db->sums, pgno, page_sum(page, db->page_size));
        }
    }
    free(page);
    return rv == DUST_OK ? sums_store(db->sums, id, n_pages, e) : rv;
}

int database_sums_renew(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e)
{
    return renew(db, true, id, n_pages, e);
}

int database_sums_open(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e)
{
    bool known;
    int rv = sums_open(&db->sums, db->dir, id, &known, e);

    return rv == DUST_OK && !known ? renew(db, false, id, n_pages, e) : rv;
}

void database_found_damage(struct database *db, uint32_t pgno, const char *where)
{
    uint32_t none = 0;

    if (atomic_compare_exchange_strong(&db->damaged, &none, pgno)) {
        metrics_add(&db->metrics, METRIC_DAMAGE_FOUND, 1);
        report(&db->report, DUST_CORRUPT,
            "page %u of this member's database is damaged in %s: it was changed by something other than dust, or has "
            "decayed; it is not served, and is fetched from another member if there is one",
            pgno, where);
        if (db->rep.found_damage != NULL) {
            db->rep.found_damage(db->rep.ctx);
        }
    }
}

void database_look_for_damage(struct database *db, uint32_t pgno)
{
    uint8_t page[65536];
    struct snap snap;
    uint32_t slot;

    if (store_slot_take(db->store, &slot, NULL) != DUST_OK) {
        return;
    }
    store_pin(db->store, slot, &snap);
    if (pgno <= snap.n_pages) {
        int rv = store_read(db->store, &snap, pgno, 0, db->page_size, page, database_read_base, db);

        if (rv == DUST_CORRUPT || rv == -SQLITE_CORRUPT) {
            database_found_damage(db, pgno, rv == DUST_CORRUPT ? "pages" : "app.db");
        }
    }
    store_unpin(db->store, &snap);
    store_slot_give(db->store, slot);
}

static int check_page(struct database *db, uint32_t pgno, const void *page)
{
    return sums_check(db->sums, pgno, page_sum(page, db->page_size)) ? SQLITE_OK : SQLITE_CORRUPT;
}

int database_check(struct database *db, store_base_fn read, void *ctx, const void *buf, uint32_t n, uint64_t offset)
{
    uint32_t size = db->page_size;
    int rv = SQLITE_OK;

    if (db->sums == NULL || size == 0) {
        return SQLITE_OK;
    }
    if (n == size && offset % size == 0) {
        return check_page(db, (uint32_t)(offset / size) + 1, buf);
    }
    for (uint64_t at = offset / size * size; rv == SQLITE_OK && at < offset + n; at += size) {
        uint8_t page[65536];

        rv = read(ctx, page, size, at);
        if (rv == SQLITE_OK) {
            rv = check_page(db, (uint32_t)(at / size) + 1, page);
        }
    }
    return rv;
}

/* ---- checkpoint ---- */

struct folding {
    struct database *db;
    struct fold *fold;
    uint32_t at;
};

/* The sums of the pages to be folded, and that they are still what was staged. */
static int begin_sums(struct database *db, const struct fold *fold, struct err *e)
{
    struct sums_change *changes;
    int rv = DUST_OK;

    if (db->sums == NULL) {
        return DUST_OK;
    }
    changes = malloc((fold->n + 1) * sizeof *changes);
    if (changes == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    for (uint32_t i = 0; rv == DUST_OK && i < fold->n; i++) {
        changes[i].pgno = fold->pages[i].pgno;
        changes[i].sum = page_sum(store_frame(db->store, fold->pages[i].node), db->page_size);
        if (!store_frame_sound(db->store, fold->pages[i].node, changes[i].sum)) {
            database_found_damage(db, changes[i].pgno, "pages");
            rv = err_set(e, DUST_CORRUPT, "page %u is damaged in %s/pages: the checkpoint is put off", changes[i].pgno,
                db->dir);
        }
    }
    if (rv == DUST_OK) {
        rv = sums_begin(db->sums, &fold->target.id, fold->target.n_pages, changes, fold->n, e);
    }
    free(changes);
    return rv;
}

static int next_page(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    struct folding *f = ctx;

    (void)e;
    *pgno = 0;
    if (f->at < f->fold->n) {
        *pgno = f->fold->pages[f->at].pgno;
        *page = store_frame(f->db->store, f->fold->pages[f->at].node);
        f->at++;
    }
    return DUST_OK;
}

static int rewind_pages(void *ctx, struct err *e)
{
    struct folding *f = ctx;

    (void)e;
    f->at = 0;
    return DUST_OK;
}

/* Plain readers are short, as a rule. */
static bool wait_for_readers(void *ctx, int tries)
{
    struct timespec ms5 = {.tv_nsec = 5000000};

    (void)ctx;
    if (tries > 100) {
        return false;
    }
    nanosleep(&ms5, NULL);
    return true;
}

static int pages_in_place(void *ctx, struct err *e)
{
    return database_in_place(((struct folding *)ctx)->db, e);
}

/* A crash may find app.db at the new version at once: the log on disk has to lead there before. */
int database_checkpoint(struct database *db, struct head_info *at, struct err *e)
{
    struct fold fold;
    struct err why;
    struct folding f = {.db = db, .fold = &fold};
    uint64_t begun_us = clock_us();
    struct fold_source src = {.ctx = &f, .marked = true, .next = next_page, .rewind = rewind_pages,
        .in_place = pages_in_place, .busy = wait_for_readers};
    int rv;

    pthread_mutex_lock(&db->fold_mutex);
    if (db->held || db->held_for_old) {
        rv = err_set(e, DUST_BUSY, db->held ? "this member is receiving the database from another one"
                                            : "what the process had that hosted this member before is still being read");
        goto unlock;
    }
    rv = database_in_place(db, e); /* before anything is done; and by checkpoint_fold, before it is declared done */
    if (rv != DUST_OK) {
        metrics_add(&db->metrics, METRIC_CHECKPOINT_FAILURES, 1);
        goto unlock;
    }
    rv = store_fold_begin(db->store, &fold, e);
    if (rv != DUST_OK) {
        goto unlock;
    }
    src.page_size = db->page_size;
    src.n_pages_after = fold.target.n_pages;
    src.id = fold.target.id;
    src.repeat_ok = db->repairing;
    if (!fold.empty && store_wait_durable(db->store, &fold.target, DURABLE_WAIT_MS) != DUST_OK) {
        rv = err_set(e, DUST_BUSY, "this member's log has not been flushed up to the version yet");
    } else if (!fold.empty) {
        rv = store_fold_keep(db->store, &fold, database_read_base, db, e);
        if (rv == DUST_OK) {
            rv = begin_sums(db, &fold, e);
        }
        if (rv == DUST_OK) {
            rv = checkpoint_fold(db->base, db->file, db->path, &src, e);
            if (db->sums != NULL && sums_end(db->sums, rv == DUST_OK, &why) != DUST_OK) {
                report_err(&db->report, &why);
            }
        }
        metrics_add(&db->metrics, rv == DUST_OK ? METRIC_CHECKPOINTS : METRIC_CHECKPOINT_FAILURES, 1);
        times_add(&db->metrics.times[TIMING_CHECKPOINT], clock_us() - begun_us);
    }
    if (rv == DUST_OK && at != NULL) {
        *at = fold.target;
    }
    store_fold_end(db->store, &fold, rv);
unlock:
    pthread_mutex_unlock(&db->fold_mutex);
    return rv;
}

void database_hold_for_old(struct database *db, bool hold)
{
    pthread_mutex_lock(&db->fold_mutex);
    db->held_for_old = hold;
    pthread_mutex_unlock(&db->fold_mutex);
}

bool database_hold(struct database *db, bool hold)
{
    if (!hold) {
        pthread_mutex_lock(&db->fold_mutex);
    } else if (pthread_mutex_trylock(&db->fold_mutex) != 0) {
        return false;
    }
    db->held = hold;
    pthread_mutex_unlock(&db->fold_mutex);
    return true;
}

/* ---- the marks by themselves ---- */

struct first_page {
    struct database *db;
    uint8_t *page; /* NULL: no page is changed */
    bool given;
};

static int next_first(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    struct first_page *f = ctx;

    (void)e;
    *pgno = f->page != NULL && !f->given ? 1 : 0;
    *page = f->page;
    f->given = true;
    return DUST_OK;
}

static int rewind_first(void *ctx, struct err *e)
{
    (void)e;
    ((struct first_page *)ctx)->given = false;
    return DUST_OK;
}

static int first_in_place(void *ctx, struct err *e)
{
    return database_in_place(((struct first_page *)ctx)->db, e);
}

static int fold_marks(
    struct database *db, struct first_page *f, bool marked, const struct vid *id, uint32_t n_pages, struct err *e)
{
    struct fold_source src = {.ctx = f, .page_size = db->page_size, .n_pages_after = n_pages, .id = *id,
        .marked = marked, .next = next_first, .rewind = rewind_first, .in_place = first_in_place, .busy = wait_for_readers};
    int rv;

    pthread_mutex_lock(&db->fold_mutex);
    if (!marked && db->sums != NULL) {
        sums_set(db->sums, 1, 0); /* if it can be neither finished nor undone now, page 1 may be the new one */
    }
    rv = checkpoint_fold(db->base, db->file, db->path, &src, e);
    if (rv == DUST_OK && marked && db->sums != NULL) {
        rv = database_sums_renew(db, id, n_pages, e);
    }
    pthread_mutex_unlock(&db->fold_mutex);
    return rv;
}

int database_begin(struct database *db, const struct vid *id, uint32_t n_pages, struct err *e)
{
    struct first_page f = {.db = db, .page = malloc(db->page_size)};
    int rv;

    if (f.page == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    if (db->file->pMethods->xRead(db->file, f.page, (int)db->page_size, 0) != SQLITE_OK) {
        rv = err_set(e, DUST_IO, "cannot read page 1 of %s", db->path);
    } else {
        mark_clear(f.page);
        header_advance(f.page);
        rv = fold_marks(db, &f, true, id, n_pages, e);
    }
    free(f.page);
    return rv;
}

int database_end(struct database *db, struct err *e)
{
    struct first_page none = {.db = db};
    struct head_info head;

    store_agreed(db->store, &head);
    return fold_marks(db, &none, false, &head.id, head.n_pages, e);
}
