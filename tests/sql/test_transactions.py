"""Transactions, savepoints, rollback, spills."""
import pytest

from cluster import SqlError, scaled


def test_commit_and_rollback(m):
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    for begin in ("BEGIN", "BEGIN DEFERRED", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"):
        m.sql("DELETE FROM t")
        m.sql(begin)
        m.sql("INSERT INTO t(x) VALUES(1), (2)")
        assert m.one("SELECT count(*) FROM t") == 2
        m.sql("ROLLBACK")
        assert m.one("SELECT count(*) FROM t") == 0
        m.sql(begin)
        m.sql("INSERT INTO t(x) VALUES(1), (2)")
        m.sql("COMMIT")
        assert m.one("SELECT count(*) FROM t") == 2


def test_empty_and_read_only_transactions(m):
    m.sql("CREATE TABLE t(x)")
    head = m.head()
    for begin in ("BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "SAVEPOINT s"):
        for end in ("COMMIT", "ROLLBACK"):
            m.sql(begin)
            m.sql("SELECT * FROM t")
            m.sql(end)
    m.sql("DELETE FROM t WHERE x = 1")
    m.sql("UPDATE t SET x = 1")
    m.sql("BEGIN IMMEDIATE")
    m.sql("INSERT INTO t VALUES(1)")
    m.sql("ROLLBACK")
    assert m.head() == head, "nothing was written, so there is no new version"


def test_savepoints(m):
    m.sql("CREATE TABLE t(x)")
    m.sql("SAVEPOINT a")
    m.sql("INSERT INTO t VALUES(1)")
    m.sql("SAVEPOINT b")
    m.sql("INSERT INTO t VALUES(2)")
    m.sql("SAVEPOINT c")
    m.sql("INSERT INTO t VALUES(3)")
    m.sql("ROLLBACK TO b")
    m.sql("INSERT INTO t VALUES(4)")
    m.sql("RELEASE b")
    m.sql("RELEASE a")
    assert m.sql("SELECT x FROM t") == [(1,), (4,)]
    m.sql("BEGIN")
    m.sql("INSERT INTO t VALUES(5)")
    m.sql("SAVEPOINT a")
    m.sql("DELETE FROM t")
    m.sql("ROLLBACK TO a")
    m.sql("RELEASE a")
    m.sql("COMMIT")
    assert m.sql("SELECT x FROM t") == [(1,), (4,), (5,)]


@pytest.mark.parametrize("trace", [False, True])
def test_spill_of_the_page_cache(box, trace):
    """A transaction larger than the cache: pages go to the VFS before the commit, and come back."""
    m = box.member("m", trace=trace).create()
    m.sql("PRAGMA cache_size = 10")
    m.sql("PRAGMA cache_spill = 5")
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    n = scaled(2000, 200)
    fill = "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) INSERT INTO t(x) SELECT randomblob(900) FROM r"
    # Rolled back whole
    m.sql("BEGIN")
    m.sql(fill, n)
    assert m.one("SELECT count(*) FROM t") == n
    head = m.head()
    m.sql("ROLLBACK")
    assert m.one("SELECT count(*) FROM t") == 0
    assert m.head() == head
    assert m.one("PRAGMA integrity_check") == "ok"
    # In part, at more than one depth
    m.sql("BEGIN")
    m.sql(fill, n)
    s1 = m.one("SELECT sum(length(x)) FROM t")
    m.sql("SAVEPOINT a")
    m.sql("UPDATE t SET x = randomblob(500)")
    m.sql("SAVEPOINT b")
    m.sql("DELETE FROM t WHERE id % 2")
    m.sql(fill, n)
    m.sql("ROLLBACK TO b")
    assert m.one("SELECT count(*), sum(length(x)) FROM t") == n
    m.sql("ROLLBACK TO a")
    assert m.one("SELECT sum(length(x)) FROM t") == s1
    m.sql("UPDATE t SET x = zeroblob(901) WHERE id % 3 = 0")
    m.sql("COMMIT")
    m.again(conn="other")
    for conn in ("main", "other"):
        assert m.one("PRAGMA integrity_check", conn=conn) == "ok"
        assert m.one("SELECT count(*) FROM t", conn=conn) == n
        assert m.one("SELECT count(*) FROM t WHERE x = zeroblob(901)", conn=conn) == n // 3
    # A statement that fails half-way is undone, and its transaction goes on.
    m.sql("CREATE UNIQUE INDEX u ON t(x) WHERE id < 0")
    m.sql("BEGIN")
    m.sql("INSERT INTO t(x) VALUES('kept')")
    e = m.error("UPDATE t SET id = id - ?, x = 'same'", 10 * n)
    assert "UNIQUE" in e.text
    m.sql("COMMIT")
    assert m.one("SELECT count(*) FROM t WHERE x = 'same'") == 0
    assert m.one("SELECT count(*) FROM t WHERE x = 'kept'") == 1
    m.kill9()
    m.restart()
    assert m.one("PRAGMA integrity_check") == "ok"
    assert m.one("SELECT count(*) FROM t") == n + 1


def test_errors_inside_transactions(m):
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x UNIQUE, CHECK(x <> 13))")
    m.sql("CREATE TABLE c(t REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)")
    m.sql("PRAGMA foreign_keys=ON")
    m.sql("INSERT INTO t VALUES(1, 1)")
    head = m.head()
    assert m.error("INSERT INTO t VALUES(2, 1)").name == "SQLITE_CONSTRAINT_UNIQUE"
    assert m.error("INSERT INTO t VALUES(1, 2)").name == "SQLITE_CONSTRAINT_PRIMARYKEY"
    assert m.error("INSERT INTO t VALUES(3, 13)").name == "SQLITE_CONSTRAINT_CHECK"
    assert m.error("INSERT INTO c VALUES(99)").name == "SQLITE_CONSTRAINT_FOREIGNKEY"
    assert m.head() == head
    m.sql("BEGIN")
    m.sql("INSERT INTO t VALUES(2, 2)")
    m.error("INSERT INTO t VALUES(3, 2)")
    m.sql("INSERT OR IGNORE INTO t VALUES(4, 2)")
    m.sql("INSERT OR REPLACE INTO t VALUES(5, 2)")
    m.sql("INSERT INTO c VALUES(77)")
    assert m.error("COMMIT").name == "SQLITE_CONSTRAINT_FOREIGNKEY"
    m.sql("INSERT INTO t VALUES(77, 77)")  # still open; now it can be committed
    m.sql("COMMIT")
    assert m.sql("SELECT id, x FROM t ORDER BY id") == [(1, 1), (5, 2), (77, 77)]
    m.sql("BEGIN")
    m.sql("INSERT INTO t VALUES(100, 100)")
    m.error("INSERT OR ROLLBACK INTO t VALUES(101, 100)")
    assert m.error("COMMIT").text  # that was rolled back
    assert m.one("SELECT count(*) FROM t") == 3


def test_returning_and_upsert(m):
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k UNIQUE, n DEFAULT 1)")
    assert m.sql("INSERT INTO t(k) VALUES('a') RETURNING id, n") == [(1, 1)]
    for _ in range(3):
        m.sql("INSERT INTO t(k) VALUES('a') ON CONFLICT(k) DO UPDATE SET n = n + 1")
    assert m.sql("UPDATE t SET n = n + 10 RETURNING n") == [(14,)]
    assert m.sql("DELETE FROM t RETURNING k, n") == [("a", 14)]
    m.sql("BEGIN")
    assert m.sql("INSERT INTO t(k) VALUES('b'), ('c') RETURNING k") == [("b",), ("c",)]
    m.sql("ROLLBACK")
    assert m.one("SELECT count(*) FROM t") == 0


