#include "vfs/link.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vfs/clock.h"
#include "vfs/fd.h"

#define BACKLOG 128

/* ---- messages ---- */

long link_parse(const uint8_t *buf, size_t n, struct link_msg *out)
{
    struct unpack k = {.p = buf, .left = n};
    uint32_t len, number;
    unsigned type, zeros;

    if (n < LINK_HEAD) {
        return 0;
    }
    len = (uint32_t)unpack_uint(&k, 4);
    type = (unsigned)unpack_uint(&k, 1);
    zeros = (unsigned)unpack_uint(&k, 3);
    number = (uint32_t)unpack_uint(&k, 4);
    if (len > LINK_BODY_MAX || type < LINK_HELLO || type >= LINK_N_TYPES || zeros != 0) {
        return -1;
    }
    if (k.left < len) {
        return 0;
    }
    *out = (struct link_msg){.type = (uint8_t)type, .number = number, .body = k.p, .len = len};
    return (long)(LINK_HEAD + len);
}

void link_head(uint8_t out[LINK_HEAD], uint8_t type, uint32_t number, uint32_t len)
{
    struct pack k = {.p = out, .room = LINK_HEAD};

    pack_uint(&k, len, 4);
    pack_uint(&k, type, 4);
    pack_uint(&k, number, 4);
}

static void get_vid(struct unpack *k, struct vid *out)
{
    const void *p = unpack_bytes(k, sizeof out->b);

    if (p != NULL) {
        memcpy(out->b, p, sizeof out->b);
    }
}

bool link_get_commit(const struct link_msg *m, struct link_commit *out)
{
    struct unpack k = {.p = m->body, .left = m->len};
    unsigned flags;

    out->slot = (uint32_t)unpack_uint(&k, 4);
    out->n_parts = (uint32_t)unpack_uint(&k, 4);
    flags = (unsigned)unpack_uint(&k, 1);
    out->again = (flags & 1) != 0;
    out->turn = (flags & 2) != 0;
    get_vid(&k, &out->parent);
    get_vid(&k, &out->id);
    return m->type == LINK_COMMIT && !k.bad && k.left == 0 && flags <= 3 && out->n_parts != 0 && !vid_none(&out->id);
}

bool link_get_done(const struct link_msg *m, struct link_done *out)
{
    struct unpack k = {.p = m->body, .left = m->len};

    out->code = (int)unpack_uint(&k, 4);
    out->seq = unpack_uint(&k, 8);
    out->n_pages = (uint32_t)unpack_uint(&k, 4);
    out->after = unpack_uint(&k, 8);
    out->text_len = k.left;
    out->text = unpack_bytes(&k, k.left);
    return m->type == LINK_DONE && !k.bad && out->code >= 0 && out->code < DUST_N_CODES &&
           (out->code != DUST_OK || (out->seq != 0 && out->n_pages != 0));
}

bool link_get_reply(const struct link_msg *m, struct err *out)
{
    struct unpack k = {.p = m->body, .left = m->len};
    unsigned code = (unsigned)unpack_uint(&k, 4);
    size_t n = k.left < sizeof out->text ? k.left : sizeof out->text - 1;

    if (m->type != LINK_REPLY || k.bad || code >= DUST_N_CODES) {
        return false;
    }
    out->code = (int)code;
    memcpy(out->text, k.p, n);
    out->text[n] = '\0';
    if (n == 0 && code != DUST_OK) {
        err_set(out, (int)code, "%s", err_text((int)code));
    }
    return true;
}

/* ---- the socket ---- */

#define SOCKET_NAME "/proc/self/fd/%d/socket"

/* A socket's name has 107 bytes at most, a path may have more: through the folder's descriptor it is short. */
static int name_of(struct sockaddr_un *a, const char *dir, int *dir_fd, struct err *e)
{
    *dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir_fd < 0) {
        return err_sys(e, errno, "cannot open the folder %s", dir);
    }
    *a = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(a->sun_path, sizeof a->sun_path, SOCKET_NAME, *dir_fd);
    return DUST_OK;
}

