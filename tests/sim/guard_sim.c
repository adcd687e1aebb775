/* guard_sim - libraft, with and without the guard, in a simulated bad world.
 *
 * One run is one seed: three or five libraft instances in this process, each over an in-memory raft_io, on
 * virtual time. One loop takes one random step at a time: deliver a message, finish a disk operation, let
 * time pass, submit a command, cut a link, crash a member, start it again. All chance, libraft's included,
 * comes from one generator, so a seed always gives the same run. The bad times end after nine tenths of the
 * steps: all links are healed, all members started, and they must come to agree.
 *
 * What is simulated:
 *
 * - links: FIFO, as a TCP connection; a cut, or a crash, loses what is under way.
 * - disks: append, truncate and snapshot_put are queued and finish later, in raft_uv's order; a crash loses
 *   those that were not finished, or some of them. Term and vote are stored at once. As in raft_uv, a
 *   truncate is lost that comes behind a pending snapshot_put. With --disk-failures any write may fail, and
 *   may or may not have reached the disk all the same.
 * - clients: commands, several at a time; transfers of leadership; with the guard, changes of membership, up
 *   from a cluster of one.
 * - by seed: pre-vote; snapshots, synchronous or not, and their thresholds; the size of the parts of a send;
 *   and, every few hundred steps, how bad the times are.
 *
 * What is checked, at all times:
 *
 * - no two members apply different commands at one index, or reach different states (FSM and snapshots);
 * - an acknowledged command is on the disks of a majority when it is acknowledged, and is never replaced;
 * - a term has at most one leader;
 * - if two logs on disk have an entry of the same index and term, they are equal up to there;
 * - a log on disk has no gap and no overlap; libraft does not crash, hang, or shut itself down;
 *
 * and at the end that every member is up and has applied the same, every acknowledged command included.
 *
 * Each seed runs in a child process, so that a crash of libraft is one seed's result. See guard_sim --help.
 */
#undef NDEBUG
#include <assert.h>
#include <errno.h>
#include <raft.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "raft/guard.h"

#define MEMBERS_MAX 5
#define PAYLOAD_MAX 192  /* bytes of an entry: 8 for a command, a configuration of five for the longest */
#define BATCH_MAX 3      /* commands submitted at once */
#define SEED_SECONDS 120 /* a seed that takes longer is taken to hang */
#define HEAL_MS 240000   /* virtual time allowed for coming to agree at the end */
#define REASON_MAX 240
#define JOBS_MAX 64

#define ELECTION_MS 1000
#define HEARTBEAT_MS 100
#define INSTALL_MS 5000

/* ---- Options and results ------------------------------------------------------------------------------- */

struct options {
    uint64_t seed_from, n_seeds;
    unsigned long n_steps;
    unsigned n_members;
    unsigned n_jobs;
    bool disk_failures;
    bool guard;
    bool expect_violations;
    bool ci;
    bool quiet; /* do not print the failing seeds */
    bool verbose;
};

/* What one seed has seen; counted by the child in memory shared with the parent. */
struct tally {
    uint64_t elections, acknowledged, crashes, faults, log_cuts, snapshots, installs, transfers, changes;
    struct guard_counts guard;
};

enum verdict { RUNNING = 0, PASSED, UNSAFE, STUCK, CRASHED };

struct outcome {
    enum verdict verdict;
    char reason[REASON_MAX];
    struct tally tally;
};

/* ---- The world ----------------------------------------------------------------------------------------- */

struct stored_entry {
    raft_term term;
    unsigned short type;
    size_t len; /* <= PAYLOAD_MAX */
    uint8_t payload[PAYLOAD_MAX];
};

/* A snapshot's content: the FSM is a hash over all commands applied and their indexes. */
struct fsm_state {
    raft_index index;
    uint64_t hash;
};

struct stored_snapshot {
    raft_index index; /* 0: none */
    raft_term term;
    raft_index conf_index;
    unsigned n_servers;
    struct {
        raft_id id;
        int role;
    } servers[MEMBERS_MAX];
    struct fsm_state state;
};

/* What would be found after a crash. entries[i] is the entry of index first + i. */
struct disk {
    raft_term term;
    raft_id vote;
    struct stored_snapshot snapshot;
    raft_index first;
    size_t n, cap;
    struct stored_entry *entries;
};

/* An append or a truncate under way, or an append's request kept back after a failure. */
struct op {
    struct op *next;
    uint64_t seq;
    bool truncate;
    raft_index index; /* of the first entry; from where to cut */
    unsigned n;
    const struct raft_entry *entries; /* libraft's, until the callback */
    struct raft_io_append *req;
    raft_io_append_cb cb;
};

struct put {
    bool pending;
    bool install;
    uint64_t seq;
    unsigned trailing;
    const struct raft_snapshot *snapshot; /* libraft's, until the callback */
    struct raft_io_snapshot_put *req;
    raft_io_snapshot_put_cb cb;
};

struct member {
    struct raft_io io; /* first: libraft hands this back */
    struct raft raft;
    struct raft_fsm fsm;
    struct guard guard;
    struct sim *sim;
    unsigned id; /* 1..n_members; its address is the number as text */
    char address[8];
    bool up;
    unsigned generation; /* counts the starts: completions of a former life are void */
    unsigned long down_until;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv;
    raft_io_close_cb close_cb;
    raft_term barrier_term; /* term in which the barrier was submitted */
    raft_index cut_index;   /* handed from the guard to the next life: leave out the log from here on */
    struct fsm_state state;
    struct fsm_state frozen; /* the state of which an asynchronous snapshot is being taken */
    struct raft_transfer *transfer;

    struct disk disk;
    uint64_t seq;
    raft_index next_index; /* of the next append: raft_uv's append_next_index */
    struct op *ops, **ops_tail;
    struct op *kept; /* appends whose callback the guard withheld, newest first */
    struct put put;
    bool barrier_open; /* an append was made since the last truncate or put: a further truncate would not be
                          lost */
    struct raft_io_snapshot_get *get;
    raft_io_snapshot_get_cb get_cb;
    struct raft_io_async_work *work;
    raft_io_async_work_cb work_cb;
};

/* The completion of a send; it never happens from within the send. */
struct completion {
    struct completion *next;
    struct member *member;
    unsigned generation;
    struct raft_io_send *req;
    raft_io_send_cb cb;
    int status;
};

/* A message under way. The payloads are our own copies, in `entries` and `snapshot`. */
struct message {
    struct message *next;
    struct raft_message m;
    struct stored_entry *entries;
    struct stored_snapshot snapshot;
    struct completion *completion; /* of an InstallSnapshot: pending until it has arrived or is lost */
};

struct link {
    bool cut;
    struct message *head, **tail;
};

/* What is known to have happened at one index. */
struct fact {
    uint64_t command;      /* applied by someone; 0: none */
    uint64_t hash;         /* the FSM's hash after it */
    unsigned by;           /* who applied it first */
    uint64_t acknowledged; /* the command acknowledged to a client; 0: none */
};

/* How bad the times are; chosen anew now and then. Chances are in 10,000 a step. */
struct weather {
    unsigned long until;
    unsigned crash, cut, heal, isolate;
    unsigned deliver, disk, submit; /* weights; the rest of 100 is time passing */
    unsigned slow_member;           /* its disk is nine times slower; 0: none */
};

struct sim {
    const struct options *opt;
    struct outcome *outcome;
    uint64_t rng;
    raft_time now;
    unsigned long step;
    bool healing;
    uint64_t n_commands;
    struct member *members[MEMBERS_MAX + 1];
    struct link links[MEMBERS_MAX + 1][MEMBERS_MAX + 1];
    struct completion *completions, **completions_tail;
    struct fact *facts;
    size_t n_facts;
    raft_index last_acknowledged;
    unsigned *leaders; /* by term: who led; 0: nobody */
    size_t n_leaders;
    struct weather weather;

    /* Varied by seed. */
    bool pre_vote, snapshots, async_snapshots, changes, grow, transfers;
    unsigned threshold, trailing;
    unsigned window; /* a client submits while fewer entries than this are uncommitted */
    unsigned part_entries;
    size_t part_size;
};

