/* Writing the log.
 *
 * Files of a fixed size, called log-NUMBER, that are made and filled with zeros ahead of need, and used again when their
 * entries are not needed any more: a write into them allocates nothing, so that it costs one flush, and a full disk does
 * not touch it. Batches are written one after the other, the next one when the last one is durable; what is handed over
 * meanwhile is in the next. All of an operation is done when the batch that its last entry is in is durable.
 *
 * Who writes what: whoever has `writing` set, under the mutex, writes batches: the log's own thread, for all that it finds
 * queued; or the loop itself, for one operation that it hands over while nothing is being written. The latter spares a
 * lone transaction two wake-ups, of the thread and of the loop, and keeps the loop from all else meanwhile: so it is for
 * disks whose flushes have been quick. Files are made and removed by whoever calls log_tend. All meet under the mutex,
 * which is held over no system call but the condition's, and the last wake.
 *
 *   running ──a write fails──▶ failed: every operation fails; readable as before, and begun anew by its owner
 *      └──log_stop──▶ stopped (so does failed)
 *
 * Invariants:
 *   - A batch follows, by its number, the last one that is known to be durable. So after a write that failed, of which
 *     nobody knows what became, that very batch may turn up on disk or not, and none stands on it.
 *   - No two batches have the same number: its upper bits are the life, which is raised and flushed (termfile.c) before
 *     anything is written.
 *   - A block that holds a durable batch is not written to until its whole file is not needed any more: all its entries
 *     lie before the floor, and some batch on disk may say so or not; a chain may end in a file that is used again, which
 *     log_load takes for its beginning if no entry before it is needed.
 *   - A file is used again from its beginning; what is still there of its former content has lower numbers.
 *
 * Failure cases, and what holds then:
 *   - A crash, or a loss of power, in a batch: it is not whole, or is: nobody was told of it. Later ones are none.
 *   - in the making of a file: it holds no batch; the next start takes it if it has its size, or removes it.
 *   - between a snapshot that was installed and the batch that says so: log_load sees that the entries do not lead to the
 *     snapshot, and the next batch says so.
 *   - No space, or memory, for a file: nothing fails before the last one is full.
 *   - The folder is moved, and another one is in its place: what is open goes on, and no other file is used. */
#include "raft/log.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "raft/log_impl.h"
#include "raft/smallfile.h"
#include "vfs/clock.h"

#define QUICK_US 1000u /* a flush that the loop waits for */

/* ---- files ---- */

/* With the mutex. f is empty, and open. */
static void use_file(struct log *l, struct log_file *f)
{
    *f = (struct log_file){.number = f->number, .fd = f->fd, .bytes = f->bytes};
    *l->files.live_tail = f;
    l->files.live_tail = &f->next;
    l->files.current = f;
}

/* A file is opened by its name, and what is written to one in another folder is found by nobody. Asked when it is open: it
 * is in the right one then, if that is where it was before. */
static int in_place(const struct log *l, struct err *e)
{
    return place_lost(&l->place, l->dir)
               ? err_set(e, DUST_IO, "%s is not the folder any more that the log was opened in", l->dir)
               : DUST_OK;
}

static struct log_file *pop(struct log_file **list)
{
    struct log_file *f = *list;

    *list = f->next;
    f->next = NULL;
    return f;
}

/* The writer is in need of a file, the current one being full: one that is there, or it has to make it. */
static int next_file(struct log *l, struct err *e)
{
    struct log_file *full = l->files.current, *f = NULL; /* changed by whoever writes only */
    unsigned number;
    int rv;

    pthread_mutex_lock(&l->mutex);
    if (l->files.idle != NULL) {
        f = pop(&l->files.idle);
        l->files.n_idle--;
    }
    number = f == NULL ? ++l->files.last_number : 0;
    pthread_mutex_unlock(&l->mutex);
    if (f == NULL) {
        rv = log_file_make(&f, l->dir, number, e);
        if (rv != DUST_OK) {
            return rv;
        }
    }
    rv = log_file_open(f, l->dir, e);
    rv = rv == DUST_OK ? in_place(l, e) : rv;
    if (rv != DUST_OK) {
        log_file_free(f);
        return rv;
    }
    if (full != NULL) {
        log_file_close(full); /* a program has not so many descriptors */
    }
    pthread_mutex_lock(&l->mutex);
    use_file(l, f);
    pthread_mutex_unlock(&l->mutex);
    return DUST_OK;
}

uint64_t log_disk_bytes(struct log *l)
{
    uint64_t bytes = 0;

    pthread_mutex_lock(&l->mutex);
    for (const struct log_file *f = l->files.live; f != NULL; f = f->next) {
        bytes += f->used;
    }
    pthread_mutex_unlock(&l->mutex);
    return bytes;
}

