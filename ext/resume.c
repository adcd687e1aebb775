/* Bringing up a member that exists on disk. See resume.h, and registry.c for what an earlier start may have left behind.
 *
 * Whoever gets the lock on app.db-dust/host hosts the member; whoever does not attaches. When the host ends, an attached
 * process that gets the lock does here what the first one did, on the database object that its connections know. */
#include "ext/resume.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext/log.h"
#include "raft/storage.h"
#include "vfs/attachment.h"

#define ATTACH_MS 15000u /* for a host that is just starting */

/* Was a start cut short before its log was begun? Then what there is of the log is removed. *yes is set with DUST_OK. */
static int unfinished_start(
    const char *path, const struct member *self, const struct database_content *content, bool *yes, struct err *e)
{
    char name[4096 + 300];
    struct dirent *d;
    bool log;
    DIR *dir;
    int rv;

    *yes = false;
    if (self->id != 1 || content->n_pages == 0 || content->wal || content->page_size != self->page_size ||
        (content->marked && !vid_equal(&content->id, &self->cluster))) {
        return DUST_OK;
    }
    snprintf(name, sizeof name, "%s-dust/raft", path);
    rv = storage_begun(name, &log, e);
    if (rv != DUST_OK || log) {
        return rv;
    }
    dir = opendir(name);
    while (dir != NULL && (d = readdir(dir)) != NULL) {
        if (d->d_name[0] != '.') {
            snprintf(name, sizeof name, "%s-dust/raft/%s", path, d->d_name);
            unlink(name);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    *yes = true;
    return DUST_OK;
}

/* Who it is, and whether it may be started. */
static int load(const char *path, const char *dir, const struct start_options *o, struct member *self, struct err *e)
{
    struct address a;
    struct stat st;
    int rv = member_load(dir, self, e);

    if (rv == DUST_NOTFOUND && stat(dir, &st) != 0) { /* taken for a member's since nobody could tell (registry.c) */
        return err_sys(e, errno == ENOENT ? EIO : errno, "cannot look whether there is a folder %s: try again", dir);
    }
    if (rv == DUST_NOTFOUND) {
        return err_set(e, DUST_CORRUPT,
            "%s has no file `member`: starting, joining or leaving was cut short, or files were removed; delete %s and "
            "start or join again",
            dir, dir);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    if (self->refused) {
        return err_set(e, DUST_REFUSED,
            "the folder %s is a copy, or an older state, of member %llu, as its cluster has told it, and is not started "
            "again. Use the other one; or, if it is lost, remove member %llu at another one, delete this folder and the "
            "database, and join anew",
            dir, (unsigned long long)self->id, (unsigned long long)self->id);
    }
    if (o->bind != NULL && (rv = registry_own_address(o->bind, true, &a, e)) != DUST_OK) {
        return rv;
    }
    if (o->bind != NULL && a.port != 0 && strcmp(a.text, self->bind) != 0) {
        return err_set(e, DUST_EXISTS, "bind: this member listens on %s; to move it, remove it and join again",
            self->bind);
    }
    if (stat(path, &st) != 0) {
        return err_set(e, DUST_NOTFOUND,
            "the database %s is gone, though its folder %s is there: put it back from a copy; or, if other members are "
            "well, remove this one there, delete the folder, and join anew",
            path, dir);
    }
    return DUST_OK;
}

/* Keys that were given take the place of those it has. */
static int use_keys(struct database *db, const struct keys *given, struct node_options *opt, struct err *e)
{
    struct address bind, advertise;
    int rv = keys_load(db->dir, &opt->keys, e);

    if (given->n != 0 && (rv == DUST_MISUSE || (rv == DUST_OK && !keys_equal(given, &opt->keys)))) {
        rv = keys_save(db->dir, given, e);
        opt->keys = *given;
    }
    if (rv == DUST_OK && opt->keys.n == 0 && address_parse(opt->self.bind, &bind, NULL) == DUST_OK &&
        address_parse(opt->self.address, &advertise, NULL) == DUST_OK &&
        !(address_is_loopback(&bind) && address_is_loopback(&advertise))) {
        return err_set(e, DUST_NOTFOUND,
            "%s/key is gone, and without a key members talk on 127.0.0.1 only: put it back, or give the cluster's with "
            "keyfile=FILE",
            db->dir);
    }
    return rv;
}

/* The lock is this process's. On failure nothing is left but the database object. */
static int host(struct database *db, const struct keys *given, struct node_options *opt, struct node **node, struct err *e)
{
    struct database_content content;
    bool unfinished;
    int rv = database_host(db, e);

    if (rv == DUST_OK) {
        rv = use_keys(db, given, opt, e);
    }
    if (rv == DUST_OK) {
        rv = database_open_file(db, &content, e);
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    db->page_size = opt->self.page_size;
    rv = unfinished_start(db->path, &opt->self, &content, &unfinished, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    if (unfinished) {
        opt->mode = NODE_BOOTSTRAP;
        opt->n_pages = content.n_pages;
        content.id = opt->self.cluster;
    } else if (content.n_pages != 0 && (!content.marked || content.page_size != opt->self.page_size)) {
        rv = err_set(e, DUST_CORRUPT,
            "%s is not the database of this member (%s): it was replaced; put the right one back, or, if other members "
            "are well, remove this one there, delete both here, and join anew%s%s",
            db->path, !content.marked ? "it does not carry dust's mark" : "its page size differs",
            !content.marked ? ". Or dust_leave() was cut short: then delete " : "", !content.marked ? db->dir : "");
        goto fail;
    }
    rv = store_format(db->store, db->page_size, &content.id, 0, content.n_pages, e);
    if (rv == DUST_OK && opt->mode == NODE_BOOTSTRAP) {
        rv = database_sums_open(db, &content.id, 0, e); /* made when the marks are */
    }
    if (rv == DUST_OK) {
        atomic_store(&db->caught_up, false);
        rv = node_start(node, db, opt, e);
    }
    if (rv == DUST_OK) {
        return DUST_OK;
    }
fail:
    database_unhost(db);
    return rv;
}

static int host_and_serve(struct hosted *h, struct node_options *opt, struct err *e)
{
    struct node *node;
    int rv = host(h->db, &h->given, opt, &node, e);

    if (rv != DUST_OK) {
        return rv;
    }
    rv = registry_serve(h, e);
    if (rv != DUST_OK) {
        node_stop(node);
        database_unhost(h->db);
        return rv;
    }
    atomic_store(&h->node, node);
    return DUST_OK;
}

/* takeover.take_over */
static int take_over(void *ctx, struct database *db, struct err *e)
{
    struct hosted *h = ctx;
    struct node_options opt = {.mode = NODE_RESUME, .election_ms = h->election_ms};
    struct start_options none;
    int rv;

    start_options_init(&none);
    rv = load(db->path, db->dir, &none, &opt.self, e);
    return rv == DUST_OK ? host_and_serve(h, &opt, e) : rv;
}

int resume_member(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    struct node_options opt = {.mode = NODE_RESUME, .election_ms = o->election_ms};
    struct keys given = {.n = 0};
    struct hosted *h = NULL;
    struct database *db;
    char dir[4096];
    int rv;

    snprintf(dir, sizeof dir, "%s-dust", path);
    rv = load(path, dir, o, &opt.self, e);
    if (rv == DUST_OK && o->keyfile != NULL) {
        rv = keys_read(o->keyfile, &given, e);
    }
    if (rv == DUST_OK) {
        rv = database_prepare(&db, lib->base, path, &o->db, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    db->report.log = log_to_sqlite;
    db->report.log_ctx = lib;
    h = registry_entry(lib, o, e);
    if (h == NULL) {
        database_free(db);
        return DUST_NOMEM;
    }
    h->db = db;
    h->given = given;
    rv = attachment_open(db, &(struct takeover){.ctx = h, .take_over = take_over}, ATTACH_MS, e);
    if (rv == DUST_AGAIN) { /* nobody hosts it: we do */
        rv = host_and_serve(h, &opt, e);
    }
    if (rv != DUST_OK) {
        free(h);
        database_free(db);
        return rv;
    }
    registry_add(h, opt.self.address);
    *out = h;
    return DUST_OK;
}
