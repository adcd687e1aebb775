/* The entry point, and the host side of the VFS: which files are members', and with which parameters.
 *
 * sqlite3_dust_init runs once per connection, by .load, load_extension or as an automatic extension, and it may run
 * many times in one connection. The first time in each copy of SQLite it registers the VFS as the default one and an
 * automatic extension; after sqlite3_shutdown() both are gone and are registered again at the next run. It starts no
 * thread. The library is linked so that it is never unloaded, which is why SQLITE_OK will do as an answer: an automatic
 * extension may give no other.
 *
 * Parameters of a database come from its URI and, for programs that cannot be changed, from the environment:
 *   DUST_DB       paths this applies to, as glob patterns with ':' between
 *   DUST_BIND, DUST_JOIN, DUST_KEYFILE as `bind`, `join` and `keyfile` */
#include <fnmatch.h>
#include <pthread.h>
#include <sqlite3ext.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "ext/dust.h"
#include "ext/lib.h"
#include "ext/log.h"
#include "vfs/file.h"
#include "vfs/forked.h"

#define EXPORT __attribute__((visibility("default")))

static struct {
    pthread_mutex_t mutex;
    struct sqlite_lib *at[LIBS_MAX];
    unsigned n;
} libs = {.mutex = PTHREAD_MUTEX_INITIALIZER};

struct sqlite_lib *lib_at(unsigned number)
{
    return number < LIBS_MAX ? libs.at[number] : NULL;
}

int lib_int(struct sqlite_lib *lib, sqlite3 *db, const char *sql)
{
    const sqlite3_api_routines *api = lib->api;
    sqlite3_stmt *stmt = NULL;
    int n = 0;

    if (api->prepare_v2(db, sql, -1, &stmt, NULL) == SQLITE_OK && api->step(stmt) == SQLITE_ROW) {
        n = api->column_int(stmt, 0);
    }
    api->finalize(stmt);
    return n;
}

void lib_end_exclusive(struct sqlite_lib *lib, sqlite3 *db, const char *name)
{
    char *sql = lib->api->mprintf("PRAGMA \"%w\".locking_mode=NORMAL", name);

    if (sql != NULL) {
        lib_int(lib, db, sql);
    }
    lib->api->free(sql);
}

void libs_forked(void)
{
    pthread_mutex_init(&libs.mutex, NULL);
}

void log_to_sqlite(void *ctx, int code, const char *text)
{
    const struct sqlite_lib *lib = ctx;

    lib->api->log(code == DUST_OK ? SQLITE_NOTICE : sqlite_code(code), "dust: %s", text);
}

/* ---- parameters ---- */

static int number_of(const char *name, const char *text, uint32_t min, uint32_t max, uint32_t *out, struct err *e)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end != '\0' || v < min || v > max) {
        return err_set(e, DUST_MISUSE, "%s: \"%s\" is not a number from %u to %u", name, text, min, max);
    }
    *out = (uint32_t)v;
    return DUST_OK;
}

static int choice_of(const char *name, const char *text, const char *const *names, unsigned n, unsigned *out,
    struct err *e)
{
    char all[128] = "";

    for (unsigned i = 0; i < n; i++) {
        if (strcasecmp(text, names[i]) == 0) {
            *out = i;
            return DUST_OK;
        }
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i == 0 ? "" : ", ", names[i]);
    }
    return err_set(e, DUST_MISUSE, "%s: \"%s\" is none of %s", name, text, all);
}

static int set_parameter(struct start_options *o, const char *name, const char *value, struct err *e)
{
    static const char *const roles[] = {"voter", "standby"};
    static const char *const consistencies[] = {"stale", "local", "fresh", "linearizable"};
    static const char *const statements[] = {"off", "text", "expanded"};
    unsigned choice = 0;
    int rv;

    if (strcmp(name, "bind") == 0) {
        o->bind = value;
    } else if (strcmp(name, "join") == 0) {
        o->join = value;
    } else if (strcmp(name, "advertise") == 0) {
        o->advertise = value;
    } else if (strcmp(name, "role") == 0) {
        rv = choice_of(name, value, roles, 2, &choice, e);
        o->standby = choice == 1;
        return rv;
    } else if (strcmp(name, "consistency") == 0) {
        rv = choice_of(name, value, consistencies, 4, &choice, e);
        o->db.consistency = (enum consistency)choice;
        return rv;
    } else if (strcmp(name, "statements") == 0) {
        rv = choice_of(name, value, statements, 3, &choice, e);
        o->db.statements = (enum statements)choice;
        return rv;
    } else if (strcmp(name, "timeout") == 0) {
        return number_of(name, value, 1, 3600000, &o->db.timeout_ms, e);
    } else if (strcmp(name, "election") == 0) {
        return number_of(name, value, 50, 60000, &o->election_ms, e);
    } else if (strcmp(name, "keyfile") == 0) {
        o->keyfile = value;
    } else {
        return err_set(e, DUST_MISUSE,
            "unknown parameter \"%s\": dust knows bind, join, advertise, role, timeout, consistency, statements, "
            "election, keyfile",
            name);
    }
    return DUST_OK;
}

