#!/usr/bin/python3
"""A cluster under faults: real processes, recorded operations, a checker.

    faults.py [--seed N] [--seconds S] [--members 3|5] [--threads N] [--faults a,b,...] [--keep DIR] [--quiet]

Runs one cluster for S seconds of faults, then heals everything, waits until all members are equal, and checks the whole
history (history.py). Prints what was done and what was found; the exit status is 0 if nothing was. The same seed makes
the same choices of faults and of operations (their timing is the machine's). With --keep, or when something is found, the
folder with histories, files and the log of faults stays, and its name is printed.

DUST_LIB, DUST_FAULTS (folder of the built proxy and preload library) say what is tested.
"""
import argparse
import json
import mmap
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

import cluster  # noqa: E402
import client  # noqa: E402
import history  # noqa: E402
import power  # noqa: E402
from cluster import SLOW, SqlError, Dead, Late, wait_until  # noqa: E402

TOOLS = os.environ.get("DUST_FAULTS", os.path.join(os.path.dirname(cluster.LIB), "tests"))
TIMEOUT_MS = 4000


class Network:
    """The proxy in front of all members."""

    def __init__(self, seed, keyfile):
        argv = [os.path.join(TOOLS, "faults_proxy"), str(seed % 2**31)] + ([keyfile] if keyfile else [])
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, bufsize=1)
        self.lock = threading.Lock()

    def tell(self, line):
        with self.lock:
            self.p.stdin.write(line + "\n")
            self.p.stdin.flush()
            return self.p.stdout.readline().strip()

    def listen(self, port, target, name):
        answer = self.tell("listen %d %d %s" % (port, target, name))
        assert answer == "ok", answer

    def link(self, a, b, state="open", delay=0, jitter=0, loss=0, dup=0, reorder=0):
        assert self.tell("link %s %s %s %d %d %d %d %d" % (a, b, state, delay, jitter, loss, dup, reorder)) == "ok"

    def stat(self):
        return dict(zip(("passed", "dropped", "delayed", "doubled", "reordered"), map(int, self.tell("stat").split())))

    def close(self):
        self.p.stdin.close()
        self.p.wait(10)


