/* What an agreed entry does to the page store: the state machine of this member.
 *
 * The one rule (DESIGN.md, section 2): an entry takes effect if its parent is the head, and is void otherwise, on every
 * member alike. Here `head` is the newest agreed version. What takes effect is
 *   - published, if it is the oldest speculative version: this member's own transaction, whose pages are here; or
 *   - built from the entry's records on top of the head, after every speculative version has been voided.
 *
 * A large transaction comes in parts. Part 0 with the right parent starts an assembly; each part is decoded into
 * private frames as it comes; the last one makes it take effect. Anything out of order drops the assembly: its
 * transaction is void. The id of what was assembled is recomputed and compared, so that equal heads mean equal pages.
 *
 * After a restart app.db is at some version M. The entries up to the one that made M are in it: fsm_find_start finds
 * its index by following the rule through the log from the last snapshot, and apply skips until there.
 *
 * Snapshots are descriptors: app.db itself is the snapshot (descriptor.c).
 *
 * All on the loop thread, save fsm_snapshot_async (thread pool), which only folds. */
#include <stdlib.h>
#include <string.h>

#include "raft/descriptor.h"
#include "raft/node_impl.h"
#include "raft/storage.h"
#include "vfs/bug.h"

#define LOG_BYTES_MAX ((uint64_t)8 << 20)  /* of entries, which libraft keeps in memory */
#define DISK_BYTES_MAX ((uint64_t)24 << 20) /* of the blocks that they are in on disk */
#define TRAILING_BYTES ((uint64_t)8 << 20)  /* of these, kept behind a snapshot; and up to a file of the log more */
#define TRAILING_MAX ((unsigned)(TRAILING_BYTES / BATCH_BLOCK))
#define THRESHOLD_ENTRIES (1u << 16)

static struct node *node_of(struct raft_fsm *fsm)
{
    return fsm->data;
}

/* An agreed entry that cannot be put into effect: going on would serve wrong data. */
static void stop_member(struct node *n, raft_index index, const struct err *why)
{
    struct err e;

    err_set(&e, why->code, "this member cannot apply entry %llu of the log and has stopped: %s",
        (unsigned long long)index, why->text);
    node_fail(n, &e);
}

static void drop_assembly(struct node *n)
{
    n->fsm.assembling = false;
    assembly_drop(&n->fsm.parts);
}

/* ---- effect ---- */

/* The entry made a new version of the pages assembled. */
static int effect_foreign(struct node *n, raft_index index, struct err *e)
{
    struct fsm *f = &n->fsm;
    struct version *voided, *next;
    uint32_t *nodes, count;
    int rv = assembly_end(&f->parts, &nodes, &count, e);

    if (rv != DUST_OK) {
        return rv;
    }
    rv = store_agree(n->db->store, &f->id, &f->parent, f->parts.n_pages, nodes, count, index, &voided, e);
    free(nodes);
    if (rv != DUST_OK) {
        return rv == DUST_EXISTS ? DUST_OK : rv; /* it was staged here while its parts were being put together */
    }
    assembly_taken(&f->parts);
    if (voided != NULL) {
        submit_void(n);
    }
    for (; voided != NULL; voided = next) {
        next = voided->next;
        version_free(voided);
    }
    return DUST_OK;
}

static int take_effect(struct node *n, raft_index index, struct err *e)
{
    struct fsm *f = &n->fsm;
    int rv = DUST_OK;

    if (f->own) {
        store_publish(n->db->store, store_oldest_speculative(n->db->store), index);
        heads_note(&f->heads, index, &f->id);
    } else {
        rv = effect_foreign(n, index, e);
        if (rv == DUST_OK) {
            heads_note(&f->heads, index, &f->id);
        }
    }
    if (rv == DUST_OK) {
        metrics_add(&n->db->metrics, METRIC_APPLIED, 1);
    }
    drop_assembly(n);
    return rv;
}

