/* inside - what we look at inside `struct raft`, which has no accessor for it.
 *
 * canonical's libraft 0.15 keeps its log as a ring of entries within the struct, whose fields are public. Nothing here
 * changes anything. Loop thread only (the one that calls libraft); nothing is owned, nothing allocated; what is
 * returned is valid until the next call into libraft. */
#ifndef DUST_RAFT_INSIDE_H
#define DUST_RAFT_INSIDE_H

#include <raft.h>
#include <stdbool.h>

#ifdef RAFT_VERSION_NUMBER
#error "this is cowsql's raft, which hides its log; dust needs canonical's libraft 0.15 (Debian: libraft-dev)"
#endif

/* The last index of the log in memory, whether on disk or not. */
raft_index inside_last_index(const struct raft *r);

/* All up to here has been cut off, and is covered by the snapshot: it is not beyond inside_snapshot_index. */
raft_index inside_offset(const struct raft *r);

/* The last index and its term that the last snapshot covers, 0 if there is none. */
raft_index inside_snapshot_index(const struct raft *r);
raft_term inside_snapshot_term(const struct raft *r);

/* The entry at this index, NULL if it is not in memory (cut off, covered by a snapshot only, or not there yet). */
const struct raft_entry *inside_entry(const struct raft *r, raft_index index);

/* The term of the entry at this index, 0 if it is not known. The last index of the snapshot is known. */
raft_term inside_term(const struct raft *r, raft_index index);

/* Whether the log has this entry. A term of 0 is that of no entry. */
bool inside_has(const struct raft *r, raft_index index, raft_term term);

/* Whether a configuration entry is in the log at `from` or beyond. */
bool inside_has_change(const struct raft *r, raft_index from);

/* Whether libraft is taking or storing a snapshot, asynchronous work (of which raft_io sees nothing) included. */
bool inside_taking_snapshot(const struct raft *r);

/* The member with this id in the configuration in force, NULL if it is not one. */
struct raft_server *inside_server(const struct raft *r, raft_id id);

/* Whether libraft would make itself leader without asking anybody. */
bool inside_sole_voter(const struct raft *r);

/* As leader: up to where the log of the i-th server of the configuration is known to equal ours. */
raft_index inside_match(const struct raft *r, unsigned i);

/* Whether the leader sends to this server one message a heartbeat only, without counting on it. */
bool inside_probing(const struct raft *r, raft_id id);

#endif
