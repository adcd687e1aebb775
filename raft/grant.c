/* The write turn between members: granted by the leader to one member at a time, in slices.
 *
 * It is for liveness only: it keeps members from building on the same parent at the same time. Nothing breaks when it
 * is lost, late or granted twice: what does not fit the log is void (DESIGN.md, section 2, rules 3 and 4).
 *
 * Two messages, each complete in itself, so that losing or repeating one does no harm:
 *
 *   TURN_STATE  leader to member, when something changes for it and every BEACON_MS:
 *               term; num0 holder; num1 number of its grant; num2 bit 0: the leader takes transactions, bit 1: the
 *               turn is recalled; num3 commit index; num4 the member's own clock, as its last TURN_WISH told it; num5
 *               and id1 index and version of the leader's last entry that took effect; num6 its clock; num7 so long ago
 *               it knew a majority in its term; id0 the leader's tail; data, every BEACON_MS: the roster
 *   TURN_WISH   member to leader, when something changes and in answer to each TURN_STATE:
 *               term; num0 wants the turn; num1 number of the grant it holds (0 none); num2 transactions in flight
 *               or being made; num3 number of a grant given back; num4 its clock; num5 the leader's clock, as the last
 *               TURN_STATE of this term told it; id0 its own head
 *
 * Leader:   free ──first who asked──▶ granted ──somebody else wants it, SLICE_MS over──▶ recalled ──given back──▶ free
 *                                        └───────────not heard from for an election timeout──────────────────▶ free
 * Member:   none ──TURN_STATE names it──▶ offered ──head is the leader's tail──▶ held (gate open)
 *                                            held ──recalled: gate shut──▶ the local holder has passed it on ──▶ none
 *
 * What was given back counts only when the leader has proposed all that its member had staged (its tail is the
 * member's head). A large transaction may be on its way for long: as long as parts of it come, or its member says that it
 * has something in flight, the next one waits, lest that one's transaction take its place. What comes no more for an
 * election timeout (for ten, if its member is alive and says that it has it) is given up.
 *
 * A new leader first gathers: it grants nothing until every member it can reach has said what it has in flight, and
 * then begins with the member that has something, so that a change of leader is a pause and not an error.
 *
 * With nobody asking, the leader's own member holds the turn. */
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"

#define FLAG_READY 1u
#define FLAG_RECALLED 2u
#define STAGED_PATIENCE 10u /* election timeouts */

void grant_poke(struct node *n)
{
    node_wake(n); /* grant_look runs before the loop sleeps again */
}

/* ---- the member's side ---- */

static void local_turn(struct node *n, bool *wants, unsigned *active, bool *held)
{
    unsigned waiting;

    turn_state(&n->db->turn, &waiting, held);
    *wants = waiting != 0;
    *active = atomic_load(&n->submit.count) + *held;
}

static void wish_received(struct node *n, raft_id from, const struct note *note);

static uint64_t echo_of(const struct node *n, raft_id id)
{
    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (n->grant.wish[i].id == id) {
            return n->grant.wish[i].echo_ms;
        }
    }
    return 0;
}

static void send_wish(struct node *n, uint64_t given_back)
{
    struct grant *g = &n->grant;
    struct note w = {.kind = NOTE_TURN_WISH, .term = n->raft.current_term};
    struct head_info head;
    const char *address;
    raft_id leader = node_leader(n, &address);
    unsigned active;
    bool wants, held;

    if (leader == 0) {
        return;
    }
    local_turn(n, &wants, &active, &held);
    store_head(n->db->store, &head);
    w.num[0] = wants;
    w.num[1] = g->number;
    w.num[2] = active;
    w.num[3] = given_back;
    w.num[4] = clock_ms();
    w.num[5] = g->leader_clock_ms;
    w.id[0] = head.id;
    g->told_want = wants;
    if (leader == n->self.id) {
        wish_received(n, leader, &w);
    } else {
        send_note(n, address, leader, &w);
    }
}

