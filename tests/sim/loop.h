/* loop - libuv's event loop in the simulation. */
#ifndef DUST_SIM_LOOP_H
#define DUST_SIM_LOOP_H

#include <stdint.h>

struct loop;
struct loop_timer;
struct uv_loop_s;

struct loop *loop_of(struct uv_loop_s *uv);

/* Something has happened that the loop should look at. Any thread, or an event. */
void loop_wake(struct loop *l);

/* Call fn(arg) on the loop's thread, in its next turn. Any thread, or an event. */
void loop_post(struct loop *l, void (*fn)(void *arg), void *arg);

/* Something keeps the loop going that is no handle (+1), or does no more (-1). */
void loop_hold(struct loop *l, int n);

/* Call fn(arg) on the loop's thread every so often. */
struct loop_timer *loop_every(struct loop *l, uint64_t ms, void (*fn)(void *arg), void *arg);
void loop_timer_stop(struct loop_timer *t);

/* Run fn(arg) on a thread of its own, then done(arg) on the loop's. */
void loop_work(struct loop *l, void (*fn)(void *arg), void (*done)(void *arg), void *arg);

uint64_t loop_now_ms(const struct loop *l);

#endif
