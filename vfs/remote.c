#include "vfs/remote.h"

#include <poll.h>
#include <sqlite3.h>
#include <string.h>
#include <time.h>

#include "vfs/attachment.h"
#include "vfs/clock.h"
#include "vfs/file.h"
#include "vfs/intake.h"

#define FOREVER_MS 86400000u
#define SPARE_MS 2000u      /* beyond what the host itself waits for */
#define SPARE_LEAST_MS 100u /* … when a busy handler asks again and again */
#define CHANGE_MS 8000u  /* for another process to take over */
#define HELLO_MS 2000u
#define PLACE_MS 60000u
#define AGAIN_MS 20      /* nothing tells when it is worth while to try again */

/* ---- the connection ---- */

/* It has neither the turn nor a place in the queue any more. */
static void no_turn(struct dfile *f)
{
    if (f->remote.turn_store != NULL) {
        attachment_claims(f->db, f->remote.turn_slot, false);
        store_close(f->remote.turn_store);
        f->remote.turn_store = NULL;
    }
    f->remote.turn = f->remote.old_turn = false;
    f->remote.turn_number = 0;
}

/* The turn that was kept is for a transaction that has begun with it, in the store in which it was given. One that begins
 * now does not see what others had sent to the host before, and would take its place. */
static bool old_turn_counts(const struct dfile *f)
{
    return f->remote.old_turn && f->snap.seq != 0 && f->store == f->remote.turn_store;
}

bool remote_has_turn(const struct dfile *f)
{
    return f->remote.turn_store != NULL;
}

/* The host has ended, or this connection has. What it last said of the turn stands in its store: whether this file had it,
 * and had not yet committed with it; maybe before it was told. */
static void disconnect(struct dfile *f)
{
    uint32_t slot, owner;

    if (f->remote.link.fd >= 0) {
        link_close(&f->remote.link);
    }
    if (f->remote.turn || f->remote.turn_number != 0) {
        owner = store_turn_of(f->remote.turn_store, &slot);
        if (owner == store_owner(f->remote.turn_store) && slot == f->remote.turn_slot) {
            f->remote.old_turn = true;
            f->remote.turn = false;
            f->remote.turn_number = 0;
        } else {
            no_turn(f);
        }
    }
}

void remote_close(struct dfile *f)
{
    no_turn(f);
    if (f->remote.link.fd >= 0) {
        link_close(&f->remote.link);
    }
}

static bool same_host(struct dfile *f)
{
    uint32_t generation, owner;

    return attachment_wait(f->db, 0, &generation, &owner, NULL) == DUST_OK && generation == f->remote.generation;
}

/* One that stands still lets itself be connected to, and does not answer. */
static uint64_t hello_until(uint64_t until_ms)
{
    uint64_t now = clock_ms(), least = (until_ms > now ? until_ms : now) + SPARE_LEAST_MS;

    return least < now + HELLO_MS ? least : now + HELLO_MS;
}

/* Be connected with the host as it is now. DUST_EXISTS: that is this process. DUST_BUSY: there is none in time. */
static int connected(struct dfile *f, uint64_t until_ms, struct err *e)
{
    for (;;) {
        uint32_t generation, owner;
        struct welcome w;
        int rv = attachment_wait(f->db, until_ms, &generation, &owner, e);

        if (rv != DUST_OK) {
            disconnect(f);
            return rv;
        }
        if (f->remote.link.fd >= 0 && f->remote.generation == generation) {
            return DUST_OK;
        }
        disconnect(f);
        rv = link_connect(&f->remote.link.fd, f->db->dir, e);
        if (rv == DUST_OK) {
            rv = attachment_hello(&f->remote.link, owner, 0, false, &w, hello_until(until_ms), e);
        }
        if (rv == DUST_OK) {
            f->remote.generation = generation;
            return DUST_OK;
        }
        disconnect(f);
        if (rv == DUST_VERSION || rv == DUST_NOMEM || clock_ms() >= until_ms) {
            return rv == DUST_NOTFOUND || rv == DUST_CLOSED
                       ? err_set(e, DUST_BUSY, "the process that hosts this member of the cluster does not answer")
                       : rv;
        }
        attachment_lost(f->db, generation);
    }
}

static int lost(struct dfile *f)
{
    uint32_t generation = f->remote.generation;

    disconnect(f);
    attachment_lost(f->db, generation);
    return DUST_CLOSED;
}