int link_listen(int *fd, const char *dir, struct err *e)
{
    struct sockaddr_un a;
    char path[PATH_MAX];
    int dir_fd, rv = name_of(&a, dir, &dir_fd, e);

    if (rv != DUST_OK) {
        return rv;
    }
    snprintf(path, sizeof path, "%s/socket", dir);
    unlink(path);
    *fd = fd_high(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    /* The mode that it has before it is bound is that of its name. */
    if (*fd < 0 || fchmod(*fd, 0600) != 0 || bind(*fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(*fd, BACKLOG) != 0) {
        rv = err_sys(e, errno, "cannot listen on %s", path);
        if (*fd >= 0) {
            close(*fd);
        }
        *fd = -1;
    }
    close(dir_fd);
    return rv;
}

void link_unlist(const char *dir)
{
    char path[PATH_MAX];

    snprintf(path, sizeof path, "%s/socket", dir);
    unlink(path);
}

int link_connect(int *fd, const char *dir, struct err *e)
{
    struct sockaddr_un a;
    int dir_fd, rv = name_of(&a, dir, &dir_fd, e);

    *fd = -1;
    if (rv != DUST_OK) {
        return rv;
    }
    *fd = fd_high(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (*fd < 0 || connect(*fd, (struct sockaddr *)&a, sizeof a) != 0) {
        int why = errno;

        rv = why == ENOENT || why == ECONNREFUSED || why == EAGAIN
                 ? err_set(e, DUST_NOTFOUND, "nobody listens on %s/socket", dir)
                 : err_sys(e, why, "cannot connect to %s/socket", dir);
        if (*fd >= 0) {
            close(*fd);
        }
        *fd = -1;
    }
    close(dir_fd);
    return rv;
}

static bool is_name(const struct sockaddr_un *a, socklen_t n)
{
    char name[sizeof a->sun_path + 1] = "";
    int end = 0;

    if (n > offsetof(struct sockaddr_un, sun_path) && n <= sizeof *a && a->sun_family == AF_UNIX) {
        memcpy(name, a->sun_path, n - offsetof(struct sockaddr_un, sun_path));
    }
    return sscanf(name, SOCKET_NAME "%n", &(int){0}, &end) == 1 && end > 0 && name[end] == '\0';
}

/* Either end, or what is listened on: what is accepted has the name of that. */
static bool is_link(int fd)
{
    struct sockaddr_un own, other;
    socklen_t own_len = sizeof own, other_len = sizeof other;

    return (getsockname(fd, (struct sockaddr *)&own, &own_len) == 0 && is_name(&own, own_len)) ||
           (getpeername(fd, (struct sockaddr *)&other, &other_len) == 0 && is_name(&other, other_len));
}

void link_forked(void)
{
    DIR *all = opendir("/proc/self/fd");
    struct dirent *d;

    while (all != NULL && (d = readdir(all)) != NULL) {
        int fd = atoi(d->d_name);

        if (d->d_name[0] != '.' && fd != dirfd(all) && is_link(fd)) {
            close(fd);
        }
    }
    if (all != NULL) {
        closedir(all);
    }
}

bool link_peer(int fd, long *pid, unsigned *uid)
{
    struct ucred c;
    socklen_t n = sizeof c;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n) != 0) {
        return false;
    }
    *pid = (long)c.pid;
    *uid = (unsigned)c.uid;
    return true;
}

void link_close(struct link *l)
{
    if (l->fd >= 0) {
        close(l->fd);
    }
    free(l->in);
    *l = (struct link){.fd = -1, .number = l->number};
}

/* DUST_OK: something can be done; DUST_BUSY: the time is up. */
static int wait_for(int fd, short events, uint64_t until_ms)
{
    for (;;) {
        uint64_t now = clock_ms(), left = until_ms > now ? until_ms - now : 0;
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, left < INT_MAX ? (int)left : INT_MAX);

        if (n > 0) {
            return DUST_OK;
        }
        if (n == 0 && clock_ms() >= until_ms) {
            return DUST_BUSY;
        }
        if (n < 0 && errno != EINTR) {
            return DUST_CLOSED;
        }
    }
}

int link_send(struct link *l, uint8_t type, const void *head, size_t n_head, const void *body, size_t n_body,
    uint64_t until_ms)
{
    uint8_t first[LINK_HEAD];
    struct iovec v[3] = {{first, sizeof first}, {(void *)head, n_head}, {(void *)body, n_body}};
    struct msghdr m = {.msg_iov = v, .msg_iovlen = 3};

    if (n_head + n_body > LINK_BODY_MAX) {
        return DUST_MISUSE;
    }
    link_head(first, type, l->number, (uint32_t)(n_head + n_body));
    while (m.msg_iovlen > 0) {
        ssize_t n = sendmsg(l->fd, &m, MSG_NOSIGNAL);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            int rv = errno == EINTR ? DUST_OK : wait_for(l->fd, POLLOUT, until_ms);

            if (rv != DUST_OK) {
                return rv;
            }
            continue;
        }
        if (n < 0) {
            return DUST_CLOSED;
        }
        while (m.msg_iovlen > 0 && (size_t)n >= m.msg_iov->iov_len) {
            n -= (ssize_t)m.msg_iov->iov_len;
            m.msg_iov++;
            m.msg_iovlen--;
        }
        if (m.msg_iovlen > 0) {
            m.msg_iov->iov_base = (uint8_t *)m.msg_iov->iov_base + n;
            m.msg_iov->iov_len -= (size_t)n;
        }
    }
    return DUST_OK;
}

/* Have room for a whole message, or some kilobytes, behind what has been read. */
static bool make_room(struct link *l)
{
    size_t want = 4096, left = l->have - l->used;

    if (left >= LINK_HEAD) {
        struct unpack k = {.p = l->in + l->used, .left = 4};

        want = LINK_HEAD + (size_t)unpack_uint(&k, 4); /* link_parse has found it to be possible */
    }
    if (l->used != 0) {
        memmove(l->in, l->in + l->used, left);
        l->have = left;
        l->used = 0;
    }
    if (want > l->room || l->have == l->room) {
        size_t room = want > l->room * 2 ? want : l->room * 2;
        uint8_t *p = realloc(l->in, room);

        if (p == NULL) {
            return false;
        }
        l->in = p;
        l->room = room;
    }
    return true;
}

int link_recv(struct link *l, struct link_msg *out, uint64_t until_ms)
{
    for (;;) {
        long used = link_parse(l->in + l->used, l->have - l->used, out);
        ssize_t n;

        if (used < 0) {
            return DUST_CLOSED;
        }
        if (used > 0) {
            l->used += (size_t)used;
            return DUST_OK;
        }
        if (!make_room(l)) {
            return DUST_NOMEM;
        }
        n = recv(l->fd, l->in + l->have, l->room - l->have, 0);
        if (n > 0) {
            l->have += (size_t)n;
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            return DUST_CLOSED;
        } else if (errno == EAGAIN) {
            int rv = wait_for(l->fd, POLLIN, until_ms);

            if (rv != DUST_OK) {
                return rv;
            }
        }
    }
}
