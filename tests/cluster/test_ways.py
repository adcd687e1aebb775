"""The ways of loading, starting and joining."""
import os
import subprocess

import pytest

from cluster import AUTOEXT, LIB, PYTHON, SLOW, Process, Worker, address, child_env


class Program(Process):
    """tests/cluster/autoext.c, a line of SQL at a time."""

    def __init__(self, box, path, *args, name="c", env=None):
        super().__init__(box, [AUTOEXT, *args, path], env, name)

    def sql(self, sql):
        self.p.stdin.write(sql + "\n")
        self.p.stdin.flush()
        rows = []
        while True:
            line = self.p.stdout.readline()
            assert line, "ended: " + "".join(self.stderr)
            line = line.rstrip("\n")
            if line == "ok":
                return rows
            if line.startswith("error "):
                raise AssertionError(line)
            rows.append(line)


@pytest.mark.sanitize
def test_uri_auto_extension_and_plain_path(box):
    addr = [address() for _ in range(3)]
    # Python, by URI.
    a = box.worker("a")
    a.open("file:%s?vfs=dust&bind=%s" % (box.path("a.db"), addr[0]), uri=True)
    a.sql("CREATE TABLE t(x)")
    b = box.worker("b")
    b.open("file:%s?vfs=dust&bind=%s&join=%s,%s" % (box.path("b.db"), addr[1], addr[2], addr[0]), uri=True)
    # A C program that opens a path; it joins by a function.
    c = Program(box, box.path("c.db"))
    assert c.sql("SELECT dust_join('%s', '%s')" % (addr[2], addr[1])) == [addr[2]]
    for i, f in enumerate((a.sql, b.sql, c.sql)):
        f("INSERT INTO t VALUES(%d)" % i)
    index = int(c.sql("SELECT dust_index()")[0])
    assert a.one("SELECT dust_wait(?, 10000)", index) == 1
    assert a.one("SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY x)") == "0,1,2"
    assert b.one("SELECT dust_wait(?, 10000)", index) == 1
    assert b.one("SELECT count(*) FROM t") == 3
    # A second connection by the path only, then a new process by the path only.
    a.open(box.path("a.db"), conn="second")
    assert a.one("SELECT dust_role()", conn="second") in ("leader", "follower")
    assert b.end() == 0
    b = box.worker("b2")
    b.open(box.path("b.db"))
    b.sql("INSERT INTO t VALUES(3)")
    assert c.end() == 0
    c = Program(box, box.path("c.db"), "--register")
    c.sql("INSERT INTO t VALUES(4)")
    index = int(c.sql("SELECT dust_index()")[0])
    for w in (a, b):
        assert w.one("SELECT dust_wait(?, 10000)", index) == 1
        assert w.one("SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY x)") == "0,1,2,3,4"
        assert w.one("SELECT dust_role() IN ('leader', 'follower')") == 1


def test_opening_by_the_same_uri_again(box):
    """A program gives the same URI at each start: the second time it is a member already."""
    uri = "file:%s?vfs=dust&bind=%s" % (box.path("a.db"), address())
    for i in range(3):
        w = box.worker("w%d" % i)
        w.open(uri, uri=True)
        w.sql("CREATE TABLE IF NOT EXISTS t(x)")
        w.sql("INSERT INTO t VALUES(?)", i)
        w.open(uri, uri=True, conn="again")
        assert w.one("SELECT count(*) FROM t", conn="again") == i + 1
        assert w.end() == 0


