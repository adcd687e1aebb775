/* etcd 3.4: the target is host:port of a member's client URL, without TLS.
 *
 * It speaks gRPC (grpc.c); the few messages, which are protobuf, are encoded by hand. A connection that was lost is
 * made again by the operation after the one that failed.
 *
 * Keys: "p/" and 12 digits; "foo/" and the unique number in 12 digits, followed by "/" and the row if a transaction
 * has several. Reads that need not be linearizable are etcd's serializable ones, of the member the connection is to. In
 * place of SQL there are
 *
 *     fill N SIZE    puts the keys 1 to N of p with texts of so many bytes
 *     count          how many keys are in foo
 *     role           "leader" or "follower": what the member is */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "grpc.h"

#define OPS_MAX 128           /* in a Txn: etcd's --max-txn-ops, as it is by default */
#define FILL_OPS 100          /* in a Txn of fill, and not more bytes of text than this */
#define FILL_BYTES (1U << 20) /* etcd's --max-request-bytes is 1.5 MiB */
#define KEY_MAX 48

struct conn {
    const struct job *job;
    struct grpc *grpc;
    char *text; /* job.size bytes and a zero */
    char why[WHY_MAX];
};

/* What is sent: protobuf. */

static void put_varint(struct bytes *b, uint64_t value)
{
    uint8_t byte[10];
    size_t n = 0;

    while (value >= 0x80) {
        byte[n++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    byte[n++] = (uint8_t)value;
    append(b, byte, n);
}

/* The beginning of a field that has `len` bytes: text, or a message. */
static void put_tag(struct bytes *b, unsigned field, size_t len)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, len);
}

static void put_bytes(struct bytes *b, unsigned field, const void *data, size_t len)
{
    put_tag(b, field, len);
    append(b, data, len);
}

static void put_number(struct bytes *b, unsigned field, uint64_t value)
{
    put_varint(b, field << 3);
    put_varint(b, value);
}

/* How long a field of `len` bytes is with its beginning. Fields here have numbers below 16. */
static size_t field_size(size_t len)
{
    size_t n = 2 + len;

    for (; len >= 0x80; len >>= 7) {
        n++;
    }
    return n;
}

static void put_put(struct bytes *b, const char *key, const char *text, size_t size)
{
    put_bytes(b, 1, key, strlen(key)); /* PutRequest.key */
    put_bytes(b, 2, text, size);       /* PutRequest.value */
}

/* The same as one of the operations of a TxnRequest without conditions. */
static void put_put_op(struct bytes *b, const char *key, const char *text, size_t size)
{
    size_t len = field_size(strlen(key)) + field_size(size);

    put_tag(b, 2, field_size(len)); /* TxnRequest.success */
    put_tag(b, 2, len);             /* RequestOp.request_put */
    put_put(b, key, text, size);
}

static void put_range(struct bytes *b, const char *key, const char *end, uint64_t limit)
{
    put_bytes(b, 1, key, strlen(key)); /* RangeRequest.key */
    if (end != NULL) {
        put_bytes(b, 2, end, strlen(end)); /* RangeRequest.range_end */
        put_number(b, 3, limit);           /* RangeRequest.limit */
    }
}

/* What comes: protobuf. */

struct reader {
    const uint8_t *at, *end;
};

struct field {
    uint64_t number;
    unsigned type;
    uint64_t value;    /* of type 0 */
    struct reader sub; /* of type 2 */
};

static bool get_varint(struct reader *r, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;

        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return true;
        }
    }
    return false;
}

static bool skip(struct reader *r, uint64_t len)
{
    if ((uint64_t)(r->end - r->at) < len) {
        return false;
    }
    r->at += len;
    return true;
}

/* The next field, false if there is none that is whole: at the end of a sound message, r->at is r->end. */
static bool get_field(struct reader *r, struct field *f)
{
    const uint8_t *begin = r->at;
    uint64_t tag, len;
    bool ok;

    memset(f, 0, sizeof *f);
    if (r->at == r->end) {
        return false;
    }
    ok = get_varint(r, &tag);
    f->number = tag >> 3;
    f->type = (unsigned)(tag & 7);
    switch (f->type) {
    case 0:
        ok = ok && get_varint(r, &f->value);
        break;
    case 1:
        ok = ok && skip(r, 8);
        break;
    case 2:
        ok = ok && get_varint(r, &len);
        f->sub.at = r->at;
        ok = ok && skip(r, len);
        f->sub.end = r->at;
        break;
    case 5:
        ok = ok && skip(r, 4);
        break;
    default:
        ok = false;
    }
    if (!ok) {
        r->at = begin; /* short of the end, so that the caller sees it */
    }
    return ok;
}

