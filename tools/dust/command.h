/* command - the program `dust`: what a subcommand is, what it is given, and what they share. One thread, unless said. */
#ifndef DUST_TOOLS_COMMAND_H
#define DUST_TOOLS_COMMAND_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

/* Exit codes; dust(1) lists them. */
enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,  /* it was refused, or something is wrong */
    EXIT_USAGE = 2,   /* the command line makes no sense */
    EXIT_BUSY = 3,    /* no leader, no majority, or a lock held by somebody else, within the time */
    EXIT_UNKNOWN = 4, /* a transaction's outcome is not known */
    EXIT_NO_MEMBER = 5 /* the database is no member of a cluster, or does not exist */
};

/* Options: a bit each. */
enum {
    OPT_BIND = 1, OPT_JOIN = 2, OPT_ADVERTISE = 4, OPT_ROLE = 8, OPT_KEYFILE = 16, OPT_JSON = 32, OPT_TIMEOUT = 64,
    OPT_FOLLOW = 128, OPT_FORCE = 256, OPT_DB = 512, OPT_CLIENTS = 1024, OPT_SECONDS = 2048
};

struct request {
    const struct command *command;
    const char *bind, *join, *advertise, *role, *keyfile, *db, *clients;
    bool json, follow, force;
    int timeout_ms, seconds;
    int n; /* what is left of the command line */
    char **args;
};

struct command {
    const char *name;
    const char *synopsis; /* behind the name */
    const char *summary;
    unsigned options;
    int min, max; /* arguments that are no options; max -1: any number, and options end at the first of them or at `--` */
    int (*run)(struct request *r);
};

/* Print "dust: …" to stderr. Returns `code`. */
int complain(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- connect.c ---- */

/* Which argument is the database: that beside which a member's folder is; if none is, or both are, the last one. */
int database_argument(const struct request *r);

bool is_member(const char *path);

/* Open a database that is a member's, or complain: EXIT_NO_MEMBER, EXIT_BUSY, EXIT_FAILED. */
int open_member(const struct request *r, const char *path, sqlite3 **db);

/* Open one to look at the member itself: that it has no leader, so that nothing it has can be confirmed, is a thing to
 * see, and is told on stderr. Otherwise as open_member. */
int open_to_look(const struct request *r, const char *path, sqlite3 **db);

/* Open it so that it becomes one: with the request's bind, join and so on as parameters. */
int open_new(const struct request *r, const char *path, sqlite3 **db);

/* Complain about what this connection was last told. */
int complain_sql(sqlite3 *db, const char *what);

/* The exit code for an error of SQLite's. */
int exit_code(int rc);

/* One value, as text, by sqlite3_malloc; NULL on failure (the connection knows why) and for NULL. arg may be NULL. */
char *one_text(sqlite3 *db, const char *sql, const char *arg);
int64_t one_int(sqlite3 *db, const char *sql, int64_t or_else);

/* Print the text that this gives, or complain. An exit code. */
int print_answer(sqlite3 *db, const char *sql, const char *arg);

/* Say that a member which has just been made goes down with this program. */
void print_stays(const char *path);

/* ---- output.c ---- */

/* Print the rows of one statement: columns aligned under their names, or a JSON array of objects. SQLite's code. */
int print_rows(sqlite3_stmt *stmt, bool json);

/* Print one row as a JSON object on a line of its own, or its columns with blanks between. */
void print_row_line(sqlite3_stmt *stmt, bool json);

/* Print text as a JSON string. */
void print_json_text(const char *text, int n);

/* ---- progress.c ---- */

/* While something long is under way: if stderr is a terminal, show how it goes on by the size of the file, and of those
 * that have to do with it. `whole`: bytes it will have, 0 if not known. A thread of its own. */
struct progress;
struct progress *progress_begin(const char *what, const char *file, int64_t whole);
void progress_end(struct progress *p);

/* ---- the subcommands ---- */

int run_serve(struct request *r);
int run_start(struct request *r);
int run_join(struct request *r);
int run_status(struct request *r);
int run_members(struct request *r);
int run_remove(struct request *r);
int run_promote(struct request *r);
int run_demote(struct request *r);
int run_transfer(struct request *r);
int run_leave(struct request *r);
int run_backup(struct request *r);
int run_restore(struct request *r);
int run_recover(struct request *r);
int run_log(struct request *r);
int run_key(struct request *r);
int run_sql(struct request *r);
int run_run(struct request *r);
int run_bench(struct request *r);

#endif
