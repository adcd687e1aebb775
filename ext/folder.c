#include "ext/folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "raft/smallfile.h"

/* Make the folder in which a file lies know durably what is in it. */
int folder_flush_parent(const char *path, struct err *e)
{
    char dir[4096];
    const char *slash = strrchr(path, '/');

    if (slash == NULL) {
        return folder_flush(".", e);
    }
    snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return folder_flush(dir, e);
}

/* Remove the folder of a member that never came to be, or has left. Only what dust makes is removed. `member` goes
 * first: without it what a crash leaves of the rest is nobody's. */
int folder_remove(const char *path, struct err *e)
{
    static const char *const names[] = {"member.new", "host", "socket", "pages", "incoming", "probe", "promise", "sums", "sums-next", "key", "key.new"};
    char name[4096 + 300];
    struct dirent *d;
    DIR *dir;

    snprintf(name, sizeof name, "%s-dust/member", path);
    unlink(name);
    snprintf(name, sizeof name, "%s-dust", path);
    folder_flush(name, NULL);
    snprintf(name, sizeof name, "%s-dust/raft", path);
    dir = opendir(name);
    while (dir != NULL && (d = readdir(dir)) != NULL) {
        if (d->d_name[0] != '.') {
            snprintf(name, sizeof name, "%s-dust/raft/%s", path, d->d_name);
            unlink(name);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    snprintf(name, sizeof name, "%s-dust/raft", path);
    rmdir(name);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(name, sizeof name, "%s-dust/%s", path, names[i]);
        unlink(name);
    }
    snprintf(name, sizeof name, "%s-dust", path);
    if (rmdir(name) != 0 && errno != ENOENT) {
        return err_sys(e, errno, "delete %s-dust: it is of no use any more, and could not be removed", path);
    }
    return folder_flush_parent(path, e);
}

void folder_undo(const char *path, struct err *e)
{
    if (folder_remove(path, NULL) != DUST_OK) {
        err_add(e, "; and what was begun could not be removed: delete %s-dust before you try again", path);
    }
}

int folder_make(const char *path, struct err *e)
{
    char dir[4096], member[sizeof dir + 8];
    int rv;

    if (snprintf(dir, sizeof dir, "%s-dust", path) >= (int)sizeof dir) {
        return err_set(e, DUST_MISUSE, "the path is too long");
    }
    if (mkdir(dir, 0700) != 0) {
        rv = errno;
        snprintf(member, sizeof member, "%s/member", dir);
        return rv != EEXIST ? err_sys(e, rv, "cannot make %s", dir)
               : access(member, F_OK) != 0 && errno == ENOENT
                   ? err_set(e, DUST_EXISTS,
                         "%s exists already, without a file `member`: starting, joining or leaving was cut short, or files "
                         "were removed; delete %s, unless it is needed, and try again",
                         dir, dir)
                   : err_set(e, DUST_EXISTS, "%s exists already: this database is a member of a cluster, or was one", dir);
    }
    rv = folder_flush_parent(path, e);
    if (rv != DUST_OK) {
        rmdir(dir);
    }
    return rv;
}
