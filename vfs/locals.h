/* locals - pages of memory by number: the frames of an attached process's own transactions.
 *
 * A page stays where it is until it is freed. Any thread; one page by one thread at a time. */
#ifndef DUST_VFS_LOCALS_H
#define DUST_VFS_LOCALS_H

#include <stdint.h>

#include "vfs/err.h"

struct locals;

/* NULL without memory. */
struct locals *locals_new(uint32_t page_size);
void locals_delete(struct locals *l); /* NULL is fine */

/* A page, of undefined content; numbers begin at 1. DUST_NOMEM. */
int locals_take(struct locals *l, uint32_t *number, struct err *e);
void locals_give(struct locals *l, uint32_t number);

uint8_t *locals_page(const struct locals *l, uint32_t number);

#endif
