"""Any SQL, on a follower; all members equal afterwards. With and without the statement hook."""
import hashlib
import os
from textwrap import dedent

import pytest

from cluster import scaled, wait_until


@pytest.fixture(params=["hook", "no hook"])
def three(request, box):
    return box.cluster(3, trace=request.param == "no hook")


@pytest.mark.sanitize
def test_everything_that_is_not_deterministic(box, three):
    a, b, c = three
    b.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, r, at, f, d DEFAULT (hex(randomblob(8))))")
    for i in range(10):
        b.sql("INSERT INTO t(r, at, f) VALUES (random(), datetime('now', 'subsec'), my_function(?))", i)
    box.settle(*three)
    c.sql("UPDATE t SET r = random(), f = my_function(id) WHERE id % 2")
    box.same_files(a, b, c)
    rows = {tuple(m.sql("SELECT * FROM t ORDER BY id")) for m in three}
    assert len(rows) == 1
    assert len({r[1] for r in next(iter(rows))}) == 10


@pytest.mark.sanitize
def test_triggers_savepoints_alter_vacuum(box, three):
    a, b, c = three
    b.script("""
        CREATE TABLE t(id INTEGER PRIMARY KEY, x);
        CREATE TABLE log(what, id, r);
        CREATE TRIGGER ti AFTER INSERT ON t BEGIN INSERT INTO log VALUES('i', new.id, random()); END;
        CREATE TRIGGER tu AFTER UPDATE ON t BEGIN INSERT INTO log VALUES('u', new.id, my_function(new.x)); END;
        CREATE TRIGGER td BEFORE DELETE ON t BEGIN INSERT INTO log VALUES('d', old.id, old.x); END;
        """)
    b.sql("BEGIN")
    for i in range(100):
        b.sql("INSERT INTO t(x) VALUES(?)", i)
    b.sql("SAVEPOINT s")
    b.sql("DELETE FROM t")
    b.sql("SAVEPOINT s2")
    b.sql("INSERT INTO t(x) VALUES('gone')")
    b.sql("ROLLBACK TO s")
    b.sql("UPDATE t SET x = x + 1 WHERE id <= 10")
    b.sql("RELEASE s")
    b.sql("COMMIT")
    assert b.sql("SELECT count(*), sum(x) FROM t") == [(100, 4960)]
    assert b.one("SELECT count(*) FROM log") == 110
    b.sql("ALTER TABLE t RENAME COLUMN x TO y")
    b.sql("ALTER TABLE t ADD COLUMN z DEFAULT 7")
    b.sql("ALTER TABLE log RENAME TO journal_of_t")
    b.sql("CREATE INDEX ix ON t(y)")
    b.sql("ALTER TABLE t DROP COLUMN z")
    box.settle(a, b, c)
    assert c.sql("SELECT count(*), sum(y) FROM t") == [(100, 4960)]
    c.sql("INSERT INTO t(y) VALUES(zeroblob(300000))")
    c.sql("DELETE FROM t WHERE id > 50")
    before = c.one("PRAGMA page_count")
    b.one("SELECT dust_wait(?, 10000)", c.index())
    b.sql("VACUUM")
    assert b.one("PRAGMA page_count") < before
    assert b.one("PRAGMA integrity_check") == "ok"
    b.sql("INSERT INTO t(y) VALUES('after')")
    box.same_files(a, b, c)
    for m in three:
        assert m.one("PRAGMA integrity_check") == "ok"
        assert m.one("SELECT count(*) FROM t") == 51


@pytest.mark.sanitize
def test_fts5_and_rtree(box, three):
    a, b, c = three
    b.sql("CREATE VIRTUAL TABLE doc USING fts5(title, body)")
    b.sql("CREATE VIRTUAL TABLE area USING rtree(id, x0, x1, y0, y1)")
    box.settle(*three)
    words = "raft log page head turn member vote term leader quorum".split()
    for i in range(scaled(200, 40)):
        m = (b, c)[i % 2]
        m.sql("INSERT INTO doc VALUES(?, ?)", "title %d" % i, " ".join(words[(i * k) % 10] for k in range(1, 8)))
        m.sql("INSERT INTO area VALUES(?, ?, ?, ?, ?)", i, i, i + 3, i * 2, i * 2 + 5)
    c.sql("DELETE FROM doc WHERE rowid % 5 = 0")
    c.sql("INSERT INTO doc(doc) VALUES('optimize')")
    box.same_files(a, b, c)
    hits = {m.one("SELECT count(*) FROM doc WHERE doc MATCH 'quorum AND log'") for m in three}
    near = {tuple(m.sql("SELECT id FROM area WHERE x1 >= 10 AND x0 <= 12 ORDER BY id")) for m in three}
    assert len(hits) == 1 and hits != {0}
    assert len(near) == 1 and near != {()}
    for m in three:
        m.sql("INSERT INTO doc(doc) VALUES('integrity-check')")
        assert m.one("SELECT rtreecheck('area')") == "ok"


