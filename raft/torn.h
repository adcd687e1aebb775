/* torn - a segment of the log whose first write a power loss cut off. Why and when: torn.c. */
#ifndef DUST_RAFT_TORN_H
#define DUST_RAFT_TORN_H

#include "vfs/err.h"

/* Empty the last open segment in the folder `dir` of the log, if its first write is on disk in part, without its
 * beginning. To be called before libraft loads. DUST_OK, also if nothing was to be done; DUST_IO, DUST_NOMEM. Reads
 * the disk; any thread, with nobody else at work in the folder. */
int torn_mend(const char *dir, struct err *e);

#endif
