"""Members of a cluster as child processes, and what tests ask of them.

    with Box() as box:
        a, b, c = box.cluster(3)
        a.sql("CREATE TABLE t(x)")
        box.settle(a, b, c)
        box.same_files(a, b, c)

Worker is a Python program (worker.py), Shell the stock sqlite3 shell, Member a Worker with a database file and an
address. Every wait has a deadline, and every process is ended by its pid when the Box closes.

Environment
  DUST_LIB      the library; default build/libdust.so
  DUST_AUTOEXT  the C program of tests/cluster/autoext.c; default beside the library
  DUST_PRELOAD  LD_PRELOAD for the programs that load the library (a sanitizer's runtime)
  DUST_SCALE    multiplies counts (scaled()) and deadlines; 1 unless set
  DUST_SLOW     multiplies deadlines only (sanitizers)
  DUST_TMP      where temporary folders are made
  DUST_KEEP     1: do not delete them; 2: only those of failed tests are kept
"""
import concurrent.futures
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIB = os.path.abspath(os.environ.get("DUST_LIB", os.path.join(ROOT, "build", "libdust.so")))
AUTOEXT = os.path.abspath(
    os.environ.get("DUST_AUTOEXT", os.path.join(os.path.dirname(LIB), "tests", "autoext")))
PYTHON = "/usr/bin/python3"
SHELL = "/usr/bin/sqlite3"
SCALE = float(os.environ.get("DUST_SCALE", "1"))
SLOW = float(os.environ.get("DUST_SLOW", "1")) * max(1.0, SCALE)


def scaled(n, least=1):
    """A count, as large as DUST_SCALE makes it."""
    return max(least, int(n * SCALE))


class SqlError(Exception):
    """An error that SQLite gave a Worker. name: as SQLITE_BUSY_SNAPSHOT."""

    def __init__(self, error):
        self.type, self.code, self.name, self.text = (error["type"], error["code"], error["name"], error["text"])
        super().__init__("%s %s: %s" % (self.type, self.name, self.text))


class Dead(Exception):
    """The process has ended."""


class Late(Exception):
    """A deadline has passed."""


def wait_until(what, test, timeout=30.0, every=0.02):
    """Call test() until it is true; give its value. Late says what did not happen."""
    end = time.monotonic() + timeout * SLOW
    while True:
        v = test()
        if v:
            return v
        if time.monotonic() > end:
            raise Late("%s: not within %g s (last: %r)" % (what, timeout * SLOW, v))
        time.sleep(every)


_ports = []
_random = random.Random(os.getpid() ^ time.time_ns())


def free_port():
    """A port nobody has, below the range from which the kernel takes its own. It stays bound here, to nothing, so that
    other tests at the same time do not choose it while its member is down; a member may bind it all the same."""
    for _ in range(1000):
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", _random.randrange(15000, 32000)))
        except OSError:
            s.close()
            continue
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _ports.append(s)
        return s.getsockname()[1]
    raise Late("no free port")


def address():
    return "127.0.0.1:%d" % free_port()


def child_env(extra=None):
    env = dict(os.environ)
    env.pop("LD_PRELOAD", None)
    for k in [k for k in env if k.startswith("DUST_") and k not in ("DUST_SCALE", "DUST_SLOW")]:
        del env[k]
    if os.environ.get("DUST_PRELOAD"):
        env["LD_PRELOAD"] = os.environ["DUST_PRELOAD"]
    env.update(extra or {})
    return env


