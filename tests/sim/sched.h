/* sched - the threads of all machines as coroutines in one thread, on virtual time.
 *
 * A task runs until it waits, sleeps or yields. The scheduler then lets happen what is due, and goes on with one of the
 * tasks that can run, drawn by chance. Time passes a little with each slice; it jumps only when no task can run. */
#ifndef DUST_SIM_SCHED_H
#define DUST_SIM_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/world.h"

struct machine;
struct task;

/* The running task, NULL in an event or outside of sched_run. */
struct task *task_self(void);
struct machine *task_machine(void); /* its machine, or NULL */

/* Begin one on a machine (NULL: on none). It dies with the machine's life. */
struct task *task_spawn(struct machine *m, const char *name, void (*run)(void *arg), void *arg);
bool task_over(const struct task *t);

/* What a client keeps at its task. */
void task_set_note(void *note);
void *task_note(void);

void task_sleep(uint64_t ns);
void task_yield(void);

/* Maybe let others run: something that other threads can see is about to be done. */
void task_point(void);

/* Wait until somebody wakes this key, or until that moment: false. */
bool task_wait(const void *key, uint64_t until_ns);
/* Wake all who wait on this key; or one of them, drawn by chance. */
void task_wake(const void *key);
void task_wake_one(const void *key);

/* Call fn(arg) at that moment, in no task. It must not wait. */
void event_at(uint64_t ns, void (*fn)(void *arg), void *arg);

/* The tasks of a machine's present life are run no more; what they hold of the program's global locks is let go. */
void sched_kill(const struct machine *m);

/* Run until `task` is over or the moment has come: false. */
bool sched_run(const struct task *task, uint64_t until_ns);

#endif
