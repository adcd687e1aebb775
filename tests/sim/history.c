/* The history, and the observers in the product's way: what is staged, agreed and published passes here.
 *
 * Whoever stages a version has it noted with the client's transaction that made it. The first member that publishes a
 * version fixes its place, and with it the state that a reader finds there; from then on
 *
 *   every member has to publish the same version at that place, with the same index (the parent rule);
 *   its entry has to be on the disks of a majority of the voters;
 *   a transaction is in the history once, behind all that had been acknowledged before it began; it has read the state
 *   that it stands on; and it may not have been refused;
 *   a term has one leader. */
#include "tests/sim/history.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/registry.h"
#include "raft/node_impl.h"
#include "raft/storage.h"
#include "tests/sim/faults.h"
#include "tests/sim/machine.h"
#include "tests/sim/ondisk.h"
#include "tests/sim/sched.h"
#include "vfs/store.h"

#define TABLE_SIZE 65536

struct made {
    struct vid id, parent;
    struct op *op; /* NULL: of dust itself */
    uint64_t position;
    bool used;
};

struct place {
    struct vid id;
    uint64_t index;
    uint64_t n;
    uint64_t pages; /* a hash of all pages, as the first one who was asked had them; 0: nobody was */
    unsigned pages_of;
};

struct ack {
    uint64_t at_ns, n;
};

static struct {
    struct made made[TABLE_SIZE];
    struct place *places; /* by position, from 0 */
    uint64_t n_places, room;
    struct state *states; /* by n */
    uint64_t n_states, states_room;
    uint64_t acked_n, acked_position;
    struct ack *acks;
    uint64_t n_acks, acks_room;
    uint64_t last_tx;
    uint64_t *leaders; /* by term */
    uint64_t n_leaders;
} history;

uint64_t history_part_max;

static struct made *made_slot(const struct vid *id)
{
    uint64_t h;
    unsigned i;

    memcpy(&h, id->b, sizeof h);
    for (i = (unsigned)(h % TABLE_SIZE); history.made[i].used && !vid_equal(&history.made[i].id, id);
         i = (i + 1) % TABLE_SIZE) {
    }
    return &history.made[i];
}

static const char *short_id(const struct vid *id)
{
    static char text[4][VID_HEX_SIZE];
    static unsigned turn;
    char *t = text[turn++ % 4];

    vid_hex(id, t);
    t[8] = '\0';
    return t;
}

static void push_state(const struct state *s)
{
    if (history.n_states == history.states_room) {
        history.states_room = history.states_room == 0 ? 1024 : 2 * history.states_room;
        history.states = must(realloc(history.states, history.states_room * sizeof *history.states));
    }
    history.states[history.n_states++] = *s;
}

static void push_place(const struct vid *id, uint64_t index)
{
    if (history.n_places == history.room) {
        history.room = history.room == 0 ? 1024 : 2 * history.room;
        history.places = must(realloc(history.places, history.room * sizeof *history.places));
    }
    history.places[history.n_places++] = (struct place){.id = *id, .index = index, .n = history.n_states - 1};
}

void history_begin(const struct vid *id, const struct state *state)
{
    struct made *m = made_slot(id);

    m->used = true;
    m->id = *id;
    push_state(state);
    push_place(id, 0);
}

uint64_t history_n(void)
{
    return history.n_states - 1;
}

uint64_t history_position(void)
{
    return history.n_places - 1;
}

const struct state *history_state(uint64_t n)
{
    return n < history.n_states ? &history.states[n] : NULL;
}

uint64_t history_state_at(uint64_t position)
{
    return history.places[position].n;
}

const struct vid *history_id(uint64_t position)
{
    return &history.places[position].id;
}

bool history_find(const struct vid *id, uint64_t *position)
{
    const struct made *m = made_slot(id);

    if (!m->used || (m->position == 0 && !vid_equal(id, &history.places[0].id))) {
        return false;
    }
    *position = m->position;
    return true;
}

uint64_t history_acked(void)
{
    return history.acked_n;
}

uint64_t history_acked_ago(uint64_t ns)
{
    uint64_t i = history.n_acks;

    while (i > 0 && history.acks[i - 1].at_ns + ns > world.now_ns) {
        i--;
    }
    return i > 0 ? history.acks[i - 1].n : 0;
}