static uint64_t random64(struct sim *s)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 7;
    s->rng ^= s->rng << 17;
    return s->rng;
}

static unsigned random_below(struct sim *s, unsigned n)
{
    return (unsigned)(random64(s) % n);
}

static bool chance(struct sim *s, unsigned per_10000)
{
    return random_below(s, 10000) < per_10000;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    h ^= x + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdull;
    return h ^ (h >> 32);
}

/* End the run: this seed has failed. */
static void __attribute__((format(printf, 3, 0), noreturn))
end_run(struct sim *s, enum verdict verdict, const char *fmt, va_list ap)
{
    char text[REASON_MAX - 40];

    vsnprintf(text, sizeof text, fmt, ap);
    snprintf(s->outcome->reason, sizeof s->outcome->reason, "step %lu: %s", s->step, text);
    s->outcome->verdict = verdict;
    _exit(0);
}

/* A promise was broken. */
static void __attribute__((format(printf, 2, 3), noreturn)) violation(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(s, UNSAFE, fmt, ap);
}

/* Nothing was broken, but there is no way on. */
static void __attribute__((format(printf, 2, 3), noreturn)) stuck(struct sim *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    end_run(s, STUCK, fmt, ap);
}

static void *must(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "guard_sim: out of memory\n");
        _exit(1);
    }
    return p;
}

/* ---- The facts: what was applied, acknowledged, and who led -------------------------------------------- */

static struct fact *fact_at(struct sim *s, raft_index index)
{
    if (index >= s->n_facts) {
        size_t n = 2 * (size_t)index + 64;

        s->facts = must(realloc(s->facts, n * sizeof *s->facts));
        memset(s->facts + s->n_facts, 0, (n - s->n_facts) * sizeof *s->facts);
        s->n_facts = n;
    }
    return &s->facts[index];
}

static void note_applied(struct member *m, raft_index index, uint64_t command)
{
    struct sim *s = m->sim;
    struct fact *f = fact_at(s, index);

    m->state.hash = mix(mix(m->state.hash, index), command);
    m->state.index = index;
    if (f->acknowledged != 0 && f->acknowledged != command) {
        violation(s, "entry %llu: member %u applies command %llu, but %llu was acknowledged", index, m->id,
            (unsigned long long)command, (unsigned long long)f->acknowledged);
    }
    if (f->command == 0) {
        f->command = command;
        f->hash = m->state.hash;
        f->by = m->id;
    } else if (f->command != command) {
        violation(s, "entry %llu: member %u applies command %llu, member %u applied %llu", index, m->id,
            (unsigned long long)command, f->by, (unsigned long long)f->command);
    } else if (f->hash != m->state.hash) {
        violation(s, "entry %llu: members %u and %u applied the same command but differ in state", index,
            m->id, f->by);
    }
}

/* A snapshot is put in place of the FSM's state: it must be what others had at that index. */
static void note_restored(struct member *m, const struct fsm_state *state, raft_index index)
{
    struct sim *s = m->sim;
    raft_index i = index;

    while (i > 0 && fact_at(s, i)->command == 0) {
        i--;
    }
    if (i > 0 && fact_at(s, i)->hash != state->hash) {
        violation(
            s, "member %u: the snapshot at entry %llu does not match the commands applied", m->id, index);
    }
    m->state = *state;
}

/* Whether the disk holds what the leader's log has at this index. */
static bool disk_has(const struct disk *d, raft_index index, uint64_t command)
{
    const struct stored_entry *e;

    if (index <= d->snapshot.index) {
        return true;
    }
    if (index < d->first || index >= d->first + d->n) {
        return false;
    }
    e = &d->entries[index - d->first];
    return e->type == RAFT_COMMAND && memcmp(e->payload, &command, sizeof command) == 0;
}

static void note_acknowledged(struct member *leader, raft_index index, uint64_t command)
{
    struct sim *s = leader->sim;
    struct fact *f = fact_at(s, index);
    unsigned i, n_voters = 0, n_have = 0;

    for (i = 0; i < leader->raft.configuration.n; i++) {
        const struct raft_server *server = &leader->raft.configuration.servers[i];

        if (server->role == RAFT_VOTER) {
            n_voters++;
            n_have += disk_has(&s->members[server->id]->disk, index, command);
        }
    }
    if (n_have <= n_voters / 2) {
        violation(s, "entry %llu: command %llu is acknowledged, but on the disks of %u of %u voters only",
            index, (unsigned long long)command, n_have, n_voters);
    }
    if (f->command != 0 && f->command != command) {
        violation(s, "entry %llu: command %llu is acknowledged, but %llu was applied", index,
            (unsigned long long)command, (unsigned long long)f->command);
    }
    f->acknowledged = command;
    if (index > s->last_acknowledged) {
        s->last_acknowledged = index;
    }
    s->outcome->tally.acknowledged++;
}

static void note_leader(struct member *m)
{
    struct sim *s = m->sim;
    size_t term = (size_t)m->raft.current_term;

    if (term >= s->n_leaders) {
        size_t n = 2 * term + 64;

        s->leaders = must(realloc(s->leaders, n * sizeof *s->leaders));
        memset(s->leaders + s->n_leaders, 0, (n - s->n_leaders) * sizeof *s->leaders);
        s->n_leaders = n;
    }
    if (s->leaders[term] == 0) {
        s->leaders[term] = m->id;
        s->outcome->tally.elections++;
    } else if (s->leaders[term] != m->id) {
        violation(s, "term %zu has two leaders, %u and %u", term, s->leaders[term], m->id);
    }
}

/* ---- Configurations and entries, copied in and out of libraft's memory --------------------------------- */

static void configuration_make(
    struct sim *s, struct raft_configuration *c, const struct stored_snapshot *from)
{
    unsigned i;

    raft_configuration_init(c);
    for (i = 0; i < from->n_servers; i++) {
        raft_id id = from->servers[i].id;

        if (raft_configuration_add(c, id, s->members[id]->address, from->servers[i].role) != 0) {
            must(NULL);
        }
    }
}

static void configuration_store(struct stored_snapshot *to, const struct raft_configuration *c)
{
    unsigned i;

    assert(c->n <= MEMBERS_MAX);
    to->n_servers = c->n;
    for (i = 0; i < c->n; i++) {
        to->servers[i].id = c->servers[i].id;
        to->servers[i].role = c->servers[i].role;
    }
}

static void entry_store(struct stored_entry *to, const struct raft_entry *from)
{
    assert(from->buf.len <= PAYLOAD_MAX);
    memset(to, 0, sizeof *to);
    to->term = from->term;
    to->type = from->type;
    to->len = from->buf.len;
    memcpy(to->payload, from->buf.base, from->buf.len);
}

/* An array of n entries in one batch, as raft_uv's decoder makes it; NULL if n is 0. */
static struct raft_entry *entries_make(const struct stored_entry *from, size_t n)
{
    struct raft_entry *entries;
    uint8_t *batch;
    size_t i;

    if (n == 0) {
        return NULL;
    }
    entries = must(raft_calloc(n, sizeof *entries));
    batch = must(raft_malloc(n * PAYLOAD_MAX));
    for (i = 0; i < n; i++) {
        entries[i].term = from[i].term;
        entries[i].type = from[i].type;
        entries[i].buf.base = batch + i * PAYLOAD_MAX;
        entries[i].buf.len = from[i].len;
        entries[i].batch = batch;
        memcpy(entries[i].buf.base, from[i].payload, from[i].len);
    }
    return entries;
}

static void state_make(struct raft_buffer *buf, const struct fsm_state *state)
{
    buf->len = sizeof *state;
    buf->base = must(raft_malloc(sizeof *state));
    memcpy(buf->base, state, sizeof *state);
}

