/* vfs/link: what comes over the socket between an attached process and its host: messages out of a stream, and bodies.
 *
 * The input is a stream. Whatever is a message is also read as each kind of body. */
#include "tests/fuzz/fuzz.h"
#include "vfs/link.h"

static void try_commit(const struct link_msg *m)
{
    struct link_commit c;

    if (link_get_commit(m, &c)) {
        check(m->type == LINK_COMMIT && m->len == 41 && c.n_parts != 0 && !vid_none(&c.id));
        check(c.slot == le_get(m->body, 4) && c.n_parts == le_get(m->body + 4, 4) && m->body[8] <= 3);
        check(memcmp(c.parent.b, m->body + 9, 16) == 0 && memcmp(c.id.b, m->body + 25, 16) == 0);
    }
}

static void try_done(const struct link_msg *m)
{
    struct link_done d;

    if (link_get_done(m, &d)) {
        check(m->type == LINK_DONE && d.code >= 0 && d.code < DUST_N_CODES && d.text_len == m->len - 24);
        check(d.code != DUST_OK || (d.seq != 0 && d.n_pages != 0));
        check(d.text_len == 0 || d.text == (const char *)m->body + 24);
    }
}

static void try_reply(const struct link_msg *m)
{
    struct err e;

    err_clear(&e);
    if (link_get_reply(m, &e)) {
        check(m->type == LINK_REPLY && m->len >= 4 && e.code >= 0 && e.code < DUST_N_CODES);
        check(memchr(e.text, '\0', sizeof e.text) != NULL && (e.code == DUST_OK || e.text[0] != '\0' || m->body[4] == 0));
    } else {
        check(e.code == ERR_UNSET);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = exact_copy(data, size);
    size_t at = 0;

    while (at < size) {
        struct link_msg m;
        uint8_t head[LINK_HEAD];
        long n = link_parse(copy + at, size - at, &m);

        if (n <= 0) {
            check(n == 0 || le_get(copy + at, 4) > LINK_BODY_MAX || copy[at + 4] == 0 || copy[at + 4] >= LINK_N_TYPES ||
                  le_get(copy + at + 5, 3) != 0);
            break;
        }
        check((size_t)n <= size - at && (size_t)n == LINK_HEAD + m.len && m.body == copy + at + LINK_HEAD);
        link_head(head, m.type, m.number, m.len);
        check(memcmp(head, copy + at, LINK_HEAD) == 0);
        for (uint8_t type = LINK_HELLO; type < LINK_N_TYPES; type++) {
            m.type = type;
            try_commit(&m);
            try_done(&m);
            try_reply(&m);
        }
        at += (size_t)n;
    }
    free(copy);
    return 0;
}
