#include "vfs/report.h"

#include <stdio.h>
#include <string.h>

void report_init(struct report *r)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->mutex, NULL);
}

void report_deinit(struct report *r)
{
    pthread_mutex_destroy(&r->mutex);
}

static void add(struct report *r, int code, const char *text)
{
    struct timespec now;
    struct report_line *last, *line;
    void (*log)(void *ctx, int code, const char *text);
    void *ctx;

    clock_gettime(CLOCK_REALTIME, &now);
    pthread_mutex_lock(&r->mutex);
    last = &r->lines[(r->n + REPORT_KEPT - 1) % REPORT_KEPT];
    if (r->n != 0 && last->code == code && now.tv_sec - last->at.tv_sec < 2 && strcmp(last->text, text) == 0) {
        pthread_mutex_unlock(&r->mutex);
        return;
    }
    line = &r->lines[r->n++ % REPORT_KEPT];
    line->at = now;
    line->code = code;
    snprintf(line->text, sizeof line->text, "%s", text);
    log = r->log;
    ctx = r->log_ctx;
    pthread_mutex_unlock(&r->mutex);
    if (log != NULL) {
        log(ctx, code, text);
    }
}

void report(struct report *r, int code, const char *fmt, ...)
{
    char text[ERR_TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    add(r, code, text);
}

void report_err(struct report *r, const struct err *e)
{
    add(r, e->code, e->text);
}

int report_last(struct report *r, struct report_line *out, int max)
{
    int n = 0;

    pthread_mutex_lock(&r->mutex);
    for (uint64_t i = r->n; i > 0 && n < max && n < REPORT_KEPT; i--) {
        out[n++] = r->lines[(i - 1) % REPORT_KEPT];
    }
    pthread_mutex_unlock(&r->mutex);
    return n;
}