static int say(struct dfile *f, uint8_t type, const struct pack *k, uint64_t until_ms)
{
    int rv = link_send(&f->remote.link, type, k->p, k->n, NULL, 0, until_ms);

    return rv == DUST_OK ? rv : lost(f);
}

/* The answer to this request. That to one for the turn, given up or not, may come before it. DUST_CLOSED: the host has
 * ended. DUST_BUSY: no answer in time. */
static int answer(struct dfile *f, uint32_t number, struct link_msg *m, uint64_t until_ms)
{
    for (;;) {
        int rv = link_recv(&f->remote.link, m, until_ms);
        struct err e;

        if (rv == DUST_BUSY || rv == DUST_NOMEM) {
            return rv;
        }
        if (rv != DUST_OK) {
            return lost(f);
        }
        if (m->number == number) {
            return DUST_OK;
        }
        if (m->number == f->remote.turn_number && link_get_reply(m, &e)) {
            f->remote.turn_number = 0;
            f->remote.turn = e.code == DUST_OK;
            if (!f->remote.turn) {
                no_turn(f);
            }
        }
    }
}

/* A request whose answer is a LINK_REPLY: its code. DUST_CLOSED as `answer`. */
static int request(struct dfile *f, uint8_t type, const struct pack *k, uint64_t until_ms, struct err *e)
{
    uint32_t number = ++f->remote.link.number;
    struct link_msg m;
    int rv = say(f, type, k, until_ms);

    if (rv == DUST_OK) {
        rv = answer(f, number, &m, until_ms);
    }
    if (rv == DUST_OK && !link_get_reply(&m, e)) {
        return lost(f);
    }
    if (rv == DUST_BUSY) {
        disconnect(f); /* it stands still: the late answer would be to nobody's question */
        return err_set(e, DUST_BUSY, "the process that hosts this member of the cluster does not answer");
    }
    return rv == DUST_OK ? e->code : rv;
}

/* ---- the turn ---- */

static int ask_turn(struct dfile *f, uint32_t wait_ms, uint32_t lease_ms)
{
    uint8_t body[12];
    struct pack k = {.p = body, .room = sizeof body};

    f->remote.turn_slot = f->has_slot[0] && store_state(f->store) == STORE_LIVE ? f->slot[0] : UINT32_MAX;
    f->remote.turn_store = store_ref(f->store);
    attachment_claims(f->db, f->remote.turn_slot, true);
    pack_uint(&k, wait_ms, 4);
    pack_uint(&k, lease_ms, 4);
    pack_uint(&k, f->remote.turn_slot, 4);
    f->remote.turn_number = ++f->remote.link.number;
    return say(f, LINK_TURN, &k, clock_ms() + SPARE_MS);
}

static int wait_turn(struct dfile *f, uint64_t until_ms)
{
    uint32_t number = f->remote.turn_number;
    struct link_msg m;
    struct err e;
    int rv = answer(f, number, &m, until_ms);

    if (rv != DUST_OK) {
        return rv;
    }
    if (!link_get_reply(&m, &e)) {
        return lost(f);
    }
    f->remote.turn_number = 0;
    f->remote.turn = e.code == DUST_OK;
    if (e.code != DUST_OK) {
        no_turn(f);
    }
    return e.code == DUST_CLOSED ? lost(f) : e.code; /* it is ending */
}

/* The host that there is now keeps it. */
static void pass_old_turn(struct dfile *f)
{
    uint8_t old = 1;
    struct pack k = {.p = &old, .n = 1};
    struct err e;
    int rv = connected(f, clock_ms() + SPARE_MS, &e);

    no_turn(f);
    if (rv == DUST_EXISTS) {
        database_unreserve_turn(f->db, attachment_owner_before(f->db));
    } else if (rv == DUST_OK) {
        f->remote.link.number++;
        say(f, LINK_RELEASE, &k, clock_ms() + SPARE_MS);
    }
}

