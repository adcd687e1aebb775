#include "raft/starts.h"

#include <string.h>

void starts_load(struct starts *s, const struct member *m)
{
    memset(s, 0, sizeof *s);
    for (unsigned i = 0; i < m->n_seen && i < MEMBER_SEEN_MAX; i++) {
        s->line[i].id = m->seen[i].id;
        s->line[i].number = m->seen[i].starts;
        s->line[i].boot = m->seen[i].nonce != 0 ? STARTS_BOOT(m->seen[i].starts, m->seen[i].nonce) : 0;
        s->n++;
    }
}

void starts_save(const struct starts *s, struct member *m)
{
    m->n_seen = s->n;
    for (unsigned i = 0; i < s->n; i++) {
        m->seen[i].id = s->line[i].id;
        m->seen[i].starts = s->line[i].number;
        m->seen[i].nonce = STARTS_NONCE(s->line[i].boot);
    }
}

/* Ids grow: with no line left, the member that came first goes. */
static unsigned line_for(struct starts *s)
{
    unsigned oldest = 0;

    if (s->n < MEMBER_SEEN_MAX) {
        return s->n++;
    }
    for (unsigned i = 1; i < s->n; i++) {
        oldest = s->line[i].id < s->line[oldest].id ? i : oldest;
    }
    return oldest;
}

static unsigned find(const struct starts *s, uint64_t id)
{
    unsigned i = 0;

    while (i < s->n && s->line[i].id != id) {
        i++;
    }
    return i;
}

enum starts_verdict starts_judge(struct starts *s, uint64_t id, uint64_t boot, uint64_t *known)
{
    uint32_t number = STARTS_OF(boot);
    unsigned i = find(s, id);

    if (i < s->n && s->line[i].boot == boot) {
        return STARTS_KNOWN;
    }
    if (i < s->n && (number < s->line[i].number || (number == s->line[i].number && s->line[i].boot != 0))) {
        *known = s->line[i].boot != 0 ? s->line[i].boot : STARTS_BOOT(s->line[i].number, 0);
        return STARTS_COPY;
    }
    if (i < s->n && number == s->line[i].number) {
        s->line[i].boot = boot;
        return STARTS_NEW;
    }
    i = i < s->n ? i : line_for(s);
    s->line[i].id = id;
    s->line[i].boot = boot;
    s->line[i].number = number;
    return STARTS_NEW;
}

uint64_t starts_known(const struct starts *s, uint64_t id)
{
    unsigned i = find(s, id);

    return i < s->n ? s->line[i].boot : 0;
}

bool starts_is_copy(uint64_t own, uint64_t known)
{
    if (STARTS_OF(known) != STARTS_OF(own)) {
        return STARTS_OF(known) > STARTS_OF(own);
    }
    return STARTS_NONCE(known) != 0 && known != own;
}
