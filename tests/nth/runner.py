"""Runs scenarios with one call failing, each in a forked child: for test_nth.py.

Reads requests as JSON lines, the first one with the paths of the library, of the injector (nth.c) and of its control
file, which are loaded once. Each of the others names a scenario and a folder, and is served by a child. "make": it makes
the files that runs begin with. "run": it
    1. does what the scenario does beforehand,
    2. arms the injector and does the steps, each of which may fail, with an error that says so,
    3. disarms it (after LASTS seconds even if a step still waits) and checks: everything goes on, what was acknowledged
       is there once, what was refused is not,
and ends, without closing anything. "look": it opens what a run has left on disk, and checks the same. The answer has
what nth.c says came of it, and "wrong", a list of texts: empty if all is as it should be.

All members of a scenario are in one process. Where another process has the same member open (Helper), nothing is made to
fail there.
"""
import ctypes
import json
import mmap
import os
import re
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time

PATIENCE = 25  # seconds until everything has to go on again
LASTS = 5  # seconds, what is made to fail from one call on; less if the steps are over before
NEVER = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_MISUSE", "SQLITE_INTERNAL")


class Control:
    """struct control of nth.c."""

    HEAD = struct.Struct("<6I3Q32s256s")
    FRAME = struct.Struct("<IIQ48s")
    FRAMES = 16
    CALLS_KEPT = 65536
    LIBS = ("dust", "raft", "uv", "sqlite3")

    def __init__(self, path):
        with open(path, "wb") as f:
            f.truncate(4 << 20)
        f = os.open(path, os.O_RDWR)
        self.map = mmap.mmap(f, 4 << 20)
        os.close(f)

    def set(self, kinds, libs, mode, n, folder):
        self.map[:self.HEAD.size] = self.HEAD.pack(0, kinds, libs, mode, 0, 0, n, 0, 0, b"", folder.encode())

    def arm(self, on):
        self.map[0:4] = struct.pack("<I", on)

    def get(self):
        v = self.HEAD.unpack(self.map[:self.HEAD.size])
        at = self.HEAD.size
        stack = []
        for i in range(v[5]):
            lib, _, offset, name = self.FRAME.unpack(self.map[at:at + self.FRAME.size])
            stack.append("%s+%#x" % (self.LIBS[lib], offset))
            at += self.FRAME.size
        return {"met": v[7], "failed": v[8], "call": v[9].split(b"\0")[0].decode(), "stack": " ".join(stack[:8])}

    def calls(self):
        """A hash of the stack of each call."""
        at = self.HEAD.size + self.FRAMES * self.FRAME.size
        count = min(self.get()["met"], self.CALLS_KEPT)
        return list(struct.unpack("<%dQ" % count, self.map[at:at + 8 * count]))