int remote_take_turn(struct dfile *f, uint32_t timeout_ms, uint32_t lease_ms, bool place)
{
    uint64_t until = clock_ms() + timeout_ms, change_until = clock_ms() + (place ? timeout_ms : CHANGE_MS);
    struct err e;

    if (change_until < until) {
        change_until = until;
    }
    for (;;) {
        uint64_t now = clock_ms();
        uint32_t left = until > now ? (uint32_t)(until - now) : 0;
        int rv = connected(f, change_until, &e);

        if ((rv == DUST_OK || rv == DUST_EXISTS) && f->remote.old_turn) {
            if (old_turn_counts(f)) {
                return DUST_OK;
            }
            pass_old_turn(f);
        }
        if (rv == DUST_EXISTS) {
            file_bind(f);
            return place ? turn_take_place(&f->db->turn, &f->ticket, left, lease_ms)
                         : turn_take(&f->db->turn, &f->ticket, left, lease_ms);
        }
        if (rv != DUST_OK) {
            return rv;
        }
        if (f->remote.turn) {
            return DUST_OK;
        }
        if (f->remote.turn_number == 0) {
            file_bind(f); /* there may be another host */
            rv = ask_turn(f, place ? PLACE_MS : left, lease_ms);
        }
        if (rv == DUST_OK) { /* the host itself says when the time is up, unless the place is to be kept */
            rv = wait_turn(f, place ? until : now + left + TURN_GATE_GRACE_MS + SPARE_MS);
        }
        if (rv == DUST_BUSY && !place) {
            remote_pass_turn(f);
        }
        if (rv != DUST_CLOSED || clock_ms() >= change_until) {
            return rv == DUST_CLOSED ? DUST_BUSY : rv;
        }
    }
}

void remote_pass_turn(struct dfile *f)
{
    struct pack none = {.p = NULL};

    if (f->remote.turn && !same_host(f)) {
        disconnect(f);
    }
    if (f->remote.old_turn) {
        pass_old_turn(f);
    }
    if (f->remote.link.fd >= 0 && (f->remote.turn || f->remote.turn_number != 0)) {
        f->remote.link.number++;
        no_turn(f);
        say(f, LINK_RELEASE, &none, clock_ms() + SPARE_MS);
    }
    turn_drop(&f->db->turn, &f->ticket);
}

bool remote_turn_held(struct dfile *f)
{
    return f->remote.turn || old_turn_counts(f) || turn_held(&f->db->turn, &f->ticket);
}

bool remote_turn_keep(struct dfile *f)
{
    struct pack none = {.p = NULL};

    if (f->remote.turn && same_host(f)) {
        f->remote.link.number++;
        say(f, LINK_KEEP, &none, clock_ms() + SPARE_MS);
        return true;
    }
    return f->remote.turn || old_turn_counts(f) || turn_keep(&f->db->turn, &f->ticket);
}

/* ---- reads ---- */

int remote_confirm(struct dfile *f, uint32_t wait_ms, struct err *e)
{
    uint64_t until = clock_ms() + wait_ms;
    uint32_t spare_ms = wait_ms < SPARE_LEAST_MS ? SPARE_LEAST_MS : wait_ms < SPARE_MS ? wait_ms : SPARE_MS;

    for (;;) {
        uint64_t now = clock_ms();
        uint32_t left = until > now ? (uint32_t)(until - now) : 1;
        uint8_t body[12];
        struct pack k = {.p = body, .room = sizeof body};
        int rv = connected(f, until, e);

        if (rv == DUST_EXISTS) {
            return f->db->rep.confirm_read(f->db->rep.ctx, f->consistency, f->freshness_ms, left, e);
        }
        if (rv != DUST_OK) {
            return rv;
        }
        pack_uint(&k, (uint64_t)f->consistency, 4);
        pack_uint(&k, f->freshness_ms, 4);
        pack_uint(&k, left, 4);
        rv = request(f, LINK_CONFIRM, &k, now + left + spare_ms, e);
        if (rv != DUST_CLOSED || clock_ms() >= until) {
            return rv == DUST_CLOSED ? err_set(e, DUST_BUSY, "the process that hosted this member has ended") : rv;
        }
    }
}

/* This process is the host now: by the id, which may yet have to be sent again by whoever made it. */
static int wait_here(struct dfile *f, const struct vid *id, uint64_t until)
{
    struct timespec ms5 = {.tv_nsec = 5000000};

    for (;;) {
        uint64_t now = clock_ms(), seq = store_seq_of(f->db->store, id);

        if (seq != 0) {
            return store_wait_agreed(f->db->store, seq, now < until ? (uint32_t)(until - now) : 0);
        }
        if (now >= until) {
            return DUST_BUSY;
        }
        nanosleep(&ms5, NULL);
    }
}

