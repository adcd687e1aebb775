"""Several processes on one member: one hosts it, the others are attached, and any of them takes over."""
import os
import shutil
import subprocess
import time

import pytest

from cluster import LIB, PYTHON, SLOW, SqlError, Worker, child_env, free_port, scaled, wait_until
from tap import Tap

# Counts up with several threads, a connection each: by single statements, or in transactions that read first. Each count
# is noted once it is acknowledged.
COUNT = """
import threading
done, errors = [0] * arg["threads"], []

def run(i):
    try:
        c = connect(arg["path"], timeout=30, trace=arg.get("trace", False))
        k = 0
        while not os.path.exists(arg["stop"]) and (arg["n"] == 0 or k < arg["n"]):
            if i % 2 == 0:
                c.execute("UPDATE counter SET n = n + 1 WHERE id = ?", (arg["id"],))
            else:
                c.execute("BEGIN IMMEDIATE")
                n, = c.execute("SELECT n FROM counter WHERE id = ?", (arg["id"],)).fetchone()
                c.execute("UPDATE counter SET n = ? WHERE id = ?", (n + 1, arg["id"]))
                c.execute("COMMIT")
            k += 1
            done[i] = k
        c.close()
    except Exception as e:
        said = c.execute("SELECT value FROM dust_status WHERE name = 'connection_error'").fetchall()
        errors.append("%d after %d: %s %s %s" % (i, done[i], getattr(e, "sqlite_errorname", ""), e, said))

threads = [threading.Thread(target=run, args=(i,)) for i in range(arg["threads"])]
for t in threads:
    t.start()
for t in threads:
    t.join()
result = {"done": sum(done), "errors": errors}
"""


# A statement that has not come to its end, and its going on.
OPEN_SELECT = """
conns["cursor"] = conn.execute("SELECT id, v FROM other ORDER BY id")
conns["cursor"].fetchone()
"""
GO_ON = """
try:
    result = len(conns["cursor"].fetchall())
except sqlite3.Error as e:
    result = e.sqlite_errorname
del conns["cursor"]
"""


def attach(box, m, name):
    """One more process on a member's file."""
    w = Worker(box, name)
    w.open(m.path)
    return w


def value(w, sql, *params):
    return w.call("sql", conn="main", sql=sql, params=list(params))[0][0]


def status(w):
    return dict(w.call("sql", conn="main", sql="SELECT name, value FROM dust_status", params=[]))


def three(box):
    a, b, c = members = [box.member(n) for n in "abc"]
    a.create()
    a.sql("CREATE TABLE counter(id INTEGER PRIMARY KEY, n INTEGER)")
    a.sql("INSERT INTO counter VALUES(0, 0), (1, 0), (2, 0)")
    b.join(a)
    c.join(a)
    box.settle(*members)
    return members


