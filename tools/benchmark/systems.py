"""What is measured: systems, each with workers (worker.c), and what they cost the machine meanwhile."""
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.environ.get("DUST_BUILD", os.path.join(ROOT, "build"))
LIB = os.environ.get("DUST_LIB", os.path.join(BUILD, "libdust.so"))
KEYS = 100000  # rows of the table p
TEXT = 20      # bytes in each
TABLES = ("CREATE TABLE foo(id INTEGER PRIMARY KEY, name TEXT)", "CREATE TABLE p(id INTEGER PRIMARY KEY, name TEXT)",
          "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < %d) "
          "INSERT INTO p(name) SELECT substr('some text of a row, for reads', 1, %d) FROM r" % (KEYS, TEXT))
PATIENCE_S = 120  # for a system to come up

_ports = []


class Failed(Exception):
    """A system does not do what it is told."""


def address():
    """A loopback address that nobody has; its port is held until release()."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0))
    _ports.append(s)
    return "127.0.0.1:%d" % s.getsockname()[1]


def release():
    while _ports:
        _ports.pop().close()


def until(what, test):
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        v = test()
        if v:
            return v
        time.sleep(0.05)
    raise Failed("%s: not within %d s" % (what, PATIENCE_S))


class Worker:
    """A worker process."""

    def __init__(self, program, target, **env):
        self.target = target
        self.p = subprocess.Popen([os.path.join(BUILD, "tools", program), target], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, bufsize=1, env=dict(os.environ, **env))

    def tell(self, line):
        try:
            self.p.stdin.write(line + "\n")
        except BrokenPipeError:
            raise Failed("%s: its worker has ended (%s)" % (self.target, self.p.wait(10))) from None

    def answer(self, line):
        rows = []
        for text in self.p.stdout:
            text = text.rstrip("\n")
            if text == "ok":
                return rows
            if text.startswith("error "):
                raise Failed("%s: %s: %s" % (self.target, line[:60], text[6:]))
            rows.append(text)
        raise Failed("%s: its worker has ended (%s)" % (self.target, self.p.wait(10)))

    def do(self, line):
        self.tell(line)
        return self.answer(line)

    def sql(self, sql):
        return self.do("sql " + sql)

    def one(self, sql):
        rows = self.sql(sql)
        return rows[0] if rows else None

    def end(self):
        self.p.stdin.close()
        try:
            self.p.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        self.p.kill()
        self.p.wait()


class System:
    """Workers, of which the first is the one to write to (the leader's)."""

    def __init__(self, name, folder):
        self.name, self.dir = name, tempfile.mkdtemp(prefix=name.replace(" ", "-") + "-", dir=folder)
        self.workers, self.servers = [], []
        self.rows = self.errors = 0  # acknowledged, and of transactions that may have taken effect or not

    def pids(self):
        return [x.p.pid for x in self.workers] + [p.pid for p in self.servers]

    def leads(self, worker):
        """Is its member the leader?"""
        return True

    def order(self):
        """The workers, the leader's first; the others may be members that follow."""
        lead = until("a leader", lambda: next((w for w in self.workers if self.leads(w)), None))
        return [lead] + [w for w in self.workers if w is not lead]

    def count(self):
        """Rows in foo, on each member, when all have everything."""
        return [int(w.one("SELECT count(*) FROM foo")) for w in self.workers]

    def counters(self):
        """What it counts itself."""
        return {}

    def end(self):
        for w in self.workers:
            w.end()
        for p in self.servers:
            if p.stdin is not None:
                p.stdin.close()
            else:
                p.terminate()
        for p in self.servers:
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


class Plain(System):
    """One file, not replicated."""

    def __init__(self, folder, journal, synchronous):
        super().__init__("plain %s %s" % (journal, synchronous), folder)
        w = Worker("bench-sqlite", os.path.join(self.dir, "plain.db"), BENCH_SYNCHRONOUS=synchronous)
        self.workers.append(w)
        w.sql("PRAGMA journal_mode=" + journal)
        for sql in TABLES:
            w.sql(sql)


class Dust(System):
    """Members in a process each, in which its clients are threads."""

    def __init__(self, folder, members, name=None, lib=None):
        super().__init__(name or "dust %d" % members, folder)
        self.lib = lib or LIB
        self.addresses = [address() for _ in range(members)]
        release()
        for i in range(members):
            w = self.member(i)
            w.sql("SELECT dust_start('%s')" % self.addresses[0] if i == 0 else
                  "SELECT dust_join('%s', '%s')" % (self.addresses[i], self.addresses[0]))
            for sql in TABLES if i == 0 else ():
                w.sql(sql)
        self.settle()

    def member(self, i):
        w = Worker("bench-sqlite", os.path.join(self.dir, "%d.db" % i), BENCH_LOAD=self.lib)
        self.workers.insert(i, w)
        return w

    def leads(self, worker):
        return worker.one("SELECT dust_role()") == "leader"

    def settle(self):
        index = self.order()[0].one("SELECT dust_index()")
        for w in self.workers:
            w.sql("SELECT dust_wait(%s, 60000)" % index)
        if len({w.one("SELECT dust_head()") for w in self.workers}) != 1:
            raise Failed("%s: members with different heads" % self.name)

    def count(self):
        self.settle()
        return super().count()

    def counters(self):
        return dict((name, float(value)) for name, value in
                    (row.split("|") for row in self.order()[0].sql("SELECT name, value FROM dust_metrics")))


class Etcd(System):
    """Three servers; the clients of each in a worker."""

    def __init__(self, folder):
        super().__init__("etcd 3", folder)
        peers, clients = [address() for _ in range(3)], [address() for _ in range(3)]
        release()
        cluster = ",".join("m%d=http://%s" % (i, a) for i, a in enumerate(peers))
        for i in range(3):
            log = open(os.path.join(self.dir, "log%d" % i), "w")
            self.servers.append(subprocess.Popen(
                ["etcd", "--name", "m%d" % i, "--data-dir", os.path.join(self.dir, "m%d" % i), "--initial-cluster", cluster,
                 "--initial-cluster-state", "new", "--listen-peer-urls", "http://" + peers[i],
                 "--initial-advertise-peer-urls", "http://" + peers[i], "--listen-client-urls", "http://" + clients[i],
                 "--advertise-client-urls", "http://" + clients[i], "--quota-backend-bytes", str(8 << 30)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            log.close()
        self.workers = [Worker("bench-etcd", a) for a in clients]
        until("etcd", self.up)
        self.workers[0].sql("fill %d %d" % (KEYS, TEXT))

    def leads(self, worker):
        return worker.one("role") == "leader"

    def up(self):
        try:
            return any(self.leads(w) for w in self.workers)
        except Failed:
            return False

    def count(self):
        return [int(w.one("count")) for w in self.workers]


class Dqlite(System):
    """Three nodes; its clients go to the leader wherever they ask first."""

    def __init__(self, folder):
        super().__init__("dqlite 3", folder)
        nodes = [address() for _ in range(3)]
        release()
        for i, a in enumerate(nodes):
            os.mkdir(os.path.join(self.dir, "n%d" % i))
            p = subprocess.Popen([os.path.join(BUILD, "tools", "dqlite-node"), str(i + 1), a, os.path.join(self.dir, "n%d" % i)],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.servers.append(p)
            if p.stdout.readline().strip() != "ready":
                raise Failed("dqlite-node does not start")
        w = Worker("bench-dqlite", nodes[0])
        self.workers.append(w)
        until("dqlite", lambda: w.one("leader"))
        for i in (1, 2):
            w.sql("add %d %s" % (i + 1, nodes[i]))
        for sql in TABLES:
            w.sql(sql)


class Cost:
    """What a system and the machine spend while something is measured; a system's processes, and the whole disk and loopback
    of the machine, on which nothing else should go on."""

    def __init__(self, system):
        self.pids = system.pids()
        st = os.stat(system.dir)
        self.disk = "%d %d " % (os.major(st.st_dev), os.minor(st.st_dev))
        self.begun = self.look()

    def look(self):
        now = dict.fromkeys(("cpu_us", "disk_bytes", "disk_flushes", "disk_writes", "net_bytes"), 0)
        tick = 1e6 / os.sysconf("SC_CLK_TCK")
        for pid in self.pids:
            try:
                with open("/proc/%d/stat" % pid) as f:
                    words = f.read().rpartition(")")[2].split()
                now["cpu_us"] += (int(words[11]) + int(words[12])) * tick
            except OSError:
                pass  # it was killed meanwhile
        with open("/proc/diskstats") as f:
            for line in f:
                words = line.split()
                if "%s %s " % (words[0], words[1]) == self.disk and len(words) > 18:
                    now.update(disk_writes=int(words[7]), disk_bytes=int(words[9]) * 512, disk_flushes=int(words[18]))
        with open("/proc/net/dev") as f:
            for line in f:
                if line.strip().startswith("lo:"):
                    now["net_bytes"] = int(line.split(":")[1].split()[8])
        return now

    def each(self, count):
        """Of each operation."""
        now = self.look()
        return {name: (now[name] - self.begun[name]) / max(count, 1) for name in now}


def memory(pid):
    """Of a process, in bytes: resident, and of that its own (not files)."""
    found = {}
    with open("/proc/%d/status" % pid) as f:
        for line in f:
            name, _, rest = line.partition(":")
            if name in ("VmRSS", "RssAnon", "RssShmem", "VmHWM"):
                found[name] = int(rest.split()[0]) * 1024
    return found


def at_once(actions):
    """Each in a thread of its own; their values."""
    values, errors = [None] * len(actions), []

    def act(i):
        try:
            values[i] = actions[i]()
        except Exception as e:  # whatever it is, it is told below
            errors.append(e)

    threads = [threading.Thread(target=act, args=(i,)) for i in range(len(actions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return values


def median(values):
    return statistics.median(values)