class Member(cluster.Worker):
    """A member whose disk, power and clock can be made bad."""

    def __init__(self, run, name):
        self.run, self.box_, self.name = run, run.box, name
        self.dir = os.path.join(run.box.dir, name)
        self.path = os.path.join(self.dir, "app.db")
        self.port, self.front = cluster.free_port(), cluster.free_port()
        self.address = "127.0.0.1:%d" % self.front
        self.start_number = 0
        self.frozen = False
        self.is_member = False
        os.makedirs(self.dir)
        self.control_path = os.path.join(run.box.dir, name + ".control")
        with open(self.control_path, "wb") as f:
            f.write(b"\0" * 4096)
        f = os.open(self.control_path, os.O_RDWR)
        self.control = mmap.mmap(f, 4096)
        os.close(f)
        self.undo = os.path.join(run.box.dir, name + ".undo")
        os.makedirs(self.undo + ".d")
        open(self.undo, "wb").close()
        run.net.listen(self.front, self.port, name)

    def disk(self, mode):
        self.control[0:4] = struct.pack("<i", mode)

    def strike(self, writes):
        """Its process is killed after so many more writes to app.db."""
        self.control[4:8] = struct.pack("<i", writes)

    def strike_log(self, writes):
        """… in so many writes to its log, in the middle of the last one."""
        self.control[16:20] = struct.pack("<i", writes)

    def wall_clock(self, ms):
        self.control[8:16] = struct.pack("<q", ms)

    def launch(self):
        """A new process, without the database."""
        preload = [x for x in (os.environ.get("DUST_PRELOAD"), os.path.join(TOOLS, "libfaults_preload.so")) if x]
        power.mend(self.undo)
        self.start_number += 1
        self.frozen = False
        self.strike(0)
        self.strike_log(0)
        cluster.Worker.__init__(self, self.box_, self.name, env={
            "LD_PRELOAD": ":".join(preload), "FAULTS_DIR": self.dir, "FAULTS_CONTROL": self.control_path,
            "FAULTS_UNDO": self.undo})
        self.py("import sys; sys.dont_write_bytecode = True; sys.path.insert(0, arg); import client", HERE)

    def uri(self, join=None):
        u = "file:%s?vfs=dust&timeout=%d" % (self.path, TIMEOUT_MS)
        if join is not False:
            u += "&bind=127.0.0.1:%d&advertise=%s" % (self.port, self.address)
        if join is not False and self.run.keyed:
            u += "&keyfile=" + self.box_.keyfile
        if join:
            u += "&join=" + ",".join(m.address for m in join)
        return u

    def open_db(self, join=False, wait=90.0):
        self.open(self.uri(join), uri=True, timeout=5.0, wait=wait)
        if join is not False:
            self.sql("PRAGMA user_version", timeout=wait)
        self.sql("PRAGMA dust_consistency = stale")
        self.is_member = True

    def work(self):
        self.py("import client; client.start(**arg)", {
            "path": self.path, "history_path": os.path.join(self.box_.dir, "history-" + self.name),
            "who": "%s#%d" % (self.name, self.start_number), "seed": self.run.seed, "threads": self.run.threads,
            "pause": self.run.pause})

    def halt_work(self, timeout=150.0):
        return self.py("import client; result = client.stop()", timeout=timeout)

    def up(self):
        return self.start_number > 0 and self.alive() and not self.frozen

    def come_back(self):
        """After a kill: a new process on the same files."""
        if not self.alive() and self.is_member:
            self.launch()
            try:
                self.open_db()
            except SqlError as e:
                self.kill9()  # its disk may still be bad: tried again when all is healed
                if e.name in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                    self.run.violations.append("damage: %s cannot be opened again: %s" % (self.name, e.text))
                raise
            self.look_for_damage()
            self.work()

    def look_for_damage(self):
        """Nobody changes pages here but dust: whatever is left of what was not flushed, none may be found damaged. (It is
        repaired from the others, so that nothing else would be seen of it.)"""
        try:
            self.sql("PRAGMA integrity_check", timeout=60.0)
        except SqlError:
            pass  # it is counted, if it was that; disks may be bad
        try:
            found = dict(self.sql("SELECT name, value FROM dust_metrics"))["damage_found"]
        except SqlError:
            return
        if found != 0:
            self.run.violations.append("damage: %s has found %d damaged pages" % (self.name, found))

    def wipe(self):
        self.kill9()
        shutil.rmtree(self.dir)
        os.makedirs(self.dir)
        power.clear(self.undo)
        self.is_member = False

    def join_again(self, others):
        """As a new member, with nothing. What an earlier try has left in the cluster is removed first, as dust says."""
        for _ in range(8):
            self.launch()
            try:
                self.open_db(join=[x for x in others if x.up()] or others)
                break
            except SqlError as e:
                self.run.say("   %s cannot join yet: %s" % (self.name, str(e)[:150]))
                self.wipe()
                left = re.search(r"belongs to member (\d+) of this cluster", str(e))
                if left:
                    self.run.random.choice(others).ask("SELECT dust_remove(%s)" % left.group(1), 40)
        else:
            raise Late("%s could not join" % self.name)
        self.work()

    def ask(self, sql, timeout=10.0, conn="main"):
        """A question in the middle of faults: no answer is None."""
        try:
            return self.one(sql, conn=conn, timeout=timeout)
        except (SqlError, Dead, Late, IndexError):
            return None


