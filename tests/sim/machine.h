/* machine - a computer with one member on it: its disk, its link to the others, its life (from start to crash). */
#ifndef DUST_SIM_MACHINE_H
#define DUST_SIM_MACHINE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/files.h"
#include "tests/sim/ondisk.h"
#include "tests/sim/world.h"

struct machine {
    unsigned number;    /* from 1 */
    char path[32];      /* of its database: /sim/N/app.db */
    char address[32];   /* of its member */
    bool up;            /* its process runs */
    unsigned life;      /* counts the starts of the process */
    uint64_t paused_ns; /* stopped until then, as by SIGSTOP */
    uint64_t started_ns;
    bool member;      /* it has been taken in, and not been removed since */
    bool open;        /* its member is up */
    bool wiped;       /* it has to join again */
    bool leaving;     /* its member is being removed, or was: what it has then is as of then */
    uint64_t id;      /* its member's */
    unsigned slow;    /* its disk is so many times slower; 1: as it should be */
    unsigned failing; /* its disk's writes fail, of 10,000 */
    uint64_t late_ns; /* its timers fire late by up to this */
    bool cached_only; /* its file system knows no O_DIRECT */
    struct files files;
    struct ondisk ondisk;

    /* for the checks */
    uint64_t acked_at_start; /* what had been acknowledged when this life began */
    uint64_t seen_n;         /* the newest state that a read of this life has returned */
    uint64_t position;       /* of its agreed version in the history */
};

extern struct machine machines[MACHINES_MAX + 1]; /* from 1 */
extern unsigned n_machines;

struct machine *machine_of_path(const char *path); /* "/sim/N/…"; NULL: not such a path */

/* Set up n machines without a member. */
void machines_init(unsigned n);

/* Start the process: it brings its member up (or joins the others' cluster, if it has none), then its clients work. */
void machine_start(struct machine *m);

/* Begin a cluster on this machine, with the tables in it. */
void machine_found(struct machine *m);

/* The process ends at once, without a word; or the power fails. */
void machine_crash(struct machine *m, bool power);

/* Forget all that is on the disk: it will join as a new member. */
void machine_wipe(struct machine *m);

/* Where its member is: its agreed version's place in the history, 0 if that is not known. */
uint64_t machine_position(const struct machine *m);
bool machine_is_removed(const struct machine *m); /* its member has heard that it is none any more */
bool machine_leads(const struct machine *m);

/* By seed. */
struct machine_habits {
    unsigned clients;
    unsigned election_ms, timeout_ms;
    bool keyed; /* the cluster has a key: set before anything is set up */
};
extern struct machine_habits machine_habits;

#endif
