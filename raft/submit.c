/* Transactions on their way into the log.
 *
 * At the member where it was written, a transaction is in the list of those in flight, in the order of staging, from
 * the moment it is sealed until it is applied (agreed) or voided. Its parts go to the leader in order; a message may be
 * lost, a leader may change: then everything in flight is sent again, which is safe because an entry takes effect only
 * on its parent (DESIGN.md, section 2, rule 3) and the leader knows what it has proposed already.
 *
 * The leader proposes a transaction only if its parent is the tail: the last one it has proposed or, with nothing on
 * its way, the head. So in one leader's log each transaction stands behind its parent, and void entries appear only
 * where terms meet. One that does not fit is refused, with the tail, and its origin sends again from the oldest in
 * flight; whether it is void its origin learns from its own log, never from the leader.
 *
 * A leader takes transactions once it has applied everything of earlier terms (`ready`: a barrier of its own term has
 * been applied); its tail then is its head.
 *
 *   in flight:  staged ──sent──▶ proposed ──majority──▶ applied: commit_done(OK)
 *                 ▲  └──refused / new leader / nothing heard──┘ │
 *                 └──────────────────────────────────────────────┘   head moved to something else: commit_done(VOID)
 *
 * While more than ENTRIES_AHEAD entries are on their way, what comes waits for some of them to be agreed on, so that many
 * writers share few flushes and messages; for GATHER_US at most, since the others may be far away.
 *
 * Large ones: at most PARTS_AHEAD parts beyond those applied are on their way, so that heartbeats and other
 * messages find room. Parts that are applied are not sent again in the same term, and the longer nothing is applied, the
 * less often the others are: a leader or a disk that is slow is not made slower. */
#include <stdlib.h>
#include <string.h>

#include "raft/node_impl.h"
#include "vfs/bug.h"
#include "vfs/clock.h"

#define BATCH_BYTES ((size_t)4 << 20)
#define ENTRIES_AHEAD 8u
#define GATHER_US 1000u

int submit_init(struct node *n, struct err *e)
{
    n->submit.resend_ms = RESEND_MS;
    n->submit.proposed = calloc(PROPOSED_MAX, sizeof *n->submit.proposed);
    return n->submit.proposed != NULL ? DUST_OK : err_set(e, DUST_NOMEM, "out of memory");
}

static void drop_batch(struct node *n)
{
    for (unsigned i = 0; i < n->submit.n_batch; i++) {
        raft_free(n->submit.batch[i].base);
    }
    n->submit.n_batch = 0;
    n->submit.batch_bytes = 0;
}

void submit_deinit(struct node *n)
{
    drop_batch(n);
    free(n->submit.batch);
    free(n->submit.proposed);
}

/* ---- the leader's side ---- */

/* What the leader has proposed lately, so that a second copy is not mistaken for a misfit. A ring: an old id may be
 * forgotten, which costs its origin one more message. */
static bool was_proposed(const struct submit *s, const struct vid *id)
{
    unsigned n = s->n_proposed < PROPOSED_MAX ? s->n_proposed : PROPOSED_MAX;

    for (unsigned i = 1; i <= n; i++) {
        if (vid_equal(&s->proposed[(s->n_proposed - i) % PROPOSED_MAX], id)) {
            return true;
        }
    }
    return false;
}

static int add_to_batch(struct node *n, const void *data, size_t len)
{
    struct submit *s = &n->submit;
    void *copy;

    if (s->n_batch == s->room) {
        unsigned more = s->room == 0 ? 64 : s->room * 2;
        struct raft_buffer *b = realloc(s->batch, more * sizeof *b);

        if (b == NULL) {
            return DUST_NOMEM;
        }
        s->batch = b;
        s->room = more;
    }
    copy = raft_malloc(len);
    if (copy == NULL) {
        return DUST_NOMEM;
    }
    memcpy(copy, data, len);
    s->batch[s->n_batch++] = (struct raft_buffer){.base = copy, .len = len};
    return DUST_OK;
}

static void on_applied(struct raft_apply *req, int status, void *result)
{
    (void)result;
    (void)status; /* what was lost is sent again by its origin */
    free(req);
}

/* Propose what was collected, in one go. */
static void flush(struct node *n)
{
    struct submit *s = &n->submit;
    struct raft_apply *req = node_is_leader(n) ? calloc(1, sizeof *req) : NULL;

    if (req != NULL && raft_apply(&n->raft, req, s->batch, s->n_batch, on_applied) == 0) {
        s->n_batch = 0;
        s->batch_bytes = 0;
        return;
    }
    free(req);
    drop_batch(n);
    s->ready = false; /* the tail is wrong now: begin again behind a barrier */
    s->barrier_term = 0;
    submit_leader_changed(n);
}

