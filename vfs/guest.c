/* What an attached process asks for, as the service's thread sees it. See service.h. */
#include <stdlib.h>
#include <string.h>

#include "vfs/clock.h"
#include "vfs/service_impl.h"

#define WAIT_MAX_MS 86400000u

/* ---- hello ---- */

static struct guest *primary_of(struct service *s, uint32_t owner)
{
    struct guest *g = s->first;

    while (g != NULL && (g->owner != owner || !g->primary)) {
        g = g->next;
    }
    return g;
}

static bool welcome(struct guest *g, uint32_t number)
{
    struct database *db = g->s->db;
    uint8_t body[32];
    struct pack k = {.p = body, .room = sizeof body};

    pack_uint(&k, g->owner, 4);
    pack_uint(&k, g->s->mark, 8);
    pack_uint(&k, db->origin, 8);
    pack_uint(&k, db->page_size, 4);
    return guest_send(g, LINK_WELCOME, number, body, k.n);
}

/* Under the mutex: service_guests looks at it from another thread. */
static void become(struct guest *g, uint32_t owner, bool primary)
{
    pthread_mutex_lock(&g->s->mutex);
    g->owner = owner;
    g->primary = primary;
    pthread_mutex_unlock(&g->s->mutex);
}

static bool hello(struct guest *g, const struct link_msg *m)
{
    struct unpack k = {.p = m->body, .left = m->len};
    struct service *s = g->s;
    uint32_t version = (uint32_t)unpack_uint(&k, 4), owner = (uint32_t)unpack_uint(&k, 4);
    const struct guest *first;

    bool holds;

    g->owner_before = (uint32_t)unpack_uint(&k, 4);
    holds = unpack_uint(&k, 1) != 0;
    if (m->type != LINK_HELLO || k.bad) {
        return false;
    }
    if (version != LINK_VERSION) {
        guest_reply(g, m->number, DUST_VERSION,
            "the process that hosts this member runs another version of dust: end it, or use the same version here");
        return false;
    }
    if (owner == 0) {
        do {
            s->last_owner++;
        } while (s->last_owner == 0 || s->last_owner == UINT32_MAX || primary_of(s, s->last_owner) != NULL);
        become(g, s->last_owner, true);
        if (!holds) {
            database_unreserve_turn(s->db, g->owner_before);
        }
    } else {
        first = primary_of(s, owner);
        if (first == NULL || first->pid != g->pid) {
            guest_reply(g, m->number, DUST_CLOSED, "no process of this number is attached");
            return false;
        }
        become(g, owner, false);
        g->owner_before = first->owner_before;
    }
    g->greeted = true;
    return welcome(g, m->number);
}

/* ---- the turn ---- */

static void told_of_turn(struct ticket *k, int code)
{
    struct guest *g = (struct guest *)((char *)k - offsetof(struct guest, ticket));
    uint32_t number = atomic_exchange(&g->turn_number, 0);

    if (code == DUST_OK) {
        store_set_turn_of(g->s->db->store, g->turn_slot != UINT32_MAX ? g->owner : 0, g->turn_slot);
    }
    if (number != 0) {
        guest_reply(g, number, code, NULL);
    }
}

void guest_drop_turn(struct guest *g)
{
    if (turn_held(&g->s->db->turn, &g->ticket)) {
        store_set_turn_of(g->s->db->store, 0, 0); /* first: the next one may have it at once */
    }
    turn_drop(&g->s->db->turn, &g->ticket);
}

static bool release(struct guest *g, const struct link_msg *m)
{
    if (m->len > 1 || (m->len == 1 && m->body[0] != 1)) {
        return false;
    }
    if (m->len == 1) {
        database_unreserve_turn(g->s->db, g->owner_before);
        return true;
    }
    atomic_store(&g->turn_number, 0);
    guest_drop_turn(g);
    return true;
}

