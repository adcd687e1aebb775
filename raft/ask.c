/* Questions that only the leader can answer: from an SQL thread of this member (struct call), or from another member in
 * a message. The leader answers either kind of asker in the same way.
 *
 *   call ──this member leads──▶ answered
 *        ──another one leads──▶ note to it, call waits in `calls` ──note back──▶ answered
 *                                                                  ──deadline──▶ DUST_NOLEADER
 *        ──nobody leads──▶ DUST_NOLEADER, and whoever asks asks again until its time is up
 *
 * A note that is lost, or a leader that is deposed meanwhile, costs a deadline; a question asked twice does no harm (a
 * change that is made already is answered at once). An answer nobody waits for any more is dropped.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"

#define ASK_REPEAT_MS 2000u /* how long one question waits before it is asked again, perhaps of another leader */

/* ---- answering ---- */

void ask_answer(struct node *n, struct asker *a, int kind, const struct note *with, int code, const char *text)
{
    struct note r = with != NULL ? *with : (struct note){0};

    if (a->call != NULL) {
        call_answer(a->call, code, text, r.num[0], NULL);
        a->call = NULL;
        return;
    }
    if (a->address[0] == '\0') {
        return; /* the call has been answered already */
    }
    r.kind = (uint16_t)kind;
    r.req = a->req;
    r.code = code;
    if (text != NULL) {
        r.text = text;
        r.text_len = (uint32_t)strlen(text);
    }
    send_note(n, a->address, a->from, &r);
}

/* ---- asking ---- */

static void wait_for_reply(struct node *n, struct call *call)
{
    call->next = n->ask.calls;
    n->ask.calls = call;
}

static struct call *find_call(struct node *n, uint64_t req)
{
    for (struct call **p = &n->ask.calls; *p != NULL; p = &(*p)->next) {
        if ((*p)->req == req) {
            struct call *c = *p;

            *p = c->next;
            return c;
        }
    }
    return NULL;
}

static void ask_leader(struct node *n, struct call *call, struct note *note)
{
    const char *address;
    raft_id leader = node_leader(n, &address);

    if (n->state == NODE_FAILED) {
        call_answer(call, n->failure.code, n->failure.text, 0, NULL);
        return;
    }
    if (n->stopping) {
        call_answer(call, node_is_ending(n) ? DUST_CLOSED : DUST_AGAIN, "this member is shutting down", 0, NULL);
        return;
    }
    if (leader == 0 || leader == n->self.id) {
        call_answer(call, DUST_NOLEADER, "no leader is known: is a majority of the cluster up and reachable?", 0, NULL);
        return;
    }
    call->req = ++n->ask.last_req;
    note->req = call->req;
    wait_for_reply(n, call);
    send_note(n, address, leader, note);
}

static void change_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct asker a = {.call = call};
    struct note note = {.kind = NOTE_CHANGE, .num = {call->arg[0], call->arg[1]}};

    if (node_is_leader(n)) {
        change_lead(n, &a, (int)call->arg[0], call->arg[1]);
    } else {
        ask_leader(n, call, &note);
    }
}

/* Ask until there is an answer other than "not now", or time is up. */
static int ask(struct node *n, void (*run)(struct node *, struct job *), uint64_t a0, uint64_t a1, uint64_t *result,
    uint32_t timeout_ms, struct err *e)
{
    uint64_t until = clock_ms() + timeout_ms;
    struct err last;
    int rv;

    for (;;) {
        uint64_t now = clock_ms();
        uint32_t left = now < until ? (uint32_t)(until - now) : 1;
        struct call_result r;

        rv = node_call(n, run, a0, a1, left < ASK_REPEAT_MS ? left : ASK_REPEAT_MS, &r, &last);
        if (rv == DUST_OK && result != NULL) {
            *result = r.num;
        }
        if ((rv != DUST_AGAIN && rv != DUST_NOLEADER) || clock_ms() >= until) {
            break;
        }
        /* A leader may be elected any moment: look again when something has been applied, or a little later. */
        store_wait_applied(n->db->store, store_applied(n->db->store) + 1, 50);
    }
    if (rv != DUST_OK && e != NULL) {
        *e = last;
    }
    return rv;
}

int node_change(struct node *n, enum node_change what, uint64_t id, uint32_t timeout_ms, struct err *e)
{
    return ask(n, change_run, (uint64_t)what, id, NULL, timeout_ms, e);
}

static void hand_over_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct asker a = {.call = call};

    if (node_is_leader(n)) {
        change_lead(n, &a, CHANGE_TRANSFER, 0);
    } else {
        call_answer(call, DUST_OK, NULL, 0, NULL);
    }
}

void node_hand_over(struct node *n, uint32_t timeout_ms)
{
    ask(n, hand_over_run, 0, 0, NULL, timeout_ms, NULL);
}

int node_catch_up(struct node *n, uint32_t timeout_ms, struct err *e)
{
    uint64_t until = clock_ms() + timeout_ms, index, now;
    int rv = ask(n, read_run, 0, 0, &index, timeout_ms, e);

    if (rv == DUST_AGAIN) {
        return err_set(e, DUST_NOLEADER, "no leader could confirm the read within %u ms", timeout_ms);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    now = clock_ms();
    if (store_wait_applied(n->db->store, index, now < until ? (uint32_t)(until - now) : 1) != DUST_OK) {
        return err_set(e, DUST_BUSY, "this member has not caught up with the cluster within %u ms", timeout_ms);
    }
    database_caught_up(n->db);
    return DUST_OK;
}

/* ---- messages, time, the end ---- */

void ask_reply_received(struct node *n, const struct note *note)
{
    struct call *call = find_call(n, note->req);
    char text[ERR_TEXT_MAX];

    if (call != NULL) {
        note_text(note, text, sizeof text);
        call_answer(call, note->code, text[0] != '\0' ? text : NULL, note->num[0], NULL);
    }
}

void ask_tick(struct node *n)
{
    uint64_t now = clock_ms();

    for (struct call **p = &n->ask.calls; *p != NULL;) {
        struct call *call = *p;

        if (now >= call->deadline_ms) {
            *p = call->next;
            call_answer(call, DUST_NOLEADER, "the leader did not answer in time", 0, NULL);
        } else {
            p = &call->next;
        }
    }
}

void ask_fail(struct node *n, int code, const char *text)
{
    struct call *c = n->ask.calls, *next;

    n->ask.calls = NULL;
    for (; c != NULL; c = next) {
        next = c->next;
        call_answer(c, code, text, 0, NULL);
    }
}
