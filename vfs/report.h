/* report - what went wrong lately. dust runs in somebody else's process and prints nothing: every error goes to the
 * host's sqlite3_log and into this ring, which dust_status shows. */
#ifndef DUST_VFS_REPORT_H
#define DUST_VFS_REPORT_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "vfs/err.h"

#define REPORT_KEPT 16

struct report_line {
    struct timespec at; /* wall clock */
    int code;
    char text[ERR_TEXT_MAX];
};

struct report {
    pthread_mutex_t mutex;
    struct report_line lines[REPORT_KEPT];
    uint64_t n; /* ever written */
    /* The host's log (sqlite3_log of the SQLite copy in use), or NULL. Any thread. */
    void (*log)(void *ctx, int code, const char *text);
    void *log_ctx;
};

void report_init(struct report *r);
void report_deinit(struct report *r);

/* Note an error or an event (code DUST_OK). A line equal to the last one is not repeated within a second. */
void report(struct report *r, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void report_err(struct report *r, const struct err *e);

/* Copy the last lines, newest first. Returns how many. */
int report_last(struct report *r, struct report_line *out, int max);

#endif
