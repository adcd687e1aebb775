/* Transactions that attached processes have sealed: taken in, staged on the head, and handed to the replicator.
 *
 *   COMMIT, PARTs ──all there──▶ staged ──outcome──▶ DONE
 *        again:  └▶ looking (crew) ──took effect, or never can──▶ DONE
 *                        └──not yet──▶ staged, or parked until its parent is here
 *                                        └──time is up──▶ looking, for the last time ──not yet──▶ DONE: unknown
 *
 * What is sent again may be in the log, or on its way there, by what it was sent to before. So it is refused only when
 * another transaction has been agreed on in its place; whatever else stands in the way, its outcome is unknown.
 *
 * The writer's slot is made to hold the staged version before anybody can publish it, so that the writer stands on it
 * when it is told. */
#include "vfs/intake.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vfs/assembly.h"
#include "vfs/clock.h"
#include "vfs/service_impl.h"

#define PARK_MS 5000u
#define LOOK_MS 10000u       /* for everything committed to be applied */
#define PARTS_MAX (1u << 20)
#define OTHER_TEXT "another transaction took its place in the log; roll back and retry"
#define LOST_TEXT "the transaction had been sent to a host that has ended, and could not be sent again: %.300s"

static void done(struct guest *g, uint32_t number, int code, const char *text, const struct link_done *staged)
{
    uint8_t body[64 + ERR_TEXT_MAX];
    struct pack k = {.p = body, .room = sizeof body};

    text = text != NULL ? text : code != DUST_OK ? err_text(code) : "";
    pack_uint(&k, (uint64_t)code, 4);
    pack_uint(&k, staged != NULL ? staged->seq : 0, 8);
    pack_uint(&k, staged != NULL ? staged->n_pages : 0, 4);
    pack_uint(&k, staged != NULL ? staged->after : 0, 8);
    pack_bytes(&k, text, strnlen(text, ERR_TEXT_MAX));
    guest_send(g, LINK_DONE, number, body, k.n);
}

/* The outcome is known. On the replicator's thread. */
static void told_of_outcome(struct commit *c, void *arg)
{
    struct guest *g = arg;
    struct link_done staged;
    uint32_t number;

    pthread_mutex_lock(&g->mutex);
    g->commit = NULL;
    staged = g->staged;
    number = g->commit_number;
    pthread_mutex_unlock(&g->mutex);
    done(g, number, c->err.code, c->err.code != DUST_OK ? c->err.text : NULL, &staged);
    commit_unref(c);
    guest_unref(g);
}

/* ---- staging ---- */

/* Its parts into frames of the store, on top of the head, which has to be its parent. `slot`: for reading that. */
static int assemble(struct database *db, uint32_t slot, struct sealed *sealed, struct assembly *a, struct err *e)
{
    struct vid head;
    struct snap snap;
    int rv = DUST_OK;

    store_pin_head(db->store, slot, &snap);
    if (!store_id_of(db->store, snap.seq, &head) || !vid_equal(&head, &sealed->parent)) {
        store_unpin(db->store, &snap);
        return err_set(e, DUST_STALE, "the database has moved on since this transaction read it; roll back and retry");
    }
    sealed->n_pages = 0;
    for (uint32_t i = 0; rv == DUST_OK && i < sealed->n_parts; i++) {
        struct entry entry;

        rv = entry_decode(sealed->parts[i].data, sealed->parts[i].len, &entry, e);
        if (rv == DUST_OK && (!vid_equal(&entry.id, &sealed->id) || !vid_equal(&entry.parent, &sealed->parent) ||
                                 entry.origin != db->origin || entry.page_size != db->page_size || entry.part != i ||
                                 entry.last != (i + 1 == sealed->n_parts))) {
            rv = err_set(e, DUST_MISUSE, "the transaction is not what it was said to be");
        }
        if (rv == DUST_OK && i == 0) {
            sealed->origin_seq = entry.origin_seq;
            rv = assembly_begin(a, db, &snap, &entry, e);
        }
        if (rv == DUST_OK) {
            sealed->n_pages += entry.n_records;
            rv = assembly_add(a, &entry, e);
        }
    }
    if (!a->begun) {
        store_unpin(db->store, &snap);
    }
    return rv;
}

/* One at a time for a slot. On success *v is staged, held by the writer's slot, and `sealed` is still to be submitted. */
static int stage(struct database *db, uint32_t slot, struct sealed *sealed, uint32_t writer, struct commit *commit,
    struct version *v, struct snap *snap, struct err *e)
{
    struct assembly a = {.begun = false};
    uint32_t *nodes = NULL, n;
    int rv = assemble(db, slot, sealed, &a, e);

