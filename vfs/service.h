/* service - the host's side of processes that are attached to its member (docs/PROCESSES.md): a thread that listens on
 * app.db-dust/socket, hands out the write turn, takes transactions in, and answers.
 *
 *   guest: a connection, from HELLO to its end
 *
 *     turn     none ──TURN──▶ asked ──granted──▶ has it ──RELEASE, COMMIT, end──▶ none
 *                               └──time is up, refused──▶ none
 *     request  none ──COMMIT, CONFIRM, AGREED, CALL──▶ one under way ──answered──▶ none
 *
 * Everything a guest has is given back when its connection ends; when the first connection of its process ends, the
 * process is gone: its other connections are ended too, and its snapshots are let go.
 *
 * A transaction that was sent to an earlier host already ("again") may be in the log: it is looked for there first, after
 * everything that is committed has been applied. If it is not, and its parent is not the head but unknown here, it waits a
 * few seconds for that one: another process may have it, and send it again, too. */
#ifndef DUST_VFS_SERVICE_H
#define DUST_VFS_SERVICE_H

#include "vfs/database.h"

struct service;

/* Where answers to a call go: any number of bodies of LINK_ROWS, then an end. */
struct service_reply;
bool service_rows(struct service_reply *r, const void *body, size_t n); /* false: nobody is there any more */

struct service_calls {
    void *ctx;
    /* LINK_CALL's body, in a thread of its own. The rows have been given when it returns; its result ends the answer. */
    int (*call)(void *ctx, const uint8_t *body, size_t n, struct service_reply *r, struct err *e);
};

/* Begin to serve a database whose store is laid out and which is replicated. If the socket cannot be made just now, that
 * is tried again and reported. DUST_NOMEM, DUST_IO: there is no thread to be had. */
int service_start(struct service **out, struct database *db, const struct service_calls *calls, struct err *e);

/* The process is about to end: end the thread and all connections. What the guests hold in the store, and the turn, stay as
 * they are, for the next host to see; so does the object, for what is still under way. NULL is fine. Any thread but the
 * replicator's. */
void service_stop(struct service *s);

/* In a forked child: close what the parent's thread waits on. (The connections: link_forked.) */
void service_forked(struct service *s);

struct service_guest {
    uint32_t owner;
    long pid;
    unsigned connections, snapshots;
    uint64_t oldest; /* seq of its oldest snapshot, 0: none */
    bool turn;       /* one of its connections has the write turn */
};

/* The processes attached; *list is to be freed by the caller. DUST_NOMEM. */
int service_guests(struct service *s, struct service_guest **list, unsigned *n, struct err *e);

#endif
