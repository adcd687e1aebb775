/* snapshot - the snapshot that a member's log stands on, as it lies on disk: the file `snapshot` in the log's folder. What
 * is in it is small (descriptor.h): the content of the database is in app.db.
 *
 * Format, little-endian: "dustsnap" 8, index 8, term 8, index of the configuration 8, its length 4, length of the content 4,
 * the configuration (servers.h), the content, and the BLAKE2b-128 of all that, keyed with the log's key, 16. A file that
 * is not there is no snapshot. It is replaced as a whole (smallfile.h). */
#ifndef DUST_RAFT_SNAPSHOT_H
#define DUST_RAFT_SNAPSHOT_H

#include <raft.h>
#include <stdbool.h>

#include "raft/batch.h"
#include "vfs/err.h"

#define SNAPSHOT_FILE_MAX ((size_t)64 << 10)

/* Write it, durably. DUST_OK; DUST_IO, DUST_FULL, DUST_NOMEM: the one before is there, or this one; DUST_TOOBIG. Blocking;
 * any thread, one at a time. */
int snapshot_save(const char *dir, const uint8_t key[BATCH_KEY_SIZE], const struct raft_snapshot *s, struct err *e);

/* Read it. *out: raft_malloc'ed, all of it, for snapshot_free or libraft; or NULL: there is none. DUST_OK; DUST_CORRUPT,
 * DUST_IO, DUST_NOMEM. Blocking. */
int snapshot_load(struct raft_snapshot **out, const char *dir, const uint8_t key[BATCH_KEY_SIZE], struct err *e);

/* Is there one, whole or not? DUST_OK; DUST_IO, DUST_NOMEM: that cannot be told. Blocking. */
int snapshot_exists(const char *dir, bool *exists, struct err *e);

void snapshot_free(struct raft_snapshot *s); /* NULL is fine */

/* Read what a file holds, of any origin, into *out, as above. DUST_CORRUPT, DUST_VERSION, DUST_NOMEM. Pure. */
int snapshot_decode(struct raft_snapshot **out, const uint8_t *data, size_t len, const uint8_t key[BATCH_KEY_SIZE]);

#endif
