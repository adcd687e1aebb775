#include "vfs/hostlock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vfs/fd.h"

int hostlock_open(struct hostlock *l, const char *dir, struct err *e)
{
    char path[PATH_MAX];

    l->fd = -1;
    if (snprintf(path, sizeof path, "%s/host", dir) >= (int)sizeof path) {
        return err_set(e, DUST_MISUSE, "the path is too long");
    }
    l->fd = fd_high(open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    return l->fd >= 0 ? DUST_OK : err_sys(e, errno, "cannot open %s", path);
}

long hostlock_holder(const struct hostlock *l)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    return fcntl(l->fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? (long)lock.l_pid : 0;
}

const char *process_name(long pid, char *buf, unsigned size)
{
    char name[64] = "", proc[64];
    FILE *f;

    snprintf(proc, sizeof proc, "/proc/%ld/comm", pid);
    f = fopen(proc, "re");
    if (f != NULL) {
        if (fgets(name, sizeof name, f) != NULL) {
            name[strcspn(name, "\n")] = '\0';
        }
        fclose(f);
    }
    snprintf(buf, size, "process %ld (%s)", pid, name[0] != '\0' ? name : "name unknown");
    return buf;
}

int hostlock_take(struct hostlock *l, const char *dir, struct err *e)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    char name[128];
    long pid;

    if (fcntl(l->fd, F_SETLK, &lock) == 0) {
        return DUST_OK;
    }
    if (errno != EACCES && errno != EAGAIN) {
        return err_sys(e, errno, "cannot lock %s/host", dir);
    }
    pid = hostlock_holder(l);
    if (pid == 0) {
        return err_set(e, DUST_BUSY, "another process has just opened or closed this member (%s); try again", dir);
    }
    return err_set(e, DUST_BUSY,
        "%s has this member of the cluster open; one process at a time can have it: close it there first",
        process_name(pid, name, sizeof name));
}

void hostlock_drop(struct hostlock *l)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

    if (l->fd >= 0) {
        (void)fcntl(l->fd, F_SETLK, &lock);
    }
}

void hostlock_close(struct hostlock *l)
{
    if (l->fd >= 0) {
        close(l->fd);
        l->fd = -1;
    }
}
