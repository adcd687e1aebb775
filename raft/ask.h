/* ask - somebody who waits for an answer, here or elsewhere, and the questions that only the leader can answer. The
 * model is at the top of ask.c. Loop thread only. */
#ifndef DUST_RAFT_ASK_H
#define DUST_RAFT_ASK_H

#include <string.h>

#include "raft/call.h"
#include "raft/wire.h"

/* A call of this process, or a member (or joiner) elsewhere. */
struct asker {
    struct call *call; /* NULL: elsewhere */
    raft_id from;
    uint64_t req;
    char address[ADDRESS_TEXT_MAX];
};

struct ask {
    struct call *calls; /* asked the leader elsewhere, waiting for its answer */
    uint64_t last_req;
};

static inline struct asker asker_of(const struct wire_head *from, const struct note *note)
{
    struct asker a = {.from = from->from, .req = note->req};

    memcpy(a.address, from->address, sizeof a.address);
    return a;
}

/* Answer with these numbers and data (`with` may be NULL), and a code. `kind` is that of the note, if it takes one. */
void ask_answer(struct node *n, struct asker *a, int kind, const struct note *with, int code, const char *text);

void ask_reply_received(struct node *n, const struct note *note);
void ask_tick(struct node *n);
void ask_fail(struct node *n, int code, const char *text); /* answer all who wait */

#endif
