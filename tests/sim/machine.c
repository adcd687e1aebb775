/* The life of a machine: its process is started, brings the member up by opening the database, and then lets its
 * clients work. It ends by a crash only.
 *
 * The program has one registry of members for all machines; a member whose machine has crashed is put out of the way
 * there as one that has left. */
#include "tests/sim/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ext/registry.h"
#include "raft/node_impl.h"
#include "raft/smallfile.h"
#include "tests/sim/client.h"
#include "tests/sim/net.h"
#include "tests/sim/sched.h"

struct machine machines[MACHINES_MAX + 1];
unsigned n_machines;
struct machine_habits machine_habits = {.election_ms = 300, .timeout_ms = 3000};

void machines_init(unsigned n)
{
    n_machines = n;
    for (unsigned i = 1; i <= n; i++) {
        struct machine *m = &machines[i];

        m->number = i;
        m->slow = 1;
        files_wipe(m);
        m->wiped = true;
        snprintf(m->path, sizeof m->path, "/sim/%u/app.db", i);
        snprintf(m->address, sizeof m->address, "127.0.0.1:%u", 4000 + i);
    }
}

struct machine *machine_of_path(const char *path)
{
    unsigned number =
        strncmp(path, "/sim/", 5) == 0 && (path[6] == '/' || path[6] == '\0') ? (unsigned)(path[5] - '0') : 0;

    return number >= 1 && number <= n_machines ? &machines[number] : NULL;
}

static struct hosted *hosted_of(const struct machine *m)
{
    return registry_find(m->path, (int)strlen(m->path));
}

static void come_up(struct machine *m, sqlite3 *db)
{
    char text[64];

    if (client_ask(db, "SELECT dust_id()", text, sizeof text)) {
        m->id = strtoull(text, NULL, 10);
    }
    m->member = m->open = true;
    m->wiped = false;
}

struct orphan {
    struct machine *on;
    unsigned long long id;
};

static void orphan_run(void *arg)
{
    struct orphan *o = arg;
    char text[200];
    sqlite3 *db;

    if (client_open(o->on, "", &db, text, sizeof text) == SQLITE_OK) {
        snprintf(text, sizeof text, "SELECT dust_remove(%llu)", o->id);
        client_ask(db, text, text, sizeof text);
        sqlite3_close(db);
    }
    free(o);
}

/* A join that was cut short may have left a member at this address in the cluster: as the message says. */
static void remove_orphan(const struct machine *m, const char *error)
{
    const char *where = strstr(error, "belongs to member ");
    unsigned i = 1 + (unsigned)chance_below(n_machines);
    struct orphan *o;

    if (m->wiped && where != NULL && machines[i].open) {
        o = must(calloc(1, sizeof *o));
        *o = (struct orphan){.on = &machines[i], .id = strtoull(where + strlen("belongs to member "), NULL, 10)};
        task_spawn(&machines[i], "orphan", orphan_run, o);
    }
}

/* What every open says. The key, if there is one, is put on the disk first, as by whoever looks after the machine. */
static int common_parameters(struct machine *m, char *out, size_t size)
{
    static const char line[] = "dust-key-1:5151515151515151515151515151515151515151515151515151515151515151\n";
    int n = snprintf(out, size, "timeout=%u&election=%u", machine_habits.timeout_ms, machine_habits.election_ms);
    char path[FILES_PATH_MAX];
    size_t there;

    if (!machine_habits.keyed) {
        return n;
    }
    snprintf(path, sizeof path, "%s.key", m->path);
    if (files_content(m, path, &there) == NULL && smallfile_make(path, line, sizeof line - 1, NULL) != DUST_OK) {
        say(1, "m%u: its key cannot be written", m->number);
    }
    return n + snprintf(out + n, size - (size_t)n, "&keyfile=%s", path);
}