/* ---- clients' transactions ---- */

struct op *op_new(enum op_kind kind)
{
    struct op *op = must(calloc(1, sizeof *op));

    op->kind = kind;
    op->tx = ++history.last_tx;
    op->machine = task_machine();
    op->acked_before = history.acked_position;
    return op;
}

void op_acked(struct op *op)
{
    op->fate = OP_ACKED;
    tally()->acknowledged++;
    trace('a', op->tx, 0);
    say(2, "m%u: tx %llu acknowledged", op->machine->number, (unsigned long long)op->tx);
    if (op->kind == OP_KIND_NONE && !op->staged) {
        return; /* it has written nothing */
    }
    if (!op->staged || op->position == 0) {
        violation("tx %llu is acknowledged on m%u, and nobody has put it into effect", (unsigned long long)op->tx,
            op->machine->number);
    }
    if (op->position > history.acked_position) {
        history.acked_position = op->position;
        history.acked_n = history.places[op->position].n;
        if (history.n_acks == history.acks_room) {
            history.acks_room = history.acks_room == 0 ? 1024 : 2 * history.acks_room;
            history.acks = must(realloc(history.acks, history.acks_room * sizeof *history.acks));
        }
        history.acks[history.n_acks++] = (struct ack){.at_ns = world.now_ns, .n = history.acked_n};
    }
}

void op_refused(struct op *op)
{
    op->fate = OP_REFUSED;
    trace('n', op->tx, 0);
    if (op->position != 0) {
        violation("tx %llu is refused on m%u, but has taken effect", (unsigned long long)op->tx, op->machine->number);
    }
}

void op_unknown(struct op *op)
{
    op->fate = OP_UNKNOWN;
    tally()->unknown++;
    trace('u', op->tx, 0);
}

/* What the transaction makes of the state, and whether it could. */
static void op_effect(const struct op *op, struct state *s)
{
    s->n++;
    s->tx = op->tx;
    switch (op->kind) {
    case OP_KIND_ITEM:
        s->item_n++;
        s->item_sum += op->tx;
        s->item_bytes += op->bytes;
        break;
    case OP_KIND_CLEAR:
        s->item_n = s->item_sum = s->item_bytes = 0;
        break;
    case OP_KIND_COUNTER:
        if (op->value != s->counter[op->which] + 1) {
            violation("tx %llu sets counter %d to %lld, which was %lld", (unsigned long long)op->tx, op->which,
                (long long)op->value, (long long)s->counter[op->which]);
        }
        s->counter[op->which] = op->value;
        break;
    case OP_KIND_LIST:
        if (op->restart) {
            s->list_n = s->list_hash = 0;
        }
        s->list_n++;
        s->list_hash = mix(s->list_hash, op->tx);
        break;
    case OP_KIND_TRANSFER:
        if (op->value + op->other_value != s->account[op->which] + s->account[op->other]) {
            violation("tx %llu makes money", (unsigned long long)op->tx);
        }
        s->account[op->which] = op->value;
        s->account[op->other] = op->other_value;
        break;
    case OP_KIND_NONE:
        break;
    }
}

/* ---- the one history ---- */

static void append(const struct machine *m, const struct vid *id, uint64_t index)
{
    struct made *made = made_slot(id);
    struct op *op = made->op;

    if (!made->used) {
        violation("m%u puts version %s into effect, which nobody has made", m->number, short_id(id));
    }
    ondisk_check_majority(m, index);
    made->position = history.n_places;
    if (op != NULL && op->kind != OP_KIND_NONE) {
        struct state s = history.states[history.n_states - 1];

        if (op->position != 0) {
            violation("tx %llu takes effect a second time", (unsigned long long)op->tx);
        }
        if (op->fate == OP_REFUSED) {
            violation("tx %llu takes effect on m%u, and was refused", (unsigned long long)op->tx, m->number);
        }
        if (op->has_read && op->read_n != s.n) {
            violation("tx %llu has read state %llu, and takes effect on state %llu", (unsigned long long)op->tx,
                (unsigned long long)op->read_n, (unsigned long long)s.n);
        }
        if (op->acked_before >= history.n_places) {
            violation(
                "tx %llu takes effect before what had been acknowledged when it began", (unsigned long long)op->tx);
        }
        op_effect(op, &s);
        push_state(&s);
    }
    if (op != NULL) {
        op->position = history.n_places;
    }
    push_place(id, index);
    tally()->versions++;
    trace('v', history.n_places, index);
    say(2, "m%u: version %llu (%s) at entry %llu, tx %llu, state %llu", m->number,
        (unsigned long long)history.n_places - 1, short_id(id), (unsigned long long)index,
        op != NULL ? (unsigned long long)op->tx : 0, (unsigned long long)history.n_states - 1);
}

