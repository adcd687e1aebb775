/* dust - the command line of a cluster. Each subcommand opens the database as any other client does: if another process
 * hosts the member it is attached to that, else it is the host for as long as it runs. See dust(1). */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "dust.h"

static const struct command commands[] = {
    {"serve", "app.db [--bind H:P [--join H:P,...]]", "host a member, until told to stop",
        OPT_BIND | OPT_JOIN | OPT_ADVERTISE | OPT_ROLE | OPT_KEYFILE | OPT_TIMEOUT, 1, 1, run_serve},
    {"start", "app.db --bind H:P", "make a database, as it stands, the first member of a new cluster",
        OPT_BIND | OPT_ADVERTISE | OPT_KEYFILE | OPT_TIMEOUT, 1, 1, run_start},
    {"join", "app.db --bind H:P --join H:P,...", "make a new database a member of a cluster that there is",
        OPT_BIND | OPT_JOIN | OPT_ADVERTISE | OPT_ROLE | OPT_KEYFILE | OPT_TIMEOUT, 1, 1, run_join},
    {"status", "app.db", "what this member is, has and does", OPT_JSON | OPT_TIMEOUT, 1, 1, run_status},
    {"members", "app.db", "the members of the cluster", OPT_JSON | OPT_TIMEOUT, 1, 1, run_members},
    {"remove", "ID app.db", "take a member out of the cluster", OPT_TIMEOUT, 2, 2, run_remove},
    {"promote", "ID app.db", "make a member a voter", OPT_TIMEOUT, 2, 2, run_promote},
    {"demote", "ID app.db", "make a voter a standby, which only follows", OPT_TIMEOUT, 2, 2, run_demote},
    {"transfer", "ID app.db", "make a voter the leader", OPT_TIMEOUT, 2, 2, run_transfer},
    {"leave", "app.db", "leave the cluster: an ordinary database again", OPT_TIMEOUT, 1, 1, run_leave},
    {"backup", "DEST app.db", "copy the database as of one moment to a plain file, while writes go on",
        OPT_TIMEOUT, 2, 2, run_backup},
    {"restore", "SRC app.db --bind H:P", "make a new cluster of a backup, or of any SQLite database",
        OPT_BIND | OPT_ADVERTISE | OPT_KEYFILE | OPT_TIMEOUT, 2, 2, run_restore},
    {"recover", "SRC DEST", "make a plain database of what is left of a member whose majority is lost",
        OPT_FORCE, 2, 2, run_recover},
    {"log", "app.db", "the entries of the log", OPT_FOLLOW | OPT_JSON | OPT_TIMEOUT, 1, 1, run_log},
    {"key", "[FILE]", "make a key for a cluster, in a new file, or print it", 0, 0, 1, run_key},
    {"sql", "\"SQL\" app.db", "run statements", OPT_JSON | OPT_TIMEOUT, 2, 2, run_sql},
    {"run", "-- PROGRAM [ARGUMENT ...]", "run a program that knows nothing of dust, with its databases going through it",
        OPT_DB | OPT_BIND | OPT_JOIN | OPT_KEYFILE, 1, -1, run_run},
    {"bench", "app.db", "how fast this cluster is from here, beside plain SQLite on the same disk",
        OPT_CLIENTS | OPT_SECONDS | OPT_JSON | OPT_TIMEOUT, 1, 1, run_bench},
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static const struct option {
    unsigned bit;
    const char *name, *argument, *text;
} options[] = {
    {OPT_BIND, "--bind", "H:P", "own address; port 0: any that is free, and kept"},
    {OPT_JOIN, "--join", "H:P,...", "addresses of members of the cluster to join"},
    {OPT_ADVERTISE, "--advertise", "H:P", "address by which others reach it, if it is not that of --bind"},
    {OPT_ROLE, "--role", "voter|standby", "what to join as"},
    {OPT_KEYFILE, "--keyfile", "FILE", "the cluster's key, which `dust key` makes; needed for other than loopback addresses"},
    {OPT_DB, "--db", "PATTERN", "the databases that are meant, as glob patterns with : between"},
    {OPT_CLIENTS, "--clients", "N,...", "numbers of clients to try; 1,8,64 unless given"},
    {OPT_SECONDS, "--seconds", "S", "how long each is tried; 3 unless given"},
    {OPT_JSON, "--json", NULL, "print JSON"},
    {OPT_FOLLOW, "--follow", NULL, "go on printing what is added, until interrupted"},
    {OPT_FORCE, "--force", NULL, "even if the cluster may be alive, or pages are damaged"},
    {OPT_TIMEOUT, "--timeout", "MS", "wait so long for what others hold; 30000 unless given"},
};
#define N_OPTIONS (sizeof options / sizeof options[0])

int complain(int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fflush(stdout);
    fputs("dust: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return code;
}

/* ---- help ---- */

static void help_all(FILE *out)
{
    fputs("usage: dust SUBCOMMAND ... app.db [OPTION ...]\n\n", out);
    for (size_t i = 0; i < N_COMMANDS; i++) {
        fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    }
    fputs("\n`dust SUBCOMMAND --help` says more, dust(1) all.\n", out);
}

static void help_one(const struct command *c, FILE *out)
{
    fprintf(out, "usage: dust %s %s\n\n%s\n", c->name, c->synopsis, c->summary);
    if (c->options != 0) {
        fputs("\n", out);
    }
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if ((c->options & options[i].bit) != 0) {
            char name[64];

            snprintf(name, sizeof name, "%s %s", options[i].name, options[i].argument != NULL ? options[i].argument : "");
            fprintf(out, "  %-22s %s\n", name, options[i].text);
        }
    }
}

static const struct command *command_of(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

/* ---- the command line ---- */

static const struct option *option_of(const struct command *c, const char *name, size_t n)
{
    for (size_t i = 0; i < N_OPTIONS; i++) {
        if ((c->options & options[i].bit) != 0 && strlen(options[i].name) == n && memcmp(options[i].name, name, n) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

static int set_option(struct request *r, const struct option *o, const char *value)
{
    char *end;
    long ms;

    switch (o->bit) {
    case OPT_BIND:
        r->bind = value;
        break;
    case OPT_JOIN:
        r->join = value;
        break;
    case OPT_ADVERTISE:
        r->advertise = value;
        break;
    case OPT_ROLE:
        if (strcmp(value, "voter") != 0 && strcmp(value, "standby") != 0) {
            return complain(EXIT_USAGE, "--role %s: it is voter or standby", value);
        }
        r->role = value;
        break;
    case OPT_KEYFILE:
        r->keyfile = value;
        break;
    case OPT_DB:
        r->db = value;
        break;
    case OPT_JSON:
        r->json = true;
        break;
    case OPT_FOLLOW:
        r->follow = true;
        break;
    case OPT_FORCE:
        r->force = true;
        break;
    case OPT_CLIENTS:
        r->clients = value;
        break;
    case OPT_SECONDS:
        ms = strtol(value, &end, 10);
        if (*value < '0' || *value > '9' || *end != '\0' || ms < 1 || ms > 86400) {
            return complain(EXIT_USAGE, "--seconds %s: a number from 1 to 86400 is needed", value);
        }
        r->seconds = (int)ms;
        break;
    case OPT_TIMEOUT:
        ms = strtol(value, &end, 10);
        if (*value < '0' || *value > '9' || *end != '\0' || ms > INT_MAX) {
            return complain(EXIT_USAGE, "--timeout %s: a number of milliseconds is needed", value);
        }
        r->timeout_ms = (int)ms;
        break;
    default:
        break;
    }
    return EXIT_OK;
}

/* One option at argv[*i], and its value there or behind it. */
static int take_option(struct request *r, int argc, char **argv, int *i)
{
    const char *name = argv[*i], *value = strchr(name, '=');
    const struct option *o = option_of(r->command, name, value != NULL ? (size_t)(value - name) : strlen(name));

    if (o == NULL) {
        return complain(EXIT_USAGE, "%s: no option of `dust %s` (`dust %s --help` lists them)", name, r->command->name,
            r->command->name);
    }
    if ((o->argument == NULL) != (value == NULL) && o->argument == NULL) {
        return complain(EXIT_USAGE, "%s has no value", o->name);
    }
    if (o->argument != NULL && value == NULL && *i + 1 >= argc) {
        return complain(EXIT_USAGE, "%s: its value is missing (%s)", o->name, o->argument);
    }
    return set_option(r, o, o->argument == NULL ? NULL : value != NULL ? value + 1 : argv[++*i]);
}

static int read_line(struct request *r, int argc, char **argv)
{
    bool no_more = false;

    for (int i = 2; i < argc; i++) {
        int rv = EXIT_OK;

        if (!no_more && strcmp(argv[i], "--") == 0) {
            no_more = true;
        } else if (!no_more && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            help_one(r->command, stdout);
            exit(EXIT_OK);
        } else if (!no_more && argv[i][0] == '-' && argv[i][1] == '-') {
            rv = take_option(r, argc, argv, &i);
        } else {
            r->args[r->n++] = argv[i];
            no_more = no_more || r->command->max < 0;
        }
        if (rv != EXIT_OK) {
            return rv;
        }
    }
    if (r->n < r->command->min || (r->command->max >= 0 && r->n > r->command->max)) {
        help_one(r->command, stderr);
        return EXIT_USAGE;
    }
    return EXIT_OK;
}

int main(int argc, char **argv)
{
    struct request r = {.timeout_ms = 30000, .seconds = 3};
    int rv;

    if (argc < 2) {
        help_all(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        r.command = argc > 2 ? command_of(argv[2]) : NULL;
        if (argc > 2 && r.command == NULL) {
            return complain(EXIT_USAGE, "there is no subcommand %s", argv[2]);
        }
        if (r.command != NULL) {
            help_one(r.command, stdout);
        } else {
            help_all(stdout);
        }
        return EXIT_OK;
    }
    r.command = command_of(argv[1]);
    if (r.command == NULL) {
        return complain(EXIT_USAGE, "there is no subcommand %s (`dust help` lists them)", argv[1]);
    }
    r.args = calloc((size_t)argc + 1, sizeof *r.args);
    if (r.args == NULL) {
        return complain(EXIT_FAILED, "out of memory");
    }
    rv = read_line(&r, argc, argv);
    if (rv != EXIT_OK) {
        return rv;
    }
    rv = r.command->run(&r);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        return complain(EXIT_FAILED, "cannot write the output");
    }
    return rv;
}
