/* What the drivers of systems with servers have in common (etcd.c, dqlite.c): a socket that never waits for longer than
 * TIMEOUT_S, and bytes that grow. */
#ifndef DUST_BENCHMARK_WIRE_H
#define DUST_BENCHMARK_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TIMEOUT_S 30
#define REPLY_MAX (64U << 20) /* bytes of one answer */

struct bytes {
    uint8_t *at;
    size_t len, room;
    bool full; /* there was no memory for all of it */
};

void append(struct bytes *b, const void *data, size_t len);

int64_t now_ms(void);
void pause_ms(unsigned ms);

/* A socket to host:port, or -1. The functions here tell what failed in `why` (WHY_MAX bytes). */
int dial(const char *target, char *why);
bool send_all(int fd, const void *data, size_t len, char *why);
/* How many bytes came; -1 if none can. */
ssize_t receive(int fd, void *data, size_t room, char *why);

#endif