/* With the mutex. */
static bool wants_file(const struct log_files *s)
{
    bool busy = s->current != NULL && (s->live != s->current || s->current->used >= LOG_BUSY_BYTES);
    unsigned n = s->n_idle;

    for (const struct log_file *f = s->live; f != NULL && n < LOG_FILES_MIN; f = f->next) {
        n++;
    }
    return s->n_idle == 0 || (busy && n < LOG_FILES_MIN);
}

bool log_wants(struct log *l)
{
    bool wants;

    pthread_mutex_lock(&l->mutex);
    wants = l->begun && !l->stop && (wants_file(&l->files) || l->files.doomed != NULL);
    pthread_mutex_unlock(&l->mutex);
    return wants;
}

int log_tend(struct log *l, struct err *e)
{
    struct log_file *doomed, *fresh = NULL;
    unsigned number = 0;
    int rv = DUST_OK;

    pthread_mutex_lock(&l->mutex);
    doomed = l->files.doomed;
    l->files.doomed = NULL;
    if (wants_file(&l->files)) {
        number = ++l->files.last_number;
    }
    pthread_mutex_unlock(&l->mutex);
    while (doomed != NULL) {
        log_file_remove(pop(&doomed), l->dir);
    }
    if (number != 0) {
        rv = log_file_make(&fresh, l->dir, number, e);
    }
    if (fresh != NULL && in_place(l, e) != DUST_OK) {
        log_file_free(fresh); /* where it is it may stay: it is empty, and another's */
        return DUST_IO;
    }
    if (fresh != NULL) {
        pthread_mutex_lock(&l->mutex);
        fresh->next = l->files.idle;
        l->files.idle = fresh;
        l->files.n_idle++;
        pthread_mutex_unlock(&l->mutex);
    }
    return rv;
}

/* With the mutex: files that hold nothing of use, from the oldest on, are free. The current one is kept. */
static void free_files(struct log *l)
{
    struct log_files *s = &l->files;

    while (s->live != s->current && s->live->last < l->floor) {
        struct log_file *f = pop(&s->live), **list = s->n_idle < LOG_FREE_MAX ? &s->idle : &s->doomed;

        s->n_idle += list == &s->idle;
        f->next = *list;
        *list = f;
    }
}

void log_release(struct log *l, uint64_t index)
{
    pthread_mutex_lock(&l->mutex);
    l->floor = index + 1 > l->floor ? index + 1 : l->floor;
    free_files(l);
    pthread_mutex_unlock(&l->mutex);
}

/* ---- a batch ---- */

/* How far the writer is in the operations it has taken. */
struct at {
    struct log_op *op; /* the first one that is not in a batch as a whole */
    unsigned entry;    /* … and of it the next entry */
};

/* Does what is left of the first operation go into this file, or as much of it as a batch may have? */
static bool suits(const struct log_file *f, const struct at *at)
{
    size_t bytes = BATCH_HEAD;

    for (unsigned i = at->entry; i < at->op->n && bytes < BATCH_MAX; i++) {
        bytes += batch_room(at->op->entries[i].buf.len);
    }
    return f != NULL && f->bytes - f->used >= batch_blocks(bytes < BATCH_MAX ? bytes : BATCH_MAX);
}

/* Entries of the operation, as many as there is room for. False: some are left. */
static bool put_entries(struct log *l, struct batch *b, size_t room, struct at *at)
{
    for (; at->entry < at->op->n; at->entry++) {
        const struct raft_entry *entry = &at->op->entries[at->entry];
        struct batch_entry out = {
            .term = entry->term, .data = entry->buf.base, .size = (uint32_t)entry->buf.len, .type = (uint8_t)entry->type};

        if (b->size + batch_room(out.size) > room) {
            return false;
        }
        b->size = (uint32_t)batch_put(l->buf, b->size, &out);
        b->n++;
    }
    return true;
}

/* Put together what is next: operations up to one that does not follow on the one before, or for which there is no room. */
static struct batch fill(struct log *l, size_t room, struct at *at)
{
    bool anew = l->anew || (at->entry == 0 && at->op->anew);
    struct batch b = {.follows = l->seq, .first = at->op->index + at->entry, .size = BATCH_HEAD,
        .kind = anew ? BATCH_ANEW : BATCH_FOLLOWS};

    room = room < BATCH_MAX ? room : BATCH_MAX;
    for (; at->op != NULL; at->op = at->op->next, at->entry = 0) {
        if (b.n != 0 && at->entry == 0 && (at->op->anew || at->op->index != b.first + b.n)) {
            break;
        }
        if (!put_entries(l, &b, room, at)) {
            break;
        }
    }
    return b;
}