def test_environment(box):
    """DUST_DB, DUST_BIND, DUST_JOIN: for programs that cannot be changed."""
    one, two = address(), address()
    a = box.worker("a", env={"DUST_DB": "/nowhere/*:" + box.path("*.db"), "DUST_BIND": one})
    a.open(box.path("a.db"))
    a.sql("CREATE TABLE t(x)")
    a.open(box.path("other.sqlite"), conn="other")
    a.sql("CREATE TABLE u(x)", conn="other")
    assert not os.path.exists(box.path("other.sqlite-dust"))
    b = box.worker("b", env={"DUST_DB": box.path("b.db"), "DUST_BIND": two, "DUST_JOIN": one})
    b.open(box.path("b.db"))
    b.sql("INSERT INTO t VALUES(7)")
    assert a.one("SELECT dust_wait(?, 10000)", b.one("SELECT dust_index()")) == 1
    assert a.one("SELECT x FROM t") == 7


def test_port_zero_takes_a_port_and_keeps_it(box):
    w = box.worker("w")
    w.open("file:%s?vfs=dust&bind=127.0.0.1:0" % box.path("a.db"), uri=True)
    addr = w.one("SELECT address FROM dust_members WHERE is_self")
    port = int(addr.rpartition(":")[2])
    assert port > 0
    assert w.end() == 0
    w = box.worker("again")
    w.open(box.path("a.db"))
    assert w.one("SELECT address FROM dust_members WHERE is_self") == addr


@pytest.mark.parametrize("when", ["before", "after"])
def test_load_before_and_after_opening(box, when):
    """load_extension on an open connection adopts it, also when the file is a member's already."""
    path = box.path("a.db")
    w = Worker(box, "w", load=(when == "before"))
    w.open(path, load=LIB if when == "after" else None)
    if when == "before":
        w.open(path, conn="reload", load=LIB)  # once more does no harm
        w.close("reload")
    w.sql("SELECT dust_start(?)", address())
    w.sql("CREATE TABLE t(x)")
    w.sql("INSERT INTO t VALUES(1)")
    assert w.end() == 0
    w = Worker(box, "w", load=(when == "before"))
    w.open(path, load=LIB if when == "after" else None)
    w.sql("INSERT INTO t VALUES(2)")
    assert w.one("SELECT sum(x) FROM t") == 3
    assert w.one("SELECT dust_role()") == "leader"
    w.open(path, conn="two")
    w.sql("INSERT INTO t VALUES(3)", conn="two")
    assert w.one("SELECT sum(x) FROM t") == 6


def test_adoption_after_the_schema_was_read(box):
    """Too late for a file that is a member's: a clear error, nothing half-done."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    assert m.end() == 0
    w = Worker(box, "w", load=False)
    w.open(m.path)
    assert w.one("SELECT count(*) FROM t") == 0
    w.py("conn.enable_load_extension(True)")
    text = w.py("""
        try:
            conn.load_extension(arg)
            result = None
        except sqlite3.OperationalError as e:
            result = str(e)
        """, LIB)
    assert text and ("open it again" in text or "again" in text), text
    w.close()
    w.open(m.path)
    w.sql("INSERT INTO t VALUES(1)")
    assert w.one("SELECT count(*) FROM t") == 1


def test_a_database_with_content_is_adopted_by_start(box):
    w = Worker(box, "w", load=False)
    w.open(box.path("a.db"), load=LIB)
    w.sql("CREATE TABLE t(x)")
    w.many("INSERT INTO t VALUES(?)", [[i] for i in range(1000)])
    w.sql("SELECT dust_start(?)", address())
    w.sql("INSERT INTO t VALUES(1000)")
    assert w.one("SELECT count(*) FROM t") == 1001
    w.open(box.path("a.db"), conn="two")
    assert w.one("SELECT sum(x) FROM t", conn="two") == 500500
    assert w.one("PRAGMA integrity_check", conn="two") == "ok"


def test_connections_in_many_threads(box):
    """A connection moves between threads; many connections open at once."""
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b)
    n = b.py("""
        path = arg
        done = []
        c = connect(path)
        def use(i):
            c.execute('INSERT INTO t VALUES(?)', (i,))
        def own(i):
            d = connect(path)
            for k in range(5):
                d.execute('INSERT INTO t VALUES(?)', (100 + 10 * i + k,))
            d.close()
            done.append(i)
        for i in range(5):
            t = threading.Thread(target=use, args=(i,)); t.start(); t.join()
        ts = [threading.Thread(target=own, args=(i,)) for i in range(8)]
        [t.start() for t in ts]
        [t.join() for t in ts]
        result = (len(done), c.execute('SELECT count(*) FROM t').fetchone()[0])
        """, b.path)
    assert n == [8, 45]
    box.same_files(a, b)


def test_shutdown_and_initialise_again(box):
    """sqlite3_shutdown() puts the default VFS back; the next load brings dust back."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    m.close()
    result = m.py("""
        import ctypes
        lib = ctypes.CDLL('libsqlite3.so.0')
        assert lib.sqlite3_shutdown() == 0
        assert lib.sqlite3_initialize() == 0
        c = sqlite3.connect(arg[0], isolation_level=None)
        c.enable_load_extension(True)
        c.load_extension(arg[1])
        c.execute('INSERT INTO t VALUES(1)')
        d = sqlite3.connect(arg[0], isolation_level=None)
        d.execute('INSERT INTO t VALUES(2)')
        result = d.execute('SELECT sum(x), dust_role() FROM t').fetchone()
        """, [m.path, LIB])
    assert result == [3, "leader"]


