/* sqltext - the text of the statements of a transaction, as it goes into the log with it: a record for people. */
#ifndef DUST_VFS_SQLTEXT_H
#define DUST_VFS_SQLTEXT_H

#include <stdbool.h>
#include <stdint.h>

#define SQL_TEXT_MAX 8192 /* bytes; what is over is cut, and marked as cut */

struct sqltext {
    char *text; /* not terminated; NULL: none yet */
    uint32_t len;
    bool cut;
};

/* Add a statement. Without memory it is left out. */
void sqltext_add(struct sqltext *t, const char *sql);

/* Begin anew; the memory is kept. */
void sqltext_forget(struct sqltext *t);

void sqltext_deinit(struct sqltext *t);

#endif
