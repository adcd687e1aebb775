/* registry - the members that this process hosts, or is attached to: one per database path, for as long as the process
 * lives or until it leaves its cluster. */
#ifndef DUST_EXT_REGISTRY_H
#define DUST_EXT_REGISTRY_H

#include <stdatomic.h>

#include "raft/node.h"
#include "vfs/service.h"
#include "vfs/lib.h"

struct hosted {
    struct hosted *next;
    struct database *db;
    struct node *_Atomic node; /* NULL: another process hosts it (docs/PROCESSES.md) */
    struct service *service;   /* for those attached; set before `node` */
    struct sqlite_lib *lib;    /* by whose means it is hosted */
    uint32_t election_ms;
    struct keys given; /* with keyfile=, for when this process hosts it; none: the member has its own */
    _Atomic bool gone; /* it has left its cluster; or this is a forked child, and it is its parent's */
    char address[ADDRESS_TEXT_MAX];
};

/* What a program asks for when it starts or joins, or opens with parameters. Texts may be NULL. */
struct start_options {
    const char *bind, *join, *advertise; /* join: addresses with commas between */
    const char *keyfile;
    struct database_options db;
    uint32_t election_ms;
    bool standby;
};
void start_options_init(struct start_options *o);

/* The member at this full path, if this process hosts it. Any thread. */
struct hosted *registry_find(const char *path, int len);
struct hosted *registry_of(const struct database *db);

/* Is there a member's folder beside the database at this path? */
bool registry_is_member_path(const char *path);

/* Bring up the member at `path` that exists on disk already, or attach to the process that hosts it. Finds it if it is up.
 * DUST_BUSY: that process does not answer. */
int registry_resume(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e);

/* host.rejoin. */
int registry_rejoin(struct sqlite_lib *lib, const struct database *inherited, struct database **db, struct err *e);

/* Are `bind` and `advertise` addresses that a member may have? */
int registry_check_own(const struct start_options *o, struct err *e);

/* Make the database at `path`, which has at least one page and is not in WAL mode, the first member of a new cluster.
 * */
int registry_start(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e);

/* Make the empty database at `path` a member of an existing cluster. Returns when it is one and has caught up. */
int registry_join(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e);

/* Take the member out of its cluster, and make its file an ordinary database again. */
int registry_leave(struct hosted *h, struct err *e);

#endif
