/* log - into the host's own log, and nowhere else. */
#ifndef DUST_EXT_LOG_H
#define DUST_EXT_LOG_H

/* A report.log function: hands the line to sqlite3_log of the SQLite copy that ctx (struct sqlite_lib) is. */
void log_to_sqlite(void *ctx, int code, const char *text);

#endif