static int begin_assembly(struct node *n, const struct entry *entry, raft_index index, struct err *e)
{
    struct fsm *f = &n->fsm;
    struct version *v = store_oldest_speculative(n->db->store);
    struct snap snap;
    int rv;

    f->assembling = true;
    f->assembling_from = index;
    f->id = entry->id;
    f->parent = entry->parent;
    f->next_part = 0;
    f->own = v != NULL && vid_equal(&v->id, &entry->id);
    if (f->own) {
        return DUST_OK;
    }
    store_pin(n->db->store, f->slot, &snap);
    rv = assembly_begin(&f->parts, n->db, &snap, entry, e);
    if (rv != DUST_OK) {
        store_unpin(n->db->store, &snap);
    }
    return rv;
}

/* An entry without effect. */
static int pass_over(struct node *n)
{
    metrics_add(&n->db->metrics, METRIC_APPLIED_VOID, 1);
    return DUST_OK;
}

/* One part of a transaction, agreed at `index`. */
static int apply_part(struct node *n, const struct entry *entry, raft_index index, struct err *e)
{
    struct fsm *f = &n->fsm;
    struct head_info head;
    int rv = DUST_OK;

    store_agreed(n->db->store, &head);
    if (entry->part == 0) {
        drop_assembly(n);
        if (!vid_equal(&entry->parent, &head.id) && !BUG(PARENT)) {
            return pass_over(n);
        }
        if (entry->page_size != n->db->page_size) {
            return err_set(e, DUST_CORRUPT, "its page size is %u, the database's %u", entry->page_size,
                n->db->page_size);
        }
        rv = begin_assembly(n, entry, index, e);
    } else if (!f->assembling || !vid_equal(&f->id, &entry->id) || f->next_part != entry->part) {
        if (f->assembling && vid_equal(&f->id, &entry->id) && entry->part < f->next_part) {
            return DUST_OK; /* sent twice */
        }
        drop_assembly(n);
        return pass_over(n);
    }
    if (rv == DUST_OK && !f->own) {
        rv = assembly_add(&f->parts, entry, e);
        f->paused = f->paused || rv == DUST_AGAIN; /* until it is repaired */
    }
    if (rv != DUST_OK) {
        drop_assembly(n);
        return rv;
    }
    f->next_part = entry->part + 1;
    return entry->last ? take_effect(n, index, e) : DUST_OK;
}

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct node *n = node_of(fsm);
    raft_index index = n->raft.last_applied + 1, from;
    struct entry entry;
    struct err e;
    int rv;

    *result = NULL;
    n->fsm.log_bytes += buf->len;
    if (index <= n->fsm.skip_until || n->state == NODE_FAILED || n->fsm.stuck || n->fsm.paused) {
        return 0;
    }
    from = n->fsm.assembling ? n->fsm.assembling_from : index;
    rv = entry_decode(buf->base, buf->len, &entry, &e);
    if (rv == DUST_OK) {
        rv = apply_part(n, &entry, index, &e);
    }
    if (rv != DUST_OK || n->fsm.paused) {
        n->fsm.missed_from = from;
    }
    if (n->fsm.paused) {
        return 0;
    }
    if (rv == DUST_FULL || rv == DUST_IO || rv == DUST_NOMEM) {
        n->fsm.stuck = true; /* it is applied when the instance has been begun anew */
        n->fsm.stuck_on = e;
        return 0;
    }
    if (rv != DUST_OK) {
        stop_member(n, index, &e);
        return 0;
    }
    if (entry.last) {
        n->fsm.urgent |= 1ull << (entry.origin % 64);
    }
    store_set_applied(n->db->store, index);
    submit_applied(n, &entry.id, entry.part, entry.last);
    return 0;
}

/* ---- snapshots ---- */

static bool log_is_long(const struct node *n)
{
    return n->fsm.log_bytes >= LOG_BYTES_MAX || storage_disk_bytes(n->io.storage) >= DISK_BYTES_MAX;
}

