/* net - the connections between the machines: nanomsg's calls over a simulated network. */
#ifndef DUST_SIM_NET_H
#define DUST_SIM_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct machine;
struct loop;

struct net_weather {
    uint64_t delay_min_ns, delay_max_ns; /* of a message */
    unsigned reset;                      /* with a message, of 10,000: its connection breaks */
    size_t buffer;                       /* bytes under way that a connection takes */
};
extern struct net_weather net_weather;

/* Nothing goes from a to b any more; what is under way waits. Or: it does again. */
void net_cut(unsigned a, unsigned b, bool cut);
void net_heal_all(void);

/* The connections from a to b break; what is under way is lost, most of the time. */
void net_reset(unsigned a, unsigned b);

/* The machine's process has ended (power: without a word to the others). */
void net_machine_down(struct machine *m, bool power);

/* For loop.c: what a descriptor of nanomsg's has to say, and whom it tells of a change. */
bool net_readable(int fd);
void net_watch(int fd, struct loop *loop);

#endif
