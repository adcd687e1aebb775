"""PRAGMAs: those that are answered and not obeyed, those that are dust's, and those that are SQLite's."""
import os

import pytest

from cluster import LIB, SqlError, plain


@pytest.mark.parametrize("pragma, answer", [
    ("journal_mode=WAL", [("wal",)]),
    ("journal_mode=wal", [("wal",)]),
    ("journal_mode=DELETE", [("delete",)]),
    ("journal_mode=truncate", [("truncate",)]),
    ("journal_mode=PERSIST", [("persist",)]),
    ("journal_mode=MEMORY", [("memory",)]),
    ("journal_mode=OFF", [("off",)]),
    ("main.journal_mode=WAL", [("wal",)]),
    ("journal_mode", [("wal",)]),
    ("journal_mode=nonsense", [("wal",)]),
    ("locking_mode=EXCLUSIVE", [("exclusive",)]),
    ("locking_mode=NORMAL", [("normal",)]),
    ("locking_mode", [("normal",)]),
    ("mmap_size=268435456", [("0",)]),
    ("synchronous=OFF", []),
    ("synchronous=NORMAL", []),
    ("synchronous=EXTRA", []),
    ("journal_size_limit=1000000", [(1000000,)]),
    ("wal_autocheckpoint=100", [(100,)]),
    ("busy_timeout=30000", [(30000,)]),
    ("temp_store=MEMORY", []),
    ("cache_size=-2000", []),
    ("foreign_keys=ON", []),
    ("secure_delete=ON", [(1,)]),
    ("page_size=4096", []),
    ("encoding='UTF-8'", []),
    ("application_id=77", []),
    ("user_version=5", []),
    ("optimize", []),
    ("quick_check", [("ok",)]),
    ("integrity_check", [("ok",)]),
    ("data_version", None),
    ("freelist_count", [(0,)]),
    ("page_size", [(4096,)]),
])
def test_answers(m, pragma, answer):
    """The answer is what programs expect; and the database works on as before."""
    m.sql("CREATE TABLE t(x)")
    rows = m.sql("PRAGMA " + pragma)
    if answer is not None:
        assert [tuple(str(v) for v in r) for r in rows] == [tuple(str(v) for v in r) for r in answer]
    m.sql("INSERT INTO t VALUES(1)")
    m.sql("BEGIN")
    m.sql("INSERT INTO t VALUES(2)")
    m.sql("ROLLBACK")
    m.again(conn="other")
    m.sql("INSERT INTO t VALUES(3)", conn="other")
    assert m.sql("SELECT group_concat(x) FROM t") == [("1,3",)]
    files = set(os.listdir(m.box.dir))
    assert files <= {"m.db", "m.db-dust", "m.db-journal"}, files
    m.kill9()
    m.restart()
    assert m.sql("SELECT group_concat(x) FROM t") == [("1,3",)]


def test_wal_checkpoint(m):
    m.sql("PRAGMA journal_mode=WAL")
    m.sql("CREATE TABLE t(x)")
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
        rows = m.sql("PRAGMA wal_checkpoint(%s)" % mode)
        assert len(rows) == 1 and len(rows[0]) == 3 and rows[0][0] == 0, rows


def test_values_are_kept(m, reopened):
    m.sql("PRAGMA user_version = 7")
    m.sql("PRAGMA application_id = 1234")
    m.sql("CREATE TABLE t(x)")
    reopened(kill=True)
    assert m.one("PRAGMA user_version") == 7
    assert m.one("PRAGMA application_id") == 1234
    reopened()
    assert plain(m.path, "PRAGMA user_version") == [(7,)]


def test_marks_are_hidden(m):
    """SQLite sees a page 1 without dust's marks; the file carries them."""
    m.sql("CREATE TABLE t(x)")
    m.checkpoint()
    with open(m.path, "rb") as f:
        header = f.read(100)
    assert header[18] == 3 and header[19] == 1
    assert any(header[72:92])
    assert m.one("PRAGMA journal_mode") == "wal"
    m.py("""
        import sqlite3
        data = conn.serialize() if hasattr(conn, 'serialize') else None
        if data is not None:
            assert data[18] in (1, 2) and not any(data[72:92]), data[:100]
        """)


def test_consistency(m):
    assert m.one("PRAGMA dust_consistency") == "local"
    m.sql("CREATE TABLE t(x)")
    for c in ("stale", "local", "fresh", "linearizable", "LOCAL"):
        assert m.one("PRAGMA dust_consistency=" + c) == c.lower()
        assert m.one("PRAGMA dust_consistency") == c.lower()
        m.sql("INSERT INTO t VALUES(1)")
        assert m.one("SELECT count(*) > 0 FROM t") == 1
    assert "dust_consistency" in m.error("PRAGMA dust_consistency=maybe").text
    assert m.one("PRAGMA dust_freshness=500") == "500"
    assert m.error("PRAGMA dust_freshness=-1").text


def test_page_size_is_the_clusters(m):
    m.sql("CREATE TABLE t(x)")
    for sql in ("PRAGMA page_size=8192", "VACUUM"):
        try:
            m.sql(sql)
        except Exception as e:
            assert "page size" in str(e)
    assert m.one("PRAGMA page_size") == 4096
    assert m.one("PRAGMA integrity_check") == "ok"


