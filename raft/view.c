/* What SQL sees of a node: copies made on the loop thread for the SQL thread that asks. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "raft/node_impl.h"
#include "vfs/clock.h"

#define VIEW_TIMEOUT_MS 2000u

static const char *role_of(const struct node *n)
{
    const struct raft_server *self;

    if (n->state == NODE_FAILED) {
        return "failed";
    }
    if (n->stopping) {
        return "stopped";
    }
    if (n->again.waiting) {
        return "recovering";
    }
    if (!n->running) {
        return "joining";
    }
    self = inside_server(&n->raft, n->self.id);
    if (self != NULL && self->role != RAFT_VOTER) {
        return "standby";
    }
    switch (n->raft.state) {
    case RAFT_LEADER:
        return "leader";
    case RAFT_CANDIDATE:
        return "candidate";
    case RAFT_FOLLOWER:
        return "follower";
    default:
        return "failed";
    }
}

static void key_names(const struct node *n, char *out)
{
    char hint[KEY_HINT_TEXT];

    strcpy(out, n->opt.keys.n == 0 ? "none" : "");
    for (unsigned i = 0; i < n->opt.keys.n; i++) {
        strcat(out, i == 0 ? "" : ", ");
        strcat(out, key_hint(&n->opt.keys, i, hint));
    }
}

static void view_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    struct node_view *v = calloc(1, sizeof *v);
    struct peers_stats st = {0};
    const char *leader = NULL;

    if (v == NULL) {
        call_answer(call, DUST_NOMEM, NULL, 0, NULL);
        return;
    }
    v->id = n->self.id;
    snprintf(v->address, sizeof v->address, "%s", n->address);
    v->role = role_of(n);
    v->promotion_due = n->self.promotion != 0;
    key_names(n, v->key);
    v->failure = n->failure;
    v->in_flight = atomic_load(&n->submit.count);
    if (n->running && !n->stopping) {
        v->leader_id = node_leader(n, &leader);
        snprintf(v->leader, sizeof v->leader, "%s", v->leader_id != 0 ? leader : "");
        v->term = n->raft.current_term;
        v->applied = n->raft.last_applied;
        v->stored = n->raft.last_stored;
        v->commit = n->raft.commit_index;
        v->ready = node_is_leader(n) ? n->submit.ready : n->grant.leader_ready;
        v->turn_holder = node_is_leader(n) ? n->grant.holder : n->grant.number != 0 ? n->self.id : 0;
        v->log_bytes = n->fsm.log_bytes;
        v->snapshot_index = inside_snapshot_index(&n->raft);
    }
    if (n->peers != NULL && !n->stopping) {
        peers_stats(n->peers, &st);
        v->messages_in = st.messages_in;
        v->messages_out = st.messages_out;
        v->bytes_in = st.bytes_in;
        v->bytes_out = st.bytes_out;
        v->dropped = st.dropped + n->io.refused;
    }
    call_answer(call, DUST_OK, NULL, 0, v);
}

void node_view(struct node *n, struct node_view *out)
{
    struct call_result r;

    if (n != NULL && node_call(n, view_run, 0, 0, VIEW_TIMEOUT_MS, &r, NULL) == DUST_OK) {
        memcpy(out, r.gift, sizeof *out);
        free(r.gift);
    } else {
        *out = (struct node_view){.role = "stopped"};
    }
}

/* What is known of another member: heard by ourselves, or by the leader if its last beacon is not too old. */
static void look_at(struct node *n, unsigned i, struct node_member *m)
{
    const struct roster *roster = &n->grant.roster;
    const struct roster_line *line = roster_find(roster, m->id);
    uint64_t age = node_now(n) - roster->at_ms, fresh = 2ull * n->raft.election_timeout;

    m->last_contact_ms = node_last_heard_ms(n, m->address);
    if (node_is_leader(n)) {
        m->has_match = true;
        m->match_index = inside_match(&n->raft, i);
    } else if (line != NULL && age <= fresh) {
        m->has_match = true;
        m->match_index = line->match_index;
        if (line->heard_ms >= 0 && (m->last_contact_ms < 0 || line->heard_ms + (int64_t)age < m->last_contact_ms)) {
            m->last_contact_ms = line->heard_ms + (int64_t)age;
        }
    } else if (!m->is_leader && m->last_contact_ms > (int64_t)fresh) {
        m->last_contact_ms = -1; /* not heard because it has nothing to say to us: that tells nothing */
    }
    snprintf(m->state, sizeof m->state, "%s",
        m->last_contact_ms < 0 ? "unknown" : m->last_contact_ms > (int64_t)fresh ? "down" : "up");
}

