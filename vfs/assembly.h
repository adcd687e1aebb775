/* assembly - a sealed transaction that was made elsewhere, being taken apart again: its parts, one after the other, into
 * frames of the page store on top of the version it was made on.
 *
 * One thread at a time. Pages are read at the version `snap` holds, which is the parent. */
#ifndef DUST_VFS_ASSEMBLY_H
#define DUST_VFS_ASSEMBLY_H

#include "vfs/database.h"
#include "vfs/txn.h"

struct assembly {
    struct database *db;
    struct txn txn;
    struct entry_check check;
    struct snap snap;
    uint32_t n_pages; /* of the database afterwards */
    bool begun;
};

/* Begin with part 0, which is still to be added. `snap` holds the parent and is given over, on success only; the page
 * size has been compared. DUST_MISUSE. */
int assembly_begin(struct assembly *a, struct database *db, const struct snap *snap, const struct entry *part0,
    struct err *e);

/* Take in the next part. DUST_AGAIN: a page of the parent is damaged here (reported; to be repaired). DUST_CORRUPT,
 * DUST_IO, DUST_NOMEM, DUST_FULL. After a failure, drop it. */
int assembly_add(struct assembly *a, const struct entry *part, struct err *e);

/* After the last part: are they what the id names? Then *nodes, to be freed by the caller, are all frames, those of pages
 * between the old and the new end included. They are the store's once they were staged: then assembly_taken. */
int assembly_end(struct assembly *a, uint32_t **nodes, uint32_t *n, struct err *e);
void assembly_taken(struct assembly *a);

/* Give it up, or be done with it: frames that were not taken are freed, the snapshot is let go. Harmless when there is
 * none. */
void assembly_drop(struct assembly *a);

#endif
