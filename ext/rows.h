/* rows - what a table or a function of dust's has to say: cells, in memory, and as bytes between processes. */
#ifndef DUST_EXT_ROWS_H
#define DUST_EXT_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cell {
    enum { CELL_NULL, CELL_INT, CELL_TEXT } type;
    int64_t i;
    char *text; /* malloc */
};

struct rows {
    struct cell *cells;
    unsigned n, room, columns;
    bool nomem; /* something is missing */
    struct cell nowhere[16]; /* what is written to when there is no memory for a row */
};

/* A new row, of NULLs; never NULL itself. `columns` has been set, at most 16. */
struct cell *row_new(struct rows *r);
void cell_int(struct cell *c, uint64_t v);
void cell_text(struct rows *r, struct cell *c, const char *s);
void rows_free(struct rows *r);

/* Put one row behind n bytes of a buffer of `room`: the bytes then, or 0: it does not fit. */
size_t row_pack(const struct rows *r, unsigned row, uint8_t *buf, size_t n, size_t room);

/* Add the rows in these bytes. False: they are no rows of so many columns, or there is no memory. */
bool rows_unpack(struct rows *r, const uint8_t *buf, size_t n);

#endif
