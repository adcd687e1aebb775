/* Bringing members up and down. See registry.h.
 *
 * Three locks: `list` for a moment when an entry is added; `opening` for as long as it takes to bring a member up, so
 * that two threads that open the same path at once do not both try; `leaving` likewise, and while the process ends.
 *
 * What a start leaves behind if it is cut short, and how it is found again:
 *   1. folder made        a folder without `member`: refused, with what to delete
 *   2. `member` written   the start is finished when the database is next opened: it is unmarked, or still at the
 *   3. app.db marked      cluster's first version, and there is no log
 *   4. log begun          a member
 * And a leave:
 *   1. app.db unmarked    the folder is not that of such a file: refused, with what to delete
 *   2. `member` removed   a folder without `member`: refused, with what to delete
 *   3. folder removed     an ordinary database
 *
 * At the end of the process each member that leads hands over, and each is checkpointed, so that app.db is complete for
 * plain readers, and stopped. */
#include "ext/registry.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext/call.h"
#include "ext/folder.h"
#include "ext/lib.h"
#include "ext/log.h"
#include "ext/resume.h"
#include "raft/forked.h"
#include "vfs/attachment.h"
#include "vfs/link.h"
#include "vfs/mark.h"

#define HAND_OVER_MS 500u

static struct {
    pthread_mutex_t list;
    pthread_mutex_t opening;
    pthread_mutex_t leaving;
    struct hosted *_Atomic first; /* entries are put in front and never taken out: readers take no lock */
    bool at_exit;
} registry = {.list = PTHREAD_MUTEX_INITIALIZER, .opening = PTHREAD_MUTEX_INITIALIZER,
    .leaving = PTHREAD_MUTEX_INITIALIZER};

void start_options_init(struct start_options *o)
{
    *o = (struct start_options){
        .db = {.timeout_ms = 10000, .turn_timeout_ms = 30000, .consistency = CONSISTENCY_LOCAL,
            .statements = STATEMENTS_TEXT},
        .election_ms = 1000,
    };
}

/* Has the process that hosts it taken it out of its cluster? */
static bool left_elsewhere(struct hosted *h)
{
    struct store *s;
    bool left;

    if (h->db->attachment == NULL || atomic_load(&h->node) != NULL) {
        return false;
    }
    s = database_bound(h->db);
    left = store_state(s) == STORE_LEFT;
    store_close(s);
    if (left) {
        atomic_store(&h->gone, true);
    }
    return left;
}

struct hosted *registry_find(const char *path, int len)
{
    struct hosted *h;

    for (h = atomic_load(&registry.first); h != NULL; h = h->next) {
        if (!atomic_load_explicit(&h->gone, memory_order_relaxed) && strncmp(h->db->path, path, (size_t)len) == 0 &&
            h->db->path[len] == '\0' && !left_elsewhere(h)) {
            break;
        }
    }
    return h;
}

struct hosted *registry_of(const struct database *db)
{
    struct hosted *h;

    for (h = atomic_load(&registry.first); h != NULL && (h->db != db || atomic_load(&h->gone)); h = h->next) {
    }
    return h;
}

bool registry_is_member_path(const char *path)
{
    char dir[4096];
    struct stat st;

    if (snprintf(dir, sizeof dir, "%s-dust", path) >= (int)sizeof dir) {
        return false;
    }
    if (stat(dir, &st) == 0) {
        return S_ISDIR(st.st_mode);
    }
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
    case EACCES:
    case ELOOP:
    case ENAMETOOLONG:
        return false;
    default:
        return true; /* the disk cannot tell: what opens it says so, and a member is not taken for a plain database */
    }
}

/* A forked child has the memory, but neither the threads nor the locks. Whoever held a mutex of ours is not there to give
 * it back; and the lists that they protect are whole at every moment. What is hosted or attached is the parent's: the
 * child is a client of its own when it next uses a connection (vfs/forked.h), or opens one. */
