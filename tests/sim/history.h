/* history - the one history of versions that all members have to follow, and what every transaction in it did. */
#ifndef DUST_SIM_HISTORY_H
#define DUST_SIM_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "vfs/vid.h"

struct machine;
struct database;

#define COUNTERS 4
#define ACCOUNTS 4
#define ACCOUNT_BEGIN 1000
#define LIST_MAX 40

/* What a reader finds in the database. */
struct state {
    uint64_t n;  /* counts the transactions of clients */
    uint64_t tx; /* the last one's number */
    int64_t counter[COUNTERS], account[ACCOUNTS];
    uint64_t list_n, list_hash;            /* the numbers of those who appended, in order */
    uint64_t item_n, item_sum, item_bytes; /* the sum of their numbers, of their sizes */
};

enum op_kind {
    OP_KIND_NONE, /* changes nothing that a reader sees */
    OP_KIND_ITEM,
    OP_KIND_CLEAR, /* of the items */
    OP_KIND_COUNTER,
    OP_KIND_LIST,
    OP_KIND_TRANSFER
};

/* One try of a client to write. */
struct op {
    uint64_t tx;
    enum op_kind kind;
    struct machine *machine;
    bool staged;
    struct vid id;     /* if staged */
    uint64_t after;    /* index applied then */
    uint64_t position; /* in the history; 0: none */
    enum { OP_PENDING, OP_ACKED, OP_REFUSED, OP_UNKNOWN } fate;
    uint64_t acked_before; /* the newest position acknowledged to anybody before it began */
    bool has_read;
    uint64_t read_n; /* what it found */
    /* what it writes */
    int which, other;
    int64_t value, other_value;
    uint64_t bytes;
    bool restart; /* of the list */
};

void history_begin(const struct vid *id, const struct state *state);

struct op *op_new(enum op_kind kind);
void op_acked(struct op *op);
void op_refused(struct op *op);
void op_unknown(struct op *op);

/* The newest state and position that have been acknowledged to anybody by now; and those of `ns` ago. */
uint64_t history_acked(void);
uint64_t history_acked_ago(uint64_t ns);

uint64_t history_n(void); /* the newest state that anybody has come to */
uint64_t history_position(void);
const struct state *history_state(uint64_t n); /* NULL: nobody has come to it yet */
uint64_t history_state_at(uint64_t position);  /* the state that it is */
const struct vid *history_id(uint64_t position);
bool history_find(const struct vid *id, uint64_t *position);

/* Something was read: it must be a state of the history that is agreed by now, not older than `least`. */
void history_check_read(const struct machine *m, const struct state *s, uint64_t least, const char *how);

/* A machine has (re)started, or has got its database from another one. */
void history_reset_machine(struct machine *m);

/* By seed: the size of the parts of a transaction; 0: as dust says. */
extern uint64_t history_part_max;

#endif