/* Entries are counted by libraft, but what matters is their bytes: set its thresholds accordingly. A lone entry takes whole
 * blocks, up to one more than its own bytes: what is kept must be well below what makes the log long, or it is long again at
 * once, and every entry calls for a snapshot. */
static void adapt_thresholds(struct node *n)
{
    raft_index entries = n->raft.last_applied - inside_snapshot_index(&n->raft);
    uint64_t average = entries != 0 ? n->fsm.log_bytes / entries : 0;

    if (n->opt.mode != NODE_JOIN && inside_snapshot_index(&n->raft) == 0) {
        /* The first snapshot is taken at once (node.c); also by a member that was killed before it had one. */
        raft_set_snapshot_threshold(&n->raft, 2);
        raft_set_snapshot_trailing(&n->raft, 1);
        return;
    }
    raft_set_snapshot_threshold(&n->raft, log_is_long(n) ? 1 : THRESHOLD_ENTRIES);
    raft_set_snapshot_trailing(&n->raft, (unsigned)(TRAILING_BYTES / (average + BATCH_BLOCK)) + 1);
}

/* libraft puts down the index that it has applied; app.db will be at or beyond the version of that index. */
static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct node *n = node_of(fsm);
    struct head_info head;
    struct descriptor d;

    if (n->fsm.assembling || n->fsm.stuck || n->fsm.paused || n->state == NODE_FAILED || !guard_snapshot_ok(&n->io.guard) ||
        n->raft.last_stored < n->raft.last_applied) {
        return RAFT_BUSY;
    }
    store_agreed(n->db->store, &head);
    if (head.index > n->raft.last_applied) {
        return RAFT_BUSY; /* after a transfer the database is ahead of the log for a while */
    }
    *bufs = raft_malloc(sizeof **bufs);
    if (*bufs == NULL) {
        return RAFT_NOMEM;
    }
    (*bufs)[0].len = DESCRIPTOR_SIZE;
    (*bufs)[0].base = raft_malloc(DESCRIPTOR_SIZE);
    if ((*bufs)[0].base == NULL) {
        raft_free(*bufs);
        return RAFT_NOMEM;
    }
    *n_bufs = 1;
    d = (struct descriptor){.index = head.index, .page_size = n->db->page_size, .n_pages = head.n_pages, .id = head.id,
        .cluster = n->self.cluster};
    descriptor_write(&d, (*bufs)[0].base);
    n->fsm.snapshot_log_bytes = n->fsm.log_bytes;
    return 0;
}

/* In the thread pool: app.db has to hold the version before the log may be cut. */
static int fsm_snapshot_async(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct node *n = node_of(fsm);
    struct err e;

    (void)bufs;
    (void)n_bufs;
    if (database_checkpoint(n->db, NULL, &e) != DUST_OK) {
        if (e.code != DUST_BUSY) {
            report_err(&n->db->report, &e);
        }
        return RAFT_BUSY;
    }
    return 0;
}

static int fsm_snapshot_finalize(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct node *n = node_of(fsm);

    if (*bufs != NULL) {
        raft_free((*bufs)[0].base);
        raft_free(*bufs);
    }
    *bufs = NULL;
    *n_bufs = 0;
    n->fsm.log_bytes -= n->fsm.snapshot_log_bytes < n->fsm.log_bytes ? n->fsm.snapshot_log_bytes : n->fsm.log_bytes;
    n->fsm.snapshot_log_bytes = 0;
    raft_set_snapshot_threshold(&n->raft, THRESHOLD_ENTRIES); /* or the next entry, too, would call for one until the next tick */
    if (n->opt.mode == NODE_BOOTSTRAP) {
        raft_set_snapshot_trailing(&n->raft, TRAILING_MAX);
    }
    return 0;
}

/* At start, and when a snapshot has been installed. transfer.c has brought app.db to the version by then (or beyond),
 * and told fsm_adopt. */
