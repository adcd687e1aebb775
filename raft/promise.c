#include "raft/promise.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vfs/fd.h"

#define SIZE 64
#define BODY 48
#define SUM 16

static void encode(const struct promise *p, uint8_t out[SIZE])
{
    uint64_t w[3] = {htole64(p->term), htole64(p->vote), htole64(p->index)};

    memset(out, 0, SIZE);
    memcpy(out, "dustprom", 8);
    memcpy(out + 8, w, sizeof w);
    crypto_generichash(out + BODY, SUM, out, BODY, NULL, 0);
}

static void decode(struct promise *p, const uint8_t in[SIZE])
{
    uint64_t w[3];
    uint8_t again[SIZE];
    struct promise q;

    memcpy(w, in + 8, sizeof w);
    q = (struct promise){.term = le64toh(w[0]), .vote = le64toh(w[1]), .index = le64toh(w[2])};
    encode(&q, again);
    if (memcmp(in, again, SIZE) == 0) {
        p->term = q.term;
        p->vote = q.vote;
        p->index = q.index;
    }
}

static bool put(const struct promise *p)
{
    uint8_t out[SIZE];

    encode(p, out);
    return pwrite(p->fd, out, SIZE, 0) == SIZE;
}

int promise_open(struct promise *p, const char *dir, struct err *e)
{
    uint8_t in[SIZE];
    char path[4096];
    int rv;

    if (p->open) {
        return DUST_OK;
    }
    *p = (struct promise){0};
    snprintf(path, sizeof path, "%s/promise", dir);
    p->fd = fd_high(open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (p->fd < 0) {
        return err_sys(e, errno, "cannot open %s", path);
    }
    if (pread(p->fd, in, SIZE, 0) == SIZE) {
        decode(p, in);
    } else {
        rv = posix_fallocate(p->fd, 0, SIZE); /* so that a full disk is no reason not to write to it */
        if (rv != 0) {
            close(p->fd);
            return err_sys(e, rv, "cannot make %s", path);
        }
    }
    p->open = true;
    return DUST_OK;
}

void promise_close(struct promise *p)
{
    if (p->open) {
        close(p->fd);
    }
    p->open = false;
}

int promise_check_log(const struct promise *p, const char *dir, uint64_t index, struct err *e)
{
    if (index >= p->index) {
        return DUST_OK;
    }
    return err_set(e, DUST_CORRUPT,
        "the log in %s/raft is damaged: this member had stored it up to entry %" PRIu64 ", and what can be read of it ends "
        "at %" PRIu64,
        dir, p->index, index);
}

int promise_check_vote(const struct promise *p, const char *dir, uint64_t term, uint64_t vote, struct err *e)
{
    if (term > p->term || (term == p->term && (p->vote == 0 || vote == p->vote))) {
        return DUST_OK;
    }
    return err_set(e, DUST_CORRUPT,
        "the term in %s/raft is damaged: this member was in term %" PRIu64 ", with a vote for member %" PRIu64
        ", and what can be read is term %" PRIu64 " with a vote for %" PRIu64,
        dir, p->term, p->vote, term, vote);
}

bool promise_stored(struct promise *p, uint64_t index)
{
    if (index <= p->index) {
        return true;
    }
    p->index = index;
    return put(p);
}

bool promise_term(struct promise *p, uint64_t term)
{
    p->term = term;
    p->vote = 0;
    return put(p);
}

bool promise_vote(struct promise *p, uint64_t vote)
{
    p->vote = vote;
    return put(p);
}

bool promise_lower(struct promise *p, uint64_t index)
{
    if (index >= p->index) {
        return true;
    }
    p->index = index;
    return put(p) && fdatasync(p->fd) == 0;
}