class Process:
    """A child process with pipes."""

    def __init__(self, box, argv, env=None, name="?"):
        self.name = name
        self.box = box
        self.argv = argv
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=box.dir,
                                  env=child_env(env), text=True, bufsize=1)
        box.note(self)
        self.stderr = []
        self._err = threading.Thread(target=self._read_stderr, daemon=True)
        self._err.start()

    def _read_stderr(self):
        for line in self.p.stderr:
            self.stderr.append(line)

    @property
    def pid(self):
        return self.p.pid

    def alive(self):
        return self.p.poll() is None

    def kill9(self):
        """As the machine's fault: no handler runs."""
        if self.alive():
            self.p.send_signal(signal.SIGKILL)
        self.p.wait(30)

    def freeze(self):
        self.p.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.p.send_signal(signal.SIGCONT)

    def end(self, timeout=60.0):
        """End of input: the program ends by itself. Its exit status."""
        if self.alive():
            try:
                self.p.stdin.close()
            except OSError:
                pass
        try:
            return self.p.wait(timeout * SLOW)
        except subprocess.TimeoutExpired:
            raise Late("%s does not end" % self.name) from None

    def rss_kb(self, peak=False):
        """Resident memory; peak: the most it ever was. Pages of files (the mapped `pages` too) are not counted in the
        former."""
        d = {}
        with open("/proc/%d/status" % self.pid) as f:
            for line in f:
                k, _, v = line.partition(":")
                d[k] = v.split()
        return int(d["VmHWM" if peak else "RssAnon"][0])

    def threads(self):
        return len(os.listdir("/proc/%d/task" % self.pid))


class Worker(Process):
    """A Python program that runs commands (worker.py)."""

    def __init__(self, box, name="w", load=True, env=None):
        super().__init__(box, [PYTHON, os.path.join(ROOT, "tests", "lib", "worker.py")], env, name)
        self._lock = threading.Lock()
        self._next = 0
        self._waiting = {}
        self._out = threading.Thread(target=self._read, args=(self.p, self._waiting), daemon=True)
        self._out.start()
        if load:
            self.call("load", lib=LIB, conn="loader", timeout=60)

    def _read(self, p, waiting):
        """Of one process: the next one of this member has others."""
        for line in p.stdout:
            try:
                d = json.loads(line)
            except ValueError:
                self.stderr.append("not an answer: " + line)
                continue
            with self._lock:
                f = waiting.pop(d["id"], None)
            if f is not None:
                if "error" in d:
                    f.set_exception(SqlError(d["error"]))
                else:
                    f.set_result(unpack(d["result"]))
        p.wait()
        with self._lock:
            if self._waiting is waiting:
                self._waiting = None
            left = list(waiting.values())
        for f in left:
            f.set_exception(Dead("%s has ended (%s)\n%s" % (self.name, p.returncode, "".join(self.stderr[-50:]))))

    def start(self, cmd, **args):
        """Send a command. Gives a future."""
        f = concurrent.futures.Future()
        with self._lock:
            if self._waiting is None:
                raise Dead("%s has ended (%s)\n%s" % (self.name, self.p.returncode, "".join(self.stderr[-50:])))
            self._next += 1
            self._waiting[self._next] = f
            args["id"] = self._next
        args["cmd"] = cmd
        try:
            self.p.stdin.write(json.dumps(pack(args)) + "\n")
            self.p.stdin.flush()
        except OSError:
            raise Dead("%s has ended\n%s" % (self.name, "".join(self.stderr[-50:]))) from None
        return f

    def get(self, future, timeout=60.0):
        try:
            return future.result(timeout * SLOW)
        except concurrent.futures.TimeoutError:
            raise Late("%s: no answer within %g s" % (self.name, timeout * SLOW)) from None

    def call(self, cmd, timeout=60.0, **args):
        return self.get(self.start(cmd, **args), timeout)

    def open(self, path, conn="main", wait=60.0, timeout=30.0, **args):
        """Open a connection. timeout is SQLite's; uri, trace, load: see worker.connect. wait: for the answer."""
        self.call("open", wait, conn=conn, path=path, busy=timeout, **args)

    def close(self, conn="main"):
        self.call("close", conn=conn)

    def sql(self, sql, *params, conn="main", timeout=60.0):
        """Rows, as tuples."""
        return [tuple(r) for r in self.call("sql", timeout, conn=conn, sql=sql, params=list(params))]

    def one(self, sql, *params, conn="main", timeout=60.0):
        """The first column of the first row."""
        return self.sql(sql, *params, conn=conn, timeout=timeout)[0][0]

    def many(self, sql, rows, conn="main", timeout=60.0):
        self.call("many", timeout, conn=conn, sql=sql, rows=[list(r) for r in rows])

    def script(self, sql, conn="main", timeout=60.0):
        self.call("script", timeout, conn=conn, sql=sql)

    def py(self, code, arg=None, conn="main", timeout=60.0):
        """Run Python in the program: `conn` is the connection, `arg` what is given here, `result` the answer."""
        import textwrap

        return self.call("py", timeout, conn=conn, code=textwrap.dedent(code), arg=arg)

    def error(self, sql, *params, conn="main", timeout=60.0):
        """The error that this SQL gives (and it must give one)."""
        try:
            rows = self.sql(sql, *params, conn=conn, timeout=timeout)
        except SqlError as e:
            return e
        raise AssertionError("no error, but %r from: %s" % (rows, sql))

    def open_error(self, path, conn="err", wait=60.0, **args):
        """The error that opening this database gives, at once or with the first statement."""
        try:
            self.open(path, conn=conn, wait=wait, **args)
        except SqlError as e:
            return e
        try:
            rows = self.sql("SELECT count(*) FROM sqlite_master", conn=conn, timeout=wait)
        except SqlError as e:
            return e
        finally:
            self.close(conn)
        raise AssertionError("no error, but %r from opening %s" % (rows, path))


