/* faults - what goes wrong in a run, and when; and the end of it, when all has to be well again. */
#ifndef DUST_SIM_FAULTS_H
#define DUST_SIM_FAULTS_H

#include <stdbool.h>

struct machine;

/* Draw how this seed's world is: which faults there are, how busy the clients. */
void faults_vary(void);

/* The whole run, to be called in a task of no machine: bad times, then healing, then the checks. Does not return. */
void faults_run(void *arg);

/* A checkpoint begins on this machine. */
void faults_fold(struct machine *m);

/* A synchronous write begins on it; the first one to a file of the log, maybe one that is used again. */
void faults_write(struct machine *m, bool first);

#endif
