#include "raft/codes.h"

#include <raft.h>

#include "vfs/err.h"

int code_of_raft(int raft_code)
{
    switch (raft_code) {
    case 0:
        return DUST_OK;
    case RAFT_NOTLEADER:
    case RAFT_LEADERSHIPLOST:
    case RAFT_CANCELED:
    case RAFT_SHUTDOWN:
    case RAFT_CANTCHANGE:
    case RAFT_BUSY:
        return DUST_AGAIN;
    case RAFT_NOTFOUND:
    case RAFT_BADID:
        return DUST_NOTFOUND;
    case RAFT_CANTBOOTSTRAP:
    case RAFT_DUPLICATEID:
    case RAFT_DUPLICATEADDRESS:
        return DUST_EXISTS;
    case RAFT_BADROLE:
        return DUST_MISUSE;
    case RAFT_CORRUPT:
    case RAFT_MALFORMED:
        return DUST_CORRUPT;
    case RAFT_NOSPACE:
        return DUST_FULL;
    case RAFT_TOOBIG:
        return DUST_TOOBIG;
    case RAFT_NOMEM:
        return DUST_NOMEM;
    default:
        return DUST_IO;
    }
}

int code_to_raft(int code)
{
    switch (code) {
    case DUST_OK:
        return 0;
    case DUST_NOMEM:
        return RAFT_NOMEM;
    case DUST_FULL:
        return RAFT_NOSPACE;
    case DUST_CORRUPT:
        return RAFT_CORRUPT;
    case DUST_TOOBIG:
        return RAFT_TOOBIG;
    default:
        return RAFT_IOERR;
    }
}
