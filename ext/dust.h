/* dust - SQLite, replicated. For C programs that link libdust; everybody else loads it (see README.md).
 *
 * dust_register() makes every connection that this process opens from now on, in the SQLite library it is linked with,
 * a dust connection: a database that is a member of a cluster is opened as such, any other one untouched. The same as
 * sqlite3_auto_extension((void (*)(void))sqlite3_dust_init). Call it once, before the first sqlite3_open; calling it
 * again does no harm. Any thread. Returns SQLITE_OK, SQLITE_NOMEM, or SQLITE_ERROR when the process has no SQLite
 * library that exports its functions. */
#ifndef DUST_H
#define DUST_H

#ifdef __cplusplus
extern "C" {
#endif

struct sqlite3;
struct sqlite3_api_routines;

int dust_register(void);

/* SQLite's entry point for loadable extensions. */
int sqlite3_dust_init(struct sqlite3 *db, char **error, const struct sqlite3_api_routines *api);

#ifdef __cplusplus
}
#endif

#endif