static bool ask_turn(struct guest *g, const struct link_msg *m)
{
    struct unpack k = {.p = m->body, .left = m->len};
    uint32_t wait_ms = (uint32_t)unpack_uint(&k, 4), lease_ms = (uint32_t)unpack_uint(&k, 4);
    uint64_t now = clock_ms();

    g->turn_slot = (uint32_t)unpack_uint(&k, 4);
    if (k.bad || k.left != 0 || wait_ms > WAIT_MAX_MS ||
        (g->turn_slot != UINT32_MAX && !store_slot_is(g->s->db->store, g->turn_slot, g->owner))) {
        return false;
    }
    g->turn_until_ms = now + wait_ms;
    g->turn_gate_ms = now + TURN_GATE_GRACE_MS;
    g->ticket.told = told_of_turn;
    atomic_store(&g->turn_number, m->number);
    turn_ask(&g->s->db->turn, &g->ticket, lease_ms);
    return true;
}

/* A place that is to be kept has a lease, and stays in the queue when its asker is told that the time is up. */
static void look_at_turn(struct guest *g, uint64_t now, uint64_t *next)
{
    uint32_t number = atomic_load(&g->turn_number);
    uint64_t until = g->turn_until_ms;

    if (number == 0) {
        return;
    }
    if (!turn_is_open(&g->s->db->turn) && until < g->turn_gate_ms) {
        until = g->turn_gate_ms;
    }
    if (now < until) {
        *next = until < *next ? until : *next;
    } else if (atomic_compare_exchange_strong(&g->turn_number, &number, 0)) {
        guest_drop_turn(g);
        guest_reply(g, number, DUST_BUSY, NULL);
    }
}

/* ---- waiting for a version ---- */

static bool await_agreed(struct guest *g, const struct link_msg *m)
{
    struct unpack k = {.p = m->body, .left = m->len};

    const void *id;

    g->await_seq = unpack_uint(&k, 8);
    g->await_until_ms = clock_ms() + unpack_uint(&k, 4);
    id = unpack_bytes(&k, sizeof g->await_id.b);
    if (k.bad || k.left != 0) {
        return false;
    }
    memcpy(g->await_id.b, id, sizeof g->await_id.b);
    g->await_number = m->number;
    g->awaiting = true;
    return true;
}

static void look_at_version(struct guest *g, uint64_t now, uint64_t *next, bool *watch)
{
    int rv;

    if (!g->awaiting) {
        return;
    }
    store_watching(g->s->db->store, true); /* before looking, so that nothing is missed */
    if (g->await_seq == 0) {
        g->await_seq = store_seq_of(g->s->db->store, &g->await_id);
    }
    rv = g->await_seq != 0 ? store_wait_agreed(g->s->db->store, g->await_seq, 0) : DUST_BUSY;
    if (rv == DUST_BUSY && now < g->await_until_ms) {
        *watch = true;
        *next = g->await_until_ms < *next ? g->await_until_ms : *next;
        return;
    }
    g->awaiting = false;
    guest_reply(g, g->await_number, rv, NULL);
}

/* ---- what may wait: in threads of the crew ---- */

struct errand {
    struct crew_job job; /* first */
    struct guest *g;
    uint32_t number;
    int level;
    uint32_t freshness_ms, wait_ms;
    size_t n;
    uint8_t body[];
};

struct service_reply {
    struct guest *g;
    uint32_t number;
};

bool service_rows(struct service_reply *r, const void *body, size_t n)
{
    return n <= LINK_BODY_MAX && guest_send(r->g, LINK_ROWS, r->number, body, n);
}

static void run_confirm(struct crew_job *job)
{
    struct errand *a = (struct errand *)job;
    struct replicator *rep = &a->g->s->db->rep;
    struct err e = {0};
    int rv = rep->confirm_read(rep->ctx, a->level, a->freshness_ms, a->wait_ms, &e);

    atomic_store(&a->g->calling, false);
    guest_reply(a->g, a->number, rv, e.text);
    guest_unref(a->g);
    free(a);
}

static void run_call(struct crew_job *job)
{
    struct errand *a = (struct errand *)job;
    const struct service_calls *calls = &a->g->s->calls;
    struct service_reply reply = {.g = a->g, .number = a->number};
    struct err e = {0};
    int rv = calls->call(calls->ctx, a->body, a->n, &reply, &e);

    atomic_store(&a->g->calling, false);
    guest_reply(a->g, a->number, rv, e.text);
    guest_unref(a->g);
    free(a);
}