/* Gather a snapshot's buffers. */
static void snapshot_store(struct stored_snapshot *to, const struct raft_snapshot *from)
{
    uint8_t *p = (uint8_t *)&to->state;
    unsigned i;

    to->index = from->index;
    to->term = from->term;
    to->conf_index = from->configuration_index;
    configuration_store(to, &from->configuration);
    for (i = 0; i < from->n_bufs; i++) {
        memcpy(p, from->bufs[i].base, from->bufs[i].len);
        p += from->bufs[i].len;
    }
    assert(p == (uint8_t *)&to->state + sizeof to->state);
}

static struct raft_snapshot *snapshot_make(struct sim *s, const struct stored_snapshot *from)
{
    struct raft_snapshot *snapshot = must(raft_calloc(1, sizeof *snapshot));

    snapshot->index = from->index;
    snapshot->term = from->term;
    snapshot->configuration_index = from->conf_index;
    configuration_make(s, &snapshot->configuration, from);
    snapshot->n_bufs = 1;
    snapshot->bufs = must(raft_malloc(sizeof *snapshot->bufs));
    state_make(&snapshot->bufs[0], &from->state);
    return snapshot;
}

/* ---- The disk: what an operation does when it takes effect --------------------------------------------- */

static void disk_append(struct member *m, const struct op *op)
{
    struct disk *d = &m->disk;
    unsigned i;

    if (op->index != d->first + d->n) {
        violation(m->sim, "member %u: its log on disk ends at %llu, and %llu is written next", m->id,
            d->first + d->n - 1, op->index);
    }
    if (d->n + op->n > d->cap) {
        d->cap = 2 * (d->n + op->n);
        d->entries = must(realloc(d->entries, d->cap * sizeof *d->entries));
    }
    for (i = 0; i < op->n; i++) {
        entry_store(&d->entries[d->n++], &op->entries[i]);
    }
}

static void disk_truncate(struct member *m, raft_index index)
{
    struct disk *d = &m->disk;

    if (index < d->first) {
        violation(m->sim, "member %u: truncated at %llu, before its log", m->id, index);
    }
    if (index < d->first + d->n) {
        d->n = index - d->first;
    }
}

static void disk_put(struct member *m, const struct put *p)
{
    struct disk *d = &m->disk;
    raft_index first = 0;

    snapshot_store(&d->snapshot, p->snapshot);
    if (p->install) {
        d->n = 0;
        d->first = d->snapshot.index + 1;
        return;
    }
    if (d->snapshot.index > p->trailing) {
        first = d->snapshot.index - p->trailing + 1;
    }
    if (first > d->first) {
        size_t n = first - d->first;

        if (n > d->n) {
            n = d->n;
        }
        memmove(d->entries, d->entries + n, (d->n - n) * sizeof *d->entries);
        d->n -= n;
        d->first += n;
    }
}

static void op_apply(struct member *m, const struct op *op)
{
    if (op->truncate) {
        disk_truncate(m, op->index);
    } else {
        disk_append(m, op);
    }
}

static struct op *op_push(struct member *m)
{
    struct op *op = must(calloc(1, sizeof *op));

    op->seq = ++m->seq;
    *m->ops_tail = op;
    m->ops_tail = &op->next;
    return op;
}

static struct op *op_pop(struct member *m)
{
    struct op *op = m->ops;

    m->ops = op->next;
    if (m->ops == NULL) {
        m->ops_tail = &m->ops;
    }
    return op;
}

/* Log matching, for each pair of disks. */
static void check_logs(struct sim *s)
{
    unsigned a, b;

    for (a = 1; a <= s->opt->n_members; a++) {
        for (b = a + 1; b <= s->opt->n_members; b++) {
            const struct disk *x = &s->members[a]->disk, *y = &s->members[b]->disk;
            raft_index from = x->first > y->first ? x->first : y->first;
            raft_index end = x->first + x->n < y->first + y->n ? x->first + x->n : y->first + y->n;
            bool same = false;

            while (end > from) {
                const struct stored_entry *p = &x->entries[--end - x->first];
                const struct stored_entry *q = &y->entries[end - y->first];

                same = same || p->term == q->term;
                if (same && (p->term != q->term || p->type != q->type || p->len != q->len ||
                                memcmp(p->payload, q->payload, p->len) != 0)) {
                    violation(
                        s, "the logs of members %u and %u agree beyond entry %llu, but not there", a, b, end);
                }
            }
        }
    }
}

/* ---- Links --------------------------------------------------------------------------------------------- */

static struct completion *completion_new(struct member *m, struct raft_io_send *req, raft_io_send_cb cb)
{
    struct completion *c = must(calloc(1, sizeof *c));

    c->member = m;
    c->generation = m->generation;
    c->req = req;
    c->cb = cb;
    return c;
}

static void complete_later(struct sim *s, struct completion *c, int status)
{
    c->status = status;
    c->next = NULL;
    *s->completions_tail = c;
    s->completions_tail = &c->next;
}

static void run_completions(struct sim *s)
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
static void link_reset(struct sim *s, unsigned a, unsigned b)
{
    struct message *msg;

    while ((msg = link_pop(&s->links[a][b])) != NULL || (msg = link_pop(&s->links[b][a])) != NULL) {
        message_drop(s, msg, RAFT_NOCONNECTION);
    }
}

static void link_cut(struct sim *s, unsigned a, unsigned b, bool cut)
{
    s->links[a][b].cut = s->links[b][a].cut = cut;
    if (cut) {
        link_reset(s, a, b);
    }
}

static void link_push(struct member *from, const struct raft_message *m, struct completion *completion)
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

static void hand_to_raft(void *ctx, struct raft_message *message)
{
    struct member *m = ctx;

    m->recv(&m->io, message);
}

/* Deliver the next message of this link or, if it has none, of the next that has. */
static void deliver(struct sim *s, unsigned a, unsigned b)
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

/* ---- raft_io ------------------------------------------------------------------------------------------- */

static struct member *member_of(struct raft_io *io)
{
    return (struct member *)io;
}

static int io_init(struct raft_io *io, raft_id id, const char *address)
{
    (void)io;
    (void)id;
    (void)address;
    return 0;
}

static void io_close(struct raft_io *io, raft_io_close_cb cb)
{
    member_of(io)->close_cb = cb;
}

static int io_load(struct raft_io *io, raft_term *term, raft_id *vote, struct raft_snapshot **snapshot,
    raft_index *start_index, struct raft_entry **entries, size_t *n_entries)
{
    struct member *m = member_of(io);
    const struct disk *d = &m->disk;

    *term = d->term;
    *vote = d->vote;
    *snapshot = d->snapshot.index > 0 ? snapshot_make(m->sim, &d->snapshot) : NULL;
    *start_index = d->first;
    *n_entries = d->n;
    if (m->cut_index >= d->first && m->cut_index < d->first + d->n) {
        struct op *op = op_push(m);

        op->truncate = true;
        op->index = m->cut_index;
        *n_entries = m->cut_index - d->first;
    }
    m->cut_index = 0;
    *entries = entries_make(d->entries, *n_entries);
    m->next_index = d->first + *n_entries;
    return 0;
}

static int io_start(struct raft_io *io, unsigned ms, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct member *m = member_of(io);

    (void)ms;
    m->tick = tick;
    m->recv = recv;
    return 0;
}

static int io_bootstrap(struct raft_io *io, const struct raft_configuration *c)
{
    struct member *m = member_of(io);
    struct raft_entry entry = {.term = 1, .type = RAFT_CHANGE};
    struct op op = {.index = 1, .n = 1, .entries = &entry};

    if (raft_configuration_encode(c, &entry.buf) != 0) {
        return RAFT_NOMEM;
    }
    m->disk.term = 1;
    disk_append(m, &op);
    raft_free(entry.buf.base);
    return 0;
}

static int io_recover(struct raft_io *io, const struct raft_configuration *c)
{
    (void)io;
    (void)c;
    return RAFT_INVALID;
}

static bool write_fails(struct member *m, unsigned per_10000)
{
    return m->sim->opt->disk_failures && !m->sim->healing && chance(m->sim, per_10000);
}

