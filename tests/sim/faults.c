/* The weather: faults at random moments, each seed with its own choice of kinds, so that some seeds have much of one
 * and nothing of another. They end after some seconds; then everything is healed, and
 *
 *   every member comes up, every client brings a transaction through, all members come to the end of the history, and
 *   their files are equal and sound, in a bounded time. */
#include "tests/sim/faults.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/client.h"
#include "tests/sim/history.h"
#include "tests/sim/machine.h"
#include "tests/sim/net.h"
#include "tests/sim/sched.h"

#define HEAL_NS (90 * S_NS)    /* for all clients to come through */
#define REPLACE_NS (20 * S_NS) /* to remove a member takes no longer */
#define AGREE_NS (60 * S_NS)   /* … and all members to agree */

enum fault {
    FAULT_CRASH,
    FAULT_POWER,
    FAULT_CRASH_ALL,
    FAULT_CUT,     /* one from all */
    FAULT_HALVES,  /* a majority from a minority */
    FAULT_ONE_WAY, /* what one says is not heard */
    FAULT_BRIDGE,  /* two do not hear each other */
    FAULT_RESET,
    FAULT_SLOW_NET,
    FAULT_PAUSE,
    FAULT_SLOW_DISK,
    FAULT_BAD_DISK,
    FAULT_LATE,
    FAULT_TRANSFER,
    FAULT_REPLACE,
    FAULT_ROLE,
    FAULT_FOLD,  /* the power fails in a checkpoint */
    FAULT_WRITE, /* … or in a write of the log, of term or vote; or the process is killed in it */
    FAULT_KINDS
};

static struct {
    bool has[FAULT_KINDS];
    uint64_t end_ns, pause_max_ns;
    uint64_t replacing_ns; /* until then no other member is replaced */
    unsigned finals;
    unsigned threshold, trailing; /* how soon libraft takes snapshots, how much it keeps behind them; 0: as dust says */
} faults;

static struct machine *any_machine(void)
{
    if (chance(3500)) {
        for (unsigned i = 1; i <= n_machines; i++) {
            if (machine_leads(&machines[i])) {
                return &machines[i];
            }
        }
    }
    return &machines[1 + chance_below(n_machines)];
}

static void start_again(void *arg)
{
    struct machine *m = arg;

    if (!m->up) {
        machine_start(m);
    }
}

static void crash(struct machine *m, bool power)
{
    if (m->up) {
        machine_crash(m, power);
        event_at(world.now_ns + chance_between(10 * MS_NS, chance(8000) ? 800 * MS_NS : 4 * S_NS), start_again, m);
    }
}

/* ---- links ---- */

static void heal_links(void *arg)
{
    (void)arg;
    say(1, "links are healed");
    net_heal_all();
}

static void heal_later(void)
{
    event_at(world.now_ns + chance_between(50 * MS_NS, chance(7000) ? S_NS : 5 * S_NS), heal_links, NULL);
}

static void cut_both(unsigned a, unsigned b)
{
    net_cut(a, b, true);
    net_cut(b, a, true);
}

static void cut_links(enum fault f)
{
    unsigned one = any_machine()->number, two = 1 + (unsigned)chance_below(n_machines), side = 0;

    say(1, "links of m%u are cut (%d)", one, f);
    tally()->cuts += f != FAULT_ONE_WAY;
    tally()->one_way_cuts += f == FAULT_ONE_WAY;
    if (f == FAULT_HALVES) {
        side = (unsigned)chance_below(1u << n_machines) << 1;
    }
    for (unsigned a = 1; a <= n_machines; a++) {
        for (unsigned b = a + 1; b <= n_machines; b++) {
            switch (f) {
            case FAULT_CUT:
                if (a == one || b == one) {
                    cut_both(a, b);
                }
                break;
            case FAULT_HALVES:
                if ((side >> a & 1) != (side >> b & 1)) {
                    cut_both(a, b);
                }
                break;
            case FAULT_ONE_WAY:
                if (a == one || b == one) {
                    net_cut(one, a == one ? b : a, true);
                }
                break;
            default:
                if ((a == one && b == two) || (a == two && b == one)) {
                    cut_both(a, b);
                }
            }
        }
    }
    heal_later();
}

static void fast_net(void *arg)
{
    (void)arg;
    net_weather = (struct net_weather){.delay_min_ns = 30 * US_NS, .delay_max_ns = 300 * US_NS, .buffer = 1 << 20};
    if (faults.has[FAULT_RESET] && !world.healing) {
        net_weather.reset = 10;
    }
}

