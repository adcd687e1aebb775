/* bug - faults put in on purpose, one in a build, by the build option `bug`: tests/faults and tests/sim have to find each.
 * Without the option every BUG() is 0 and nothing is left of it. */
#ifndef DUST_VFS_BUG_H
#define DUST_VFS_BUG_H

#define BUG_ACK 1    /* a commit is acknowledged before a majority has it */
#define BUG_PARENT 2 /* an entry takes effect whatever it was made on */
#define BUG_READ 3   /* a linearizable read is not confirmed */
#define BUG_SYNC 4   /* a checkpoint does not flush its journal */
#define BUG_RESEND 5 /* what is sent again gets a new id */
#define BUG_ROW 6    /* rows are handed out from a head that is not agreed */

#ifndef DUST_BUG
#define DUST_BUG 0
#endif
#define BUG(name) (DUST_BUG == BUG_##name)

#endif