class World:
    """The members of a scenario, and what was acknowledged."""

    def __init__(self, folder, control):
        self.dir, self.control = folder, control
        self.wrong = []
        self.acked, self.unknown, self.refused = set(), set(), set()
        self.conns = {}
        self.n = 0

    def path(self, name):
        return os.path.join(self.dir, name + ".db")

    def conn(self, name):
        c = self.conns.get(name)
        if c is None:
            c = sqlite3.connect("file:%s?vfs=dust&timeout=1500&election=200" % self.path(name), uri=True, timeout=2,
                                isolation_level=None, check_same_thread=False)
            self.conns[name] = c
        return c

    def opens(self, name):
        try:
            self.conn(name)
            return True
        except sqlite3.Error as e:
            self.judge("open", e)
        except MemoryError:
            pass
        return False

    def plain_conn(self, name):
        """Of a database that is no member yet. None if it cannot be opened."""
        if name not in self.conns:
            try:
                self.conns[name] = sqlite3.connect(self.path(name), timeout=2, isolation_level=None,
                                                   check_same_thread=False)
            except sqlite3.Error as e:
                self.judge("open", e)
            except MemoryError:
                pass
        return self.conns.get(name)

    def close(self, name):
        c = self.conns.pop(name, None)
        if c is not None:
            c.close()

    def as_told(self, name, text):
        """Deletes the folder, if that is what the text of an error says."""
        folder = self.path(name) + "-dust"
        if "delete %s" % folder not in text:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        self.close(name)
        return True

    def is_member(self, name):
        try:
            return self.conns[name].execute("SELECT dust_id()").fetchone()[0] is not None
        except (sqlite3.Error, KeyError):
            return False

    def step(self, name, sql, *params):
        """One statement, which may fail. Its rows; None if it did."""
        try:
            return self.conn(name).execute(sql, params).fetchall()
        except sqlite3.Error as e:
            self.judge(sql, e)
            return None
        except MemoryError:
            return None

    def judge(self, sql, e):
        code = getattr(e, "sqlite_errorname", "?")
        if code.startswith(NEVER) or not str(e):
            self.wrong.append("%s: %s: %s" % (sql[:60], code, e))
        return code

    def insert(self, name, size=10):
        """A row; what became of it is written down."""
        self.n += 1
        who = "%s%d.%d" % (name, os.getpid(), self.n)
        try:
            self.conn(name).execute("INSERT INTO t(who, x) VALUES(?, randomblob(?))", (who, size))
            self.acked.add(who)
            return True
        except sqlite3.Error as e:
            code = self.judge("INSERT", e)
            (self.unknown if code == "SQLITE_IOERR_COMMIT_ATOMIC" else self.refused).add(who)
        except MemoryError:
            self.unknown.add(who)
        return False

    def goes_on(self, name):
        """Writes on this member, before patience ends."""
        end = time.monotonic() + PATIENCE
        while not self.insert(name):
            if time.monotonic() > end:
                self.wrong.append("%s does not go on: %s" % (name, self.why(name)))
                return
            time.sleep(0.05)

    def why(self, name):
        try:
            c = self.conn(name)
            c.execute("PRAGMA dust_consistency = stale")
            return dict(c.execute("SELECT name, value FROM dust_status").fetchall())
        except sqlite3.Error as e:
            return str(e)

    def check(self, *names):
        """All rows, on every member."""
        for name in names:
            c = self.conn(name)
            c.execute("PRAGMA dust_consistency = linearizable")
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    rows = [r[0] for r in c.execute("SELECT who FROM t")]
                    ok = c.execute("PRAGMA integrity_check").fetchall()
                    break
                except sqlite3.Error as e:
                    self.judge("SELECT", e)
                    if time.monotonic() > end:
                        self.wrong.append("%s cannot be read: %s: %s" % (name, e, self.why(name)))
                        return
            self.compare(name, rows, ok)

    def compare(self, name, rows, ok):
        have = set(rows)
        if ok != [("ok",)]:
            self.wrong.append("%s: integrity_check: %s" % (name, ok[:3]))
        if len(rows) != len(have):
            self.wrong.append("%s: rows there twice" % name)
        if self.acked - have:
            self.wrong.append("%s: acknowledged and not there: %s" % (name, sorted(self.acked - have)[:5]))
        if self.refused & have:
            self.wrong.append("%s: refused and there: %s" % (name, sorted(self.refused & have)[:5]))