/* The end of set_term and set_vote: true if the write has failed and libraft is to be told so. */
static bool metadata_fails(struct member *m)
{
    if (!write_fails(m, 20)) {
        return false;
    }
    if (m->sim->opt->guard) {
        guard_metadata_failed(&m->guard);
        return false;
    }
    return true;
}

static int io_set_term(struct raft_io *io, raft_term term)
{
    struct member *m = member_of(io);

    if (metadata_fails(m)) {
        return RAFT_IOERR;
    }
    if (!guard_dead(&m->guard)) {
        m->disk.term = term;
        m->disk.vote = 0;
    }
    return 0;
}

static int io_set_vote(struct raft_io *io, raft_id id)
{
    struct member *m = member_of(io);

    if (metadata_fails(m)) {
        return RAFT_IOERR;
    }
    if (!guard_dead(&m->guard)) {
        m->disk.vote = id;
    }
    return 0;
}

static int io_send(
    struct raft_io *io, struct raft_io_send *req, const struct raft_message *message, raft_io_send_cb cb)
{
    struct member *m = member_of(io);
    struct sim *s = m->sim;
    struct completion *c = completion_new(m, req, cb);
    struct raft_message copy = *message;
    struct guard_split split;

    if (!guard_send(&m->guard, &copy)) {
        complete_later(s, c, 0);
        return 0;
    }
    if (copy.server_id == 0 || !s->members[copy.server_id]->up || s->links[m->id][copy.server_id].cut) {
        complete_later(s, c, RAFT_NOCONNECTION);
        return 0;
    }
    if (copy.type == RAFT_IO_INSTALL_SNAPSHOT) {
        link_push(m, &copy, c);
        return 0;
    }
    if (copy.type == RAFT_IO_APPEND_ENTRIES && s->opt->guard) {
        guard_split_init(&split, &m->guard, message, s->part_entries, s->part_size);
        while (guard_split_next(&split, &copy.append_entries)) {
            link_push(m, &copy, NULL);
        }
    } else {
        link_push(m, &copy, NULL);
    }
    complete_later(s, c, 0);
    return 0;
}

static int io_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[],
    unsigned n, raft_io_append_cb cb)
{
    struct member *m = member_of(io);
    struct op *op;

    if (guard_append_begin(&m->guard)) {
        op = op_push(m);
        op->index = m->next_index;
        m->next_index += n;
        m->barrier_open = true;
    } else {
        op = must(calloc(1, sizeof *op));
        op->next = m->kept;
        m->kept = op;
    }
    op->n = n;
    op->entries = entries;
    op->req = req;
    op->cb = cb;
    return 0;
}

static int io_truncate(struct raft_io *io, raft_index index)
{
    struct member *m = member_of(io);
    bool lost = m->put.pending && !m->barrier_open; /* raft_uv: there is no segment to hang the barrier on */

    if (!lost) {
        struct op *op = op_push(m);

        op->truncate = true;
        op->index = index;
    }
    m->next_index = index;
    m->barrier_open = false;
    return 0;
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req,
    const struct raft_snapshot *snapshot, raft_io_snapshot_put_cb cb)
{
    struct member *m = member_of(io);

    guard_put_begin(
        &m->guard); /* (a member that has stopped keeps the request; nothing more is finished anyway) */
    assert(!m->put.pending);
    m->put = (struct put){.pending = true,
        .install = trailing == 0,
        .seq = ++m->seq,
        .trailing = trailing,
        .snapshot = snapshot,
        .req = req,
        .cb = cb};
    m->barrier_open = false;
    if (trailing == 0) {
        m->next_index = snapshot->index + 1;
    }
    return 0;
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    struct member *m = member_of(io);

    if (m->get != NULL) {
        return RAFT_BUSY;
    }
    m->get = req;
    m->get_cb = cb;
    return 0;
}

static int io_async_work(struct raft_io *io, struct raft_io_async_work *req, raft_io_async_work_cb cb)
{
    struct member *m = member_of(io);

    assert(m->work == NULL);
    m->work = req;
    m->work_cb = cb;
    return 0;
}

static raft_time io_time(struct raft_io *io)
{
    return member_of(io)->sim->now;
}

static int io_random(struct raft_io *io, int min, int max)
{
    return min + (int)random_below(member_of(io)->sim, (unsigned)(max - min));
}

static const struct raft_io io_methods = {
    .version = 2,
    .init = io_init,
    .close = io_close,
    .load = io_load,
    .start = io_start,
    .bootstrap = io_bootstrap,
    .recover = io_recover,
    .set_term = io_set_term,
    .set_vote = io_set_vote,
    .send = io_send,
    .append = io_append,
    .truncate = io_truncate,
    .snapshot_put = io_snapshot_put,
    .snapshot_get = io_snapshot_get,
    .time = io_time,
    .random = io_random,
    .async_work = io_async_work,
};

/* ---- The FSM ------------------------------------------------------------------------------------------- */

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct member *m = fsm->data;
    uint64_t command;

    memcpy(&command, buf->base, sizeof command);
    note_applied(m, m->raft.last_applied + 1, command);
    *result = NULL;
    return 0;
}

/* The state in two buffers, as an FSM may do. */
static int fsm_give(struct raft_buffer *bufs[], unsigned *n_bufs, const struct fsm_state *state)
{
    struct raft_buffer *b = must(raft_calloc(2, sizeof *b));

    b[0].len = sizeof state->index;
    b[0].base = must(raft_malloc(b[0].len));
    memcpy(b[0].base, &state->index, b[0].len);
    b[1].len = sizeof state->hash;
    b[1].base = must(raft_malloc(b[1].len));
    memcpy(b[1].base, &state->hash, b[1].len);
    *bufs = b;
    *n_bufs = 2;
    return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct member *m = fsm->data;

    if (!guard_snapshot_ok(&m->guard)) {
        return RAFT_BUSY;
    }
    m->sim->outcome->tally.snapshots++;
    if (fsm->version < 3) {
        return fsm_give(bufs, n_bufs, &m->state);
    }
    m->frozen = m->state;
    return 0;
}

static int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct member *m = fsm->data;

    return fsm_give(bufs, n_bufs, &m->frozen);
}

static int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    unsigned i;

    (void)fsm;
    for (i = 0; i < *n_bufs; i++) {
        raft_free((*bufs)[i].base);
    }
    raft_free(*bufs);
    *bufs = NULL;
    *n_bufs = 0;
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct member *m = fsm->data;
    struct fsm_state state;

    assert(buf->len == sizeof state);
    memcpy(&state, buf->base, sizeof state);
    note_restored(m, &state, state.index);
    raft_free(buf->base);
    return 0;
}

/* ---- Members: start, crash, close ---------------------------------------------------------------------- */

static void member_start(struct member *m)
{
    struct sim *s = m->sim;
    unsigned i;

    m->io = io_methods;
    m->generation++;
    m->seq = 0;
    m->ops = NULL;
    m->ops_tail = &m->ops;
    m->kept = NULL;
    m->put.pending = false;
    m->barrier_open = true;
    m->get = NULL;
    m->work = NULL;
    m->transfer = NULL;
    m->barrier_term = 0;
    m->state = (struct fsm_state){0};
    m->fsm = (struct raft_fsm){
        .version = 1, .data = m, .apply = fsm_apply, .snapshot = fsm_snapshot, .restore = fsm_restore};
    if (s->async_snapshots) {
        m->fsm.version = 3;
        m->fsm.snapshot_finalize = fsm_snapshot_finalize;
        m->fsm.snapshot_async = fsm_snapshot_async;
    }
    memset(&m->raft, 0, sizeof m->raft);
    if (raft_init(&m->raft, &m->io, &m->fsm, m->id, m->address) != 0) {
        violation(s, "member %u: raft_init fails: %s", m->id, raft_errmsg(&m->raft));
    }
    guard_init(&m->guard, &m->raft);
    m->guard.enabled = s->opt->guard;
    raft_set_election_timeout(&m->raft, ELECTION_MS);
    raft_set_heartbeat_timeout(&m->raft, HEARTBEAT_MS);
    raft_set_install_snapshot_timeout(&m->raft, INSTALL_MS);
    raft_set_snapshot_threshold(&m->raft, s->snapshots ? s->threshold : 1u << 30);
    raft_set_snapshot_trailing(&m->raft, s->trailing);
    raft_set_pre_vote(&m->raft, s->pre_vote);
    if (m->disk.term == 0 && (m->id == 1 || !s->grow)) {
        struct raft_configuration c;

        raft_configuration_init(&c);
        for (i = 1; i <= (s->grow ? 1 : s->opt->n_members); i++) {
            raft_configuration_add(&c, i, s->members[i]->address, RAFT_VOTER);
        }
        raft_bootstrap(&m->raft, &c);
        raft_configuration_close(&c);
    }
    if (raft_start(&m->raft) != 0) {
        violation(s, "member %u: raft_start fails: %s", m->id, raft_errmsg(&m->raft));
    }
    m->up = true;
    guard_started(&m->guard, hand_to_raft, m);
}

