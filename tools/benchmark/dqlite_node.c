/* One node of dqlite, until its standard input ends:
 *
 *     dqlite-node ID HOST:PORT FOLDER
 *
 * Node 1 makes a cluster of itself where its folder is empty; the others wait to be added ("add", dqlite.c). It prints
 * "ready" when it can be connected to. */
#include <dqlite.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "dqlite-node: %s: %s\n", what, why);
    return 1;
}

/* Until it ends, or cannot be read. */
static void wait_for_end_of_input(void)
{
    char data[256];
    ssize_t n;

    do {
        n = read(STDIN_FILENO, data, sizeof data);
    } while (n > 0 || (n < 0 && errno == EINTR));
}

int main(int argc, char **argv)
{
    unsigned long long id = argc == 4 ? strtoull(argv[1], NULL, 10) : 0;
    dqlite_node *node = NULL;

    if (id == 0) {
        fprintf(stderr, "usage: %s ID HOST:PORT FOLDER\n", argv[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN); /* connections end as they like */
    if (mkdir(argv[3], 0777) != 0 && errno != EEXIST) {
        return fail(argv[3], strerror(errno));
    }
    if (dqlite_node_create(id, argv[2], argv[3], &node) != 0) {
        return fail("create", dqlite_node_errmsg(node));
    }
    if (dqlite_node_set_bind_address(node, argv[2]) != 0 || dqlite_node_start(node) != 0) {
        int rc = fail("start", dqlite_node_errmsg(node));

        dqlite_node_destroy(node);
        return rc;
    }
    puts("ready");
    fflush(stdout);
    wait_for_end_of_input();
    if (dqlite_node_stop(node) != 0) {
        return fail("stop", dqlite_node_errmsg(node));
    }
    dqlite_node_destroy(node);
    return 0;
}
