/* crew - threads for work that may wait: made when there is something to do and nobody idle, gone when idle for a while. */
#ifndef DUST_VFS_CREW_H
#define DUST_VFS_CREW_H

#include <pthread.h>
#include <stdbool.h>

#define CREW_MAX 128u       /* threads */
#define CREW_IDLE_MS 10000u

struct crew_job {
    struct crew_job *next;
    void (*run)(struct crew_job *job); /* the job is its own from then on */
};

struct crew {
    pthread_mutex_t mutex;
    pthread_cond_t work, over;
    struct crew_job *first, **last;
    unsigned threads, idle;
    bool closing;
};

void crew_init(struct crew *c);

/* Have it run. False: no thread could be made, or all are taken, or the crew is being closed; the job is the caller's. */
bool crew_run(struct crew *c, struct crew_job *job);

/* Wait until all that was begun is done. What is not begun yet is run as well. */
void crew_close(struct crew *c);

#endif
