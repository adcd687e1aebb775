#include "wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "driver.h"

void append(struct bytes *b, const void *data, size_t len)
{
    if (b->full || len == 0) {
        return;
    }
    if (b->room - b->len < len) {
        size_t room = 2 * (b->len + len);
        uint8_t *at = realloc(b->at, room);

        if (at == NULL) {
            b->full = true;
            return;
        }
        b->at = at;
        b->room = room;
    }
    memcpy(b->at + b->len, data, len);
    b->len += len;
}

int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* What getaddrinfo makes of host:port, or NULL. */
static struct addrinfo *resolve(const char *target, char *why)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    const char *colon = strrchr(target, ':');
    struct addrinfo *list;
    char host[256];
    int rc;

    if (colon == NULL || colon == target || (size_t)(colon - target) >= sizeof host) {
        snprintf(why, WHY_MAX, "\"%.100s\" is not host:port", target);
        return NULL;
    }
    memcpy(host, target, (size_t)(colon - target));
    host[colon - target] = '\0';
    rc = getaddrinfo(host, colon + 1, &hints, &list);
    if (rc != 0) {
        snprintf(why, WHY_MAX, "%.100s: %s", target, gai_strerror(rc));
        return NULL;
    }
    return list;
}

int dial(const char *target, char *why)
{
    const struct timeval timeout = {.tv_sec = TIMEOUT_S};
    struct addrinfo *list = resolve(target, why);
    int one = 1, fd = -1, rc = 0;

    for (const struct addrinfo *a = list; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0) {
            rc = errno;
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout); /* of connect, too */
        if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            rc = errno;
            close(fd);
            fd = -1;
        }
    }
    if (list != NULL && fd < 0) {
        snprintf(why, WHY_MAX, "cannot connect to %.100s: %s", target, strerror(rc));
    }
    if (list != NULL) {
        freeaddrinfo(list);
    }
    return fd;
}

bool send_all(int fd, const void *data, size_t len, char *why)
{
    const char *at = data;

    while (len > 0) {
        ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

        if (n < 0 && errno != EINTR) {
            bool late = errno == EAGAIN || errno == EWOULDBLOCK;

            snprintf(why, WHY_MAX, "connection lost: %s", late ? "the server reads nothing" : strerror(errno));
            return false;
        }
        if (n > 0) {
            at += n;
            len -= (size_t)n;
        }
    }
    return true;
}

ssize_t receive(int fd, void *data, size_t room, char *why)
{
    ssize_t n;

    do {
        n = recv(fd, data, room, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        snprintf(why, WHY_MAX, "connection lost: no answer in %d s", TIMEOUT_S);
    } else if (n <= 0) {
        snprintf(why, WHY_MAX, "connection lost: %s", n == 0 ? "the server closed it" : strerror(errno));
    }
    return n > 0 ? n : -1;
}