static void slow_net(void)
{
    static const uint64_t delays_ms[] = {2, 10, 40, 150, 400};

    net_weather.delay_max_ns = delays_ms[chance_below(5)] * MS_NS;
    net_weather.buffer = chance(3000) ? 2000 : 1 << 20;
    event_at(world.now_ns + chance_between(100 * MS_NS, 2 * S_NS), fast_net, NULL);
}

/* ---- disks and processes ---- */

static void good_disk(void *arg)
{
    struct machine *m = arg;

    m->slow = 1;
    m->failing = 0;
    m->late_ns = 0;
}

static void bad_disk(struct machine *m, enum fault f)
{
    if (f == FAULT_SLOW_DISK) {
        m->slow = 1u << chance_between(2, 7);
    } else {
        m->failing = chance(7000) ? 100 : 3000;
    }
    say(1, "m%u: disk %u times slower, failing %u", m->number, m->slow, m->failing);
    event_at(world.now_ns + chance_between(100 * MS_NS, 2 * S_NS), good_disk, m);
}

/* ---- through SQL ---- */

struct errand { /* of the task that is on it, which may die with its machine */
    struct machine *on, *about;
};

static void transfer_run(void *arg)
{
    struct errand *e = arg;
    char sql[64], text[200];
    sqlite3 *db;

    if (client_open(e->on, "", &db, text, sizeof text) != SQLITE_OK) {
        return;
    }
    snprintf(sql, sizeof sql, "SELECT dust_transfer(%llu)", (unsigned long long)e->about->id);
    if (client_ask(db, sql, text, sizeof text)) {
        tally()->transfers++;
        say(1, "m%u leads by transfer", e->about->number);
    }
    sqlite3_close(db);
}

/* A voter becomes a standby, and a voter again. */
static void role_run(void *arg)
{
    struct errand *e = arg;
    char sql[64], text[200];
    sqlite3 *db;

    if (client_open(e->on, "", &db, text, sizeof text) != SQLITE_OK) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        snprintf(
            sql, sizeof sql, "SELECT dust_%s(%llu)", i == 0 ? "demote" : "promote", (unsigned long long)e->about->id);
        if (client_ask(db, sql, text, sizeof text)) {
            tally()->roles++;
        }
        say(1, "m%u: %s: %s", e->about->number, sql, text);
        task_sleep(chance_below(S_NS));
    }
    sqlite3_close(db);
}

static void replaced(void *arg)
{
    struct machine *m = arg;

    faults.replacing_ns = 0;
    if (m->up) {
        machine_crash(m, false);
    }
    machine_wipe(m);
    machine_start(m);
}

/* A member is removed; if that is certain, its machine gets an empty disk, and joins again. */
static void replace_run(void *arg)
{
    struct errand *e = arg;
    char sql[64], text[200];
    sqlite3 *db;

    if (client_open(e->on, "", &db, text, sizeof text) != SQLITE_OK) {
        faults.replacing_ns = 0;
        return;
    }
    snprintf(sql, sizeof sql, "SELECT dust_remove(%llu)", (unsigned long long)e->about->id);
    if (client_ask(db, sql, text, sizeof text)) {
        tally()->removals++;
        say(1, "m%u is removed", e->about->number);
        event_at(world.now_ns + chance_below(S_NS), replaced, e->about);
    } else {
        /* if it was all the same, it will hear of it */
        say(1, "m%u is not removed: %s", e->about->number, text);
        faults.replacing_ns = 0;
    }
    sqlite3_close(db);
}

/* Members that were removed, and whose remover was not told. */
static void replace_removed(void)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        if (machine_is_removed(&machines[i]) && faults.replacing_ns <= world.now_ns) {
            tally()->removals++;
            replaced(&machines[i]);
        }
    }
}

static void errand(struct machine *about, void (*run)(void *arg), const char *name)
{
    struct machine *on = any_machine();
    struct errand *e;

    if (about->open && about->member && on->open && on != about) {
        if (run == replace_run) {
            faults.replacing_ns = world.now_ns + REPLACE_NS;
            about->leaving = true;
        }
        e = must(malloc(sizeof *e));
        *e = (struct errand){.on = on, .about = about};
        task_spawn(on, name, run, e);
    }
}

/* ---- snapshots ---- */

void __wrap_raft_set_snapshot_threshold(struct raft *r, unsigned n);
void __real_raft_set_snapshot_threshold(struct raft *r, unsigned n);
void __wrap_raft_set_snapshot_trailing(struct raft *r, unsigned n);
void __real_raft_set_snapshot_trailing(struct raft *r, unsigned n);

/* A cluster's first snapshot is taken at once (2): that is left as it is. */
void __wrap_raft_set_snapshot_threshold(struct raft *r, unsigned n)
{
    __real_raft_set_snapshot_threshold(r, faults.threshold != 0 && n > 2 ? faults.threshold : n);
}

