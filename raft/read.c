/* Linearizable reads: which index is committed by now? (Ongaro's thesis, section 6.4: the read index)
 *
 * A reader may look as soon as this member has applied the index that the leader knew to be committed at some moment
 * after the read began. For that the leader has to be still the leader then, which it learns by asking: a majority of
 * the voters has to say, after that moment, that they are still in its term. No later leader can have been elected by
 * then, so nothing can have been committed that this one does not know. The log is not touched, and no clock is
 * trusted.
 *
 * All who ask while a round is under way share the next one; so do the readers of a member, and at the leader those of
 * all members.
 *
 *             ask                       leader here: note the commit index, CONFIRM to all voters
 *   reader ─────────▶ asking ──begin──▶ asked ──a majority says CONFIRMED──▶ answered with the index
 *                        ▲              leader elsewhere: INDEX to it
 *                        │              asked ──INDEX_REPLY──▶ answered
 *                        └──this member became or ceased to be the leader: begin again──┘
 *
 * Invariants
 *   whoever is in `asked` was there before the first message of the round left: what arrives with its number is newer
 *   a number is never used twice, not by another start of this member either: it begins at a random one
 *   a leader begins no round before an entry of its own term is committed: until then it may not know what is
 *   the round of a leader is of one term; in another term it is void, and begun again or given up
 *
 * Failure cases. A message is lost: the same ones are sent again after READ_RESEND_MS. The leader cannot answer (not settled,
 * deposed): it says AGAIN, or nothing, and is asked again, or its successor is. Nobody leads: those who ask wait, each
 * until its own time is up. A member restarts: its readers are gone, the number of its round is not used again. A
 * member is frozen and thawed: its term was passed on without it, and a CONFIRMED that it finds in its socket is either
 * of a round that counted only on terms at that time, or of no round any more.
 *
 * Messages (besides kind):
 *   INDEX        req = number
 *   INDEX_REPLY  req; code: OK, num0 the index; AGAIN: ask again
 *   CONFIRM      term, num0 = number of the leader's round
 *   CONFIRMED    term, num0: the sender is a voter or not, and in that term
 *
 * All on the loop thread. */
#include "raft/read.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/bug.h"
#include "vfs/clock.h"

#define READ_RESEND_MS 60u
#define UNOPENED_LATELY_MS 5000u /* a reason for there being no leader */

void read_init(struct node *n)
{
    randombytes_buf(&n->read.number, sizeof n->read.number);
}

void read_deinit(struct node *n)
{
    free(n->read.asking.askers);
    free(n->read.asked.askers);
    n->read.asking = n->read.asked = (struct askers){0};
}

static bool add(struct askers *l, const struct asker *a)
{
    if (l->n == l->room) {
        unsigned more = l->room == 0 ? 16 : l->room * 2;
        struct asker *p = realloc(l->askers, more * sizeof *p);

        if (p == NULL) {
            return false;
        }
        l->askers = p;
        l->room = more;
    }
    l->askers[l->n++] = *a;
    return true;
}

/* A member asks for one round at a time: what it asked before, it asks no more. */
static bool add_member(struct read *r, const struct asker *a)
{
    for (unsigned i = 0; i < r->asked.n; i++) {
        if (r->asked.askers[i].call == NULL && r->asked.askers[i].from == a->from &&
            r->asked.askers[i].req == a->req) {
            return true; /* asked again: the answer is to come */
        }
    }
    for (unsigned i = 0; i < r->asking.n; i++) {
        if (r->asking.askers[i].call == NULL && r->asking.askers[i].from == a->from) {
            r->asking.askers[i] = *a;
            return true;
        }
    }
    return add(&r->asking, a);
}

static void answer_all(struct node *n, struct askers *l, int code, raft_index index)
{
    struct note reply = {.num = {index}};
    unsigned count = l->n;

    l->n = 0;
    for (unsigned i = 0; i < count; i++) {
        ask_answer(n, &l->askers[i], NOTE_INDEX_REPLY, &reply, code, NULL);
    }
}

/* ---- a round ---- */