static void try_open(struct node *n)
{
    struct grant *g = &n->grant;
    struct head_info agreed, head;

    if (g->offered == 0 || g->recalled) {
        return;
    }
    store_agreed(n->db->store, &agreed);
    store_head(n->db->store, &head);
    if (vid_equal(&agreed.id, &g->base) || vid_equal(&head.id, &g->base)) {
        g->number = g->offered;
        g->offered = 0;
        turn_open(&n->db->turn);
        send_wish(n, 0);
    }
}

static void try_give_back(struct node *n)
{
    struct grant *g = &n->grant;
    uint64_t number = g->number != 0 ? g->number : g->offered;
    unsigned waiting;
    bool held;

    if (!g->recalled || number == 0) {
        return;
    }
    turn_state(&n->db->turn, &waiting, &held);
    if (!held) {
        g->number = g->offered = 0;
        g->recalled = false;
        send_wish(n, number);
    }
}

static void lose(struct node *n)
{
    turn_shut(&n->db->turn);
    n->grant.number = n->grant.offered = 0;
    n->grant.recalled = false;
}

/* How long ago, at most, a majority of the voters was in this leader's term: by its own clock, which they echo. When their
 * messages arrived tells nothing: they may have waited in a socket. */
uint64_t grant_majority_age_ms(const struct node *n)
{
    const struct raft_configuration *conf = &n->raft.configuration;
    uint64_t now = clock_ms(), when[MAX_MEMBERS]; /* latest first; 0: not known */
    unsigned voters = 0;

    for (unsigned i = 0; i < conf->n && voters < MAX_MEMBERS; i++) {
        if (conf->servers[i].role == RAFT_VOTER) {
            uint64_t echo = conf->servers[i].id == n->self.id ? now : echo_of(n, conf->servers[i].id);
            unsigned at = voters++;

            for (; at > 0 && when[at - 1] < echo; at--) {
                when[at] = when[at - 1];
            }
            when[at] = echo;
        }
    }
    return voters != 0 && when[voters / 2] <= now ? now - when[voters / 2] : now;
}

/* Is all up to this entry in the database? While something is wrong libraft goes on, and entries are passed over. */
static bool has_applied(const struct node *n, raft_index index)
{
    return n->raft.last_applied >= index && n->state != NODE_FAILED && !n->fsm.paused && !n->fsm.stuck;
}

/* The leader says that `commit` is committed, at some moment after our clock showed `echo`; and that it was the leader
 * still, as far as it knows for certain, `age` before that. What others may have agreed on since without it, it cannot
 * know. Once that is applied here, this member is as fresh as it was then. When the message arrived tells nothing. */
static void heard(struct node *n, raft_index commit, uint64_t echo, uint64_t age)
{
    struct grant *g = &n->grant;
    uint64_t then = echo > age ? echo - age : 0;

    if (g->told_ms == 0 && then != 0 && echo <= clock_ms()) {
        g->told_ms = then;
        g->told_commit = commit;
    }
    grant_applied(n);
}

void grant_applied(struct node *n)
{
    struct grant *g = &n->grant;

    if (g->told_ms == 0 || !has_applied(n, g->told_commit)) {
        return;
    }
    if (g->told_ms > atomic_load(&g->fresh_ms)) {
        atomic_store(&g->fresh_ms, g->told_ms);
    }
    if (g->told_ms >= n->started_ms && !atomic_load(&n->db->caught_up)) {
        database_caught_up(n->db);
        store_wake(n->db->store, false);
    }
    g->told_ms = 0;
}

