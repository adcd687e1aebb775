/* link - the messages between an attached process and the host of its member, over a UNIX socket (docs/PROCESSES.md).
 *
 * Every connection begins with LINK_HELLO, answered by LINK_WELCOME. The first of a process, which it keeps, says owner 0
 * and is given a number; those of its SQLite connections say that number. Attached to a new
 * host, a process says the number that it had before, and whether it has the write turn from then. On each, one request
 * at a time: its answer
 * carries its number, so that the late answer to one that was given up is known as such.
 *
 *     HELLO     version 4, owner 4, owner before 4, 1    ▶ WELCOME  owner 4, mark 8, origin 8, page size 4; or REPLY
 *     TURN      wait_ms 4, lease_ms 4, slot 4 (~0: none) ▶ REPLY    (DUST_OK: it is yours)
 *     RELEASE   the turn, or the place in the queue; 1: 1: that of an earlier host, which is being kept
 *                                                          no answer
 *     KEEP      the turn: prolong                          no answer
 *     COMMIT    slot 4, parts 4, flags 1, parent 16, id 16; then a PART for each
 *                                                        ▶ DONE     code 4, seq 8, pages 4, after 8, text
 *     ABANDON   the outcome of a COMMIT                    no answer
 *     CONFIRM   level 4, freshness_ms 4, wait_ms 4       ▶ REPLY
 *     AGREED    seq 8, wait_ms 4, id 16                  ▶ REPLY    (seq 0: the version of this id, maybe yet to come)
 *     DAMAGE    page 4, where 1 (0: app.db, 1: pages)      no answer
 *     CALL      a function or table: call.h of ext/      ▶ ROWS, any number of them; or REPLY
 *     REPLY     code 4, text
 *
 * A message is: length of its body 4, type 1, zeros 3, number 4, body. All little-endian. What comes is checked before it
 * is believed; a message that cannot be ends the connection. */
#ifndef DUST_VFS_LINK_H
#define DUST_VFS_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "vfs/err.h"
#include "vfs/vid.h"

#define LINK_VERSION 1u
#define LINK_HEAD 12u
#define LINK_BODY_MAX (1u << 20) /* bytes */

enum link_type {
    LINK_HELLO = 1,
    LINK_WELCOME,
    LINK_TURN,
    LINK_RELEASE,
    LINK_KEEP,
    LINK_COMMIT,
    LINK_PART,
    LINK_DONE,
    LINK_ABANDON,
    LINK_CONFIRM,
    LINK_AGREED,
    LINK_DAMAGE,
    LINK_CALL,
    LINK_ROWS,
    LINK_REPLY,
    LINK_N_TYPES
};

struct link_msg {
    uint8_t type;
    uint32_t number;
    const uint8_t *body; /* within the buffer it was read from */
    uint32_t len;
};

/* What is at the beginning of a buffer: bytes used by one message; 0: more bytes are needed; negative: no message. */
long link_parse(const uint8_t *buf, size_t n, struct link_msg *out);

/* The LINK_HEAD bytes before a body of `len` bytes. */
void link_head(uint8_t out[LINK_HEAD], uint8_t type, uint32_t number, uint32_t len);

/* ---- bodies ---- */

struct pack { /* into memory of the caller's; `bad` once something did not fit */
    uint8_t *p;
    size_t n, room;
    bool bad;
};
struct unpack { /* `bad` once something was not there; numbers are then 0 */
    const uint8_t *p;
    size_t left;
    bool bad;
};

static inline void pack_bytes(struct pack *k, const void *p, size_t n)
{
    if (k->bad || n > k->room - k->n) {
        k->bad = true;
    } else if (n != 0) {
        memcpy(k->p + k->n, p, n);
        k->n += n;
    }
}

static inline void pack_uint(struct pack *k, uint64_t v, unsigned size)
{
    uint8_t b[8];

    for (unsigned i = 0; i < size; i++) {
        b[i] = (uint8_t)(v >> (8 * i));
    }
    pack_bytes(k, b, size);
}

static inline const void *unpack_bytes(struct unpack *k, size_t n)
{
    const void *p = k->p;

    if (k->bad || n > k->left) {
        k->bad = true;
        return NULL;
    }
    k->p += n;
    k->left -= n;
    return p;
}

static inline uint64_t unpack_uint(struct unpack *k, unsigned size)
{
    const uint8_t *b = unpack_bytes(k, size);
    uint64_t v = 0;

    for (unsigned i = size; b != NULL && i-- > 0;) {
        v = v << 8 | b[i];
    }
    return v;
}

struct link_commit {
    uint32_t slot, n_parts;
    bool again; /* flag 1: it has been sent to an earlier host already */
    bool turn;  /* flag 2: it ends the turn that is kept for this process */
    struct vid parent, id;
};
struct link_done {
    int code;
    uint64_t seq, after;
    uint32_t n_pages;
    const char *text; /* not NUL-terminated */
    size_t text_len;
};

/* False: it cannot be such a body. */
bool link_get_commit(const struct link_msg *m, struct link_commit *out);
bool link_get_done(const struct link_msg *m, struct link_done *out);
bool link_get_reply(const struct link_msg *m, struct err *out); /* out->code DUST_OK: all is well */

/* ---- the socket ---- */

/* Listen on, or connect to, the socket in a member's folder. *fd is non-blocking and closed on exec. An older socket of
 * that name is removed. link_connect: DUST_NOTFOUND when nobody listens; link_listen: DUST_IO, DUST_FULL, DUST_MISUSE. */
int link_listen(int *fd, const char *dir, struct err *e);
int link_connect(int *fd, const char *dir, struct err *e);

/* Remove the socket's name, before the lock is given up. */
void link_unlist(const char *dir);

/* In a forked child, before anything else: close all that is listened on and all connections, either end. They are the
 * parent's, and as long as the child had them the others would take it for alive. Whatever the parent's threads were
 * about to do with them when it forked: no variable is looked at. Takes no lock. */
void link_forked(void);

/* The other end: its process and its user; false if that cannot be told. */
bool link_peer(int fd, long *pid, unsigned *uid);

/* One connection as its user has it, one thread at a time. */
struct link {
    int fd; /* -1: none */
    uint32_t number; /* of the last request */
    uint8_t *in;
    size_t have, used, room; /* of `in`: read; of these, already handed out */
};

void link_close(struct link *l);

/* Send a message whose body is these two pieces (either may be empty). DUST_CLOSED: the other end is gone. DUST_BUSY: it
 * does not take anything until `until_ms` (clock_ms). DUST_MISUSE: over LINK_BODY_MAX. After a failure the connection is
 * of no use. */
int link_send(struct link *l, uint8_t type, const void *head, size_t n_head, const void *body, size_t n_body,
    uint64_t until_ms);

/* The next message. It is valid until the next call. DUST_CLOSED: the other end is gone, or talks nonsense. DUST_BUSY: none
 * came until `until_ms` (the connection can still be used). DUST_NOMEM. */
int link_recv(struct link *l, struct link_msg *out, uint64_t until_ms);

#endif
