/* guard_sim: messages under way. */
#include "tests/sim/guard/world.h"

struct completion *completion_new(struct member *m, struct raft_io_send *req, raft_io_send_cb cb)
{
    struct completion *c = must(calloc(1, sizeof *c));

    c->member = m;
    c->generation = m->generation;
    c->req = req;
    c->cb = cb;
    return c;
}

void complete_later(struct sim *s, struct completion *c, int status)
{
    c->status = status;
    c->next = NULL;
    *s->completions_tail = c;
    s->completions_tail = &c->next;
}

void run_completions(struct sim *s)
{
    struct completion *c;

    while ((c = s->completions) != NULL) {
        s->completions = c->next;
        if (s->completions == NULL) {
            s->completions_tail = &s->completions;
        }
        if (c->cb != NULL && c->generation == c->member->generation) {
            c->cb(c->req, c->status);
        }
        free(c);
    }
}

static void message_drop(struct sim *s, struct message *msg, int status)
{
    if (msg->completion != NULL) {
        complete_later(s, msg->completion, status);
    }
    free(msg->entries);
    free(msg);
}

static struct message *link_pop(struct link *l)
{
    struct message *msg = l->head;

    if (msg != NULL) {
        l->head = msg->next;
        if (l->head == NULL) {
            l->tail = &l->head;
        }
    }
    return msg;
}

/* The connection is lost, and with it what is under way, in both directions. */
void link_reset(struct sim *s, unsigned a, unsigned b)
{
    struct message *msg;

    while ((msg = link_pop(&s->links[a][b])) != NULL || (msg = link_pop(&s->links[b][a])) != NULL) {
        message_drop(s, msg, RAFT_NOCONNECTION);
    }
}

void link_cut(struct sim *s, unsigned a, unsigned b, bool cut)
{
    s->links[a][b].cut = s->links[b][a].cut = cut;
    if (cut) {
        link_reset(s, a, b);
    }
}

void link_push(struct member *from, const struct raft_message *m, struct completion *completion)
{
    struct link *l = &from->sim->links[from->id][m->server_id];
    struct message *msg = must(calloc(1, sizeof *msg));
    unsigned i;

    msg->m = *m;
    msg->completion = completion;
    if (m->type == RAFT_IO_APPEND_ENTRIES) {
        unsigned n = m->append_entries.n_entries;

        msg->m.append_entries.entries = NULL;
        if (n > 0) {
            msg->entries = must(calloc(n, sizeof *msg->entries));
        }
        for (i = 0; i < n; i++) {
            entry_store(&msg->entries[i], &m->append_entries.entries[i]);
        }
    } else if (m->type == RAFT_IO_INSTALL_SNAPSHOT) {
        memset(&msg->m.install_snapshot.conf, 0, sizeof msg->m.install_snapshot.conf);
        memset(&msg->m.install_snapshot.data, 0, sizeof msg->m.install_snapshot.data);
        configuration_store(&msg->snapshot, &m->install_snapshot.conf);
        memcpy(&msg->snapshot.state, m->install_snapshot.data.base, sizeof msg->snapshot.state);
    }
    *l->tail = msg;
    l->tail = &msg->next;
}

void hand_to_raft(void *ctx, struct raft_message *message)
{
    struct member *m = ctx;

    m->recv(&m->io, message);
}

/* Deliver the next message of this link or, if it has none, of the next that has. */
void deliver(struct sim *s, unsigned a, unsigned b)
{
    unsigned n = s->opt->n_members, i;
    struct message *msg = NULL;
    struct raft_message m;
    struct member *to;

    for (i = 0; i < n * n && (msg = link_pop(&s->links[a][b])) == NULL; i++) {
        b = b % n + 1;
        a = b == 1 ? a % n + 1 : a;
    }
    if (msg == NULL) {
        return;
    }
    to = s->members[b];
    if (!to->up) {
        message_drop(s, msg, RAFT_NOCONNECTION);
        return;
    }
    m = msg->m;
    m.server_id = a;
    m.server_address = s->members[a]->address;
    if (m.type == RAFT_IO_APPEND_ENTRIES) {
        m.append_entries.entries = entries_make(msg->entries, m.append_entries.n_entries);
    } else if (m.type == RAFT_IO_INSTALL_SNAPSHOT) {
        configuration_make(s, &m.install_snapshot.conf, &msg->snapshot);
        state_make(&m.install_snapshot.data, &msg->snapshot.state);
        s->outcome->tally.installs++;
    }
    message_drop(s, msg, 0);
    guard_recv(&to->guard, &m, hand_to_raft, to);
}