class Helper:
    """Another process on the same member, in which nothing is made to fail."""

    CODE = """
import ctypes, json, signal, sqlite3, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the runner
c = sqlite3.connect(":memory:")
c.enable_load_extension(True)
c.load_extension(sys.argv[1])
c = sqlite3.connect("file:%s?vfs=dust&timeout=1500&election=200" % sys.argv[2], uri=True, timeout=4, isolation_level=None)
for line in sys.stdin:
    sql, params = json.loads(line)
    try:
        print(json.dumps({"rows": c.execute(sql, params).fetchall()}), flush=True)
    except sqlite3.Error as e:
        print(json.dumps({"code": getattr(e, "sqlite_errorname", "?"), "text": str(e)}), flush=True)
    except MemoryError:
        print(json.dumps({"code": "SQLITE_NOMEM", "text": "out of memory"}), flush=True)
"""

    def __init__(self, w, name):
        self.w, self.n = w, 0
        env = {k: v for k, v in os.environ.items() if k != "NTH_PORT"}
        self.p = subprocess.Popen([sys.executable, "-B", "-c", self.CODE, LIBRARY, w.path(name)], text=True, env=env,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.step("PRAGMA user_version")

    def step(self, sql, *params):
        """One statement. Its rows; None if it failed, which it may, with an error that says so."""
        self.p.stdin.write(json.dumps([sql, params]) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        if not line:
            self.w.wrong.append("the other process has ended: %s" % self.p.wait(10))
            raise EOFError
        r = json.loads(line)
        self.code = r.get("code")
        if self.code is not None and (self.code.startswith(NEVER) or not r["text"]):
            self.w.wrong.append("the other process: %s: %s: %s" % (sql[:60], self.code, r["text"]))
        return r.get("rows")

    def insert(self, size=10):
        self.n += 1
        who = "helper%d.%d" % (self.p.pid, self.n)
        if self.step("INSERT INTO t(who, x) VALUES(?, zeroblob(?))", who, size) is not None:
            self.w.acked.add(who)
            return True
        (self.w.unknown if self.code == "SQLITE_IOERR_COMMIT_ATOMIC" else self.w.refused).add(who)
        return False

    def goes_on(self):
        end = time.monotonic() + PATIENCE
        while not self.insert():
            if time.monotonic() > end:
                self.w.wrong.append("the other process does not go on: %s" % self.step("SELECT * FROM dust_status"))
                return
            time.sleep(0.05)

    def check(self):
        rows = self.step("SELECT who FROM t")
        ok = self.step("PRAGMA integrity_check")
        if rows is None or ok is None:
            self.w.wrong.append("the other process cannot read: %s" % self.code)
            return
        self.w.compare("the other process", [r[0] for r in rows], [tuple(x) for x in ok])

    def kill(self):
        self.p.kill()
        self.p.wait()


SCENARIOS = {}
LIBRARY = None


def address(i):
    return "127.0.0.1:%d" % (int(os.environ["NTH_PORT"]) + i)


class Scenario:
    """What all have: members go on, and have all rows; and do so again when they are opened anew."""

    members = "a"

    def open_all(self, w):
        for name in self.members:
            w.conn(name)
        for name in self.members:
            w.goes_on(name)

    def after(self, w):
        self.open_all(w)
        w.check(*self.members)

    look = after


class One(Scenario):
    """A cluster of one: writes of several kinds, a checkpoint."""

    def make(self, w):
        """The files that every run begins with."""
        c = sqlite3.connect(w.path("a"))
        c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, x)")
        c.close()
        w.conn("a").execute("SELECT dust_start(?)", (address(0),))
        w.insert("a")

    def before(self, w):
        w.conn("a").execute("SELECT count(*) FROM t").fetchall()
        w.goes_on("a")

    def steps(self, w):
        w.insert("a")
        w.insert("a", 20000)
        w.step("a", "SAVEPOINT s")
        w.step("a", "INSERT INTO t(who) VALUES('never')")
        w.step("a", "ROLLBACK TO s")
        w.step("a", "RELEASE s")
        if w.conn("a").in_transaction:
            w.step("a", "ROLLBACK")
        w.step("a", "UPDATE t SET x = x WHERE id = 1")
        w.step("a", "SELECT dust_checkpoint()")
        w.insert("a")


class Start(One):
    """dust_start itself."""

    def make(self, w):
        c = sqlite3.connect(w.path("a"))
        c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, x)")
        c.close()

    def before(self, w):
        pass

    def steps(self, w):
        if w.plain_conn("a") is not None and w.step("a", "SELECT dust_start(?)", address(0)):
            w.insert("a")

    def after(self, w):
        w.close("a")
        try:
            if os.path.isdir(w.path("a") + "-dust"):
                w.conn("a")  # what could not be undone is finished by opening
        except sqlite3.Error as e:
            if not w.as_told("a", str(e)):
                raise
        w.plain_conn("a")
        if not w.is_member("a"):
            w.conns["a"].execute("SELECT dust_start(?)", (address(0),))
        super().after(w)


