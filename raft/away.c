/* Files that were moved away: looked for once a second, so that nothing is acknowledged for long that no restart finds.
 * (A checkpoint looks for itself, database_checkpoint: the log is not cut for what went elsewhere.)
 *
 * Then the member takes no part, as with a disk that fails, and comes back when they are in their places: again.c. */
#include <stdio.h>

#include "raft/node_impl.h"

#define LOOK_TICKS 50u

/* app.db and the folder are known since they were opened (database.c); the folder of the log may have been made just now. */
void away_begin(struct node *n)
{
    char name[4096 + 8];

    if (!n->db->raft_place.known) { /* the first instance */
        snprintf(name, sizeof name, "%s/raft", n->db->dir);
        place_note(&n->db->raft_place, name);
    }
}

/* In the thread pool: a file system may take its time. */
static void look_run(uv_work_t *work)
{
    struct node *n = work->data;

    n->away.result.code = DUST_OK;
    database_in_place(n->db, &n->away.result);
}

static void look_done(uv_work_t *work, int status)
{
    struct node *n = work->data;

    n->away.looking = false;
    if (status == 0 && n->away.result.code != DUST_OK && n->running && !n->stopping) {
        again_later(n, &n->away.result);
    }
}

void away_tick(struct node *n)
{
    struct away *a = &n->away;

    if (a->looking || n->stopping || n->ticks % LOOK_TICKS != 0) {
        return;
    }
    a->looking = true;
    a->work.data = n;
    if (uv_queue_work(&n->loop, &a->work, look_run, look_done) != 0) {
        a->looking = false;
    }
}
