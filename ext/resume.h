/* resume - a member that exists on disk is brought up in this process, or this process is attached to the one that hosts
 * it (docs/PROCESSES.md). */
#ifndef DUST_EXT_RESUME_H
#define DUST_EXT_RESUME_H

#include "ext/registry.h"

/* See registry_resume. The entry is listed. */
int resume_member(struct sqlite_lib *lib, const char *path, const struct start_options *o, struct hosted **out,
    struct err *e);

/* ---- of registry.c ---- */

/* A new entry, not listed. It is made before the member is started: from then on nothing may fail. */
struct hosted *registry_entry(struct sqlite_lib *lib, const struct start_options *o, struct err *e);
void registry_add(struct hosted *h, const char *address);

/* Serve those that attach: h->db is hosted here. */
int registry_serve(struct hosted *h, struct err *e);

/* An address of ours, in a cluster with a key or without. */
int registry_own_address(const char *text, bool keyed, struct address *a, struct err *e);

#endif