static void on_closed(struct raft *r)
{
    (void)r;
}

static void counts_add(struct guard_counts *to, const struct guard_counts *n)
{
    to->clamped += n->clamped;
    to->held += n->held;
    to->stripped += n->stripped;
    to->put_off += n->put_off;
    to->skipped += n->skipped;
    to->dropped += n->dropped;
    to->second_votes += n->second_votes;
    to->terms_told += n->terms_told;
    to->votes_lent += n->votes_lent;
    to->own_terms += n->own_terms;
    to->ticks_skipped += n->ticks_skipped;
    to->early += n->early;
}

/* Give libraft back all that it waits for, and its memory. The disk is left as it is.
 *
 * Without the guard libraft is in no state to be closed; the process forgets it, and ends soon. */
static void member_close(struct member *m)
{
    struct sim *s = m->sim;
    struct op *op, *newest_first = m->kept;
    unsigned i;

    m->up = false;
    m->down_until = s->step + 20 + random_below(s, 400);
    for (i = 1; i <= s->opt->n_members; i++) {
        if (i != m->id) {
            link_reset(s, m->id, i);
        }
    }
    counts_add(&s->outcome->tally.guard, &m->guard.counts);
    if (!s->opt->guard) {
        m->generation++;
        return;
    }
    raft_close(&m->raft, on_closed);
    while (m->ops != NULL) {
        op = op_pop(m);
        if (op->truncate) {
            free(op);
        } else {
            op->next = newest_first;
            newest_first = op;
        }
    }
    while ((op = newest_first) != NULL) {
        newest_first = op->next;
        op->cb(op->req, RAFT_CANCELED);
        free(op);
    }
    m->kept = NULL;
    if (m->work != NULL) {
        m->work_cb(m->work, RAFT_CANCELED);
    }
    if (m->put.pending) {
        struct raft_buffer *bufs = m->put.snapshot->bufs;

        m->put.pending = false;
        m->put.cb(m->put.req, RAFT_CANCELED);
        if (m->put.install) {
            raft_free(bufs); /* libraft forgets it; the leak checker does not */
        }
    }
    if (m->get != NULL) {
        m->get_cb(m->get, NULL, RAFT_CANCELED);
    }
    run_completions(s);
    m->close_cb(&m->io);
    guard_deinit(&m->guard);
    m->generation++;
}

/* The power fails: of what is under way on the disk some has happened, in order. */
static void member_crash(struct member *m)
{
    struct sim *s = m->sim;
    struct op *op = m->ops;
    bool put_done = !m->put.pending;

    for (;;) {
        bool put_next = !put_done && (op == NULL || m->put.install || chance(s, 5000));

        if (put_next && op != NULL && op->seq < m->put.seq) {
            put_next = false;
        }
        if ((op == NULL && !put_next) || chance(s, 4000)) {
            break;
        }
        if (put_next) {
            disk_put(m, &m->put);
            put_done = true;
        } else {
            op_apply(m, op);
            op = op->next;
        }
    }
    s->outcome->tally.crashes++;
    member_close(m);
}

/* The guard has stopped the member: close it in an orderly way, to be started anew. */
static void member_stop(struct member *m)
{
    if (guard_dead(&m->guard)) {
        m->sim->outcome->tally.faults++;
    } else {
        m->cut_index = guard_cut_index(&m->guard);
        m->sim->outcome->tally.log_cuts++;
    }
    member_close(m);
}

static void on_barrier(struct raft_barrier *req, int status)
{
    (void)status;
    free(req);
}

/* Look at each member after a step, as the wrapper's loop does after each turn. */
static void watch(struct sim *s)
{
    unsigned i;

    run_completions(s);
    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up) {
            continue;
        }
        if (guard_status(&m->guard, NULL) != DUST_OK) {
            member_stop(m);
            continue;
        }
        if (raft_state(&m->raft) == RAFT_UNAVAILABLE) {
            if (s->opt->guard) {
                stuck(s, "member %u: libraft has shut itself down: %s", m->id, raft_errmsg(&m->raft));
            }
            member_crash(m);
            continue;
        }
        if (raft_state(&m->raft) != RAFT_LEADER) {
            continue;
        }
        note_leader(m);
        if (s->opt->guard && m->barrier_term != m->raft.current_term) {
            struct raft_barrier *req = must(calloc(1, sizeof *req));

            m->barrier_term = m->raft.current_term;
            if (raft_barrier(&m->raft, req, on_barrier) != 0) {
                free(req);
            }
        }
    }
    run_completions(s);
}

/* ---- Steps --------------------------------------------------------------------------------------------- */

/* A failed append, as raft_uv's. With the guard, that was the last thing this instance did: whether the write
 * reached the disk is left to chance, and what comes behind it is lost if it did not. Without, raft_uv goes
 * on, with the indexes moved up. */
static void fail_append(struct member *m, const struct op *failed)
{
    struct op *op;

    if (!m->sim->opt->guard) {
        m->next_index -= failed->n;
        for (op = m->ops; op != NULL && !op->truncate; op = op->next) {
            op->index -= failed->n;
        }
        return;
    }
    if (chance(m->sim, 5000)) {
        op_apply(m, failed);
        for (op = m->ops; op != NULL && chance(m->sim, 5000); op = op->next) {
            op_apply(m, op);
        }
    }
}

static void finish_op(struct member *m)
{
    struct op *op = op_pop(m);
    int status = 0;

    if (op->truncate) {
        op_apply(m, op);
        free(op);
        return;
    }
    if (write_fails(m, 100)) {
        status = chance(m->sim, 5000) ? RAFT_NOSPACE : RAFT_IOERR;
        fail_append(m, op);
    } else {
        op_apply(m, op);
    }
    if (!guard_append_done(&m->guard, status)) {
        op->next = m->kept;
        m->kept = op;
        return;
    }
    op->cb(op->req, status);
    free(op);
    guard_release(&m->guard, hand_to_raft, m);
}

static void finish_put(struct member *m)
{
    struct put put = m->put;
    int status = 0;

    if (write_fails(m, 500)) {
        status = RAFT_IOERR;
        if (put.install && m->sim->opt->guard && chance(m->sim, 5000)) {
            disk_put(m, &put);
        }
    } else {
        disk_put(m, &put);
    }
    if (!guard_put_done(&m->guard, status)) {
        return; /* stays pending; member_close() cancels it */
    }
    m->put.pending = false;
    put.cb(put.req, status);
    guard_release(&m->guard, hand_to_raft, m);
}

static void finish_get(struct member *m)
{
    struct raft_io_snapshot_get *req = m->get;

    m->get = NULL;
    m->get_cb(req, snapshot_make(m->sim, &m->disk.snapshot), 0);
}

static void finish_work(struct member *m)
{
    struct raft_io_async_work *work = m->work;

    m->work = NULL;
    m->work_cb(work, work->work(work));
}