static void state_received(struct node *n, const struct note *note)
{
    struct grant *g = &n->grant;
    bool ready = (note->num[2] & FLAG_READY) != 0, was_ready = g->leader_ready;
    uint64_t number = note->num[1];
    const struct roster_line *self;

    g->leader_ready = ready;
    g->leader_clock_ms = note->num[6];
    if (ready) { /* else it does not know yet what was committed before its term */
        heard(n, note->num[3], note->num[4], note->num[7]);
    }
    if (roster_decode(&g->roster, note->data, note->data_len, node_now(n)) && !node_is_leader(n)) {
        roll_roster(n, &g->roster);
    }
    change_diverged(n, note->num[5], &note->id[1]);
    self = roster_find(&g->roster, n->self.id);
    if (note->data_len != 0 && self != NULL && !node_is_leader(n) &&
        self->match_index > inside_last_index(&n->raft)) {
        change_forgotten(n, self->match_index);
        return;
    }
    if (note->num[0] == n->self.id) {
        if (number != g->number) {
            if (number != g->offered) {
                lose(n);
            }
            g->recalled = g->recalled && number == g->offered;
            g->offered = number;
            g->base = note->id[0];
        }
        if ((note->num[2] & FLAG_RECALLED) != 0) {
            g->recalled = true;
            turn_shut(&n->db->turn);
        }
    } else if (g->number != 0 || g->offered != 0) {
        lose(n);
    }
    if (ready && !was_ready) {
        submit_again(n);
    }
    try_open(n);
    try_give_back(n);
}

void grant_state(struct node *n, const struct wire_head *from, const struct note *note)
{
    if (!n->running || from->from != node_leader(n, NULL) || note->term != n->raft.current_term) {
        return;
    }
    state_received(n, note);
    send_wish(n, 0);
}

/* ---- the leader's side ---- */

static struct wish *wish_of(struct node *n, raft_id id)
{
    struct wish *unused = NULL;

    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        struct wish *w = &n->grant.wish[i];

        if (w->id == id) {
            return w;
        }
        if (unused == NULL && !node_knows(n, w->id)) {
            unused = w;
        }
    }
    if (unused != NULL) {
        *unused = (struct wish){.id = id};
    }
    return unused;
}

static void send_state(struct node *n, raft_id id, const char *address, const uint8_t *roster, size_t roster_len)
{
    struct grant *g = &n->grant;
    const struct wish *w = wish_of(n, id);
    struct note s = {.kind = NOTE_TURN_STATE, .term = n->raft.current_term};
    struct head_info agreed;

    s.num[0] = g->holder;
    s.num[1] = g->last_number;
    s.num[2] = (n->submit.ready ? FLAG_READY : 0) | (g->recalling ? FLAG_RECALLED : 0);
    s.num[3] = n->raft.commit_index;
    s.num[4] = w != NULL ? w->clock_ms : 0;
    s.id[0] = n->submit.tail;
    store_agreed(n->db->store, &agreed);
    s.num[5] = agreed.index;
    s.num[6] = clock_ms();
    s.num[7] = grant_majority_age_ms(n);
    s.id[1] = agreed.id;
    s.data = roster;
    s.data_len = (uint32_t)roster_len;
    if (id == n->self.id) {
        state_received(n, &s);
    } else {
        send_note(n, address, id, &s);
    }
}

static void send_state_to(struct node *n, raft_id id)
{
    const struct raft_server *s = inside_server(&n->raft, id);

    if (s != NULL) {
        send_state(n, id, s->address, NULL, 0);
    }
}

static size_t write_roster(struct node *n, uint8_t *out)
{
    const struct raft_configuration *conf = &n->raft.configuration;
    struct roster_line line[ROSTER_MAX];
    unsigned count = 0;

    for (unsigned i = 0; i < conf->n && count < ROSTER_MAX; i++) {
        bool self = conf->servers[i].id == n->self.id;

        line[count++] = (struct roster_line){
            .id = conf->servers[i].id,
            .match_index = self ? n->raft.last_stored : inside_match(&n->raft, i),
            .heard_ms = self ? 0 : node_last_heard_ms(n, conf->servers[i].address),
            .boot = self ? n->boot : starts_known(&n->starts, conf->servers[i].id),
        };
    }
    roster_encode(line, count, out);
    return (size_t)count * ROSTER_LINE_SIZE;
}

