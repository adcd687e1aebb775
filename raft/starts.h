/* starts - how often each member has been started: how a copy, or an old backup, of a member's folder is told from the
 * member itself.
 *
 * Two processes with one identity vote twice, and a member put back from an old copy has forgotten what it had promised.
 * Each member counts its starts in the file `member`, before it says a word; every message carries the number and a
 * nonce of that start. Who hears a member remembers the highest number, and the nonce, in its own `member` file:
 *
 *     a higher number         the member has been started again
 *     the same, same nonce    the same start
 *     the same, other nonce   two folders that are copies of one another: the one heard first stays
 *     a lower number          an older copy, though a newer one was here
 *
 * The last two are not listened to, and are told so (NOTE_COPY), upon which they stop.
 *
 * A follower is heard by nobody but the leader. So the leader's beacon says which start it has heard of each member
 * (roster.h): all remember it too, and who knows of a newer one tells the member itself. A beacon may be late, and the
 * start that it names over since: so NOTE_COPY says which start is known, and whoever is that one goes on.
 *
 * A copy made at rest before the last start, and put back, takes the number of that one: the nonce tells. A copy made
 * during the last start, and put back with none in between, has the right number; but the leader knows how
 * far that member's log had come (its line of the roster), and a log that ends before is one that has lost what it had.
 *
 * What cannot be seen: a copy put back while nobody who knows more is up. Pure functions; loop thread. */
#ifndef DUST_RAFT_STARTS_H
#define DUST_RAFT_STARTS_H

#include "raft/member.h"

struct starts {
    struct {
        uint64_t id;
        uint64_t boot; /* the number of the start, and below it 32 bits of nonce; 0: not known */
        uint32_t number;
    } line[MEMBER_SEEN_MAX];
    unsigned n;
};

enum starts_verdict {
    STARTS_KNOWN, /* go on */
    STARTS_NEW,   /* go on, and remember it: starts_save */
    STARTS_COPY   /* do not listen: another folder of this member has been started since, or is running */
};

#define STARTS_BOOT(number, nonce) ((uint64_t)(number) << 32 | (uint32_t)(nonce))
#define STARTS_OF(boot) ((uint32_t)((boot) >> 32)) /* the number */
#define STARTS_NONCE(boot) ((uint32_t)(boot))      /* never 0 */

/* What the file `member` remembers. */
void starts_load(struct starts *s, const struct member *m);
void starts_save(const struct starts *s, struct member *m);

/* Member `id` is, or has been, at the start `boot`. *known, with STARTS_COPY only: the start that it is not; its nonce is
 * 0 if that is not known. */
enum starts_verdict starts_judge(struct starts *s, uint64_t id, uint64_t boot, uint64_t *known);

/* The newest start of member `id` that was heard of, with its nonce; 0: none. */
uint64_t starts_known(const struct starts *s, uint64_t id);

/* Somebody knows of the start `known` of this member, which is at the start `own`: is that another one's, so that this
 * is the copy? */
bool starts_is_copy(uint64_t own, uint64_t known);

#endif