class Member(Worker):
    """A Worker with a database that is, or is to be, a member's."""

    def __init__(self, box, name, path=None, addr=None, env=None, load=True, trace=False):
        self.path = path or os.path.join(box.dir, name + ".db")
        self.address = addr or address()
        self.env = env
        self.trace = trace
        super().__init__(box, name, load=load, env=env)

    def create(self, **args):
        """Start a cluster of one on the file."""
        self.open(self.path, trace=self.trace, **args)
        self.sql("SELECT dust_start(?, ?)", self.address, self.box.keyfile)
        return self

    def join(self, *others, **args):
        self.open(self.path, trace=self.trace, **args)
        self.sql("SELECT dust_join(?, ?, ?)", self.address, ",".join(o.address for o in others), self.box.keyfile,
                 timeout=60)
        return self

    def again(self, conn="main", wait=60.0, **args):
        """Open the member's file, by its path only."""
        self.open(self.path, conn=conn, wait=wait, trace=args.pop("trace", self.trace), **args)
        return self

    def restart(self, open_=True):
        """A new process for the same member. What it holds of the old one (futures) is dead."""
        assert not self.alive()
        Worker.__init__(self, self.box, self.name, env=self.env)
        if open_:
            self.again()
        return self

    # What dust says.
    def role(self):
        return self.one("SELECT dust_role()")

    def id(self):
        return self.one("SELECT dust_id()")

    def head(self, conn="main"):
        return self.one("SELECT dust_head()", conn=conn)

    def index(self):
        return self.one("SELECT dust_index()")

    def status(self):
        return dict(self.sql("SELECT name, value FROM dust_status"))

    def checkpoint(self, timeout=60.0):
        return self.one("SELECT dust_checkpoint()", timeout=timeout)

    def writer(self, who=None, acks=None, **args):
        who = who or self.name
        acks = acks or os.path.join(self.box.dir, "acked-" + who)
        if "timeout" in args:
            args["busy"] = args.pop("timeout")
        self.call("writer_start", conn="writers", who=who, path=self.path, acks=acks, **args)
        return who

    def writer_state(self, who=None):
        return self.call("writer_state", who=who or self.name)

    def writer_stop(self, who=None, timeout=90.0):
        return self.call("writer_stop", timeout, conn="writers", who=who or self.name, wait=timeout)


