/* A leader whose process has ended is not waited for.
 *
 * A follower campaigns when it has heard nothing for an election timeout (Raft, section 5.2): a leader that is silent may be
 * slow. But when a process ends, its connections do, and where nobody listens no new one is made: that tells more than
 * silence. So a follower that has no connection to its leader, and has heard nothing from it for lost_quiet_ms(), takes
 * its election timeout for over, and campaigns: the voter with the lowest id at once, the others one after the other some
 * tens of milliseconds later, for all find out at the same time, and who campaigns at the same time splits the votes.
 *
 *   hearing ──no connection, and quiet──▶ lost ──when it is its turn──▶ candidate (libraft)
 *      ▲──────a connection, or a word──────┘
 *
 * Nothing rests on when a member campaigns. Who is asked for a vote says yes only if its own election timeout is over, by
 * the same clock (guard_recv.c, leader_lost), and the first question is one that changes nothing (pre-vote): so a member
 * that wrongly believes its leader lost deposes nobody, and follows it again at its next heartbeat.
 *
 * Failure cases, and what holds then:
 *   - A connection breaks, and the leader lives: it is made again within some 20 ms, and what the leader sends comes on
 *     another one, of its own.
 *   - The leader's machine goes without a word, or a network drops what it should carry: connections stay, as far as TCP
 *     knows, and the election timeout decides as before.
 *   - Another process takes the member over (docs/PROCESSES.md): it comes back as a follower, as after any restart. */
#include "raft/node_impl.h"

#define QUIET_HEARTBEATS 2u
#define STAGGER 2u /* parts of a heartbeat between one and the next */

uint64_t lost_quiet_ms(const struct node *n)
{
    return QUIET_HEARTBEATS * n->raft.heartbeat_timeout;
}

static bool is_lost(const struct node *n)
{
    const char *address = NULL;
    raft_id leader = node_leader(n, &address);
    int64_t heard;

    if (n->raft.state != RAFT_FOLLOWER || leader == 0 || leader == n->self.id ||
        peers_connected(n->peers, address)) {
        return false;
    }
    heard = peers_last_heard_ms(n->peers, address);
    return heard >= 0 && (uint64_t)heard >= lost_quiet_ms(n);
}

/* How many voters campaign before this one. */
static unsigned rank(const struct node *n, raft_id leader)
{
    unsigned before = 0;

    for (unsigned i = 0; i < n->raft.configuration.n; i++) {
        const struct raft_server *s = &n->raft.configuration.servers[i];

        before += s->role == RAFT_VOTER && s->id < n->self.id && s->id != leader;
    }
    return before;
}

void lost_tick(struct node *n)
{
    struct raft *r = &n->raft;

    if (!is_lost(n)) {
        n->leader_lost = false;
        return;
    }
    if (!n->leader_lost) {
        unsigned later = rank(n, node_leader(n, NULL)) * r->heartbeat_timeout / STAGGER;

        n->leader_lost = true;
        r->follower_state.randomized_election_timeout = r->election_timeout + later;
        r->election_timer_start = r->io->time(r->io) - r->election_timeout;
    }
    if (r->io->time(r->io) - r->election_timer_start >= r->follower_state.randomized_election_timeout) {
        io_elapse(n);
    }
}
