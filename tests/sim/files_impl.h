/* files_impl - the inside of files.c, for posix.c and filevfs.c. */
#ifndef DUST_SIM_FILES_IMPL_H
#define DUST_SIM_FILES_IMPL_H

#include "tests/sim/files.h"

#define FILES_SECTOR 512
#define FILES_BLOCK 4096

struct bytes {
    uint8_t *p;
    size_t size, room;
};

struct change;

struct file {
    bool folder, volatile_content, log; /* log: of the storage, log-NUMBER */
    struct bytes now, safe; /* what programs see; what is on the disk for certain */
    struct change *first, **tail;
    void *map; /* a volatile one's */
    size_t map_size;
};

struct file *file_find(struct machine *m, const char *path);    /* NULL: there is none */
struct file *file_certain(struct machine *m, const char *path); /* … whose name is on the disk for certain */
struct file *file_new(const char *path);                     /* without a name yet */

void file_store(struct file *f, size_t offset, const void *p, size_t n);
void file_resize(struct file *f, size_t size);
size_t file_read(const struct file *f, void *buf, size_t n, size_t at); /* fewer at its end */
void file_flush(struct file *f);

/* As file_store, of which a power loss leaves any blocks; and have what was written there on the disk for certain. */
void file_store_blocks(struct file *f, size_t offset, const uint8_t *p, size_t n);
void file_flush_range(struct file *f, size_t offset, size_t n);

/* path becomes the name of that file, or of none. */
void name_change(struct machine *m, const char *path, struct file *file);

/* The first n changes of names are certain; or all up to that of this file. */
void names_flush(struct files *f, unsigned n);
void names_flush_to(struct files *f, const struct file *file);

#endif
