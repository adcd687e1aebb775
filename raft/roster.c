#include "raft/roster.h"

#include <endian.h>
#include <string.h>

void roster_encode(const struct roster_line *line, unsigned n, uint8_t *out)
{
    for (unsigned i = 0; i < n; i++, out += ROSTER_LINE_SIZE) {
        uint64_t w[4] = {htole64(line[i].id), htole64(line[i].match_index), htole64((uint64_t)line[i].heard_ms),
            htole64(line[i].boot)};

        memcpy(out, w, sizeof w);
    }
}

bool roster_decode(struct roster *r, const uint8_t *data, size_t len, uint64_t now_ms)
{
    if (len == 0 || len % ROSTER_LINE_SIZE != 0 || len / ROSTER_LINE_SIZE > ROSTER_MAX) {
        return false;
    }
    r->at_ms = now_ms;
    r->n = (unsigned)(len / ROSTER_LINE_SIZE);
    for (unsigned i = 0; i < r->n; i++, data += ROSTER_LINE_SIZE) {
        uint64_t w[4];

        memcpy(w, data, sizeof w);
        r->line[i].id = le64toh(w[0]);
        r->line[i].match_index = le64toh(w[1]);
        r->line[i].heard_ms = le64toh(w[2]) > INT32_MAX ? -1 : (int64_t)le64toh(w[2]);
        r->line[i].boot = le64toh(w[3]);
    }
    return true;
}

const struct roster_line *roster_find(const struct roster *r, uint64_t id)
{
    for (unsigned i = 0; i < r->n; i++) {
        if (r->line[i].id == id) {
            return &r->line[i];
        }
    }
    return NULL;
}
