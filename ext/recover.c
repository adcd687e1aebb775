/* Recovering without a majority, offline. See recover.h.
 *
 *     1. src's folder is locked as by a process that has the member open, so that no other can
 *     2. the database, its journal and the folder are copied beside dest; src is not touched any more
 *     3. the copy's log is put into effect (raft/salvage.h)
 *     4. the other voters in it are called: if they and this one would be a majority, the cluster is not lost
 *     5. the copy is checkpointed, its marks are taken off, its folder is removed: dest is an ordinary database
 *
 * A crash in the middle leaves files of dest's name behind, which the next try names; src is as it was at any time. */
#include "ext/recover.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ext/folder.h"
#include "ext/registry.h"
#include "raft/salvage.h"
#include "vfs/fd.h"

#define PATH_SIZE 4096
#define CHUNK 65536
#define CALL_MS 700 /* for a voter to answer */

struct recovery {
    struct sqlite_lib *lib;
    char src[PATH_SIZE], dest[PATH_SIZE];
    bool has_folder, force;
    bool made_file, made_folder; /* dest's */
    bool log_lost;               /* it could not be read, not all of it */
    struct database *db;         /* dest */
    struct member self;
    struct salvage found;
};

/* ---- copying ---- */

static int copy_plain(const char *from, const char *to, bool needed, struct err *e)
{
    int in = fd_high(open(from, O_RDONLY | O_CLOEXEC)), out, rv = DUST_OK;
    char *buf;
    ssize_t n;

    if (in < 0) {
        return errno == ENOENT && !needed ? DUST_OK : err_sys(e, errno, "cannot read %s", from);
    }
    out = fd_high(open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    buf = malloc(CHUNK);
    if (out < 0 || buf == NULL) {
        rv = err_sys(e, out < 0 ? errno : ENOMEM, "cannot create %s", to);
    }
    while (rv == DUST_OK && (n = read(in, buf, CHUNK)) != 0) {
        if (n < 0) {
            rv = err_sys(e, errno, "cannot read %s", from);
        } else if (write(out, buf, (size_t)n) != n) {
            rv = err_sys(e, errno != 0 ? errno : ENOSPC, "cannot write %s", to);
        }
    }
    if (rv == DUST_OK && fsync(out) != 0) {
        rv = err_sys(e, errno, "cannot flush %s", to);
    }
    free(buf);
    close(in);
    if (out >= 0) {
        close(out);
    }
    return rv;
}

/* The database itself through SQLite's own VFS: to close a descriptor of it would drop the locks that this process may
 * have on it. */
static int copy_database(struct recovery *r, struct err *e)
{
    sqlite3_vfs *base = r->lib->base;
    sqlite3_file *in = calloc(1, (size_t)base->szOsFile);
    int flags = SQLITE_OPEN_READONLY | SQLITE_OPEN_MAIN_DB, out = -1, rv = DUST_OK;
    sqlite3_int64 size = 0;
    char *buf = malloc(CHUNK);

    if (in == NULL || buf == NULL) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
    } else if (base->xOpen(base, r->src, in, flags, &flags) != SQLITE_OK ||
               in->pMethods->xFileSize(in, &size) != SQLITE_OK) {
        rv = err_set(e, DUST_IO, "cannot read %s", r->src);
    } else {
        out = fd_high(open(r->dest, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
        rv = out < 0 ? err_sys(e, errno, "cannot create %s", r->dest) : DUST_OK;
        r->made_file = out >= 0;
    }
    for (sqlite3_int64 at = 0; rv == DUST_OK && at < size; at += CHUNK) {
        int n = size - at < CHUNK ? (int)(size - at) : CHUNK;

        if (in->pMethods->xRead(in, buf, n, at) != SQLITE_OK) {
            rv = err_set(e, DUST_IO, "cannot read %s", r->src);
        } else if (write(out, buf, (size_t)n) != n) {
            rv = err_sys(e, errno != 0 ? errno : ENOSPC, "cannot write %s", r->dest);
        }
    }
    if (rv == DUST_OK && fsync(out) != 0) {
        rv = err_sys(e, errno, "cannot flush %s", r->dest);
    }
    if (out >= 0) {
        close(out);
    }
    if (in != NULL && in->pMethods != NULL) {
        in->pMethods->xClose(in);
    }
    free(in);
    free(buf);
    return rv;
}

static int copy_folder(struct recovery *r, struct err *e)
{
    /* Without the checksums all pages are taken as they are, and without the promise whatever of the log can be read. */
    static const char *const files[] = {"member", "sums", "sums-next", "promise"};
    char from[PATH_SIZE + 300], to[PATH_SIZE + 300];
    struct dirent *d;
    int rv = DUST_OK;
    DIR *dir;

    for (int i = 0; rv == DUST_OK && i < (r->force ? 1 : 4); i++) {
        snprintf(from, sizeof from, "%s-dust/%s", r->src, files[i]);
        snprintf(to, sizeof to, "%s-dust/%s", r->dest, files[i]);
        rv = copy_plain(from, to, i == 0, e);
    }
    snprintf(to, sizeof to, "%s-dust/raft", r->dest);
    if (rv == DUST_OK && mkdir(to, 0700) != 0) {
        rv = err_sys(e, errno, "cannot make %s", to);
    }
    snprintf(from, sizeof from, "%s-dust/raft", r->src);
    dir = rv == DUST_OK ? opendir(from) : NULL;
    if (rv == DUST_OK && dir == NULL) {
        rv = err_sys(e, errno, "cannot read %s", from);
    }
    while (rv == DUST_OK && (errno = 0, d = readdir(dir)) != NULL) {
        if (d->d_name[0] != '.') {
            snprintf(from, sizeof from, "%s-dust/raft/%s", r->src, d->d_name);
            snprintf(to, sizeof to, "%s-dust/raft/%s", r->dest, d->d_name);
            rv = copy_plain(from, to, true, e);
        }
    }
    if (rv == DUST_OK && errno != 0) { /* not the end: a part of the log would be missing */
        rv = err_sys(e, errno, "cannot read %s-dust/raft", r->src);
    }
    if (dir != NULL) {
        closedir(dir);
    }
    return rv;
}

static int copy_all(struct recovery *r, struct err *e)
{
    char from[PATH_SIZE + 16], to[PATH_SIZE + 16];
    int rv = folder_make(r->dest, e);

    if (rv != DUST_OK) {
        return rv;
    }
    r->made_folder = true;
    rv = copy_database(r, e);
    if (rv == DUST_OK) {
        snprintf(from, sizeof from, "%s-journal", r->src);
        snprintf(to, sizeof to, "%s-journal", r->dest);
        rv = copy_plain(from, to, false, e);
    }
    return rv == DUST_OK && r->has_folder ? copy_folder(r, e) : rv;
}

/* Copy while nobody can have the member open. */
static int copy_locked(struct recovery *r, struct err *e)
{
    char dir[PATH_SIZE + 16];
    struct hostlock lock;
    int rv;

    if (!r->has_folder) {
        return copy_all(r, e);
    }
    if (registry_find(r->src, (int)strlen(r->src)) != NULL) {
        return err_set(e, DUST_BUSY, "%s is open in this process: recovering is for a member that nobody has open", r->src);
    }
    snprintf(dir, sizeof dir, "%s-dust", r->src);
    rv = hostlock_open(&lock, dir, e);
    if (rv == DUST_OK) {
        rv = hostlock_take(&lock, dir, e);
    }
    if (rv == DUST_OK) {
        rv = copy_all(r, e);
    }
    hostlock_close(&lock);
    return rv;
}

/* ---- the copy ---- */

/* Pages that were changed underneath are found out by their checksums. */
static int check_pages(struct recovery *r, struct err *e)
{
    struct head_info head;
    uint8_t *page = malloc(r->db->page_size);
    int rv = page != NULL ? DUST_OK : err_set(e, DUST_NOMEM, "out of memory");

    store_agreed(r->db->store, &head);
    for (uint32_t pgno = 1; rv == DUST_OK && pgno <= head.n_pages; pgno++) {
        int rc = database_read_base(r->db, page, r->db->page_size, (uint64_t)(pgno - 1) * r->db->page_size);

        if (rc == SQLITE_CORRUPT) {
            rv = err_set(e, DUST_CORRUPT,
                "page %u of %s is damaged: if there is no other member to recover from, "
                "dust_recover(src, dest, 'force') takes it as it is",
                pgno, r->src);
        } else if (rc != SQLITE_OK) {
            rv = err_set(e, DUST_IO, "cannot read page %u of %s", pgno, r->dest);
        }
    }
    free(page);
    return rv;
}

/* What the log has beyond app.db. If it cannot be read, there is still app.db. */
static int use_log(struct recovery *r, struct err *e)
{
    int rv = salvage_run(r->db, &r->self, false, &r->found, e);
    char why[ERR_TEXT_MAX];

    if (rv != DUST_CORRUPT && !(rv == DUST_IO && r->found.unreadable)) {
        return rv;
    }
    if (r->force) {
        r->log_lost = true;
        if (rv == DUST_CORRUPT && r->found.unreadable) {
            rv = salvage_run(r->db, &r->self, true, &r->found, e);
        }
        return rv == DUST_NOMEM ? rv : DUST_OK;
    }
    snprintf(why, sizeof why, "%s", e->text);
    /* What is long comes last: the text may be cut. */
    return err_set(e, rv,
        "if there is no other member to recover from, dust_recover(src, dest, 'force') takes app.db and what of the log can "
        "be read; of %s-dust: %s",
        r->src, why);
}

static int open_copy(struct recovery *r, struct err *e)
{
    struct database_options opt = {.timeout_ms = 1000, .turn_timeout_ms = 1000};
    struct database_content content;
    char dir[PATH_SIZE + 16];
    int rv = DUST_OK;

    snprintf(dir, sizeof dir, "%s-dust", r->dest);
    if (r->has_folder) {
        rv = member_load(dir, &r->self, e);
    }
    if (rv == DUST_OK) {
        rv = database_new(&r->db, r->lib->base, r->dest, &opt, e);
    }
    if (rv == DUST_OK) {
        rv = database_open_file(r->db, &content, e);
    }
    if (rv != DUST_OK) {
        return rv;
    }
    if (content.n_pages == 0 && (!r->has_folder || r->self.page_size == 0)) {
        return err_set(e, DUST_CORRUPT, "%s is empty", r->src);
    }
    if (content.n_pages != 0 && !content.marked) {
        return err_set(e, DUST_MISUSE,
            r->has_folder ? "%s is not the database that its folder belongs to: it does not carry dust's mark"
                          : "%s is an ordinary SQLite database already",
            r->src);
    }
    r->db->page_size = content.n_pages != 0 ? content.page_size : r->self.page_size;
    rv = store_format(r->db->store, r->db->page_size, &content.id, 0, content.n_pages, e);
    return rv == DUST_OK && r->has_folder ? use_log(r, e) : rv;
}

/* ---- is there a majority? ---- */

static bool answers(const char *text)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    struct pollfd p = {.events = POLLOUT};
    socklen_t len = sizeof(int);
    struct address a;
    int error = 0, rv;

    if (address_parse(text, &a, NULL) != DUST_OK) {
        return false;
    }
    p.fd = socket(a.is_v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (p.fd < 0) {
        return false;
    }
    memcpy(&v4.sin_addr, a.ip, 4);
    memcpy(&v6.sin6_addr, a.ip, 16);
    v4.sin_port = v6.sin6_port = htons(a.port);
    rv = a.is_v6 ? connect(p.fd, (struct sockaddr *)&v6, sizeof v6) : connect(p.fd, (struct sockaddr *)&v4, sizeof v4);
    if (rv != 0 && errno == EINPROGRESS && poll(&p, 1, CALL_MS) == 1) {
        rv = getsockopt(p.fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0 ? 0 : -1;
    }
    close(p.fd);
    return rv == 0;
}

static int check_majority(const struct recovery *r, struct err *e)
{
    unsigned up = r->found.is_voter;
    char who[200] = "";

    for (unsigned i = 0; i < r->found.n_others; i++) {
        if (answers(r->found.others[i])) {
            size_t n = strlen(who);

            snprintf(who + n, sizeof who - n, "%s%s", n != 0 ? ", " : "", r->found.others[i]);
            up++;
        }
    }
    if (who[0] == '\0' || up <= r->found.voters / 2) {
        return DUST_OK;
    }
    return err_set(e, DUST_REFUSED,
        "the cluster is not lost: %s answers, and with this member that is a majority of its %u voters; open %s instead. "
        "(If what answers there is not of this cluster: dust_recover(src, dest, 'force'))",
        who, r->found.voters, r->src);
}

/* ---- all of it ---- */

static void undo(struct recovery *r, struct err *e)
{
    char journal[PATH_SIZE + 16];

    database_free(r->db);
    if (r->made_file) {
        unlink(r->dest);
        snprintf(journal, sizeof journal, "%s-journal", r->dest);
        unlink(journal);
    }
    if (r->made_folder) {
        folder_undo(r->dest, e);
        r->made_folder = false;
    }
}

static int full_name(struct sqlite_lib *lib, const char *given, char out[PATH_SIZE], struct err *e)
{
    if (given == NULL || *given == '\0' || lib->base->xFullPathname(lib->base, given, PATH_SIZE, out) != SQLITE_OK) {
        return err_set(e, DUST_MISUSE, "dust_recover(src, dest): two names of files are needed");
    }
    return DUST_OK;
}

static int check_names(struct recovery *r, struct err *e)
{
    char other[PATH_SIZE + 16];
    struct stat st;

    if (stat(r->src, &st) != 0) {
        return err_set(e, DUST_NOTFOUND, "there is no file %s", r->src);
    }
    for (int i = 0; i < 3; i++) {
        static const char *const suffixes[] = {"", "-dust", "-journal"};

        snprintf(other, sizeof other, "%s%s", r->dest, suffixes[i]);
        if (stat(other, &st) == 0) {
            return err_set(e, DUST_EXISTS, "%s exists: nothing is overwritten; give another name", other);
        }
    }
    r->has_folder = registry_is_member_path(r->src);
    return DUST_OK;
}

int recover_run(struct sqlite_lib *lib, const char *src, const char *dest, bool force, char said[ERR_TEXT_MAX],
    struct err *e)
{
    struct recovery *r = calloc(1, sizeof *r);
    char hex[VID_HEX_SIZE];
    int rv;

    if (r == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    r->lib = lib;
    r->force = force;
    rv = full_name(lib, src, r->src, e);
    if (rv == DUST_OK) {
        rv = full_name(lib, dest, r->dest, e);
    }
    if (rv == DUST_OK) {
        rv = check_names(r, e);
    }
    if (rv == DUST_OK) {
        rv = copy_locked(r, e);
    }
    if (rv == DUST_OK) {
        rv = open_copy(r, e);
    }
    if (rv == DUST_OK && r->has_folder && !force) {
        rv = check_majority(r, e);
    }
    if (rv == DUST_OK) {
        rv = database_checkpoint(r->db, NULL, e);
    }
    if (rv == DUST_OK) {
        rv = check_pages(r, e);
    }
    if (rv == DUST_OK) {
        store_agreed(r->db->store, &r->found.head);
        rv = database_end(r->db, e);
    }
    if (rv == DUST_OK) {
        r->made_file = false;
        database_free(r->db);
        r->db = NULL;
        rv = r->made_folder ? folder_remove(r->dest, e) : DUST_OK;
        r->made_folder = false;
    }
    if (rv == DUST_OK) {
        snprintf(said, ERR_TEXT_MAX,
            "%.150s is an ordinary database: version %s, %u pages; the log %s entry %llu of term %llu, %llu "
            "transactions beyond the last checkpoint; dust_start makes a new cluster of it",
            r->dest, vid_hex(&r->found.head.id, hex), r->found.head.n_pages,
            r->log_lost ? "could not be read: as far as it could, it went to" : "went to",
            (unsigned long long)r->found.last_index, (unsigned long long)r->found.last_term,
            (unsigned long long)r->found.entries);
    }
    undo(r, e);
    if (rv == DUST_OK) {
        rv = folder_flush_parent(r->dest, e);
    }
    free(r);
    return rv;
}
