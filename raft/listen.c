#include "raft/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <nanomsg/nn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BIND_TRIES 16

void listen_url(const char *address, char out[LISTEN_URL_MAX])
{
    snprintf(out, LISTEN_URL_MAX, "tcp://%.*s", ADDRESS_TEXT_MAX, address);
}

/* A port that is free at the moment. */
static int free_port(const char *host, bool v6)
{
    struct sockaddr_in a4 = {.sin_family = AF_INET};
    struct sockaddr_in6 a6 = {.sin6_family = AF_INET6};
    socklen_t len = v6 ? sizeof a6 : sizeof a4;
    struct sockaddr *a = v6 ? (struct sockaddr *)&a6 : (struct sockaddr *)&a4;
    int fd = socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = -1;

    if (fd < 0) {
        return -1;
    }
    if (inet_pton(v6 ? AF_INET6 : AF_INET, host, v6 ? (void *)&a6.sin6_addr : (void *)&a4.sin_addr) == 1 &&
        bind(fd, a, len) == 0 && getsockname(fd, a, &len) == 0) {
        port = ntohs(v6 ? a6.sin6_port : a4.sin_port);
    }
    close(fd);
    return port;
}

static int try_bind(int socket, const char *address)
{
    char url[LISTEN_URL_MAX];

    listen_url(address, url);
    return nn_bind(socket, url) >= 0 ? 0 : nn_errno();
}

int listen_bind(int socket, const char *address, char bound[ADDRESS_TEXT_MAX], struct err *e)
{
    const char *colon = strrchr(address, ':');
    size_t host_len = colon != NULL ? (size_t)(colon - address) : 0;
    char host[ADDRESS_TEXT_MAX];
    bool v6 = address[0] == '[';
    int rv = EADDRINUSE;

    if (colon == NULL || host_len >= sizeof host || strlen(address) >= ADDRESS_TEXT_MAX) {
        return err_set(e, DUST_MISUSE, "\"%s\" is not an address as host:port", address);
    }
    strcpy(bound, address);
    if (strcmp(colon, ":0") != 0) {
        rv = try_bind(socket, address);
    }
    for (int i = 0; strcmp(colon, ":0") == 0 && rv == EADDRINUSE && i < BIND_TRIES; i++) {
        int port;

        snprintf(host, sizeof host, "%.*s", (int)(v6 ? host_len - 2 : host_len), address + (v6 ? 1 : 0));
        port = free_port(host, v6);
        if (port < 0) {
            return err_set(e, DUST_IO, "no free port was found on %s", host);
        }
        snprintf(bound, ADDRESS_TEXT_MAX, v6 ? "[%s]:%d" : "%s:%d", host, port);
        rv = try_bind(socket, bound);
    }
    if (rv == EADDRINUSE) {
        return err_set(e, DUST_EXISTS,
            "the address %s is in use by another program or member: choose another one, or end that program", address);
    }
    return rv == 0 ? DUST_OK : err_set(e, DUST_MISUSE, "cannot listen on %s: %s", address, nn_strerror(rv));
}
