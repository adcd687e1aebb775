/* forked - what a forked child does with the descriptors, the nanomsg and the libuv that it has inherited. */
#ifndef DUST_RAFT_FORKED_H
#define DUST_RAFT_FORKED_H

struct node;

/* In a forked child, before anything else: close the parent's connections to other members, where it listens, and the
 * files it has open in the member's folder `dir`. As long as the child had them, others would take the parent for alive
 * when it has ended, its address could not be used again, and the space of files that are deleted would not be free.
 * node: the parent's, or NULL if it hosts nothing. Takes no lock. */
void forked_close(const struct node *node, const char *dir);

/* Before nanomsg is used: in a forked child, make it what it was before it was ever used. The loop's thread. */
void forked_nanomsg(void);

/* When the process ends by exit(). libuv waits for the threads of its pool then, also in a forked child, which has none of
 * them: it would read memory that may be another thread's, or nobody's. So it gets a pool, if it has not had one in this
 * process; one piece of work does that. */
void forked_before_exit(void);

#endif