static void members_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    const struct raft_configuration *conf = &n->raft.configuration;
    raft_id leader = node_leader(n, NULL);
    struct node_member *list;
    raft_index last;

    if (!n->running || n->stopping) {
        call_answer(call, DUST_CLOSED, "this member is not running", 0, NULL);
        return;
    }
    list = calloc(conf->n + 1, sizeof *list);
    if (list == NULL) {
        call_answer(call, DUST_NOMEM, NULL, 0, NULL);
        return;
    }
    last = raft_last_index(&n->raft);
    for (unsigned i = 0; i < conf->n; i++) {
        struct node_member *m = &list[i];

        m->id = conf->servers[i].id;
        snprintf(m->address, sizeof m->address, "%s", conf->servers[i].address);
        m->role = conf->servers[i].role;
        m->is_self = m->id == n->self.id;
        m->is_leader = m->id == leader;
        if (m->is_self) {
            m->has_match = true;
            m->match_index = n->raft.last_stored;
            snprintf(m->state, sizeof m->state, "up");
        } else {
            look_at(n, i, m);
        }
        if (m->has_match) {
            m->lag = last > m->match_index ? last - m->match_index : 0;
        }
    }
    call_answer(call, DUST_OK, NULL, conf->n, list);
}

/* A list that a call answers with. */
static int ask_for_list(struct node *n, void (*run)(struct node *n, struct job *job), uint64_t a0, uint64_t a1,
    void **list, unsigned *count, struct err *e)
{
    struct call_result r;
    int rv = node_call(n, run, a0, a1, VIEW_TIMEOUT_MS, &r, e);

    if (rv == DUST_OK) {
        *list = r.gift;
        *count = (unsigned)r.num;
    }
    return rv;
}

int node_members(struct node *n, struct node_member **list, unsigned *count, struct err *e)
{
    return ask_for_list(n, members_run, 0, 0, (void **)list, count, e);
}

static void describe(struct node_entry *out, raft_index index, const struct raft_entry *le)
{
    struct entry entry;
    struct err e;

    *out = (struct node_entry){.index = index, .term = le->term, .bytes = le->buf.len};
    switch (le->type) {
    case RAFT_BARRIER:
        out->kind = "barrier";
        return;
    case RAFT_CHANGE:
        out->kind = "configuration";
        return;
    default:
        break;
    }
    if (entry_decode(le->buf.base, le->buf.len, &entry, &e) != DUST_OK) {
        out->kind = "unreadable";
        return;
    }
    out->kind = entry.part == 0 && entry.last ? "transaction" : "part";
    out->id = entry.id;
    out->parent = entry.parent;
    out->origin = entry.origin;
    out->n_pages = entry.n_records;
    if (entry.sql_len != 0) {
        out->sql = strndup(entry.sql, entry.sql_len);
    }
}

static void log_run(struct node *n, struct job *job)
{
    struct call *call = (struct call *)job;
    raft_index index = call->arg[0], max = call->arg[1];
    const struct raft_entry *le;
    struct node_entry *list;
    unsigned count = 0;

    if (!n->running || n->stopping) {
        call_answer(call, DUST_CLOSED, "this member is not running", 0, NULL);
        return;
    }
    if (index <= inside_offset(&n->raft)) {
        index = inside_offset(&n->raft) + 1;
    }
    list = calloc(max + 1, sizeof *list);
    if (list == NULL) {
        call_answer(call, DUST_NOMEM, NULL, 0, NULL);
        return;
    }
    while (count < max && index <= n->raft.last_applied && (le = inside_entry(&n->raft, index)) != NULL) {
        describe(&list[count++], index++, le);
    }
    call_answer(call, DUST_OK, NULL, count, list);
}

int node_log(struct node *n, uint64_t from, unsigned max, struct node_entry **list, unsigned *count, struct err *e)
{
    return ask_for_list(n, log_run, from, max, (void **)list, count, e);
}

void node_log_free(struct node_entry *list, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        free(list[i].sql);
    }
    free(list);
}

bool node_was_removed(struct node *n)
{
    return atomic_load(&n->removed);
}

int node_checkpoint(struct node *n, struct err *e)
{
    uint64_t until = clock_ms() + 5000;
    struct timespec ms2 = {.tv_nsec = 2000000};
    int rv;

    for (;;) {
        rv = database_checkpoint(n->db, NULL, e);
        if (rv != DUST_BUSY || clock_ms() >= until) {
            return rv;
        }
        nanosleep(&ms2, NULL);
    }
}