/* Those who asked elsewhere ask again there; our own stay. */
static void keep_own(struct node *n, struct askers *l)
{
    unsigned kept = 0;

    for (unsigned i = 0; i < l->n; i++) {
        if (l->askers[i].call == NULL) {
            ask_answer(n, &l->askers[i], NOTE_INDEX_REPLY, NULL, DUST_AGAIN, NULL);
        } else {
            l->askers[kept++] = l->askers[i];
        }
    }
    l->n = kept;
}

static bool led_here(const struct read *r)
{
    return r->term != 0;
}

static void finish_if_confirmed(struct node *n)
{
    const struct raft_configuration *conf = &n->raft.configuration;
    struct read *r = &n->read;
    unsigned voters = 0, confirmed = 0;

    for (unsigned i = 0; i < conf->n; i++) {
        bool yes = conf->servers[i].id == n->self.id;

        if (conf->servers[i].role != RAFT_VOTER) {
            continue;
        }
        for (unsigned j = 0; j < r->n_confirmed && !yes; j++) {
            yes = r->confirmed[j] == conf->servers[i].id;
        }
        voters++;
        confirmed += yes;
    }
    if (confirmed > voters / 2 && guard_settled(&n->io.guard) && n->raft.current_term == r->term) {
        answer_all(n, &r->asked, DUST_OK, r->index);
    }
}

static void send_round(struct node *n)
{
    struct note note = {.kind = NOTE_CONFIRM, .term = n->read.term, .num = {n->read.number}};
    const struct raft_configuration *conf = &n->raft.configuration;
    const char *address;
    raft_id leader;

    n->read.sent_ms = node_now(n);
    if (!led_here(&n->read)) {
        note = (struct note){.kind = NOTE_INDEX, .req = n->read.number};
        leader = node_leader(n, &address);
        if (leader != 0 && leader != n->self.id) {
            send_note(n, address, leader, &note);
        }
        return;
    }
    for (unsigned i = 0; i < conf->n; i++) {
        if (conf->servers[i].role == RAFT_VOTER && conf->servers[i].id != n->self.id) {
            send_note(n, conf->servers[i].address, conf->servers[i].id, &note);
        }
    }
}

/* A round that can come to nothing any more is begun again; one that is over is followed by the next. */
void read_look(struct node *n)
{
    struct read *r = &n->read;
    bool leads = node_is_leader(n);
    struct askers swap;

    if (r->asked.n != 0 && (leads != led_here(r) || (leads && r->term != n->raft.current_term))) {
        bool room = true;

        keep_own(n, &r->asked);
        for (unsigned i = 0; i < r->asked.n && room; i++) {
            room = add(&r->asking, &r->asked.askers[i]);
        }
        if (room) {
            r->asked.n = 0;
        } else {
            answer_all(n, &r->asked, DUST_NOMEM, 0);
        }
    }
    if (!leads) {
        keep_own(n, &r->asking);
    }
    if (r->asked.n != 0 || r->asking.n == 0 || (leads ? !guard_settled(&n->io.guard) : node_leader(n, NULL) == 0)) {
        return;
    }
    swap = r->asked;
    r->asked = r->asking;
    r->asking = swap;
    r->number++;
    r->n_confirmed = 0;
    r->term = leads ? n->raft.current_term : 0;
    r->index = leads ? n->raft.commit_index : 0;
    send_round(n);
    if (leads) {
        finish_if_confirmed(n); /* the only voter */
    }
}

/* ---- asking ---- */

int read_confirm(void *ctx, int consistency, uint32_t freshness_ms, uint32_t timeout_ms, struct err *e)
{
    struct node *n = ctx;
    uint64_t begun_us;
    int rv;

    if (BUG(READ)) {
        return DUST_OK;
    }
    if (consistency == CONSISTENCY_FRESH) {
        uint64_t fresh = atomic_load(&n->grant.fresh_ms), now = clock_ms();

        if (fresh == 0 || (now > fresh && now - fresh > freshness_ms)) {
            return err_set(e, DUST_NOLEADER,
                "what this member has may be older than %u ms (PRAGMA dust_freshness): the leader was not heard from",
                freshness_ms);
        }
        if (atomic_load(&n->db->caught_up)) {
            return DUST_OK;
        }
    }
    begun_us = clock_us();
    rv = node_catch_up(n, timeout_ms, e);
    times_add(&n->db->metrics.times[TIMING_CONFIRM], clock_us() - begun_us);
    return rv != DUST_OK && consistency == CONSISTENCY_LOCAL && atomic_load(&n->db->caught_up) ? DUST_OK : rv;
}