static void after_fork(void)
{
    pthread_mutex_init(&registry.list, NULL);
    pthread_mutex_init(&registry.opening, NULL);
    pthread_mutex_init(&registry.leaving, NULL);
    link_forked();
    libs_forked();
    conns_forked();
    for (struct hosted *h = atomic_load(&registry.first); h != NULL; h = h->next) {
        if (!atomic_exchange(&h->gone, true)) {
            service_forked(h->service);
            forked_close(atomic_load(&h->node), h->db->dir);
        }
    }
}

int registry_rejoin(struct sqlite_lib *lib, const struct database *inherited, struct database **db, struct err *e)
{
    struct start_options o;
    struct hosted *h;
    int rv;

    start_options_init(&o);
    o.db = inherited->options;
    rv = registry_is_member_path(inherited->path)
             ? registry_resume(lib, inherited->path, &o, &h, e)
             : err_set(e, DUST_CLOSED, "this database has left its cluster: close the connection and open it again");
    if (rv == DUST_OK) {
        *db = h->db;
    }
    return rv;
}

static void at_exit(void)
{
    pthread_mutex_lock(&registry.leaving);
    for (struct hosted *h = atomic_load(&registry.first); h != NULL; h = h->next) {
        struct node *node;
        struct err e;

        if (atomic_load(&h->gone) || atomic_load(&h->db->left)) {
            continue;
        }
        attachment_stop(h->db);
        node = atomic_load(&h->node);
        if (node != NULL) {
            service_stop(h->service); /* those attached wait for the next host */
            h->service = NULL;
            node_hand_over(node, HAND_OVER_MS);
            node_checkpoint(node, &e);
            node_halt(node); /* libuv takes its thread pool down next, and ends whoever asks it for work then */
        }
    }
    forked_before_exit();
    pthread_mutex_unlock(&registry.leaving);
}

struct hosted *registry_entry(struct sqlite_lib *lib, const struct start_options *o, struct err *e)
{
    struct hosted *h = calloc(1, sizeof *h);

    if (h == NULL) {
        err_set(e, DUST_NOMEM, "out of memory");
        return NULL;
    }
    h->lib = lib;
    h->election_ms = o->election_ms;
    return h;
}

int registry_serve(struct hosted *h, struct err *e)
{
    const struct service_calls calls = {.ctx = h, .call = call_serve};

    return service_start(&h->service, h->db, &calls, e);
}

void registry_add(struct hosted *h, const char *address)
{
    snprintf(h->address, sizeof h->address, "%s", address);
    pthread_mutex_lock(&registry.list);
    h->next = atomic_load(&registry.first);
    atomic_store(&registry.first, h);
    if (!registry.at_exit) {
        registry.at_exit = true;
        pthread_atfork(NULL, NULL, after_fork);
        atexit(at_exit);
    }
    pthread_mutex_unlock(&registry.list);
}

/* A new one, just started or joined. It works without those that would attach, too. */
static void enlist(struct hosted *h, struct database *db, struct node *node)
{
    struct node_view view;
    struct err e;

    node_view(node, &view);
    h->db = db;
    if (registry_serve(h, &e) != DUST_OK) {
        report_err(&db->report, &e);
    }
    atomic_store(&h->node, node);
    registry_add(h, view.address);
}

int registry_own_address(const char *text, bool keyed, struct address *a, struct err *e)
{
    int rv;

    if (text == NULL || *text == '\0') {
        return err_set(e, DUST_MISUSE, "an own address is needed, as host:port (for example 127.0.0.1:4001)");
    }
    rv = address_parse(text, a, e);
    if (rv == DUST_OK && !keyed && !address_is_loopback(a)) {
        return err_set(e, DUST_REFUSED,
            "%s is not a loopback address: without a key, members talk on 127.0.0.1 only. `dust key FILE` makes one, and "
            "keyfile=FILE gives it to a member",
            text);
    }
    return rv;
}

