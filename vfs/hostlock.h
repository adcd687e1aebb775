/* hostlock - which process of this machine hosts a member: whoever has the lock on app.db-dust/host.
 *
 * It is a POSIX record lock: the kernel lets it go when the process ends, however that comes about; a forked child does
 * not have it; and it is lost when the process closes any descriptor of the file. So each process has one descriptor of
 * it per member, and keeps it. */
#ifndef DUST_VFS_HOSTLOCK_H
#define DUST_VFS_HOSTLOCK_H

#include "vfs/err.h"

struct hostlock {
    int fd; /* -1: not open */
};

/* Open the file in the member's folder `dir`, made 0600 when absent. No lock is taken. DUST_IO, DUST_FULL. */
int hostlock_open(struct hostlock *l, const char *dir, struct err *e);

/* Take the lock, or say at once that another process has it: DUST_BUSY, with a text naming it. A process that has it
 * already gets it again. */
int hostlock_take(struct hostlock *l, const char *dir, struct err *e);

/* Let go of the lock, and keep the file open. */
void hostlock_drop(struct hostlock *l);

/* The process that has the lock; 0: none, or this one. */
long hostlock_holder(const struct hostlock *l);

/* Let go of both. Harmless when called again. */
void hostlock_close(struct hostlock *l);

/* "process 4711 (python3)", of any process. Returns buf. */
const char *process_name(long pid, char *buf, unsigned size);

#endif
