/* Joining, on both sides.
 *
 * The joiner asks any member it knows (NOTE_JOIN); one that is not the leader passes the question on, and the leader
 * answers the joiner. The leader gives it an id never used before (the index of the log at that moment plus one), adds
 * it, and lets it follow as a standby; the joiner writes its `member` file, starts an empty log, receives the pages
 * (transfer.c) and then the log, and when it has caught up asks to be made a voter, if it is to be one. Every step can
 * be repeated: a joiner that asks again, with the same nonce, gets the same id.
 *
 *   joiner: asking ──JOIN_REPLY──▶ empty standby ──pages and log──▶ caught up ──CHANGE promote──▶ voter: up
 *              │                                │ nothing has come for join_stall_ms
 *              └──join_timeout_ms, or a final───┴─▶ failed, and nothing is left behind
 *                 refusal
 *
 * A joiner whose process ends on the way, once it has its `member` file, is a member: it resumes as an empty standby, and
 * the file says whether it is still to ask to be made a voter, and from which index on. */
#include <stdio.h>
#include <string.h>

#include "raft/codes.h"
#include "raft/node_impl.h"

#define JOIN_REPEAT_MS 300
#define PROMOTE_REPEAT_MS 200

/* ---- the leader ---- */

static void reply_joined(struct node *n, struct asker *a, raft_id id)
{
    struct note r = {.num = {id, n->db->page_size, n->raft.commit_index}, .data = n->self.cluster.b, .data_len = 16};

    ask_answer(n, a, NOTE_JOIN_REPLY, &r, DUST_OK, NULL);
}

void join_over(struct node *n, int code, const char *text)
{
    struct join *j = &n->join;

    if (code == DUST_OK) {
        unsigned i = j->n_joined++ % MAX_MEMBERS;

        memcpy(j->joined[i].address, j->joiner, sizeof j->joiner);
        j->joined[i].boot = j->joiner_boot;
        j->joined[i].id = n->change.subject;
        reply_joined(n, &n->change.asker, n->change.subject);
    } else {
        ask_answer(n, &n->change.asker, NOTE_JOIN_REPLY, NULL, code, text);
    }
}

static void on_added(struct raft_change *req, int status)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    if (status == 0) {
        status = raft_assign(&n->raft, req, n->change.subject, RAFT_STANDBY, change_done);
        if (status == 0) {
            return;
        }
    }
    change_over(n, code_of_raft(status), raft_errmsg(&n->raft));
}

static void leader_join(struct node *n, struct asker *a, uint64_t boot)
{
    struct join *j = &n->join;
    char text[200];
    raft_id id;
    int rv;

    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (j->joined[i].id != 0 && j->joined[i].boot == boot && strcmp(j->joined[i].address, a->address) == 0 &&
            inside_server(&n->raft, j->joined[i].id) != NULL) {
            reply_joined(n, a, j->joined[i].id);
            return;
        }
    }
    if (n->change.busy && n->change.what == CHANGE_JOIN && j->joiner_boot == boot) {
        return; /* asked twice: the answer is on its way */
    }
    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        if (strcmp(n->raft.configuration.servers[i].address, a->address) == 0) {
            snprintf(text, sizeof text,
                "the address %s belongs to member %llu of this cluster: remove that one first, or use another address",
                a->address, (unsigned long long)n->raft.configuration.servers[i].id);
            ask_answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_EXISTS, text);
            return;
        }
    }
    if (n->raft.configuration.n >= MAX_MEMBERS) {
        ask_answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_TOOBIG, "this cluster has 32 members, which is the limit");
        return;
    }
    if (inside_snapshot_index(&n->raft) == 0) {
        ask_answer(n, a, NOTE_JOIN_REPLY, NULL, DUST_AGAIN, "the cluster is just being started");
        return;
    }
    id = raft_last_index(&n->raft) + 1;
    if (!change_begin(n, a, CHANGE_JOIN, id)) {
        return;
    }
    memcpy(j->joiner, a->address, sizeof j->joiner);
    j->joiner_boot = boot;
    rv = raft_add(&n->raft, &n->change.req, id, a->address, on_added);
    if (rv != 0) {
        change_over(n, code_of_raft(rv), raft_errmsg(&n->raft));
    }
}

/* ---- whoever is asked ---- */

void join_received(struct node *n, const struct note *note)
{
    struct asker a = {.from = 0, .req = note->req};
    struct address address;
    const char *leader;

    if (note->text_len == 0 || note->text_len >= sizeof a.address || n->join.joining) {
        return;
    }
    memcpy(a.address, note->text, note->text_len);
    if (!n->running || address_parse(a.address, &address, NULL) != DUST_OK || address.port == 0 ||
        strcmp(address.text, a.address) != 0 || (n->opt.keys.n == 0 && !address_is_loopback(&address))) {
        return; /* nobody to answer: a member asks with an address that it listens on */
    }
    if (node_is_leader(n)) {
        leader_join(n, &a, note->num[0]);
        return;
    }
    if (note->num[2] < 3 && node_leader(n, &leader) != 0) {
        struct note relay = *note;

        relay.num[2]++;
        send_note(n, leader, node_leader(n, NULL), &relay);
        return;
    }
    ask_answer(n, &a, NOTE_JOIN_REPLY, NULL, DUST_AGAIN, "that member knows no leader at the moment");
}

/* ---- the joiner ---- */