class Shell(Process):
    """The stock sqlite3 shell, fed line by line."""

    def __init__(self, box, path=None, name="shell", load=True, args=(), env=None):
        argv = [SHELL, "-batch", *args]
        if path is not None:
            argv.append(path)
        super().__init__(box, argv, env, name)
        self._n = 0
        self._lines = []
        self._cond = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()
        if load:
            self.run(".timeout 30000")
            self.run(".load " + LIB)

    def _read(self):
        for line in self.p.stdout:
            with self._cond:
                self._lines.append(line)
                self._cond.notify_all()
        with self._cond:
            self._ended = True
            self._cond.notify_all()

    def send(self, text):
        """Give it input and do not wait."""
        try:
            self.p.stdin.write(text + "\n")
            self.p.stdin.flush()
        except OSError:
            raise Dead(self.name + " has ended") from None

    def run(self, text, timeout=60.0, check=True):
        """Give it input, wait until it is done, give the output. With check, what it says on stderr is an error."""
        self._n += 1
        mark = "@@%d@@" % self._n
        before = len(self.stderr)
        self.send(text + "\n.print " + mark)
        end = time.monotonic() + timeout * SLOW
        out = []
        with self._cond:
            while True:
                while self._lines:
                    line = self._lines.pop(0)
                    if line.rstrip("\n").endswith(mark):
                        out.append(line.rstrip("\n")[:-len(mark)])
                        break
                    out.append(line)
                else:
                    if self._ended:
                        raise Dead("%s has ended: %s" % (self.name, "".join(self.stderr)))
                    left = end - time.monotonic()
                    if left <= 0:
                        raise Late("%s: no answer to %r within %g s" % (self.name, text, timeout * SLOW))
                    self._cond.wait(left)
                    continue
                break
        self.said = "".join(self.stderr[before:])
        if check and not self.said:
            time.sleep(0.01)  # what was written to stderr before the mark may be read a moment after it
            self.said = "".join(self.stderr[before:])
        if check and self.said:
            raise AssertionError("%s: %r says: %s" % (self.name, text, self.said))
        return "".join(out)

    def fails(self, text, timeout=60.0):
        """The message that this input gives (and it must give one)."""
        out = self.run(text, timeout, check=False)
        if not self.said:
            time.sleep(0.1)
        said = "".join(self.stderr)[-len(self.said) - 1000:] if not self.said else self.said
        assert said, "no error, but %r" % out
        return said


def copy_folder(source, to):
    """Of a member or of several, without the sockets of processes that are there."""
    def sockets(folder, names):
        return [x for x in names if stat.S_ISSOCK(os.lstat(os.path.join(folder, x)).st_mode)]
    shutil.copytree(source, to, ignore=sockets)


def plain(path, sql, *params, timeout=30.0):
    """Run SQL with plain SQLite: this process has no dust."""
    c = sqlite3.connect(path, timeout=timeout, isolation_level=None)
    try:
        return c.execute(sql, params).fetchall()
    finally:
        c.close()


def shell_once(path, *sql, cwd=None, args=()):
    """Run a plain sqlite3 shell to its end: (status, output, errors)."""
    p = subprocess.run([SHELL, "-batch", *args, path, *sql], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       cwd=cwd, timeout=120 * SLOW, env=child_env())
    return p.returncode, p.stdout, p.stderr


