/* dwell - before the loop sleeps, it looks for the next event a little longer.
 *
 * A lone transaction is a chain of some seven wake-ups in three processes, and where a processor has gone to sleep
 * meanwhile each costs more than the work it wakes for. So after an event of the kind that others follow at once (a
 * transaction handed over, entries, a result) the loop polls instead of sleeping, for at most DWELL_US, and yields the
 * processor in between to whoever wants it.
 *
 * It is given up where it does not pay (a network whose round trip is longer, a member nobody writes on): `worth` goes
 * up when the next event was caught and down when it was not, and at 0 only every PROBE_EVERY-th event is followed by
 * a try. Loop thread only. */
#ifndef DUST_RAFT_DWELL_H
#define DUST_RAFT_DWELL_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#define DWELL_US 300u
#define DWELL_WORTH_MAX 16
#define DWELL_PROBE_EVERY 64

struct dwell {
    uv_idle_t idle; /* active: dwelling; the loop does not sleep then */
    uint64_t since_ns;
    int worth;
    unsigned events;
};

/* Set up on this loop; close before the loop is. */
void dwell_init(struct dwell *d, uv_loop_t *loop);
void dwell_close(struct dwell *d);

/* Such an event has come. */
void dwell_event(struct dwell *d);

#endif
