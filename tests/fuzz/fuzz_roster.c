/* raft/roster: how the members are, as a beacon tells. The input is the roster, whole. */
#include "raft/roster.h"
#include "tests/fuzz/fuzz.h"

static void check_lines(const struct roster *r, const uint8_t *data, size_t size)
{
    uint8_t again[ROSTER_MAX * ROSTER_LINE_SIZE];
    struct roster second;

    check(r->at_ms == 77 && r->n > 0 && r->n <= ROSTER_MAX && r->n * ROSTER_LINE_SIZE == size);
    for (unsigned i = 0; i < r->n; i++) {
        const struct roster_line *l = &r->line[i], *found = roster_find(r, l->id);

        check(l->id == le_get(data + i * ROSTER_LINE_SIZE, 8));
        check(l->match_index == le_get(data + i * ROSTER_LINE_SIZE + 8, 8));
        check(l->boot == le_get(data + i * ROSTER_LINE_SIZE + 24, 8));
        check(l->heard_ms >= -1 && l->heard_ms <= INT32_MAX);
        check(found != NULL && found <= l && found->id == l->id);
    }
    roster_encode(r->line, r->n, again);
    memset(&second, 0, sizeof second);
    check(roster_decode(&second, again, size, 77));
    check(second.n == r->n && memcmp(second.line, r->line, r->n * sizeof *r->line) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = exact_copy(data, size);
    struct roster r;

    memset(&r, 0x5a, sizeof r);
    if (roster_decode(&r, copy, size, 77)) {
        check_lines(&r, copy, size);
    } else {
        check(size == 0 || size % ROSTER_LINE_SIZE != 0 || size / ROSTER_LINE_SIZE > ROSTER_MAX);
        check(all_are(&r, 0x5a, sizeof r));
    }
    free(copy);
    return 0;
}
