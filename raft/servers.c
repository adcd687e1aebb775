#include "raft/servers.h"

#include <string.h>

#include "raft/member.h"
#include "vfs/bytes.h"

#define FORMAT 1u
#define HEAD 9u

int servers_encode(const struct raft_configuration *c, struct raft_buffer *out)
{
    size_t n = HEAD;

    if (raft_configuration_encode(c, out) != 0) {
        return DUST_NOMEM;
    }
    for (unsigned i = 0; i < c->n; i++) {
        n += 8 + strlen(c->servers[i].address) + 2;
    }
    memset((uint8_t *)out->base + n, 0, out->len - n);
    return DUST_OK;
}

static int add(const uint8_t **p, const uint8_t *end, struct raft_configuration *c)
{
    const uint8_t *address, *nul;
    int rv;

    if (end - *p < 8) {
        return DUST_CORRUPT;
    }
    address = *p + 8;
    nul = memchr(address, '\0', (size_t)(end - address));
    if (nul == NULL || end - nul < 2 || nul[1] > RAFT_SPARE || nul - address >= ADDRESS_TEXT_MAX || get64(*p) == 0) {
        return DUST_CORRUPT;
    }
    rv = raft_configuration_add(c, get64(*p), (const char *)address, nul[1]);
    *p = nul + 2;
    return rv == 0 ? DUST_OK : rv == RAFT_NOMEM ? DUST_NOMEM : DUST_CORRUPT;
}

int servers_decode(const void *data, size_t len, struct raft_configuration *out)
{
    const uint8_t *p = data, *end = p + len;
    int rv = DUST_OK;
    uint64_t n;

    raft_configuration_init(out);
    if (len < HEAD) {
        return DUST_CORRUPT;
    }
    if (p[0] != FORMAT) {
        return DUST_VERSION;
    }
    n = get64(p + 1);
    p += HEAD;
    if (n > (uint64_t)(end - p)) {
        return DUST_CORRUPT;
    }
    for (; rv == DUST_OK && n > 0; n--) {
        rv = add(&p, end, out);
    }
    if (rv != DUST_OK) {
        raft_configuration_close(out);
        raft_configuration_init(out);
    }
    return rv;
}