/* The process's first thread. */
static void boot(void *arg)
{
    struct machine *m = arg;
    char parameters[512], others[128] = "", error[400], member[FILES_PATH_MAX];
    sqlite3 *db;
    size_t size;

    snprintf(member, sizeof member, "%s-dust/member", m->path);
    for (unsigned i = 1; i <= n_machines; i++) {
        if (&machines[i] != m) {
            snprintf(others + strlen(others), sizeof others - strlen(others), "%s%s", *others != '\0' ? "," : "",
                machines[i].address);
        }
    }
    for (;;) {
        int n = common_parameters(m, parameters, sizeof parameters);

        if (m->wiped && files_content(m, member, &size) == NULL) {
            snprintf(parameters + n, sizeof parameters - (size_t)n, "&bind=%s&join=%s", m->address, others);
        }
        if (client_open(m, parameters, &db, error, sizeof error) == SQLITE_OK) {
            break;
        }
        if (hosted_of(m) != NULL) { /* up, but cannot be read yet */
            task_sleep(50 * MS_NS);
            continue;
        }
        say(1, "m%u cannot come up: %s", m->number, error);
        remove_orphan(m, error);
        task_sleep(chance_between(50 * MS_NS, 500 * MS_NS));
    }
    come_up(m, db);
    say(1, "m%u is up as member %llu", m->number, (unsigned long long)m->id);
    for (unsigned i = 0; i < machine_habits.clients; i++) {
        client_spawn(m, i);
    }
    sqlite3_close(db);
}

void machine_start(struct machine *m)
{
    size_t size;
    char path[FILES_PATH_MAX];

    snprintf(path, sizeof path, "%s-dust/member", m->path);
    if (m->wiped && files_content(m, path, &size) == NULL) {
        machine_wipe(m); /* of what a join that was cut short has left */
    }
    m->up = true;
    m->open = false;
    m->life++;
    m->paused_ns = 0;
    m->started_ns = world.now_ns;
    history_reset_machine(m);
    say(1, "m%u starts", m->number);
    task_spawn(m, "boot", boot, m);
}

static void found(void *arg)
{
    struct machine *m = arg;
    char parameters[512], error[400], id[VID_HEX_SIZE];
    int n;
    struct state state;
    struct vid vid;
    sqlite3 *db;

    if (sqlite3_open_v2(m->path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "sim") != SQLITE_OK) {
        stuck("cannot make a database: %s", sqlite3_errmsg(db));
    }
    sqlite3_exec(db, "PRAGMA page_size=1024", NULL, NULL, NULL);
    client_make_tables(db, &state);
    sqlite3_close(db);
    n = common_parameters(m, parameters, sizeof parameters);
    snprintf(parameters + n, sizeof parameters - (size_t)n, "&bind=%s", m->address);
    if (client_open(m, parameters, &db, error, sizeof error) != SQLITE_OK) {
        stuck("cannot begin a cluster: %s", error);
    }
    if (!client_ask(db, "SELECT dust_head()", id, sizeof id) || !vid_parse(&vid, id)) {
        stuck("no head: %s", id);
    }
    history_begin(&vid, &state);
    come_up(m, db);
    sqlite3_close(db);
}

void machine_found(struct machine *m)
{
    m->up = true;
    m->life++;
    task_spawn(m, "found", found, m);
}

void machine_crash(struct machine *m, bool power)
{
    struct hosted *h = hosted_of(m);

    say(1, "m%u: %s", m->number, power ? "the power fails" : "the process is killed");
    tally()->crashes += !power;
    tally()->power_losses += power;
    trace('x', m->number, power);
    if (h != NULL) {
        atomic_store(&h->db->left, true);
        atomic_store(&h->gone, true);
    }
    m->up = m->open = false;
    sched_kill(m);
    client_machine_down(m);
    net_machine_down(m, power);
    files_close_all(m);
    if (power) {
        files_lose(m);
        ondisk_forget(m);
    }
}

void machine_wipe(struct machine *m)
{
    say(1, "m%u: its disk is replaced", m->number);
    files_wipe(m);
    ondisk_forget(m);
    m->wiped = true;
    m->leaving = false;
    m->member = false;
    m->id = 0;
}

uint64_t machine_position(const struct machine *m)
{
    struct hosted *h = m->up ? hosted_of(m) : NULL;
    struct head_info head;
    uint64_t position = 0;

    if (h == NULL) {
        return 0;
    }
    store_agreed(h->db->store, &head);
    history_find(&head.id, &position);
    return position;
}

bool machine_is_removed(const struct machine *m)
{
    struct hosted *h = m->up ? hosted_of(m) : NULL;

    return h != NULL && h->node->state == NODE_FAILED && strstr(h->node->failure.text, "was removed") != NULL;
}

bool machine_leads(const struct machine *m)
{
    struct hosted *h = m->up ? hosted_of(m) : NULL;

    return h != NULL && h->node->running && !h->node->stopping && h->node->raft.state == RAFT_LEADER;
}
