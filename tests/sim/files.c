/* The file systems of the machines, in memory. The calls on them are in posix.c and filevfs.c.
 *
 * Each file has two contents: what programs see, and what is on the disk for certain. A write goes to the first, and
 * into a list of changes; fsync brings the second up to date. A power loss leaves, file by file, the certain content
 * and none, all, the first or any of the changes, some of them torn in sectors. So it is with names: fsync of a folder
 * (or of a file, for its own name and what came before it) makes their changes certain; else a power loss leaves the
 * first few. The end of a process alone loses nothing, save for the rest of a synchronous write (posix.c).
 *
 * app.db-dust/pages, which nobody trusts after a crash, has no content here: it is mapped as anonymous memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/sim/files_impl.h"
#include "tests/sim/machine.h"
#include "tests/sim/sched.h"

struct change {
    struct change *next;
    bool truncate; /* to offset */
    size_t offset, n;
    uint8_t bytes[];
};

/* ---- content ---- */

static void bytes_resize(struct bytes *b, size_t size)
{
    if (size > b->room) {
        b->room = size + size / 2 + 4096;
        b->p = must(realloc(b->p, b->room));
    }
    if (size > b->size) {
        memset(b->p + b->size, 0, size - b->size);
    }
    b->size = size;
}

static void bytes_write(struct bytes *b, size_t offset, const void *p, size_t n)
{
    if (offset + n > b->size) {
        bytes_resize(b, offset + n);
    }
    memcpy(b->p + offset, p, n);
}

struct file *file_new(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct file *f = must(calloc(1, sizeof *f));

    f->tail = &f->first;
    f->volatile_content = strcmp(slash, "/pages") == 0 || strcmp(slash, "/probe") == 0;
    f->log = strncmp(slash, "/log-", 5) == 0;
    return f;
}

static void file_note(struct file *f, bool truncate, size_t offset, const void *p, size_t n)
{
    struct change *c = must(malloc(sizeof *c + n));

    *c = (struct change){.truncate = truncate, .offset = offset, .n = n};
    if (n != 0) {
        memcpy(c->bytes, p, n);
    }
    *f->tail = c;
    f->tail = &c->next;
}

void file_store(struct file *f, size_t offset, const void *p, size_t n)
{
    if (f->volatile_content) {
        f->now.size = offset + n > f->now.size ? offset + n : f->now.size;
        return;
    }
    bytes_write(&f->now, offset, p, n);
    file_note(f, false, offset, p, n);
}

void file_resize(struct file *f, size_t size)
{
    if (f->volatile_content) {
        f->now.size = size;
        return;
    }
    bytes_resize(&f->now, size);
    file_note(f, true, size, NULL, 0);
}

size_t file_read(const struct file *f, void *buf, size_t n, size_t at)
{
    size_t there = at < f->now.size ? f->now.size - at : 0;

    n = n < there ? n : there;
    if (f->volatile_content) {
        memset(buf, 0, n);
    } else if (n != 0) {
        memcpy(buf, f->now.p + at, n);
    }
    return n;
}

static void change_do(struct file *f, const struct change *c, size_t n)
{
    if (c->truncate) {
        bytes_resize(&f->safe, c->offset);
    } else if (n != 0) {
        bytes_write(&f->safe, c->offset, c->bytes, n);
    }
}

void file_flush(struct file *f)
{
    struct change *c, *next;

    for (c = f->first; c != NULL; c = next) {
        next = c->next;
        change_do(f, c, c->n);
        free(c);
    }
    f->first = NULL;
    f->tail = &f->first;
}

void file_store_blocks(struct file *f, size_t offset, const uint8_t *p, size_t n)
{
    while (n > 0) {
        size_t to_end = FILES_BLOCK - offset % FILES_BLOCK, part = n < to_end ? n : to_end;

        file_store(f, offset, p, part);
        offset += part;
        p += part;
        n -= part;
    }
}

/* The changes that touch the range, in order. What was noted before the file was cut or extended goes with that. */
void file_flush_range(struct file *f, size_t offset, size_t n)
{
    struct change *resized = NULL, *c;
    struct change **p = &f->first;

    for (c = f->first; c != NULL; c = c->next) {
        resized = c->truncate ? c : resized;
    }
    while ((c = *p) != NULL) {
        if (resized != NULL || (c->offset < offset + n && offset < c->offset + c->n)) {
            change_do(f, c, c->n);
            resized = c == resized ? NULL : resized;
            *p = c->next;
            free(c);
        } else {
            p = &c->next;
        }
    }
    f->tail = p;
}

/* Any sectors of it. */
static void change_tear(struct file *f, const struct change *c)
{
    for (size_t at = 0; at < c->n; at += FILES_SECTOR) {
        size_t n = c->n - at < FILES_SECTOR ? c->n - at : FILES_SECTOR;

        if (chance(5000)) {
            bytes_write(&f->safe, c->offset + at, c->bytes + at, n);
        }
    }
}

