/* jobs - one seed after another, each in a child process, so that a crash is one seed's result; several at a time. */
#ifndef DUST_SIM_JOBS_H
#define DUST_SIM_JOBS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JOBS_MAX 64

struct jobs {
    const char *program; /* for messages */
    uint64_t seed_from, n_seeds;
    unsigned at_once;    /* at most JOBS_MAX */
    unsigned seconds;    /* of real time, after which SIGALRM ends a child */
    size_t result_size;
    /* In the child, which has to end in it. *result is zeroed, and the parent sees it. */
    void (*run)(void *ctx, uint64_t seed, void *result);
    /* A child has ended; status is waitpid's. False: begin no more. */
    bool (*ended)(void *ctx, uint64_t seed, void *result, int status);
    void *ctx;
};

/* Returns when all have ended. Ends the process (2) where there are no processes or memory to be had. */
void jobs_run(const struct jobs *j);

#endif