static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct descriptor d;

    (void)fsm;
    if (descriptor_read(buf->base, buf->len, &d) != DUST_OK) {
        return RAFT_MALFORMED;
    }
    raft_free(buf->base);
    return 0;
}

void fsm_adopt(struct node *n, const struct head_info *head)
{
    drop_assembly(n);
    n->fsm.skip_until = head->index;
    n->fsm.missed_from = 0;
    heads_begin(&n->fsm.heads, head->index, &head->id);
    n->fsm.log_bytes = 0;
}

/* Follow the rule through the log from `head` on: the index of the entry that makes version `want`, 0 if none does. */
static int find_version(struct node *n, struct vid head, const struct vid *want, raft_index after, raft_index start,
    const struct raft_entry *entries, size_t n_entries, raft_index *found, struct err *e)
{
    struct vid assembling = {{0}};
    uint32_t part = 0;

    *found = 0;
    for (size_t i = 0; i < n_entries; i++) {
        struct entry entry;
        struct err why;

        if (start + i <= after || entries[i].type != RAFT_COMMAND) {
            continue;
        }
        n->fsm.log_bytes += entries[i].buf.len;
        if (entry_decode(entries[i].buf.base, entries[i].buf.len, &entry, &why) != DUST_OK) {
            return err_set(e, why.code, "entry %llu of the log in %s/raft: %s", (unsigned long long)(start + i),
                n->db->dir, why.text);
        }
        if (entry.part == 0) {
            part = 0;
            assembling = vid_equal(&entry.parent, &head) ? entry.id : (struct vid){{0}};
        }
        if (vid_none(&assembling) || !vid_equal(&assembling, &entry.id) || entry.part != part) {
            continue;
        }
        part++;
        if (entry.last) {
            head = entry.id;
            assembling = (struct vid){{0}};
            if (vid_equal(&head, want)) {
                *found = start + i;
            }
        }
    }
    return DUST_OK;
}

/* The index that goes with the version that app.db is at, as far as it is noted; 0: it is not. */
static raft_index noted_index(const struct member *m, const struct vid *id)
{
    return vid_equal(id, &m->file_version) ? m->file_index : vid_equal(id, &m->prior_version) ? m->prior_index : 0;
}

void fsm_note(struct node *n, struct member *m, const struct vid *id, raft_index index)
{
    struct head_info base;

    store_base(n->db->store, &base);
    if (vid_equal(&base.id, &m->file_version)) {
        m->prior_version = m->file_version;
        m->prior_index = m->file_index;
    } else if (!vid_equal(&base.id, &m->prior_version)) {
        m->prior_version = (struct vid){{0}}; /* the log leads there */
        m->prior_index = 0;
    }
    m->file_version = *id;
    m->file_index = index;
}

