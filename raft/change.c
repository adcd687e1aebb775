/* Changes of the cluster, as the leader makes them: remove, promote, demote, transfer of leadership; and adding a
 * member (join.c). One at a time, as libraft has it: a second is told DUST_AGAIN, and asked again by whoever wants it
 * until its time is up (ask.c).
 *
 *   idle ──change_begin──▶ busy ──libraft calls back──▶ change_over: the asker is answered, idle
 *                            └──the member stops, or its log is begun again──▶ change_fail: idle
 *
 * A leader never removes or demotes itself (guard.h): it transfers its leadership first, answers DUST_AGAIN, and the
 * asker repeats its question to the new leader. */
#include <stdio.h>

#include "raft/codes.h"
#include "raft/node_impl.h"
#include "vfs/clock.h"

void change_over(struct node *n, int code, const char *text)
{
    struct change *c = &n->change;

    if (!c->busy) {
        return; /* answered already: this member is stopping */
    }
    c->busy = false;
    if (c->what == CHANGE_JOIN) {
        join_over(n, code, text);
    } else {
        ask_answer(n, &c->asker, NOTE_CHANGE_REPLY, NULL, code, text);
    }
}

void change_done(struct raft_change *req, int status)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    change_over(n, code_of_raft(status), status != 0 ? raft_strerror(status) : NULL);
}

static void on_transfer(struct raft_transfer *req)
{
    struct node *n = req->data;

    if (n->stopping) {
        return;
    }
    if (n->change.what == CHANGE_REMOVE) {
        change_over(n, DUST_AGAIN, "leadership is being handed over first"); /* whether it was or not */
    } else if (node_leader(n, NULL) == n->change.subject || (n->change.subject == 0 && !node_is_leader(n))) {
        change_over(n, DUST_OK, NULL);
    } else {
        change_over(n, DUST_BUSY, "the member did not take over within the election timeout; it may be down or behind");
    }
}

/* Who hands over before it ends does not wait longer than it said. */
void change_tick(struct node *n)
{
    struct change *c = &n->change;

    if (c->busy && c->what == CHANGE_TRANSFER && c->subject == 0 && c->asker.call != NULL &&
        clock_ms() >= c->asker.call->deadline_ms) {
        ask_answer(n, &c->asker, NOTE_CHANGE_REPLY, NULL, DUST_BUSY, "no other member has taken over yet");
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

bool change_begin(struct node *n, struct asker *a, int what, raft_id subject)
{
    struct change *c = &n->change;

    if (c->busy || n->raft.configuration_uncommitted_index != 0 || !n->submit.ready) {
        ask_answer(n, a, what == CHANGE_JOIN ? NOTE_JOIN_REPLY : NOTE_CHANGE_REPLY, NULL, DUST_AGAIN,
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

/* A member whose join was cut short asks to be promoted when it is back (join.c). If it was demoted since, that is what
 * holds. It is a standby already, perhaps, and down: no log tells it, so the leader remembers, as long as it leads or
 * leads again in this process. */
static bool was_demoted(const struct node *n, raft_id id)
{
    for (unsigned i = 0; i < MAX_MEMBERS; i++) {
        if (n->change.demoted[i] == id) {
            return true;
        }
    }
    return false;
}

static void remember_demoted(struct node *n, raft_id id, bool demoted)
{
    struct change *c = &n->change;

    for (unsigned i = 0; i < MAX_MEMBERS && !demoted; i++) {
        c->demoted[i] = c->demoted[i] == id ? 0 : c->demoted[i];
    }
    if (demoted && !was_demoted(n, id)) {
        c->demoted[c->n_demoted++ % MAX_MEMBERS] = id;
    }
}

void change_lead(struct node *n, struct asker *a, int what, raft_id id)
{
    struct change *c = &n->change;
    const struct raft_server *s = inside_server(&n->raft, id);
    char text[128];
    int rv = 0;

    if (what == CHANGE_TRANSFER && id == 0) { /* to anybody */
        if (voters(n) < 2) {
            ask_answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_OK, NULL);
        } else if (change_begin(n, a, what, 0)) {
            rv = raft_transfer(&n->raft, &c->transfer, 0, on_transfer);
            if (rv != 0) {
                change_over(n, code_of_raft(rv), raft_errmsg(&n->raft));
            }
        }
        return;
    }
    if (s == NULL) {
        snprintf(text, sizeof text, "there is no member %llu in this cluster", (unsigned long long)id);
        ask_answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_NOTFOUND, text);
        return;
    }
    if (what == CHANGE_PROMOTE || what == CHANGE_DEMOTE) {
        remember_demoted(n, id, what == CHANGE_DEMOTE);
    }
    if ((what == CHANGE_PROMOTE && s->role == RAFT_VOTER) || (what == CHANGE_DEMOTE && s->role == RAFT_STANDBY) ||
        (what == CHANGE_TRANSFER && id == n->self.id)) {
        ask_answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_OK, NULL);
        return;
    }
    if ((what == CHANGE_REMOVE || what == CHANGE_DEMOTE) && s->role == RAFT_VOTER && voters(n) == 1) {
        ask_answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_REFUSED,
            "this is the only voter of the cluster: without it nothing can be agreed on");
        return;
    }
    if (what == CHANGE_TRANSFER && s->role != RAFT_VOTER) {
        ask_answer(n, a, NOTE_CHANGE_REPLY, NULL, DUST_REFUSED, "only a voter can lead: promote the member first");
        return;
    }
    if (!change_begin(n, a, what, id)) {
        return;
    }
    switch (what) {
    case CHANGE_REMOVE:
    case CHANGE_DEMOTE:
        if (id == n->self.id) {
            c->what = CHANGE_REMOVE;
            rv = raft_transfer(&n->raft, &c->transfer, 0, on_transfer);
        } else if (what == CHANGE_REMOVE) {
            rv = raft_remove(&n->raft, &c->req, id, change_done);
        } else {
            rv = raft_assign(&n->raft, &c->req, id, RAFT_STANDBY, change_done);
        }
        break;
    case CHANGE_PROMOTE:
        rv = raft_assign(&n->raft, &c->req, id, RAFT_VOTER, change_done);
        break;
    case CHANGE_TRANSFER:
        rv = raft_transfer(&n->raft, &c->transfer, id, on_transfer);
        break;
    default:
        rv = RAFT_INVALID;
    }
    if (rv != 0) {
        change_over(n, code_of_raft(rv), raft_errmsg(&n->raft));
    }
}

void change_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct asker a = asker_of(from, note);

    if (node_is_leader(n) && note->num[0] == CHANGE_PROMOTE && note->num[2] != 0 && was_demoted(n, note->num[1])) {
        ask_answer(n, &a, NOTE_CHANGE_REPLY, NULL, DUST_REFUSED, "it was demoted on purpose");
    } else if (node_is_leader(n)) {
        change_lead(n, &a, (int)note->num[0], note->num[1]);
    } else {
        ask_answer(n, &a, NOTE_CHANGE_REPLY, NULL, DUST_AGAIN, "not the leader any more");
    }
}

