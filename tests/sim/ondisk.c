#include "tests/sim/ondisk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/registry.h"
#include "raft/log_impl.h"
#include "raft/node_impl.h"
#include "raft/snapshot.h"
#include "raft/termfile.h"
#include "tests/sim/files_impl.h"
#include "tests/sim/machine.h"

static uint64_t hash_of(const void *p, size_t n)
{
    return mix_bytes(n, p, n);
}

static void push(struct ondisk *o, uint64_t term, const void *p, size_t n)
{
    if (o->n == o->room) {
        o->room = o->room == 0 ? 256 : 2 * o->room;
        o->entries = must(realloc(o->entries, o->room * sizeof *o->entries));
    }
    o->entries[o->n++] = (struct ondisk_entry){.term = term, .hash = hash_of(p, n)};
}

static void path_of(const struct machine *m, const char *root, const char *name, char path[FILES_PATH_MAX])
{
    snprintf(path, FILES_PATH_MAX, "/%s/%u/app.db-dust/raft%s", root, m->number, name);
}

/* ---- reading ---- */

static void read_snapshot(struct machine *m, uint64_t *term)
{
    char path[FILES_PATH_MAX];
    struct raft_snapshot *s;
    struct err e;

    path_of(m, "sim", "/snapshot", path);
    m->ondisk.snapshot_file = file_certain(m, path);
    path_of(m, "certain", "", path);
    if (snapshot_load(&s, path, m->ondisk.key, &e) != DUST_OK) {
        violation("m%u: of what is on its disk for certain, %s", m->number, e.text);
    }
    m->ondisk.snapshot = s != NULL ? s->index : 0;
    *term = s != NULL ? s->term : 0;
    snapshot_free(s);
}

static void read_log(struct machine *m, uint64_t snapshot_term)
{
    struct ondisk *o = &m->ondisk;
    struct log_content content;
    char path[FILES_PATH_MAX];
    struct log *l = NULL;
    struct err e;

    path_of(m, "certain", "", path);
    if (log_open(&l, path, &e) != DUST_OK || log_load(l, o->key, o->snapshot, snapshot_term, false, &content, &e) != DUST_OK) {
        violation("m%u: of what is on its disk for certain, %s", m->number, e.text);
    }
    o->first = content.start;
    o->n = 0;
    o->seq = l->seq;
    for (size_t i = 0; i < content.n; i++) {
        push(o, content.entries[i].term, content.entries[i].buf.base, content.entries[i].buf.len);
    }
    log_content_free(&content);
    log_close(l);
}

/* False: no log has been begun there. */
static bool learn(struct machine *m)
{
    struct ondisk *o = &m->ondisk;
    char path[FILES_PATH_MAX];
    const uint8_t *term;
    struct termfile t;
    size_t size;
    uint64_t snapshot_term;

    path_of(m, "sim", "/snapshot", path);
    if (o->known && file_certain(m, path) == o->snapshot_file) {
        return true;
    }
    path_of(m, "sim", "/term", path);
    term = files_certain(m, path, &size);
    if (term == NULL) {
        return false;
    }
    if (!termfile_decode(&t, term, size)) {
        violation("m%u: what is on its disk for certain is no term", m->number);
    }
    memcpy(o->key, t.key, sizeof o->key);
    o->term = t.term;
    o->vote = t.vote;
    read_snapshot(m, &snapshot_term);
    if (!o->known) {
        read_log(m, snapshot_term);
        o->known = true;
    }
    return true;
}

static bool has(struct machine *m, raft_index index, const struct raft_entry *e)
{
    const struct ondisk *o = &m->ondisk;

    if (!learn(m)) {
        return false;
    }
    return index <= o->snapshot ||
           (index >= o->first && index < o->first + o->n && o->entries[index - o->first].term == e->term &&
               o->entries[index - o->first].hash == hash_of(e->buf.base, e->buf.len));
}

/* ---- what has to be there ---- */

static struct node *node_of(const struct machine *m)
{
    struct hosted *h = m->up ? registry_find(m->path, (int)strlen(m->path)) : NULL;

    return h != NULL ? h->node : NULL;
}