def test_surface(box):
    """Whatever a connection can do, it can do here."""
    a, b, c = three(box)
    w = attach(box, a, "w")
    assert value(w, "SELECT dust_id()") == a.id()
    assert value(w, "SELECT dust_role()") == a.one("SELECT dust_role()")
    assert value(w, "SELECT count(*) FROM dust_members") == 3
    assert value(w, "SELECT count(*) FROM dust_log") == a.one("SELECT count(*) FROM dust_log")
    s = status(w)
    assert s["host_pid"] == a.pid and s["pid"] == w.pid
    assert "process %d (" % w.pid in s["attached_1"]
    for level in ("stale", "local", "fresh", "linearizable"):
        w.call("sql", conn="main", sql="PRAGMA dust_consistency = %s" % level, params=[])
        assert value(w, "SELECT count(*) FROM counter") == 3
    w.call("sql", conn="main", sql="BEGIN", params=[])
    w.call("sql", conn="main", sql="CREATE TABLE t(x, y)", params=[])
    w.call("sql", conn="main", sql="WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3000) "
           "INSERT INTO t SELECT i, randomblob(2000) FROM r", params=[])  # several parts
    assert value(w, "SELECT count(*) FROM t") == 3000
    w.call("sql", conn="main", sql="COMMIT", params=[])
    w.call("sql", conn="main", sql="BEGIN", params=[])
    w.call("sql", conn="main", sql="DELETE FROM t", params=[])
    w.call("sql", conn="main", sql="ROLLBACK", params=[])
    w.call("sql", conn="main", sql="PRAGMA dust_consistency = local", params=[])
    assert w.call("sql", conn="main", sql="INSERT INTO counter VALUES(7, 7) RETURNING n", params=[]) == [[7]]
    index = value(w, "SELECT dust_index()")
    assert value(w, "SELECT dust_wait(?, 1000)", index) == 1
    assert len(value(w, "SELECT dust_checkpoint()")) == 32
    with pytest.raises(SqlError) as e:
        value(w, "SELECT dust_remove(0)")
    assert "the id of a member" in e.value.text
    with pytest.raises(SqlError) as e:
        value(w, "SELECT dust_start('127.0.0.1:1')")
    assert "already" in e.value.text
    with pytest.raises(SqlError):
        w.call("sql", conn="main", sql="INSERT INTO counter VALUES(7, 8)", params=[])  # a constraint
    assert value(w, "SELECT dust_transfer(?)", b.id()) == b.id()
    wait_until("b leads", lambda: b.one("SELECT dust_role()") == "leader", 20)
    w.call("sql", conn="main", sql="UPDATE counter SET n = 70 WHERE id = 7", params=[])  # by a follower
    box.same_files(a, b, c)
    assert c.one("SELECT n FROM counter WHERE id = 7") == 70
    assert c.one("SELECT count(*) FROM t") == 3000
    assert value(w, "PRAGMA integrity_check") == "ok"


