/* A truncation of the log, from the moment libraft asks for it until it is on disk.
 *
 * libraft's storage truncates in the thread pool, and tells nobody when that fails, for want of space say: it goes on with
 * the entries that come next, as if they stood behind those that stay, while on disk the old ones still stand between.
 * When the log is read again, all of them have too high an index. So what is to be written waits here until the folder
 * shows that the truncation has been done, and it has been flushed. There is no event for it; the folder is looked at in
 * the thread pool, a few milliseconds apart.
 *
 *   idle ──truncation_begin──▶ looking ──done──▶ idle: io_write_now
 *                                └──not done in time──▶ over: the log has failed (io_tick; again.c begins anew)
 *
 * A crash meanwhile finds the log cut, or not cut and nothing behind it, or half cut: torn.c.
 *
 * All on the loop thread, save the looking. */
#include <stdio.h>
#include <time.h>

#include "raft/node_impl.h"
#include "raft/segments.h"

#define LOOKS 8u              /* of one job */
#define TIME_TICKS (5000u / TICK_MS)

static void look(uv_work_t *work)
{
    struct node *n = work->data;
    struct truncation *t = &n->io.truncation;
    struct timespec ms2 = {.tv_nsec = 2000000};
    char dir[4096];

    snprintf(dir, sizeof dir, "%s/raft", n->db->dir);
    for (unsigned i = 0; i < LOOKS; i++) {
        if (i != 0) {
            nanosleep(&ms2, NULL);
        }
        t->result = segments_truncated(dir, t->looked_for, &t->done, &t->err);
        if (t->result == DUST_OK && t->done) {
            break;
        }
    }
}

static void begin_look(struct node *n);

static void looked(uv_work_t *work, int status)
{
    struct node *n = work->data;
    struct truncation *t = &n->io.truncation;

    if (n->stopping) {
        return; /* what waits is given back with the rest */
    }
    if (status == 0 && t->result == DUST_OK && t->done && t->looked_for == t->index) {
        t->index = 0;
        io_write_now(n);
    } else if (n->ticks - t->begun < TIME_TICKS) {
        begin_look(n);
    } else {
        t->over = true;
    }
}

static void begin_look(struct node *n)
{
    struct truncation *t = &n->io.truncation;

    t->work.data = n;
    t->looked_for = t->index;
    t->done = false;
    t->over = uv_queue_work(&n->loop, &t->work, look, looked) != 0;
}

void truncation_begin(struct node *n, raft_index index)
{
    struct truncation *t = &n->io.truncation;
    bool looking = t->index != 0 && !t->over;

    /* One that comes before the last one is done, because another leader was elected, cuts at least as much. */
    t->index = t->index == 0 || index < t->index ? index : t->index;
    t->begun = n->ticks;
    if (!looking) {
        begin_look(n);
    }
}

bool truncation_failed(const struct node *n, struct err *e)
{
    const struct truncation *t = &n->io.truncation;

    if (t->index == 0 || !t->over) {
        return false;
    }
    if (t->result != DUST_OK) {
        *e = t->err;
    } else {
        err_set(e, DUST_IO, "the log in %s/raft could not be cut at entry %llu (is the disk full?)", n->db->dir,
            (unsigned long long)t->index);
    }
    return true;
}
