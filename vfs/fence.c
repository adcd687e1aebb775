#include "vfs/fence.h"

#include <string.h>

static int seal_nothing(struct database *db, const struct head_info *head, const char *why, struct sealed **out,
    struct err *e)
{
    struct entry_meta meta = {
        .parent = head->id,
        .origin = db->origin,
        .origin_seq = atomic_fetch_add(&db->origin_seq, 1),
        .page_size = db->page_size,
        .n_pages_after = head->n_pages,
        .sql = why,
        .sql_len = strlen(why),
    };
    struct seal seal;
    int rv = seal_begin(&seal, &meta, ENTRY_PART_MAX, e);

    return rv == DUST_OK ? seal_finish(&seal, out, e) : rv;
}

/* With the turn in hand: stage it on the head and hand it over. *commit is the caller's to wait for. */
static int begin(struct database *db, const char *why, struct commit **commit, struct err *e)
{
    struct head_info head;
    struct sealed *sealed;
    struct version v;
    int rv;

    store_head(db->store, &head);
    rv = seal_nothing(db, &head, why, &sealed, e);
    if (rv != DUST_OK) {
        return rv;
    }
    *commit = commit_new(db->rep.room);
    if (*commit == NULL) {
        sealed_free(sealed);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = store_stage(db->store, &sealed->id, &head.id, head.n_pages, NULL, 0, *commit, &v, e);
    if (rv != DUST_OK) {
        sealed_free(sealed);
        commit_unref(*commit);
        commit_unref(*commit);
        return rv;
    }
    db->rep.submit(db->rep.ctx, sealed, &v, *commit);
    return DUST_OK;
}

int database_fence(struct database *db, const char *why, uint32_t timeout_ms, struct err *e)
{
    struct commit *commit;
    struct ticket ticket;
    int rv;

    ticket_init(&ticket);
    rv = turn_take(&db->turn, &ticket, timeout_ms, 0);
    if (rv != DUST_OK) {
        err_set(e, rv, rv == DUST_BUSY ? "the write turn was not to be had within %u ms" : "this member is shutting down",
            timeout_ms);
    } else {
        rv = begin(db, why, &commit, e);
        turn_pass(&db->turn, &ticket);
    }
    ticket_deinit(&ticket);
    if (rv != DUST_OK) {
        return rv == DUST_STALE ? DUST_BUSY : rv;
    }
    rv = commit_wait_agreed(commit, db->store, db->options.timeout_ms, e);
    commit_unref(commit);
    if (rv == COMMIT_PENDING) {
        rv = err_set(e, DUST_UNKNOWN, "no majority of the cluster answered within %u ms", db->options.timeout_ms);
    } else if (rv == DUST_VOID) {
        rv = err_set(e, DUST_BUSY, "another transaction took its place in the log; try again");
    }
    return rv;
}