class Open(One):
    """A member is opened."""

    def before(self, w):
        pass

    def steps(self, w):
        if not w.opens("a"):
            return
        w.insert("a")


class Join(Scenario):
    """A second member joins, with content that has to be fetched."""

    members = "ab"

    def make(self, w):
        One.make(self, w)
        w.insert("a", 300000)
        w.conn("a").execute("SELECT dust_checkpoint()").fetchall()

    def before(self, w):
        w.conn("a")
        w.goes_on("a")

    def try_join(self, w):
        c = w.plain_conn("b")
        if c is not None:
            c.execute("SELECT dust_join(?, ?)", (address(1), address(0)))

    def steps(self, w):
        try:
            self.try_join(w)
        except sqlite3.Error as e:
            w.judge("join", e)
            w.as_told("b", str(e))
            return
        except MemoryError:
            return
        w.insert("b")
        w.insert("a")

    def after(self, w):
        w.goes_on("a")
        end = time.monotonic() + PATIENCE
        while True:
            try:
                w.plain_conn("b")
                if not w.is_member("b"):
                    self.try_join(w)
                break
            except (sqlite3.Error, KeyError) as e:
                text = str(e)
                if "belongs to member " in text:  # what an earlier try left: done as it says
                    w.step("a", "SELECT dust_remove(%s)" % text.split("belongs to member ")[1].split()[0])
                elif "is a member of a cluster already" in text:
                    w.close("b")
                else:
                    w.as_told("b", text)
                if time.monotonic() > end:
                    w.wrong.append("b cannot join: %s" % text)
                    return
                time.sleep(0.1)
        w.goes_on("b")
        w.check("a", "b")


class Follow(Scenario):
    """Two members, whose majority is both: what one writes the other stores and applies, and each forwards."""

    members = "ab"

    def make(self, w):
        One.make(self, w)
        w.plain_conn("b").execute("SELECT dust_join(?, ?)", (address(1), address(0)))
        w.insert("b")

    def before(self, w):
        self.open_all(w)

    def steps(self, w):
        w.insert("b")
        w.insert("a", 20000)
        w.step("b", "SELECT dust_checkpoint()")
        w.insert("b", 20000)
        w.step("b", "PRAGMA dust_consistency = linearizable")
        w.step("b", "SELECT count(*) FROM t")
        w.insert("a")


class Fetch(Scenario):
    """A third member comes back, for whom the log has been cut: it fetches the pages."""

    members = "abc"

    def make(self, w):
        Follow.make(self, w)
        w.plain_conn("c").execute("SELECT dust_join(?, ?)", (address(2), address(0)))
        w.insert("c")
        w.step("c", "PRAGMA dust_consistency = linearizable")
        w.step("c", "SELECT count(*) FROM t")
        w.close("c")
        for _ in range(28):
            w.insert("a", 800000)
        w.step("a", "SELECT dust_checkpoint()")
        w.step("a", "DELETE FROM t WHERE length(x) > 100000 AND id % 4 != 0")
        w.acked = set()  # only of this child
        w.step("a", "SELECT dust_checkpoint()")

    def before(self, w):
        for name in "ab":
            w.conn(name)
        w.goes_on("a")

    def steps(self, w):
        try:
            w.conn("c")
        except sqlite3.Error as e:
            w.judge("open", e)
            return
        except MemoryError:
            return
        w.insert("c")
        w.insert("a")


