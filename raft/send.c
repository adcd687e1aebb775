/* What leaves for other members: libraft's messages, past the guard, in parts if they are long; our own notes; and the
 * commit index, as soon as it matters to somebody.
 *
 * A request of libraft's is never completed before send_message returns, nor ever fails there: libraft would free it
 * twice. It is completed when its last part is on its way, or in a later turn of the loop if there was none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"

#define PART_ENTRIES 1024
#define PART_BYTES ((size_t)1 << 20)
#define NOTICE_DELAY_MS 1
#define RESERVED 256u /* messages of a turn of the loop while there is no memory */

struct send_req {
    struct node *node;
    struct raft_io_send *theirs;
    raft_io_send_cb cb;
    unsigned parts; /* not yet sent */
    int status;
    struct job job; /* to complete it from a later turn, when nothing was sent */
};

int send_init(struct node *n, struct err *e)
{
    n->send_reserve = calloc(RESERVED, sizeof *n->send_reserve);
    return n->send_reserve != NULL ? DUST_OK : err_set(e, DUST_NOMEM, "out of memory");
}

void send_deinit(struct node *n)
{
    free(n->send_reserve);
}

/* There is no way to tell libraft of a request without memory to remember it. So there is some beforehand: without
 * memory nothing leaves, and all of a turn are completed at its end. */
static struct send_req *send_req_new(struct node *n)
{
    struct send_req *s;

    do {
        s = calloc(1, sizeof *s);
        for (unsigned i = 0; s == NULL && i < RESERVED; i++) {
            s = n->send_reserve[i].node == NULL ? &n->send_reserve[i] : NULL;
        }
    } while (s == NULL);
    memset(s, 0, sizeof *s);
    s->node = n;
    return s;
}

static void send_req_free(struct send_req *s)
{
    if (s >= s->node->send_reserve && s < s->node->send_reserve + RESERVED) {
        s->node = NULL;
    } else {
        free(s);
    }
}

static void head_for(struct node *n, raft_id to, struct wire_head *h)
{
    memset(h, 0, sizeof *h);
    h->from = n->self.id;
    h->to = to;
    h->boot = n->boot;
    memcpy(h->cluster, n->self.cluster.b, sizeof h->cluster);
    snprintf(h->address, sizeof h->address, "%s", n->address);
}

static void finish_send(struct send_req *s, int status)
{
    if (status != 0) {
        s->status = status;
    }
    if (--s->parts == 0) {
        if (s->cb != NULL && s->node->raft_open && !s->node->raft_closed) {
            s->cb(s->theirs, s->status);
        }
        send_req_free(s);
    }
}

static void part_sent(void *arg, int status)
{
    finish_send(arg, status == DUST_OK ? 0 : RAFT_NOCONNECTION);
}

static void nothing_sent(struct node *n, struct job *job)
{
    struct send_req *s = (struct send_req *)((char *)job - offsetof(struct send_req, job));

    (void)n;
    finish_send(s, s->status);
}

static void complete_later(struct send_req *s, int status)
{
    s->status = status;
    s->job.run = nothing_sent;
    node_defer(s->node, &s->job);
}

static bool send_one(struct node *n, struct send_req *s, const struct raft_message *m)
{
    struct wire_head h;
    size_t size;
    void *msg, *body;

    head_for(n, m->server_id, &h);
    size = wire_raft_size(&h, m);
    msg = peers_alloc(n->peers, size, &body);
    if (msg == NULL) {
        return false;
    }
    wire_raft_put(&h, m, body);
    s->parts++;
    peers_send(n->peers, m->server_address, msg, size, PEER_NORMAL, part_sent, s);
    return true;
}

static void told(struct node *n, raft_id id, raft_index commit)
{
    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (n->io.told[i].id == id || !node_knows(n, n->io.told[i].id)) {
            n->io.told[i].id = id;
            n->io.told[i].told = commit;
            return;
        }
    }
}

static raft_index was_told(const struct node *n, raft_id id)
{
    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (n->io.told[i].id == id) {
            return n->io.told[i].told;
        }
    }
    return 0;
}

