/* The marks in page 1 of app.db, and the header fields around them.
 *
 * A member's file is an ordinary SQLite database but for two places in its first 100 bytes
 * (https://www.sqlite.org/fileformat2.html#the_database_header; all numbers are big-endian):
 *
 *     offset  size  SQLite's meaning                  in a member's file
 *          0    16  "SQLite format 3\0"               the same
 *         16     2  page size; 1 means 65536          the same
 *         18     1  write version: 1 journal, 2 WAL   3: every SQLite so far opens the file read-only
 *         19     1  read version: the same            1: every SQLite so far reads it
 *         24     4  change counter                    the same
 *         28     4  database size in pages            the same
 *         72     3  reserved, zero                    'd' 'u' 's'
 *         75     1  reserved, zero                    format of the mark: 1
 *         76    16  reserved, zero                    id of the version that the file is at
 *         92     4  change counter when 28 was set    the same
 *
 * The file is a member's if both places are marked. SQLite copies bytes 72..91 along when it writes page 1
 * and never looks at them. Neither mark is ever part of a version: dust hides them from SQLite when page 1 is
 * read, so a page 1 that SQLite hands back carries none, and they are put on when page 1 is written to the
 * file (checkpoint.c).
 *
 * Byte 18 is hidden as a 1, whatever it was before it was marked. That is exact as long as no version has
 * another value there, that is, as long as the database under dust is not in WAL mode.
 *
 * No state; any thread. */
#include "vfs/mark.h"

#include "vfs/bytes.h"

enum {
    OFF_PAGE_SIZE = 16,
    OFF_WRITE_VERSION = 18,
    OFF_READ_VERSION = 19,
    OFF_COUNTER = 24,
    OFF_N_PAGES = 28,
    OFF_MARK = 72,
    OFF_FORMAT = 75,
    OFF_ID = 76,
    OFF_MARK_END = 92,
    OFF_VALID_FOR = 92
};

#define WRITE_VERSION_DUST 3
#define WRITE_VERSION_PLAIN 1
#define FORMAT 1

static const char magic[16] = "SQLite format 3";

enum mark mark_read(const uint8_t *header, struct vid *id)
{
    bool named = memcmp(header + OFF_MARK, "dus", 3) == 0;
    bool locked = header[OFF_WRITE_VERSION] == WRITE_VERSION_DUST;

    if (!header_valid(header) || (!named && !locked)) {
        return MARK_NONE;
    }
    if (named && header[OFF_FORMAT] != FORMAT) {
        return MARK_NEWER;
    }
    if (!named || !locked) {
        return MARK_HALF;
    }
    if (id != NULL) {
        memcpy(id->b, header + OFF_ID, sizeof id->b);
    }
    return MARK_DUST;
}

void mark_write(uint8_t *page1, const struct vid *id)
{
    page1[OFF_WRITE_VERSION] = WRITE_VERSION_DUST;
    memcpy(page1 + OFF_MARK, "dus", 3);
    page1[OFF_FORMAT] = FORMAT;
    memcpy(page1 + OFF_ID, id->b, sizeof id->b);
}

void mark_clear(uint8_t *page1)
{
    page1[OFF_WRITE_VERSION] = page1[OFF_READ_VERSION];
    memset(page1 + OFF_MARK, 0, OFF_MARK_END - OFF_MARK);
}

void mark_hide(uint8_t *buf, size_t offset_in_file, size_t n)
{
    size_t from = offset_in_file > OFF_MARK ? offset_in_file : OFF_MARK;
    size_t to;

    if (offset_in_file >= OFF_MARK_END) {
        return;
    }
    if (offset_in_file <= OFF_WRITE_VERSION && n > OFF_WRITE_VERSION - offset_in_file) {
        buf[OFF_WRITE_VERSION - offset_in_file] = WRITE_VERSION_PLAIN;
    }
    to = n < OFF_MARK_END - offset_in_file ? offset_in_file + n : OFF_MARK_END;
    if (from < to) {
        memset(buf + (from - offset_in_file), 0, to - from);
    }
}

bool header_valid(const uint8_t *header)
{
    return memcmp(header, magic, sizeof magic) == 0 && header_page_size(header) != 0;
}

uint32_t header_page_size(const uint8_t *header)
{
    uint32_t size = (uint32_t)header[OFF_PAGE_SIZE] << 8 | header[OFF_PAGE_SIZE + 1];

    if (size == 1) {
        return 65536;
    }
    return size >= 512 && (size & (size - 1)) == 0 ? size : 0;
}

uint32_t header_n_pages(const uint8_t *header)
{
    return get_be32(header + OFF_N_PAGES);
}

uint32_t header_change_counter(const uint8_t *header)
{
    return get_be32(header + OFF_COUNTER);
}

uint32_t header_valid_for(const uint8_t *header)
{
    return get_be32(header + OFF_VALID_FOR);
}

void header_advance(uint8_t *page1)
{
    uint32_t counter = header_change_counter(page1);
    uint32_t valid_for = header_valid_for(page1);

    if (valid_for == counter) {
        put_be32(page1 + OFF_VALID_FOR, ++counter);
    } else if (valid_for == ++counter) {
        counter++; /* the page count was not to be trusted: it must not become so by chance */
    }
    put_be32(page1 + OFF_COUNTER, counter);
}
