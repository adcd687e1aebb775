/* Pages that were changed underneath: looked for, and fetched anew from another member.
 *
 * Found they are by whoever reads them: a query, an entry that is to be applied, a checkpoint, a transfer to somebody
 * else; and by a slow walk through all of app.db (SCRUB_PAGES every SCRUB_TICKS), for what nobody reads. From then on the
 * page is not served (database_check, read_frame); everything else is.
 *
 *   well ──a page is found damaged──▶ damaged ──this member leads: it hands over──▶ damaged
 *                                     damaged ──another leads──▶ repairing: a transfer of all pages that differ
 *                                     repairing ──folded into app.db──▶ well, and the instance is begun anew
 *                                     repairing ──no answer, or the leader changed──▶ damaged, and tried again
 *
 * While it repairs, nothing is applied (fsm.paused), so that the version that is fetched is not older than what is here;
 * what was passed over is applied when the instance has been begun anew. Without another member the page stays as it is:
 * an error for whoever reads it. */
#include "raft/node_impl.h"

#define RETRY_MS 500u
#define SCRUB_TICKS 5u
#define SCRUB_PAGES 64u

/* In the thread pool. No checkpoint runs meanwhile: what is read is what was written. */
static void scrub_run(uv_work_t *work)
{
    struct node *n = work->data;
    struct database *db = n->db;
    struct head_info base;
    uint8_t page[65536];

    if (pthread_mutex_trylock(&db->fold_mutex) != 0) {
        return;
    }
    store_base(db->store, &base);
    for (unsigned i = 0; i < SCRUB_PAGES && base.n_pages != 0; i++) {
        uint32_t pgno = n->repair.next_pgno % base.n_pages + 1;

        n->repair.next_pgno = pgno;
        if (database_read_base(db, page, db->page_size, (uint64_t)(pgno - 1) * db->page_size) == SQLITE_CORRUPT) {
            database_found_damage(db, pgno, "app.db");
            break;
        }
        if (pgno == base.n_pages) {
            break; /* once round is enough */
        }
    }
    pthread_mutex_unlock(&db->fold_mutex);
}

static void scrub_done(uv_work_t *work, int status)
{
    struct node *n = work->data;

    (void)status;
    n->repair.scrubbing = false;
}

static void scrub(struct node *n)
{
    struct repair *r = &n->repair;

    if (r->scrubbing || n->ticks % SCRUB_TICKS != 0 || n->db->page_size == 0) {
        return;
    }
    r->scrubbing = true;
    r->work.data = n;
    if (uv_queue_work(&n->loop, &r->work, scrub_run, scrub_done) != 0) {
        r->scrubbing = false;
    }
}

void repair_tick(struct node *n)
{
    struct repair *r = &n->repair;
    struct asker nobody = {0};
    const char *address;
    raft_id leader;

    if (atomic_load(&n->db->damaged) == 0) {
        scrub(n);
        return;
    }
    if (node_now(n) - r->tried_ms < RETRY_MS) {
        return;
    }
    r->tried_ms = node_now(n);
    leader = node_leader(n, &address);
    if (node_is_leader(n)) {
        change_lead(n, &nobody, CHANGE_TRANSFER, 0);
    } else if (leader != 0 && n->grant.leader_ready) {
        transfer_repair(n, leader, address);
    }
}