static void check_term(const struct machine *m, const struct node *n)
{
    const struct ondisk *o = &m->ondisk;
    const struct raft *r = &n->raft;

    if (!guard_dead(&n->io.guard) &&
        (o->term < r->current_term || (o->term == r->current_term && r->voted_for != 0 && o->vote != r->voted_for))) {
        violation("m%u: is in term %llu, with a vote for %llu; on its disk are term %llu and a vote for %llu",
            m->number, r->current_term, r->voted_for, (unsigned long long)o->term, (unsigned long long)o->vote);
    }
}

void ondisk_check(struct machine *m)
{
    const struct node *n = node_of(m);
    const struct raft_entry *e;

    ondisk_forget(m);
    if (!learn(m) || n == NULL || !n->running) {
        return;
    }
    check_term(m, n);
    for (raft_index i = n->raft.last_stored; i > 0 && (e = inside_entry(&n->raft, i)) != NULL; i--) {
        if (!has(m, i, e)) {
            violation("m%u: entry %llu of term %llu counts as stored, as all up to %llu do, and is not on its disk",
                m->number, i, e->term, n->raft.last_stored);
        }
    }
}

static bool majority_has(
    const struct node *by, raft_index index, const struct raft_entry *e, unsigned *have, unsigned *voters)
{
    *have = *voters = 0;
    for (unsigned i = 0; i < by->raft.configuration.n; i++) {
        const struct raft_server *s = &by->raft.configuration.servers[i];

        if (s->role != RAFT_VOTER) {
            continue;
        }
        ++*voters;
        for (unsigned k = 1; k <= n_machines; k++) {
            if (strcmp(machines[k].address, s->address) == 0 && has(&machines[k], index, e)) {
                ++*have;
            }
        }
    }
    return *have > *voters / 2;
}

/* By the configuration of whoever publishes it; or by a newer one that somebody has. */
void ondisk_check_majority(const struct machine *m, raft_index index)
{
    struct node *n = node_of(m);
    const struct raft_entry *e = n != NULL && n->running ? inside_entry(&n->raft, index) : NULL;
    unsigned have, voters, others;
    char text[300] = "";

    if (chance(300)) {
        ondisk_check(&machines[1 + chance_below(n_machines)]);
    }
    if (e == NULL || majority_has(n, index, e, &have, &voters)) {
        return;
    }
    for (unsigned i = 1; i <= n_machines; i++) {
        struct node *other = node_of(&machines[i]);

        if (other != NULL && other != n && other->running && majority_has(other, index, e, &others, &others)) {
            return;
        }
    }
    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        const struct raft_server *s = &n->raft.configuration.servers[i];

        snprintf(text + strlen(text), sizeof text - strlen(text), " %llu%s", s->id, s->role == RAFT_VOTER ? "" : "-");
    }
    snprintf(text + strlen(text), sizeof text - strlen(text), ";");
    for (unsigned i = 1; i <= n_machines; i++) {
        snprintf(text + strlen(text), sizeof text - strlen(text), " m%u is %llu%s", i,
            (unsigned long long)machines[i].id, has(&machines[i], index, e) ? " (has it)" : "");
    }
    violation("entry %llu is put into effect on m%u (state %u), and on the disks of %u of %u voters:%s", index,
        m->number, n->raft.state, have, voters, text);
}

/* ---- what changes ---- */

void ondisk_forget(struct machine *m)
{
    m->ondisk.known = false;
}

static bool add_batch(struct ondisk *o, const uint8_t *p, size_t len)
{
    size_t at = BATCH_HEAD;
    struct batch_entry entry;
    struct batch b;

    if (!batch_open(p, len, o->key, &b) || b.follows != o->seq) {
        return false;
    }
    if (b.kind == BATCH_ANEW) {
        o->n = 0;
        o->first = b.first;
    }
    if (b.first < o->first || b.first > o->first + o->n) {
        return false;
    }
    o->n = (size_t)(b.first - o->first);
    while (batch_next(p, &b, &at, &entry)) {
        push(o, entry.term, entry.data, entry.size);
    }
    o->seq = b.seq;
    return true;
}

void ondisk_written(struct machine *m, const uint8_t *content, size_t size, size_t at)
{
    m->ondisk.known = m->ondisk.known && add_batch(&m->ondisk, content + at, size - at);
}
