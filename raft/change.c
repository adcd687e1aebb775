/* Changes of the cluster, and questions that only the leader can answer.
 *
 * Both are asked by an SQL thread (struct call) of this member, or by another member in a message; the leader answers
 * either kind of asker. libraft makes one change of configuration at a time; a second is told DUST_AGAIN and asked
 * again by whoever wants it, until its time is up.
 *
 * Joining. The joiner asks any member it knows (NOTE_JOIN); one that is not the leader passes the question on, and the
 * leader answers the joiner. The leader gives it an id never used before (the index of the log at that moment plus
 * one), adds it, and lets it follow as a standby; the joiner writes its `member` file, starts an empty log, receives
 * the pages (transfer.c) and then the log, and when it has caught up asks to be made a voter, if it is to be one. Every
 * step can be repeated: a joiner that asks again, with the same nonce, gets the same id.
 *
 *   joiner: asking ──JOIN_REPLY──▶ empty standby ──pages and log──▶ caught up ──CHANGE promote──▶ voter: up
 *
 * "Which index is committed by now?" is answered by a barrier through the log: it is committed only if a majority still
 * follows this leader. All who ask while a barrier is on its way share the next one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"

#define CHANGE_JOIN 100
#define JOIN_REPEAT_MS 300
#define PROMOTE_REPEAT_MS 200

/* ---- answering ---- */

static void answer(struct node *n, struct asker *a, int kind, const struct note *with, int code, const char *text)
{
    struct note r = with != NULL ? *with : (struct note){0};

    if (a->call != NULL) {
        call_answer(a->call, code, text, r.num[0], NULL);
        a->call = NULL;
        return;
    }
    r.kind = (uint16_t)kind;
    r.req = a->req;
    r.code = code;
    if (text != NULL) {
        r.text = text;
        r.text_len = (uint32_t)strlen(text);
    }
    io_note(n, a->address, a->from, &r);
}

static int code_of(int raft_code)
{
    switch (raft_code) {
    case 0:
        return DUST_OK;
    case RAFT_NOTLEADER:
    case RAFT_LEADERSHIPLOST:
    case RAFT_CANCELED:
    case RAFT_SHUTDOWN:
        return DUST_AGAIN;
    case RAFT_CANTCHANGE:
    case RAFT_BUSY:
        return DUST_AGAIN;
    case RAFT_NOTFOUND:
    case RAFT_BADID:
        return DUST_NOTFOUND;
    case RAFT_DUPLICATEID:
    case RAFT_DUPLICATEADDRESS:
        return DUST_EXISTS;
    case RAFT_BADROLE:
        return DUST_MISUSE;
    case RAFT_NOMEM:
        return DUST_NOMEM;
    default:
        return DUST_IO;
    }
}

/* ---- the leader: changes ---- */

static void reply_joined(struct node *n, struct asker *a, raft_id id)
{
    struct note r = {.num = {id, n->db->page_size, n->raft.commit_index}, .data = n->self.cluster.b, .data_len = 16};

    answer(n, a, NOTE_JOIN_REPLY, &r, DUST_OK, NULL);
}

static void change_over(struct node *n, int code, const char *text)
{
    struct change *c = &n->change;

    if (!c->busy) {
        return; /* answered already: this member is stopping */
    }
    c->busy = false;
    if (c->what == CHANGE_JOIN) {
        if (code == DUST_OK) {
            unsigned i = c->n_joined++ % MAX_MEMBERS;

            memcpy(c->joined[i].address, c->joiner, sizeof c->joiner);
            c->joined[i].boot = c->joiner_boot;
            c->joined[i].id = c->subject;
            reply_joined(n, &c->asker, c->subject);
        } else {
            answer(n, &c->asker, NOTE_JOIN_REPLY, NULL, code, text);
        }
    } else {
        answer(n, &c->asker, NOTE_CHANGE_REPLY, NULL, code, text);
    }
}

static void on_change(struct raft_change *req, int status)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    change_over(n, code_of(status), status != 0 ? raft_strerror(status) : NULL);
}