class Leave(Scenario):
    """One of two members leaves."""

    members = "ab"
    stay = "a"

    def make(self, w):
        Follow.make(self, w)

    def before(self, w):
        self.open_all(w)

    def steps(self, w):
        try:
            w.conn("b").execute("SELECT dust_leave()")
            w.close("b")
        except sqlite3.Error as e:
            w.judge("leave", e)
        except MemoryError:
            pass
        w.insert("a")

    def after(self, w):
        w.goes_on("a") if self.left(w) else None
        end = time.monotonic() + PATIENCE
        while not self.left(w):
            try:
                w.conn("b").execute("SELECT dust_leave()")
                w.close("b")
            except sqlite3.Error as e:
                w.close("b")
                w.as_told("b", str(e))
                if time.monotonic() > end:
                    w.wrong.append("b cannot leave: %s" % e)
                    return
                time.sleep(0.1)
        w.goes_on("a")
        w.check("a")
        if w.conns["a"].execute("SELECT count(*) FROM dust_members").fetchone()[0] != 1:
            w.wrong.append("a has members left: %s" % w.conns["a"].execute("SELECT * FROM dust_members").fetchall())
        self.ordinary(w)

    def left(self, w):
        return not os.path.isdir(w.path("b") + "-dust")

    def ordinary(self, w):
        """What has left has an ordinary database, with all that there was when it left; not what came later."""
        c = sqlite3.connect(w.path("b"), isolation_level=None)
        have = {r[0] for r in c.execute("SELECT who FROM t")}
        if c.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            w.wrong.append("b is damaged")
        if have & w.refused or not have:
            w.wrong.append("b has %s" % sorted(have & w.refused))
        c.execute("INSERT INTO t(who) VALUES('its own')")
        c.close()

    def look(self, w):
        w.conn("a")
        w.goes_on("a")
        w.check("a")


class Recover(Scenario):
    """The only one left of two makes an ordinary database of what it has."""

    members = "a"

    def make(self, w):
        Follow.make(self, w)

    def before(self, w):
        c = sqlite3.connect(":memory:", isolation_level=None)
        w.conns["tool"] = c

    def try_it(self, w, dest):
        return w.step("tool", "SELECT dust_recover(?, ?)", w.path("a"), w.path(dest))

    def steps(self, w):
        self.done = "first" if self.try_it(w, "first") else None

    def after(self, w):
        if not self.done:
            if self.try_it(w, "second") is None:
                w.wrong.append("what is left cannot be recovered any more")
                return
            self.done = "second"
        c = sqlite3.connect(w.path(self.done))
        n = c.execute("SELECT count(*) FROM t").fetchone()[0]
        ok = c.execute("PRAGMA integrity_check").fetchall()
        if n != 2 or ok != [("ok",)] or os.path.exists(w.path(self.done) + "-dust"):
            w.wrong.append("%s has %d rows, %s, %s" % (self.done, n, ok, os.listdir(w.dir)))

    def look(self, w):
        """The folder that it was made from is as it was."""
        self.before(w)
        if self.try_it(w, "third") is None:
            w.wrong.append("a second time it cannot be recovered")


class Attach(One):
    """A process attaches to a member that another one hosts, and works there. In the end it takes over."""

    def before(self, w):
        self.helper = Helper(w, "a")
        self.helper.goes_on()

    def steps(self, w):
        if not w.opens("a"):
            return
        super().steps(w)
        w.step("a", "SELECT * FROM dust_status")
        w.step("a", "PRAGMA dust_consistency = linearizable")
        w.step("a", "SELECT count(*) FROM t")

    def after(self, w):
        w.goes_on("a")
        self.helper.goes_on()
        w.check("a")
        self.helper.check()
        self.helper.kill()
        w.goes_on("a")
        w.check("a")


class Host(One):
    """A process hosts a member, and another one attaches to it and works there. In the end that one takes over."""

    def steps(self, w):
        self.helper = Helper(w, "a")
        self.helper.insert()
        w.insert("a")
        self.helper.step("PRAGMA dust_consistency = linearizable")
        self.helper.step("SELECT count(*) FROM t")
        self.helper.insert(20000)
        self.helper.step("SELECT dust_checkpoint()")
        self.helper.step("SELECT * FROM dust_status")
        w.insert("a")

    def after(self, w):
        w.goes_on("a")
        self.helper.goes_on()
        w.check("a")
        self.helper.check()
        w.close("a")  # the process stays the host: it has had it open
        self.helper.goes_on()
        self.helper.check()
        self.helper.kill()