/* Let one thing that this member's disk or thread pool is doing come to its end. */
static void step_disk(struct member *m)
{
    struct sim *s = m->sim;
    bool put_may = m->put.pending && (m->ops == NULL || m->ops->seq > m->put.seq);
    bool op_may = m->ops != NULL && !(m->put.pending && m->put.install && m->ops->seq > m->put.seq);

    if (!m->up || (s->weather.slow_member == m->id && chance(s, 9000))) {
        return;
    }
    if (m->get != NULL && chance(s, 3000)) {
        finish_get(m);
    } else if (m->work != NULL && chance(s, 3000)) {
        finish_work(m);
    } else if (put_may && (!op_may || chance(s, 2000))) {
        if (chance(s, 3000)) {
            finish_put(m);
        }
    } else if (op_may) {
        finish_op(m);
    }
}

struct submission {
    struct raft_apply req; /* first */
    struct member *leader;
    unsigned n;
    uint64_t commands[BATCH_MAX];
};

static void on_applied(struct raft_apply *req, int status, void *result)
{
    struct submission *sub = (struct submission *)req;
    unsigned i;

    (void)result;
    for (i = 0; status == 0 && i < sub->n; i++) {
        note_acknowledged(sub->leader, req->index + i, sub->commands[i]);
    }
    free(sub);
}

static void submit(struct member *m)
{
    struct sim *s = m->sim;
    struct submission *sub = must(calloc(1, sizeof *sub));
    struct raft_buffer bufs[BATCH_MAX];
    unsigned i;

    sub->leader = m;
    sub->n = 1 + random_below(s, BATCH_MAX);
    for (i = 0; i < sub->n; i++) {
        sub->commands[i] = ++s->n_commands;
        bufs[i].len = sizeof sub->commands[i];
        bufs[i].base = must(raft_malloc(bufs[i].len));
        memcpy(bufs[i].base, &sub->commands[i], bufs[i].len);
    }
    if (raft_apply(&m->raft, &sub->req, bufs, sub->n, on_applied) != 0) {
        for (i = 0; i < sub->n; i++) {
            raft_free(bufs[i].base);
        }
        free(sub);
    }
}

static void on_transferred(struct raft_transfer *req)
{
    struct member *m = req->data;

    if (m->transfer == req) {
        m->transfer = NULL;
    }
    free(req);
}

static void transfer(struct member *m)
{
    struct sim *s = m->sim;
    struct raft_transfer *req = must(calloc(1, sizeof *req));

    req->data = m;
    if (raft_transfer(&m->raft, req, 1 + random_below(s, s->opt->n_members), on_transferred) != 0) {
        free(req);
        return;
    }
    m->transfer = req;
    s->outcome->tally.transfers++;
}

static void on_changed(struct raft_change *req, int status)
{
    struct member *m = req->data;

    if (status == 0) {
        m->sim->outcome->tally.changes++;
    }
    free(req);
}

static const struct raft_server *server_of(const struct raft_configuration *c, raft_id id)
{
    unsigned i;

    for (i = 0; i < c->n; i++) {
        if (c->servers[i].id == id) {
            return &c->servers[i];
        }
    }
    return NULL;
}

/* Change the membership in some way; towards "all are voters" when the bad times are over. One voter is
 * always left, and the leader does not demote or remove itself: if it did, and crashed, it would be a member
 * that is no voter in its own eyes, has the longest log, and does not campaign. */
static void change_membership(struct member *m)
{
    struct sim *s = m->sim;
    const struct raft_configuration *c = &m->raft.configuration;
    raft_id id = 1 + random_below(s, s->opt->n_members);
    const struct raft_server *server = server_of(c, id);
    struct raft_change *req;
    unsigned i, n_voters = 0;
    int rv;

    for (i = 0; i < c->n; i++) {
        n_voters += c->servers[i].role == RAFT_VOTER;
    }
    if (!guard_settled(&m->guard) ||
        (server != NULL && server->role == RAFT_VOTER && (n_voters == 1 || s->healing || id == m->id))) {
        return;
    }
    req = must(calloc(1, sizeof *req));
    req->data = m;
    if (server == NULL) {
        rv = raft_add(&m->raft, req, id, s->members[id]->address, on_changed);
    } else if (s->grow && !s->healing && chance(s, 2000)) {
        rv = raft_remove(&m->raft, req, id, on_changed);
    } else if (server->role == RAFT_VOTER || (server->role == RAFT_SPARE && !s->healing && chance(s, 3000))) {
        rv = raft_assign(&m->raft, req, id, RAFT_STANDBY, on_changed);
    } else {
        rv = raft_assign(&m->raft, req, id, RAFT_VOTER, on_changed);
    }
    if (rv != 0) {
        free(req);
    }
}

static void step_client(struct member *m)
{
    struct sim *s = m->sim;

    if (!m->up || raft_state(&m->raft) != RAFT_LEADER) {
        return;
    }
    if (s->transfers && chance(s, 150)) {
        transfer(m);
    } else if (s->changes && chance(s, s->healing ? 5000 : s->grow ? 1000 : 300)) {
        change_membership(m);
    } else if (raft_last_index(&m->raft) - m->raft.commit_index < s->window) {
        submit(m);
    }
}

static void step_time(struct sim *s)
{
    unsigned i;

    s->now += 10 + random_below(s, 60);
    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up || (!s->healing && chance(s, 2000))) {
            continue;
        }
        guard_release(&m->guard, hand_to_raft, m);
        if (guard_tick(&m->guard)) {
            m->tick(&m->io);
        }
    }
}

static void new_weather(struct sim *s)
{
    struct weather *w = &s->weather;

    w->until = s->step + 200 + random_below(s, 1500);
    w->crash = random_below(s, 4) == 0 ? 40 : random_below(s, 15);
    w->cut = random_below(s, 80);
    w->heal = 20 + random_below(s, 80);
    w->isolate = random_below(s, 20);
    w->deliver = 40 + random_below(s, 30);
    w->disk = 5 + random_below(s, 20);
    w->submit = 2 + random_below(s, 10);
    w->slow_member = random_below(s, 2) == 0 ? 0 : 1 + random_below(s, s->opt->n_members);
}

/* Something bad, or the end of it. True if that was this step. */
static bool step_weather(struct sim *s, unsigned a, unsigned b)
{
    const struct weather *w = &s->weather;
    struct member *m = s->members[a];
    unsigned i;

    if (s->step >= w->until) {
        new_weather(s);
    }
    if (!m->up && s->step > m->down_until) {
        member_start(m);
        return true;
    }
    if (m->up && chance(s, w->crash)) {
        member_crash(m);
        return true;
    }
    if (a != b && chance(s, w->cut)) {
        link_cut(s, a, b, true);
    }
    if (a != b && chance(s, w->heal)) {
        link_cut(s, a, b, false);
    }
    if (chance(s, w->isolate)) {
        for (i = 1; i <= s->opt->n_members; i++) {
            if (i != a) {
                link_cut(s, a, i, true);
            }
        }
        return true;
    }
    return false;
}

static void step(struct sim *s)
{
    unsigned a = 1 + random_below(s, s->opt->n_members);
    unsigned b = 1 + random_below(s, s->opt->n_members);
    const struct weather *w = &s->weather;
    unsigned k = random_below(s, 100);

    s->step++;
    if (!s->healing && step_weather(s, a, b)) {
        /* that was it */
    } else if (k < w->deliver) {
        deliver(s, a, b);
    } else if (k < w->deliver + w->disk) {
        step_disk(s->members[a]);
    } else if (k < w->deliver + w->disk + w->submit) {
        step_client(s->members[a]);
    } else {
        step_time(s);
    }
    watch(s);
    if (s->step % 256 == 0) {
        check_logs(s);
    }
}

/* ---- A run --------------------------------------------------------------------------------------------- */

