/* segments - how far the log in libraft's files goes, read without changing them.
 *
 * libraft's own storage cuts and renames open segments as it loads them; what does not fit a checksum is gone then, with
 * all that follows. Whether that may be is to be known before (promise.h).
 *
 * Format, of libraft 0.15 (all little-endian): a closed segment is called FIRST-LAST, 16 digits each; a snapshot
 * snapshot-TERM-INDEX-TIME.meta. An open segment, open-N, is 8 bytes of format (1; 0: never used), then batches: CRC of
 * the header 4, CRC of the data 4, header (number of entries 8; for each: term 8, type 1, unused 3, size 4), data. The
 * CRC has the polynomial 0x04c11db7, the most significant bit first, beginning with 0. */
#ifndef DUST_RAFT_SEGMENTS_H
#define DUST_RAFT_SEGMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vfs/err.h"

/* An open segment, whole: how many entries are in its whole batches, and whether anything but zeros follows. False: it is
 * of a format not known here. Pure. */
bool segments_decode(const uint8_t *data, size_t len, uint64_t *count, bool *broken);

/* The last index of what can be read: whole batches of open segments, closed segments by their names, or the snapshot;
 * 0 if there is nothing. dir: the folder of libraft's files. DUST_OK; DUST_VERSION: it is of a format not known here, and
 * left to libraft to judge; DUST_IO, DUST_NOMEM. Any thread; reads the disk. */
int segments_last(const char *dir, uint64_t *last, struct err *e);

/* Has the log been cut at `index`, which was being asked for, nothing being written meanwhile: does no closed segment reach
 * there, and is no open one in use? If so, the folder has been flushed. DUST_IO. Any thread. */
int segments_truncated(const char *dir, uint64_t index, bool *done, struct err *e);

/* libraft cuts its log by writing the last segment anew, shorter, and removing the longer one and those behind it, one after
 * the other. If a power loss cuts that short, it may refuse what is left. So if a closed segment ends at `promised`, which was
 * noted and flushed before (promise.h), and what is beyond begins behind a gap, or where that segment does, it is removed.
 * DUST_IO, DUST_NOMEM. Before libraft. */
int segments_mend(const char *dir, uint64_t promised, struct err *e);

#endif