class Box:
    """A temporary folder and the processes that live in it."""

    def __init__(self, name="box"):
        self.keyfile = None
        self.dir = tempfile.mkdtemp(prefix="dust-%s-" % name, dir=os.environ.get("DUST_TMP"))
        self.processes = []
        self.failed = False

    def __enter__(self):
        return self

    def __exit__(self, kind, value, tb):
        self.failed = self.failed or kind is not None
        self.shut()

    def note(self, p):
        if p not in self.processes:
            self.processes.append(p)
        return p

    def shut(self):
        for p in self.processes:
            if p.alive():
                p.p.kill()
        for p in self.processes:
            p.p.wait(30)
            for f in (p.p.stdin, p.p.stdout):
                try:
                    f.close()
                except OSError:
                    pass
        keep = os.environ.get("DUST_KEEP", "")
        if keep == "1" or (keep == "2" and self.failed):
            print("kept:", self.dir)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def make_key(self, name="cluster.key"):
        """A file with a new key, which clusters made from now on have."""
        self.keyfile = self.path(name)
        with open(os.open(self.keyfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write("dust-key-1:%s\n" % os.urandom(32).hex())
        return self.keyfile

    def worker(self, name="w", **args):
        return Worker(self, name, **args)

    def member(self, name, **args):
        return Member(self, name, **args)

    def shell(self, path=None, name="shell", **args):
        return Shell(self, path, name, **args)

    def cluster(self, n=3, names="abcdefg", **args):
        """n members that know each other; the first one leads, as yet."""
        members = [self.member(names[i], **args) for i in range(n)]
        members[0].create()
        for m in members[1:]:
            m.join(members[0])
        return members

    # What must hold among members.
    def settle(self, *members, timeout=60.0):
        """Wait until all have the same head, with nobody writing. Gives the head."""
        def equal():
            index = max(m.index() for m in members)
            for m in members:
                m.one("SELECT dust_wait(?, 1000)", index)
            heads = {m.name: m.head() for m in members}
            return heads if len(set(heads.values())) == 1 else None
        return next(iter(wait_until("equal heads", equal, timeout).values()))

    def same_files(self, *members, timeout=60.0):
        """After a checkpoint on each, the files are the same, page for page. Gives the head."""
        head = self.settle(*members, timeout=timeout)
        for m in members:
            got = m.checkpoint(timeout=timeout)
            assert got == head, "%s: dust_checkpoint() gave %s, the head is %s" % (m.name, got, head)
        different(members[0].path, *(m.path for m in members[1:]))
        return head

    def leader(self, *members, timeout=30.0):
        """Wait until exactly one of these leads, and all of them know it."""
        def known():
            leaders = []
            for m in members:
                if m.alive():
                    role, addr = m.sql("SELECT dust_role(), dust_leader()")[0]
                    if role == "leader":
                        leaders.append(m)
                    if addr is None:
                        return None
            if len(leaders) != 1:
                return None
            for m in members:
                if m.alive() and m.one("SELECT dust_leader()") != leaders[0].address:
                    return None
            return leaders[0]
        return wait_until("one leader", known, timeout)

    def acked(self, *whos):
        """What writers had acknowledged: a set of (who, seq)."""
        rows = set()
        for who in whos:
            try:
                with open(self.path("acked-" + who), "rb") as f:
                    data = f.read()
            except FileNotFoundError:
                continue
            for line in data.split(b"\n")[:-1]:
                name, seq = line.split()
                rows.add((name.decode(), int(seq)))
        return rows


def different(first, *others):
    """Fail with the numbers of the pages in which the files differ."""
    with open(first, "rb") as f:
        one = f.read()
    size = int.from_bytes(one[16:18], "big")
    size = 65536 if size == 1 else size
    for path in others:
        with open(path, "rb") as f:
            two = f.read()
        if one == two:
            continue
        pages = [i // size + 1 for i in range(0, max(len(one), len(two)), size) if one[i:i + size] != two[i:i + size]]
        at = next((i for i in range(min(len(one), len(two))) if one[i] != two[i]), min(len(one), len(two)))
        raise AssertionError("%s (%d pages) and %s (%d pages) differ in %d pages: %s; first at byte %d" % (
            os.path.basename(first), len(one) // size, os.path.basename(path), len(two) // size, len(pages),
            pages[:20], at))


def pack(v):
    if isinstance(v, (bytes, bytearray, memoryview)):
        return {"hex": bytes(v).hex()}
    if isinstance(v, (list, tuple)):
        return [pack(x) for x in v]
    if isinstance(v, dict):
        return {k: pack(x) for k, x in v.items()}
    return v


def unpack(v):
    if isinstance(v, dict) and set(v) == {"hex"}:
        return bytes.fromhex(v["hex"])
    if isinstance(v, dict):
        return {k: unpack(x) for k, x in v.items()}
    if isinstance(v, list):
        return [unpack(x) for x in v]
    return v
