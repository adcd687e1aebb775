/* The giving side of a state transfer: pages of one agreed version, for a member that asks (transfer.c).
 *
 * A session begins with the first question of its number and pins the newest agreed version; what is asked for is
 * read from that, however long it takes. It is ended by the next one of the same member, by silence (SESSION_MS), or
 * with the instance. Nothing waits for it: a session that was ended is told so by an answer of another version. */
#include <stdlib.h>
#include <string.h>

#include "raft/fetch.h"
#include "raft/node_impl.h"
#include "vfs/lockpage.h"

#define SESSION_MS 15000u
#define LAST_CHUNK_MS 3000u /* it may be asked for again, but not for long */

static void end_session(struct node *n, struct session *s)
{
    if (s->to != 0) {
        store_unpin(n->db->store, &s->snap);
        store_slot_give(n->db->store, s->slot);
        memset(s, 0, sizeof *s);
    }
}

static struct session *session_of(struct node *n, raft_id to, uint64_t req)
{
    struct session *s = NULL;

    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        struct session *one = &n->give.session[i];

        if (one->to == to) {
            if (one->req == req) {
                return one;
            }
            end_session(n, one);
        }
        if (one->to == 0) {
            s = one;
        }
    }
    if (s == NULL || store_slot_take(n->db->store, &s->slot, NULL) != DUST_OK) {
        return NULL;
    }
    s->to = to;
    s->req = req;
    store_pin(n->db->store, s->slot, &s->snap);
    store_agreed(n->db->store, &s->head);
    s->index = fsm_covered(n);
    return s;
}

void give_received(struct node *n, const struct wire_head *from, const struct note *note)
{
    struct note r = {.kind = NOTE_FETCH_REPLY, .req = note->req, .num = {note->num[0]}};
    uint32_t size = n->db->page_size, pgno;
    struct session *s;
    struct fetch want;
    uint8_t *out;
    size_t len = 0;
    int rv;

    if (!node_is_leader(n) || !fetch_decode(note, &want)) {
        r.code = DUST_AGAIN;
        send_note(n, from->address, from->from, &r);
        return;
    }
    s = session_of(n, from->from, note->req);
    out = s != NULL ? malloc(FETCH_CHUNK_BYTES + 2 * (size_t)fetch_page_bytes(size)) : NULL;
    if (out == NULL) {
        r.code = DUST_AGAIN;
        send_note(n, from->address, from->from, &r);
        return;
    }
    s->used_ms = node_now(n);
    for (pgno = want.first; pgno < want.first + want.n && pgno <= s->head.n_pages && len < FETCH_CHUNK_BYTES; pgno++) {
        uint8_t hash[FETCH_HASH_SIZE], *page;

        if (pgno == lock_page(size)) {
            continue;
        }
        page = fetch_page_put(out + len, pgno);
        rv = store_read(n->db->store, &s->snap, pgno, 0, size, page, database_read_base, n->db);
        if (rv == DUST_CORRUPT || rv == -SQLITE_CORRUPT) {
            database_found_damage(n->db, pgno, rv == DUST_CORRUPT ? "pages" : "app.db");
        }
        if (rv != DUST_OK) {
            r.code = DUST_IO;
            break;
        }
        if (pgno - want.first < want.n_hashes) {
            fetch_hash(hash, page, size);
            if (memcmp(hash, want.hashes + (size_t)(pgno - want.first) * sizeof hash, sizeof hash) == 0) {
                continue;
            }
        }
        len += fetch_page_bytes(size);
    }
    r.num[1] = pgno - want.first;
    r.num[2] = s->index;
    r.num[3] = s->head.n_pages;
    r.num[4] = size;
    r.id[0] = s->head.id;
    r.data = out;
    r.data_len = (uint32_t)len;
    send_note(n, from->address, from->from, &r);
    if (pgno > s->head.n_pages) {
        s->used_ms = node_now(n) - SESSION_MS + LAST_CHUNK_MS;
    }
    free(out);
}

void give_tick(struct node *n)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        struct session *s = &n->give.session[i];

        if (s->to != 0 && node_now(n) - s->used_ms > SESSION_MS) {
            end_session(n, s);
        }
    }
}

void give_deinit(struct node *n)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        end_session(n, &n->give.session[i]);
    }
}