int remote_wait_agreed(struct dfile *f, uint64_t seq, const struct vid *id, uint32_t timeout_ms)
{
    uint64_t until = clock_ms() + timeout_ms;
    uint32_t first = 0;
    struct head_info agreed;
    struct err e;

    store_agreed(f->store, &agreed);
    if (agreed.seq == seq || store_wait_agreed(f->store, seq, 0) == DUST_OK) {
        return DUST_OK;
    }
    for (;;) {
        uint8_t body[28];
        struct pack k = {.p = body, .room = sizeof body};
        uint64_t now = clock_ms();
        int rv = connected(f, until, &e);

        if (rv == DUST_EXISTS) {
            return vid_none(id) ? DUST_VOID : wait_here(f, id, until);
        }
        if (rv != DUST_OK) {
            return rv == DUST_CLOSED ? DUST_VOID : DUST_BUSY;
        }
        first = first == 0 ? f->remote.generation : first;
        if (vid_none(id) && (f->remote.generation != first || store_state(f->store) != STORE_LIVE)) {
            return DUST_VOID;
        }
        pack_uint(&k, f->remote.generation == first && store_state(f->store) == STORE_LIVE ? seq : 0, 8);
        pack_uint(&k, until > now ? until - now : 0, 4);
        pack_bytes(&k, id->b, sizeof id->b);
        rv = request(f, LINK_AGREED, &k, until + SPARE_MS, &e);
        if (rv != DUST_CLOSED || clock_ms() >= until) {
            return rv == DUST_CLOSED ? DUST_BUSY : rv;
        }
    }
}

/* ---- commits ---- */

/* A slot for the version to come, in the store of the host as it is now. */
static int have_next_slot(struct dfile *f, struct store **of, uint32_t *slot, struct err *e)
{
    struct store *now = database_bound(f->db);
    int rv = DUST_OK;

    if (f->next_store != NULL && f->next_store != now) {
        store_slot_give(f->next_store, f->next_slot);
        store_close(f->next_store);
        f->next_store = NULL;
    }
    if (f->next_store == NULL) {
        rv = store_slot_take(now, &f->next_slot, e);
        f->next_store = rv == DUST_OK ? store_ref(now) : NULL;
    }
    store_close(now);
    *of = f->next_store;
    *slot = f->next_slot;
    return rv;
}

static int send_commit(struct dfile *f, const struct sealed *sealed, uint32_t slot, bool again, uint64_t until)
{
    uint8_t head[64];
    struct pack k = {.p = head, .room = sizeof head};
    int rv;

    f->remote.link.number++;
    pack_uint(&k, slot, 4);
    pack_uint(&k, sealed->n_parts, 4);
    pack_uint(&k, (again ? 1u : 0u) | (f->remote.old_turn ? 2u : 0u), 1);
    pack_bytes(&k, sealed->parent.b, sizeof sealed->parent.b);
    pack_bytes(&k, sealed->id.b, sizeof sealed->id.b);
    rv = say(f, LINK_COMMIT, &k, until);
    for (uint32_t i = 0; rv == DUST_OK && i < sealed->n_parts; i++) {
        rv = link_send(&f->remote.link, LINK_PART, NULL, 0, sealed->parts[i].data, sealed->parts[i].len, until);
        rv = rv == DUST_OK ? rv : lost(f);
    }
    return rv;
}

/* The host's answer (*known), or none: as `answer`. */
static int wait_done(struct dfile *f, bool *known, uint64_t *after, uint64_t until, struct err *e)
{
    uint32_t number = f->remote.link.number;
    struct link_done d;
    struct link_msg m;
    int rv = answer(f, number, &m, until);

    if (rv != DUST_OK) {
        return rv;
    }
    no_turn(f); /* it was passed on when the transaction was staged */
    if (!link_get_done(&m, &d)) {
        return lost(f);
    }
    *after = d.after != 0 ? d.after : *after;
    if (d.code == DUST_OK) {
        *known = true;
        f->next_snap = (struct snap){.seq = d.seq, .n_pages = d.n_pages, .slot = f->next_slot};
        return DUST_OK;
    }
    err_set(e, d.code, "%.*s", (int)d.text_len, d.text);
    *known = d.code != DUST_CLOSED; /* it is ending */
    return *known ? d.code : lost(f);
}

/* One try. *again: it may have been seen by a host. *known: what is returned is its outcome; otherwise it says what stood
 * in the way, DUST_CLOSED: a change of the host. */
