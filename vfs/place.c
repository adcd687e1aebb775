/* Nothing is opened to look at it: closing any descriptor of app.db would drop this process's locks on it. */
#include "vfs/place.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "vfs/database.h"

static void note(struct file_place *p, const struct stat *st)
{
    *p = (struct file_place){.dev = (uint64_t)st->st_dev, .ino = (uint64_t)st->st_ino, .known = true};
}

void place_note(struct file_place *p, const char *path)
{
    struct stat st;

    p->known = false;
    if (stat(path, &st) == 0) {
        note(p, &st);
    }
}

void place_note_fd(struct file_place *p, int fd)
{
    struct stat st;

    p->known = false;
    if (fd >= 0 && fstat(fd, &st) == 0) {
        note(p, &st);
    }
}

bool place_lost(const struct file_place *p, const char *path)
{
    struct stat st;

    if (!p->known) {
        return false;
    }
    if (stat(path, &st) != 0) {
        return errno == ENOENT || errno == ENOTDIR;
    }
    return p->dev != (uint64_t)st.st_dev || p->ino != (uint64_t)st.st_ino;
}

static int moved(const char *name, const char *kind, struct err *e)
{
    return err_set(e, DUST_MOVED,
        "%s is not the %s any more that this member has open: it was removed, renamed or replaced. Nothing is "
        "written here until that %s is back under its name (mv); then it goes on by itself. If it is lost: while "
        "this program runs, VACUUM INTO saves what the member has; if other members are well, remove this one there "
        "and join anew",
        name, kind, kind);
}

int database_file_in_place(struct database *db, struct err *e)
{
    return place_lost(&db->app_place, db->path) ? moved(db->path, "file", e) : DUST_OK;
}

int database_in_place(struct database *db, struct err *e)
{
    char name[PATH_MAX + 16];

    if (database_file_in_place(db, e) != DUST_OK) {
        return DUST_MOVED;
    }
    snprintf(name, sizeof name, "%s/host", db->dir);
    if (place_lost(&db->host_place, name)) {
        return moved(db->dir, "folder", e);
    }
    snprintf(name, sizeof name, "%s/raft", db->dir);
    return place_lost(&db->raft_place, name) ? moved(name, "folder", e) : DUST_OK;
}
