#include "ext/call.h"

#include <stdlib.h>
#include <string.h>

#include "vfs/file.h"

static int run_here(struct hosted *h, const struct callable *what, const struct cell *args, struct rows *out, struct err *e)
{
    int rv = what->run(h, args, out, e);

    return rv == DUST_OK && out->nomem ? err_set(e, DUST_NOMEM, "out of memory") : rv;
}

/* ---- asking ---- */

static bool take_rows(void *ctx, const struct link_msg *m)
{
    return rows_unpack(ctx, m->body, m->len);
}

static int ask(struct dfile *f, enum call_kind kind, const struct callable *what, const struct rows *args,
    struct rows *out, struct err *e)
{
    uint8_t *body = malloc(LINK_BODY_MAX);
    struct pack k = {.p = body, .room = LINK_BODY_MAX};
    int rv;

    if (body == NULL) {
        return err_set(e, DUST_NOMEM, "out of memory");
    }
    pack_uint(&k, kind, 1);
    pack_uint(&k, strlen(what->name), 1);
    pack_bytes(&k, what->name, strlen(what->name));
    pack_uint(&k, args->n != 0 ? args->columns : 0, 1);
    if (args->n != 0 && args->columns != 0) {
        k.n = row_pack(args, 0, body, k.n, k.room);
        k.bad = k.n == 0;
    }
    rv = k.bad ? err_set(e, DUST_TOOBIG, "the arguments are too long")
               : remote_call(f, body, k.n, !what->changes, take_rows, out, e);
    free(body);
    return rv;
}

int call_member(struct hosted *h, struct dfile *f, enum call_kind kind, const struct callable *what, const struct rows *args,
    struct rows *out, struct err *e)
{
    int rv = DUST_EXISTS;

    out->columns = what->columns;
    if (atomic_load(&h->node) == NULL && f != NULL) {
        rv = ask(f, kind, what, args, out, e);
    }
    if (rv == DUST_EXISTS && atomic_load(&h->node) != NULL) {
        rv = run_here(h, what, args->cells, out, e);
    }
    return rv;
}

/* ---- serving ---- */

static int send_rows(struct service_reply *r, const struct rows *out)
{
    uint8_t *body = malloc(LINK_BODY_MAX);
    size_t n = 0;
    bool ok = body != NULL;

    for (unsigned i = 0; ok && i < out->n; i++) {
        size_t more = row_pack(out, i, body, n, LINK_BODY_MAX);

        if (more == 0 && n != 0) {
            ok = service_rows(r, body, n);
            n = 0;
            more = row_pack(out, i, body, 0, LINK_BODY_MAX);
        }
        n = more;
    }
    ok = ok && (n == 0 || service_rows(r, body, n));
    free(body);
    return ok ? DUST_OK : DUST_NOMEM;
}

int call_serve(void *ctx, const uint8_t *bytes, size_t n, struct service_reply *r, struct err *e)
{
    struct hosted *h = ctx;
    struct unpack k = {.p = bytes, .left = n};
    unsigned kind = (unsigned)unpack_uint(&k, 1), len = (unsigned)unpack_uint(&k, 1), n_args;
    const char *text = unpack_bytes(&k, len);
    struct rows args = {.n = 0}, out = {.n = 0};
    const struct callable *what;
    char name[256];
    int rv;

    if (text != NULL) {
        memcpy(name, text, len);
        name[len] = '\0';
    }
    n_args = (unsigned)unpack_uint(&k, 1);
    args.columns = n_args;
    if (k.bad || kind > CALL_TABLE || n_args > CALL_ARGS_MAX || (n_args == 0) != (k.left == 0) ||
        (n_args != 0 && (!rows_unpack(&args, k.p, k.left) || args.n != 1))) {
        rows_free(&args);
        return err_set(e, DUST_MISUSE, "a call that cannot be");
    }
    what = kind == CALL_FUNCTION ? function_find(name, n_args) : table_find(name);
    if (what == NULL) {
        rv = err_set(e, DUST_VERSION, "the process that hosts this member runs another version of dust, which has no %s",
            name);
    } else {
        out.columns = what->columns;
        rv = run_here(h, what, args.cells, &out, e);
    }
    if (rv == DUST_OK && send_rows(r, &out) != DUST_OK) {
        rv = err_set(e, DUST_NOMEM, "out of memory");
    }
    rows_free(&args);
    rows_free(&out);
    return rv;
}
