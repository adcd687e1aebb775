/* autoext - a C program that knows of dust only that it is an automatic extension.
 *
 *     autoext [--register] PATH [SQL ...]
 *
 * Makes dust an automatic extension (with sqlite3_auto_extension; with --register, by dust_register), opens PATH, and
 * runs each SQL; without any, each line of standard input. For each it prints the rows, columns parted by '|', and
 * then a line "ok", or "error CODE MESSAGE". Ends with 1 if the database cannot be opened. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dust.h"

static int print_row(void *ctx, int n, char **values, char **names)
{
    (void)ctx;
    (void)names;
    for (int i = 0; i < n; i++) {
        printf("%s%s", i == 0 ? "" : "|", values[i] != NULL ? values[i] : "");
    }
    putchar('\n');
    return 0;
}

static void run(sqlite3 *db, const char *sql)
{
    char *text = NULL;

    if (sqlite3_exec(db, sql, print_row, NULL, &text) == SQLITE_OK) {
        puts("ok");
    } else {
        printf("error %d %s\n", sqlite3_extended_errcode(db), text != NULL ? text : "");
    }
    sqlite3_free(text);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int rc, at = 1;
    sqlite3 *db;

    if (at < argc && strcmp(argv[at], "--register") == 0) {
        rc = dust_register();
        at++;
    } else {
        rc = sqlite3_auto_extension((void (*)(void))sqlite3_dust_init);
    }
    if (rc != SQLITE_OK || at == argc) {
        fprintf(stderr, at == argc ? "usage: autoext [--register] PATH [SQL ...]\n" : "dust was refused\n");
        return 2;
    }
    rc = sqlite3_open_v2(
        argv[at], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL);
    if (rc != SQLITE_OK) {
        printf("error %d %s\n", sqlite3_extended_errcode(db), sqlite3_errmsg(db));
        sqlite3_close(db);
        return 1;
    }
    sqlite3_busy_timeout(db, 30000);
    if (++at < argc) {
        for (; at < argc; at++) {
            run(db, argv[at]);
        }
    } else {
        char *line = NULL;
        size_t room = 0;
        ssize_t n;

        while ((n = getline(&line, &room, stdin)) > 0) {
            if (line[n - 1] == '\n') {
                line[n - 1] = '\0';
            }
            run(db, line);
        }
        free(line);
    }
    return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}
