/* What comes from other members: whether it is listened to, and whose it is. A message counts only if it was sealed for this
 * start of the member, in a cluster with a key (channel.c); if it is whole, of this cluster, for this member, from another
 * one, and not from a copy of one (roll.c). Messages of libraft's go through the guard; notes are dust's own. All on the
 * loop thread. */
#include <string.h>

#include "raft/node_impl.h"

static void note_received(struct node *n, const struct wire_head *h, const struct note *note)
{
    switch (note->kind) {
    case NOTE_SUBMIT:
        submit_received(n, h, note);
        break;
    case NOTE_REFUSED:
        submit_refused(n, note);
        break;
    case NOTE_TURN_STATE:
        grant_state(n, h, note);
        break;
    case NOTE_TURN_WISH:
        grant_wish(n, h->from, note);
        break;
    case NOTE_FETCH:
        if (n->running) {
            give_received(n, h, note);
        }
        break;
    case NOTE_FETCH_REPLY:
        if (n->running) {
            transfer_received(n, note);
        }
        break;
    case NOTE_JOIN:
        join_received(n, note);
        break;
    case NOTE_JOIN_REPLY:
        join_reply_received(n, note);
        break;
    case NOTE_CHANGE:
        change_received(n, h, note);
        break;
    case NOTE_INDEX:
    case NOTE_INDEX_REPLY:
    case NOTE_CONFIRM:
    case NOTE_CONFIRMED:
        read_received(n, h, note);
        break;
    case NOTE_CHANGE_REPLY:
        if (note->req == 0) {
            join_promote_answered(n, note);
        } else {
            ask_reply_received(n, note);
        }
        break;
    case NOTE_REMOVED:
        change_removed(n, h->from);
        break;
    case NOTE_COPY:
        roll_copied(n, h, note);
        break;
    default:
        report(&n->db->report, DUST_VERSION, "a message of unknown kind %u from %s was ignored", note->kind,
            h->address);
    }
}

void recv_refused(void *ctx, const struct err *why)
{
    struct node *n = ctx;

    n->io.refused++;
    n->unopened = *why;
    n->unopened_ms = node_now(n);
    report_err(&n->db->report, why);
}

void recv_stale(void *ctx, void *data, size_t len)
{
    struct node *n = ctx;
    struct wire_head h;
    struct wire_body b;

    if (!n->stopping && !n->self.refused && wire_decode(data, len, &h, &b, NULL) == DUST_OK) {
        wire_body_free(&h, &b);
        peers_greet(n->peers, h.address);
    }
}

void recv_message(void *ctx, void *data, size_t len)
{
    struct node *n = ctx;
    struct wire_head h;
    struct wire_body b;
    struct err e = {0};
    char theirs[VID_HEX_SIZE], ours[VID_HEX_SIZE];
    bool to_joiner;

    if (n->stopping || n->self.refused) {
        return;
    }
    if (wire_decode(data, len, &h, &b, &e) != DUST_OK) {
        n->io.refused++;
        report_err(&n->db->report, &e);
        return;
    }
    to_joiner = h.type == WIRE_NOTE && (b.note.kind == NOTE_JOIN || b.note.kind == NOTE_JOIN_REPLY);
    if (!to_joiner) {
        if (vid_none(&n->self.cluster)) {
            goto drop; /* being taken in, and not told of it yet */
        }
        if (memcmp(h.cluster, n->self.cluster.b, sizeof h.cluster) != 0) {
            n->io.refused++;
            report(&n->db->report, DUST_REFUSED, "a message from member %llu (%s) of another cluster, %s, was ignored: this is member %llu of cluster %s",
                (unsigned long long)h.from, h.address, vid_hex((const struct vid *)(const void *)h.cluster, theirs),
                (unsigned long long)n->self.id, vid_hex(&n->self.cluster, ours));
            goto drop;
        }
        if (h.to != n->self.id || h.from == n->self.id || h.from == 0) {
            n->io.refused++;
            report(&n->db->report, DUST_REFUSED, "a message from %s was for member %llu, which this is not; ignored",
                h.address, (unsigned long long)h.to);
            goto drop;
        }
        if (!roll_call(n, &h)) {
            n->io.refused++;
            goto drop;
        }
        if (node_is_leader(n) && !node_knows(n, h.from)) {
            struct note gone = {.kind = NOTE_REMOVED};

            /* A removal that is not agreed may be undone yet, and who was told of it does not come back; nor is it for one to
             * tell whose place another leader may have taken meanwhile, with a member that is not known here. */
            if (n->submit.ready && n->raft.configuration_uncommitted_index == 0 &&
                grant_majority_age_ms(n) < lost_quiet_ms(n)) {
                send_note(n, h.address, h.from, &gone);
            }
            goto drop;
        }
        peers_heard(n->peers, h.address);
    }
    if (h.type == WIRE_NOTE) {
        note_received(n, &h, &b.note);
        wire_body_free(&h, &b);
        return;
    }
    if (!n->running) {
        goto drop;
    }
    b.message.server_id = h.from;
    b.message.server_address = h.address;
    if (b.message.type == RAFT_IO_INSTALL_SNAPSHOT && transfer_wanted(n, &b.message, h.from, h.address)) {
        return;
    }
    io_deliver(n, &b.message);
    return;
drop:
    wire_body_free(&h, &b);
}
