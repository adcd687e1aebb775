/* starts - how often each member has been started: how a copy, or an old backup, of a member's folder is told from the
 * member itself.
 *
 * Two processes with one identity vote twice, and a member put back from an old copy has forgotten what it had promised.
 * Each member counts its starts in the file `member`, before it says a word; every message carries the number and a
 * nonce of that start. Who hears a member remembers the highest number, in its own `member` file:
 *
 *     a higher number         the member has been started again
 *     the same, same nonce    the same start
 *     the same, other nonce   two folders that are copies of one another: the one heard first stays
 *     a lower number          an older copy, though a newer one was here
 *
 * The last two are not listened to, and are told so (NOTE_COPY), upon which they stop. A copy made during the last
 * start, and put back with none in between, has the right number; but the leader knows how far that member's log had
 * come (its line of the roster), and a log that ends before is one that has lost what it had.
 *
 * What cannot be seen: a copy put back while nobody who knows more is up. Pure functions; loop thread. */
#ifndef DUST_RAFT_STARTS_H
#define DUST_RAFT_STARTS_H

#include "raft/member.h"

struct starts {
    struct {
        uint64_t id;
        uint64_t boot; /* the number of the start, and below it 32 bits of nonce; 0: the nonce is not known */
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

/* What the file `member` remembers. */
void starts_load(struct starts *s, const struct member *m);
void starts_save(const struct starts *s, struct member *m);

/* A message of member `id`, sent in the start `boot`. *highest: the number of the newest start known. */
enum starts_verdict starts_judge(struct starts *s, uint64_t id, uint64_t boot, uint32_t *highest);

#endif