/* etcd */

static bool broken(struct conn *c)
{
    snprintf(c->why, sizeof c->why, "etcd answered what is not a message of its protocol");
    return false;
}

static bool call(struct conn *c, const char *path, struct reader *r)
{
    return grpc_call(c->grpc, path, &r->at, &r->end);
}

/* How many key-value pairs with a text the answer to a range has, and how many it says the range has. */
static bool count_range(struct conn *c, struct reader *r, uint64_t *pairs, uint64_t *total)
{
    struct field f, g;

    *pairs = *total = 0;
    while (get_field(r, &f)) {
        if (f.number == 4 && f.type == 0) { /* RangeResponse.count */
            *total = f.value;
        } else if (f.number == 2 && f.type == 2) { /* RangeResponse.kvs */
            bool some = false;

            while (get_field(&f.sub, &g)) {
                some = some || (g.number == 5 && g.type == 2 && g.sub.at != g.sub.end); /* KeyValue.value */
            }
            if (f.sub.at != f.sub.end) {
                return broken(c);
            }
            *pairs += some;
        }
    }
    return r->at == r->end || broken(c);
}

/* Sends the TxnRequest that was prepared; whether it did all its operations. */
static bool call_txn(struct conn *c, unsigned ops)
{
    struct reader r;
    struct field f;
    bool succeeded = false;

    if (!call(c, "/etcdserverpb.KV/Txn", &r)) {
        return false;
    }
    while (get_field(&r, &f)) {
        if (f.number == 2 && f.type == 0) { /* TxnResponse.succeeded */
            succeeded = f.value == 1;
        } else if (f.number == 3 && f.type == 2 && ops > 0) { /* TxnResponse.responses */
            ops--;
        }
    }
    return r.at == r.end && succeeded && ops == 0 ? true : broken(c);
}

static bool call_put(struct conn *c, const char *key)
{
    struct reader r;
    struct field f;

    put_put(grpc_prepare(c->grpc), key, c->text, c->job->size);
    if (!call(c, "/etcdserverpb.KV/Put", &r)) {
        return false;
    }
    while (get_field(&r, &f)) {
    }
    return r.at == r.end ? true : broken(c);
}

static bool call_range(struct conn *c, const char *key, const char *end, uint64_t *pairs)
{
    struct bytes *b = grpc_prepare(c->grpc);
    uint64_t total;
    struct reader r;

    put_range(b, key, end, c->job->rows);
    if (!c->job->linearizable) {
        put_number(b, 7, 1); /* RangeRequest.serializable */
    }
    return call(c, "/etcdserverpb.KV/Range", &r) && count_range(c, &r, pairs, &total);
}

/* The ids of the member that answers, and of the leader it knows. */
static bool call_status(struct conn *c, uint64_t *member, uint64_t *leader)
{
    struct reader r;
    struct field f, g;

    *member = *leader = 0;
    grpc_prepare(c->grpc);
    if (!call(c, "/etcdserverpb.Maintenance/Status", &r)) {
        return false;
    }
    while (get_field(&r, &f)) {
        if (f.number == 4 && f.type == 0) { /* StatusResponse.leader */
            *leader = f.value;
        } else if (f.number == 1 && f.type == 2) { /* StatusResponse.header */
            while (get_field(&f.sub, &g)) {
                if (g.number == 2 && g.type == 0) { /* ResponseHeader.member_id */
                    *member = g.value;
                }
            }
            if (f.sub.at != f.sub.end) {
                return broken(c);
            }
        }
    }
    return r.at == r.end && *member != 0 ? true : broken(c);
}

static void close_conn(void *ctx)
{
    struct conn *c = ctx;

    if (c->grpc != NULL) {
        grpc_free(c->grpc);
    }
    free(c->text);
    free(c);
}

static void *open_conn(const char *target, const struct job *job, char *why)
{
    struct conn *c;
    uint64_t member, leader;

    if (job->work == WORK_INSERT && job->rows > OPS_MAX) {
        snprintf(why, WHY_MAX, "etcd has at most %d operations in a transaction (--max-txn-ops), not %u", OPS_MAX,
            job->rows);
        return NULL;
    }
    c = calloc(1, sizeof *c);
    if (c == NULL) {
        snprintf(why, WHY_MAX, "out of memory");
        return NULL;
    }
    snprintf(c->why, sizeof c->why, "out of memory");
    c->job = job;
    c->text = new_text(job->size);
    c->grpc = grpc_new(target, c->why);
    /* A first call, so that the beginning of HTTP/2 is over before the clock starts. */
    if (c->text == NULL || c->grpc == NULL || !call_status(c, &member, &leader)) {
        snprintf(why, WHY_MAX, "%s", c->why);
        close_conn(c);
        return NULL;
    }
    return c;
}

