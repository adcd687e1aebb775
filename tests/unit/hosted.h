/* hosted - a database of a member that this process hosts, for unit tests of what stands above it: a folder of its own with
 * app.db, a table t(x) in it, laid out and open. There is no cluster: the test puts a replicator there. */
#ifndef DUST_UNIT_HOSTED_H
#define DUST_UNIT_HOSTED_H

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "vfs/database.h"

struct hosted_test {
    char folder[64];
    struct database *db;
    uint32_t n_pages;
};

/* At version `first`. 0, or -1 as cmocka has it. */
static inline int hosted_open(struct hosted_test *t, const struct vid *first, const struct database_options *options)
{
    struct database_content content;
    struct err e = {0};
    char path[96], dust[128];
    sqlite3 *c;

    strcpy(t->folder, "/tmp/dust-test-hosted-XXXXXX");
    if (mkdtemp(t->folder) == NULL) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/app.db", t->folder);
    snprintf(dust, sizeof dust, "%s-dust", path);
    if (mkdir(dust, 0700) != 0 || sqlite3_open(path, &c) != SQLITE_OK ||
        sqlite3_exec(c, "CREATE TABLE t(x)", NULL, NULL, NULL) != SQLITE_OK) {
        return -1;
    }
    sqlite3_close(c);
    if (database_new(&t->db, sqlite3_vfs_find(NULL), path, options, &e) != DUST_OK ||
        database_open_file(t->db, &content, &e) != DUST_OK || database_begin(t->db, first, content.n_pages, &e) != DUST_OK ||
        store_format(t->db->store, content.page_size, first, 0, content.n_pages, &e) != DUST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return -1;
    }
    t->n_pages = content.n_pages;
    return 0;
}

static inline int hosted_close(struct hosted_test *t)
{
    char command[128];

    database_free(t->db);
    snprintf(command, sizeof command, "rm -r %s", t->folder);
    return system(command);
}

#endif
