/* Pages for a member that is too far behind for the log, or new to a database that has content.
 *
 * libraft sends such a member an InstallSnapshot, which here is a descriptor only: app.db itself is the snapshot. The
 * receiver holds that message back, pulls the pages, and lets libraft have it when app.db is there.
 *
 *   receiver                                           leader
 *   InstallSnapshot held
 *   FETCH {session, from page, n, hashes of own} ───▶  first one: pin the newest agreed version
 *                                                ◀───  FETCH_REPLY {version, index, size; pages that differ}
 *   … until the last page …
 *   note version and index in `member`
 *   fold into app.db, or (with readers) through the page store
 *   InstallSnapshot delivered; entries up to the index are skipped when they come
 *
 * Chunks are FETCH_CHUNK_BYTES of pages at most, one under way at a time, so that neither side's loop nor the log's traffic
 * waits. The version is the one pinned at the first FETCH, newer than the snapshot's as a rule: everything in it is
 * committed, so skipping the entries that lead to it is what applying them would do. The receiver begins again if a reply does not come for RETRY_MS, with a new session if it
 * must (another leader), keeping nothing: pages equal by hash are not sent twice once folded.
 *
 * Two ways in. An empty database has no readers: pages go to the file `incoming` and are folded from there, so that a
 * large database never passes through memory. Otherwise they become a version in the page store, and a checkpoint
 * folds it: readers go on with what they had.
 *
 * A crash at any point: `incoming` is thrown away; app.db is at the old version or, by its journal, at the new one,
 * which the note in `member` then explains to fsm_find_start.
 *
 * The messages stand in fetch.c, the giving side in give.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/fetch.h"
#include "raft/node_impl.h"
#include "vfs/fd.h"

#define RETRY_MS 1000u
#define TRIES_MAX 10

struct transfer {
    enum { IDLE, PULLING, FOLDING } state;
    struct raft_message held;
    raft_id from;
    char address[ADDRESS_TEXT_MAX];
    uint64_t req, asked_ms;
    unsigned tries;
    uint32_t next_pgno;
    uint64_t agreed_seq; /* our version when this session was begun */
    bool known; /* head and index are */
    struct head_info head;
    raft_index index;
    bool repairing; /* no message is held: some of our pages are damaged */
    bool empty;  /* our database has no content: through `incoming` */
    int fd;
    uint32_t *pgnos; /* in `incoming`, ascending */
    uint32_t n, room;
    struct txn txn; /* else */
    uv_work_t work;
    struct err result;
    uint32_t at;
    uint8_t *page;
};

static struct transfer *state_of(struct node *n)
{
    if (n->transfer == NULL) {
        n->transfer = calloc(1, sizeof *n->transfer);
        if (n->transfer != NULL) {
            n->transfer->fd = -1;
        }
    }
    return n->transfer;
}

uint32_t transfer_page(const struct node *n)
{
    return n->transfer != NULL && n->transfer->state == PULLING ? n->transfer->next_pgno : 0;
}

bool transfer_folding(const struct node *n)
{
    return n->transfer != NULL && n->transfer->state == FOLDING;
}

static void free_held(struct raft_message *m)
{
    raft_configuration_close(&m->install_snapshot.conf);
    raft_free(m->install_snapshot.data.base);
    memset(m, 0, sizeof *m);
}

static void incoming_path(const struct node *n, char *out, size_t size)
{
    snprintf(out, size, "%s/incoming", n->db->dir);
}

static void stop_receiving(struct node *n, bool drop_message)
{
    struct transfer *t = n->transfer;
    char path[4096];

    if (drop_message) {
        free_held(&t->held);
    }
    n->db->repairing = false;
    if (t->fd >= 0) {
        close(t->fd);
        t->fd = -1;
        incoming_path(n, path, sizeof path);
        unlink(path);
    }
    free(t->pgnos);
    free(t->page);
    t->pgnos = NULL;
    t->page = NULL;
    t->n = t->room = 0;
    txn_deinit(&t->txn);
    t->state = IDLE;
    database_hold(n->db, false);
}

static void ask(struct node *n)
{
    struct transfer *t = n->transfer;
    uint32_t size = n->db->page_size, count = FETCH_CHUNK_BYTES / size, own = 0;
    struct note note = {.kind = NOTE_FETCH, .req = t->req, .num = {t->next_pgno, count}};
    struct head_info base;
    uint8_t *hashes = malloc((size_t)count * FETCH_HASH_SIZE);

    t->asked_ms = node_now(n);
    store_base(n->db->store, &base);
    for (; hashes != NULL && own < count && t->next_pgno + own <= base.n_pages; own++) {
        if (database_read_raw(n->db, t->page, size, (uint64_t)(t->next_pgno + own - 1) * size) != SQLITE_OK) {
            break;
        }
        fetch_hash(hashes + (size_t)own * FETCH_HASH_SIZE, t->page, size);
        if (store_has(n->db->store, t->next_pgno + own)) {
            /* what lies over it counts, and that may be another page than both of these, or damaged: have it sent */
            memset(hashes + (size_t)own * FETCH_HASH_SIZE, 0, FETCH_HASH_SIZE);
        }
    }
    note.data = hashes;
    note.data_len = own * FETCH_HASH_SIZE;
    send_note(n, t->address, t->from, &note);
    free(hashes);
}

