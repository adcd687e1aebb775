#include "raft/heads.h"

#include <stddef.h>

void heads_note(struct heads *h, uint64_t index, const struct vid *id)
{
    unsigned at = h->n++ % HEADS_MAX;

    h->line[at].index = index;
    h->line[at].id = *id;
}

const struct vid *heads_at(const struct heads *h, uint64_t index)
{
    unsigned lo = h->n > HEADS_MAX ? h->n - HEADS_MAX : 0, hi = h->n;

    while (lo < hi) {
        unsigned mid = lo + (hi - lo) / 2;

        if (h->line[mid % HEADS_MAX].index < index) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo < h->n && h->line[lo % HEADS_MAX].index == index ? &h->line[lo % HEADS_MAX].id : NULL;
}