int fsm_find_start(struct node *n, const struct raft_snapshot *snapshot, raft_index start,
    const struct raft_entry *entries, size_t n_entries, struct err *e)
{
    struct fsm *f = &n->fsm;
    char want[VID_HEX_SIZE], have[VID_HEX_SIZE];
    struct descriptor descriptor;
    struct head_info file;
    struct vid head;
    raft_index after = 0;
    int rv;

    store_agreed(n->db->store, &file);
    f->skip_until = 0;
    f->log_bytes = 0;
    f->heads.n = 0;
    if (n->opt.mode == NODE_JOIN) {
        return DUST_OK; /* nothing yet: a snapshot will be installed first */
    }
    if (snapshot != NULL) {
        rv = snapshot->n_bufs == 1 ? descriptor_read(snapshot->bufs[0].base, snapshot->bufs[0].len, &descriptor)
                                   : DUST_CORRUPT;
        if (rv != DUST_OK) {
            return err_set(e, rv, "the snapshot in %s/raft is not one of dust's, or of a newer version", n->db->dir);
        }
        if (!vid_equal(&descriptor.cluster, &n->self.cluster)) {
            return err_set(e, DUST_CORRUPT,
                "the log in %s/raft is of another cluster than the file %s/member beside it says: put back what "
                "belongs together; or, if other members are well, remove this one there, delete both here, and join anew",
                n->db->dir, n->db->dir);
        }
        head = descriptor.id;
        after = snapshot->index;
    } else if (n->opt.mode == NODE_BOOTSTRAP || (file.n_pages == 0 && n_entries == 0)) {
        return DUST_OK; /* nothing here yet */
    } else {
        head = n->self.cluster; /* the version of a cluster's first database has the cluster's id */
    }
    f->skip_until = noted_index(&n->self, &file.id);
    if (f->skip_until != 0 && f->skip_until >= after) {
        heads_begin(&f->heads, f->skip_until, &file.id);
        return DUST_OK;
    }
    rv = find_version(n, head, &file.id, after, start, entries, n_entries, &f->skip_until, e);
    if (rv != DUST_OK) {
        return rv;
    }
    if (f->skip_until != 0 || vid_equal(&file.id, &head)) {
        heads_begin(&f->heads, f->skip_until != 0 ? f->skip_until : after, &file.id);
        return DUST_OK;
    }
    return err_set(e, DUST_CORRUPT,
        "%s is at version %s, which the log in %s/raft does not lead to (it begins at %s): the file or the folder was "
        "replaced. Put back what belongs together; or, if other members are well, remove this one there, delete both "
        "here, and join anew",
        n->db->path, vid_hex(&file.id, want), n->db->dir, vid_hex(&head, have));
}

int fsm_replay(struct node *n, raft_index start, const struct raft_entry *entries, size_t n_entries, uint64_t *count,
    struct err *e)
{
    struct head_info before, after;
    int rv = DUST_OK;

    store_agreed(n->db->store, &before);
    for (size_t i = 0; rv == DUST_OK && i < n_entries; i++) {
        struct entry entry;

        if (start + i <= n->fsm.skip_until || entries[i].type != RAFT_COMMAND) {
            continue;
        }
        rv = entry_decode(entries[i].buf.base, entries[i].buf.len, &entry, e);
        if (rv == DUST_OK) {
            rv = apply_part(n, &entry, start + i, e);
        }
        store_agreed(n->db->store, &after);
        *count += rv == DUST_OK && after.seq != before.seq;
        before = after;
    }
    drop_assembly(n);
    return rv;
}

void fsm_init(struct node *n)
{
    struct fsm *f = &n->fsm;

    f->raft_fsm = (struct raft_fsm){
        .version = 3,
        .data = n,
        .apply = fsm_apply,
        .snapshot = fsm_snapshot,
        .restore = fsm_restore,
        .snapshot_finalize = fsm_snapshot_finalize,
        .snapshot_async = fsm_snapshot_async,
    };
    if (!f->has_slot) {
        f->has_slot = store_slot_take(n->db->store, &f->slot, NULL) == DUST_OK;
    }
}

/* Half a transaction is not in it. Entries that were skipped, since app.db was ahead of the log, are. */
raft_index fsm_covered(const struct node *n)
{
    const struct fsm *f = &n->fsm;

    return f->missed_from != 0 ? f->missed_from - 1
           : f->assembling     ? f->assembling_from - 1
                               : store_applied(n->db->store);
}

void fsm_restart(struct node *n)
{
    struct head_info head;

    store_agreed(n->db->store, &head);
    fsm_note(n, &n->self, &head.id, fsm_covered(n)); /* what is applied stays applied */
    store_rewind_applied(n->db->store, n->self.file_index);
    n->fsm.stuck = n->fsm.paused = false;
    n->fsm.missed_from = 0;
    drop_assembly(n);
}

void fsm_deinit(struct node *n)
{
    drop_assembly(n);
    txn_deinit(&n->fsm.parts.txn);
    if (n->fsm.has_slot) {
        store_slot_give(n->db->store, n->fsm.slot);
    }
}

void fsm_tick(struct node *n)
{
    adapt_thresholds(n);
}
