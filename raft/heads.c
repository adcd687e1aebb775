#include "raft/heads.h"

#include <stddef.h>

void heads_begin(struct heads *h, uint64_t index, const struct vid *id)
{
    h->n = 0;
    heads_note(h, index, id);
}

void heads_note(struct heads *h, uint64_t index, const struct vid *id)
{
    unsigned at = h->n++ % HEADS_MAX;

    h->line[at].index = index;
    h->line[at].id = *id;
}

bool heads_has(const struct heads *h, const struct vid *id)
{
    for (unsigned i = h->n, left = HEADS_MAX; i > 0 && left > 0; left--) {
        if (vid_equal(&h->line[--i % HEADS_MAX].id, id)) {
            return true;
        }
    }
    return false;
}

const struct vid *heads_at(const struct heads *h, uint64_t index)
{
    unsigned first = h->n > HEADS_MAX ? h->n - HEADS_MAX : 0, lo = first, hi = h->n;

    while (lo < hi) { /* the first one behind it */
        unsigned mid = lo + (hi - lo) / 2;

        if (h->line[mid % HEADS_MAX].index <= index) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo > first ? &h->line[(lo - 1) % HEADS_MAX].id : NULL;
}
