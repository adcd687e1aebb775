/* err - dust's own result codes, and the message that goes with a failure.
 *
 * Every function that can fail returns one of these codes: 0 (DUST_OK) or a positive number, which is an outcome
 * that the caller must handle or pass on. A function that takes a `struct err *` fills it when, and only when, it
 * returns non-zero; the pointer may be NULL. The text says what is wrong and what to do; it is what a user reads.
 * Codes of SQLite and libraft appear only where those libraries call us or we call them. */
#ifndef DUST_VFS_ERR_H
#define DUST_VFS_ERR_H

#include <stdarg.h>

#define DUST_CODES(X)                                                                                        \
    X(NOMEM, "out of memory")                                                                                \
    X(IO, "disk I/O error")                                                                                  \
    X(FULL, "disk is full")                                                                                  \
    X(CORRUPT, "damaged or malformed data")                                                                  \
    X(VERSION, "a format or version this dust does not know")                                                \
    X(MISUSE, "wrong parameter or wrong state for this call")                                                \
    X(BUSY, "somebody else holds what is needed")                                                            \
    X(STALE, "a newer version exists than the one read")                                                     \
    X(VOID, "another transaction took this one's place in the log")                                          \
    X(UNKNOWN, "the outcome is not known")                                                                   \
    X(NOLEADER, "no leader can be reached")                                                                  \
    X(REFUSED, "not permitted")                                                                              \
    X(EXISTS, "already in use")                                                                              \
    X(NOTFOUND, "no such thing")                                                                             \
    X(TOOBIG, "over a limit")                                                                                \
    X(CLOSED, "shutting down")                                                                               \
    X(AGAIN, "not now, try again")                                                                           \
    X(MOVED, "a file is not in its place any more")

enum dust_code {
    DUST_OK = 0,
#define X(name, text) DUST_##name,
    DUST_CODES(X)
#undef X
        DUST_N_CODES
};

#define ERR_TEXT_MAX 640

struct err {
    int code; /* enum dust_code */
    char text[ERR_TEXT_MAX];
};

/* Fill *e (if not NULL) with the code and the formatted text. Returns the code. Any thread. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int err_setv(struct err *e, int code, const char *fmt, va_list ap) __attribute__((format(printf, 3, 0)));

/* As err_set, with ": <strerror(errnum)>" appended; the code is DUST_FULL for ENOSPC and EDQUOT, DUST_NOMEM for
 * ENOMEM, else DUST_IO. Returns the code. */
int err_sys(struct err *e, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Add to the text of *e, which tells of a failure already. What was there is cut short if there is no room for both. NULL
 * is fine. */
void err_add(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The general meaning of a code; never NULL. */
const char *err_text(int code);

#endif
