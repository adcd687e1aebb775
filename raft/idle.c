/* A checkpoint shortly after writes stop, in the thread pool, so that app.db is soon what it would be if the process
 * ended now. While writes go on, snapshots of the log bring checkpoints with them (fsm.c). */
#include "raft/node_impl.h"

#define IDLE_MS 1000u
#define LOOK_TICKS 16u

static void fold_run(uv_work_t *work)
{
    struct node *n = work->data;
    struct err e;

    if (database_checkpoint(n->db, NULL, &e) != DUST_OK && e.code != DUST_BUSY) {
        report_err(&n->db->report, &e);
    }
}

static void fold_done(uv_work_t *work, int status)
{
    struct node *n = work->data;

    (void)status;
    n->idle.folding = false;
    n->idle.since_ms = node_now(n);
}

void idle_tick(struct node *n)
{
    struct idle *idle = &n->idle;
    struct store_stats st;
    uint64_t now = node_now(n);

    if (idle->folding || n->ticks % LOOK_TICKS != 0 || !n->running || n->stopping) {
        return;
    }
    store_stats(n->db->store, &st);
    if (st.agreed_seq == st.base_seq || st.agreed_seq != idle->seen_seq) {
        idle->seen_seq = st.agreed_seq; /* it has changed since the last look */
        idle->since_ms = now;
        return;
    }
    if (now - idle->since_ms >= IDLE_MS && n->raft.last_stored >= n->raft.last_applied) {
        idle->folding = true;
        idle->work.data = n;
        if (uv_queue_work(&n->loop, &idle->work, fold_run, fold_done) != 0) {
            idle->folding = false;
        }
    }
}
