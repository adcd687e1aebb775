/* servers - the configuration of a cluster as libraft writes it into its log (raft_configuration_encode).
 *
 * Format: version (1) 1, number of servers 8; of each: id 8, address with its NUL, role 1; and up to 7 bytes that fill it up
 * to a multiple of 8. Little-endian. */
#ifndef DUST_RAFT_SERVERS_H
#define DUST_RAFT_SERVERS_H

#include <raft.h>
#include <stddef.h>

#include "vfs/err.h"

/* As raft_configuration_encode, with zeros where that leaves the bytes of the end as they happen to be. DUST_NOMEM. */
int servers_encode(const struct raft_configuration *c, struct raft_buffer *out);

/* Read one of any origin into *out, which the caller closes when DUST_OK is returned. Otherwise there is nothing in it.
 * DUST_VERSION: of a form not known here; DUST_CORRUPT, DUST_NOMEM. Any thread. */
int servers_decode(const void *data, size_t len, struct raft_configuration *out);

#endif