void __wrap_raft_set_snapshot_trailing(struct raft *r, unsigned n)
{
    __real_raft_set_snapshot_trailing(r, faults.trailing != 0 && n > 1 ? faults.trailing : n);
}

/* ---- the bad times ---- */

static void do_fault(enum fault f)
{
    struct machine *m = any_machine();

    trace('f', f, m->number);
    switch (f) {
    case FAULT_CRASH:
        crash(m, false);
        break;
    case FAULT_POWER:
        crash(m, true);
        break;
    case FAULT_CRASH_ALL:
        if (chance(3000)) {
            bool power = chance(5000);

            for (unsigned i = 1; i <= n_machines; i++) {
                if (chance(8000)) {
                    crash(&machines[i], power);
                }
            }
        }
        break;
    case FAULT_CUT:
    case FAULT_HALVES:
    case FAULT_ONE_WAY:
    case FAULT_BRIDGE:
        cut_links(f);
        break;
    case FAULT_RESET:
        net_reset(m->number, 1 + (unsigned)chance_below(n_machines));
        break;
    case FAULT_SLOW_NET:
        slow_net();
        break;
    case FAULT_PAUSE:
        say(1, "m%u is stopped for a while", m->number);
        tally()->pauses++;
        m->paused_ns = world.now_ns + chance_between(10 * MS_NS, faults.pause_max_ns);
        break;
    case FAULT_SLOW_DISK:
    case FAULT_BAD_DISK:
        bad_disk(m, f);
        break;
    case FAULT_LATE:
        m->late_ns = chance_between(MS_NS, 200 * MS_NS);
        event_at(world.now_ns + chance_between(100 * MS_NS, 2 * S_NS), good_disk, m);
        break;
    case FAULT_TRANSFER:
        errand(m, transfer_run, "transfer");
        break;
    case FAULT_REPLACE:
        if (faults.replacing_ns <= world.now_ns && chance(3000)) {
            errand(m, replace_run, "replace");
        }
        break;
    case FAULT_ROLE:
        if (chance(3000)) {
            errand(m, role_run, "role");
        }
        break;
    default:
        break;
    }
}

static void power_fails(void *arg)
{
    if (!world.healing) {
        crash(arg, true);
    }
}

static void is_killed(void *arg)
{
    if (!world.healing) {
        crash(arg, false);
    }
}

void faults_fold(struct machine *m)
{
    if (faults.has[FAULT_FOLD] && m->open && chance(500)) {
        event_at(world.now_ns + chance_below(3 * MS_NS), power_fails, m);
    }
}

/* A member that is coming up writes as well. */
void faults_write(struct machine *m, bool first)
{
    if (faults.has[FAULT_WRITE] && m->up && m->member && chance(!m->open || first ? 500 : 15)) {
        event_at(world.now_ns + chance_below(300 * US_NS), chance(6000) ? power_fails : is_killed, m);
    }
}

void faults_vary(void)
{
    static const uint64_t thinks_ms[] = {0, 2, 10, 50, 50, 200};

    for (int f = 0; f < FAULT_KINDS; f++) {
        faults.has[f] = chance(3500);
    }
    faults.has[FAULT_TRANSFER] = chance(2500);
    faults.has[FAULT_REPLACE] = chance(1500);
    faults.has[FAULT_ROLE] = chance(1500);
    faults.has[FAULT_FOLD] = chance(2000);
    faults.has[FAULT_CRASH_ALL] = chance(1000);
    faults.has[FAULT_WRITE] = chance(3000);
    faults.pause_max_ns = chance(5000) ? 300 * MS_NS : 3 * S_NS;
    faults.end_ns = world.now_ns + chance_between(2, 6) * S_NS;
    client_habits.think_ns = thinks_ms[chance_below(6)] * MS_NS;
    client_habits.write = (unsigned)chance_between(30, 90);
    client_habits.hookless = chance(3000) ? 100 : chance(3000) ? 0 : 20;
    client_habits.bytes = chance(1000) ? 20000 : chance(3000) ? 3000 : 300;
    if (chance(400)) { /* what is sent together may need more than one file of the log */
        client_habits.bytes = 200000;
        client_habits.large = 4000;
    }
    machine_habits.clients = (unsigned)chance_between(1, 3);
    machine_habits.timeout_ms = chance(3000) ? 3000 : chance(5000) ? 800 : 150;
    if (chance(5000)) {
        faults.threshold = (unsigned)chance_between(5, 80);
        faults.trailing = (unsigned)chance_between(1, 30);
    }
    for (unsigned i = 1; i <= n_machines; i++) {
        machines[i].cached_only = chance(2000);
    }
    if (chance(3000)) {
        history_part_max = chance_between(1500, 4000);
    }
    fast_net(NULL);
}