def test_fork_without_exec(box):
    """A forked child is a client of its parent's member, never a second one."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    m.sql("INSERT INTO t VALUES(1)")
    text = m.py("""
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                c = sqlite3.connect(arg, timeout=30, isolation_level=None)
                c.execute('INSERT INTO t VALUES(2)')
                os.write(w, b'it wrote')
            except BaseException as e:
                os.write(w, str(e).encode() or b'?')
            os._exit(0)
        os.close(w)
        result = os.read(r, 1000).decode()
        os.waitpid(pid, 0)
        """, m.path)
    assert text == "it wrote"
    m.sql("INSERT INTO t VALUES(3)")
    assert m.one("SELECT sum(x) FROM t") == 6
    assert m.one("SELECT dust_role()") == "leader"


# A daemon without standard input, output and error, that prints all the same.
DAEMON = """
import os, sqlite3, sys
lib, path, when = sys.argv[1:]

def close():
    for fd in range(3):
        os.close(fd)

def say():
    for fd in range(3):
        try:
            os.write(fd, b"nobody should have to read this " * 100)
        except OSError:
            pass

report = os.dup(1)
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(lib)
if when == "before":
    close()
c = sqlite3.connect(path, isolation_level=None, timeout=20)
c.execute("INSERT INTO t VALUES('first')")
if when == "after":
    close()
for i in range(20):
    c.execute("INSERT INTO t VALUES(hex(randomblob(20000)))")
    c.execute("SELECT dust_checkpoint()").fetchall()
    say()
names = []
for fd in range(3):
    try:
        names.append(os.readlink("/proc/self/fd/%d" % fd))
    except OSError:
        names.append("")
ok = (set(names) <= {"", "/dev/null"} and c.execute("PRAGMA integrity_check").fetchall() == [("ok",)] and
      c.execute("SELECT count(*) FROM t").fetchall() == [(21,)])
os.write(report, repr((ok, names)).encode())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_program_without_standard_streams(box, when):
    """What it prints comes into none of dust's files, nor into its connections."""
    a = box.member("a")
    a.create()
    a.sql("CREATE TABLE t(x)")
    path = a.path
    assert a.end() == 0
    p = subprocess.run([PYTHON, "-B", "-c", DAEMON, LIB, path, when], stdin=subprocess.DEVNULL, capture_output=True,
                       timeout=60 * SLOW, env=child_env())
    assert p.returncode == 0, p.stderr
    assert p.stdout.startswith(b"(True, "), p.stdout
    a.restart()
    assert a.one("SELECT count(*) FROM t") == 21
