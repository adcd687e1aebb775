#include "vfs/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define LOWEST 3

void fd_reserve(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR); /* as a shell would give it: programs that are executed have it, too */
    } while (fd >= 0 && fd < LOWEST);
    if (fd >= 0) {
        close(fd);
    }
}

int fd_high(int fd)
{
    int high, saved;

    if (fd < 0 || fd >= LOWEST) {
        return fd;
    }
    high = fcntl(fd, F_DUPFD_CLOEXEC, LOWEST);
    saved = errno;
    close(fd);
    errno = saved;
    return high;
}