def test_statement_that_is_not_finished(m):
    """A cursor that stays open while the connection writes; a reset in the middle of RETURNING."""
    result = m.py("""
        conn.execute('CREATE TABLE t(x)')
        conn.executemany('INSERT INTO t VALUES(?)', [(i,) for i in range(1000)])
        cur = conn.execute('SELECT x FROM t')
        first = cur.fetchone()
        conn.execute('INSERT INTO t VALUES(-1)')
        rest = len(cur.fetchall())
        cur = conn.execute('INSERT INTO t SELECT x FROM t RETURNING x')
        one = cur.fetchone()
        cur.close()
        conn.execute('INSERT INTO t VALUES(-2)')
        result = [first[0], rest >= 999, conn.execute('SELECT count(*) FROM t').fetchone()[0]]
        """)
    assert result[:2] == [0, True]
    m.again(conn="other")
    assert m.one("SELECT count(*) FROM t", conn="other") == result[2]


def test_python_transactions(m):
    """As programs do that leave BEGIN to Python's driver."""
    m.sql("CREATE TABLE t(x)")
    m.again(conn="dj", isolation="")
    m.py("""
        with conn:
            conn.execute('INSERT INTO t VALUES(1)')
        try:
            with conn:
                conn.execute('INSERT INTO t VALUES(2)')
                raise ValueError
        except ValueError:
            pass
        conn.executemany('INSERT INTO t VALUES(?)', [(i,) for i in range(10, 20)])
        conn.commit()
        conn.execute('INSERT INTO t VALUES(99)')
        conn.rollback()
        conn.execute('INSERT INTO t VALUES(98)')
        conn.close()
        """, conn="dj")
    assert m.one("SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY x)") == "1," + ",".join(
        str(i) for i in range(10, 20))


