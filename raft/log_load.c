/* Reading the log.
 *
 * All files are searched for batches. The one with the highest number is the log's last; from there it goes back to the
 * one that it follows, and so on, until one begins at or before the floor, or is of a log that began anew. What is not on
 * that way is void, or was used up. If the way ends before, at a batch that is not there, it has been written over because
 * nothing in it was needed any more, or it is damaged: the snapshot tells which.
 *
 * What no file can tell is that its last batches are damaged: that looks as if they had never been written. What has been
 * promised tells it (promise.h). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "raft/log_impl.h"

struct found {
    struct batch batch;
    struct log_file *file;
    size_t at;
    bool on_way;
};

struct search {
    struct log *log;
    bool forgiving;
    struct log_file *files; /* all of them, in any order */
    struct found *found;
    size_t n, room;
};

/* ---- which batches there are ---- */

static int note(struct search *s, const struct batch *b, struct log_file *f, size_t at)
{
    if (s->n == s->room) {
        size_t room = s->room != 0 ? 2 * s->room : 256;
        struct found *more = realloc(s->found, room * sizeof *more);

        if (more == NULL) {
            return ENOMEM;
        }
        s->found = more;
        s->room = room;
    }
    s->found[s->n++] = (struct found){.batch = *b, .file = f, .at = at};
    return 0;
}

/* What lies behind a batch of this file's present content and has a lower number is of an earlier one; being whole, it has
 * nothing newer within it. */
static int scan(struct search *s, struct log_file *f, const uint8_t *p)
{
    uint64_t highest = 0;
    struct batch b;
    size_t at = 0;
    int rv = 0;

    while (rv == 0 && at < f->bytes) {
        if (!batch_open(p + at, f->bytes - at, s->log->key, &b)) {
            at += BATCH_BLOCK;
            continue;
        }
        if (b.seq > highest) {
            highest = b.seq;
            rv = note(s, &b, f, at);
        }
        at += batch_blocks(b.size);
    }
    return rv;
}

static int scan_file(struct search *s, struct log_file *f, struct err *e)
{
    int rv = log_file_look(f, s->log->dir, e);
    uint8_t *buf;

    if (rv != DUST_OK) {
        return rv;
    }
    buf = malloc(f->bytes + 1);
    if (buf == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = log_file_read(f, s->log->dir, buf, f->bytes, 0, e);
    if (rv == DUST_OK && scan(s, f, buf) != 0) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
    }
    free(buf);
    return rv;
}

static int scan_all(struct search *s, struct err *e)
{
    DIR *folder = opendir(s->log->dir);
    struct dirent *d;
    int rv = DUST_OK;

    if (folder == NULL) {
        return err_sys(e, errno, "cannot read the folder %s", s->log->dir);
    }
    while (rv == DUST_OK && (errno = 0, d = readdir(folder)) != NULL) {
        struct log_file *f;
        unsigned number;

        if (!log_file_number(d->d_name, &number)) {
            continue;
        }
        f = calloc(1, sizeof *f);
        if (f == NULL) {
            rv = err_set(e, DUST_NOMEM, "out of memory");
            break;
        }
        *f = (struct log_file){.number = number, .fd = -1, .next = s->files};
        s->files = f;
        s->log->files.last_number = number > s->log->files.last_number ? number : s->log->files.last_number;
        rv = scan_file(s, f, e);
    }
    if (rv == DUST_OK && errno != 0) {
        rv = err_sys(e, errno, "cannot read the folder %s", s->log->dir);
    }
    closedir(folder);
    return rv;
}

/* ---- which of them are the log ---- */

static int by_seq(const void *a, const void *b)
{
    const struct found *x = a, *y = b;

    return x->batch.seq < y->batch.seq ? -1 : x->batch.seq > y->batch.seq;
}

static struct found *find(struct search *s, uint64_t seq)
{
    const struct found key = {.batch.seq = seq};

    return seq == 0 ? NULL : bsearch(&key, s->found, s->n, sizeof *s->found, by_seq);
}

/* From the last one back. *first: where the way ends. */
static int find_way(struct search *s, uint64_t snapshot, struct found **first, struct err *e)
{
    struct found *at = &s->found[s->n - 1];
    uint64_t floor = at->batch.floor;

    for (;;) {
        struct found *before;

        at->on_way = true;
        *first = at;
        if (at->batch.first <= floor || at->batch.kind == BATCH_ANEW) {
            return DUST_OK;
        }
        before = find(s, at->batch.follows);
        if (before == NULL) {
            break;
        }
        at = before;
    }
    if (at->batch.first <= snapshot + 1) {
        return DUST_OK; /* and what was before was not needed */
    }
    return err_set(e, DUST_CORRUPT,
        "the log in %s is damaged: what stands before byte %zu of log-%u, entries up to %" PRIu64 ", cannot be read",
        s->log->dir, at->at, at->file->number, at->batch.first - 1);
}