static void on_added(struct raft_change *req, int status)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    if (status == 0) {
        status = raft_assign(&n->raft, req, n->change.subject, RAFT_STANDBY, on_change);
        if (status == 0) {
            return;
        }
    }
    change_over(n, code_of(status), raft_errmsg(&n->raft));
}

static void on_transfer(struct raft_transfer *req)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    if (node_leader(n, NULL) == n->change.subject || (n->change.subject == 0 && !node_is_leader(n))) {
        change_over(n, DUST_OK, NULL);
    } else if (n->change.what == CHANGE_REMOVE) {
        change_over(n, DUST_AGAIN, "leadership is being handed over first");
    } else {
        change_over(n, DUST_BUSY, "the member did not take over within the election timeout; it may be down or behind");
    }
}

static unsigned voters(const struct node *n)
{
    unsigned count = 0;

    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        count += n->raft.configuration.servers[i].role == RAFT_VOTER;
    }
    return count;
}

static bool begin(struct node *n, struct asker *a, int what, raft_id subject)
{
    struct change *c = &n->change;

    if (c->busy || n->raft.configuration_uncommitted_index != 0 || !n->submit.ready) {
        answer(n, a, what == CHANGE_JOIN ? NOTE_JOIN_REPLY : NOTE_CHANGE_REPLY, NULL, DUST_AGAIN,
            "another change of the cluster is under way");
        return false;
    }
    c->busy = true;
    c->what = what;
    c->subject = subject;
    c->asker = *a;
    c->req.data = n;
    c->transfer.data = n;
    return true;
}

static void leader_change(struct node *n, struct asker *a, int what, raft_id id)
{
    struct change *c = &n->change;
    const struct raft_server *s = inside_server(&n->raft, id);
    char text[128];
    int rv = 0;

    if (what == CHANGE_TRANSFER && id == 0) { /* to anybody */
        if (voters(n) < 2) {
            answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_OK, NULL);
        } else if (begin(n, a, what, 0)) {
            rv = raft_transfer(&n->raft, &c->transfer, 0, on_transfer);
            if (rv != 0) {
                change_over(n, code_of(rv), raft_errmsg(&n->raft));
            }
        }
        return;
    }
    if (s == NULL) {
        snprintf(text, sizeof text, "there is no member %llu in this cluster", (unsigned long long)id);
        answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_NOTFOUND, text);
        return;
    }
    if ((what == CHANGE_PROMOTE && s->role == RAFT_VOTER) || (what == CHANGE_DEMOTE && s->role == RAFT_STANDBY) ||
        (what == CHANGE_TRANSFER && id == n->self.id)) {
        answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_OK, NULL);
        return;
    }
    if ((what == CHANGE_REMOVE || what == CHANGE_DEMOTE) && s->role == RAFT_VOTER && voters(n) == 1) {
        answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_REFUSED,
            "this is the only voter of the cluster: without it nothing can be agreed on");
        return;
    }
    if (what == CHANGE_TRANSFER && s->role != RAFT_VOTER) {
        answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_REFUSED, "only a voter can lead: promote the member first");
        return;
    }
    if (!begin(n, a, what, id)) {
        return;
    }
    switch (what) {
    case CHANGE_REMOVE:
    case CHANGE_DEMOTE:
        if (id == n->self.id) {
            c->what = CHANGE_REMOVE;
            rv = raft_transfer(&n->raft, &c->transfer, 0, on_transfer);
        } else if (what == CHANGE_REMOVE) {
            rv = raft_remove(&n->raft, &c->req, id, on_change);
        } else {
            rv = raft_assign(&n->raft, &c->req, id, RAFT_STANDBY, on_change);
        }
        break;
    case CHANGE_PROMOTE:
        rv = raft_assign(&n->raft, &c->req, id, RAFT_VOTER, on_change);
        break;
    case CHANGE_TRANSFER:
        rv = raft_transfer(&n->raft, &c->transfer, id, on_transfer);
        break;
    default:
        rv = RAFT_INVALID;
    }
    if (rv != 0) {
        change_over(n, code_of(rv), raft_errmsg(&n->raft));
    }
}