static int commit_once(struct dfile *f, const struct sealed *sealed, bool *again, bool *known, uint64_t *after,
    uint64_t until, struct err *e)
{
    struct pack none = {.p = NULL};
    struct store *of;
    uint32_t slot;
    int rv = connected(f, until, e);

    *known = false;
    if (rv == DUST_CLOSED) { /* the member is none any more */
        *known = true;
        return *again ? COMMIT_PENDING : rv;
    }
    if (rv != DUST_OK && rv != DUST_EXISTS) {
        return rv;
    }
    if (have_next_slot(f, &of, &slot, e) != DUST_OK) {
        return e->code;
    }
    if (store_attached(of) != (rv == DUST_OK)) {
        return DUST_CLOSED;
    }
    if (rv == DUST_EXISTS) {
        *known = true;
        return intake_here(f->db, sealed, *again, f->remote.old_turn, slot, &f->next_snap, after, until, e);
    }
    rv = send_commit(f, sealed, slot, *again, until);
    *again = true;
    if (rv == DUST_OK) {
        uint64_t since = clock_ms();

        while ((rv = wait_done(f, known, after, until, e)) == DUST_BUSY && !*known && clock_ms() >= until &&
               store_patience(f->store, since, f->db->options.timeout_ms) > until) {
            until = store_patience(f->store, since, f->db->options.timeout_ms);
        }
    }
    if (rv == DUST_BUSY && !*known) {
        f->remote.link.number++;
        say(f, LINK_ABANDON, &none, clock_ms() + SPARE_MS);
        *known = true;
        return COMMIT_PENDING;
    }
    if (rv != DUST_OK && !*known && rv != DUST_CLOSED) {
        disconnect(f); /* the answer cannot be taken in */
    }
    return rv;
}

int remote_commit(struct dfile *f, struct sealed *sealed, uint64_t *after, struct err *e)
{
    uint64_t until = clock_ms() + f->db->options.timeout_ms;
    bool again = false, known;
    int rv;

    *after = store_applied(f->store);
    for (;;) {
        f->remote.resent = again;
        rv = commit_once(f, sealed, &again, &known, after, until, e);
        if (known || clock_ms() >= until || (rv != DUST_CLOSED && !again)) {
            break;
        }
        if (rv != DUST_CLOSED) {
            poll(NULL, 0, AGAIN_MS); /* of memory, or of files, or of slots there is none, now */
        }
    }
    if (!known) {
        rv = again               ? COMMIT_PENDING
             : rv == DUST_CLOSED ? err_set(e, DUST_BUSY, "the process that hosted this member has ended")
                                 : rv;
    }
    sealed_free(sealed);
    if (f->remote.turn || f->remote.old_turn) {
        remote_pass_turn(f);
    }
    if (rv != DUST_OK && f->next_store != NULL) {
        struct snap staged = {.slot = f->next_slot};

        store_unpin(f->next_store, &staged); /* the host may have made it hold the version */
    }
    return rv;
}

/* ---- the rest ---- */

void remote_damage(struct dfile *f, uint32_t pgno, bool in_pages)
{
    uint8_t body[5];
    struct pack k = {.p = body, .room = sizeof body};
    struct err e;

    if (connected(f, clock_ms(), &e) == DUST_OK) {
        f->remote.link.number++;
        pack_uint(&k, pgno, 4);
        pack_uint(&k, in_pages, 1);
        say(f, LINK_DAMAGE, &k, clock_ms() + SPARE_MS);
    }
}

int remote_call(struct dfile *f, const void *body, size_t n, bool repeat, bool (*rows)(void *ctx, const struct link_msg *m),
    void *ctx, struct err *e)
{
    uint64_t until = clock_ms() + FOREVER_MS, change_until = clock_ms() + CHANGE_MS;
    struct pack k = {.p = (uint8_t *)body, .n = n};
    int rv;

    do {
        uint32_t number;

        rv = connected(f, change_until, e);
        if (rv != DUST_OK) {
            return rv;
        }
        number = ++f->remote.link.number;
        rv = say(f, LINK_CALL, &k, clock_ms() + SPARE_MS);
        while (rv == DUST_OK) {
            struct link_msg m;

            rv = answer(f, number, &m, until);
            if (rv == DUST_OK && m.type == LINK_REPLY) {
                if (link_get_reply(&m, e)) {
                    return e->code;
                }
                rv = lost(f);
            } else if (rv == DUST_OK) {
                repeat = false; /* a part has been handed on */
                if (m.type != LINK_ROWS || !rows(ctx, &m)) {
                    disconnect(f);
                    return err_set(e, DUST_NOMEM, "out of memory");
                }
            }
        }
    } while (repeat && rv == DUST_CLOSED && clock_ms() < change_until);
    return err_set(e, DUST_UNKNOWN,
        "the process that hosted this member has ended in the middle of the call: look what has become of it, and try "
        "again");
}
