/* salvage - what one member's folder holds, without its cluster: for when a majority is lost for good.
 *
 * Nothing runs: no thread, no peers, no election. The log is read, and every transaction in it is put into effect by the
 * one rule on top of app.db, agreed or not; for whoever could tell which of the last ones were is gone. */
#ifndef DUST_RAFT_SALVAGE_H
#define DUST_RAFT_SALVAGE_H

#include "raft/member.h"
#include "vfs/database.h"

#define SALVAGE_OTHERS_MAX 32

struct salvage {
    uint64_t entries;      /* of the log that were put into effect beyond app.db */
    struct head_info head; /* what the page store is at now */
    uint64_t last_index, last_term; /* of the log: of several members, the one with the highest term, then index, has most */
    unsigned voters;       /* in the configuration that the log ends with */
    bool is_voter;         /* this member is one */
    bool unreadable;       /* the log, or a part of it */
    unsigned n_others;
    char others[SALVAGE_OTHERS_MAX][ADDRESS_TEXT_MAX]; /* the addresses of the other voters */
};

/* Read the log of the member whose database is open and laid out, and put it into effect in db's page store. Its folder
 * is changed as by a start. forgiving: of a log that is damaged, what is before the damage will do. Blocking. DUST_CORRUPT,
 * DUST_IO, DUST_NOMEM, …: with what is wrong; if out->unreadable is set, nothing has been put into effect. */
int salvage_run(struct database *db, const struct member *self, bool forgiving, struct salvage *out, struct err *e);

#endif