int send_message(
    struct raft_io *raft_io, struct raft_io_send *req, const struct raft_message *message, raft_io_send_cb cb)
{
    struct node *n = io_node(raft_io);
    struct raft_message m = *message;
    struct send_req *s = send_req_new(n);
    struct guard_split split;
    struct raft_append_entries part;

    s->theirs = req;
    s->cb = cb;
    s->parts = 1; /* ours, until all parts are on their way */
    if (!guard_send(&n->io.guard, &m) || m.server_address == NULL || n->peers == NULL || n->stopping ||
        n->self.refused) {
        complete_later(s, 0);
        return 0;
    }
    if (m.type == RAFT_IO_APPEND_ENTRIES) {
        guard_split_init(&split, &n->io.guard, &m, PART_ENTRIES, PART_BYTES);
        while (guard_split_next(&split, &part)) {
            m.append_entries = part;
            if (!send_one(n, s, &m)) {
                s->status = RAFT_NOMEM;
                break;
            }
        }
        told(n, m.server_id, m.append_entries.leader_commit);
    } else if (!send_one(n, s, &m)) {
        s->status = RAFT_NOMEM;
    }
    complete_later(s, s->status);
    return 0;
}

void send_note(struct node *n, const char *address, raft_id to, const struct note *note)
{
    struct wire_head h;
    size_t size;
    void *msg, *body;

    if (n->peers == NULL || n->stopping || n->self.refused || address == NULL || address[0] == '\0') {
        return;
    }
    head_for(n, to, &h);
    size = wire_note_size(&h, note);
    msg = peers_alloc(n->peers, size, &body);
    if (msg != NULL) {
        wire_note_put(&h, note, body);
        peers_send(n->peers, address, msg, size, PEER_NORMAL, NULL, NULL);
    }
}

/* ---- followers learn the commit index at once ---- */

static void on_notice(uv_timer_t *timer)
{
    send_commit(timer->data, true);
}

/* libraft tells a follower the commit index only with the next entries or the next heartbeat. An empty AppendEntries
 * up to what the follower is known to have carries it at once. Urgent for the member whose transaction was just
 * agreed on, and for the one that waits for the turn; the others hear it when nothing else has told them for a while.
 * */
void send_commit(struct node *n, bool everybody)
{
    struct raft *r = &n->raft;
    uint64_t urgent = n->fsm.urgent, awaited;
    bool rest = false;

    n->fsm.urgent = 0;
    if (!node_is_leader(n) || n->self.refused) {
        return;
    }
    awaited = grant_awaited(n);
    for (unsigned i = 0; i < r->configuration.n; i++) {
        const struct raft_server *server = &r->configuration.servers[i];
        raft_index match = inside_match(r, i);
        raft_index commit = r->commit_index < match ? r->commit_index : match;
        struct raft_message m = {.type = RAFT_IO_APPEND_ENTRIES, .server_id = server->id,
            .server_address = server->address};
        struct send_req *s;
        raft_term term;

        if (server->id == n->self.id || commit <= was_told(n, server->id)) {
            continue;
        }
        if (!everybody && server->id != awaited && (urgent & (1ull << (server->id % 64))) == 0) {
            rest = true;
            continue;
        }
        term = inside_term(r, match);
        s = term != 0 ? calloc(1, sizeof *s) : NULL;
        if (s == NULL) {
            continue;
        }
        m.append_entries = (struct raft_append_entries){
            .term = r->current_term, .prev_log_index = match, .prev_log_term = term, .leader_commit = commit};
        s->node = n;
        s->parts = 1;
        if (guard_send(&n->io.guard, &m)) {
            send_one(n, s, &m);
            told(n, server->id, m.append_entries.leader_commit);
        }
        finish_send(s, 0);
    }
    /* While entries follow each other faster than that, they carry it. */
    if (rest && (n->io.noticed != r->commit_index || !uv_is_active((uv_handle_t *)&n->notice))) {
        n->io.noticed = r->commit_index;
        uv_timer_start(&n->notice, on_notice, NOTICE_DELAY_MS, 0);
    }
}
