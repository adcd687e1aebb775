/* roster - how the members are, as the leader hears them, told to all with every beacon: a follower hears nobody else.
 *
 * How they are is for people who look (dust_members), and nothing is decided by it. Which start each is at is for all to
 * remember (starts.h). Loop thread only. */
#ifndef DUST_RAFT_ROSTER_H
#define DUST_RAFT_ROSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ROSTER_MAX 32
#define ROSTER_LINE_SIZE 32 /* id, match index, milliseconds since heard (all ones: unknown), boot; little-endian each */

struct roster_line {
    uint64_t id;
    uint64_t match_index; /* its log equals the leader's up to here */
    int64_t heard_ms;     /* how long it had been silent when the beacon left, -1: unknown */
    uint64_t boot;        /* its newest start that the leader has heard, 0: none */
};

struct roster {
    uint64_t at_ms; /* when the beacon arrived */
    unsigned n;
    struct roster_line line[ROSTER_MAX];
};

/* Write the lines into out, which has room for n * ROSTER_LINE_SIZE bytes. */
void roster_encode(const struct roster_line *line, unsigned n, uint8_t *out);

/* Take over what a beacon that arrived at now_ms brought. False, and nothing taken, if it is none. */
bool roster_decode(struct roster *r, const uint8_t *data, size_t len, uint64_t now_ms);

/* What the leader said of this member, NULL if nothing. */
const struct roster_line *roster_find(const struct roster *r, uint64_t id);

#endif