    if (rv == DUST_OK) {
        rv = assembly_end(&a, &nodes, &n, e);
    }
    if (rv == DUST_OK) {
        rv = store_stage(db->store, &sealed->id, &sealed->parent, a.n_pages, nodes, n, commit, v, e);
    }
    if (rv == DUST_OK) {
        assembly_taken(&a);
        store_pin_staged(db->store, writer, snap, v);
    }
    free(nodes);
    assembly_drop(&a);
    txn_deinit(&a.txn);
    return rv;
}

/* ---- in this process ---- */

static struct sealed *copy_of(const struct sealed *from)
{
    struct sealed *s = malloc(sizeof *s + from->n_parts * sizeof *s->parts);

    if (s == NULL) {
        return NULL;
    }
    *s = *from;
    s->parts = (struct entry_part *)(s + 1);
    for (s->n_parts = 0; s->n_parts < from->n_parts; s->n_parts++) {
        struct entry_part *part = &s->parts[s->n_parts];

        *part = from->parts[s->n_parts];
        part->data = malloc(part->len);
        if (part->data == NULL) {
            sealed_free(s);
            return NULL;
        }
        memcpy(part->data, from->parts[s->n_parts].data, part->len);
    }
    return s;
}

/* If it does not come in time, the stage says so. */
static void wait_for_parent(struct database *db, const struct vid *parent, uint64_t until_ms)
{
    struct timespec ms5 = {.tv_nsec = 5000000};
    struct head_info head;

    for (store_head(db->store, &head); !vid_equal(&head.id, parent); store_head(db->store, &head)) {
        if (clock_ms() >= until_ms) {
            return;
        }
        nanosleep(&ms5, NULL); /* another process has it, and sends it */
    }
}