static bool send_out(struct guest *g, struct errand *a, uint32_t number, void (*run)(struct crew_job *job))
{
    if (a == NULL) {
        return guest_reply(g, number, DUST_NOMEM, "the process that hosts this member is out of memory");
    }
    a->job.run = run;
    a->g = guest_ref(g);
    a->number = number;
    atomic_store(&g->calling, true);
    if (!crew_run(&g->s->crew, &a->job)) {
        atomic_store(&g->calling, false);
        guest_unref(g);
        free(a);
        return guest_reply(g, number, DUST_BUSY, "the process that hosts this member has too much to do; try again");
    }
    return true;
}

static bool confirm(struct guest *g, const struct link_msg *m)
{
    struct unpack k = {.p = m->body, .left = m->len};
    struct errand *a = calloc(1, sizeof *a);
    uint32_t level = (uint32_t)unpack_uint(&k, 4), fresh = (uint32_t)unpack_uint(&k, 4);
    uint32_t wait_ms = (uint32_t)unpack_uint(&k, 4);

    if (k.bad || k.left != 0 || level > CONSISTENCY_LINEARIZABLE || wait_ms > WAIT_MAX_MS) {
        free(a);
        return false;
    }
    if (a != NULL) {
        a->level = (int)level;
        a->freshness_ms = fresh;
        a->wait_ms = wait_ms;
    }
    return send_out(g, a, m->number, run_confirm);
}

static bool call(struct guest *g, const struct link_msg *m)
{
    struct errand *a = calloc(1, sizeof *a + m->len);

    if (a != NULL) {
        a->n = m->len;
        memcpy(a->body, m->body, m->len);
    }
    return send_out(g, a, m->number, run_call);
}

/* ---- the rest ---- */

static bool damage(struct guest *g, const struct link_msg *m)
{
    struct unpack k = {.p = m->body, .left = m->len};
    uint32_t pgno = (uint32_t)unpack_uint(&k, 4);
    unsigned where = (unsigned)unpack_uint(&k, 1);

    if (k.bad || k.left != 0 || pgno == 0 || where > 1) {
        return false;
    }
    database_look_for_damage(g->s->db, pgno);
    return true;
}

static bool abandon(struct guest *g)
{
    pthread_mutex_lock(&g->mutex);
    if (g->commit != NULL) {
        commit_abandon(g->commit);
    }
    pthread_mutex_unlock(&g->mutex);
    return true;
}

static bool busy(struct guest *g)
{
    bool commit;

    pthread_mutex_lock(&g->mutex);
    commit = g->commit != NULL;
    pthread_mutex_unlock(&g->mutex);
    return commit || g->intake.under_way || g->awaiting || atomic_load(&g->calling);
}

bool guest_take(struct guest *g, const struct link_msg *m)
{
    if (!g->greeted) {
        return hello(g, m);
    }
    switch (m->type) {
    case LINK_TURN:
        return ask_turn(g, m);
    case LINK_RELEASE:
        return release(g, m);
    case LINK_KEEP:
        turn_keep(&g->s->db->turn, &g->ticket);
        return true;
    case LINK_ABANDON:
        return abandon(g);
    case LINK_DAMAGE:
        return damage(g, m);
    case LINK_PART:
        return intake_part(g, m);
    case LINK_COMMIT:
        return !g->intake.under_way && intake_begin(g, m);
    case LINK_CONFIRM:
        return !busy(g) && confirm(g, m);
    case LINK_AGREED:
        return !busy(g) && await_agreed(g, m);
    case LINK_CALL:
        return !busy(g) && call(g, m);
    default:
        return false;
    }
}

uint64_t guest_look(struct guest *g, uint64_t now, bool *watch)
{
    uint64_t next = UINT64_MAX;

    look_at_turn(g, now, &next);
    look_at_version(g, now, &next, watch);
    if (g->intake.parked) {
        *watch = true;
        intake_look(g, now);
        next = g->intake.parked && g->intake.park_until_ms < next ? g->intake.park_until_ms : next;
    }
    return next;
}

void guest_end(struct guest *g)
{
    atomic_store(&g->turn_number, 0);
    guest_drop_turn(g);
    abandon(g);
    intake_drop(g);
}