static void send_state_to_all(struct node *n)
{
    uint8_t roster[ROSTER_MAX * ROSTER_LINE_SIZE];
    size_t len = write_roster(n, roster);

    n->grant.sent_ms = node_now(n);
    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        const struct raft_server *s = &n->raft.configuration.servers[i];

        if (s->role != RAFT_SPARE) {
            send_state(n, s->id, s->address, roster, len);
        }
    }
}

static void grant_to(struct node *n, raft_id id)
{
    struct grant *g = &n->grant;
    struct wish *w = wish_of(n, id);

    g->holder = id;
    g->last_number++;
    g->granted_ms = node_now(n);
    g->recalling = false;
    g->released = false;
    if (w != NULL) {
        w->held = 0;
        w->wants = false; /* it has to ask again, behind those who wait now */
        w->active = 0;
        w->heard_ms = g->granted_ms;
    }
    send_state_to(n, id);
}

/* Has every member that can be reached said what it has in flight? */
static bool gathered(struct node *n)
{
    uint64_t now = node_now(n), since = n->grant.gather_until_ms - GATHER_MS;

    if (now >= n->grant.gather_until_ms) {
        return true;
    }
    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        const struct raft_server *s = &n->raft.configuration.servers[i];
        struct wish *w = wish_of(n, s->id);

        if (s->id == n->self.id || s->role == RAFT_SPARE || (w != NULL && w->reported)) {
            continue;
        }
        if (now - since < 150 || n->raft.leader_state.progress[i].recent_recv) {
            return false;
        }
    }
    return true;
}

/* Only a member that can still be heard is worth a grant. */
static bool alive(const struct node *n, const struct wish *w)
{
    return w->id != 0 && (w->id == n->self.id || node_now(n) - w->heard_ms <= n->raft.election_timeout);
}

/* Whoever has something in flight; else whoever asked first; else ourselves. */
static raft_id next_holder(struct node *n)
{
    struct wish *first = NULL;

    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        struct wish *w = &n->grant.wish[i];

        if (!alive(n, w)) {
            continue;
        }
        if (n->grant.gather_until_ms != 0 && w->active != 0) {
            return w->id;
        }
        if (w->wants && (first == NULL || w->since < first->since)) {
            first = w;
        }
    }
    return first != NULL ? first->id : n->self.id;
}

static bool somebody_else_wants(struct node *n)
{
    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        const struct wish *w = &n->grant.wish[i];

        if (alive(n, w) && w->id != n->grant.holder && w->wants) {
            return true;
        }
    }
    return false;
}

static bool holder_is_gone(struct node *n)
{
    const struct wish *w = wish_of(n, n->grant.holder);

    return w == NULL || !alive(n, w);
}

/* The holder has given the turn back, and what it has staged is not proposed yet: when did something of it last come? */
static uint64_t last_moved(const struct node *n)
{
    return n->submit.taken_ms > n->grant.recalled_ms ? n->submit.taken_ms : n->grant.recalled_ms;
}

/* How long to wait for more of it. Not to say that it is coming is to say that it is lost. */
static uint64_t patience(struct node *n)
{
    const struct wish *w = wish_of(n, n->grant.holder);

    return n->raft.election_timeout * (w != NULL && alive(n, w) && w->active != 0 ? STAGED_PATIENCE : 1);
}

static void decide(struct node *n)
{
    struct grant *g = &n->grant;
    uint64_t now = node_now(n);

    if (!node_is_leader(n) || !n->submit.ready) {
        return;
    }
    if (g->gather_until_ms != 0 && !gathered(n)) {
        return;
    }
    if (g->holder != 0) {
        if (g->released && (vid_equal(&g->release_tail, &n->submit.tail) || now - last_moved(n) > patience(n))) {
            g->holder = 0;
        } else if (holder_is_gone(n)) {
            g->holder = 0;
        }
    }
    if (g->holder == 0) {
        raft_id next = next_holder(n);

        g->gather_until_ms = 0;
        grant_to(n, next);
    } else if (!g->recalling && somebody_else_wants(n) && now - g->granted_ms >= SLICE_MS) {
        g->recalling = true;
        g->recalled_ms = now;
        send_state_to(n, g->holder);
    }
}