static void on_gathered(uv_timer_t *timer)
{
    (void)timer; /* submit_look is called before the loop sleeps again */
}

void submit_look(struct node *n)
{
    struct submit *s = &n->submit;
    raft_index ahead = inside_last_index(&n->raft) - n->raft.commit_index;

    if (s->n_batch == 0) {
        return;
    }
    if (ahead <= ENTRIES_AHEAD || clock_us() - s->batch_us >= GATHER_US) {
        flush(n);
    } else if (!uv_is_active((uv_handle_t *)&n->gather)) {
        uv_timer_start(&n->gather, on_gathered, GATHER_US / 1000, 0);
    }
}

enum offer { OFFER_TAKEN, OFFER_KNOWN, OFFER_REFUSED };

/* One part of a transaction for the log. */
static enum offer offer(struct node *n, const void *data, size_t len, const struct entry *entry)
{
    struct submit *s = &n->submit;

    if (!s->ready) {
        return OFFER_REFUSED;
    }
    if (s->stream_next != 0 && vid_equal(&s->stream, &entry->id)) {
        if (entry->part < s->stream_next) {
            return OFFER_KNOWN;
        }
        if (entry->part > s->stream_next) {
            return OFFER_REFUSED;
        }
    } else if (entry->part != 0 || (!vid_equal(&entry->parent, &s->tail) && !BUG(PARENT))) {
        return was_proposed(s, &entry->id) ? OFFER_KNOWN : OFFER_REFUSED;
    }
    if (s->batch_bytes + len > BATCH_BYTES) {
        flush(n); /* so that none waits long behind the others */
        if (!s->ready) {
            return OFFER_REFUSED;
        }
    }
    if (add_to_batch(n, data, len) != DUST_OK) {
        return OFFER_REFUSED;
    }
    s->batch_us = s->batch_bytes == 0 ? clock_us() : s->batch_us;
    s->batch_bytes += len;
    s->taken_ms = node_now(n);
    s->stream_next = entry->last ? 0 : entry->part + 1;
    s->stream = entry->id;
    if (entry->last) {
        s->tail = entry->id;
        s->proposed[s->n_proposed++ % PROPOSED_MAX] = entry->id;
    }
    return OFFER_TAKEN;
}

void submit_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct note no = {.kind = NOTE_REFUSED};
    struct entry entry;
    struct err e;

    if (entry_decode(note->data, note->data_len, &entry, &e) != DUST_OK) {
        report(&n->db->report, e.code, "a transaction from member %llu was ignored: %s",
            (unsigned long long)from->from, e.text);
        return;
    }
    if (!node_is_leader(n) || offer(n, note->data, note->data_len, &entry) == OFFER_REFUSED) {
        no.id[0] = entry.id;
        no.id[1] = n->submit.tail;
        no.term = n->raft.current_term;
        no.num[0] = n->submit.ready;
        no.num[1] = vid_equal(&n->submit.stream, &entry.id) ? n->submit.stream_next : 0;
        send_note(n, from->address, from->from, &no);
    }
}

static void on_barrier(struct raft_barrier *req, int status)
{
    struct node *n = req->data;
    struct submit *s = &n->submit;
    struct head_info head;

    free(req);
    if (status != 0 || !node_is_leader(n) || s->barrier_term != n->raft.current_term) {
        return;
    }
    store_agreed(n->db->store, &head);
    s->ready = true;
    s->tail = head.id;
    s->stream_next = 0;
    s->n_proposed = 0;
    grant_ready(n);
    submit_again(n);
}

void submit_leader_changed(struct node *n)
{
    struct submit *s = &n->submit;
    struct raft_barrier *req;

    if (!node_is_leader(n)) {
        s->ready = false;
        s->barrier_term = 0;
        drop_batch(n);
        for (struct inflight *f = s->first; f != NULL; f = f->next) {
            f->sent = 0;
        }
        return;
    }
    if (s->barrier_term == n->raft.current_term) {
        return;
    }
    s->ready = false;
    req = calloc(1, sizeof *req);
    if (req == NULL) {
        return; /* tried again at the next tick */
    }
    req->data = n;
    s->barrier_term = n->raft.current_term;
    if (raft_barrier(&n->raft, req, on_barrier) != 0) {
        s->barrier_term = 0;
        free(req);
    }
}

/* ---- the origin's side ---- */

static void send_part(struct node *n, const struct inflight *f, const char *leader, raft_id id)
{
    const struct entry_part *part = &f->sealed->parts[f->sent];
    struct note note = {.kind = NOTE_SUBMIT, .data = part->data, .data_len = (uint32_t)part->len};

    send_note(n, leader, id, &note);
}

