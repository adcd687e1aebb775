/* PRAGMAs on a member's database. Those that would take dust's ground from under it are answered as programs expect
 * and change nothing; those of dust's own are handled; all others are SQLite's. */
#include <sqlite3ext.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vfs/file.h"

static const char *const consistencies[] = {"stale", "local", "fresh", "linearizable"};

static int answer(struct dfile *f, char **arg, const char *text)
{
    arg[0] = f->lib->api->mprintf("%s", text);
    return arg[0] != NULL ? SQLITE_OK : SQLITE_NOMEM;
}

static bool one_of(const char *text, const char *const *list)
{
    for (; *list != NULL; list++) {
        if (strcasecmp(text, *list) == 0) {
            return true;
        }
    }
    return false;
}

static int answer_lower(struct dfile *f, char **arg)
{
    int rc = answer(f, arg, arg[2]);

    for (char *c = arg[0]; rc == SQLITE_OK && *c != '\0'; c++) {
        *c = (char)(*c >= 'A' && *c <= 'Z' ? *c + 32 : *c);
    }
    return rc;
}

/* Writers here never block readers nor readers writers: `wal` is the nearest name for that. */
static int journal_mode(struct dfile *f, char **arg)
{
    static const char *const modes[] = {"delete", "truncate", "persist", "memory", "wal", "off", NULL};

    if (f->adopting) {
        return SQLITE_NOTFOUND;
    }
    return arg[2] != NULL && one_of(arg[2], modes) ? answer_lower(f, arg) : answer(f, arg, "wal");
}

/* EXCLUSIVE is answered only. But it may have been set by way of another database, which was main when SQLite asked, and
 * NORMAL undoes that. */
static int locking_mode(struct dfile *f, char **arg)
{
    if (arg[2] != NULL && strcasecmp(arg[2], "exclusive") == 0) {
        return answer_lower(f, arg);
    }
    return arg[2] != NULL && strcasecmp(arg[2], "normal") == 0 ? SQLITE_NOTFOUND : answer(f, arg, "normal");
}

static int mmap_size(struct dfile *f, char **arg)
{
    return answer(f, arg, "0");
}

static int page_size(struct dfile *f, char **arg)
{
    if (arg[2] == NULL || f->db->page_size == 0 || strtoul(arg[2], NULL, 10) == f->db->page_size) {
        return SQLITE_NOTFOUND;
    }
    arg[0] = f->lib->api->mprintf("the page size of a cluster cannot be changed: it is %u", f->db->page_size);
    return SQLITE_ERROR;
}

static int dust_consistency(struct dfile *f, char **arg)
{
    if (arg[2] == NULL) {
        return answer(f, arg, consistencies[f->consistency]);
    }
    for (int i = 0; i < 4; i++) {
        if (strcasecmp(arg[2], consistencies[i]) == 0) {
            f->consistency = i;
            return answer(f, arg, consistencies[i]);
        }
    }
    arg[0] = f->lib->api->mprintf("dust_consistency: \"%s\" is none of stale, local, fresh, linearizable", arg[2]);
    return SQLITE_ERROR;
}

static int dust_freshness(struct dfile *f, char **arg)
{
    if (arg[2] != NULL) {
        char *end;
        unsigned long ms = strtoul(arg[2], &end, 10);

        if (*arg[2] == '\0' || *arg[2] == '-' || *end != '\0' || ms == 0 || ms > 86400000) {
            arg[0] = f->lib->api->mprintf("dust_freshness: \"%s\" is not a number of milliseconds, 1 to 86400000",
                arg[2]);
            return SQLITE_ERROR;
        }
        f->freshness_ms = (uint32_t)ms;
    }
    arg[0] = f->lib->api->mprintf("%u", f->freshness_ms);
    return arg[0] != NULL ? SQLITE_OK : SQLITE_NOMEM;
}

int file_pragma(struct dfile *f, char **arg)
{
    static const struct {
        const char *name;
        int (*answer)(struct dfile *f, char **arg);
    } pragmas[] = {
        {"journal_mode", journal_mode},
        {"locking_mode", locking_mode},
        {"mmap_size", mmap_size},
        {"page_size", page_size},
        {"dust_consistency", dust_consistency},
        {"dust_freshness", dust_freshness},
    };

    /* Two are left to SQLite because they change nothing here: wal_checkpoint, which finds no WAL and says so in the
     * three columns that programs expect; and synchronous, for xSync does nothing and FCNTL_SYNC comes at every level.
     * */
    for (size_t i = 0; i < sizeof pragmas / sizeof pragmas[0]; i++) {
        if (strcasecmp(arg[1], pragmas[i].name) == 0) {
            return pragmas[i].answer(f, arg);
        }
    }
    return SQLITE_NOTFOUND;
}
