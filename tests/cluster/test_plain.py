"""Plain SQLite beside dust: it reads a member's file at any time and cannot write it; and databases that are nobody's
business stay as they are."""
import os
import sqlite3
import time

import pytest

from cluster import LIB, Worker, plain, scaled, shell_once, wait_until


@pytest.mark.sanitize
def test_plain_readers_while_members_write(box):
    a, b = box.cluster(2)
    a.script("CREATE TABLE account(id INTEGER PRIMARY KEY, v); CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq);")
    a.many("INSERT INTO account(v) VALUES(?)", [[100]] * 500)
    box.settle(a, b)
    for m in (a, b):
        m.checkpoint()
        m.py("""
            # Money moves about; the sum stays. Pages all over the file change in each transaction.
            def move(path):
                c = connect(path)
                while not stop.is_set():
                    c.execute('BEGIN IMMEDIATE')
                    c.execute('UPDATE account SET v = v - 1 WHERE id % 7 = 1')
                    c.execute('UPDATE account SET v = v + 1 WHERE id % 7 = 2')
                    c.execute("UPDATE account SET v = v + (50000 - (SELECT sum(v) FROM account)) WHERE id = 1")
                    c.execute('INSERT INTO acked(who, seq) VALUES(?, randomblob(3000))', (path,))
                    c.execute('COMMIT')
                    stop.wait(0.002)
            stop = threading.Event()
            sys.modules['__main__'].names['stop'] = stop
            threading.Thread(target=move, args=(arg,), daemon=True).start()
            """, m.path)
    seen = set()
    end = time.monotonic() + 6
    n = 0
    while time.monotonic() < end:
        for m in (a, b):
            rows = plain(m.path, "SELECT sum(v), (SELECT count(*) FROM acked) FROM account")
            assert rows[0][0] == 50000
            seen.add((m.name, rows[0][1]))
            n += 1
        if n % 10 == 0:
            assert plain(a.path, "PRAGMA integrity_check") == [("ok",)]
        if n % 200 < 2:
            m.start("sql", sql="SELECT dust_checkpoint()", params=[])
    # While it is being written, one that reads for long keeps its snapshot, and members go on.
    c = sqlite3.connect(a.path, isolation_level=None)
    c.execute("BEGIN")
    first = c.execute("SELECT sum(v), (SELECT count(*) FROM acked) FROM account").fetchone()
    before = a.index()
    wait_until("commits go on", lambda: a.index() > before + scaled(200, 20), 30)
    assert c.execute("SELECT sum(v), (SELECT count(*) FROM acked) FROM account").fetchone() == first
    c.execute("COMMIT")
    c.close()
    for m in (a, b):
        m.py("stop.set()")
    time.sleep(0.1)
    box.same_files(a, b)
    assert plain(a.path, "SELECT sum(v), (SELECT count(*) FROM acked) FROM account") == a.sql(
        "SELECT sum(v), (SELECT count(*) FROM acked) FROM account")
    print("%d reads, %d versions seen" % (n, len(seen)))


def test_plain_sqlite_cannot_write(box):
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    m.sql("CREATE INDEX i ON t(x)")
    m.sql("INSERT INTO t VALUES(1)")
    m.checkpoint()
    for alive in (True, False):
        if not alive:
            assert m.end() == 0
        with open(m.path, "rb") as f:
            before = f.read()
        for sql in ("INSERT INTO t VALUES(2)", "DELETE FROM t", "CREATE TABLE u(x)", "VACUUM", "PRAGMA user_version=7",
                    "PRAGMA journal_mode=WAL", "DROP TABLE t", "BEGIN IMMEDIATE; INSERT INTO t VALUES(1)"):
            status, out, err = shell_once(m.path, sql)
            assert "readonly" in err or (sql.startswith("PRAGMA journal") and "wal" not in out), (sql, out, err)
        status, out, err = shell_once(m.path, "SELECT x FROM t; PRAGMA integrity_check;")
        assert (status, out.split(), err) == (0, ["1", "ok"], "")
        with open(m.path, "rb") as f:
            assert f.read() == before
        assert not os.path.exists(m.path + "-journal")


def script(w, conn):
    """The same work as always gives the same bytes."""
    w.script("""
        PRAGMA page_size=1024;
        CREATE TABLE t(id INTEGER PRIMARY KEY, x, y UNIQUE);
        WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 2000)
            INSERT INTO t(x, y) SELECT hex(i * 7919), i * 31 FROM r;
        CREATE VIRTUAL TABLE f USING fts5(a);
        INSERT INTO f SELECT x FROM t WHERE id % 3 = 0;
        DELETE FROM t WHERE id % 4 = 0;
        BEGIN; UPDATE t SET x = 'no'; ROLLBACK;
        SAVEPOINT a; UPDATE t SET x = x || 'z' WHERE id < 50; RELEASE a;
        CREATE TEMP TABLE tt AS SELECT * FROM t;
        VACUUM;
        """, conn=conn)


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate", "persist", "memory"])
def test_other_databases_are_untouched(box, mode):
    results = []
    for load in (False, True):
        w = Worker(box, "w", load=load)
        path = box.path("plain%d.db" % load)
        w.open(path)
        assert w.one("PRAGMA journal_mode=" + mode) == mode
        script(w, "main")
        files = sorted(f[len("plain0.db"):] for f in os.listdir(box.dir) if f.startswith("plain%d" % load))
        answers = [w.sql("PRAGMA " + p) for p in
                   ("journal_mode", "synchronous", "locking_mode", "page_size", "mmap_size", "wal_checkpoint",
                    "integrity_check")]
        assert w.end() == 0
        with open(path, "rb") as f:
            results.append((f.read(), files, answers))
    assert results[0] == results[1]


def test_no_thread_and_no_file(box):
    w = Worker(box, "w", load=False)
    w.open(box.path("x.db"))
    before = w.threads()
    listing = set(os.listdir(box.dir))
    w.call("load", lib=LIB)
    w.open(box.path("x.db"))
    w.sql("CREATE TABLE t(x)")
    w.sql("INSERT INTO t VALUES(1)")
    w.open(":memory:")
    w.sql("CREATE TABLE t(x)")
    w.open("")
    w.sql("CREATE TABLE t(x)")
    w.open("file:%s?mode=ro" % box.path("x.db"), uri=True)
    assert w.one("SELECT x FROM t") == 1
    assert w.error("INSERT INTO t VALUES(2)").name == "SQLITE_READONLY"
    w.open("file:shared?mode=memory&cache=shared", uri=True)
    w.sql("CREATE TABLE t(x)")
    w.open("file:shared?mode=memory&cache=shared", uri=True, conn="two")
    w.sql("INSERT INTO t VALUES(5)")
    assert w.one("SELECT x FROM t", conn="two") == 5
    assert w.threads() == before + 1  # the worker's own, for the connection "two"
    assert set(os.listdir(box.dir)) - listing <= {"x.db"}