/* ---- the entries ---- */

/* One for each entry on the way that no later batch has made void. */
struct refs {
    struct found **of; /* the batch that entry start + i is in */
    size_t n, room;
    uint64_t start;
};

static int refs_add(struct refs *r, struct found *f)
{
    const struct batch *b = &f->batch;

    /* What was before may be gone, with more of the log, though it was not cut then: the way begins where it can be read. */
    if (b->kind == BATCH_ANEW || r->start == 0 || b->first < r->start) {
        r->n = 0;
        r->start = b->first;
    }
    if (b->first > r->start + r->n) {
        return EINVAL;
    }
    r->n = (size_t)(b->first - r->start);
    if (r->n + b->n > r->room) {
        size_t room = 2 * (r->n + b->n);
        struct found **more = realloc(r->of, room * sizeof *more);

        if (more == NULL) {
            return ENOMEM;
        }
        r->of = more;
        r->room = room;
    }
    for (uint32_t i = 0; i < b->n; i++) {
        r->of[r->n++] = f;
    }
    return 0;
}

/* Read a batch again, into memory of libraft's, and hand its entries over, from the first up to `n`. */
static int take_entries(struct search *s, const struct found *f, struct raft_entry *out, size_t n, struct err *e)
{
    uint8_t *p = raft_malloc(f->batch.size);
    size_t at = BATCH_HEAD, i = 0;
    struct batch_entry entry;
    struct batch b;
    int rv;

    if (p == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    rv = log_file_read(f->file, s->log->dir, p, f->batch.size, f->at, e);
    if (rv == DUST_OK && (!batch_open(p, f->batch.size, s->log->key, &b) || b.seq != f->batch.seq)) {
        rv = err_set(e, DUST_IO, "%s/log-%u cannot be read twice alike", s->log->dir, f->file->number);
    }
    if (rv != DUST_OK) {
        raft_free(p);
        return rv;
    }
    while (i < n && batch_next(p, &b, &at, &entry)) {
        out[i++] = (struct raft_entry){.term = entry.term, .type = entry.type, .batch = p,
            .buf = {.base = p + (entry.data - p), .len = entry.size}};
    }
    return DUST_OK;
}

static int take_all(struct search *s, const struct refs *r, struct log_content *out, struct err *e)
{
    int rv = DUST_OK;

    out->entries = raft_calloc(r->n, sizeof *out->entries);
    if (out->entries == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    while (rv == DUST_OK && out->n < r->n) {
        const struct found *f = r->of[out->n];
        size_t n = 1;

        while (out->n + n < r->n && r->of[out->n + n] == f) {
            n++;
        }
        rv = take_entries(s, f, out->entries + out->n, n, e);
        out->n += rv == DUST_OK ? n : 0;
    }
    return rv;
}

void log_content_free(struct log_content *c)
{
    for (size_t i = 0; i < c->n; i++) {
        if (i + 1 == c->n || c->entries[i + 1].batch != c->entries[i].batch) {
            raft_free(c->entries[i].batch);
        }
    }
    raft_free(c->entries);
    *c = (struct log_content){0};
}

static int collect(struct search *s, const struct found *first, struct log_content *out, struct err *e)
{
    struct refs refs = {0};
    int rv = 0;

    for (size_t i = (size_t)(first - s->found); rv == 0 && i < s->n; i++) {
        rv = s->found[i].on_way ? refs_add(&refs, &s->found[i]) : 0;
    }
    out->start = refs.start;
    if (rv != 0) {
        rv = rv == ENOMEM ? err_set(e, DUST_NOMEM, "out of memory")
                          : err_set(e, DUST_CORRUPT, "the log in %s is damaged: it does not hold together", s->log->dir);
    } else if (refs.n != 0) {
        rv = take_all(s, &refs, out, e);
    }
    free(refs.of);
    return rv;
}

/* Do the entries lead to the snapshot, or on from it? */
static bool leads_on(const struct log_content *c, uint64_t index, uint64_t term)
{
    if (index < c->start) {
        return index + 1 == c->start; /* begins behind it */
    }
    return index < c->start + c->n && c->entries[index - c->start].term == term;
}

/* ---- the files ---- */

static struct log_file **file_of(struct search *s, const struct log_file *f)
{
    struct log_file **p = &s->files;

    while (*p != NULL && *p != f) {
        p = &(*p)->next;
    }
    return p;
}

/* Those that the log is in, in its order; the others are free. */
static void sort_files(struct search *s)
{
    struct log_files *files = &s->log->files;

    for (size_t i = 0; i < s->n; i++) {
        struct found *f = &s->found[i];
        struct log_file **p = f->on_way ? file_of(s, f->file) : NULL;
        uint64_t last = f->batch.first + f->batch.n - 1;

        if (!f->on_way) {
            continue;
        }
        if (*p != NULL) {
            *p = f->file->next;
            f->file->next = NULL;
            *files->live_tail = f->file;
            files->live_tail = &f->file->next;
            files->current = f->file;
        }
        f->file->last = last > f->file->last ? last : f->file->last;
        f->file->used = f->at + batch_blocks(f->batch.size);
    }
    while (s->files != NULL) {
        struct log_file *f = s->files, **list;
        bool whole = f->bytes == LOG_FILE_BYTES && files->n_idle < LOG_FREE_MAX;

        s->files = f->next;
        list = whole ? &files->idle : &files->doomed;
        files->n_idle += whole;
        f->next = *list;
        *list = f;
    }
}

/* Without what comes behind the damage: the last batch before it from which there is a way. */
static int find_shorter_way(struct search *s, uint64_t snapshot, struct found **first, struct err *e)
{
    int rv = find_way(s, snapshot, first, e);

    while (rv == DUST_CORRUPT && s->forgiving && *first != s->found) {
        s->n = (size_t)(*first - s->found);
        for (size_t i = 0; i < s->n; i++) {
            s->found[i].on_way = false;
        }
        rv = find_way(s, snapshot, first, e);
    }
    return rv;
}

static int load(struct search *s, uint64_t index, uint64_t term, struct log_content *out, struct err *e)
{
    struct log *l = s->log;
    struct found *first;
    int rv;

    out->start = index + 1;
    l->floor = 1;
    l->anew = index != 0;
    if (s->n == 0) {
        return DUST_OK;
    }
    qsort(s->found, s->n, sizeof *s->found, by_seq);
    rv = find_shorter_way(s, index, &first, e);
    rv = rv == DUST_OK ? collect(s, first, out, e) : rv;
    if (rv != DUST_OK) {
        return rv;
    }
    l->seq = s->found[s->n - 1].batch.seq;
    l->last_at = s->found[s->n - 1].at;
    l->floor = s->found[s->n - 1].batch.floor;
    if (index == 0 ? out->start == 1 : leads_on(out, index, term)) {
        l->anew = false;
        return DUST_OK;
    }
    if (out->start > index + 1) {
        return err_set(e, DUST_CORRUPT,
            "the log in %s is damaged: it begins with entry %" PRIu64 ", and the snapshot before it ends with entry %" PRIu64,
            l->dir, out->start, index);
    }
    log_content_free(out); /* the snapshot was installed, and the log not begun anew yet */
    out->start = index + 1;
    return DUST_OK;
}

int log_load(struct log *l, const uint8_t key[BATCH_KEY_SIZE], uint64_t index, uint64_t term, bool forgiving,
    struct log_content *out, struct err *e)
{
    struct search s = {.log = l, .forgiving = forgiving};
    int rv;

    *out = (struct log_content){0};
    memcpy(l->key, key, BATCH_KEY_SIZE);
    rv = scan_all(&s, e);
    rv = rv == DUST_OK ? load(&s, index, term, out, e) : rv;
    if (rv != DUST_OK) {
        log_content_free(out);
    }
    sort_files(&s);
    free(s.found);
    return rv;
}

/* Does this file begin with something? */
static int begins(int folder, const char *name, bool *yes)
{
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), rv;
    uint64_t begin = 0;
    ssize_t n;

    if (fd < 0) {
        return errno;
    }
    do {
        n = pread(fd, &begin, sizeof begin, 0);
    } while (n < 0 && errno == EINTR);
    rv = n < 0 ? errno : 0;
    *yes = n > 0 && begin != 0;
    close(fd);
    return rv;
}

int log_exists(const char *dir, bool *exists, struct err *e)
{
    DIR *folder = opendir(dir);
    struct dirent *d;
    unsigned number;
    int rv = 0;

    *exists = false;
    if (folder == NULL) {
        return errno == ENOENT ? DUST_OK : err_sys(e, errno, "cannot read the folder %s", dir);
    }
    while (rv == 0 && !*exists) {
        errno = 0;
        d = readdir(folder);
        if (d == NULL) {
            rv = errno;
            break;
        }
        if (log_file_number(d->d_name, &number)) {
            rv = begins(dirfd(folder), d->d_name, exists);
        }
    }
    closedir(folder);
    return rv == 0 ? DUST_OK : err_sys(e, rv, "cannot look for the log in %s", dir);
}