static bool agreed(struct sim *s)
{
    const struct member *first = s->members[1];
    raft_index last = raft_last_index(&s->members[1]->raft);
    bool led = false;
    unsigned i, j, n_voters = 0;

    for (i = 1; i <= s->opt->n_members; i++) {
        struct member *m = s->members[i];

        if (!m->up || m->raft.last_applied != last || raft_last_index(&m->raft) != last ||
            m->state.hash != first->state.hash) {
            return false;
        }
        led = led || raft_state(&m->raft) == RAFT_LEADER;
        for (j = 0; j < m->raft.configuration.n; j++) {
            n_voters += m->raft.configuration.servers[j].role == RAFT_VOTER;
        }
    }
    if (s->changes && n_voters < s->opt->n_members * s->opt->n_members) {
        return false;
    }
    return led && last >= s->last_acknowledged;
}

/* The bad times are over. Commands are submitted until some have been acknowledged, then the members must
 * agree. */
static void heal(struct sim *s)
{
    uint64_t acknowledged = s->outcome->tally.acknowledged;
    raft_time deadline = s->now + HEAL_MS;
    unsigned i, j;

    s->healing = true;
    s->transfers = false;
    s->weather = (struct weather){.deliver = 70, .disk = 15, .submit = 5};
    for (i = 1; i <= s->opt->n_members; i++) {
        for (j = i + 1; j <= s->opt->n_members; j++) {
            link_cut(s, i, j, false);
        }
    }
    for (;;) {
        for (i = 1; i <= s->opt->n_members; i++) {
            if (!s->members[i]->up) {
                member_start(s->members[i]);
            }
        }
        step(s);
        if (s->outcome->tally.acknowledged >= acknowledged + 5) {
            s->window = 0;
            if (agreed(s)) {
                return;
            }
        }
        if (s->now > deadline) {
            stuck(s, "no agreement %d seconds after the end of all faults (%s)", HEAL_MS / 1000,
                s->window == 0 ? "they differ" : "nothing is acknowledged");
        }
    }
}

/* Every command acknowledged, or applied by anyone, is in the state that all have come to. */
static void check_history(struct sim *s)
{
    const struct member *m = s->members[1];
    uint64_t hash = 0;
    raft_index i;

    for (i = 1; i < s->n_facts; i++) {
        const struct fact *f = &s->facts[i];

        if (f->command != 0) {
            hash = mix(mix(hash, i), f->command);
        } else if (f->acknowledged != 0) {
            violation(s, "entry %llu: command %llu was acknowledged, and nobody has applied it", i,
                (unsigned long long)f->acknowledged);
        }
    }
    if (hash != m->state.hash) {
        violation(s, "a command that was applied is no longer part of the state");
    }
}

static void vary(struct sim *s)
{
    s->pre_vote = chance(s, 5000);
    s->snapshots = chance(s, 7500);
    s->async_snapshots = chance(s, 5000);
    s->transfers = chance(s, 5000);
    s->changes = s->opt->guard && chance(s, 5000);
    s->grow = s->changes && chance(s, 5000);
    s->threshold = 5 + random_below(s, 60);
    s->trailing = 1 + random_below(s, 20);
    s->window =
        s->opt->guard && chance(s, 3000) ? 1000000 : 4 + random_below(s, 60); /* libraft needs a pause */
    s->part_entries = chance(s, 5000) ? 4 + random_below(s, 12) : 1000;
    s->part_size = chance(s, 5000) ? 32 + random_below(s, 128) : 1000000; /* a command has 8 bytes */
}

/* One seed, in the child process; ends it. */
static void run_seed(const struct options *opt, uint64_t seed, struct outcome *outcome)
{
    struct sim *s = must(calloc(1, sizeof *s));
    unsigned i, j;

    s->opt = opt;
    s->outcome = outcome;
    s->rng = seed * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    for (i = 0; i < 20; i++) {
        random64(s);
    }
    s->now = 100000;
    s->completions_tail = &s->completions;
    vary(s);
    for (i = 1; i <= opt->n_members; i++) {
        struct member *m = must(calloc(1, sizeof *m));

        m->sim = s;
        m->id = i;
        snprintf(m->address, sizeof m->address, "%u", i);
        m->disk.first = 1;
        s->members[i] = m;
        for (j = 1; j <= opt->n_members; j++) {
            s->links[i][j].tail = &s->links[i][j].head;
        }
    }
    for (i = 1; i <= opt->n_members; i++) {
        member_start(s->members[i]);
    }
    while (s->step < opt->n_steps / 10 * 9) {
        step(s);
    }
    heal(s);
    check_logs(s);
    check_history(s);
    for (i = 1; i <= opt->n_members; i++) {
        member_close(s->members[i]);
        free(s->members[i]->disk.entries);
    }
    run_completions(s);
    for (i = 1; i <= opt->n_members; i++) {
        free(s->members[i]);
    }
    free(s->facts);
    free(s->leaders);
    free(s);
    outcome->verdict = PASSED;
}

/* ---- Many seeds ---------------------------------------------------------------------------------------- */

struct totals {
    uint64_t n_seeds, n_unsafe, n_stuck, n_crashed;
    struct tally tally;
};

static void tally_add(struct tally *to, const struct tally *t)
{
    to->elections += t->elections;
    to->acknowledged += t->acknowledged;
    to->crashes += t->crashes;
    to->faults += t->faults;
    to->log_cuts += t->log_cuts;
    to->snapshots += t->snapshots;
    to->installs += t->installs;
    to->transfers += t->transfers;
    to->changes += t->changes;
    counts_add(&to->guard, &t->guard);
}

static void tally_print(const struct tally *t)
{
    printf("# %llu elections, %llu commands acknowledged, %llu crashes, %llu faults, %llu snapshots taken, "
           "%llu sent, "
           "%llu transfers, %llu changes of membership\n",
        (unsigned long long)t->elections, (unsigned long long)t->acknowledged, (unsigned long long)t->crashes,
        (unsigned long long)t->faults, (unsigned long long)t->snapshots, (unsigned long long)t->installs,
        (unsigned long long)t->transfers, (unsigned long long)t->changes);
    printf("# guard: %llu results clamped, %llu held, %llu messages stripped, %llu begun later, %llu "
           "snapshots put off, "
           "%llu messages dropped (%llu second votes), %llu terms told, %llu votes lent, %llu own terms, "
           "%llu ticks skipped, %llu early commits, %llu logs cut\n",
        (unsigned long long)t->guard.clamped, (unsigned long long)t->guard.held,
        (unsigned long long)t->guard.stripped, (unsigned long long)t->guard.skipped,
        (unsigned long long)t->guard.put_off, (unsigned long long)t->guard.dropped,
        (unsigned long long)t->guard.second_votes, (unsigned long long)t->guard.terms_told,
        (unsigned long long)t->guard.votes_lent, (unsigned long long)t->guard.own_terms,
        (unsigned long long)t->guard.ticks_skipped, (unsigned long long)t->guard.early,
        (unsigned long long)t->log_cuts);
}

struct job {
    pid_t pid; /* 0: free */
    uint64_t seed;
    struct outcome *outcome;
};

static void job_start(struct job *job, const struct options *opt, uint64_t seed)
{
    memset(job->outcome, 0, sizeof *job->outcome);
    job->seed = seed;
    fflush(NULL);
    job->pid = fork();
    if (job->pid < 0) {
        perror("guard_sim: fork");
        exit(2);
    }
    if (job->pid == 0) {
        alarm(SEED_SECONDS);
        if (opt->quiet && freopen("/dev/null", "w", stderr) == NULL) {
            _exit(2); /* (it is for what the allocator says when libraft has ruined the heap) */
        }
        run_seed(opt, seed, job->outcome);
        if (opt->guard) {
            exit(0); /* through the leak checker, if there is one */
        }
        _exit(0);
    }
}