static void leader_join(struct node *n, struct asker *a, uint64_t boot)
{
    struct change *c = &n->change;
    char text[200];
    raft_id id;
    int rv;

    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (c->joined[i].id != 0 && c->joined[i].boot == boot && strcmp(c->joined[i].address, a->address) == 0 &&
            inside_server(&n->raft, c->joined[i].id) != NULL) {
            reply_joined(n, a, c->joined[i].id);
            return;
        }
    }
    if (c->busy && c->what == CHANGE_JOIN && c->joiner_boot == boot) {
        return; /* asked twice: the answer is on its way */
    }
    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        if (strcmp(n->raft.configuration.servers[i].address, a->address) == 0) {
            snprintf(text, sizeof text,
                "the address %s belongs to member %llu of this cluster: remove that one first, or use another address",
                a->address, (unsigned long long)n->raft.configuration.servers[i].id);
            answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_EXISTS, text);
            return;
        }
    }
    if (n->raft.configuration.n >= MAX_MEMBERS) {
        answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_TOOBIG, "this cluster has 32 members, which is the limit");
        return;
    }
    if (inside_snapshot_index(&n->raft) == 0) {
        answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_AGAIN, "the cluster is just being started");
        return;
    }
    id = raft_last_index(&n->raft) + 1;
    if (!begin(n, a, CHANGE_JOIN, id)) {
        return;
    }
    memcpy(c->joiner, a->address, sizeof c->joiner);
    c->joiner_boot = boot;
    rv = raft_add(&n->raft, &c->req, id, a->address, on_added);
    if (rv != 0) {
        change_over(n, code_of(rv), raft_errmsg(&n->raft));
    }
}

/* ---- the leader: which index is committed ---- */

static void index_begin(struct node *n);

static void on_index_barrier(struct raft_barrier *req, int status)
{
    struct node *n = req->data;
    struct index_round *r = &n->change.asked;
    struct note reply = {.num = {n->raft.last_applied}};

    free(req);
    for (unsigned i = 0; i < r->n; i++) {
        answer(n, &r->askers[i], NOTE_INDEX_REPLY, &reply, status == 0 ? DUST_OK : DUST_AGAIN, NULL);
    }
    r->n = 0;
    if (!n->stopping) {
        index_begin(n);
    }
}

static void index_begin(struct node *n)
{
    struct change *c = &n->change;
    struct raft_barrier *req;
    struct index_round swap;

    if (c->asked.n != 0 || c->asking.n == 0) {
        return;
    }
    swap = c->asked;
    c->asked = c->asking;
    c->asking = swap;
    req = calloc(1, sizeof *req);
    if (req != NULL) {
        req->data = n;
        if (raft_barrier(&n->raft, req, on_index_barrier) == 0) {
            return;
        }
        free(req);
    }
    for (unsigned i = 0; i < c->asked.n; i++) {
        answer(n, &c->asked.askers[i], NOTE_INDEX_REPLY, NULL, DUST_AGAIN, NULL);
    }
    c->asked.n = 0;
}

static void leader_index(struct node *n, struct asker *a)
{
    struct index_round *r = &n->change.asking;

    if (r->n == r->room) {
        unsigned more = r->room == 0 ? 16 : r->room * 2;
        struct asker *p = realloc(r->askers, more * sizeof *p);

        if (p == NULL) {
            answer(n, a, NOTE_INDEX_REPLY, NULL, DUST_NOMEM, NULL);
            return;
        }
        r->askers = p;
        r->room = more;
    }
    r->askers[r->n++] = *a;
    index_begin(n);
}

/* ---- asking ---- */

static void wait_for_reply(struct node *n, struct call *call)
{
    call->next = n->change.calls;
    n->change.calls = call;
}