static const char *key_of(char *buffer, const char *table, uint64_t number)
{
    snprintf(buffer, KEY_MAX, "%s/%012llu", table, (unsigned long long)number);
    return buffer;
}

static bool insert(void *ctx, uint64_t unique)
{
    struct conn *c = ctx;
    struct bytes *b;
    char key[KEY_MAX];

    if (c->job->rows == 1) {
        return call_put(c, key_of(key, "foo", unique));
    }
    b = grpc_prepare(c->grpc);
    for (unsigned i = 0; i < c->job->rows; i++) {
        snprintf(key, sizeof key, "foo/%012llu/%03u", (unsigned long long)unique, i);
        put_put_op(b, key, c->text, c->job->size);
    }
    return call_txn(c, c->job->rows);
}

static bool update(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    char name[KEY_MAX];

    next_text(c->text, c->job->size);
    return call_put(c, key_of(name, "p", key));
}

static bool rows_missing(struct conn *c)
{
    snprintf(c->why, sizeof c->why, "not the rows that should be there");
    return false;
}

static bool read_one(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    char name[KEY_MAX];
    uint64_t pairs;

    return call_range(c, key_of(name, "p", key), NULL, &pairs) && (pairs == 1 || rows_missing(c));
}

static bool scan(void *ctx, uint64_t key)
{
    struct conn *c = ctx;
    char name[KEY_MAX];
    uint64_t pairs;

    /* "p0" is what comes first after all that begins with "p/". */
    return call_range(c, key_of(name, "p", key), "p0", &pairs) &&
           ((pairs > 0 && pairs <= c->job->rows) || rows_missing(c));
}

static const char *error(void *ctx)
{
    struct conn *c = ctx;

    return c->why;
}

static bool fill(struct conn *c, uint64_t keys)
{
    unsigned ops_max = FILL_BYTES / c->job->size;
    char name[KEY_MAX];

    ops_max = ops_max == 0 ? 1 : ops_max > FILL_OPS ? FILL_OPS : ops_max;
    for (uint64_t key = 1; key <= keys;) {
        struct bytes *b = grpc_prepare(c->grpc);
        unsigned ops = 0;

        for (; ops < ops_max && key <= keys; ops++, key++) {
            put_put_op(b, key_of(name, "p", key), c->text, c->job->size);
        }
        if (!call_txn(c, ops)) {
            return false;
        }
    }
    return true;
}

static bool print_count(struct conn *c)
{
    struct bytes *b = grpc_prepare(c->grpc);
    uint64_t pairs, total;
    struct reader r;

    put_range(b, "foo/", "foo0", 0);
    put_number(b, 9, 1); /* RangeRequest.count_only */
    if (!call(c, "/etcdserverpb.KV/Range", &r) || !count_range(c, &r, &pairs, &total)) {
        return false;
    }
    printf("%llu\n", (unsigned long long)total);
    return true;
}

static bool print_role(struct conn *c)
{
    uint64_t member, leader;

    if (!call_status(c, &member, &leader)) {
        return false;
    }
    puts(member == leader ? "leader" : "follower");
    return true;
}

static bool sql(const char *target, const char *statement, char *why)
{
    struct job job = {.rows = 1, .size = 1};
    unsigned long long keys = 0;
    bool filling = sscanf(statement, "fill %llu %u", &keys, &job.size) == 2 && job.size > 0, ok;
    struct conn *c;

    if (!filling && strcmp(statement, "count") != 0 && strcmp(statement, "role") != 0) {
        snprintf(why, WHY_MAX, "neither \"fill N SIZE\" nor \"count\" nor \"role\": \"%.100s\"", statement);
        return false;
    }
    c = open_conn(target, &job, why);
    if (c == NULL) {
        return false;
    }
    ok = filling ? fill(c, keys) : statement[0] == 'c' ? print_count(c) : print_role(c);
    if (!ok) {
        snprintf(why, WHY_MAX, "%s", c->why);
    }
    close_conn(c);
    return ok;
}

const struct driver driver = {open_conn, insert, update, read_one, scan, error, close_conn, sql};
