#include "raft/outcome.h"

#include <stdlib.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"
#include "vfs/fence.h"

#define LOOK_MS 2000u

static unsigned n_notes(const struct outcomes *o)
{
    return o->n < OUTCOMES_MAX ? o->n : OUTCOMES_MAX;
}

const struct outcome_note *outcomes_find(const struct outcomes *o, const struct vid *id)
{
    for (unsigned i = 0; i < n_notes(o); i++) {
        if (vid_equal(&o->note[i].id, id)) {
            return &o->note[i];
        }
    }
    return NULL;
}

void outcomes_set(struct outcomes *o, const struct vid *id, uint64_t after, enum outcome what)
{
    struct outcome_note *note = (struct outcome_note *)outcomes_find(o, id);

    if (note == NULL) {
        note = &o->note[o->n++ % OUTCOMES_MAX];
        *note = (struct outcome_note){.id = *id, .after = after};
    }
    note->what = what;
}

/* ---- on the loop ---- */

static bool in_flight(const struct node *n, const struct vid *id)
{
    for (const struct inflight *f = n->submit.first; f != NULL; f = f->next) {
        if (vid_equal(&f->id, id)) {
            return true;
        }
    }
    return false;
}

/* From the head backwards: an entry took effect if the chain of parents leads to it. Only one of those that were made on
 * the same parent can. parent NULL: not known. */
static enum outcome in_log(struct node *n, const struct vid *id, const struct vid *parent)
{
    raft_index first = inside_offset(&n->raft) + 1, applied = n->raft.last_applied;
    enum outcome found = OUTCOME_UNKNOWN;
    struct head_info agreed;
    bool anchored;

    store_agreed(n->db->store, &agreed);
    /* The head is not beyond the log applied, and what was applied has been put into effect. */
    anchored = agreed.index <= applied && n->fsm.skip_until <= applied && n->fsm.missed_from == 0 && !n->fsm.paused &&
               !n->fsm.stuck && n->state != NODE_FAILED;
    for (raft_index i = inside_last_index(&n->raft); i >= first; i--) {
        const struct raft_entry *le = inside_entry(&n->raft, i);
        struct entry entry;
        struct err e;

        if (le == NULL || le->type != RAFT_COMMAND ||
            entry_decode(le->buf.base, le->buf.len, &entry, &e) != DUST_OK || !entry.last) {
            continue;
        }
        if (i <= applied && vid_equal(&entry.id, &agreed.id)) {
            agreed.id = entry.parent;
            if (vid_equal(&entry.id, id)) {
                return OUTCOME_AGREED;
            }
            if (parent != NULL && vid_equal(&entry.parent, parent)) {
                return OUTCOME_VOID;
            }
        } else if (vid_equal(&entry.id, id)) {
            found = i <= applied && anchored && found != OUTCOME_PENDING ? OUTCOME_VOID : OUTCOME_PENDING;
        }
    }
    return found;
}

static void outcome_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct outcome_note *r = calloc(1, sizeof *r);
    const struct outcome_note *note;
    struct vid parent;

    if (r == NULL) {
        call_answer(call, DUST_NOMEM, NULL, 0, NULL);
        return;
    }
    memcpy(r->id.b, call->arg, sizeof r->id.b);
    memcpy(parent.b, call->arg + 2, sizeof parent.b);
    pthread_mutex_lock(&n->mutex);
    note = outcomes_find(&n->outcomes, &r->id);
    if (note != NULL) {
        *r = *note;
    }
    pthread_mutex_unlock(&n->mutex);
    if (r->what == OUTCOME_UNKNOWN && in_flight(n, &r->id)) {
        r->what = OUTCOME_PENDING;
    }
    if (r->what == OUTCOME_UNKNOWN && n->running && !n->stopping) {
        r->what = in_log(n, &r->id, vid_none(&parent) ? NULL : &parent);
    }
    call_answer(call, DUST_OK, NULL, n->running && !n->stopping ? inside_offset(&n->raft) : UINT64_MAX, r);
}

/* ---- for SQL threads ---- */

/* What is known here. parent NULL: not known. *after is filled in if it was noted; *log_from: the log reaches back to the
 * entry after it. */
static int look(struct node *n, const struct vid *id, const struct vid *parent, uint64_t *after, uint64_t *log_from,
    enum outcome *out, struct err *e)
{
    struct outcome_note *note;
    struct call_result r;
    uint64_t arg[CALL_ARGS] = {0};
    int rv;

    memcpy(arg, id->b, sizeof id->b);
    if (parent != NULL) {
        memcpy(arg + 2, parent->b, sizeof parent->b);
    }
    rv = node_call_args(n, outcome_run, arg, LOOK_MS, &r, e);
    if (rv != DUST_OK) {
        return rv;
    }
    note = r.gift;
    *out = note->what;
    if (note->after != 0) {
        *after = note->after;
    }
    *log_from = r.num;
    free(note);
    return DUST_OK;
}

int node_took_effect(void *ctx, const struct vid *id, const struct vid *parent, uint32_t timeout_ms, enum effect *out,
    struct err *e)
{
    struct node *n = ctx;
    uint64_t after = 0, log_from;
    enum outcome what = OUTCOME_UNKNOWN;
    int rv = node_catch_up(n, timeout_ms, e);

    if (rv == DUST_OK) {
        rv = look(n, id, parent, &after, &log_from, &what, e);
    }
    *out = what == OUTCOME_AGREED ? EFFECT_TAKEN : what == OUTCOME_VOID ? EFFECT_NEVER : EFFECT_NONE;
    return rv;
}

int node_outcome(struct node *n, const struct vid *id, uint64_t after, uint32_t timeout_ms, enum outcome *out,
    struct err *e)
{
    uint64_t log_from;
    int rv = look(n, id, NULL, &after, &log_from, out, e);

    if (rv != DUST_OK || *out != OUTCOME_UNKNOWN) {
        return rv;
    }
    rv = node_catch_up(n, timeout_ms, e);
    if (rv == DUST_OK) {
        rv = look(n, id, NULL, &after, &log_from, out, e);
    }
    if (rv != DUST_OK || *out != OUTCOME_UNKNOWN || after == 0 || log_from > after) {
        return rv;
    }
    rv = database_fence(n->db, "-- dust_outcome", timeout_ms, e);
    if (rv == DUST_OK) {
        rv = look(n, id, NULL, &after, &log_from, out, e);
    }
    if (rv == DUST_OK && *out == OUTCOME_UNKNOWN && log_from <= after) {
        *out = OUTCOME_VOID;
        pthread_mutex_lock(&n->mutex);
        outcomes_set(&n->outcomes, id, after, OUTCOME_VOID);
        pthread_mutex_unlock(&n->mutex);
    }
    return rv;
}