/* How others reach it, and whether they may. */
static int own_addresses(const struct start_options *o, struct keys *keys, struct address *bind, struct address *advertise,
    struct err *e)
{
    int rv = o->keyfile != NULL ? keys_read(o->keyfile, keys, e) : DUST_OK;

    if (rv == DUST_OK) {
        rv = registry_own_address(o->bind, keys->n != 0, bind, e);
    }
    if (rv == DUST_OK && o->advertise != NULL) {
        rv = registry_own_address(o->advertise, keys->n != 0, advertise, e);
    }
    if (rv == DUST_OK && address_is_any(o->advertise != NULL ? advertise : bind)) {
        return err_set(e, DUST_MISUSE,
            "%s means every address of this host, and others cannot reach it by that: advertise=HOST:PORT says how they do",
            (o->advertise != NULL ? advertise : bind)->text);
    }
    return rv;
}

int registry_check_own(const struct start_options *o, struct err *e)
{
    struct address bind, advertise;
    struct keys keys = {.n = 0};

    return own_addresses(o, &keys, &bind, &advertise, e);
}

static int whom_to_join(const char *text, const char *own, struct node_options *opt, struct err *e)
{
    char one[ADDRESS_TEXT_MAX];
    struct err why;

    while (text != NULL && *text != '\0') {
        size_t n = strcspn(text, ",");
        int rv;

        if (n >= sizeof one || opt->n_join == sizeof opt->join / sizeof opt->join[0]) {
            return err_set(e, DUST_MISUSE, "join: \"%s\" is not a list of addresses as host:port", text);
        }
        memcpy(one, text, n);
        one[n] = '\0';
        rv = address_parse(one, &opt->join[opt->n_join], &why);
        if (rv != DUST_OK) {
            return err_set(e, rv, "join: %s", why.text);
        }
        if (opt->join[opt->n_join].port == 0) {
            return err_set(e, DUST_MISUSE, "join: %s has no port", one);
        }
        if (strcmp(opt->join[opt->n_join].text, own) == 0) {
            return err_set(e, DUST_MISUSE, "join: %s is this member's own address", one);
        }
        opt->n_join++;
        text += n + (text[n] == ',');
    }
    return opt->n_join != 0 ? DUST_OK
                            : err_set(e, DUST_MISUSE, "join: the address of a member is needed, as host:port");
}

static int new_database(struct sqlite_lib *lib, const char *path, const struct start_options *o,
    struct database_content *content, struct database **out, struct err *e)
{
    struct database *db;
    int rv = database_new(&db, lib->base, path, &o->db, e);

    if (rv != DUST_OK) {
        return rv;
    }
    db->report.log = log_to_sqlite;
    db->report.log_ctx = lib;
    rv = database_open_file(db, content, e);
    if (rv != DUST_OK) {
        database_free(db);
        return rv;
    }
    *out = db;
    return DUST_OK;
}

/* Take the marks off again, if a start that failed got as far as to make them. False: they may still be there. */
static bool unmark(struct database *db)
{
    uint8_t header[HEADER_SIZE] = {0};

    if (db->file == NULL || db->file->pMethods == NULL || store_page_size(db->store) == 0) {
        return true;
    }
    return db->file->pMethods->xRead(db->file, header, sizeof header, 0) == SQLITE_OK &&
           (mark_read(header, NULL) != MARK_DUST || database_end(db, NULL) == DUST_OK);
}

int registry_resume(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    int rv = DUST_OK;

    *out = registry_find(path, (int)strlen(path));
    if (*out != NULL) {
        return DUST_OK;
    }
    pthread_mutex_lock(&registry.opening);
    *out = registry_find(path, (int)strlen(path));
    if (*out == NULL) {
        rv = resume_member(lib, path, o, out, e);
    }
    pthread_mutex_unlock(&registry.opening);
    return rv;
}

/* ---- a new one ---- */