static bool is_sqlites(const char *name)
{
    static const char *const own[] = {"vfs", "mode", "cache", "immutable", "nolock", "psow", "modeof", "8_3_names"};

    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        if (strcmp(name, own[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Read the URI's parameters. A typing error in one must not pass silently where dust is meant. */
static int read_parameters(
    struct sqlite_lib *lib, const char *name, struct start_options *o, bool *given, struct err *e)
{
    const char *key, *vfs = lib->api->uri_parameter(name, "vfs");
    struct err first = {0};

    *given = false;
    for (int i = 0; (key = lib->api->uri_key(name, i)) != NULL; i++) {
        struct err one;

        if (is_sqlites(key)) {
            continue;
        }
        if (set_parameter(o, key, lib->api->uri_parameter(name, key), &one) == DUST_OK) {
            *given = true;
        } else if (first.code == DUST_OK) {
            first = one;
        }
    }
    if (first.code != DUST_OK && (*given || (vfs != NULL && strcmp(vfs, "dust") == 0))) {
        *e = first;
        return first.code;
    }
    if (o->join != NULL && o->bind == NULL) {
        return err_set(e, DUST_MISUSE, "join needs bind: the own address, as host:port");
    }
    return DUST_OK;
}

int lib_check_uri(struct sqlite_lib *lib, const char *name, struct err *e)
{
    const char *cache = lib->api->uri_parameter(name, "cache");

    if (cache != NULL && strcmp(cache, "shared") == 0) {
        return err_set(e, DUST_MISUSE,
            "cache=shared: a member's database cannot be opened with a shared cache; leave it out: its readers and writers "
            "do not hold up each other");
    }
    for (const char *const *p = (const char *const[]){"immutable", "nolock", NULL}; *p != NULL; p++) {
        if (lib->api->uri_boolean(name, *p, 0)) {
            return err_set(e, DUST_MISUSE,
                "%s: a member's database cannot be opened so: others change it, and without a lock a reader has no "
                "snapshot; mode=ro opens it for reading only",
                *p);
        }
    }
    return DUST_OK;
}

static void read_environment(const char *path, struct start_options *o, bool *given)
{
    const char *list = getenv("DUST_DB"), *bind = getenv("DUST_BIND"), *join = getenv("DUST_JOIN"),
               *keyfile = getenv("DUST_KEYFILE");
    char pattern[4096];

    while (bind != NULL && list != NULL && *list != '\0') {
        size_t n = strcspn(list, ":");

        if (n < sizeof pattern) {
            memcpy(pattern, list, n);
            pattern[n] = '\0';
            if (fnmatch(pattern, path, 0) == 0) {
                o->bind = bind;
                o->join = join != NULL && *join != '\0' ? join : NULL;
                o->keyfile = keyfile != NULL && *keyfile != '\0' ? keyfile : NULL;
                *given = true;
                return;
            }
        }
        list += n + (list[n] == ':');
    }
}

/* Give a new cluster's database its first page, and bring it out of WAL mode, by way of the VFS underneath. */
static int prepare(struct sqlite_lib *lib, const char *path, struct err *e)
{
    const sqlite3_api_routines *api = lib->api;
    sqlite3 *db = NULL;
    char *text = NULL;
    int rv = DUST_OK;

    if (api->open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, lib->base->zName) != SQLITE_OK ||
        api->exec(db, "PRAGMA journal_mode=DELETE; PRAGMA user_version", NULL, NULL, &text) != SQLITE_OK) {
        rv = err_set(e, DUST_REFUSED, "%s cannot become a member: %s", path, text != NULL ? text : api->errmsg(db));
    } else if (api->exec(db, "SELECT 1 FROM pragma_page_count WHERE page_count = 0", NULL, NULL, NULL) == SQLITE_OK) {
        /* An empty file gets its header; any other one keeps its value. */
        char *sql = api->mprintf("PRAGMA user_version=%d", lib_int(lib, db, "PRAGMA user_version"));

        if (sql == NULL || api->exec(db, sql, NULL, NULL, &text) != SQLITE_OK) {
            rv = err_set(e, DUST_REFUSED, "%s cannot become a member: %s", path, text != NULL ? text : "out of memory");
        }
        api->free(sql);
    }
    api->free(text);
    api->close(db);
    return rv;
}

/* ---- the host side of the VFS ---- */

static int host_open(struct sqlite_lib *lib, const char *name, struct database **db, int *consistency, struct err *e)
{
    struct start_options o;
    struct hosted *h = NULL;
    bool given, from_env = false, member;
    int rv;

    start_options_init(&o);
    rv = read_parameters(lib, name, &o, &given, e);
    if (rv != DUST_OK) {
        return rv;
    }
    member = registry_find(name, (int)strlen(name)) != NULL || registry_is_member_path(name);
    if (!member && !given) {
        read_environment(name, &o, &from_env);
    }
    if (!member && o.bind == NULL) {
        return DUST_OK; /* an ordinary file */
    }
    rv = lib_check_uri(lib, name, e);
    if (rv != DUST_OK) {
        return rv;
    }
    if (member) {
        rv = registry_resume(lib, name, &o, &h, e);
    } else {
        if (o.join != NULL) {
            rv = registry_join(lib, name, &o, &h, e);
        } else {
            rv = registry_check_own(&o, e);
            if (rv == DUST_OK) {
                rv = prepare(lib, name, e);
            }
            if (rv == DUST_OK) {
                rv = registry_start(lib, name, &o, &h, e);
            }
        }
    }
    if (rv == DUST_OK) {
        *db = h->db;
        *consistency = given && lib->api->uri_parameter(name, "consistency") != NULL ? (int)o.db.consistency : -1;
    }
    return rv;
}

static void host_close(struct database *db)
{
    (void)db; /* a member stays up until the process ends */
}

static bool host_is_member(const char *path, int len)
{
    return registry_find(path, len) != NULL;
}

static const struct host host = {
    .open = host_open,
    .rejoin = registry_rejoin,
    .close = host_close,
    .is_member = host_is_member,
    .connected = conn_connected,
    .files_of = conn_files,
    .closing = conn_closing,
    .failed = conn_failed,
};

/* ---- adoption ---- */

struct dfile *lib_main_file(struct conn *c)
{
    struct dfile *f = c->files;

    while (f != NULL && f->next != NULL) {
        f = f->next; /* the main database was connected first */
    }
    return f;
}

struct hosted *lib_member(struct conn *c)
{
    struct dfile *f = lib_main_file(c);
    struct err e;

    if (f != NULL) {
        (void)file_rejoin(f, &e); /* if it cannot be now, it is as if it were none */
    }
    return f != NULL ? registry_of(f->db) : NULL;
}

int lib_adopt(struct conn *c, struct hosted *h, struct err *e)
{
    const sqlite3_api_routines *api = c->lib->api;
    sqlite3_file *file = NULL;
    sqlite3_stmt *stmt = NULL;
    bool memory = false;
    int rv;

    if (api->file_control(c->db, "main", SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK || file == NULL ||
        file->pMethods == NULL) {
        return err_set(e, DUST_MISUSE, "the connection has no file for its main database");
    }
    if (file_of(file) != NULL) {
        return DUST_OK;
    }
    if (api->get_autocommit(c->db) == 0) {
        return err_set(e, DUST_MISUSE, "a transaction is open on this connection: end it first");
    }
    if (api->db_readonly(c->db, "main") != 0) {
        return err_set(e, DUST_MISUSE,
            "this connection has read the database as a read-only one already: load dust before using it, or open it "
            "again");
    }
    rv = lib_check_uri(c->lib, api->db_filename(c->db, "main"), e);
    if (rv != DUST_OK) {
        return rv;
    }
    /* The methods first: reading the schema, as the PRAGMA does, must not see the mark. */
    rv = file_adopt(c->lib, h->db, file, c->db, e);
    if (rv != DUST_OK) {
        return rv;
    }
    lib_end_exclusive(c->lib, c->db, "main");
    if (api->prepare_v2(c->db, "PRAGMA main.journal_mode=MEMORY", -1, &stmt, NULL) == SQLITE_OK &&
        api->step(stmt) == SQLITE_ROW) {
        memory = strcasecmp((const char *)api->column_text(stmt, 0), "memory") == 0;
    }
    api->finalize(stmt);
    if (!memory) {
        rv = err_set(e, DUST_MISUSE, "this connection is in use (%s): finish its statements, or open it again",
            api->errmsg(c->db));
    }
    file_adopted(file, memory);
    return rv;
}

/* A connection whose main database, opened before dust was loaded, is a member's. */
static int adopt_main(struct conn *c, struct err *e)
{
    const char *path = c->lib->api->db_filename(c->db, "main");
    struct start_options o;
    struct hosted *h;
    int rv;

    if (path == NULL || *path == '\0' || c->files != NULL || !registry_is_member_path(path)) {
        return DUST_OK;
    }
    start_options_init(&o);
    rv = registry_resume(c->lib, path, &o, &h, e);
    return rv == DUST_OK ? lib_adopt(c, h, e) : rv;
}

/* ---- entry ---- */

static int set_up(struct conn *c, char **error)
{
    struct err e;
    int rc;

    if (!c->set_up) {
        rc = functions_register(c);
        if (rc == SQLITE_OK) {
            rc = tables_register(c);
        }
        if (rc != SQLITE_OK) {
            return rc;
        }
    }
    if (c->failed != NULL) {
        rc = c->failed_rc;
        *error = c->lib->api->mprintf("%s", c->failed);
        return rc;
    }
    if (adopt_main(c, &e) != DUST_OK) {
        *error = c->lib->api->mprintf("%s", e.text);
        rc = sqlite_code(e.code);
        return rc;
    }
    return SQLITE_OK;
}

static struct sqlite_lib *find_lib(const sqlite3_api_routines *api)
{
    for (unsigned i = 0; i < libs.n; i++) {
        if (libs.at[i]->api == api) {
            return libs.at[i];
        }
    }
    return NULL;
}

static int on_open(sqlite3 *db, char **error, const sqlite3_api_routines *api);

/* Find or make the copy's struct, and see to it that VFS and automatic extension are registered. */
static struct sqlite_lib *lib_of(const sqlite3_api_routines *api)
{
    struct sqlite_lib *lib;

    pthread_mutex_lock(&libs.mutex);
    lib = find_lib(api);
    if (lib == NULL && libs.n < LIBS_MAX) {
        lib = calloc(1, sizeof *lib);
        if (lib != NULL) {
            lib->api = api;
            lib->host = &host;
            lib->number = libs.n;
            lib->base = api->vfs_find(NULL);
            vfs_init(lib);
            libs.at[libs.n++] = lib;
        }
    }
    pthread_mutex_unlock(&libs.mutex);
    if (lib != NULL) {
        /* The first time, or after sqlite3_shutdown, which puts the default VFS back and forgets the automatic
         * extensions. A default that somebody has put on top of ours meanwhile stays. */
        if (api->vfs_find(NULL) == lib->base) {
            api->vfs_register(&lib->vfs, 1);
        }
        api->auto_extension((void (*)(void))on_open); /* again: no effect */
    }
    return lib;
}

EXPORT int sqlite3_dust_init(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
    struct sqlite_lib *lib;
    struct conn *c;

    if (api->libversion_number() < 3031000) {
        *error = api->mprintf("dust needs SQLite 3.31 or later; this one is %s", api->libversion());
        return SQLITE_ERROR;
    }
    lib = lib_of(api);
    if (lib == NULL) {
        *error = api->mprintf("dust: out of memory, or more than %d copies of SQLite in one process", LIBS_MAX);
        return SQLITE_ERROR;
    }
    c = conn_of(lib, db);
    return c != NULL ? set_up(c, error) : SQLITE_NOMEM;
}

static int on_open(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
    return sqlite3_dust_init(db, error, api);
}

/* ---- for programs that link libdust ---- */

extern int sqlite3_auto_extension_of_host(void (*entry)(void)) __asm__("sqlite3_auto_extension") __attribute__((weak));
extern int sqlite3_open_of_host(const char *name, void **db) __asm__("sqlite3_open") __attribute__((weak));
extern int sqlite3_close_of_host(void *db) __asm__("sqlite3_close") __attribute__((weak));

EXPORT int dust_register(void)
{
    void *db = NULL;
    int rc;

    if (sqlite3_auto_extension_of_host == NULL || sqlite3_open_of_host == NULL || sqlite3_close_of_host == NULL) {
        return SQLITE_ERROR;
    }
    rc = sqlite3_auto_extension_of_host((void (*)(void))on_open);
    if (rc == SQLITE_OK) {
        rc = sqlite3_open_of_host(":memory:", &db); /* runs on_open, which registers the VFS */
        sqlite3_close_of_host(db);
    }
    return rc;
}