class Run:
    def __init__(self, args):
        self.seed, self.seconds, self.threads = args.seed, args.seconds, args.threads
        self.random = random.Random("faults/%d" % args.seed)
        self.pause = args.pause
        self.quiet = args.quiet
        self.box = cluster.Box("faults")
        self.keyed = args.key == "yes" or (args.key is None and self.seed >> 1 & 1 == 1)
        self.net = Network(self.seed, self.box.make_key() if self.keyed else None)
        self.begun = time.monotonic()
        self.log_file = open(os.path.join(self.box.dir, "faults.log"), "w")
        self.counts = {}
        self.leaving = set()  # members that may have been removed
        self.violations = []
        self.members = [Member(self, "abcde"[i]) for i in range(args.members)]
        self.faults = [f for f in FAULTS if f.__name__ in args.faults or (not args.faults and f not in BY_NAME_ONLY)]

    def say(self, text):
        line = "%7.2f %s" % (time.monotonic() - self.begun, text)
        self.log_file.write(line + "\n")
        self.log_file.flush()
        if not self.quiet:
            print(line, flush=True)

    def up(self):
        return [m for m in self.members if m.up()]

    def leader(self):
        for m in self.up():
            if m.ask("SELECT dust_role()", 3) == "leader":
                return m
        return None

    def pick(self, prefer_leader=0.4):
        """A member, the leader more often than not its turn would be."""
        if self.random.random() < prefer_leader:
            m = self.leader()
            if m is not None:
                return m
        up = self.up()
        return self.random.choice(up) if up else None

    def set_up(self):
        first = self.members[0]
        for m in self.members:
            m.launch()
        first.open_db(join=None)
        first.script(client.SCHEMA)
        first.many("INSERT INTO account VALUES(?, ?)", [[i + 1, client.START] for i in range(client.ACCOUNTS)])
        first.sql("INSERT INTO counter VALUES(1, 0), (2, 0)")
        for m in self.members[1:]:
            m.open_db(join=[first])
        for m in self.members:
            m.work()
        self.say("%d members at work, seed %d" % (len(self.members), self.seed))

    def wait(self, low, high=None):
        end = time.monotonic() + (self.random.uniform(low, high) if high else low)
        time.sleep(max(0, min(end, self.until + 30) - time.monotonic()))

    def torment(self):
        self.until = time.monotonic() + self.seconds
        while time.monotonic() < self.until:
            self.wait(0.3, 2.5)
            n = self.random.choice([1, 1, 1, 2, 2, 3])
            chosen = []
            makes = self.random.sample(self.faults, min(n, len(self.faults)))
            if replace in makes:
                makes = [replace]  # it needs a majority all the while
            for make in makes:
                fault = make(self)
                try:
                    begun = next(fault, None)
                except (SqlError, Dead, Late) as e:
                    begun = "could not: %s" % str(e).split("\n")[0][:150]
                if begun is None:
                    continue
                self.counts[make.__name__] = self.counts.get(make.__name__, 0) + 1
                self.say("%s: %s" % (make.__name__, begun))
                chosen.append(fault)
            self.wait(0.3, 5.0)
            for fault in chosen:
                try:
                    end = next(fault, None)
                    if end:
                        self.say("   " + end)
                except (SqlError, Dead, Late) as e:
                    self.say("   ended with: %s" % str(e).split("\n")[0][:150])
            self.revive()

    def revive(self):
        """Who could not come back while another fault lasted."""
        for m in self.members:
            if m.is_member and not m.alive():
                try:
                    m.come_back()
                    self.say("   %s is back, late" % m.name)
                except (SqlError, Dead, Late) as e:
                    self.say("   %s cannot come back: %s" % (m.name, str(e).split("\n")[0][:150]))

    # ---- the end ----

    def heal(self):
        for m in self.members:
            m.disk(0)
            m.wall_clock(0)
            if m.alive() and m.frozen:
                m.thaw()
                m.frozen = False
        for a in self.members:
            for b in self.members:
                if a is not b:
                    self.net.link(a.name, b.name)
        for m in self.members:
            if not m.alive():
                m.come_back()
        for m in self.members:
            if not m.is_member:
                m.join_again([x for x in self.members if x.is_member])

    def finish(self):
        self.say("healing")
        self.heal()
        self.wait_for_all()
        ops = 0
        stops = [(m, m.start("py", conn="main", code="import client; result = client.stop()")) for m in self.members]
        for m, f in stops:
            done = m.get(f, 180)
            ops += done["ops"]
            if done["stuck"] or done["crashes"]:
                self.violations.append("client: %s: %s" % (m.name, done))
        self.say("work is over")
        self.wait_for_all()
        head = self.settle()
        final = None
        for m in self.members:
            m.sql("PRAGMA dust_consistency = linearizable")
            ok = m.sql("PRAGMA integrity_check")
            if ok != [("ok",)]:
                self.violations.append("integrity: %s: %s" % (m.name, ok[:5]))
            got = self.state_of(m)
            if final is None:
                final = got
            elif got != final:
                self.violations.append("equal: %s holds something else than %s" % (m.name, self.members[0].name))
        for m in self.members:
            at = wait_until("a checkpoint on " + m.name, lambda: m.ask("SELECT dust_checkpoint()", 30), 60)
            if at != head:
                self.violations.append("equal: dust_checkpoint() of %s gave %s, not %s" % (m.name, at, head))
        try:
            cluster.different(self.members[0].path, *[m.path for m in self.members[1:]])
        except AssertionError as e:
            self.violations.append("equal: files: %s" % e)
        return final

    def wait_for_all(self):
        """Everybody follows the same leader; who cannot go on by himself is begun anew."""
        def agreed():
            leaders = set()
            for m in self.members:
                role = m.ask("SELECT dust_role()", 30)
                if role == "failed":
                    why = m.ask("SELECT value FROM dust_status WHERE name = 'failure'")
                    self.counts["reopened"] = self.counts.get("reopened", 0) + 1
                    if m in self.leaving and why and "was removed from its cluster" in why:
                        self.say("%s was removed after all; joins again" % m.name)
                        m.wipe()
                        m.join_again([x for x in self.members if x is not m])
                        self.leaving.discard(m)
                    else:
                        self.say("%s has failed: %s; reopened" % (m.name, why))
                        m.kill9()
                        m.come_back()
                    return None
                leaders.add(m.ask("SELECT dust_leader()", 30))
            return len(leaders) == 1 and None not in leaders
        wait_until("one leader", agreed, 90, every=0.2)

    def settle(self):
        def equal():
            heads = {m.ask("SELECT dust_head()", 30) for m in self.members}
            return heads.pop() if len(heads) == 1 and None not in heads else None
        return wait_until("equal heads", equal, 90, every=0.1)

    @staticmethod
    def state_of(m):
        return {
            "hist": m.sql("SELECT n, op, effect FROM hist ORDER BY n", timeout=120),
            "elements": [r[0] for r in m.sql("SELECT value FROM element ORDER BY rowid", timeout=120)],
            "accounts": [r[0] for r in m.sql("SELECT balance FROM account ORDER BY id")],
            "counters": dict(m.sql("SELECT id, v FROM counter")),
            "register": dict(m.sql("SELECT k, v FROM register")),
        }

    def check(self, final):
        paths = [os.path.join(self.box.dir, "history-" + m.name) for m in self.members]
        ops = history.load([p for p in paths if os.path.exists(p)])
        c = history.Checker(ops, final, client.ACCOUNTS, client.START)
        self.violations += c.check()
        outcomes = {}
        for op in ops.values():
            outcomes[op.outcome] = outcomes.get(op.outcome, 0) + 1
        return len(ops), outcomes, c.notes

    def post_mortem(self):
        for m in self.members:
            self.say("%s: pid %d, %s" % (m.name, m.pid, "alive" if m.alive() else "ended %s" % m.p.returncode))
            if m.alive() and not m.frozen:
                try:
                    for k, v in m.sql("SELECT name, value FROM dust_status", timeout=5):
                        self.say("    %s = %s" % (k, v))
                except (SqlError, Dead, Late) as e:
                    self.say("    no status: %s" % str(e)[:200])

    def main(self):
        ops, outcomes, notes = 0, {}, {}
        try:
            self.set_up()
            self.torment()
            final = self.finish()
            ops, outcomes, notes = self.check(final)
        except (SqlError, Dead, Late, AssertionError) as e:
            import traceback
            self.violations.append("the run did not come to its end: %s: %s" % (type(e).__name__, str(e)[:2000]))
            self.say(traceback.format_exc())
            self.post_mortem()
        net = self.net.stat() if self.net.p.poll() is None else {}
        result = {"seed": self.seed, "seconds": self.seconds, "members": len(self.members), "operations": ops,
                  "outcomes": outcomes, "faults": sum(v for k, v in self.counts.items() if k != "reopened"),
                  "by_fault": self.counts, "network": net, "notes": notes, "violations": self.violations,
                  "took": round(time.monotonic() - self.begun, 1)}
        with open(os.path.join(self.box.dir, "result.json"), "w") as f:
            json.dump(result, f, indent=1)
        return result