static int commit_here(struct database *db, struct sealed *sealed, uint32_t reader, uint32_t writer, struct snap *snap,
    uint64_t *after, uint64_t until_ms, bool *staged, struct err *e)
{
    struct commit *commit = commit_new(db->rep.room);
    struct version v;
    uint64_t now;
    int rv;

    if (commit == NULL) {
        sealed_free(sealed);
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = stage(db, reader, sealed, writer, commit, &v, snap, e);
    if (rv != DUST_OK) {
        sealed_free(sealed);
        commit_unref(commit);
        commit_unref(commit);
        return rv;
    }
    store_set_hosts_own(db->store, v.seq);
    *after = v.after;
    *staged = true;
    db->rep.submit(db->rep.ctx, sealed, &v, commit);
    now = clock_ms();
    rv = commit_wait_agreed(commit, db->store, now < until_ms ? (uint32_t)(until_ms - now) : 0, e);
    commit_unref(commit);
    if (rv != DUST_OK) {
        store_unpin(db->store, snap);
    }
    return rv;
}

/* *staged: from then on the answer is its outcome; an error before that is of this process alone. */
static int stage_here(struct database *db, const struct sealed *sealed, uint32_t slot, struct snap *snap, uint64_t *after,
    uint64_t until_ms, bool *staged, struct err *e)
{
    struct sealed *copy;
    uint32_t reader;
    int rv = store_slot_take(db->store, &reader, e);

    if (rv != DUST_OK) {
        return rv;
    }
    copy = copy_of(sealed);
    rv = copy != NULL ? commit_here(db, copy, reader, slot, snap, after, until_ms, staged, e)
                      : err_set(e, DUST_NOMEM, "out of memory");
    store_slot_give(db->store, reader);
    return rv;
}

/* It may have been sent before. True: the answer is known, and is *rv. */
static bool known(struct database *db, const struct sealed *sealed, uint32_t slot, struct snap *snap, uint64_t until_ms,
    int *rv, struct err *e)
{
    enum effect effect = EFFECT_NONE;
    uint64_t now = clock_ms();

    *rv = db->rep.took_effect(db->rep.ctx, &sealed->id, &sealed->parent, now < until_ms ? (uint32_t)(until_ms - now) : 1,
        &effect, e);
    if (*rv != DUST_OK) {
        *rv = err_set(e, DUST_UNKNOWN, "it was not to be found out whether the transaction has taken effect");
        return true;
    }
    if (effect == EFFECT_TAKEN) {
        store_pin(db->store, slot, snap);
    } else if (effect == EFFECT_NEVER) {
        *rv = err_set(e, DUST_VOID, OTHER_TEXT);
    }
    return effect != EFFECT_NONE;
}

static int take_here(struct database *db, const struct sealed *sealed, bool again, bool kept, uint32_t slot,
    struct snap *snap, uint64_t *after, uint64_t until_ms, struct err *e)
{
    bool staged = false;
    struct err why;
    int rv;

    if (again && known(db, sealed, slot, snap, until_ms, &rv, e)) {
        return rv;
    }
    if (again || kept) {
        wait_for_parent(db, &sealed->parent, until_ms < clock_ms() + PARK_MS ? until_ms : clock_ms() + PARK_MS);
    }
    rv = stage_here(db, sealed, slot, snap, after, until_ms, &staged, e);
    if (staged && again && rv == DUST_CLOSED) {
        return err_set(e, DUST_UNKNOWN, "this member was stopped, and the host before it had sent the transaction");
    }
    if (staged || !again) {
        return rv;
    }
    why = *e;
    return known(db, sealed, slot, snap, until_ms, &rv, e) ? rv : err_set(e, DUST_UNKNOWN, LOST_TEXT, why.text);
}

int intake_here(struct database *db, const struct sealed *sealed, bool again, bool kept, uint32_t slot, struct snap *snap,
    uint64_t *after, uint64_t until_ms, struct err *e)
{
    int rv;

    atomic_fetch_add(&db->taking_in, 1);
    rv = take_here(db, sealed, again, kept, slot, snap, after, until_ms, e);
    atomic_fetch_sub(&db->taking_in, 1);
    return rv;
}

/* ---- for guests ---- */

/* The turn that was kept for it since the host before has served its purpose. */
static void turn_used(struct guest *g)
{
    if (g->intake.c.turn) {
        database_unreserve_turn(g->s->db, g->owner_before);
    }
}

/* On success the sealed transaction is on its way, and the outcome will be told. */
static int stage_for(struct guest *g, struct err *e)
{
    struct service *s = g->s;
    struct intake *in = &g->intake;
    struct commit *commit = commit_new(s->db->rep.room);
    struct sealed *sealed = in->sealed;
    struct version v;
    struct snap snap;
    int rv;

    if (commit == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    commit->told = told_of_outcome;
    commit->told_arg = g;
    rv = stage(s->db, s->slot, sealed, in->c.slot, commit, &v, &snap, e);
    if (rv != DUST_OK) {
        commit_unref(commit);
        commit_unref(commit);
        return rv;
    }
    guest_ref(g);
    in->sealed = NULL;
    in->under_way = false;
    pthread_mutex_lock(&g->mutex);
    g->commit = commit;
    g->staged = (struct link_done){.seq = v.seq, .n_pages = v.n_pages, .after = v.after};
    pthread_mutex_unlock(&g->mutex);
    s->db->rep.submit(s->db->rep.ctx, sealed, &v, commit);
    guest_drop_turn(g);
    turn_used(g);
    return DUST_OK;
}

/* Nothing more is done about it here. */
static void refuse(struct guest *g, const struct err *e)
{
    guest_drop_turn(g);
    turn_used(g);
    done(g, g->commit_number, e->code, e->text, NULL);
    intake_drop(g);
}

static void search(struct guest *g);

static void stage_or_refuse(struct guest *g)
{
    struct err e, why;

    if (stage_for(g, &e) == DUST_OK) {
        return;
    }
    if (g->intake.c.again && e.code == DUST_STALE && !g->intake.last_look) { /* another one came first just now */
        g->intake.last_look = true;
        search(g);
        return;
    }
    if (g->intake.c.again) {
        why = e;
        err_set(&e, DUST_UNKNOWN, LOST_TEXT, why.text);
    }
    refuse(g, &e);
}

/* ---- again ---- */

struct search {
    struct crew_job job; /* first */
    struct guest *g;
    struct vid id, parent;
};

/* It has taken effect: the writer stands on the newest agreed version, which is that one or a later one. */
static void found(struct guest *g)
{
    struct link_done staged = {0};
    struct snap snap;

    store_pin(g->s->db->store, g->intake.c.slot, &snap);
    staged.seq = snap.seq;
    staged.n_pages = snap.n_pages;
    turn_used(g);
    done(g, g->commit_number, DUST_OK, NULL, &staged);
    intake_drop(g);
}

static void run_search(struct crew_job *job)
{
    struct search *w = (struct search *)job;
    struct guest *g = w->g;
    struct replicator *rep = &g->s->db->rep;
    struct err e = {0};
    enum effect effect = EFFECT_NONE;
    int rv = rep->took_effect(rep->ctx, &w->id, &w->parent, LOOK_MS, &effect, &e);

    free(w);
    pthread_mutex_lock(&g->mutex);
    g->intake.result = rv != DUST_OK             ? rv
                       : effect == EFFECT_TAKEN ? INTAKE_FOUND
                       : effect == EFFECT_NEVER ? INTAKE_NEVER
                                                : INTAKE_NOT_FOUND;
    pthread_mutex_unlock(&g->mutex);
    service_wake(g->s);
    guest_unref(g);
}

static void search(struct guest *g)
{
    struct search *w = calloc(1, sizeof *w);
    struct err e;

    if (w != NULL) {
        w->job.run = run_search;
        w->g = guest_ref(g);
        w->id = g->intake.c.id;
        w->parent = g->intake.c.parent;
        g->intake.result = INTAKE_LOOKING;
        g->intake.parked = true;
        g->intake.park_until_ms = clock_ms() + LOOK_MS + PARK_MS;
        if (crew_run(&g->s->crew, &w->job)) {
            return;
        }
        guest_unref(g);
        free(w);
    }
    err_set(&e, DUST_UNKNOWN, "the process that hosts this member cannot look what became of the transaction");
    refuse(g, &e);
}

/* It has never been sent; but what it stands on may have been, to the host before, and be on its way again. */
static void wait_parked(struct guest *g)
{
    g->intake.result = INTAKE_NOT_FOUND;
    g->intake.parked = true;
    g->intake.park_until_ms = clock_ms() + PARK_MS;
}

void intake_look(struct guest *g, uint64_t now)
{
    struct intake *in = &g->intake;
    struct head_info head;
    struct err e;
    int result;

    pthread_mutex_lock(&g->mutex);
    result = in->result;
    pthread_mutex_unlock(&g->mutex);
    if (result == INTAKE_LOOKING && now < in->park_until_ms) {
        return;
    }
    if (result == INTAKE_FOUND) {
        found(g);
        return;
    }
    if (result == INTAKE_NEVER) {
        err_set(&e, DUST_VOID, OTHER_TEXT);
        refuse(g, &e);
        return;
    }
    if (result != INTAKE_NOT_FOUND) {
        err_set(&e, DUST_UNKNOWN, "it was not to be found out whether the transaction has taken effect: %s",
            result > 0 ? err_text(result) : "no answer in time");
        refuse(g, &e);
        return;
    }
    store_watching(g->s->db->store, true); /* before looking */
    store_head(g->s->db->store, &head);
    if (vid_equal(&head.id, &in->c.parent)) {
        in->parked = false;
        stage_or_refuse(g);
    } else if (in->last_look) {
        err_set(&e, DUST_UNKNOWN, LOST_TEXT, "what it was made on is not here");
        refuse(g, &e);
    } else if (now >= in->park_until_ms && in->c.again) {
        in->last_look = true;
        search(g);
    } else if (now >= in->park_until_ms) {
        err_set(&e, DUST_VOID, OTHER_TEXT);
        refuse(g, &e);
    } else if (in->park_until_ms > now + PARK_MS) {
        in->park_until_ms = now + PARK_MS;
    }
}

/* ---- what comes ---- */

void intake_drop(struct guest *g)
{
    sealed_free(g->intake.sealed);
    g->intake = (struct intake){.under_way = false};
}

bool intake_begin(struct guest *g, const struct link_msg *m)
{
    struct intake *in = &g->intake;
    bool under_way;

    pthread_mutex_lock(&g->mutex);
    under_way = g->commit != NULL;
    g->commit_number = under_way ? g->commit_number : m->number; /* the answer to that one may be given at any moment */
    pthread_mutex_unlock(&g->mutex);
    if (under_way || !link_get_commit(m, &in->c) || in->c.n_parts > PARTS_MAX ||
        !store_slot_is(g->s->db->store, in->c.slot, g->owner)) {
        return false;
    }
    in->under_way = true;
    in->sealed = calloc(1, sizeof *in->sealed + in->c.n_parts * sizeof *in->sealed->parts);
    if (in->sealed == NULL) {
        return false;
    }
    in->sealed->id = in->c.id;
    in->sealed->parent = in->c.parent;
    in->sealed->parts = (struct entry_part *)(in->sealed + 1);
    return true;
}

bool intake_part(struct guest *g, const struct link_msg *m)
{
    struct intake *in = &g->intake;
    struct entry_part *part;

    if (!in->under_way || in->parked || in->sealed->n_parts == in->c.n_parts || m->number != g->commit_number) {
        return false;
    }
    part = &in->sealed->parts[in->sealed->n_parts];
    part->data = malloc(m->len + 1);
    if (part->data == NULL) {
        return false;
    }
    memcpy(part->data, m->body, m->len);
    part->len = m->len;
    in->sealed->bytes += m->len;
    in->sealed->n_parts++;
    if (in->sealed->n_parts == in->c.n_parts) {
        if (in->c.again) {
            search(g);
        } else if (in->c.turn) {
            wait_parked(g);
        } else {
            stage_or_refuse(g);
        }
    }
    return true;
}
