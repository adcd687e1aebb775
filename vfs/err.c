#include "vfs/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int err_setv(struct err *e, int code, const char *fmt, va_list ap)
{
    if (e != NULL) {
        e->code = code;
        vsnprintf(e->text, sizeof e->text, fmt, ap);
    }
    return code;
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    err_setv(e, code, fmt, ap);
    va_end(ap);
    return code;
}

void err_add(struct err *e, const char *fmt, ...)
{
    char more[ERR_TEXT_MAX / 2];
    size_t n, room;
    va_list ap;

    if (e == NULL) {
        return;
    }
    va_start(ap, fmt);
    vsnprintf(more, sizeof more, fmt, ap);
    va_end(ap);
    n = strlen(e->text);
    room = sizeof e->text - strlen(more) - 1;
    strcpy(e->text + (n < room ? n : room), more);
}

int err_sys(struct err *e, int errnum, const char *fmt, ...)
{
    int code = errnum == ENOSPC || errnum == EDQUOT ? DUST_FULL : errnum == ENOMEM ? DUST_NOMEM : DUST_IO;
    char reason[128];
    va_list ap;

    if (e == NULL) {
        return code;
    }
    va_start(ap, fmt);
    err_setv(e, code, fmt, ap);
    va_end(ap);
    err_add(e, ": %s", strerror_r(errnum, reason, sizeof reason));
    return code;
}

const char *err_text(int code)
{
    static const char *const texts[] = {
        "ok",
#define X(name, text) text,
        DUST_CODES(X)
#undef X
    };

    return code >= 0 && code < DUST_N_CODES ? texts[code] : "an unknown error";
}