static struct call *find_call(struct node *n, uint64_t req)
{
    for (struct call **p = &n->change.calls; *p != NULL; p = &(*p)->next) {
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
    call->req = ++n->change.last_req;
    note->req = call->req;
    wait_for_reply(n, call);
    io_note(n, address, leader, note);
}

static void change_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct asker a = {.call = call};
    struct note note = {.kind = NOTE_CHANGE, .num = {call->arg[0], call->arg[1]}};

    if (node_is_leader(n)) {
        leader_change(n, &a, (int)call->arg[0], call->arg[1]);
    } else {
        ask_leader(n, call, &note);
    }
}

static void index_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct asker a = {.call = call};
    struct note note = {.kind = NOTE_INDEX};

    if (node_is_leader(n)) {
        leader_index(n, &a);
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

        rv = node_call(n, run, a0, a1, left < 2000 ? left : 2000, &r, &last);
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
        leader_change(n, &a, CHANGE_TRANSFER, 0);
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
    int rv = ask(n, index_run, 0, 0, &index, timeout_ms, e);

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
    atomic_store(&n->db->caught_up, true);
    return DUST_OK;
}

/* ---- messages ---- */

static void join_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct asker a = {.from = 0, .req = note->req};
    const char *leader;

    if (note->text_len == 0 || note->text_len >= sizeof a.address || n->change.joining) {
        return;
    }
    (void)from;
    memcpy(a.address, note->text, note->text_len);
    if (!n->running) {
        return;
    }
    if (node_is_leader(n)) {
        leader_join(n, &a, note->num[0]);
        return;
    }
    if (note->num[2] < 3 && node_leader(n, &leader) != 0) {
        struct note relay = *note;

        relay.num[2]++;
        io_note(n, leader, node_leader(n, NULL), &relay);
        return;
    }
    answer(n, &a, NOTE_JOIN_REPLY, NULL, DUST_AGAIN, "that member knows no leader at the moment");
}

static void copy_text(const struct note *note, char *out, size_t size)
{
    size_t len = note->text_len < size - 1 ? note->text_len : size - 1;

    if (len != 0) {
        memcpy(out, note->text, len);
    }
    out[len] = '\0';
}

static void joined(struct node *n, const struct note *note)
{
    struct change *c = &n->change;
    char text[ERR_TEXT_MAX];
    struct err e;
    int rv = DUST_OK;

    if (!c->joining || n->running) {
        return;
    }
    if (note->code != DUST_OK) {
        copy_text(note, text, sizeof text);
        err_set(&c->join_err, note->code, "%s", text);
        if (note->code != DUST_AGAIN) {
            node_fail(n, &c->join_err);
        }
        return;
    }
    if (note->data_len != 16 || note->num[0] == 0 || note->num[1] < 512 || note->num[1] > 65536) {
        return;
    }
    memcpy(n->self.cluster.b, note->data, 16);
    n->self.id = note->num[0];
    n->self.page_size = (uint32_t)note->num[1];
    n->db->origin = n->self.id;
    n->db->page_size = n->self.page_size;
    c->join_index = note->num[2];
    rv = store_format(n->db->store, n->self.page_size, &(struct vid){{0}}, 0, 0, &e);
    if (rv == DUST_OK) {
        rv = member_save(n->db->dir, &n->self, &e);
    }
    if (rv == DUST_OK) {
        rv = node_begin_raft(n, &e);
    }
    if (rv != DUST_OK) {
        node_fail(n, &e);
        return;
    }
    c->promoting = !n->opt.standby;
    c->joined_ms = node_now(n);
}