void change_removed(struct node *n, raft_id from)
{
    raft_id leader = node_leader(n, NULL);
    struct err e;

    if (from == leader || leader == 0) {
        err_set(&e, DUST_REFUSED,
            "this member was removed from its cluster: its data is as of then, and can only be read. SELECT dust_leave() "
            "makes an ordinary database of it; or delete it and %s, and join again",
            n->db->dir);
        database_caught_up(n->db); /* there is nothing more to come */
        atomic_store(&n->removed, true);
        node_fail(n, &e);
    }
}

void change_diverged(struct node *n, raft_index index, const struct vid *theirs)
{
    const struct vid *ours = heads_at(&n->fsm.heads, index);
    char a[VID_HEX_SIZE], b[VID_HEX_SIZE];
    struct err e;

    if (index == 0 || index > fsm_covered(n) || ours == NULL || vid_equal(ours, theirs)) {
        return;
    }
    err_set(&e, DUST_CORRUPT,
        "this member's history is not that of its cluster: as of entry %llu it is version %s here and %s at the leader. It has "
        "stopped, so as not to serve wrong data. Remove member %llu at another one, delete %s and the database here, "
        "and join anew",
        (unsigned long long)index, vid_hex(ours, a), vid_hex(theirs, b), (unsigned long long)n->self.id, n->db->dir);
    node_fail(n, &e);
}

void change_forgotten(struct node *n, raft_index had)
{
    struct err e;

    err_set(&e, DUST_REFUSED,
        "this member had stored its log up to entry %llu, as the leader knows, and has it up to %llu: its folder was put "
        "back from an older copy. Remove member %llu at another one, delete %s and the database here, and join anew",
        (unsigned long long)had, (unsigned long long)inside_last_index(&n->raft), (unsigned long long)n->self.id,
        n->db->dir);
    roll_refused(n, &e);
}

void change_fail(struct node *n, int code, const char *text)
{
    struct change *c = &n->change;

    if (c->busy && c->asker.call != NULL) {
        call_answer(c->asker.call, code, text, 0, NULL);
        c->asker.call = NULL;
    }
    c->busy = false;
}
