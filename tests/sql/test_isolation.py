"""Several connections: snapshots, waiting for the turn, being told to come later."""
import time

import pytest

from cluster import SLOW, plain, scaled


@pytest.fixture(params=[False, True], ids=["hook", "no hook"])
def two(request, box):
    m = box.member("m", trace=request.param).create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    m.sql("INSERT INTO t(x) VALUES(0)")
    m.again(conn="two")
    return m


def test_uncommitted_is_unseen(two):
    two.sql("BEGIN")
    two.sql("INSERT INTO t(x) VALUES(1)")
    assert two.one("SELECT count(*) FROM t") == 2
    assert two.one("SELECT count(*) FROM t", conn="two") == 1
    two.sql("COMMIT")
    assert two.one("SELECT count(*) FROM t", conn="two") == 2
    assert two.one("SELECT count(*) FROM t") == 2


def test_snapshot_is_stable(two):
    two.sql("BEGIN", conn="two")
    two.sql("SELECT x FROM t", conn="two")
    for i in range(20):
        two.sql("INSERT INTO t(x) VALUES(?)", i)
        assert two.one("SELECT count(*) FROM t", conn="two") == 1
    two.sql("DROP TABLE t")
    two.sql("CREATE TABLE t(other)")
    assert two.one("SELECT x FROM t", conn="two") == 0
    two.sql("COMMIT", conn="two")
    assert two.sql("SELECT other FROM t", conn="two") == []


def test_caches_are_dropped_and_kept(two):
    """Each connection sees the newest at once, whoever wrote it, also after many rolled-back transactions."""
    for i in range(1, scaled(100, 10)):
        for conn, other in (("main", "two"), ("two", "main")):
            two.sql("UPDATE t SET x = ?", "%s%d" % (conn, i), conn=conn)
            assert two.one("SELECT x FROM t", conn=other) == "%s%d" % (conn, i)
            two.sql("BEGIN IMMEDIATE", conn=other)
            two.sql("UPDATE t SET x = 'no'", conn=other)
            two.sql("ROLLBACK", conn=other)
            assert two.one("SELECT x FROM t", conn=conn) == "%s%d" % (conn, i)
            assert two.one("SELECT x FROM t", conn=other) == "%s%d" % (conn, i)


def test_data_version(two):
    """Changes when somebody else wrote, and only then."""
    v = two.one("PRAGMA data_version", conn="two")
    assert two.one("PRAGMA data_version", conn="two") == v
    two.sql("INSERT INTO t(x) VALUES(1)", conn="two")
    assert two.one("PRAGMA data_version", conn="two") == v
    two.sql("INSERT INTO t(x) VALUES(1)")
    assert two.one("PRAGMA data_version", conn="two") != v


def test_busy_at_once_and_after_a_while(two):
    two.again(conn="hasty", timeout=0)
    two.again(conn="patient", timeout=1)
    two.sql("BEGIN IMMEDIATE")
    two.sql("INSERT INTO t(x) VALUES(1)")
    t = time.monotonic()
    assert two.error("INSERT INTO t(x) VALUES(2)", conn="hasty").name.startswith("SQLITE_BUSY")
    assert time.monotonic() - t < 0.7 * SLOW
    assert two.error("BEGIN IMMEDIATE", conn="hasty").name.startswith("SQLITE_BUSY")
    assert two.error("BEGIN EXCLUSIVE", conn="hasty").name.startswith("SQLITE_BUSY")
    t = time.monotonic()
    assert two.error("INSERT INTO t(x) VALUES(2)", conn="patient").name.startswith("SQLITE_BUSY")
    assert 0.8 < time.monotonic() - t < 2 * SLOW
    assert two.one("SELECT count(*) FROM t", conn="hasty") == 1  # reading goes on
    assert two.one("PRAGMA busy_timeout", conn="patient") == 1000
    two.sql("COMMIT")
    for conn in ("hasty", "patient"):
        two.sql("INSERT INTO t(x) VALUES(2)", conn=conn)
    assert two.one("SELECT count(*) FROM t") == 4


def test_waiting_writers_come_in_turn(two):
    two.sql("BEGIN IMMEDIATE")
    calls = []
    for i in range(8):
        two.again(conn="w%d" % i)
        calls.append(two.start("sql", conn="w%d" % i, sql="INSERT INTO t(x) VALUES(?)", params=[i + 1]))
        time.sleep(0.05)
    assert not any(c.done() for c in calls)
    two.sql("COMMIT")
    for c in calls:
        two.get(c, 10)
    rows = [r[0] for r in two.sql("SELECT x FROM t WHERE x > 0 ORDER BY id")]
    assert sorted(rows) == list(range(1, 9))
    if not two.trace:
        assert rows == list(range(1, 9)), "first come, first served"


def test_write_after_read_on_an_old_snapshot(two):
    two.sql("BEGIN", conn="two")
    two.sql("SELECT * FROM t", conn="two")
    two.sql("INSERT INTO t(x) VALUES(1)")
    assert two.error("INSERT INTO t(x) VALUES(2)", conn="two").name == "SQLITE_BUSY_SNAPSHOT"
    assert two.one("SELECT count(*) FROM t", conn="two") == 1
    two.sql("ROLLBACK", conn="two")
    two.sql("INSERT INTO t(x) VALUES(2)", conn="two")
    # On the newest one it goes through.
    two.sql("BEGIN", conn="two")
    two.sql("SELECT * FROM t", conn="two")
    two.sql("INSERT INTO t(x) VALUES(3)", conn="two")
    two.sql("COMMIT", conn="two")
    assert two.one("SELECT count(*) FROM t") == 4