/* ---- the end ---- */

static void heal(void)
{
    say(1, "the bad times are over");
    world.healing = true;
    net_heal_all();
    fast_net(NULL);
    for (unsigned i = 1; i <= n_machines; i++) {
        good_disk(&machines[i]);
        if (machines[i].paused_ns > world.now_ns) {
            machines[i].paused_ns = world.now_ns;
        }
        start_again(&machines[i]);
    }
    client_finish();
}

static const struct machine *not_open(void)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        if (!machines[i].open) {
            return &machines[i];
        }
    }
    return NULL;
}

static const struct machine *behind(void)
{
    for (unsigned i = 1; i <= n_machines; i++) {
        if (!machines[i].open || machine_position(&machines[i]) != history_position()) {
            return &machines[i];
        }
    }
    return NULL;
}

/* A thread on each machine at the end. */
static void final_run(void *arg)
{
    struct machine *m = arg;
    char text[400], head[VID_HEX_SIZE];
    struct state s;
    sqlite3 *db;

    if (client_open(m, "", &db, text, sizeof text) != SQLITE_OK) {
        stuck("m%u cannot be opened at the end: %s", m->number, text);
    }
    if (client_read_state(db, &s) != SQLITE_OK) {
        stuck("m%u cannot be read at the end: %s", m->number, sqlite3_errmsg(db));
    }
    if (world.verbose >= 2) {
        client_ask(db, "SELECT group_concat(tx || ':' || length(x) || ':' || substr(hex(x), 1, 8)) FROM item", text,
            sizeof text);
        say(2, "m%u: items %s", m->number, text);
    }
    history_check_read(m, &s, history_n(), "at the end");
    if (!client_ask(db, "PRAGMA integrity_check", text, sizeof text) || strcmp(text, "ok") != 0) {
        violation("m%u: integrity_check says: %s", m->number, text);
    }
    if (!client_ask(db, "SELECT dust_head()", head, sizeof head) ||
        strcmp(head, vid_hex(history_id(history_position()), text)) != 0) {
        violation("m%u is at version %s at the end, not at %s", m->number, head, text);
    }
    if (!client_ask(db, "SELECT dust_checkpoint()", text, sizeof text)) {
        stuck("m%u cannot be checkpointed at the end: %s", m->number, text);
    }
    sqlite3_close(db);
    faults.finals++;
}

static void compare_files(void)
{
    size_t size, other_size;
    const uint8_t *one = files_content(&machines[1], machines[1].path, &size);

    for (unsigned i = 2; i <= n_machines; i++) {
        const uint8_t *other = files_content(&machines[i], machines[i].path, &other_size);

        if (size != other_size || memcmp(one, other, size) != 0) {
            violation("the files of m1 and m%u differ at the end", i);
        }
    }
}

void faults_run(void *arg)
{
    enum fault kinds[FAULT_KINDS];
    unsigned n = 0;
    uint64_t until;

    (void)arg;
    for (unsigned f = 0; f < FAULT_KINDS; f++) {
        if (faults.has[f]) {
            kinds[n++] = (enum fault)f;
        }
    }
    while (world.now_ns < faults.end_ns) {
        task_sleep(chance_between(20 * MS_NS, 600 * MS_NS));
        replace_removed();
        if (n != 0) {
            do_fault(kinds[chance_below(n)]);
        }
    }
    heal();
    until = world.now_ns + HEAL_NS;
    while (client_left() != 0 || not_open() != NULL || faults.replacing_ns > world.now_ns) {
        if (world.now_ns > until) {
            if (not_open() != NULL) {
                stuck("m%u does not come up after the end of all faults", not_open()->number);
            }
            stuck("a client cannot write after the end of all faults: %s", client_complaint());
        }
        replace_removed();
        task_sleep(20 * MS_NS);
    }
    until = world.now_ns + AGREE_NS;
    while (behind() != NULL) {
        replace_removed();
        if (world.now_ns > until) {
            stuck("m%u does not come to the end of the history: it is at version %llu of %llu", behind()->number,
                (unsigned long long)machine_position(behind()), (unsigned long long)history_position());
        }
        task_sleep(20 * MS_NS);
    }
    for (unsigned i = 1; i <= n_machines; i++) {
        task_spawn(&machines[i], "final", final_run, &machines[i]);
    }
    while (faults.finals < n_machines) {
        if (world.now_ns > until + 30 * S_NS) {
            stuck("the last checks do not end");
        }
        task_sleep(10 * MS_NS);
    }
    compare_files();
    for (unsigned i = 1; i <= n_machines; i++) {
        ondisk_check(&machines[i]);
    }
    tally()->virtual_ms = (world.now_ns - world.begun_ns) / MS_NS;
    passed();
}
