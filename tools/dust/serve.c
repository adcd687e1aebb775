/* A process that only hosts a member, in the foreground, for a service manager or a terminal.
 *
 * SIGTERM and SIGINT are blocked before any thread is made, and taken here one at a time; between them the member is
 * looked at once a second, and what has changed is said. If another process hosts the member this one is attached, and
 * takes over when that one ends. At the end the member hands over what it leads, its file is completed, and it goes. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "command.h"

#define LOOK_S 1
#define HAND_OVER_MS 1000

/* ---- saying ---- */

/* One line an event; a service manager's journal knows the time itself. Any thread. */
static void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *fmt, ...)
{
    char line[1200], when[32] = "";
    va_list ap;
    size_t n;

    if (getenv("JOURNAL_STREAM") == NULL) {
        time_t now = time(NULL);
        struct tm tm;

        gmtime_r(&now, &tm);
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ ", &tm);
    }
    n = (size_t)snprintf(line, sizeof line - 1, "%s", when);
    va_start(ap, fmt);
    vsnprintf(line + n, sizeof line - 1 - n, fmt, ap);
    va_end(ap);
    for (char *p = line; *p != '\0'; p++) {
        *p = *p == '\n' ? ' ' : *p;
    }
    strcat(line, "\n");
    fputs(line, stderr);
}

/* What dust, and SQLite, report. Any thread. */
static void on_log(void *ctx, int code, const char *text)
{
    (void)ctx;
    if ((code & 0xff) != SQLITE_SCHEMA) { /* a statement prepared anew is no news */
        say("%s%s", (code & 0xff) == SQLITE_NOTICE ? "" : (code & 0xff) == SQLITE_WARNING ? "warning: " : "error: ", text);
    }
}

/* sd_notify(3), if there is somebody to be told. */
static void notify(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    size_t n = path != NULL ? strlen(path) : 0;
    int fd;

    if (n == 0 || n >= sizeof a.sun_path || (path[0] != '/' && path[0] != '@')) {
        return;
    }
    memcpy(a.sun_path, path, n);
    if (path[0] == '@') {
        a.sun_path[0] = '\0'; /* an abstract name */
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        (void)!sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&a,
            (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n));
        close(fd);
    }
}

/* ---- looking ---- */

struct seen {
    int64_t host_pid;
    char role[16], leader[80], members[1024];
};

static void copy_text(char *out, size_t size, sqlite3 *db, const char *sql)
{
    char *text = one_text(db, sql, NULL);

    snprintf(out, size, "%s", text != NULL ? text : "");
    sqlite3_free(text);
}

static void look(sqlite3 *db, struct seen *s)
{
    s->host_pid = one_int(db, "SELECT value FROM dust_status WHERE name = 'host_pid'", 0);
    copy_text(s->role, sizeof s->role, db, "SELECT dust_role()");
    copy_text(s->leader, sizeof s->leader, db, "SELECT printf('member %d (%s)', id, address) FROM dust_members WHERE is_leader");
    copy_text(s->members, sizeof s->members, db,
        "SELECT group_concat(printf('%d (%s) %s %s', id, address, role, state), ', ') FROM dust_members");
}

static void tell(const struct seen *was, const struct seen *now)
{
    if (now->host_pid != was->host_pid && now->host_pid != 0) {
        if (now->host_pid == getpid()) {
            say("this process hosts the member");
        } else {
            say("attached to process %lld, which hosts the member", (long long)now->host_pid);
        }
    }
    if (strcmp(now->role, was->role) != 0) {
        say("role: %s", now->role);
    }
    if (strcmp(now->leader, was->leader) != 0) {
        say("leader: %s", now->leader[0] != '\0' ? now->leader : "none");
    }
    if (strcmp(now->members, was->members) != 0) {
        say("members: %s", now->members);
    }
}

/* Give the leadership to the voter that is furthest, and see it taken. */
static void hand_over(sqlite3 *db, const struct seen *now)
{
    char *to;

    if (strcmp(now->role, "leader") != 0 || now->host_pid != getpid()) {
        return;
    }
    sqlite3_busy_timeout(db, HAND_OVER_MS);
    to = one_text(db,
        "SELECT dust_transfer(id) FROM dust_members WHERE NOT is_self AND role = 'voter' AND state = 'up' "
        "ORDER BY match_index DESC LIMIT 1",
        NULL);
    if (to != NULL) {
        say("leadership handed over to member %s", to);
    } else if (sqlite3_errcode(db) != SQLITE_OK && sqlite3_errcode(db) != SQLITE_DONE && sqlite3_errcode(db) != SQLITE_ROW) {
        say("leadership could not be handed over: %s", sqlite3_errmsg(db));
    }
    sqlite3_free(to);
}

int run_serve(struct request *r)
{
    const struct timespec second = {.tv_sec = LOOK_S};
    struct seen was = {.host_pid = -1}, now = {0};
    char self[80];
    sigset_t signals;
    sqlite3 *db;
    int rv, number;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stderr, NULL, _IOLBF, 1 << 12);
    sqlite3_config(SQLITE_CONFIG_LOG, on_log, NULL);
    if (r->bind == NULL) { /* by the environment, for a unit */
        r->bind = getenv("DUST_BIND");
        r->join = r->join != NULL ? r->join : getenv("DUST_JOIN");
        r->join = r->join != NULL && r->join[0] != '\0' ? r->join : NULL;
    }
    if (r->keyfile == NULL) {
        r->keyfile = getenv("DUST_KEYFILE");
        r->keyfile = r->keyfile != NULL && r->keyfile[0] != '\0' ? r->keyfile : NULL;
    }
    if (!is_member(r->args[0]) && r->bind == NULL) {
        return complain(EXIT_USAGE, "%s is no member of a cluster: serve needs --bind H:P to start one, and --join H:P to join",
            r->args[0]);
    }
    rv = is_member(r->args[0]) && r->keyfile == NULL ? open_member(r, r->args[0], &db) : open_new(r, r->args[0], &db);
    if (rv != EXIT_OK) {
        return rv;
    }
    sqlite3_exec(db, "PRAGMA dust_consistency = stale", NULL, NULL, NULL); /* it is looked at, whatever its state */
    copy_text(self, sizeof self, db, "SELECT printf('member %d, at %s', id, address) FROM dust_members WHERE is_self");
    say("%s: %s", r->args[0], self);
    notify("READY=1\n");
    do {
        look(db, &now);
        tell(&was, &now);
        was = now;
        number = sigtimedwait(&signals, NULL, &second);
    } while (number < 0 && (errno == EAGAIN || errno == EINTR));
    say("%s: ending", number == SIGINT ? "interrupted" : "told to end");
    notify("STOPPING=1\n");
    look(db, &now);
    hand_over(db, &now);
    sqlite3_close(db);
    return EXIT_OK; /* leaving main() takes the member down */
}