static void job_end(struct job *job, const struct options *opt, int status, struct totals *totals)
{
    struct outcome *o = job->outcome;

    if (WIFSIGNALED(status)) {
        snprintf(o->reason, sizeof o->reason, "%s (signal %d)",
            WTERMSIG(status) == SIGALRM ? "libraft hangs" : "libraft crashes", WTERMSIG(status));
        o->verdict = CRASHED;
    } else if (WEXITSTATUS(status) != 0 || o->verdict == RUNNING) {
        snprintf(o->reason, sizeof o->reason, "exit status %d", WEXITSTATUS(status));
        o->verdict = CRASHED;
    }
    totals->n_seeds++;
    totals->n_unsafe += o->verdict == UNSAFE;
    totals->n_stuck += o->verdict == STUCK;
    totals->n_crashed += o->verdict == CRASHED;
    tally_add(&totals->tally, &o->tally);
    if (o->verdict != PASSED) {
        if (!opt->quiet) {
            printf("seed %llu: %s\n", (unsigned long long)job->seed, o->reason);
        }
    } else if (opt->verbose) {
        printf("seed %llu: passed\n", (unsigned long long)job->seed);
    }
    job->pid = 0;
}

static uint64_t n_violations(const struct totals *t)
{
    return t->n_unsafe + t->n_stuck + t->n_crashed;
}

static void run_seeds(const struct options *opt, struct totals *totals)
{
    uint64_t seed = opt->seed_from, end = opt->seed_from + opt->n_seeds;
    struct job jobs[JOBS_MAX] = {0};
    struct outcome *outcomes =
        mmap(NULL, opt->n_jobs * sizeof *outcomes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned i, n_running = 0;

    if (outcomes == MAP_FAILED) {
        perror("guard_sim: mmap");
        exit(2);
    }
    *totals = (struct totals){0};
    for (i = 0; i < opt->n_jobs; i++) {
        jobs[i].outcome = &outcomes[i];
    }
    while (seed < end || n_running > 0) {
        int status;
        pid_t pid;

        for (i = 0; i < opt->n_jobs && seed < end; i++) {
            if (jobs[i].pid == 0) {
                job_start(&jobs[i], opt, seed++);
                n_running++;
            }
        }
        pid = waitpid(-1, &status, 0);
        for (i = 0; i < opt->n_jobs; i++) {
            if (pid > 0 && jobs[i].pid == pid) {
                job_end(&jobs[i], opt, status, totals);
                n_running--;
            }
        }
    }
    munmap(outcomes, opt->n_jobs * sizeof *outcomes);
}

/* ---- The fixed programme of the continuous tests ------------------------------------------------------- */

struct report {
    unsigned n_passed, n_failed;
};

static void report(struct report *r, bool ok, const char *text)
{
    printf("%s - %s\n", ok ? "ok" : "not ok", text);
    fflush(stdout);
    if (ok) {
        r->n_passed++;
    } else {
        r->n_failed++;
    }
}

static int run_ci(const struct options *base)
{
    static const struct {
        bool guard;
        unsigned n_members;
        bool disk_failures;
        uint64_t n_seeds;
    } plan[] = {
        {false, 3, false, 200},
        {false, 3, true, 200},
        {true, 3, false, 3000},
        {true, 3, true, 3000},
        {true, 5, false, 2000},
        {true, 5, true, 2000},
    };
    struct report r = {0};
    struct tally sum = {0};
    struct options opt = *base;
    struct totals t;
    char text[200];
    size_t i;

    for (i = 0; i < sizeof plan / sizeof plan[0]; i++) {
        opt.guard = plan[i].guard;
        opt.n_members = plan[i].n_members;
        opt.disk_failures = plan[i].disk_failures;
        opt.seed_from = 1 + 10000 * i;
        opt.n_seeds = plan[i].n_seeds;
        opt.quiet = !plan[i].guard;
        run_seeds(&opt, &t);
        snprintf(text, sizeof text,
            "%s the guard, %u members, %s disk failures: of %llu seeds %llu break a promise, %llu crash, "
            "%llu get stuck",
            opt.guard ? "with" : "without", opt.n_members, opt.disk_failures ? "with" : "no",
            (unsigned long long)t.n_seeds, (unsigned long long)t.n_unsafe, (unsigned long long)t.n_crashed,
            (unsigned long long)t.n_stuck);
        report(&r, opt.guard ? n_violations(&t) == 0 : t.n_unsafe > 0, text);
        if (opt.guard) {
            tally_add(&sum, &t.tally);
        }
    }
    tally_print(&sum);
    report(&r,
        sum.guard.clamped > 0 && sum.guard.held > 0 && sum.guard.stripped > 0 && sum.guard.put_off > 0 &&
            sum.guard.skipped > 0 && sum.guard.dropped > 0 && sum.guard.terms_told > 0 &&
            sum.guard.votes_lent > 0 && sum.guard.own_terms > 0 && sum.guard.ticks_skipped > 0 &&
            sum.guard.early > 0 && sum.log_cuts > 0 && sum.faults > 0,
        "every rule of the guard was called upon");
    printf("%u passed, %u failed, 0 skipped\n", r.n_passed, r.n_failed);
    return r.n_failed == 0 ? 0 : 1;
}

/* ---- Command line -------------------------------------------------------------------------------------- */

static int usage(FILE *to, int status)
{
    fprintf(to,
        "usage: guard_sim [--seeds FROM COUNT] [--steps N] [--members 3|5] [--disk-failures] [--no-guard]\n"
        "                 [--expect-violations] [--jobs J] [--verbose]\n"
        "       guard_sim --ci [--jobs J]\n"
        "\n"
        "Runs libraft through COUNT simulations. Exit status 0: no violation (with --expect-violations: at "
        "least\n"
        "one); 1: otherwise; 2: the simulation itself could not be run.\n");
    return status;
}

static bool number(const char *text, uint64_t *n)
{
    char *end;

    if (text == NULL || *text < '0' || *text > '9') {
        return false;
    }
    errno = 0;
    *n = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0';
}

int main(int argc, char **argv)
{
    struct options opt = {
        .seed_from = 1,
        .n_seeds = 100,
        .n_steps = 20000,
        .n_members = 3,
        .guard = true,
    };
    struct totals t;
    uint64_t n;
    int i;
    bool ok;

    for (i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(arg, "--seeds") == 0 && number(value, &opt.seed_from) && i + 2 < argc &&
            number(argv[i + 2], &opt.n_seeds)) {
            i += 2;
        } else if (strcmp(arg, "--steps") == 0 && number(value, &n) && n > 0) {
            opt.n_steps = n;
            i++;
        } else if (strcmp(arg, "--members") == 0 && number(value, &n) && (n == 3 || n == 5)) {
            opt.n_members = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--jobs") == 0 && number(value, &n) && n > 0 && n <= JOBS_MAX) {
            opt.n_jobs = (unsigned)n;
            i++;
        } else if (strcmp(arg, "--disk-failures") == 0) {
            opt.disk_failures = true;
        } else if (strcmp(arg, "--no-guard") == 0) {
            opt.guard = false;
        } else if (strcmp(arg, "--expect-violations") == 0) {
            opt.expect_violations = true;
        } else if (strcmp(arg, "--verbose") == 0) {
            opt.verbose = true;
        } else if (strcmp(arg, "--ci") == 0) {
            opt.ci = true;
        } else if (strcmp(arg, "--help") == 0) {
            return usage(stdout, 0);
        } else {
            return usage(stderr, 2);
        }
    }
    if (opt.n_jobs == 0) {
        long cpus = opt.ci ? sysconf(_SC_NPROCESSORS_ONLN) : 1;

        opt.n_jobs = cpus < 1 ? 1 : cpus > JOBS_MAX ? JOBS_MAX : (unsigned)cpus;
    }
    if (opt.ci) {
        return run_ci(&opt);
    }
    run_seeds(&opt, &t);
    if (opt.verbose) {
        tally_print(&t.tally);
    }
    printf("%llu seeds of %lu steps, %u members, %s the guard, %s disk failures: %llu break a promise, %llu "
           "crash, "
           "%llu get stuck\n",
        (unsigned long long)t.n_seeds, opt.n_steps, opt.n_members, opt.guard ? "with" : "without",
        opt.disk_failures ? "with" : "no", (unsigned long long)t.n_unsafe, (unsigned long long)t.n_crashed,
        (unsigned long long)t.n_stuck);
    ok = opt.expect_violations ? n_violations(&t) > 0 : n_violations(&t) == 0;
    return ok ? 0 : 1;
}