def test_readers_while_a_writer_is_at_it(two):
    two.sql("BEGIN EXCLUSIVE")
    two.sql("UPDATE t SET x = 'new'")
    t = time.monotonic()
    for _ in range(50):
        assert two.one("SELECT x FROM t", conn="two") == 0
    assert time.monotonic() - t < 2 * SLOW
    two.sql("COMMIT")
    assert two.one("SELECT x FROM t", conn="two") == "new"


def test_schema_changes_are_seen(two):
    for i in range(10):
        a, b = (("main", "two"), ("two", "main"))[i % 2]
        two.sql("ALTER TABLE t ADD COLUMN c%d DEFAULT %d" % (i, i), conn=a)
        assert two.one("SELECT c%d FROM t" % i, conn=b) == i
    two.sql("CREATE VIEW v AS SELECT c1 + c2 FROM t", conn="two")
    assert two.one("SELECT * FROM v") == 3


def test_read_only_connections(two):
    two.open("file:%s?mode=ro" % two.path, conn="ro", uri=True)
    assert two.one("SELECT x FROM t", conn="ro") == 0
    assert two.error("INSERT INTO t(x) VALUES(1)", conn="ro").name.startswith("SQLITE_READONLY")
    two.sql("UPDATE t SET x = 5")
    assert two.one("SELECT x FROM t", conn="ro") == 5
    two.sql("PRAGMA query_only=ON", conn="two")
    assert two.error("UPDATE t SET x = 6", conn="two").name.startswith("SQLITE_READONLY")
    assert two.one("SELECT x FROM t", conn="two") == 5


@pytest.mark.parametrize("parameter", ["immutable", "nolock"])
def test_no_reading_without_a_snapshot(two, parameter):
    """Several versions in one SELECT."""
    for on in ("1", "yes"):
        e = two.open_error("file:%s?%s=%s" % (two.path, parameter, on), uri=True)
        assert parameter in e.text and "mode=ro" in e.text, e
    two.open("file:%s?%s=0&mode=ro" % (two.path, parameter), conn="r", uri=True)
    assert two.one("SELECT count(*) FROM t", conn="r") == 1
    path = two.box.path("plain.db")
    plain(path, "CREATE TABLE t(x)")
    two.open("file:%s?%s=1" % (path, parameter), conn="p", uri=True)
    assert two.one("SELECT count(*) FROM t", conn="p") == 0


def test_shared_cache(two):
    """Refused with an error that says so; others go on."""
    e = two.open_error("file:%s?cache=shared" % two.path, uri=True)
    assert "shared cache" in e.text, e
    two.open("file:%s?cache=private" % two.path, conn="p", uri=True)
    e = two.error("ATTACH ? AS d", "file:%s?cache=shared" % two.path, conn="p")
    assert e.name.startswith("SQLITE_CANTOPEN"), e
    two.sql("INSERT INTO t(x) VALUES(1)", conn="p")
    assert two.one("SELECT count(*) FROM t") == 2
    two.open("file:%s?cache=shared" % two.box.path("plain.db"), conn="plain", uri=True)
    e = two.error("SELECT dust_start('127.0.0.1:1')", conn="plain")
    assert "shared cache" in e.text, e


def test_shared_cache_of_the_whole_process(two):
    """No parameter tells. One connection is as good as any; a second one that shares with it is refused."""
    text = two.py("""
        sqlite3.enable_shared_cache(True)
        one = connect(arg)
        one.execute('INSERT INTO t(x) VALUES(1)')
        try:
            connect(arg)
            result = None
        except sqlite3.Error as e:
            result = str(e)
        try:
            one.execute('INSERT INTO t(x) VALUES(2)')
            result = 'it was not refused'
        except sqlite3.Error as e:
            pass
        one.close()
        again = connect(arg)
        again.execute('INSERT INTO t(x) VALUES(3)')
        again.close()
        sqlite3.enable_shared_cache(False)
        """, two.path)
    assert "share one cache" in text, text
    assert two.sql("SELECT x FROM t ORDER BY id") == [(0,), (1,), (3,)]


def test_many_threads(two):
    """Readers see whole transactions only; writers lose nothing."""
    two.sql("CREATE TABLE pair(a, b)")
    two.sql("INSERT INTO pair VALUES(0, 0)")
    n = scaled(100, 10)
    bad = two.py("""
        path, n = arg
        bad = []
        stop = threading.Event()
        def write(i):
            c = connect(path)
            for _ in range(n):
                c.execute('BEGIN IMMEDIATE')
                a = c.execute('SELECT a FROM pair').fetchone()[0]
                c.execute('UPDATE pair SET a = ?', (a + 1,))
                c.execute('UPDATE pair SET b = b + 1')
                c.execute('COMMIT')
            c.close()
        def read(i):
            c = connect(path)
            last = 0
            while not stop.is_set():
                a, b = c.execute('SELECT a, b FROM pair').fetchone()
                if a != b or a < last:
                    bad.append((a, b, last))
                last = a
            c.close()
        ws = [threading.Thread(target=write, args=(i,)) for i in range(6)]
        rs = [threading.Thread(target=read, args=(i,)) for i in range(3)]
        [t.start() for t in ws + rs]
        [t.join() for t in ws]
        stop.set()
        [t.join() for t in rs]
        result = bad
        """, [two.path, n])
    assert bad == []
    assert two.sql("SELECT a, b FROM pair") == [(6 * n, 6 * n)]
