/* wire - how messages between members look. The format, byte by byte, stands in wire.c.
 *
 * Pure functions; any thread. What is decoded is untrusted: every length and count is checked before it is used, and
 * nothing is allocated on the word of a number alone. */
#ifndef DUST_RAFT_WIRE_H
#define DUST_RAFT_WIRE_H

#include <raft.h>
#include <stddef.h>
#include <stdint.h>

#include "raft/member.h"
#include "vfs/err.h"
#include "vfs/vid.h"

#define WIRE_VERSION 1
#define WIRE_NOTE 16 /* type of a note; 1 to 6 are libraft's RAFT_IO_… */
#define WIRE_ENTRIES_MAX 262144u

struct wire_head {
    uint8_t type;
    uint8_t cluster[16];
    uint64_t from; /* member id; 0: not a member yet */
    uint64_t to;   /* member id; 0: whoever is at that address */
    uint64_t boot; /* random number of the sender's start */
    char address[ADDRESS_TEXT_MAX]; /* of the sender */
};

/* dust's own messages: one shape for all, zero fields cost nothing. */
struct note {
    uint16_t kind;
    int32_t code;
    uint64_t term;
    uint64_t req;
    uint64_t num[8];
    struct vid id[3];
    const char *text; /* not NUL-terminated */
    uint32_t text_len;
    const uint8_t *data;
    uint32_t data_len;
};

struct wire_body {
    struct raft_message message; /* types 1 to 6; server_id and server_address are the caller's to set */
    struct note note;            /* WIRE_NOTE; text and data lead into the buffer decoded */
};

/* Bytes that the message takes. */
size_t wire_raft_size(const struct wire_head *h, const struct raft_message *m);
size_t wire_note_size(const struct wire_head *h, const struct note *note);

/* Encode into exactly that many bytes at out. The head's type is not looked at. */
void wire_raft_put(const struct wire_head *h, const struct raft_message *m, void *out);
void wire_note_put(const struct wire_head *h, const struct note *note, void *out);

/* Read a message. On success the body is the caller's: handed to libraft, which frees it, or to wire_body_free.
 * DUST_VERSION: of another wire version. DUST_CORRUPT: garbage. DUST_NOMEM. */
int wire_decode(const void *data, size_t len, struct wire_head *h, struct wire_body *b, struct err *e);

/* The note's text as a string of at most size - 1 bytes. */
void note_text(const struct note *note, char *out, size_t size);

/* Free what wire_decode has allocated. */
void wire_body_free(const struct wire_head *h, struct wire_body *b);

#endif
