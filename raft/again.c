/* Beginning anew: this member's libraft instance is closed and started again from its folder, in the same process, with
 * the connections none the wiser.
 *
 *   running ──the guard wants the log cut──────────────────────────────▶ closing ──loop drained──▶ running
 *      └──a write of the log failed, or an entry could not be applied──▶ closing ──loop drained──▶ waiting
 *                                                                        waiting ──disk is well──▶ closing ──▶ running
 *                                                                        waiting ──it is not────▶ waiting, longer
 *      any ──shut down──▶ ended
 *
 * Closing and starting need a libuv loop each: node.c's loop_thread runs one after the other while `restart` is set.
 *
 * While it waits, the member takes no part in the cluster: no peers, no instance. Readers go on with what is agreed here.
 * Writers are told at once (turn_refuse). Transactions in flight stay, and are sent again when it is back, or end as
 * unknown when their time is up. Every now and then a file larger than one of the log is written beside the log and
 * removed, in the thread pool; if that works, the instance is started, and if that fails too, it waits again.
 *
 * So it is, too, when app.db or the folder was moved away (away.c): what is looked at first is whether they are back.
 *
 * What was applied stays applied: entries up to there are skipped when the log is read again (fsm_restart). A member
 * that stopped has promised nothing that it does not keep (guard.h), so it may come back at any time. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "raft/node_impl.h"
#include "vfs/fd.h"

#define LOOK_FIRST_MS 300u
#define LOOK_LAST_MS 5000u
#define PROBE_BYTES ((off_t)10 << 20) /* more than a file of the log */

static void close_instance(struct node *n)
{
    n->restart = true;
    n->stopping = true;
    submit_leader_changed(n);
    grant_leader_changed(n);
    change_fail(n, DUST_AGAIN, NULL);
    ask_fail(n, DUST_AGAIN, NULL);
    read_fail(n, DUST_AGAIN, NULL);
    give_deinit(n);
    transfer_deinit(n);
    node_close_all(n);
}

void again_cut(struct node *n)
{
    report(&n->db->report, DUST_OK, "the log is cut from entry %llu on and begun again",
        (unsigned long long)guard_cut_index(&n->io.guard));
    n->io.cut_index = guard_cut_index(&n->io.guard);
    close_instance(n);
}

void again_now(struct node *n)
{
    close_instance(n);
}

/* What writers get. */
static int refusal(const struct err *e)
{
    return e->code == DUST_FULL || e->code == DUST_MOVED ? e->code : DUST_IO;
}

/* Why it waits, for dust_status. */
static void set_failure(struct node *n, const struct err *e)
{
    pthread_mutex_lock(&n->mutex);
    if (n->state != NODE_FAILED) {
        n->failure = *e;
    }
    pthread_mutex_unlock(&n->mutex);
}

void again_later(struct node *n, const struct err *e)
{
    struct again *a = &n->again;
    int code = n->io.write_code != 0 ? n->io.write_code : refusal(e);
    uint64_t wait = (uint64_t)LOOK_FIRST_MS << (a->tries < 5 ? a->tries : 5);

    report_err(&n->db->report, e);
    set_failure(n, e);
    turn_refuse(&n->db->turn, code);
    a->waiting = true;
    a->tries++;
    a->next_ms = node_now(n) + (wait < LOOK_LAST_MS ? wait : LOOK_LAST_MS);
    close_instance(n);
}

/* In the thread pool: is all in its place, is the disk well, and has it space for another file of the log? */
static void probe_run(uv_work_t *work)
{
    struct node *n = work->data;
    struct err *e = &n->again.result;
    char path[4096], bytes[4096] = {0};
    int fd, rv;

    e->code = DUST_OK;
    if (database_in_place(n->db, e) != DUST_OK) {
        return;
    }
    snprintf(path, sizeof path, "%s/probe", n->db->dir);
    fd = fd_high(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd < 0) {
        err_sys(e, errno, "cannot write to %s", n->db->dir);
        return;
    }
    rv = posix_fallocate(fd, 0, PROBE_BYTES);
    if (rv == 0 && (pwrite(fd, bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes || fsync(fd) != 0)) {
        rv = errno;
    }
    close(fd);
    unlink(path);
    if (rv != 0) {
        err_sys(e, rv, "cannot write to %s", n->db->dir);
    }
}

static void probe_done(uv_work_t *work, int status)
{
    struct node *n = work->data;
    struct again *a = &n->again;
    uint64_t wait = (uint64_t)LOOK_FIRST_MS << (a->tries < 5 ? a->tries : 5);

    (void)status;
    a->looking = false;
    if (n->stopping) {
        return;
    }
    if (a->result.code == DUST_OK) {
        a->waiting = false;
        close_instance(n); /* this loop ends, the next one has an instance */
        return;
    }
    if (a->result.code == DUST_MOVED) { /* that may be why the disk seemed to fail */
        set_failure(n, &a->result);
    }
    turn_refuse(&n->db->turn, refusal(&a->result));
    a->tries++;
    a->next_ms = node_now(n) + (wait < LOOK_LAST_MS ? wait : LOOK_LAST_MS);
}

/* A member that has failed for another reason, because it was removed say, stays so. */
static void disk_well(struct node *n)
{
    bool failed;

    pthread_mutex_lock(&n->mutex);
    failed = n->state == NODE_FAILED;
    if (!failed) {
        n->failure.code = DUST_OK;
    }
    pthread_mutex_unlock(&n->mutex);
    if (!failed) {
        turn_refuse(&n->db->turn, DUST_OK);
        report(&n->db->report, DUST_OK, "this member's disk is well again, and its files are in place: it takes part in "
                                        "the cluster");
    }
}

void again_tick(struct node *n)
{
    struct again *a = &n->again;

    if (!a->waiting) {
        if (a->tries != 0 && n->running && n->grant.leader_ready && n->raft.last_stored >= n->raft.last_applied) {
            a->tries = 0;
            disk_well(n);
        }
        return;
    }
    if (a->looking || n->stopping || node_now(n) < a->next_ms) {
        return;
    }
    a->looking = true;
    a->work.data = n;
    if (uv_queue_work(&n->loop, &a->work, probe_run, probe_done) != 0) {
        a->looking = false;
    }
}

void again_forget_instance(struct node *n)
{
    raft_index cut = n->io.cut_index;

    memset(&n->raft, 0, sizeof n->raft);
    memset(&n->io, 0, sizeof n->io);
    n->io.cut_index = cut;
    n->raft_open = n->running = n->raft_closed = n->stopping = n->restart = false;
    n->seen_term = 0;
    n->seen_state = 0;
    n->seen_leader = 0;
    n->opt.mode = NODE_RESUME;
    fsm_restart(n);
}
