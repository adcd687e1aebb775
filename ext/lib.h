/* lib - the copies of SQLite in this process, and what dust registers in each. */
#ifndef DUST_EXT_LIB_H
#define DUST_EXT_LIB_H

#include "ext/conn.h"
#include "ext/registry.h"
#include "ext/rows.h"

#define DUST_VERSION_TEXT "0.1.0"
#define LIBS_MAX 8 /* copies of SQLite in one process */

/* By number; NULL if there is none. The functions and modules registered in copy i find it by this. */
struct sqlite_lib *lib_at(unsigned number);

/* The integer that a statement (a PRAGMA, mostly) gives on this connection; 0 if it gives none. */
int lib_int(struct sqlite_lib *lib, sqlite3 *db, const char *sql);

/* Take the database of this name of a connection out of locking_mode=EXCLUSIVE: a pager in it never asks for a lock again,
 * so that it would have neither a newer snapshot nor the turn. */
void lib_end_exclusive(struct sqlite_lib *lib, sqlite3 *db, const char *name);

/* In a forked child, before anything else. */
void libs_forked(void);

/* ext/functions.c and ext/tables.c: register everything on a connection. Return a SQLite code. */
int functions_register(struct conn *c);
int tables_register(struct conn *c);

/* One cell: what the table dust_status says under this name, as the connection's table would; NULL if there is no such line
 * now. name NULL: all lines, as text. Nothing is read from the database, so this can be had when that cannot be read. */
int tables_status(struct conn *c, struct hosted *h, const char *name, struct rows *out, struct err *e);

/* DUST_MISUSE if a URI, with its parameters behind the name, asks for what a member's database cannot be. */
int lib_check_uri(struct sqlite_lib *lib, const char *name, struct err *e);

/* Make the main database of an open connection, which is a member's, go through dust. Error text into *e. */
int lib_adopt(struct conn *c, struct hosted *h, struct err *e);

/* The member that the connection's main database belongs to, or the only one attached; NULL if none. */
struct hosted *lib_member(struct conn *c);

/* The open file of that database; NULL if none. */
struct dfile *lib_main_file(struct conn *c);

#endif
