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

int err_sys(struct err *e, int errnum, const char *fmt, ...)
{
    int code = errnum == ENOSPC || errnum == EDQUOT ? DUST_FULL : errnum == ENOMEM ? DUST_NOMEM : DUST_IO;
    char reason[128];
    size_t n;
    va_list ap;

    if (e == NULL) {
        return code;
    }
    va_start(ap, fmt);
    err_setv(e, code, fmt, ap);
    va_end(ap);
    n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %s", strerror_r(errnum, reason, sizeof reason));
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
