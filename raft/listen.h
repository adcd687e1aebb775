/* listen - a nanomsg socket, bound to an address of ours. Loop thread. */
#ifndef DUST_RAFT_LISTEN_H
#define DUST_RAFT_LISTEN_H

#include "raft/member.h"
#include "vfs/err.h"

#define LISTEN_URL_MAX (ADDRESS_TEXT_MAX + 8)

/* An address as nanomsg has it. */
void listen_url(const char *address, char out[LISTEN_URL_MAX]);

/* Bind; port 0: to one that is free. *bound: where to. DUST_EXISTS: it is in use. DUST_MISUSE, DUST_IO. */
int listen_bind(int socket, const char *address, char bound[ADDRESS_TEXT_MAX], struct err *e);

#endif