/* Where it is, and by which keys it is known, as its folder has them. */
static int set_addresses_and_keys(struct node_options *opt, const struct address *bind, const struct address *advertise,
    const char *dir, struct err *e)
{
    memcpy(opt->self.bind, bind->text, sizeof opt->self.bind);
    if (advertise != NULL) {
        memcpy(opt->self.address, advertise->text, sizeof opt->self.address);
    }
    return opt->keys.n != 0 ? keys_save(dir, &opt->keys, e) : DUST_OK;
}

static int start(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    struct node_options opt = {.mode = NODE_BOOTSTRAP, .election_ms = o->election_ms};
    struct database_content content;
    struct hosted *h = NULL;
    struct database *db = NULL;
    struct node *node;
    struct address bind, advertise;
    bool undone;
    int rv;

    rv = own_addresses(o, &opt.keys, &bind, &advertise, e);
    if (rv == DUST_OK) {
        rv = folder_make(path, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    rv = new_database(lib, path, o, &content, &db, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    if (content.n_pages == 0 || content.wal || content.marked) {
        rv = err_set(e, DUST_REFUSED, "%s %s", path,
            content.marked ? "is a copy of a member's database; a cluster cannot be started on it as it stands"
            : content.wal  ? "is in WAL mode, and another connection keeps it there: close it and try again"
                           : "is empty");
        goto fail;
    }
    rv = set_addresses_and_keys(&opt, &bind, o->advertise != NULL ? &advertise : NULL, db->dir, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    opt.self.id = 1;
    opt.self.starts = 1;
    opt.self.page_size = content.page_size;
    if (sodium_init() < 0) {
        rv = err_set(e, DUST_IO, "no source of random numbers");
        goto fail;
    }
    randombytes_buf(opt.self.cluster.b, sizeof opt.self.cluster.b);
    opt.n_pages = content.n_pages;
    rv = store_format(db->store, content.page_size, &opt.self.cluster, 0, content.n_pages, e);
    if (rv == DUST_OK) {
        rv = database_sums_open(db, &opt.self.cluster, 0, e); /* made when the marks are */
    }
    if (rv == DUST_OK && (h = registry_entry(lib, o, e)) == NULL) {
        rv = DUST_NOMEM;
    }
    if (rv == DUST_OK) {
        rv = node_start(&node, db, &opt, e);
    }
    if (rv != DUST_OK) {
        goto fail;
    }
    enlist(h, db, node);
    *out = h;
    return DUST_OK;
fail:
    undone = db == NULL || opt.n_pages == 0 || unmark(db);
    free(h);
    database_free(db);
    if (undone) {
        folder_undo(path, e);
    } else {
        err_add(e, "; and what was begun could not be undone: it is finished when the database is next opened");
    }
    return rv;
}

int registry_start(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    int rv;

    pthread_mutex_lock(&registry.opening);
    rv = registry_find(path, (int)strlen(path)) != NULL
             ? err_set(e, DUST_EXISTS, "%s is a member of a cluster already", path)
             : start(lib, path, o, out, e);
    pthread_mutex_unlock(&registry.opening);
    return rv;
}

static int join(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    struct node_options opt = {.mode = NODE_JOIN, .election_ms = o->election_ms, .standby = o->standby,
        .join_timeout_ms = 15000, .join_stall_ms = 3 * o->db.timeout_ms + 5000};
    struct database_content content;
    struct hosted *h = NULL;
    struct database *db = NULL;
    struct node *node;
    struct address bind, advertise;
    int rv;

    rv = own_addresses(o, &opt.keys, &bind, &advertise, e);
    if (rv == DUST_OK) {
        rv = whom_to_join(o->join, bind.text, &opt, e);
    }
    if (rv == DUST_OK) {
        rv = folder_make(path, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    rv = new_database(lib, path, o, &content, &db, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    if (content.n_pages != 0) {
        rv = err_set(e, DUST_REFUSED,
            "%s is not empty: joining would replace what is in it; join with a new file (or start a cluster on "
            "this one)",
            path);
        goto fail;
    }
    rv = set_addresses_and_keys(&opt, &bind, o->advertise != NULL ? &advertise : NULL, db->dir, e);
    if (rv != DUST_OK) {
        goto fail;
    }
    rv = database_sums_open(db, &content.id, 0, e); /* made when the pages have come */
    if (rv != DUST_OK) {
        goto fail;
    }
    opt.self.role = o->standby ? MEMBER_STANDBY : MEMBER_VOTER;
    opt.self.starts = 1;
    h = registry_entry(lib, o, e);
    rv = h != NULL ? node_start(&node, db, &opt, e) : DUST_NOMEM;
    if (rv != DUST_OK) {
        goto fail;
    }
    enlist(h, db, node);
    *out = h;
    return DUST_OK;
fail:
    free(h);
    database_free(db);
    folder_undo(path, e);
    return rv;
}

int registry_join(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e)
{
    int rv;

    pthread_mutex_lock(&registry.opening);
    rv = registry_find(path, (int)strlen(path)) != NULL
             ? err_set(e, DUST_EXISTS, "%s is a member of a cluster already", path)
             : join(lib, path, o, out, e);
    pthread_mutex_unlock(&registry.opening);
    return rv;
}

/* ---- leaving ---- */

/* Out of the cluster, unless it is out already: it was removed by others, or by an earlier try that got no further. Only
 * one that knows itself to be the only one need not ask: whose join was cut short knows nobody, but is known. */
static int take_out(struct hosted *h, struct err *e)
{
    uint32_t timeout_ms = h->db->options.timeout_ms;
    struct node_member *list;
    unsigned n;
    bool alone;
    int rv;

    if (node_was_removed(h->node)) {
        return DUST_OK;
    }
    rv = node_members(h->node, &list, &n, e);
    if (rv != DUST_OK) {
        return node_was_removed(h->node) ? DUST_OK : rv;
    }
    alone = n == 1 && list[0].is_self;
    free(list);
    rv = alone ? DUST_OK : node_catch_up(h->node, timeout_ms, e);
    if (rv == DUST_OK && !alone) {
        rv = node_change(h->node, CHANGE_REMOVE, h->db->origin, timeout_ms, e);
    }
    if (rv == DUST_OK || rv == DUST_NOTFOUND || node_was_removed(h->node)) {
        return DUST_OK; /* (the answer may have come behind the news) */
    }
    if (n == 0) {
        err_add(e,
            ". Its join was cut short, and it does not know its cluster yet: try again when a majority is up; or SELECT "
            "dust_remove(%llu) at another member, and delete %s and the database here",
            (unsigned long long)h->db->origin, h->db->dir);
    }
    return rv;
}

/* Each step may fail, and is then what the next call begins with. */
static int leave(struct hosted *h, struct err *e)
{
    int rv = DUST_OK;

    if (atomic_load(&h->gone)) {
        return DUST_OK;
    }
    if (!atomic_load(&h->db->left)) {
        rv = take_out(h, e);
        if (rv == DUST_OK) {
            rv = node_checkpoint(h->node, e);
        }
        if (rv != DUST_OK) {
            return rv;
        }
        atomic_store(&h->db->left, true);
        node_halt(h->node);
    }
    rv = database_end(h->db, e);
    if (rv != DUST_OK) {
        return rv;
    }
    atomic_store(&h->gone, true);
    store_set_state(h->db->store, STORE_LEFT); /* for those attached */
    /* Connections that are open keep pointing at the database and the node: they stay, and answer with an error. */
    return folder_remove(h->db->path, e);
}

int registry_leave(struct hosted *h, struct err *e)
{
    int rv;

    pthread_mutex_lock(&registry.leaving);
    rv = leave(h, e);
    pthread_mutex_unlock(&registry.leaving);
    return rv;
}
