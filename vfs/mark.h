/* mark - the two marks that tell a member's file from an ordinary SQLite database, and the fields of the
 * database header that dust reads. The format, byte by byte, stands in mark.c (DESIGN.md section 6).
 *
 * Every function here is pure: it looks at, or changes, the bytes given to it, no more. Any thread. */
#ifndef DUST_VFS_MARK_H
#define DUST_VFS_MARK_H

#include "vfs/vid.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HEADER_SIZE 100 /* bytes of the database header at the start of page 1 */

enum mark {
    MARK_NONE,  /* neither mark: an ordinary database, an empty file, or no database at all */
    MARK_DUST,  /* both marks, in the format we know: a member's file, or a copy of one */
    MARK_NEWER, /* the version mark in a format that we do not know: leave the file alone */
    MARK_HALF   /* one mark without the other: somebody edited the file by other means than SQLite and dust */
};

/* Which marks the header carries. `header` is the first HEADER_SIZE bytes of the file, zeros where the file
 * is shorter. For MARK_DUST, *id (may be NULL) becomes the version the file is at; else *id is untouched. */
enum mark mark_read(const uint8_t *header, struct vid *id);

/* Put both marks on page 1 (at least HEADER_SIZE bytes). Byte 19 (read version) stays, so that plain SQLite
 * can read. */
void mark_write(uint8_t *page1, const struct vid *id);

/* Take both marks off page 1: byte 18 becomes what byte 19 is, bytes 72 to 91 become zeros. */
void mark_clear(uint8_t *page1);

/* Make n bytes that were read from the file at offset_in_file (bytes) look as SQLite must see them: whatever
 * part of page 1 the buffer covers becomes unmarked (byte 18: 1; bytes 72 to 91: 0); the rest is untouched.
 * Only for a file that is known to be marked: an ordinary file in WAL mode has a 2 in byte 18. */
void mark_hide(uint8_t *buf, size_t offset_in_file, size_t n);

/* Does it begin as a SQLite database does ("SQLite format 3" and a NUL), with a valid page size? */
bool header_valid(const uint8_t *header);

/* Page size in bytes: a power of two, 512 to 65536; 0 if the header has none such. */
uint32_t header_page_size(const uint8_t *header);

/* Database size in pages as the header has it. It holds only where header_change_counter() equals
 * header_valid_for(); else the size of the file counts. */
uint32_t header_n_pages(const uint8_t *header);

uint32_t header_change_counter(const uint8_t *header);

/* The change counter at the time the page count was written. */
uint32_t header_valid_for(const uint8_t *header);

/* Advance the change counter as a SQLite commit would, so that every connection drops its cache. If the page
 * count was valid (counter == valid_for) it stays valid; if not, it stays invalid. For whoever may define
 * what the content of the file is: dust_start, restore, leave. Never for a version that the cluster has
 * agreed on, whose bytes are given. See "Plain readers' caches" in checkpoint.h. */
void header_advance(uint8_t *page1);

#endif