static void begin_pulling(struct node *n)
{
    struct transfer *t = n->transfer;
    struct head_info agreed;

    t->req = n->boot + ++n->fetches; /* never used before, in this start or another one */
    store_agreed(n->db->store, &agreed);
    t->agreed_seq = agreed.seq;
    t->known = false;
    t->next_pgno = 1;
    t->n = 0;
    txn_reset(&t->txn);
    ask(n);
}

static bool begin_receiving(struct node *n, raft_id from, const char *address, bool repairing)
{
    struct transfer *t = n->transfer;
    struct store_stats st;
    struct head_info base;
    char path[4096];

    store_stats(n->db->store, &st);
    store_base(n->db->store, &base);
    if (n->db->page_size == 0 || n->idle.folding || !database_hold(n->db, true)) {
        return false; /* a checkpoint is running */
    }
    n->db->repairing = t->repairing = repairing;
    n->fsm.paused = n->fsm.paused || repairing;
    t->from = from;
    snprintf(t->address, sizeof t->address, "%s", address);
    t->empty = base.n_pages == 0 && st.versions == 0;
    t->page = malloc(n->db->page_size);
    t->tries = 0;
    if (t->empty) {
        incoming_path(n, path, sizeof path);
        t->fd = fd_high(open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    }
    if (t->page == NULL || (t->empty && t->fd < 0)) {
        report(&n->db->report, DUST_IO, "cannot receive the database: %s", strerror(errno));
        stop_receiving(n, false);
        return false;
    }
    t->state = PULLING;
    txn_begin(&t->txn, n->db->store, 0);
    begin_pulling(n);
    return true;
}

bool transfer_repair(struct node *n, raft_id from, const char *address)
{
    struct transfer *t = state_of(n);

    return t != NULL && t->state == IDLE && begin_receiving(n, from, address, true);
}

/* Does app.db hold all up to this entry? A version that was received is in the page store before it is there; were its
 * snapshot installed meanwhile, nothing would lead to what app.db holds if the power failed. */
static bool in_app_db(const struct node *n, raft_index index)
{
    struct head_info base;

    store_base(n->db->store, &base);
    return index <= n->fsm.skip_until && (base.index >= index || vid_equal(&base.id, &n->self.file_version));
}

bool transfer_wanted(struct node *n, struct raft_message *m, raft_id from, const char *address)
{
    struct transfer *t = state_of(n);

    if (m->install_snapshot.term < n->raft.current_term) {
        return false; /* libraft rejects it */
    }
    if (m->install_snapshot.last_index <= n->raft.last_applied || in_app_db(n, m->install_snapshot.last_index)) {
        return false;
    }
    if (t == NULL) {
        free_held(m); /* no memory: the leader asks again */
        return true;
    }
    if (t->state != IDLE) {
        if (t->held.install_snapshot.last_index == m->install_snapshot.last_index && t->from == from) {
            free_held(m); /* asked again because we take long */
            return true;
        }
        if (t->state == FOLDING) {
            free_held(m);
            return true;
        }
        stop_receiving(n, true);
    }
    if (!begin_receiving(n, from, address, false)) {
        free_held(m); /* the leader asks again */
        return true;
    }
    t->held = *m;
    t->held.server_address = NULL;
    return true;
}

static int take_page(struct node *n, uint32_t pgno, const uint8_t *page, struct err *e)
{
    struct transfer *t = n->transfer;
    uint32_t node;
    bool fresh;
    int rv;

    if (!t->empty) {
        rv = txn_frame(&t->txn, pgno, &node, &fresh, e);
        if (rv == DUST_OK) {
            store_frame_write(n->db->store, node, 0, page, n->db->page_size);
        }
        return rv;
    }
    if (t->n == t->room) {
        uint32_t more = t->room == 0 ? 1024 : t->room * 2;
        uint32_t *p = realloc(t->pgnos, more * sizeof *p);

        if (p == NULL) {
            return err_set(e, DUST_NOMEM, "out of memory");
        }
        t->pgnos = p;
        t->room = more;
    }
    if (pwrite(t->fd, page, n->db->page_size, (off_t)t->n * n->db->page_size) != (ssize_t)n->db->page_size) {
        return err_sys(e, errno != 0 ? errno : ENOSPC, "cannot write %s/incoming", n->db->dir);
    }
    t->pgnos[t->n++] = pgno;
    return DUST_OK;
}

static int next_incoming(void *ctx, uint32_t *pgno, const uint8_t **page, struct err *e)
{
    struct node *n = ctx;
    struct transfer *t = n->transfer;

    *pgno = 0;
    if (t->at < t->n) {
        if (pread(t->fd, t->page, n->db->page_size, (off_t)t->at * n->db->page_size) != (ssize_t)n->db->page_size) {
            return err_sys(e, errno != 0 ? errno : EIO, "cannot read %s/incoming", n->db->dir);
        }
        *pgno = t->pgnos[t->at++];
        *page = t->page;
    }
    return DUST_OK;
}

static int rewind_incoming(void *ctx, struct err *e)
{
    (void)e;
    ((struct node *)ctx)->transfer->at = 0;
    return DUST_OK;
}

static int incoming_in_place(void *ctx, struct err *e)
{
    return database_in_place(((struct node *)ctx)->db, e);
}

/* In the thread pool. */
static void fold_incoming(uv_work_t *work)
{
    struct node *n = work->data;
    struct transfer *t = n->transfer;
    struct fold_source src = {.ctx = n, .page_size = n->db->page_size, .n_pages_after = t->head.n_pages,
        .id = t->head.id, .marked = true, .repeat_ok = true, .next = next_incoming, .rewind = rewind_incoming,
        .in_place = incoming_in_place};
    struct head_info base;
    struct err e;

    t->at = 0;
    t->result.code = DUST_OK;
    if (t->empty) {
        pthread_mutex_lock(&n->db->fold_mutex);
        if (checkpoint_fold(n->db->base, n->db->file, n->db->path, &src, &t->result) == DUST_OK &&
            database_sums_renew(n->db, &t->head.id, t->head.n_pages, &e) != DUST_OK) {
            report_err(&n->db->report, &e);
        }
        pthread_mutex_unlock(&n->db->fold_mutex);
    } else {
        database_hold(n->db, false);
        if (database_checkpoint(n->db, NULL, &t->result) == DUST_OK && t->repairing) {
            store_base(n->db->store, &base); /* every page is as at the leader: it may have been its checksum */
            database_sums_renew(n->db, &base.id, base.n_pages, &t->result);
        }
    }
}

static void folded(uv_work_t *work, int status)
{
    struct node *n = work->data;
    struct transfer *t = n->transfer;
    struct raft_message m = t->held;

    (void)status;
    if (n->stopping) {
        stop_receiving(n, true);
        free(t);
        n->transfer = NULL;
        return;
    }
    if (t->result.code != DUST_OK) {
        report_err(&n->db->report, &t->result); /* the leader asks again */
        stop_receiving(n, true);
        return;
    }
    if (t->empty) { /* else entries have been applied on top of it since adopt_version */
        store_rebase(n->db->store, &t->head);
        fsm_adopt(n, &t->head);
    }
    atomic_store(&n->db->damaged, 0);
    if (t->repairing) {
        metrics_add(&n->db->metrics, METRIC_DAMAGE_REPAIRED, 1);
        report(&n->db->report, DUST_OK, "this member's database is repaired: what differed from %s was fetched", t->address);
        stop_receiving(n, true);
        again_now(n); /* what was agreed on meanwhile was passed over */
        return;
    }
    if (n->fsm.paused && n->raft.last_applied > t->head.index) {
        stop_receiving(n, true);
        again_now(n); /* what was agreed on while it was folded in was passed over */
        return;
    }
    n->fsm.paused = false; /* all that was passed over is in it */
    stop_receiving(n, false);
    m.server_id = t->from;
    m.server_address = t->address;
    memset(&t->held, 0, sizeof t->held);
    if (m.install_snapshot.term == n->raft.current_term) {
        io_deliver(n, &m);
    } else {
        free_held(&m); /* the new leader sends its own; next time nothing is left to pull */
    }
}

/* The pages become a version of the page store. */
static int adopt_version(struct node *n, struct err *e)
{
    struct transfer *t = n->transfer;
    struct txn_page *pages = txn_sorted(&t->txn);
    uint32_t *nodes = malloc((t->txn.n + 1) * sizeof *nodes), count = t->txn.n;
    struct version *voided = NULL, *next;
    struct head_info agreed;
    int rv;

    if (pages == NULL || nodes == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
    } else {
        for (uint32_t i = 0; i < count; i++) {
            nodes[i] = pages[i].node;
        }
        store_agreed(n->db->store, &agreed);
        rv = store_agree(
            n->db->store, &t->head.id, &agreed.id, t->head.n_pages, nodes, count, t->head.index, &voided, e);
        if (rv == DUST_EXISTS) {
            /* It was staged here. What was fetched goes on top as it is: pages may be damaged that it does not change. */
            rv = store_agree(
                n->db->store, &t->head.id, &t->head.id, t->head.n_pages, nodes, count, t->head.index, &voided, e);
        }
        if (rv == DUST_OK) {
            txn_disown(&t->txn);
            fsm_adopt(n, &t->head); /* from here on entries up to its index are skipped */
            submit_settled(n);
            if (voided != NULL) {
                submit_fail(n, DUST_UNKNOWN, "this member was brought up to date from another one meanwhile");
            }
        }
    }
    for (; voided != NULL; voided = next) {
        next = voided->next;
        version_free(voided);
    }
    free(pages);
    free(nodes);
    return rv;
}

/* What is received is to hold all that has been applied here, or was to be by the snapshot: a database never goes back. */
static raft_index oldest_wanted(struct node *n)
{
    struct transfer *t = n->transfer;
    raft_index applied = store_applied(n->db->store);

    return t->repairing || t->held.install_snapshot.last_index < applied ? applied : t->held.install_snapshot.last_index;
}

static void all_pulled(struct node *n)
{
    struct transfer *t = n->transfer;
    struct member self = n->self;
    struct head_info agreed;
    struct err e;
    int rv;

    store_agreed(n->db->store, &agreed);
    if (agreed.seq != t->agreed_seq) {
        begin_pulling(n); /* entries were applied meanwhile: a page that was equal may not be so any more */
        return;
    }
    fsm_note(n, &self, &t->head.id, t->head.index);
    rv = member_save(n->db->dir, &self, &e);
    if (rv == DUST_OK) {
        n->self = self;
        n->noted = self.file_version;
        if (!t->empty) {
            rv = adopt_version(n, &e);
        }
    }
    if (rv == DUST_OK) {
        t->state = FOLDING;
        t->work.data = n;
        if (uv_queue_work(&n->loop, &t->work, fold_incoming, folded) == 0) {
            return;
        }
        rv = err_set(&e, DUST_NOMEM, "out of memory");
    }
    report_err(&n->db->report, &e);
    stop_receiving(n, true);
}

void transfer_received(struct node *n, const struct note *note)
{
    struct transfer *t = n->transfer;
    struct fetch_reply r;
    const uint8_t *page;
    uint32_t pgno;
    struct err e;

    if (t == NULL || t->state != PULLING || note->req != t->req || note->num[0] != t->next_pgno) {
        return;
    }
    if (note->code != DUST_OK) {
        t->asked_ms = node_now(n) - RETRY_MS / 2; /* again a little later */
        return;
    }
    if (!fetch_reply_decode(note, t->next_pgno, n->db->page_size, &r) ||
        (t->known && (!vid_equal(&t->head.id, &r.id) || t->head.n_pages != r.n_pages))) {
        begin_pulling(n);
        return;
    }
    if (r.index < oldest_wanted(n)) {
        stop_receiving(n, true); /* it has not applied yet what we have: again a little later */
        return;
    }
    if (!t->known) {
        t->known = true;
        t->head = (struct head_info){.index = r.index, .id = r.id, .n_pages = r.n_pages};
    }
    while (fetch_reply_next(&r, &pgno, &page)) {
        if (take_page(n, pgno, page, &e) != DUST_OK) {
            report_err(&n->db->report, &e);
            stop_receiving(n, true);
            return;
        }
    }
    t->tries = 0;
    t->next_pgno += r.n;
    if (t->next_pgno > t->head.n_pages) {
        all_pulled(n);
    } else {
        ask(n);
    }
}

void transfer_tick(struct node *n)
{
    struct transfer *t = n->transfer;
    uint64_t now = node_now(n);

    if (t == NULL) {
        return;
    }
    if (t->state == PULLING && now - t->asked_ms >= RETRY_MS) {
        bool gone = t->repairing ? node_leader(n, NULL) != t->from
                                 : t->held.install_snapshot.term != n->raft.current_term;

        if (++t->tries > TRIES_MAX || gone) {
            stop_receiving(n, true); /* the leader, whoever it is, asks again */
        } else {
            ask(n);
        }
    }
}

void transfer_deinit(struct node *n)
{
    struct transfer *t = n->transfer;

    if (t == NULL) {
        return;
    }
    if (t->state == FOLDING) {
        return; /* folded() frees it: the loop waits for the pool */
    }
    if (t->state == PULLING) {
        stop_receiving(n, true);
    }
    free(t);
    n->transfer = NULL;
}
