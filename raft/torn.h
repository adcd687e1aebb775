/* torn - files of libraft's whose first write a power loss cut off. Why and when: torn.c. */
#ifndef DUST_RAFT_TORN_H
#define DUST_RAFT_TORN_H

#include "vfs/err.h"

/* In the folder `dir` of the log: empty the last open segment, if its first write is on disk in part, without its
 * beginning; remove a metadata file that never got its content. To be called before raft_init(). DUST_OK, also if
 * nothing was to be done; DUST_IO, DUST_NOMEM. Reads the disk; any thread, with nobody else at work in the folder. */
int torn_mend(const char *dir, struct err *e);

#endif