/* Offer one's own part to oneself, the leader. */
static bool offer_part(struct node *n, const struct inflight *f)
{
    const struct entry_part *part = &f->sealed->parts[f->sent];
    struct entry entry;
    struct err e;

    if (entry_decode(part->data, part->len, &entry, &e) != DUST_OK) {
        report_err(&n->db->report, &e);
        return false;
    }
    return offer(n, part->data, part->len, &entry) != OFFER_REFUSED;
}

/* Send what has not been sent, as far as the window allows. */
void submit_pump(struct node *n)
{
    struct submit *s = &n->submit;
    bool own = node_is_leader(n);
    const char *address;
    raft_id leader = node_leader(n, &address);

    if (n->stopping || !n->running || (own ? !s->ready : leader == 0 || !n->grant.leader_ready)) {
        return;
    }
    for (struct inflight *f = s->first; f != NULL; f = f->next) {
        while (f->sent < f->sealed->n_parts && f->sent < f->applied + PARTS_AHEAD) {
            if (own) {
                if (!offer_part(n, f)) {
                    return;
                }
            } else {
                send_part(n, f, address, leader);
            }
            f->sent++;
            s->sent_at_ms = node_now(n);
        }
        if (f->sent < f->sealed->n_parts) {
            return;
        }
    }
}

static void send_again(struct node *n, struct inflight *from, bool all)
{
    for (struct inflight *f = from; f != NULL; f = f->next) {
#if DUST_BUG == BUG_RESEND
        if (f->sent != 0) {
            sealed_renumber(f->sealed, f->seq ^ (uint64_t)node_now(n) << 20);
            for (struct version *v = store_oldest_speculative(n->db->store); v != NULL; v = v->next) {
                if (v->seq == f->seq) {
                    v->id = f->sealed->id;
                }
            }
            f->id = f->sealed->id;
        }
#endif
        f->sent = all ? 0 : f->sent < f->applied ? f->sent : f->applied;
    }
    submit_pump(n);
}

void submit_again(struct node *n)
{
    n->submit.resend_ms = RESEND_MS;
    send_again(n, n->submit.first, true);
}

/* What stands on the leader's tail has not come there, though what is behind it has. */
static void send_lost(struct node *n, const struct vid *tail)
{
    struct submit *s = &n->submit;
    struct inflight *f = s->first;

    while (f != NULL && !vid_equal(&f->parent, tail)) {
        f = f->next;
    }
    if (f == NULL || f->sent == 0 || (f->seq == s->lost_seq && node_now(n) - s->lost_ms < RESEND_MS)) {
        return;
    }
    s->lost_seq = f->seq;
    s->lost_ms = node_now(n);
    send_again(n, f, true);
}

/* The leader cannot use it now. If it waits for an earlier part, or one in flight fits its tail, that was lost on the way;
 * else something earlier is still to be applied here. All behind the one that was lost are refused: once is enough. */
void submit_refused(struct node *n, const struct note *note)
{
    struct submit *s = &n->submit;
    struct inflight *f = s->first;

    if (f == NULL || note->num[0] == 0 || note->term != n->raft.current_term) {
        return;
    }
    if (f->sealed->n_parts > 1) {
        if (s->again_ms != 0 && node_now(n) - s->again_ms < RESEND_MS) {
            return;
        }
        s->again_ms = node_now(n);
    }
    if (note->num[1] != 0 && vid_equal(&f->id, &note->id[0])) {
        f->sent = note->num[1] < f->sent ? (uint32_t)note->num[1] : f->sent;
        submit_pump(n);
    } else if (vid_equal(&f->parent, &note->id[1])) {
        submit_again(n);
    } else {
        send_lost(n, &note->id[1]);
    }
}

static void finish(struct node *n, struct inflight *f, int code, const char *text)
{
    enum outcome what = code == DUST_OK ? OUTCOME_AGREED : code == DUST_VOID ? OUTCOME_VOID : OUTCOME_UNKNOWN;
    struct vid id = f->id;
    uint64_t after = f->after;

    metrics_add(&n->db->metrics,
        what == OUTCOME_AGREED ? METRIC_COMMITS : what == OUTCOME_VOID ? METRIC_COMMITS_VOID : METRIC_COMMITS_UNKNOWN, 1);
    times_add(&n->db->metrics.times[TIMING_COMMIT], clock_us() - f->begun_us);
    atomic_fetch_sub(&n->submit.count, 1);
    sealed_free(f->sealed);
    if (!commit_done(f->commit, code, text) || what == OUTCOME_UNKNOWN) { /* f is gone with it */
        pthread_mutex_lock(&n->mutex);
        outcomes_set(&n->outcomes, &id, after, what);
        pthread_mutex_unlock(&n->mutex);
    }
}