@pytest.mark.sanitize
@pytest.mark.parametrize("trace", [False, True], ids=["hook", "no hook"])
def test_counters(box, trace):
    """Four processes with eight threads each, a shell, and writers on the other members: every count is there, without an
    error. Also if the programs take the trace hook for themselves."""
    a, b, c = three(box)
    others = [attach(box, a, "w%d" % i) for i in range(3)]
    n = scaled(25)
    arg = {"threads": 8, "n": n, "stop": box.path("stop"), "id": 0, "trace": trace}
    jobs = [(w, 8, w.start("py", conn="job", code=COUNT, arg=dict(arg, path=a.path))) for w in [a] + others]
    jobs += [(m, 2, m.start("py", conn="job", code=COUNT, arg=dict(arg, threads=2, path=m.path))) for m in (b, c)]
    shell = subprocess.Popen(["sqlite3", a.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=child_env())
    lines = [".load " + LIB, ".timeout 30000"] + ["UPDATE counter SET n = n + 1 WHERE id = 1;"] * n
    out, _ = shell.communicate("\n".join(lines + ["SELECT n FROM counter WHERE id = 1;"]), timeout=200 * SLOW)
    total = 0
    for w, threads, job in jobs:
        r = w.get(job, 300)
        assert r["errors"] == []
        assert r["done"] == threads * n
        total += r["done"]
    assert out.split()[-1] == str(n), out
    box.same_files(a, b, c)
    for m in (a, b, c):
        assert m.sql("SELECT n FROM counter WHERE id < 2 ORDER BY id") == [(total,), (n,)]
        assert m.one("PRAGMA integrity_check") == "ok"


def hosts(workers):
    pid = [status(w)["host_pid"] for w in workers]
    assert len(set(pid)) == 1, pid
    return next(w for w in workers if w.pid == pid[0])


@pytest.mark.sanitize
@pytest.mark.parametrize("trace", [False, True], ids=["hook", "no hook"])
def test_takeovers(box, trace):
    """The process that hosts the member is killed, again and again, while others write: they go on without an error, and
    nothing is lost or done twice."""
    a, b, c = three(box)
    workers = [attach(box, a, "w%d" % i) for i in range(3)]
    living = list(workers)
    acked = 0
    kills, longest = scaled(6), 0.0
    host = a
    for i in range(kills):
        stop = box.path("stop%d" % i)
        arg = {"threads": 4, "n": 0, "stop": stop, "id": 0, "path": a.path, "trace": trace}
        jobs = [(w, w.start("py", conn="job", code=COUNT, arg=arg)) for w in living]
        before = value(living[0], "SELECT n FROM counter WHERE id = 0")
        wait_until("they write", lambda: value(living[0], "SELECT n FROM counter WHERE id = 0") > before + 20, 60)
        victims = [w for w in living if w is not host]
        t = time.monotonic()
        host.kill9()
        wait_until("another one hosts", lambda: status(victims[0])["host_pid"] != host.pid, 60)
        longest = max(longest, time.monotonic() - t)
        before = value(victims[0], "SELECT n FROM counter WHERE id = 0")
        wait_until("they write again", lambda: value(victims[0], "SELECT n FROM counter WHERE id = 0") > before + 20, 60)
        with open(stop, "w"):
            pass
        for w, job in jobs:
            if w is not host:
                r = w.get(job, 120)
                assert r["errors"] == [], (w.name, r)
                acked += r["done"]
        if host in living:
            living.remove(host)
        host = hosts(living)
        living.append(attach(box, a, "w%d" % (3 + i)))
    n = value(living[0], "SELECT n FROM counter WHERE id = 0")
    print("%d takeovers, %d acknowledged by those that lived, %d in all, %.1f s at most" % (kills, acked, n, longest))
    assert n >= acked
    box.same_files(b, c)
    assert b.one("SELECT n FROM counter WHERE id = 0") == value(living[0], "SELECT n FROM counter WHERE id = 0")
    for w in living:
        assert w.end() == 0
    check = subprocess.run(["sqlite3", a.path, "PRAGMA integrity_check; SELECT n FROM counter WHERE id = 0"],
                           capture_output=True, text=True, env=child_env())
    assert check.stdout.split() == ["ok", str(n)], check


def test_reader_in_a_transaction(box):
    """A snapshot held while the host ends is read on, or there is an error that says so; what it gives does not change."""
    a, b, c = three(box)
    w, other = attach(box, a, "w"), attach(box, a, "other")
    w.call("sql", conn="main", sql="BEGIN", params=[])
    assert value(w, "SELECT n FROM counter WHERE id = 0") == 0
    b.sql("UPDATE counter SET n = 1 WHERE id = 0")
    a.kill9()
    wait_until("another one hosts", lambda: status(other)["host_pid"] in (w.pid, other.pid), 60)
    b.sql("UPDATE counter SET n = 2 WHERE id = 0")
    wait_until("it is there", lambda: value(other, "SELECT n FROM counter WHERE id = 0") == 2, 60)
    try:
        assert value(w, "SELECT n FROM counter WHERE id = 0") == 0
    except SqlError as e:
        assert "roll back and retry" in e.text, e
    w.call("sql", conn="main", sql="ROLLBACK", params=[])
    assert value(w, "SELECT n FROM counter WHERE id = 0") == 2


def test_turn_of_one_that_takes_over(box):
    """It commits what it began before; and the turn that it took for that is free at once."""
    a = box.member("a")
    a.open("file:%s?vfs=dust&bind=%s" % (a.path, a.address), uri=True)
    a.sql("CREATE TABLE t(x)")
    w = attach(box, a, "w")
    w.open(a.path, conn="two", timeout=5)
    w.sql("SELECT * FROM t")
    w.sql("SELECT * FROM t", conn="two")
    for i in range(2):
        w.sql("BEGIN")
        w.sql("SELECT * FROM t")
        if i == 0:
            a.kill9()
        wait_until("it hosts", lambda: dict(w.sql("SELECT name, value FROM dust_status", conn="two"))["host_pid"] == w.pid, 60)
        w.sql("INSERT INTO t VALUES(1)")
        w.sql("COMMIT")
        assert dict(w.sql("SELECT name, value FROM dust_status", conn="two"))["turn_held"] == 0
        w.sql("INSERT INTO t VALUES(2)", conn="two")
    assert w.one("SELECT count(*) FROM t") == 4


def test_a_host_that_ends(box):
    """It ends by itself: the others wait for the next one, and hear of no error."""
    a, b, c = three(box)
    w = attach(box, a, "w")
    arg = {"threads": 4, "n": 0, "stop": box.path("stop"), "id": 0, "path": a.path}
    job = w.start("py", conn="job", code=COUNT, arg=arg)
    wait_until("it writes", lambda: b.one("SELECT n FROM counter WHERE id = 0") > 20, 60)
    assert a.end() == 0
    n = b.one("SELECT n FROM counter WHERE id = 0")
    wait_until("it goes on", lambda: b.one("SELECT n FROM counter WHERE id = 0") > n + 20, 60)
    with open(arg["stop"], "w"):
        pass
    r = w.get(job, 60)
    assert r["errors"] == []
    box.same_files(b, c)
    assert c.one("SELECT n FROM counter WHERE id = 0") == r["done"]


def test_found_in_the_log(box):
    """The host ends before it hears that the cluster has agreed on a transaction, and others write on top of it. Who sends it
    again to the next host stands on the newest version then, with nothing left of what it had read before; and what it was
    reading meanwhile is not continued with newer pages."""
    b = box.member("b").create()
    b.sql("CREATE TABLE counter(id INTEGER PRIMARY KEY, n INTEGER)")
    b.sql("CREATE TABLE other(id INTEGER PRIMARY KEY, v)")
    b.sql("INSERT INTO counter VALUES(0, 0)")
    b.many("INSERT INTO other VALUES(?, ?)", [[i, "x" * 300] for i in range(500)])
    c = box.member("c").join(b)
    port = free_port()
    tap = Tap(port)
    h = box.member("h")
    h.open("file:%s?vfs=dust&bind=127.0.0.1:%d&advertise=%s&join=%s" % (h.path, port, tap.address, b.address), uri=True,
           timeout=30)
    box.settle(b, c, h)
    host, w = h, attach(box, h, "w")
    n = 0
    for reading in (False, True):
        assert value(w, "SELECT count(*) FROM other WHERE v IS NOT NULL") == 500
        if reading:  # on the connection that writes; it has not seen the end of it when the transaction is committed
            w.call("sql", conn="main", sql="PRAGMA cache_size = 5", params=[])
            w.call("py", conn="main", code=OPEN_SELECT)
        w.call("sql", conn="main", sql="BEGIN IMMEDIATE", params=[])
        w.call("sql", conn="main", sql="UPDATE counter SET n = n + 1", params=[])
        tap.through.clear()
        commit = w.start("sql", conn="main", sql="COMMIT", params=[])
        n += 1
        wait_until("it is agreed on", lambda: b.one("SELECT n FROM counter") == n, 60)
        for i in range(10):
            b.sql("UPDATE counter SET n = n + 1", timeout=30)
            b.sql("UPDATE other SET v = ?", "y%d" % i, timeout=30)
        n += 10
        host.kill9()
        tap.through.set()
        w.get(commit, 60)
        if reading:
            assert w.call("py", conn="main", code=GO_ON) == "SQLITE_BUSY_SNAPSHOT"
        assert value(w, "SELECT n FROM counter") == n
        assert value(w, "SELECT count(DISTINCT v) FROM other") == 1
        w.call("sql", conn="main", sql="UPDATE counter SET n = n + 1", params=[])
        n += 1
        assert b.one("SELECT n FROM counter") == n
        host, w = w, attach(box, h, "w2")
    tap.close()
    box.same_files(b, c)
    assert c.one("SELECT count(*) FROM other") == 500
    assert c.one("PRAGMA integrity_check") == "ok"


def test_one_that_stands_still(box):
    """A process stopped in the middle of its turn, and one that holds a snapshot, hold up nobody for long, and are named."""
    a = box.member("a")
    a.open("file:%s?vfs=dust&bind=%s" % (a.path, a.address), uri=True)
    a.sql("CREATE TABLE t(x)")
    w = attach(box, a, "w")
    w.call("sql", conn="main", sql="BEGIN IMMEDIATE", params=[])
    w.call("sql", conn="main", sql="INSERT INTO t VALUES('never')", params=[])
    w.freeze()
    s = a.status()
    assert "process %d (" % w.pid in s["attached_1"] and "the write turn" in s["attached_1"], s
    assert a.sql("SELECT * FROM t") == []
    w.kill9()  # its connections end, and with them its turn
    a.sql("INSERT INTO t VALUES('after')", timeout=20)
    assert "attached_1" not in a.status()
    assert a.sql("SELECT * FROM t") == [("after",)]


def test_host_that_stands_still(box):
    """Who asks it has its answer in time: that there is none."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    w = attach(box, a, "w")
    w.open(a.path, conn="read", timeout=1)
    w.sql("PRAGMA dust_consistency = linearizable", conn="read")
    w.sql("SELECT * FROM t", conn="read")
    a.freeze()
    for _ in range(2):
        with pytest.raises(SqlError) as e:
            w.sql("SELECT * FROM t", conn="read", timeout=25)
        assert e.value.name == "SQLITE_BUSY", e.value
    with pytest.raises(SqlError) as e:
        w.sql("SELECT dust_status()", conn="read", timeout=25)
    assert "does not answer" in e.value.text, e.value
    assert w.sql("SELECT * FROM t") == []
    a.thaw()
    w.sql("INSERT INTO t VALUES(1)", conn="read", timeout=20)
    assert w.sql("SELECT * FROM t", conn="read") == [(1,)]


def test_turn_of_one_that_stands_still(box):
    """Stopped in the middle of its transaction, it loses the turn; and when it goes on, it is told."""
    a, b, c = three(box)
    w = attach(box, a, "w")
    w.call("sql", conn="main", sql="BEGIN IMMEDIATE", params=[])
    w.call("sql", conn="main", sql="UPDATE counter SET n = 100 WHERE id = 0", params=[])
    w.freeze()
    a.sql("UPDATE counter SET n = n + 1 WHERE id = 0", timeout=50)  # after the turn's 30 s
    b.sql("UPDATE counter SET n = n + 1 WHERE id = 0", timeout=10)
    w.thaw()
    with pytest.raises(SqlError) as e:
        w.call("sql", conn="main", sql="COMMIT", params=[])
    assert e.value.name == "SQLITE_BUSY_SNAPSHOT", e.value
    box.same_files(a, b, c)
    assert c.one("SELECT n FROM counter WHERE id = 0") == 2


def test_a_snapshot_held_for_long(box):
    """By a process that stands still: it costs no more than the pages it holds, and those that have come since."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    a.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 200) INSERT INTO t SELECT i, randomblob(3000) FROM r")
    w = attach(box, a, "w")
    w.call("sql", conn="main", sql="BEGIN", params=[])
    before = w.call("sql", conn="main", sql="SELECT sum(length(x)), total(unicode(x)) FROM t", params=[])
    w.freeze()
    frames = []
    for _ in range(4):
        a.py("""
            for i in range(arg):
                conn.execute("UPDATE t SET x = randomblob(3000) WHERE id = ?", (i * 37 % 200 + 1,))
            """, scaled(1500), timeout=200)
        frames.append(a.status()["frames"])
    s = a.status()
    assert "1 snapshots" in s["attached_1"] and str(w.pid) in s["attached_1"], s
    assert max(frames) <= 256 * 8, frames  # 200 rows on 200 pages: twice that, and what is not folded yet
    log = sum(os.path.getsize(os.path.join(a.path + "-dust/raft", x)) for x in os.listdir(a.path + "-dust/raft"))
    assert log < 64 << 20, log
    w.thaw()
    assert w.call("sql", conn="main", sql="SELECT sum(length(x)), total(unicode(x)) FROM t", params=[]) == before
    w.call("sql", conn="main", sql="COMMIT", params=[])


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
def test_another_user(box):
    """Without rights on the files nothing can be read, mapped, or sent."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    a.sql("INSERT INTO t VALUES('secret')")
    os.chmod(box.dir, 0o755)
    os.chmod(a.path, 0o644)  # the plain file is its owner's own business
    code = """
