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
    if (log_open(&l, path, &e) != DUST_OK || log_load(l, o->key, o->snapshot, snapshot_term, &content, &e) != DUST_OK) {
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
    read_snapshot(m, &snapshot_term);
    if (!o->known) {
        read_log(m, snapshot_term);
        o->known = true;
    }
    return true;
}

bool ondisk_has(struct machine *m, raft_index index, const struct raft_entry *e)
{
    const struct ondisk *o = &m->ondisk;

    if (!learn(m)) {
        return false;
    }
    return index <= o->snapshot ||
           (index >= o->first && index < o->first + o->n && o->entries[index - o->first].term == e->term &&
               o->entries[index - o->first].hash == hash_of(e->buf.base, e->buf.len));
}

void ondisk_check(struct machine *m)
{
    struct hosted *h = m->up ? registry_find(m->path, (int)strlen(m->path)) : NULL;
    const struct raft *r = h != NULL && h->node->running ? &h->node->raft : NULL;
    const struct raft_entry *e;

    ondisk_forget(m);
    for (raft_index i = r != NULL ? r->last_stored : 0; i > 0 && (e = inside_entry(r, i)) != NULL; i--) {
        if (!ondisk_has(m, i, e)) {
            violation("m%u: entry %llu of term %llu counts as stored up to %llu, and is not on its disk", m->number, i, e->term,
                r->last_stored);
        }
    }
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
