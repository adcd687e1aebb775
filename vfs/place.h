/* place - is what a member has open still what its names lead to?
 *
 * app.db and the folder can be renamed, removed or replaced under a running member. Descriptors go on as if nothing had
 * happened, and what is written through them is found by no restart. So a name is compared with what it led to when it
 * was opened: device and inode. An inode number is not given to another file while this one is open.
 *
 * Only what is certain counts: a name that leads nowhere, or to something else. When it cannot be looked at (no
 * permission any more, a network that hangs), it is taken to be in its place. */
#ifndef DUST_VFS_PLACE_H
#define DUST_VFS_PLACE_H

#include <stdbool.h>
#include <stdint.h>

struct file_place {
    uint64_t dev, ino;
    bool known; /* false: nothing is compared */
};

/* Note what the name leads to now. If that cannot be told, nothing is noted. */
void place_note(struct file_place *p, const char *path);

/* … or what this descriptor is of. */
void place_note_fd(struct file_place *p, int fd);

/* Does the name lead to it no more? Blocking (the file system is asked, nothing is opened); any thread. */
bool place_lost(const struct file_place *p, const char *path);

#endif