import os, socket, sqlite3, sys
os.setgid(65534)
os.setuid(65534)
lib, path = sys.argv[1:]
for name in ("pages", "socket", "member", "sums", "host"):
    try:
        os.open(path + "-dust/" + name, os.O_RDONLY)
        print("could open", name)
    except PermissionError:
        pass
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(path + "-dust/socket")
    print("could connect")
except PermissionError:
    pass
c = sqlite3.connect(":memory:")
c.enable_load_extension(True)
c.load_extension(lib)
for sql in ("SELECT * FROM t", "INSERT INTO t VALUES(1)"):
    try:
        c = sqlite3.connect(path, timeout=5, isolation_level=None)
        print(sql, c.execute(sql).fetchall())
    except sqlite3.Error as e:
        assert "cannot open" in str(e), e
"""
    lib = box.path("libdust.so")
    shutil.copy(LIB, lib)
    os.chmod(lib, 0o755)
    p = subprocess.run([PYTHON, "-c", code, lib, a.path], capture_output=True, text=True, env=child_env(), cwd="/")
    assert p.returncode == 0 and p.stdout == "", p
    assert a.sql("SELECT * FROM t") == [("secret",)]
    os.chmod(a.path + "-dust", 0o755)  # and even if the folder is opened to all by mistake
    p = subprocess.run([PYTHON, "-c", code, lib, a.path], capture_output=True, text=True, env=child_env(), cwd="/")
    assert p.returncode == 0 and p.stdout == "", p
    assert a.sql("SELECT * FROM t") == [("secret",)]


def test_leaving(box):
    a, b, c = three(box)
    w = attach(box, a, "w")
    assert "left the cluster" in value(w, "SELECT dust_leave()")
    with pytest.raises(SqlError) as e:
        value(w, "SELECT count(*) FROM counter")
    assert e.value.name == "SQLITE_READONLY", e.value
    w.open(a.path, conn="again")
    assert w.call("sql", conn="again", sql="SELECT count(*) FROM counter", params=[]) == [[3]]
    w.call("sql", conn="again", sql="INSERT INTO counter VALUES(9, 9)", params=[])
    assert not os.path.exists(a.path + "-dust")
    assert b.one("SELECT count(*) FROM counter") == 3


def test_many_come_and_go(box):
    """Short-lived programs on a member that a long-lived one hosts."""
    a = box.member("a")
    a.create()
    a.sql("CREATE TABLE t(x)")
    for i in range(scaled(15)):
        p = subprocess.run(["sqlite3", a.path, ".load " + LIB, ".timeout 10000", "INSERT INTO t VALUES(%d);" % i,
                            "SELECT count(*) FROM t;"], capture_output=True, text=True, env=child_env(), timeout=60 * SLOW)
        assert p.stdout.split()[-1] == str(i + 1) and p.stderr == "", p
    assert a.one("SELECT count(*) FROM t") == scaled(15)
    assert "attached_1" not in a.status()
    held = a.status()["snapshots_held"]
    assert held <= 2, held
