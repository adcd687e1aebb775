/* How far something has come, in one line that is written over and over. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "command.h"

#define EVERY_MS 200

struct progress {
    const char *what, *file;
    int64_t whole;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool over;
};

static int64_t size_of(const char *file, const char *behind)
{
    char path[4096];
    struct stat st;

    return snprintf(path, sizeof path, "%s%s", file, behind) < (int)sizeof path && stat(path, &st) == 0
               ? (int64_t)st.st_blocks * 512
               : 0;
}

static void *show(void *arg)
{
    struct progress *p = arg;
    unsigned ticks = 0;

    pthread_mutex_lock(&p->mutex);
    while (!p->over) {
        struct timespec until;
        int64_t n = size_of(p->file, "") + size_of(p->file, ".partial") + size_of(p->file, "-dust/incoming");

        fprintf(stderr, "\r%s: %.1f MB", p->what, (double)n / 1e6);
        if (p->whole > 0) {
            fprintf(stderr, " of %.1f MB (%d %%)", (double)p->whole / 1e6, (int)(n * 100 / p->whole));
        }
        fprintf(stderr, ", %u s ", ticks * EVERY_MS / 1000);
        ticks++;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += EVERY_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&p->cond, &p->mutex, &until);
    }
    pthread_mutex_unlock(&p->mutex);
    fputs("\r\033[K", stderr);
    return NULL;
}

struct progress *progress_begin(const char *what, const char *file, int64_t whole)
{
    struct progress *p = isatty(STDERR_FILENO) ? calloc(1, sizeof *p) : NULL;

    if (p == NULL) {
        return NULL;
    }
    p->what = what;
    p->file = file;
    p->whole = whole;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->cond, NULL);
    if (pthread_create(&p->thread, NULL, show, p) != 0) {
        free(p);
        return NULL;
    }
    return p;
}

void progress_end(struct progress *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&p->mutex);
    p->over = true;
    pthread_cond_signal(&p->cond);
    pthread_mutex_unlock(&p->mutex);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->cond);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}
