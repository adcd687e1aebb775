#include "tests/sim/jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct job {
    pid_t pid; /* 0: free */
    uint64_t seed;
    void *result;
};

static void begin(const struct jobs *j, struct job *job, uint64_t seed)
{
    memset(job->result, 0, j->result_size);
    job->seed = seed;
    fflush(NULL);
    job->pid = fork();
    if (job->pid < 0) {
        perror(j->program);
        exit(2);
    }
    if (job->pid == 0) {
        alarm(j->seconds);
        j->run(j->ctx, seed, job->result);
        _exit(3);
    }
}

void jobs_run(const struct jobs *j)
{
    uint64_t seed = j->seed_from, end = j->seed_from + j->n_seeds;
    size_t bytes = j->at_once * j->result_size;
    struct job jobs[JOBS_MAX] = {0};
    uint8_t *results = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned i, n_running = 0;

    if (results == MAP_FAILED) {
        perror(j->program);
        exit(2);
    }
    for (i = 0; i < j->at_once; i++) {
        jobs[i].result = results + i * j->result_size;
    }
    while (seed < end || n_running > 0) {
        int status;
        pid_t pid;

        for (i = 0; i < j->at_once && seed < end; i++) {
            if (jobs[i].pid == 0) {
                begin(j, &jobs[i], seed++);
                n_running++;
            }
        }
        pid = waitpid(-1, &status, 0);
        for (i = 0; i < j->at_once; i++) {
            if (pid > 0 && jobs[i].pid == pid) {
                jobs[i].pid = 0;
                n_running--;
                if (!j->ended(j->ctx, jobs[i].seed, jobs[i].result, status)) {
                    end = seed;
                }
            }
        }
    }
    munmap(results, bytes);
}