static int write_batch(struct log *l, struct at *at, struct err *e)
{
    struct log_file *f = l->files.current;
    const struct at before = *at;
    struct batch b;
    uint64_t begun_us, took_us;
    size_t whole;
    int rv;

    if (!suits(f, at)) {
        rv = next_file(l, e);
        if (rv != DUST_OK) {
            return rv;
        }
        f = l->files.current;
    }
    b = fill(l, f->bytes - f->used, at);
    if (at->op == before.op && at->entry == before.entry) {
        return err_set(e, DUST_TOOBIG, "an entry for the log is larger than %zu bytes", LOG_ENTRY_MAX);
    }
    b.seq = l->seq >> BATCH_LIFE_SHIFT == l->life ? l->seq + 1 : (l->life << BATCH_LIFE_SHIFT) + 1;
    pthread_mutex_lock(&l->mutex);
    b.floor = l->floor;
    pthread_mutex_unlock(&l->mutex);
    whole = batch_seal(l->buf, &b, l->key);
    begun_us = clock_us();
    rv = log_file_write(f, l->buf, whole, f->used, e);
    if (rv != DUST_OK) {
        return rv;
    }
    took_us = clock_us() - begun_us;
    l->flush_us = (7 * l->flush_us + took_us) / 8;
    if (l->flushes != NULL) {
        times_add(l->flushes, took_us);
    }
    l->seq = b.seq;
    l->anew = false;
    pthread_mutex_lock(&l->mutex);
    f->used += whole;
    f->last = b.first + b.n - 1 > f->last ? b.first + b.n - 1 : f->last;
    if (b.kind == BATCH_ANEW) {
        l->floor = b.first > l->floor ? b.first : l->floor;
        for (struct log_file *old = l->files.live; old != f; old = old->next) {
            old->last = 0;
        }
    }
    free_files(l);
    pthread_mutex_unlock(&l->mutex);
    return DUST_OK;
}

/* ---- operations ---- */

/* Give back the operations up to `until`, which are done. */
static void give_back(struct log *l, struct log_op *from, const struct log_op *until, int status)
{
    struct log_op *last = from;

    if (from == until) {
        return;
    }
    for (struct log_op *op = from; op != until; op = op->next) {
        op->status = status;
        last = op;
    }
    pthread_mutex_lock(&l->mutex);
    last->next = NULL;
    *l->done_tail = from;
    l->done_tail = &last->next;
    pthread_mutex_unlock(&l->mutex);
    l->wake(l->ctx);
}

static bool stopping(struct log *l)
{
    bool yes;

    pthread_mutex_lock(&l->mutex);
    yes = l->stop;
    pthread_mutex_unlock(&l->mutex);
    return yes;
}

static void write_all(struct log *l, struct log_op *ops)
{
    struct at at = {.op = ops};

    while (at.op != NULL && !stopping(l)) {
        struct log_op *from = at.op;
        int rv = l->failure.code; /* set by whoever writes only */
        struct err e;

        if (rv == DUST_OK) {
            rv = write_batch(l, &at, &e);
            if (rv != DUST_OK) {
                pthread_mutex_lock(&l->mutex);
                l->failure = e;
                pthread_mutex_unlock(&l->mutex);
            }
        }
        give_back(l, from, rv == DUST_OK ? at.op : NULL, rv);
        at.op = rv == DUST_OK ? at.op : NULL;
    }
}

/* With the mutex, which is let go of meanwhile. */
static void write_queued(struct log *l)
{
    struct log_op *ops = l->queue;

    l->queue = NULL;
    l->queue_tail = &l->queue;
    l->writing = true;
    pthread_mutex_unlock(&l->mutex);
    write_all(l, ops);
    pthread_mutex_lock(&l->mutex);
    l->writing = false;
}

