/* client - programs that use the database on a machine, each a thread with a connection. */
#ifndef DUST_SIM_CLIENT_H
#define DUST_SIM_CLIENT_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/sim/history.h"

struct machine;

/* The tables, in an ordinary database. */
void client_make_tables(sqlite3 *db, struct state *state);

/* Begin one on this machine, whose member is up. */
void client_spawn(struct machine *m, unsigned number);

/* From now on each client has to bring one transaction through, and then ends. */
void client_finish(void);
unsigned client_left(void); /* how many have not; and what one of them last heard */
const char *client_complaint(void);
void client_machine_down(const struct machine *m); /* its clients are gone */

/* Open a connection, SQLITE_OK or the code and text. For a thread of the machine. */
int client_open(struct machine *m, const char *parameters, sqlite3 **db, char *error, size_t size);

/* One value of a query as text, or false with the error in `out`. */
bool client_ask(sqlite3 *db, const char *sql, char *out, size_t size);

/* Read all; an error's code, or SQLITE_OK. */
int client_read_state(sqlite3 *db, struct state *s);

/* By seed. */
struct client_habits {
    uint64_t think_ns; /* between operations, at most */
    unsigned write;    /* of 100 operations */
    unsigned hookless; /* of 100 connections */
    uint64_t bytes;    /* of an item, at most: of so many of 10,000; the others have 40 */
    unsigned large;
};
extern struct client_habits client_habits;

#endif
