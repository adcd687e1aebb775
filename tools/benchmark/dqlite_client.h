/* A client of dqlite's wire protocol, version 1: one connection, one request at a time. */
#ifndef DUST_BENCHMARK_DQLITE_CLIENT_H
#define DUST_BENCHMARK_DQLITE_CLIENT_H

#include "driver.h"
#include "wire.h"

#define ADDRESS_MAX 256
#define WORD 8 /* what everything in a message is a multiple of */

enum request {
    REQUEST_LEADER = 0,
    REQUEST_CLIENT = 1,
    REQUEST_OPEN = 3,
    REQUEST_PREPARE = 4,
    REQUEST_EXEC = 5,
    REQUEST_QUERY = 6,
    REQUEST_EXEC_SQL = 8,
    REQUEST_QUERY_SQL = 9,
    REQUEST_ADD = 12,
    REQUEST_ASSIGN = 13
};

enum response {
    RESPONSE_FAILURE = 0,
    RESPONSE_SERVER = 1,
    RESPONSE_WELCOME = 2,
    RESPONSE_DB = 4,
    RESPONSE_STMT = 5,
    RESPONSE_RESULT = 6,
    RESPONSE_ROWS = 7,
    RESPONSE_EMPTY = 8
};

struct client {
    const char *target; /* host:port of any node */
    int fd;             /* -1: not connected */
    uint32_t db;
    struct bytes out;   /* a request, with its head */
    struct bytes in;    /* the message being read, and what has come after it */
    size_t used;        /* how much of it the message is */
    int64_t deadline;   /* of the answer */
    uint8_t type;       /* the message's */
    const uint8_t *at;  /* what is not read of its body yet, */
    const uint8_t *end; /* up to here */
    uint64_t code;      /* SQLite's, if the answer was a failure; otherwise 0 */
    char why[WHY_MAX];  /* the last failure of a function that returns bool, but for get_number */
};

void client_init(struct client *c, const char *target);
void client_free(struct client *c);
void disconnect(struct client *c);

/* Connects to the target and has it say where the leader is: ADDRESS_MAX bytes; empty if it knows none. */
bool ask_leader(struct client *c, char *address);
/* The same, and connects to that; and opens a database there. */
bool connect_leader(struct client *c);
bool open_database(struct client *c, const char *name);

/* A request: its beginning, what is in it, and sending it. That returns when an answer of the type expected is there,
 * and tries for up to BUSY_MS if the answer is that the database is busy. */
void begin_request(struct client *c, enum request type);
void put_number(struct client *c, uint64_t value, size_t size);
void put_text(struct client *c, const char *text);
bool exchange(struct client *c, enum response expected);
/* Reads a number of that answer, false if it has none; and what to return then. */
bool get_number(struct client *c, size_t size, uint64_t *value);
bool broken(struct client *c);

/* Sending one that runs a statement: how many rows it changed, or how many it has that begin with something. */
bool exec(struct client *c, uint64_t *changed);
bool query(struct client *c, bool print, uint64_t *rows);

#endif