void read_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct asker a = {.call = call};

    if (n->state == NODE_FAILED) {
        call_answer(call, n->failure.code, n->failure.text, 0, NULL);
    } else if (n->stopping) {
        call_answer(call, node_is_ending(n) ? DUST_CLOSED : DUST_AGAIN, "this member is shutting down", 0, NULL);
    } else if (!add(&n->read.asking, &a)) {
        call_answer(call, DUST_NOMEM, NULL, 0, NULL);
    }
}

/* ---- messages ---- */

/* The round may have been asked for more than once. */
static bool has_confirmed(const struct read *r, raft_id id)
{
    for (unsigned i = 0; i < r->n_confirmed; i++) {
        if (r->confirmed[i] == id) {
            return true;
        }
    }
    return false;
}

void read_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct read *r = &n->read;
    struct asker a = asker_of(from, note);
    struct note yes = {.kind = NOTE_CONFIRMED, .term = note->term, .num = {note->num[0]}};

    if (!n->running || guard_dead(&n->io.guard)) {
        return;
    }
    switch (note->kind) {
    case NOTE_INDEX:
        if (!node_is_leader(n) || !add_member(r, &a)) {
            ask_answer(n, &a, NOTE_INDEX_REPLY, NULL, DUST_AGAIN, NULL);
        }
        break;
    case NOTE_INDEX_REPLY:
        if (r->asked.n != 0 && !led_here(r) && note->req == r->number && note->code == DUST_OK) {
            answer_all(n, &r->asked, DUST_OK, note->num[0]);
        }
        break;
    case NOTE_CONFIRM:
        if (note->term == n->raft.current_term && !node_is_leader(n)) {
            send_note(n, from->address, from->from, &yes);
        }
        break;
    case NOTE_CONFIRMED:
        if (r->asked.n != 0 && led_here(r) && note->num[0] == r->number && note->term == r->term &&
            r->n_confirmed < MAX_MEMBERS && !has_confirmed(r, from->from)) {
            r->confirmed[r->n_confirmed++] = from->from;
            finish_if_confirmed(n);
        }
        break;
    default:
        break;
    }
}

/* ---- time, the end ---- */

static void answer_late(struct node *n, struct call *call)
{
    struct err e;

    if (node_leader(n, NULL) != 0) {
        err_set(&e, DUST_NOLEADER, "no majority of the cluster could confirm in time that what this member has is the newest");
    } else if (n->unopened_ms != 0 && node_now(n) - n->unopened_ms < UNOPENED_LATELY_MS) {
        err_set(&e, DUST_NOLEADER, "no leader is known, and what others say is not understood: %s", n->unopened.text);
    } else {
        err_set(&e, DUST_NOLEADER, "no leader is known: is a majority of the cluster up and reachable?");
    }
    call_answer(call, e.code, e.text, 0, NULL);
}

static void drop_late(struct node *n, struct askers *l)
{
    uint64_t now = clock_ms();
    unsigned kept = 0;

    for (unsigned i = 0; i < l->n; i++) {
        struct call *call = l->askers[i].call;

        if (call != NULL && now >= call->deadline_ms) {
            answer_late(n, call);
        } else {
            l->askers[kept++] = l->askers[i];
        }
    }
    l->n = kept;
}

void read_tick(struct node *n)
{
    struct read *r = &n->read;

    drop_late(n, &r->asking);
    drop_late(n, &r->asked);
    if (r->asked.n != 0 && node_now(n) - r->sent_ms >= READ_RESEND_MS) {
        send_round(n);
    }
}

static void answer_own(struct askers *l, int code, const char *text)
{
    for (unsigned i = 0; i < l->n; i++) {
        if (l->askers[i].call != NULL) {
            call_answer(l->askers[i].call, code, text, 0, NULL);
        }
    }
    l->n = 0;
}

void read_fail(struct node *n, int code, const char *text)
{
    answer_own(&n->read.asking, code, text);
    answer_own(&n->read.asked, code, text);
}
