/* call - dust's functions and tables, for a connection of this process or of one that is attached: by name, with
 * arguments, they give rows.
 *
 * LINK_CALL's body: kind 1, length of the name 1, the name; the arguments, as one row (rows.h). LINK_ROWS': rows. */
#ifndef DUST_EXT_CALL_H
#define DUST_EXT_CALL_H

#include "ext/registry.h"
#include "ext/rows.h"
#include "vfs/service.h"

#define CALL_ARGS_MAX 3u

enum call_kind { CALL_FUNCTION, CALL_TABLE };

/* What can be asked for of a member, wherever it is hosted. `args` has one row; `out` the columns set. */
struct callable {
    const char *name;
    unsigned n_args;  /* of a function */
    unsigned columns; /* of what it gives */
    int (*run)(struct hosted *h, const struct cell *args, struct rows *out, struct err *e);
    bool changes; /* something, so that it is not repeated when nobody knows what came of it */
};

/* Here, if this process hosts the member; else by the one that does. f: an open file of the connection's. */
int call_member(struct hosted *h, struct dfile *f, enum call_kind kind, const struct callable *what, const struct rows *args,
    struct rows *out, struct err *e);

/* service_calls.call; ctx: struct hosted. */
int call_serve(void *ctx, const uint8_t *body, size_t n, struct service_reply *r, struct err *e);

/* functions.c, tables.c: by name and number of arguments; NULL if there is none. */
const struct callable *function_find(const char *name, unsigned n_args);
const struct callable *table_find(const char *name);

#endif