static void wish_received(struct node *n, raft_id from, const struct note *note)
{
    struct grant *g = &n->grant;
    struct wish *w = wish_of(n, from);

    if (w == NULL) {
        return;
    }
    w->reported = true;
    w->heard_ms = node_now(n);
    w->clock_ms = note->num[4];
    w->echo_ms = note->num[5];
    w->active = (unsigned)note->num[2];
    w->held = note->num[1];
    if (note->num[0] != 0 && !w->wants) {
        w->since = ++g->order;
    }
    w->wants = note->num[0] != 0;
    if (note->num[3] != 0 && note->num[3] == g->last_number && from == g->holder) {
        g->released = true;
        g->recalled_ms = node_now(n);
        g->release_tail = note->id[0];
    }
}

void grant_wish(struct node *n, raft_id from, const struct note *note)
{
    if (node_is_leader(n) && note->term == n->raft.current_term) {
        wish_received(n, from, note);
        decide(n);
    }
}

void grant_ready(struct node *n)
{
    struct grant *g = &n->grant;

    g->holder = 0;
    g->recalling = g->released = false;
    g->gather_until_ms = node_now(n) + GATHER_MS;
    memset(g->wish, 0, sizeof g->wish);
    if (g->last_number < ((uint64_t)n->raft.current_term << 32)) {
        g->last_number = (uint64_t)n->raft.current_term << 32; /* never a number of an earlier term's */
    }
    send_state_to_all(n);
    send_wish(n, 0);
    decide(n);
}

void grant_leader_changed(struct node *n)
{
    struct grant *g = &n->grant;

    if (g->term != n->raft.current_term || !node_is_leader(n)) {
        lose(n);
        g->leader_ready = false;
        g->leader_clock_ms = 0;
        g->holder = 0;
        g->term = n->raft.current_term;
    }
}

uint64_t grant_awaited(struct node *n)
{
    struct grant *g = &n->grant;
    struct wish *w;

    if (g->holder == 0 || g->holder == n->self.id) {
        return 0;
    }
    w = wish_of(n, g->holder);
    return w != NULL && w->held != g->last_number ? g->holder : 0;
}

/* Before the loop sleeps: has something changed for the turn? */
void grant_look(struct node *n)
{
    struct grant *g = &n->grant;
    unsigned active;
    bool wants, held;

    try_open(n);
    try_give_back(n);
    if (g->number == 0 || node_is_leader(n)) {
        local_turn(n, &wants, &active, &held);
        if (wants && !g->told_want && g->leader_ready) {
            send_wish(n, 0);
        }
    }
    decide(n);
}

/* While this loop stood still it could hear nobody: that is no sign of anybody's absence. */
static void forgive_silence(struct node *n)
{
    struct grant *g = &n->grant;
    uint64_t now = node_now(n), late = g->ticked_ms != 0 ? now - g->ticked_ms : 0;

    g->ticked_ms = now;
    for (unsigned i = 0; late > 4 * TICK_MS && i < MAX_MEMBERS; i++) {
        g->wish[i].heard_ms = g->wish[i].heard_ms + late < now ? g->wish[i].heard_ms + late : now;
    }
}

void grant_tick(struct node *n)
{
    struct grant *g = &n->grant;

    forgive_silence(n);
    turn_expire(&n->db->turn, g->recalled);
    if (node_is_leader(n)) {
        if (n->submit.ready) {
            send_wish(n, 0); /* keep our own wish up to date */
        }
        if (node_now(n) - g->sent_ms >= BEACON_MS) {
            send_state_to_all(n);
        }
        decide(n);
    }
}