/* A part has been applied here. */
void submit_applied(struct node *n, const struct vid *id, uint32_t part, bool last)
{
    struct submit *s = &n->submit;
    struct inflight *f = s->first;

    if (f == NULL || !vid_equal(&f->id, id)) {
        return;
    }
    s->sent_at_ms = node_now(n);
    s->resend_ms = RESEND_MS;
    if (!last) {
        if (f->applied <= part) {
            f->applied = part + 1;
        }
        submit_pump(n);
        return;
    }
    s->first = f->next;
    finish(n, f, DUST_OK, NULL);
}

void submit_settled(struct node *n)
{
    struct submit *s = &n->submit;
    struct head_info agreed;

    store_agreed(n->db->store, &agreed);
    while (s->first != NULL && heads_has(&n->fsm.heads, &s->first->id) && s->first->seq <= agreed.seq) {
        struct inflight *f = s->first;

        s->first = f->next;
        finish(n, f, DUST_OK, NULL);
    }
}

void submit_void(struct node *n)
{
    struct inflight *f = n->submit.first, *next;

    n->submit.first = NULL;
    for (; f != NULL; f = next) {
        next = f->next;
        finish(n, f, DUST_VOID,
            "another transaction took this one's place in the log (the write turn was lost, or the leader changed "
            "hands); nothing was written: roll back and retry");
    }
}

void submit_fail(struct node *n, int code, const char *text)
{
    struct inflight *f = n->submit.first, *next;

    n->submit.first = NULL;
    for (; f != NULL; f = next) {
        next = f->next;
        finish(n, f, code, text);
    }
}

void submit_tick(struct node *n)
{
    struct submit *s = &n->submit;

    if (node_is_leader(n) && s->barrier_term != n->raft.current_term) {
        submit_leader_changed(n);
    }
    if (s->first != NULL && node_now(n) - s->sent_at_ms >= s->resend_ms) {
        s->sent_at_ms = node_now(n);
        s->resend_ms = 2 * s->resend_ms < RESEND_MAX_MS ? 2 * s->resend_ms : RESEND_MAX_MS;
        send_again(n, s->first, false);
    }
}

/* ---- from SQL threads ---- */

/* What became of a transaction while its job waited: it is not staged any more. It was sent here again, and what another
 * host had sent has been agreed on; or something else has. */
static void overtaken(struct node *n, struct inflight *f)
{
    if (heads_has(&n->fsm.heads, &f->id)) {
        finish(n, f, DUST_OK, NULL);
    } else if (heads_at(&n->fsm.heads, f->after) != NULL) {
        finish(n, f, DUST_VOID, NULL);
    } else { /* pages were fetched meanwhile, and nobody knows what made them */
        finish(n, f, DUST_UNKNOWN, "this member was brought up to date from another one meanwhile");
    }
}

/* Into its place: two SQL threads may have posted in another order than they staged. */
static void submit_run(struct node *n, struct job *job)
{
    struct inflight *f = (struct inflight *)job;
    struct inflight **p = &n->submit.first;
    struct head_info agreed;
    struct vid id;

    if (node_is_ending(n) || n->state == NODE_FAILED) {
        finish(n, f, DUST_CLOSED, n->failure.code != DUST_OK ? n->failure.text : "this member was stopped"); /* unsent */
        return;
    }
    store_agreed(n->db->store, &agreed);
    if (f->seq <= agreed.seq || !store_id_of(n->db->store, f->seq, &id)) {
        overtaken(n, f);
        return;
    }
    if (n->fsm.assembling && vid_equal(&n->fsm.id, &f->id)) {
        f->applied = n->fsm.next_part; /* the rest of it is all that is wanted */
    }
    while (*p != NULL && (*p)->seq < f->seq) {
        p = &(*p)->next;
    }
    f->next = *p;
    *p = f;
    submit_pump(n);
}

void submit_from_sql(void *ctx, struct sealed *sealed, const struct version *v, struct commit *commit)
{
    struct node *n = ctx;
    struct inflight *f = commit_room(commit);

    f->job.run = submit_run;
    f->sealed = sealed;
    f->id = v->id;
    f->parent = v->parent;
    f->seq = v->seq;
    f->after = v->after;
    f->begun_us = clock_us();
    f->commit = commit;
    atomic_fetch_add(&n->submit.count, 1);
    node_post(n, &f->job);
}
