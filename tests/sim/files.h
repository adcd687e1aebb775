/* files - the files of one machine, in memory: what programs see, and what a power loss would leave. */
#ifndef DUST_SIM_FILES_H
#define DUST_SIM_FILES_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FILES_PATH_MAX 64
#define FILES_NAMES_MAX 160

struct machine;
struct file;

struct files_name {
    char path[FILES_PATH_MAX];
    struct file *file;
};

struct files_change { /* of the names, not flushed yet: `path` is now that file's name, or nobody's */
    char path[FILES_PATH_MAX];
    struct file *file;
};

struct files {
    struct files_name now[FILES_NAMES_MAX], safe[FILES_NAMES_MAX];
    unsigned n_now, n_safe;
    struct files_change changes[FILES_NAMES_MAX];
    unsigned n_changes;
};

/* The process has ended: its descriptors are closed. */
void files_close_all(struct machine *m);

/* The power fails: of what was not flushed, some is left. */
void files_lose(struct machine *m);

/* All is gone, save for the machine's folder. */
void files_wipe(struct machine *m);

/* What a file holds; NULL: there is none. And what is on the disk for certain, of the files whose names are. */
const uint8_t *files_content(const struct machine *m, const char *path, size_t *size);
const uint8_t *files_certain(const struct machine *m, const char *path, size_t *size);

/* The VFS of SQLite over these files, with virtual time. */
sqlite3_vfs *files_vfs(void);

/* A write or flush of this machine takes its time; it may fail. For a thread of it. */
bool files_write_fails(struct machine *m);
void files_take_time(struct machine *m);

#endif