/* The machine's agreed version becomes `id`, made on `parent`; or pages have come that bring it from `parent` to there,
 * with an index that may be greater. */
static void published(struct store *s, const struct vid *id, const struct vid *parent, uint64_t index, bool own)
{
    struct machine *m = task_machine();
    const struct made *made = made_slot(id);
    struct head_info was;
    uint64_t position;

    store_agreed(s, &was);
    if (!vid_equal(&was.id, parent)) {
        violation("m%u puts version %s into effect on %s, though it was made on %s", m->number, short_id(id),
            short_id(&was.id), short_id(parent));
    }
    if (made->used && (made->position != 0 || vid_equal(id, parent)) && !vid_equal(&made->parent, parent)) {
        tally()->pulls++;
        position = made->position;
    } else if (history_find(parent, &position)) {
        position++;
    } else {
        violation("m%u is at version %s, which is not in the history", m->number, short_id(parent));
    }
    if (position == history.n_places) {
        append(m, id, index);
    }
    if (!vid_equal(&history.places[position].id, id)) {
        violation("m%u puts version %s into effect as number %llu; others have %s there", m->number, short_id(id),
            (unsigned long long)position, short_id(&history.places[position].id));
    }
    if (index < history.places[position].index || (own && index != history.places[position].index)) {
        violation("m%u puts version %s into effect at entry %llu, others at %llu", m->number, short_id(id),
            (unsigned long long)index, (unsigned long long)history.places[position].index);
    }
    if (position < m->position || (position == m->position && !vid_equal(id, parent) && m->position != 0)) {
        violation("m%u has gone back from version %llu to %llu", m->number, (unsigned long long)m->position,
            (unsigned long long)position);
    }
    m->position = position;
    trace('p', m->number, position);
}

/* For the message: which pages differ, if the other machine is at the same version still. */
static const char *which_pages(struct hosted *one, const struct machine *other)
{
    static char text[200];
    struct hosted *two = other->up ? registry_find(other->path, (int)strlen(other->path)) : NULL;
    struct head_info a, b;
    struct snap x, y;
    uint32_t s, t;

    store_agreed(one->db->store, &a);
    if (two == NULL) {
        return "";
    }
    store_agreed(two->db->store, &b);
    if (!vid_equal(&a.id, &b.id) || store_slot_take(one->db->store, &s, NULL) != DUST_OK ||
        store_slot_take(two->db->store, &t, NULL) != DUST_OK) {
        return "";
    }
    store_pin(one->db->store, s, &x);
    store_pin(two->db->store, t, &y);
    for (uint32_t pgno = 1; pgno <= a.n_pages && strlen(text) < sizeof text - 40; pgno++) {
        uint8_t p[1024], q[1024];
        unsigned at = 0;

        store_read(one->db->store, &x, pgno, 0, sizeof p, p, database_read_base, one->db);
        store_read(two->db->store, &y, pgno, 0, sizeof q, q, database_read_base, two->db);
        while (at < sizeof p && p[at] == q[at]) {
            at++;
        }
        if (at < sizeof p) {
            snprintf(text + strlen(text), sizeof text - strlen(text), "; page %u from byte %u on", pgno, at);
        }
    }
    return text;
}