def test_interrupt_and_progress(m):
    """A statement that is interrupted is undone, and the turn is free again."""
    result = m.py("""
        conn.execute('CREATE TABLE t(x)')
        n = [0]
        def stop():
            n[0] += 1
            return n[0] > 50
        conn.set_progress_handler(stop, 1000)
        try:
            conn.execute('WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) INSERT INTO t SELECT i FROM r')
            result = 'not stopped'
        except sqlite3.OperationalError as e:
            result = str(e)
        conn.set_progress_handler(None, 0)
        """)
    assert result == "interrupted"
    m.again(conn="other", timeout=1)
    m.sql("INSERT INTO t VALUES(1)", conn="other")
    assert m.one("SELECT count(*) FROM t") == 1


@pytest.mark.parametrize("how", ["close", "drop"])
def test_connection_closed_inside_a_transaction(m, how):
    """What was not committed is gone, and the next writer gets the turn at once."""
    m.sql("CREATE TABLE t(x)")
    m.again(conn="x")
    m.sql("BEGIN IMMEDIATE", conn="x")
    m.sql("INSERT INTO t VALUES(1)", conn="x")
    if how == "close":
        m.close("x")
    else:
        m.py("""
            import gc
            del conn
            c = conns.pop('x')
            del c
            gc.collect()
            """, conn="main")
        m.call("sql", conn="main", sql="SELECT 1")
    m.again(conn="y", timeout=5)
    m.sql("INSERT INTO t VALUES(2)", conn="y")
    assert m.sql("SELECT x FROM t") == [(2,)]


def test_busy_leaves_no_place_in_the_queue(m):
    """Where nobody waits, and everybody behind it would."""
    m.sql("CREATE TABLE t(x)")
    m.again(conn="x")
    m.again(conn="y", timeout=0)
    m.sql("BEGIN IMMEDIATE", conn="x")
    for sql in ("INSERT INTO t VALUES(1)", "BEGIN IMMEDIATE"):
        with pytest.raises(SqlError) as e:
            m.sql(sql, conn="y")
        assert e.value.name == "SQLITE_BUSY"
        assert m.one("SELECT value FROM dust_status WHERE name = 'turn_waiting'") == 0
    m.sql("COMMIT", conn="x")
    m.sql("INSERT INTO t VALUES(2)", conn="y")
    assert m.sql("SELECT x FROM t") == [(2,)]
