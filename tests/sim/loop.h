/* loop - libuv's event loop in the simulation. */
#ifndef DUST_SIM_LOOP_H
#define DUST_SIM_LOOP_H

struct loop;

/* Something has happened that the loop should look at. Any thread, or an event. */
void loop_wake(struct loop *l);

#endif