@pytest.fixture(params=[False, True], ids=["hook", "no hook"])
def beside(request, box):
    """A member, and a connection `p` whose main database is a plain one."""
    m = box.member("m", trace=request.param).create()
    m.sql("CREATE TABLE t(x)")
    m.open(box.path("plain.db"), conn="p", trace=request.param, timeout=0.3)
    return m


@pytest.mark.parametrize("mode", [None, "WAL", "PERSIST", "OFF", "MEMORY"])
@pytest.mark.parametrize("first", ["attach", "pragma"])
def test_exclusive_by_way_of_another_database(beside, first, mode):
    """SQLite asks the main database only, which may be a plain one, and then means all. What is acknowledged is there all the
    same, and what others write is not undone; without the hook, a second write is refused until the mode is another one."""
    m = beside
    steps = ["ATTACH '%s' AS d" % m.path, "PRAGMA locking_mode=EXCLUSIVE"]
    for step in steps if first == "attach" else steps[::-1]:
        m.sql(step, conn="p")
    seen = []
    if mode is not None:
        try:
            m.sql("PRAGMA journal_mode=" + mode, conn="p")
        except SqlError:
            assert m.trace and mode == "WAL"
    for i in range(6):
        try:
            m.sql("INSERT INTO d.t VALUES(?)", i, conn="p")
            seen.append(i)
        except SqlError as e:
            assert m.trace, e
        assert [x for x, in m.sql("SELECT x FROM t")] == seen
        if i % 2:
            m.sql("INSERT INTO t VALUES(?)", 100 + i)
            seen.append(100 + i)
            m.checkpoint()
    m.sql("PRAGMA locking_mode=NORMAL", conn="p")
    try:
        m.sql("SELECT * FROM d.t", conn="p")
    except SqlError:
        assert m.trace  # once more, as the pager lets go of what it has
    assert [x for x, in m.sql("SELECT x FROM d.t", conn="p")] == seen
    m.sql("INSERT INTO d.t VALUES(1000)", conn="p")
    assert [x for x, in m.sql("SELECT x FROM t")] == seen + [1000]
    assert m.one("PRAGMA integrity_check") == "ok"
    assert m.one("PRAGMA d.integrity_check", conn="p") == "ok"
    if not m.trace:
        assert len(seen) == 9


def test_exclusive_and_large(beside):
    """Pages that are written before the commit, into what was published or is another transaction's."""
    m = beside
    fill = ("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 400) INSERT INTO %s SELECT hex(zeroblob(500)) "
            "FROM r")
    m.sql("CREATE TABLE u(x)")
    m.sql("PRAGMA locking_mode=EXCLUSIVE", conn="p")
    m.sql("ATTACH ? AS d", m.path, conn="p")
    m.sql("PRAGMA d.cache_size=5", conn="p")
    m.sql(fill % "d.t", conn="p")
    m.checkpoint()
    m.sql("PRAGMA cache_size=2")
    m.sql("BEGIN")
    m.sql(fill % "u")
    try:
        m.sql("UPDATE d.t SET x = 'A' || x", conn="p")
    except SqlError:
        pass  # the turn is another's, or there is no lock
    m.sql("COMMIT")
    assert m.sql("SELECT count(*), count(DISTINCT x) FROM u") == [(400, 1)]
    assert m.sql("SELECT count(*), min(length(x)) FROM t") == [(400, 1000)]
    assert m.one("PRAGMA integrity_check") == "ok"


@pytest.mark.parametrize("read", [False, True])
def test_exclusive_before_it_is_a_member(box, read):
    m = box.member("m")
    m.open(m.path)
    m.sql("CREATE TABLE t(x)")
    m.close()
    m.open(m.path)
    m.sql("PRAGMA locking_mode=EXCLUSIVE")
    if read:
        m.sql("SELECT * FROM t")
        m.sql("INSERT INTO t VALUES('before')")
        m.sql("DELETE FROM t")
    m.sql("SELECT dust_start(?)", m.address)
    m.again(conn="two", timeout=1)
    for i in range(3):
        m.sql("INSERT INTO t VALUES(?)", i)
        m.sql("INSERT INTO t VALUES(?)", i, conn="two")
        assert m.one("SELECT count(*) FROM t") == m.one("SELECT count(*) FROM t", conn="two") == 2 * i + 2
    m.checkpoint()
    assert plain(m.path, "SELECT count(*) FROM t") == [(6,)]


def test_exclusive_before_dust_is_loaded(m, box):
    """Onto a database that is a member's already."""
    m.sql("CREATE TABLE t(x)")
    w = box.worker("w", load=False)
    w.call("py", conn="main", code="""if True:
        c = conns['main'] = sqlite3.connect(arg[0], isolation_level=None)
        c.execute('PRAGMA locking_mode=EXCLUSIVE')
        c.enable_load_extension(True)
        c.load_extension(arg[1])
        """, arg=[m.path, LIB])
    for i in range(3):
        m.sql("INSERT INTO t VALUES(?)", i)
        w.sql("INSERT INTO t VALUES(?)", i)
        assert m.one("SELECT count(*) FROM t") == w.one("SELECT count(*) FROM t") == 2 * i + 2
