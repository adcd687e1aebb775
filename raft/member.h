/* member - who a member is: its addresses, and the file app.db-dust/member that remembers them. The format of
 * the file stands in member.c. */
#ifndef DUST_RAFT_MEMBER_H
#define DUST_RAFT_MEMBER_H

#include "vfs/err.h"
#include "vfs/vid.h"
#include <stdbool.h>
#include <stdint.h>

#define ADDRESS_TEXT_MAX 64 /* bytes of an address in text form, NUL included */

/* Where a member listens: a numeric IP address and a TCP port. */
struct address {
    char text[ADDRESS_TEXT_MAX]; /* "10.0.0.1:4001", "[::1]:4001": canonical, so compare it as text */
    bool is_v6;
    uint8_t ip[16]; /* network order; the first 4 bytes if not is_v6, and zeros then */
    uint16_t port;  /* 0: any free one */
};

/* Read "IPv4:port", "[IPv6]:port" or "localhost:port" (127.0.0.1). Names are refused: one cannot listen on
 * them, and what they mean may change. DUST_OK; DUST_MISUSE, with a text that quotes what was given and says
 * what is expected, and *out is untouched. Any thread. */
int address_parse(const char *text, struct address *out, struct err *e);

/* Write a->text, of the rest. Any thread. */
void address_set_text(struct address *a);

/* Can it be reached from this host only? (127.0.0.0/8, ::1, ::ffff:127.0.0.0/104) Any thread. */
bool address_is_loopback(const struct address *a);

/* Does it mean every interface (0.0.0.0, ::)? Good to listen on, of no use to tell others. Any thread. */
bool address_is_any(const struct address *a);

enum member_role { MEMBER_VOTER, MEMBER_STANDBY };

#define MEMBER_SEEN_MAX 32 /* other members whose starts are remembered */

/* What app.db-dust/member holds. */
struct member {
    struct vid cluster;             /* not vid_none */
    uint64_t id;                    /* of this member in the cluster, from 1 */
    char address[ADDRESS_TEXT_MAX]; /* where the others reach it; canonical, port not 0 */
    char bind[ADDRESS_TEXT_MAX];    /* where it listens; canonical */
    uint32_t page_size;             /* of the database, bytes: a power of two, 512 to 65536 */
    enum member_role role; /* as it was asked for at the start; the cluster's configuration is what counts */
    uint64_t promotion;    /* it is still to become the voter that it joined as, once it has applied this; 0: not so */
    uint32_t starts;         /* how often it has been started; 0: by a dust that did not count */
    unsigned n_seen;         /* at most MEMBER_SEEN_MAX */
    struct {
        uint64_t id;
        uint32_t starts;
        uint32_t nonce; /* 0: not known */
    } seen[MEMBER_SEEN_MAX]; /* the newest start heard of each other member (starts.h) */
    bool refused; /* the others said that this folder is a copy, or an older state, of the member: it is not started again */
    struct vid file_version; /* app.db holds this version; vid_none: not said */
    uint64_t file_index;     /* of the log entry that made file_version; 0: by none, or not said */
    struct vid prior_version; /* … or still this one, of an earlier note; vid_none: not said */
    uint64_t prior_index;
};

/* Read dir/member. DUST_OK; DUST_NOTFOUND: there is none; DUST_VERSION: a newer dust wrote it; DUST_CORRUPT:
 * cut short or damaged; DUST_IO, DUST_NOMEM. The texts name the file and say what to do. On failure *out is
 * untouched. Any thread; reads the disk. */
int member_load(const char *dir, struct member *out, struct err *e);

/* Write dir/member, durably, and so that a crash leaves the old one or the new one; mode 0600. The directory
 * must exist. DUST_OK; DUST_MISUSE: a value that member_load would not accept; DUST_IO, DUST_FULL,
 * DUST_NOMEM: the old one is still there (or the new one already, if only the folder could not be flushed).
 * Any thread, but one at a time for one directory; writes and flushes the disk. */
int member_save(const char *dir, const struct member *m, struct err *e);

#endif