void join_reply_received(struct node *n, const struct note *note)
{
    struct join *j = &n->join;
    char text[ERR_TEXT_MAX];
    struct err e;
    int rv = DUST_OK;

    if (!j->joining || n->running || note->req != n->boot) {
        return; /* (an answer to an earlier try may have been under way: the member it names may be gone) */
    }
    if (note->code != DUST_OK) {
        note_text(note, text, sizeof text);
        err_set(&j->join_err, note->code, "%s", text);
        if (note->code != DUST_AGAIN) {
            node_fail(n, &j->join_err);
        }
        return;
    }
    if (note->data_len != 16 || note->num[0] == 0 || note->num[1] < 512 || note->num[1] > 65536 ||
        (note->num[1] & (note->num[1] - 1)) != 0) {
        return;
    }
    memcpy(n->self.cluster.b, note->data, 16);
    n->self.id = note->num[0];
    n->self.page_size = (uint32_t)note->num[1];
    n->db->origin = n->self.id;
    n->db->page_size = n->self.page_size;
    j->join_index = note->num[2];
    n->self.promotion = n->opt.standby ? 0 : j->join_index != 0 ? j->join_index : 1;
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
    j->joined_ms = node_now(n);
}

/* Taken in: is anything coming? That pages which have come are put into app.db takes as long as the disk does. */
static bool stalled(struct node *n)
{
    struct join *j = &n->join;
    raft_index log = n->raft.last_stored + n->raft.last_applied;
    uint32_t page = transfer_page(n);

    if (j->moved_ms == 0 || log > j->seen_log || page > j->seen_page) {
        j->moved_ms = node_now(n);
        j->seen_log = log > j->seen_log ? log : j->seen_log;
        j->seen_page = page > j->seen_page ? page : j->seen_page;
    }
    return !transfer_folding(n) && node_now(n) - j->moved_ms > n->opt.join_stall_ms;
}

/* Ask the next of the members we were told of; and once taken in, see whether we have arrived. */
void join_tick(struct node *n)
{
    struct join *j = &n->join;
    struct note note = {.kind = NOTE_JOIN, .req = n->boot, .num = {n->boot, n->opt.standby}, .text = n->address,
        .text_len = (uint32_t)strlen(n->address)};
    const struct raft_server *self;
    struct err e;

    if (j->joined_ms == 0 && n->ticks * TICK_MS > n->opt.join_timeout_ms) {
        err_set(&e, DUST_NOLEADER, "no member of the cluster took this one in within %u ms: %s", n->opt.join_timeout_ms,
            j->join_err.text[0] != '\0' ? j->join_err.text
            : n->opt.keys.n != 0 ? "nobody answered at the addresses given. Do they have the same key? (dust_status names it)"
                                 : "nobody answered at the addresses given. If the cluster has a key, this one needs it too: "
                                   "keyfile=FILE");
        node_fail(n, &e);
        return;
    }
    if (!n->running) {
        if (j->asked_ms == 0 || node_now(n) - j->asked_ms >= JOIN_REPEAT_MS) {
            j->asked_ms = node_now(n);
            send_note(n, n->opt.join[j->ask++ % n->opt.n_join].text, 0, &note);
        }
        return;
    }
    self = inside_server(&n->raft, n->self.id);
    if (self != NULL && n->raft.last_applied >= j->join_index && n->db->page_size != 0 &&
        (n->opt.standby || self->role == RAFT_VOTER) && n->grant.leader_ready) {
        j->joining = false;
        node_set_up(n);
    } else if (stalled(n)) {
        err_set(&e, DUST_NOLEADER,
            "this one was taken in as member %llu, but nothing of the database has come for %u ms: is the leader well, and "
            "is a majority up? Remove member %llu at another one, and join again",
            (unsigned long long)n->self.id, n->opt.join_stall_ms, (unsigned long long)n->self.id);
        j->joining = false;
        node_fail(n, &e);
    }
}

/* ---- to be a voter ---- */

/* It is a voter, or is to be none: the file says so before anything else may happen to its role. If it cannot be written,
 * this is tried again. */
static void promotion_over(struct node *n, enum member_role role)
{
    struct member self = n->self;

    self.promotion = 0;
    self.role = role;
    if (member_save(n->db->dir, &self, NULL) == DUST_OK) {
        n->self = self;
    }
}

/* Taken in, and to be a voter: ask for it until it is so, in this start of the member or in a later one. Once it has been
 * one it does not ask any more, so that it stays what it is made then. */
void join_promote_tick(struct node *n)
{
    const struct raft_server *self = inside_server(&n->raft, n->self.id);
    struct note note = {.kind = NOTE_CHANGE, .num = {CHANGE_PROMOTE, n->self.id, 1}};
    const char *address;
    raft_id leader;

    if (n->self.promotion == 0 || !n->running || n->ticks % (PROMOTE_REPEAT_MS / TICK_MS) != 0 || self == NULL) {
        return;
    }
    leader = node_leader(n, &address);
    if (self->role == RAFT_VOTER) {
        if (n->raft.commit_index >= n->raft.configuration_uncommitted_index) {
            promotion_over(n, MEMBER_VOTER);
        }
    } else if (leader != 0 && n->raft.last_applied >= n->self.promotion) {
        send_note(n, address, leader, &note);
    }
}

/* Only one answer is news: that it was demoted meanwhile. */
void join_promote_answered(struct node *n, const struct note *note)
{
    if (n->running && n->self.promotion != 0 && note->code == DUST_REFUSED) {
        n->opt.standby = true; /* what join_tick waits for, if the join is still under way */
        promotion_over(n, MEMBER_STANDBY);
    }
}