static void *run(void *arg)
{
    struct log *l = arg;

    pthread_mutex_lock(&l->mutex);
    while (!l->stop) {
        if (l->queue != NULL && !l->writing) {
            write_queued(l);
        } else {
            pthread_cond_wait(&l->cond, &l->mutex);
        }
    }
    l->stopped = true;
    l->wake(l->ctx); /* before whoever waits for that can see it, and be gone */
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

/* ---- from outside ---- */

int log_open(struct log **out, const char *dir, struct err *e)
{
    struct log *l = calloc(1, sizeof *l);

    if (l == NULL || (l->dir = strdup(dir)) == NULL ||
        posix_memalign((void **)&l->buf, BATCH_BLOCK, batch_blocks(BATCH_MAX)) != 0) {
        free(l != NULL ? l->dir : NULL);
        free(l);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    place_note(&l->place, dir);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->cond, NULL);
    l->files.live_tail = &l->files.live;
    l->queue_tail = &l->queue;
    l->done_tail = &l->done;
    *out = l;
    return DUST_OK;
}

/* The last batch may be readable and not durable: nobody was told of it. A flush does not help if the kernel has told of its
 * failure already; so it is written once more, as it is. */
static int write_last_again(struct log *l, struct err *e)
{
    struct log_file *f = l->files.current;
    struct batch b;
    int rv;

    if (f == NULL) {
        return DUST_OK;
    }
    rv = log_file_read(f, l->dir, l->buf, f->used - l->last_at, l->last_at, e);
    if (rv == DUST_OK && (!batch_open(l->buf, f->used - l->last_at, l->key, &b) || b.seq != l->seq)) {
        rv = err_set(e, DUST_IO, "%s/log-%u cannot be read twice alike", l->dir, f->number);
    }
    rv = rv == DUST_OK ? log_file_open(f, l->dir, e) : rv;
    return rv == DUST_OK ? log_file_write(f, l->buf, f->used - l->last_at, l->last_at, e) : rv;
}

void log_measure(struct log *l, struct times *flushes)
{
    l->flushes = flushes;
}

int log_start(struct log *l, uint64_t life, void (*wake)(void *), void *ctx, struct err *e)
{
    sigset_t all, before;
    int rv;

    if (life <= l->seq >> BATCH_LIFE_SHIFT || life >> (64 - BATCH_LIFE_SHIFT) != 0) {
        return err_set(
            e, DUST_CORRUPT, "the log in %s is damaged: it has been opened more often than its file `term` says", l->dir);
    }
    rv = folder_flush(l->dir, e); /* what names stand for may be readable and not durable */
    rv = rv == DUST_OK ? write_last_again(l, e) : rv;
    if (rv != DUST_OK) {
        return rv;
    }
    l->life = life;
    l->wake = wake;
    l->ctx = ctx;
    sigfillset(&all); /* signals are the program's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rv = pthread_create(&l->thread, NULL, run, l);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rv != 0) {
        return err_sys(e, rv, "cannot start a thread");
    }
    pthread_mutex_lock(&l->mutex);
    l->begun = true;
    pthread_mutex_unlock(&l->mutex);
    return DUST_OK;
}

int log_begin(
    const char *dir, const uint8_t key[BATCH_KEY_SIZE], uint64_t life, const struct raft_entry *entry, struct err *e)
{
    struct log_op op = {.index = 1, .entries = entry, .n = 1};
    struct log_content content;
    struct at at = {.op = &op};
    struct log *l = NULL;
    int rv = log_open(&l, dir, e);

    rv = rv == DUST_OK ? log_load(l, key, 0, 0, false, &content, e) : rv;
    if (rv == DUST_OK && content.n != 0) {
        log_content_free(&content);
        rv = err_set(e, DUST_EXISTS, "there is a log in %s", dir);
    }
    if (rv == DUST_OK) {
        l->life = life;
        rv = write_batch(l, &at, e);
    }
    log_close(l);
    return rv;
}

void log_do(struct log *l, struct log_op *op, bool here)
{
    op->next = NULL;
    pthread_mutex_lock(&l->mutex);
    here = here && l->begun && !l->stop && !l->writing && l->queue == NULL && l->flush_us <= QUICK_US;
    *l->queue_tail = op;
    l->queue_tail = &op->next;
    if (here) {
        write_queued(l); /* nobody is told after it: only this thread queues, so that nothing has come meanwhile */
    } else {
        pthread_cond_signal(&l->cond);
    }
    pthread_mutex_unlock(&l->mutex);
}

struct log_op *log_done(struct log *l)
{
    struct log_op *done;

    pthread_mutex_lock(&l->mutex);
    done = l->done;
    l->done = NULL;
    l->done_tail = &l->done;
    pthread_mutex_unlock(&l->mutex);
    return done;
}

void log_failure(struct log *l, struct err *e)
{
    pthread_mutex_lock(&l->mutex);
    *e = l->failure;
    pthread_mutex_unlock(&l->mutex);
}

void log_stop(struct log *l)
{
    pthread_mutex_lock(&l->mutex);
    l->stop = true;
    pthread_cond_signal(&l->cond);
    pthread_mutex_unlock(&l->mutex);
}

bool log_stopped(struct log *l)
{
    bool yes;

    pthread_mutex_lock(&l->mutex);
    yes = l->stopped || !l->begun;
    pthread_mutex_unlock(&l->mutex);
    return yes;
}

void log_close(struct log *l)
{
    if (l == NULL) {
        return;
    }
    if (l->begun) {
        log_stop(l);
        pthread_join(l->thread, NULL);
    }
    log_files_free(&l->files);
    pthread_mutex_destroy(&l->mutex);
    pthread_cond_destroy(&l->cond);
    free(l->buf);
    free(l->dir);
    free(l);
}
