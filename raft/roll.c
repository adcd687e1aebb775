/* The roll: is whoever speaks the member that it says it is, or a copy of it? (starts.h) All on the loop thread. */
#include "raft/node_impl.h"

static void remember(struct node *n)
{
    struct err e;

    starts_save(&n->starts, &n->self);
    if (n->running && member_save(n->db->dir, &n->self, &e) != DUST_OK) {
        report_err(&n->db->report, &e);
    }
}

static void tell_copy(struct node *n, raft_id id, const char *address, uint64_t known)
{
    struct note copy = {.kind = NOTE_COPY, .num = {known}};

    send_note(n, address, id, &copy);
}

bool roll_call(struct node *n, const struct wire_head *h)
{
    uint64_t known;

    switch (starts_judge(&n->starts, h->from, h->boot, &known)) {
    case STARTS_KNOWN:
        return true;
    case STARTS_NEW:
        remember(n);
        n->grant.sent_ms = 0; /* as the leader: let all know soon */
        return true;
    default:
        report(&n->db->report, DUST_REFUSED,
            "member %llu (%s) is there twice, or is an old copy of itself: what was started as its start number %u is not "
            "listened to, for number %u has been here",
            (unsigned long long)h->from, h->address, STARTS_OF(h->boot), STARTS_OF(known));
        tell_copy(n, h->from, h->address, known);
        return false;
    }
}

void roll_roster(struct node *n, const struct roster *r)
{
    bool anew = false;
    uint64_t known;

    for (unsigned i = 0; i < r->n; i++) {
        const struct raft_server *s = inside_server(&n->raft, r->line[i].id);

        if (s == NULL || s->id == n->self.id || r->line[i].boot == 0) {
            continue;
        }
        switch (starts_judge(&n->starts, s->id, r->line[i].boot, &known)) {
        case STARTS_NEW:
            anew = true;
            break;
        case STARTS_COPY:
            tell_copy(n, s->id, s->address, known); /* not reported: the beacon may only be late */
            break;
        default:
            break;
        }
    }
    if (anew) {
        remember(n);
    }
}

/* For good: the others count the starts of this member, and the next one of this folder would take a number that belongs
 * to the member itself. Nor is a word said any more, or listened to (recv.c, send.c): a vote of a member that has
 * forgotten what it had stored may cost the cluster an entry that was agreed on. */
void roll_refused(struct node *n, const struct err *why)
{
    n->self.refused = true;
    remember(n);
    node_fail(n, why);
}

void roll_copied(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct err e;

    if (!starts_is_copy(n->boot, note->num[0]) || !node_knows(n, from->from)) {
        return; /* of a start before this one, or this one itself */
    }
    err_set(&e, DUST_REFUSED,
        "this is a copy, or an older state, of member %llu: %s says that another one was started %u times, this one %u. "
        "Two with one identity damage a cluster: use the other one; or, if it is lost, remove member %llu, delete %s "
        "and the database here, and join anew",
        (unsigned long long)n->self.id, from->address, STARTS_OF(note->num[0]), n->self.starts,
        (unsigned long long)n->self.id, n->db->dir);
    roll_refused(n, &e);
}