static void file_lose(struct file *f)
{
    unsigned mode = (unsigned)chance_below(4), n = 0, keep;
    struct change *c, *next;

    for (c = f->first; c != NULL; c = c->next) {
        n++;
    }
    keep = mode == 0 || n == 0 ? 0 : mode == 1 ? n : (unsigned)chance_below(n + 1);
    for (c = f->first; c != NULL; c = next) {
        bool whole = mode == 3 ? chance(5000) : keep > 0;

        next = c->next;
        if (whole) {
            change_do(f, c, c->n);
        } else if (mode == 2 && keep == 0 && c->n > FILES_SECTOR && chance(5000)) {
            change_do(f, c, (size_t)chance_below(c->n / FILES_SECTOR) * FILES_SECTOR); /* torn */
            mode = 0;
        } else if (mode == 2) {
            mode = 0;
        } else if (mode == 3 && !c->truncate && chance(3000)) {
            change_tear(f, c);
        }
        keep -= keep > 0;
        free(c);
    }
    f->first = NULL;
    f->tail = &f->first;
    bytes_resize(&f->now, 0);
    bytes_write(&f->now, 0, f->safe.p != NULL ? f->safe.p : (uint8_t *)"", f->safe.size);
}

/* ---- names ---- */

static struct files_name *name_find(struct files_name *names, unsigned n, const char *path)
{
    for (unsigned i = 0; i < n; i++) {
        if (strcmp(names[i].path, path) == 0) {
            return &names[i];
        }
    }
    return NULL;
}

struct file *file_find(struct machine *m, const char *path)
{
    struct files_name *name = name_find(m->files.now, m->files.n_now, path);

    return name != NULL ? name->file : NULL;
}

struct file *file_certain(struct machine *m, const char *path)
{
    struct files_name *name = name_find(m->files.safe, m->files.n_safe, path);

    return name != NULL ? name->file : NULL;
}

/* path is the name of `file`, or of nothing. */
static void name_put(struct files_name *names, unsigned *n, const char *path, struct file *file)
{
    struct files_name *name = name_find(names, *n, path);

    if (file == NULL) {
        if (name != NULL) {
            *name = names[--*n];
        }
        return;
    }
    if (name == NULL) {
        if (*n == FILES_NAMES_MAX || strlen(path) >= FILES_PATH_MAX) {
            stuck("too many files, or too long a name: %s", path);
        }
        name = &names[(*n)++];
        snprintf(name->path, sizeof name->path, "%s", path);
    }
    name->file = file;
}

void names_flush(struct files *f, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        name_put(f->safe, &f->n_safe, f->changes[i].path, f->changes[i].file);
    }
    memmove(f->changes, f->changes + n, (f->n_changes - n) * sizeof f->changes[0]);
    f->n_changes -= n;
}

void name_change(struct machine *m, const char *path, struct file *file)
{
    struct files *f = &m->files;
    struct files_change *c;

    name_put(f->now, &f->n_now, path, file);
    if (f->n_changes == FILES_NAMES_MAX) {
        names_flush(f, 1); /* long ago */
    }
    c = &f->changes[f->n_changes++];
    snprintf(c->path, sizeof c->path, "%s", path);
    c->file = file;
}

/* A file was flushed: its name is certain, and what came before it. */
void names_flush_to(struct files *f, const struct file *file)
{
    unsigned n = f->n_changes;

    while (n > 0 && f->changes[n - 1].file != file) {
        n--;
    }
    names_flush(f, n);
}

/* ---- the machine's side ---- */

void files_lose(struct machine *m)
{
    struct files *f = &m->files;

    names_flush(f, (unsigned)chance_below(f->n_changes + 1));
    f->n_changes = 0;
    memcpy(f->now, f->safe, sizeof f->now);
    f->n_now = f->n_safe;
    for (unsigned i = 0; i < f->n_now; i++) {
        if (!f->now[i].file->folder && !f->now[i].file->volatile_content) {
            file_lose(f->now[i].file);
        }
    }
}

void files_wipe(struct machine *m)
{
    char folder[FILES_PATH_MAX];

    memset(&m->files, 0, sizeof m->files);
    snprintf(folder, sizeof folder, "/sim/%u", m->number);
    mkdir(folder, 0700);
    names_flush(&m->files, m->files.n_changes);
}

const uint8_t *files_content(const struct machine *m, const char *path, size_t *size)
{
    struct file *f = file_find((struct machine *)m, path);

    *size = f != NULL ? f->now.size : 0;
    return f != NULL ? f->now.p : NULL;
}

const uint8_t *files_certain(const struct machine *m, const char *path, size_t *size)
{
    struct file *f = file_certain((struct machine *)m, path);

    *size = f != NULL ? f->safe.size : 0;
    return f != NULL ? f->safe.p : NULL;
}

bool files_write_fails(struct machine *m)
{
    if (world.healing || m == NULL || !chance(m->failing)) {
        return false;
    }
    tally()->disk_faults++;
    return true;
}

void files_take_time(struct machine *m)
{
    if (task_self() != NULL && m != NULL) {
        task_sleep(chance_between(50 * US_NS, 400 * US_NS) * m->slow);
    }
}