/* What the machine has put into effect is, page by page, what the others have. */
static void compare_pages(struct store *s, const struct vid *id)
{
    struct machine *m = task_machine();
    struct hosted *h = registry_find(m->path, (int)strlen(m->path));
    struct place *p = &history.places[m->position];
    uint8_t page[1024];
    uint64_t hash = 1;
    struct snap snap;
    uint32_t slot, pgno;

    if (h == NULL || h->db->store != s || h->db->page_size != sizeof page ||
        store_slot_take(s, &slot, NULL) != DUST_OK) {
        return;
    }
    store_pin(s, slot, &snap);
    for (pgno = 1; pgno <= snap.n_pages; pgno++) {
        if (store_read(s, &snap, pgno, 0, sizeof page, page, database_read_base, h->db) != DUST_OK) {
            break; /* damaged, or its disk fails */
        }
        hash = mix_bytes(hash, page, sizeof page);
    }
    if (pgno > snap.n_pages && p->pages == 0) {
        p->pages = hash;
        p->pages_of = m->number;
    } else if (pgno > snap.n_pages && p->pages != hash) {
        violation("m%u and m%u differ in their pages at version %llu (%s)%s", m->number, p->pages_of,
            (unsigned long long)m->position, short_id(id), which_pages(h, &machines[p->pages_of]));
    }
    store_unpin(s, &snap);
    store_slot_give(s, slot);
}

void history_reset_machine(struct machine *m)
{
    m->position = 0;
    m->seen_n = 0;
    m->acked_at_start = history.acked_n;
}

static const char *state_text(const struct state *s, char *text, size_t size)
{
    snprintf(text, size,
        "%llu (tx %llu, counters %lld %lld %lld %lld, accounts %lld %lld %lld %lld, list %llu %04llx, items "
        "%llu %llu %llu)",
        (unsigned long long)s->n, (unsigned long long)s->tx, (long long)s->counter[0], (long long)s->counter[1],
        (long long)s->counter[2], (long long)s->counter[3], (long long)s->account[0], (long long)s->account[1],
        (long long)s->account[2], (long long)s->account[3], (unsigned long long)s->list_n,
        (unsigned long long)s->list_hash & 0xffff, (unsigned long long)s->item_n, (unsigned long long)s->item_sum,
        (unsigned long long)s->item_bytes);
    return text;
}

void history_check_read(const struct machine *m, const struct state *s, uint64_t least, const char *how)
{
    const struct state *want = history_state(s->n);

    trace('s', s->n, least);
    if (want == NULL) {
        violation("m%u, %s: shows state %llu, which is not agreed", m->number, how, (unsigned long long)s->n);
    }
    if (memcmp(want, s, sizeof *s) != 0) {
        char shown[300], made[300];

        violation("m%u, %s: shows state %s; what was made is %s", m->number, how, state_text(s, shown, sizeof shown),
            state_text(want, made, sizeof made));
    }
    if (s->n < least) {
        violation("m%u, %s: shows state %llu, and has to show %llu at least", m->number, how, (unsigned long long)s->n,
            (unsigned long long)least);
    }
}

/* ---- the observers ---- */

int __wrap_store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version *copy, struct err *e);
int __real_store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version *copy, struct err *e);
void __wrap_storage_put(struct storage *s, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb);
void __real_storage_put(struct storage *s, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb);
void __wrap_store_publish(struct store *s, struct version *v, uint64_t index);
void __real_store_publish(struct store *s, struct version *v, uint64_t index);
int __wrap_store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e);
int __real_store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e);
int __wrap_raft_barrier(struct raft *r, struct raft_barrier *req, raft_barrier_cb cb);
int __real_raft_barrier(struct raft *r, struct raft_barrier *req, raft_barrier_cb cb);
int __wrap_seal_begin(struct seal *s, const struct entry_meta *meta, size_t part_max, struct err *e);
int __real_seal_begin(struct seal *s, const struct entry_meta *meta, size_t part_max, struct err *e);
int __wrap_seal_finish(struct seal *s, struct sealed **out, struct err *e);
int __real_seal_finish(struct seal *s, struct sealed **out, struct err *e);
int __wrap_node_start(struct node **out, struct database *db, const struct node_options *opt, struct err *e);
int __real_node_start(struct node **out, struct database *db, const struct node_options *opt, struct err *e);
int __wrap_store_fold_begin(struct store *s, struct fold *f, struct err *e);
int __real_store_fold_begin(struct store *s, struct fold *f, struct err *e);