/* Ask the next of the members we were told of; and once taken in, see whether we have arrived. */
void change_join_tick(struct node *n)
{
    struct change *c = &n->change;
    struct note note = {.kind = NOTE_JOIN, .num = {n->boot, n->opt.standby}, .text = n->address,
        .text_len = (uint32_t)strlen(n->address)};
    const struct raft_server *self;
    struct err e;

    if (c->joined_ms == 0 && n->ticks * TICK_MS > n->opt.join_timeout_ms) {
        err_set(&e, DUST_NOLEADER, "no member of the cluster took this one in within %u ms%s%s", n->opt.join_timeout_ms,
            c->join_err.text[0] != '\0' ? ": " : " (nobody answered at the addresses given)", c->join_err.text);
        node_fail(n, &e);
        return;
    }
    if (!n->running) {
        if (c->asked_ms == 0 || node_now(n) - c->asked_ms >= JOIN_REPEAT_MS) {
            c->asked_ms = node_now(n);
            io_note(n, n->opt.join[c->ask++ % n->opt.n_join].text, 0, &note);
        }
        return;
    }
    self = inside_server(&n->raft, n->self.id);
    if (self != NULL && n->raft.last_applied >= c->join_index && n->db->page_size != 0 &&
        (n->opt.standby || self->role == RAFT_VOTER) && n->grant.leader_ready) {
        c->joining = false;
        node_set_up(n);
    }
}

void change_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct asker a = {.from = from->from, .req = note->req};
    char text[ERR_TEXT_MAX];
    struct call *call;
    struct err e;

    snprintf(a.address, sizeof a.address, "%s", from->address);
    switch (note->kind) {
    case NOTE_JOIN:
        join_received(n, from, note);
        break;
    case NOTE_JOIN_REPLY:
        joined(n, note);
        break;
    case NOTE_CHANGE:
        if (node_is_leader(n)) {
            leader_change(n, &a, (int)note->num[0], note->num[1]);
        } else {
            answer(n, &a, NOTE_CHANGE_REPLY, NULL, DUST_AGAIN, "not the leader any more");
        }
        break;
    case NOTE_INDEX:
        if (node_is_leader(n)) {
            leader_index(n, &a);
        } else {
            answer(n, &a, NOTE_INDEX_REPLY, NULL, DUST_AGAIN, "not the leader any more");
        }
        break;
    case NOTE_CHANGE_REPLY:
    case NOTE_INDEX_REPLY:
        call = find_call(n, note->req);
        if (call != NULL) {
            copy_text(note, text, sizeof text);
            call_answer(call, note->code, text[0] != '\0' ? text : NULL, note->num[0], NULL);
        }
        break;
    case NOTE_REMOVED:
        err_set(&e, DUST_REFUSED,
            "this member was removed from its cluster: its data is as of then; delete %s to have an ordinary database, "
            "or join again with an empty one",
            n->db->dir);
        if (from->from == node_leader(n, NULL) || node_leader(n, NULL) == 0) {
            node_fail(n, &e);
        }
        break;
    default:
        report(&n->db->report, DUST_VERSION, "a message of unknown kind %u from %s was ignored", note->kind,
            from->address);
    }
}

void change_tick(struct node *n)
{
    struct change *c = &n->change;
    uint64_t now = clock_ms();

    for (struct call **p = &c->calls; *p != NULL;) {
        struct call *call = *p;

        if (now >= call->deadline_ms) {
            *p = call->next;
            call_answer(call, DUST_NOLEADER, "the leader did not answer in time", 0, NULL);
        } else {
            p = &call->next;
        }
    }
    if (c->promoting && n->running && n->ticks % (PROMOTE_REPEAT_MS / TICK_MS) == 0) {
        const struct raft_server *self = inside_server(&n->raft, n->self.id);
        struct note note = {.kind = NOTE_CHANGE, .num = {CHANGE_PROMOTE, n->self.id}};
        const char *address;
        raft_id leader = node_leader(n, &address);

        if (self != NULL && self->role == RAFT_VOTER) {
            c->promoting = false;
        } else if (self != NULL && leader != 0 && n->raft.last_applied >= c->join_index) {
            io_note(n, address, leader, &note);
        }
    }
}

void change_fail_calls(struct node *n, int code, const char *text)
{
    struct call *c = n->change.calls, *next;

    if (n->change.busy && n->change.asker.call != NULL) {
        call_answer(n->change.asker.call, code, text, 0, NULL);
        n->change.asker.call = NULL;
    }
    n->change.busy = false;
    n->change.calls = NULL;
    for (; c != NULL; c = next) {
        next = c->next;
        call_answer(c, code, text, 0, NULL);
    }
}