# ---- the faults: generators; the first value says what was begun (none: it was not), the next what it came to ----

def kill(run):
    """kill -9; it comes back on the same files."""
    m = run.pick()
    if m is None:
        return
    m.kill9()
    yield m.name
    m.come_back()
    yield m.name + " is back"


def kill_majority(run):
    up = run.up()
    victims = run.random.sample(up, min(len(up), len(run.members) // 2 + 1))
    for m in victims:
        m.p.kill()
    for m in victims:
        m.kill9()
    yield " ".join(m.name for m in victims)
    for m in victims:
        m.come_back()
    yield "they are back"


def kill_all(run):
    victims = run.up()
    for m in victims:
        m.p.kill()
    for m in victims:
        m.kill9()
    yield "all"
    for m in victims:
        m.come_back()
    yield "all are back"


def power_lost(run):
    """One machine loses its power: what was not flushed may be gone."""
    m = run.pick()
    if m is None:
        return
    wait_for_moment(run, m)
    m.kill9()
    yield "%s, not flushed: %s" % (m.name, power.lose(m.undo, run.random))
    m.come_back()
    yield m.name + " is back"


def power_lost_everywhere(run):
    victims = run.up()
    if not victims:
        return
    wait_for_moment(run, run.random.choice(victims))
    for m in victims:
        m.p.kill()
    for m in victims:
        m.kill9()
    yield "all, not flushed: %s" % {m.name: power.lose(m.undo, run.random) for m in victims}
    for m in victims:
        m.come_back()
    yield "all are back"


def wait_for_moment(run, m):
    """A third of the time, strike in the middle of a checkpoint: one is asked for, and the process ends after some of its
    writes to app.db; a third of the time in a write to its log."""
    dice = run.random.random()
    if dice < 0.33:
        return
    if dice < 0.66:
        m.strike_log(run.random.choice([1, 2, 5, 20]))
    else:
        m.strike(run.random.choice([1, 2, 3, 5, 8]))
        threading.Thread(target=m.ask, args=("SELECT dust_checkpoint()",), daemon=True).start()
    end = time.monotonic() + 2.0
    while time.monotonic() < end and m.alive():
        time.sleep(0.001)


def freeze(run):
    """SIGSTOP, SIGCONT."""
    m = run.pick()
    if m is None:
        return
    m.freeze()
    m.frozen = True
    yield m.name
    m.thaw()
    m.frozen = False
    yield m.name + " goes on"


def links(run, pairs, **how):
    for a, b in pairs:
        run.net.link(a.name, b.name, **how)


def between(xs, ys, both=True):
    pairs = [(a, b) for a in xs for b in ys]
    return pairs + [(b, a) for a, b in pairs] if both else pairs


def partition(run):
    """One member alone, or a minority; messages are dropped, or held back until later."""
    members = list(run.members)
    run.random.shuffle(members)
    leader = run.leader() if run.random.random() < 0.5 else None
    if leader is not None:
        members.remove(leader)
        members.insert(0, leader)
    n = run.random.randrange(1, len(members) // 2 + 1)
    pairs = between(members[:n], members[n:])
    state = run.random.choice(["cut", "hold"])
    links(run, pairs, state=state)
    yield "%s | %s, %s" % ("".join(m.name for m in members[:n]), "".join(m.name for m in members[n:]), state)
    links(run, pairs)
    yield "the links are open"


def partition_one_way(run):
    members = list(run.members)
    m = run.pick() or members[0]
    others = [x for x in members if x is not m]
    pairs = between([m], others, False) if run.random.random() < 0.5 else between(others, [m], False)
    state = run.random.choice(["cut", "hold"])
    links(run, pairs, state=state)
    yield "%s, %s" % (" ".join("%s>%s" % (a.name, b.name) for a, b in pairs), state)
    links(run, pairs)
    yield "the links are open"


def bridge(run):
    """Two halves that only one member can talk to (and with three: two that cannot hear each other)."""
    members = list(run.members)
    run.random.shuffle(members)
    half = (len(members) - 1) // 2
    left, middle, right = members[:half], members[half], members[half + 1:]
    pairs = between(left, right)
    state = run.random.choice(["cut", "hold"])
    links(run, pairs, state=state)
    yield "%s - %s - %s, %s" % ("".join(m.name for m in left), middle.name, "".join(m.name for m in right), state)
    links(run, pairs)
    yield "the links are open"


def bad_links(run):
    """Delay, loss, duplication, reordering of messages, on some links or all."""
    pairs = [(a, b) for a in run.members for b in run.members if a is not b]
    if run.random.random() < 0.5:
        pairs = run.random.sample(pairs, run.random.randrange(1, len(pairs)))
    how = {
        "delay": run.random.choice([0, 1, 5, 20, 100]), "jitter": run.random.choice([0, 1, 10, 100]),
        "loss": run.random.choice([0, 5, 50, 200]), "dup": run.random.choice([0, 20, 200]),
        "reorder": run.random.choice([0, 20, 200]),
    }
    links(run, pairs, **how)
    yield "%d links: %s" % (len(pairs), " ".join("%s=%d" % i for i in how.items() if i[1]))
    links(run, pairs)
    yield "the links are good"


def reset(run):
    """Connections break, again and again."""
    for _ in range(run.random.randrange(1, 6)):
        for a in run.members:
            for b in run.members:
                if a is not b and run.random.random() < 0.5:
                    run.net.tell("reset %s %s" % (a.name, b.name))
        time.sleep(run.random.random() * 0.3)
    yield "connections"


def transfer(run):
    up = run.up()
    if len(up) < 2:
        return
    asked, to = run.random.sample(up, 2)
    id_ = to.ask("SELECT dust_id()")
    if id_ is None:
        return
    got = asked.ask("SELECT dust_transfer(%d)" % id_, 40)
    yield "to %s: %s" % (to.name, "done" if got is not None else "not done")


def checkpoint(run):
    for m in run.up():
        if run.random.random() < 0.7:
            m.start("sql", conn="main", sql="SELECT dust_checkpoint()", params=[])
    yield "on some"


def long_reader(run):
    m = run.pick(0)
    if m is None:
        return
    m.py("import client; client.hold_snapshot(arg)", m.path, conn="long")
    yield "on " + m.name
    wrong = m.py("import client; result = client.drop_snapshot()", conn="long")
    if wrong:
        run.violations.append("snapshot: a long reader on %s saw %s" % (m.name, wrong))
    yield "it saw nothing change" if not wrong else "it saw changes: %s" % wrong


def disk_full(run):
    m = run.pick()
    if m is None:
        return
    m.disk(run.random.choice([1, 3]))
    yield m.name
    m.disk(0)
    yield m.name + " has space again"


def disk_full_everywhere(run):
    how = run.random.choice([1, 3])
    for m in run.members:
        m.disk(how)
    yield "all"
    for m in run.members:
        m.disk(0)
    yield "all have space again"


def disk_errors(run):
    m = run.pick()
    if m is None:
        return
    m.disk(2)
    yield m.name
    m.disk(0)
    yield m.name + "'s disk is well again"


def clock_jump(run):
    for m in run.members:
        m.wall_clock(run.random.choice([0, 3600, -3600, 86400 * 365, -86400 * 365, 1, -1]) * 1000)
    yield "hours, years"


def replace(run):
    """A member is removed, and joins again as a new one, with nothing."""
    up = run.up()
    if len(up) < len(run.members):
        return
    m = run.pick(0.3)
    others = [x for x in up if x is not m]
    id_ = m.ask("SELECT dust_id()")
    run.leaving.add(m)  # without an answer it may yet be removed
    if id_ is None or run.random.choice(others).ask("SELECT dust_remove(%d)" % id_, 40) is None:
        return
    m.wipe()
    yield "%s is removed" % m.name
    m.join_again(others)
    run.leaving.discard(m)
    yield "%s has joined" % m.name


FAULTS = [kill, kill_majority, kill_all, power_lost, power_lost_everywhere, freeze, partition, partition_one_way, bridge,
          bad_links, reset, transfer, checkpoint, long_reader, disk_full, disk_full_everywhere, disk_errors, clock_jump,
          replace]
BY_NAME_ONLY = []


def main():
    p = argparse.ArgumentParser(description="a cluster under faults")
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--members", type=int, default=3, choices=[3, 5])
    p.add_argument("--threads", type=int, default=3)
    p.add_argument("--pause", type=float, default=0.02, help="of each client between operations, seconds at most")
    p.add_argument("--faults", default="", help="comma list of " + " ".join(f.__name__ for f in FAULTS))
    p.add_argument("--key", choices=["yes", "no"], help="whether the cluster has a key; else the seed says")
    p.add_argument("--keep", default=None, help="move the folder there")
    p.add_argument("--quiet", action="store_true")
    args = p.parse_args()
    args.faults = [f for f in args.faults.split(",") if f]
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(1 << 30)
    unknown = set(args.faults) - {f.__name__ for f in FAULTS}
    if unknown:
        p.error("no such fault: " + " ".join(sorted(unknown)))
    run = Run(args)
    result = run.main()
    os.environ["DUST_KEEP"] = "1"
    for m in run.members:
        if m.start_number and m.alive() and m.frozen:
            m.thaw()
    keep = args.keep or (run.box.dir if result["violations"] else None)
    run.net.close()
    if keep is None:
        os.environ["DUST_KEEP"] = ""
    run.box.shut()
    if args.keep:
        shutil.rmtree(args.keep, ignore_errors=True)
        shutil.move(run.box.dir, args.keep)
    print(json.dumps({k: v for k, v in result.items() if k != "violations"}))
    for v in result["violations"][:20]:
        print("VIOLATION " + v)
    if len(result["violations"]) > 20:
        print("… and %d more" % (len(result["violations"]) - 20))
    print("%d operations, %d faults, %d violations, seed %d, %.0f s%s" % (
        result["operations"], result["faults"], len(result["violations"]), args.seed, result["took"],
        "" if keep is None else ", kept in " + keep), flush=True)
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
