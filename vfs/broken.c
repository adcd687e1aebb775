#include "vfs/broken.h"

#include <stdlib.h>
#include <string.h>

#include "vfs/file.h"

struct broken {
    sqlite3_io_methods m; /* first */
    struct sqlite_lib *lib;
    int rc;
    struct err err;
};

static struct broken *broken_of(sqlite3_file *file)
{
    return (struct broken *)(void *)file->pMethods;
}

static int b_close(sqlite3_file *file)
{
    free(broken_of(file));
    file->pMethods = NULL;
    return SQLITE_OK;
}

static int b_read(sqlite3_file *file, void *buf, int n, sqlite3_int64 offset)
{
    (void)file;
    (void)offset;
    memset(buf, 0, (size_t)n);
    return SQLITE_IOERR_SHORT_READ;
}

static int b_write(sqlite3_file *file, const void *buf, int n, sqlite3_int64 offset)
{
    (void)buf;
    (void)n;
    (void)offset;
    return broken_of(file)->rc;
}

static int b_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    (void)size;
    return broken_of(file)->rc;
}

static int b_int(sqlite3_file *file, int arg)
{
    (void)arg;
    return broken_of(file)->rc;
}

static int b_unlock(sqlite3_file *file, int level)
{
    (void)file;
    (void)level;
    return SQLITE_OK;
}

static int b_size(sqlite3_file *file, sqlite3_int64 *size)
{
    (void)file;
    *size = 0;
    return SQLITE_OK;
}

static int b_reserved(sqlite3_file *file, int *out)
{
    (void)file;
    *out = 0;
    return SQLITE_OK;
}

static int b_control(sqlite3_file *file, int op, void *arg)
{
    struct broken *b = broken_of(file);

    if (op == SQLITE_FCNTL_PDB && *(sqlite3 **)arg != NULL) {
        b->lib->host->failed(b->lib, *(sqlite3 **)arg, b->rc, &b->err);
        return SQLITE_OK;
    }
    return SQLITE_NOTFOUND;
}

static int b_sector(sqlite3_file *file)
{
    (void)file;
    return 512;
}

static int b_characteristics(sqlite3_file *file)
{
    (void)file;
    return 0;
}

int broken_open(struct sqlite_lib *lib, sqlite3_file *file, const struct err *e)
{
    struct broken *b = calloc(1, sizeof *b);

    if (b == NULL) {
        file->pMethods = NULL;
        return SQLITE_NOMEM;
    }
    b->m = (sqlite3_io_methods){
        .iVersion = 1,
        .xClose = b_close,
        .xRead = b_read,
        .xWrite = b_write,
        .xTruncate = b_truncate,
        .xSync = b_int,
        .xFileSize = b_size,
        .xLock = b_int,
        .xUnlock = b_unlock,
        .xCheckReservedLock = b_reserved,
        .xFileControl = b_control,
        .xSectorSize = b_sector,
        .xDeviceCharacteristics = b_characteristics,
    };
    b->lib = lib;
    b->err = *e;
    b->rc = sqlite_code(e->code);
    if (b->rc == SQLITE_ERROR || (b->rc & 0xff) == SQLITE_READONLY) {
        b->rc = SQLITE_CANTOPEN;
    }
    file->pMethods = &b->m;
    return SQLITE_OK;
}