class Takeover(One):
    """The process that hosts the member is killed; this one was attached, and takes over."""

    def before(self, w):
        self.helper = Helper(w, "a")
        self.helper.goes_on()
        w.conn("a")
        w.goes_on("a")

    def steps(self, w):
        self.helper.kill()
        w.insert("a")
        w.step("a", "SELECT count(*) FROM t")
        w.insert("a", 20000)

    def after(self, w):
        w.goes_on("a")
        self.helper = Helper(w, "a")
        self.helper.goes_on()
        w.check("a")
        self.helper.check()
        self.helper.kill()


for kind in (One, Start, Open, Join, Follow, Fetch, Leave, Recover, Attach, Host, Takeover):
    SCENARIOS[kind.__name__.lower()] = kind()


def child(request, control, out):
    w = World(request["dir"], control)
    s = SCENARIOS[request["scenario"]]
    os.environ["NTH_PORT"] = str(request["port"])
    if request["what"] == "make":
        s.make(w)
    elif request["what"] == "run":
        s.before(w)
        control.arm(1)
        over = threading.Timer(LASTS, control.arm, (0,))  # dust_join waits for as long as it lasts
        over.start()
        s.steps(w)
        over.cancel()
        control.arm(0)
        s.after(w)
    else:
        w.acked, w.refused = set(request["acked"]), set(request["refused"])
        s.look(w)
    os.write(out, json.dumps({"wrong": w.wrong, "acked": sorted(w.acked), "refused": sorted(w.refused)}).encode())
    os._exit(0)


def stacks(pid):
    """A line for each thread that may be of interest: what it is in, innermost first."""
    p = subprocess.run(["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 24"], capture_output=True,
                       text=True, stdin=subprocess.DEVNULL)
    threads = []
    for line in p.stdout.splitlines():
        if line.startswith("Thread"):
            threads.append([])
        elif line.startswith("#") and threads:
            m = re.match(r"#\d+ +(?:0x\w+ in )?(\S+) .*?([\w.]+:\d+)?$", line)
            name = m.group(1) if m else line
            if not name.startswith(("_Py", "Py", "__futex", "__GI___futex", "__pthread", "___pthread", "cfunction")):
                threads[-1].append(name + (" " + m.group(2) if m and m.group(2) else ""))
    return "\n".join(" < ".join(t) for t in threads if not any(x.startswith("uv_cond_wait") for x in t[:2]))[:6000]


def serve(request, control):
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(from_child)
        signal.alarm(0)
        try:
            child(request, control, to_parent)
        except BaseException as e:
            import traceback
            os.write(to_parent, json.dumps({"wrong": ["the scenario ended with " + traceback.format_exc()[-1500:]],
                                            "acked": [], "refused": []}).encode())
        os._exit(0)
    os.close(to_parent)
    answer, hung = b"", None
    end = time.monotonic() + request["limit"]
    while True:
        ready, _, _ = select.select([from_child], [], [], max(0, end - time.monotonic()))
        if not ready:
            hung = stacks(pid)
            os.kill(pid, signal.SIGKILL)
            break
        more = os.read(from_child, 1 << 20)
        if not more:
            break
        answer += more
    os.close(from_child)
    _, status = os.waitpid(pid, 0)
    result = json.loads(answer) if answer else {"wrong": [], "acked": [], "refused": []}
    if hung is not None:
        result["wrong"].append("it hangs:\n" + hung)
    elif status != 0:
        result["wrong"].append("the process ended with %d" % os.waitstatus_to_exitcode(status))
    return result


def main():
    c = sqlite3.connect(":memory:")
    c.enable_load_extension(True)
    first = json.loads(sys.stdin.readline())
    global LIBRARY
    LIBRARY = first["lib"]
    c.load_extension(LIBRARY)
    c.close()
    control = Control(first["control"])
    nth = ctypes.CDLL(first["nth"])
    nth.nth_setup(first["control"].encode())
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        control.set(request.get("kinds", 0), request.get("libs", 0), request.get("mode", 0), request.get("n", 0),
                    request["dir"])
        result = serve(request, control)
        result.update(control.get())
        if request["what"] == "run" and request["n"] == 0:
            result["calls"] = control.calls()
        print(json.dumps(result), flush=True)


main()
