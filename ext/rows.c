/* A cell is a byte for its type, then: nothing; 8 bytes; or 4 bytes of length and the text. A row is its cells. */
#include "ext/rows.h"

#include <stdlib.h>
#include <string.h>

#include "vfs/link.h"

struct cell *row_new(struct rows *r)
{
    if (r->n == r->room) {
        unsigned more = r->room == 0 ? 32 : r->room * 2;
        struct cell *p = realloc(r->cells, (size_t)more * r->columns * sizeof *p);

        if (p == NULL) {
            r->nomem = true;
            return r->nowhere;
        }
        r->cells = p;
        r->room = more;
    }
    memset(&r->cells[r->n * r->columns], 0, r->columns * sizeof *r->cells);
    return &r->cells[r->n++ * r->columns];
}

void cell_int(struct cell *c, uint64_t v)
{
    c->type = CELL_INT;
    c->i = (int64_t)v;
}

void cell_text(struct rows *r, struct cell *c, const char *s)
{
    c->text = strdup(s);
    c->type = c->text != NULL ? CELL_TEXT : CELL_NULL;
    r->nomem = r->nomem || c->text == NULL;
}

void rows_free(struct rows *r)
{
    for (size_t i = 0; i < (size_t)r->n * r->columns; i++) {
        free(r->cells[i].text);
    }
    free(r->cells);
    r->cells = NULL;
    r->n = r->room = 0;
}

size_t row_pack(const struct rows *r, unsigned row, uint8_t *buf, size_t n, size_t room)
{
    struct pack k = {.p = buf, .n = n, .room = room};

    for (unsigned i = 0; i < r->columns; i++) {
        const struct cell *c = &r->cells[(size_t)row * r->columns + i];

        pack_uint(&k, c->type, 1);
        if (c->type == CELL_INT) {
            pack_uint(&k, (uint64_t)c->i, 8);
        } else if (c->type == CELL_TEXT) {
            pack_uint(&k, strlen(c->text), 4);
            pack_bytes(&k, c->text, strlen(c->text));
        }
    }
    return k.bad ? 0 : k.n;
}

bool rows_unpack(struct rows *r, const uint8_t *buf, size_t n)
{
    struct unpack k = {.p = buf, .left = n};

    while (k.left > 0 && !k.bad && !r->nomem) {
        struct cell *row = row_new(r);

        for (unsigned i = 0; i < r->columns && !k.bad; i++) {
            unsigned type = (unsigned)unpack_uint(&k, 1);
            uint32_t len;
            const char *text;

            switch (type) {
            case CELL_NULL:
                break;
            case CELL_INT:
                cell_int(&row[i], unpack_uint(&k, 8));
                break;
            case CELL_TEXT:
                len = (uint32_t)unpack_uint(&k, 4);
                text = unpack_bytes(&k, len);
                row[i].text = text != NULL ? strndup(text, len) : NULL;
                row[i].type = row[i].text != NULL ? CELL_TEXT : CELL_NULL;
                r->nomem = r->nomem || (text != NULL && row[i].text == NULL);
                break;
            default:
                k.bad = true;
            }
        }
    }
    return !k.bad && !r->nomem;
}