def test_large_blobs(box, three):
    a, b, c = three
    b.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
    n = scaled(10) << 20
    b.sql("INSERT INTO t VALUES(1, randomblob(?))", n)
    b.py("""
        # A blob made with incremental I/O, inside a transaction.
        conn.execute('BEGIN')
        conn.execute('INSERT INTO t VALUES(2, zeroblob(?))', (arg,))
        with conn.blobopen('t', 'x', 2) as blob:
            for i in range(0, arg, arg // 64):
                blob.seek(i)
                blob.write(b'dust %d' % i)
        conn.execute('COMMIT')
        # And one changed in place, in a transaction of its own.
        with conn.blobopen('t', 'x', 1) as blob:
            blob.seek(arg // 2)
            blob.write(b'in the middle')
        """, n)
    box.same_files(a, b, c)
    sums = {tuple(m.py("""
        import hashlib
        result = [hashlib.sha256(r[0]).hexdigest() for r in conn.execute('SELECT x FROM t ORDER BY id')]
        """)) for m in three}
    assert len(sums) == 1
    assert c.one("SELECT instr(x, CAST('in the middle' AS BLOB)) FROM t WHERE id = 1") == n // 2 + 1


def test_one_transaction_of_100_mb(box, three):
    """On a follower, while others write; nobody loses the leader over it."""
    a, b, c = three
    b.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
    b.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq)")
    box.settle(a, b, c)
    mb = scaled(100, 8)
    c.writer(pause=0.01, timeout=120.0)
    b.py("""
        conn.execute('BEGIN IMMEDIATE')
        for i in range(arg):
            conn.execute('INSERT INTO t(x) VALUES(randomblob(1048576 - 100))')
        conn.execute('COMMIT')
        """, mb, timeout=120)
    state = c.writer_stop()
    assert state["errors"] == []
    box.same_files(a, b, c)
    for m in three:
        assert m.one("SELECT count(*) FROM t") == mb
        assert os.path.getsize(m.path) > mb << 20
    b.sql("DELETE FROM t")  # and a large one that only frees
    box.same_files(a, b, c)


def test_join_during_large_transactions(box):
    """What a joiner is sent holds nothing of a transaction that is half way through the log; it gets all of that after."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
    a.again(conn="look")
    joined = []
    n = 0
    for name in "bcdef"[:scaled(5, 2)]:
        writing = a.start("py", conn="main", arg=scaled(40, 6), code=dedent("""
            conn.execute('BEGIN IMMEDIATE')
            for i in range(arg):
                conn.execute('INSERT INTO t(x) VALUES(randomblob(1048576 - 100))')
            conn.execute('COMMIT')
            """))
        under_way = "SELECT value FROM dust_status WHERE name = 'in_flight'"
        wait_until("it is on its way", lambda: writing.done() or a.one(under_way, conn="look"), every=0.002)
        joined.append(box.member(name).join(a))
        a.get(writing, 120)
        n += scaled(40, 6)
    box.same_files(a, *joined)
    for m in [a] + joined:
        assert m.one("SELECT count(*) FROM t") == n


def test_import_of_many_rows(box, three):
    a, b, c = three
    b.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT UNIQUE, v)")
    b.sql("BEGIN")
    b.many("INSERT INTO t(k, v) VALUES(?, ?)",
           ([hashlib.md5(str(i).encode()).hexdigest(), i] for i in range(scaled(20000, 1000))))
    b.sql("COMMIT")
    c.one("SELECT dust_wait(?, 20000)", b.index())
    c.sql("CREATE INDEX iv ON t(v)")
    c.sql("ANALYZE")
    c.sql("REINDEX")
    box.same_files(a, b, c)
    assert a.one("PRAGMA integrity_check") == "ok"