/* The turn is for liveness: that two members have it is no fault, but should be rare. */
static void count_turns(const struct machine *self)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        struct hosted *h = machines[i].up ? registry_find(machines[i].path, (int)strlen(machines[i].path)) : NULL;

        if (h != NULL && &machines[i] != self && h->db->turn.open) {
            tally()->double_turns++;
        }
    }
}

int __wrap_store_stage(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, void *owner, struct version *copy, struct err *e)
{
    int rv = __real_store_stage(s, id, parent, n_pages, nodes, n, owner, copy, e);
    struct op *op = task_note();
    struct made *made;

    if (rv != DUST_OK) {
        return rv;
    }
    made = made_slot(id);
    if (made->used) {
        violation("version %s is made twice", short_id(id));
    }
    *made = (struct made){.id = *id, .parent = *parent, .op = op, .used = true};
    count_turns(task_machine());
    say(2, "m%u: staged %s on %s, tx %llu", task_machine()->number, short_id(id), short_id(parent),
        op != NULL ? (unsigned long long)op->tx : 0);
    if (op != NULL) {
        if (op->staged) {
            violation("tx %llu is staged a second time", (unsigned long long)op->tx);
        }
        op->staged = true;
        op->id = *id;
        op->after = copy->after;
    }
    return rv;
}

void __wrap_store_publish(struct store *s, struct version *v, uint64_t index)
{
    published(s, &v->id, &v->parent, index, true);
    __real_store_publish(s, v, index);
    compare_pages(s, &v->id);
}

int __wrap_store_agree(struct store *s, const struct vid *id, const struct vid *parent, uint32_t n_pages,
    const uint32_t *nodes, uint32_t n, uint64_t index, struct version **voided, struct err *e)
{
    int rv;

    published(s, id, parent, index, false);
    rv = __real_store_agree(s, id, parent, n_pages, nodes, n, index, voided, e);
    if (rv == DUST_OK || rv == DUST_EXISTS) {
        compare_pages(s, id);
    }
    return rv;
}

/* dust puts a barrier into the log of each of its terms as leader. */
int __wrap_raft_barrier(struct raft *r, struct raft_barrier *req, raft_barrier_cb cb)
{
    if (r->current_term >= history.n_leaders) {
        uint64_t n = 2 * r->current_term + 64;

        history.leaders = must(realloc(history.leaders, n * sizeof *history.leaders));
        memset(history.leaders + history.n_leaders, 0, (n - history.n_leaders) * sizeof *history.leaders);
        history.n_leaders = n;
    }
    if (history.leaders[r->current_term] == 0) {
        history.leaders[r->current_term] = r->id;
        tally()->elections++;
        say(1, "m%u leads in term %llu", task_machine()->number, r->current_term);
    } else if (history.leaders[r->current_term] != r->id) {
        violation("term %llu has two leaders, members %llu and %llu", r->current_term,
            (unsigned long long)history.leaders[r->current_term], r->id);
    }
    return __real_raft_barrier(r, req, cb);
}

void __wrap_storage_put(struct storage *s, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    tally()->installs += trailing == 0;
    tally()->snapshots += trailing != 0;
    __real_storage_put(s, trailing, req, snapshot, cb);
}

int __wrap_seal_begin(struct seal *s, const struct entry_meta *meta, size_t part_max, struct err *e)
{
    size_t least = ENTRY_OVERHEAD + ENTRY_RECORD_OVERHEAD + meta->page_size + meta->sql_len;

    if (history_part_max != 0) {
        part_max = history_part_max > least ? history_part_max : least;
    }
    return __real_seal_begin(s, meta, part_max, e);
}

int __wrap_seal_finish(struct seal *s, struct sealed **out, struct err *e)
{
    int rv = __real_seal_finish(s, out, e);

    tally()->in_parts += rv == DUST_OK && (*out)->n_parts > 1;
    return rv;
}

int __wrap_node_start(struct node **out, struct database *db, const struct node_options *opt, struct err *e)
{
    tally()->starts++;
    return __real_node_start(out, db, opt, e);
}

int __wrap_store_fold_begin(struct store *s, struct fold *f, struct err *e)
{
    tally()->folds++;
    faults_fold(task_machine());
    return __real_store_fold_begin(s, f, e);
}
