"""Files: VACUUM, auto-vacuum, page sizes, ATTACH, VACUUM INTO, backup, temp tables, what is on disk."""
import os
import re
import sqlite3
import stat

import pytest

from cluster import SqlError, address, plain, scaled


def fill(m, rows=500, conn="main"):
    m.sql("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, x BLOB)", conn=conn)
    m.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) "
          "INSERT INTO t(x) SELECT randomblob(1000) FROM r", rows, conn=conn)


def test_vacuum(m, reopened):
    fill(m, 2000)
    m.sql("DELETE FROM t WHERE id % 4")
    before = m.sql("SELECT id, hex(x) FROM t")
    pages = m.one("PRAGMA page_count")
    m.again(conn="reader")
    m.sql("BEGIN", conn="reader")
    assert m.one("SELECT count(*) FROM t", conn="reader") == 500
    m.sql("VACUUM")
    assert m.one("PRAGMA page_count") < pages // 2
    assert m.one("PRAGMA freelist_count") == 0
    assert m.sql("SELECT id, hex(x) FROM t") == before
    assert m.sql("SELECT id, hex(x) FROM t", conn="reader") == before
    assert m.one("PRAGMA page_count", conn="reader") == pages
    m.sql("COMMIT", conn="reader")
    assert m.sql("SELECT id, hex(x) FROM t", conn="reader") == before
    m.checkpoint()
    assert os.path.getsize(m.path) == 4096 * m.one("PRAGMA page_count")
    reopened(kill=True)
    assert m.sql("SELECT id, hex(x) FROM t") == before
    # Small again, large again.
    fill(m, 2000)
    m.sql("VACUUM")
    m.sql("DELETE FROM t")
    m.sql("VACUUM")
    m.checkpoint()
    assert os.path.getsize(m.path) <= 4096 * 4
    reopened()


@pytest.mark.parametrize("mode, trace", [("FULL", False), ("INCREMENTAL", False), ("FULL", True), ("INCREMENTAL", True)])
def test_auto_vacuum(box, mode, trace):
    m = box.member("m", trace=trace)
    plain(m.path, "PRAGMA auto_vacuum=" + mode)
    c = sqlite3.connect(m.path)
    c.execute("PRAGMA auto_vacuum=" + mode)
    c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
    c.commit()
    c.close()
    m.create()
    assert m.one("PRAGMA auto_vacuum") == {"FULL": 1, "INCREMENTAL": 2}[mode]
    fill(m, 1500)
    pages = m.one("PRAGMA page_count")
    m.sql("BEGIN")
    m.sql("DELETE FROM t WHERE id > 100 AND id % 3")
    m.sql("ROLLBACK")
    assert m.one("PRAGMA page_count") == pages
    for _ in range(3):
        m.sql("DELETE FROM t WHERE id % 2")
        m.sql("UPDATE t SET id = id / 2")
        if mode == "INCREMENTAL":
            m.script("PRAGMA incremental_vacuum(50); PRAGMA incremental_vacuum;")  # Python's execute() takes one step
        assert m.one("PRAGMA integrity_check") == "ok"
    assert m.one("PRAGMA page_count") < pages // 3
    rows = m.sql("SELECT id, hex(x) FROM t")
    m.again(conn="other")
    assert m.sql("SELECT id, hex(x) FROM t", conn="other") == rows
    m.checkpoint()
    assert os.path.getsize(m.path) == 4096 * m.one("PRAGMA page_count")
    m.kill9()
    m.restart()
    assert m.sql("SELECT id, hex(x) FROM t") == rows
    # Truncated and grown within one transaction.
    m.sql("BEGIN")
    m.sql("DELETE FROM t")
    fill(m, 300)
    m.sql("DELETE FROM t WHERE id > 10")
    m.sql("COMMIT")
    assert m.one("SELECT count(*) FROM t") == 10
    assert m.one("PRAGMA integrity_check") == "ok"


@pytest.mark.parametrize("size", [512, 1024, 2048, 8192, 32768, 65536])
def test_page_sizes(box, size):
    m = box.member("m")
    c = sqlite3.connect(m.path)
    c.execute("PRAGMA page_size=%d" % size)
    c.execute("CREATE TABLE old(x)")
    c.execute("INSERT INTO old VALUES('before')")
    c.commit()
    c.close()
    m.create()
    assert m.one("PRAGMA page_size") == size
    fill(m, 300)
    m.sql("DELETE FROM t WHERE id % 3 = 0")
    m.sql("VACUUM")
    rows = m.sql("SELECT id, hex(x) FROM t")
    m.kill9()
    m.restart()
    assert m.one("PRAGMA page_size") == size
    assert m.sql("SELECT id, hex(x) FROM t") == rows
    m.checkpoint()
    assert os.path.getsize(m.path) == size * m.one("PRAGMA page_count")
    assert plain(m.path, "SELECT x FROM old") == [("before",)]


def test_attach_plain_databases(m):
    """Attached ordinary databases are written as ever; a transaction over both is whole."""
    other = m.box.path("other.db")
    fill(m, 20)
    m.sql("ATTACH ? AS o", other)
    m.sql("CREATE TABLE o.u(x)")
    m.sql("INSERT INTO o.u SELECT id FROM t")
    m.sql("BEGIN")
    m.sql("INSERT INTO o.u VALUES('both')")
    m.sql("INSERT INTO t(x) VALUES('both')")
    m.sql("ROLLBACK")
    assert m.one("SELECT count(*) FROM o.u") == 20
    m.sql("BEGIN")
    m.sql("INSERT INTO o.u VALUES('both')")
    m.sql("INSERT INTO t(x) VALUES('both')")
    m.sql("COMMIT")
    assert m.sql("SELECT count(*) FROM t WHERE x = 'both'") == [(1,)]
    assert plain(other, "SELECT count(*) FROM u") == [(21,)]
    assert m.one("PRAGMA o.journal_mode=WAL") == "wal"
    m.sql("INSERT INTO o.u VALUES('wal')")
    assert os.path.exists(other + "-wal")
    m.sql("INSERT INTO t(x) SELECT x FROM o.u WHERE x = 'wal'")
    assert m.one("PRAGMA o.integrity_check") == "ok"
    m.sql("DETACH o")
    assert plain(other, "SELECT count(*) FROM u") == [(22,)]
    assert not os.path.exists(other + "-dust")
    m.sql("ATTACH ':memory:' AS mem")
    m.sql("CREATE TABLE mem.x AS SELECT * FROM t")
    m.sql("ATTACH '' AS tmp")
    m.sql("CREATE TABLE tmp.x AS SELECT * FROM t")
    assert m.one("SELECT count(*) FROM tmp.x") == 22
    assert m.one("SELECT count(*) FROM mem.x") == 22
    m.sql("BEGIN")
    m.sql("INSERT INTO t(x) VALUES(1)")
    m.sql("DELETE FROM mem.x")
    m.sql("DELETE FROM tmp.x")
    m.sql("COMMIT")
    assert m.one("SELECT count(*) FROM t") == 23


def test_member_attached_to_a_plain_connection(m):
    """The other way round: main is plain, the member's database is attached to it."""
    fill(m, 20)
    m.open(m.box.path("plain.db"), conn="p")
    m.sql("CREATE TABLE mine(x)", conn="p")
    m.sql("ATTACH ? AS d", m.path, conn="p")
    m.sql("INSERT INTO d.t(x) VALUES('from p')", conn="p")
    m.sql("INSERT INTO mine SELECT id FROM d.t", conn="p")
    assert m.one("SELECT count(*) FROM t") == 21
    m.sql("BEGIN", conn="p")
    m.sql("INSERT INTO d.t(x) VALUES('x')", conn="p")
    m.sql("INSERT INTO mine VALUES('x')", conn="p")
    m.sql("COMMIT", conn="p")
    assert m.one("SELECT count(*) FROM t") == 22
    assert plain(m.box.path("plain.db"), "SELECT count(*) FROM mine") == [(22,)]
    m.sql("BEGIN", conn="p")
    m.sql("DELETE FROM d.t", conn="p")
    m.sql("ROLLBACK", conn="p")
    assert m.one("SELECT count(*) FROM t") == 22
    m.sql("DETACH d", conn="p")


def test_vacuum_into(m):
    fill(m, 300)
    rows = m.sql("SELECT id, hex(x) FROM t")
    path = m.box.path("into.db")
    m.sql("VACUUM INTO ?", path)
    assert plain(path, "PRAGMA integrity_check") == [("ok",)]
    assert plain(path, "SELECT id, hex(x) FROM t") == rows
    plain(path, "INSERT INTO t(x) VALUES(1)")  # an ordinary database, without marks
    with open(path, "rb") as f:
        header = f.read(100)
    assert header[18:20] == b"\1\1" and not any(header[72:92])
    assert not os.path.exists(path + "-dust")
    m.sql("INSERT INTO t(x) VALUES(1)")


def test_backup_api(m):
    fill(m, 300)
    rows = m.sql("SELECT id, hex(x) FROM t")
    # As the source, whole and in steps while somebody writes.
    for pages in (-1, 7):
        path = m.box.path("backup%d.db" % pages)
        m.again(conn="writer")
        f = m.start("backup", conn="main", dest=path, pages=pages)
        n = 0
        while not f.done() and n < 20:
            m.sql("UPDATE t SET x = x WHERE id = 1", conn="writer")
            n += 1
        m.get(f)
        assert plain(path, "SELECT id, hex(x) FROM t") == rows
        assert plain(path, "PRAGMA integrity_check") == [("ok",)]
        try:
            plain(path, "INSERT INTO t(x) VALUES(1)")
        except sqlite3.OperationalError as e:
            raise AssertionError("the copy cannot be written: %s" % e)
    # As the target: what comes in is replicated like any write.
    src = m.box.path("src.db")
    c = sqlite3.connect(src)
    c.execute("CREATE TABLE restored(x)")
    c.executemany("INSERT INTO restored VALUES(?)", [(i,) for i in range(1000)])
    c.commit()
    c.close()
    m.py("""
        src = sqlite3.connect(arg)
        src.backup(conn)
        src.close()
        """, src)
    assert m.one("SELECT sum(x) FROM restored") == 499500
    m.kill9()
    m.restart()
    assert m.one("SELECT sum(x) FROM restored") == 499500
    assert m.one("PRAGMA integrity_check") == "ok"


def test_temp_tables(m):
    head = m.head()
    m.sql("CREATE TEMP TABLE tt(x)")
    m.sql("PRAGMA temp_store=FILE")
    m.sql("CREATE TEMP TABLE IF NOT EXISTS tt(x)")
    m.many("INSERT INTO tt VALUES(randomblob(?))", [[1000]] * 500)
    m.sql("UPDATE tt SET x = 1")
    m.sql("CREATE TEMP VIEW tv AS SELECT count(*) AS n FROM tt")
    assert m.one("SELECT n FROM tv") == 500
    assert m.head() == head
    m.sql("CREATE TABLE t(x)")
    m.sql("CREATE TEMP TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO tt VALUES(new.x); END")
    m.sql("INSERT INTO t VALUES(7)")
    assert m.one("SELECT count(*) FROM tt WHERE x = 7") == 1
    m.sql("BEGIN")
    m.sql("DELETE FROM tt")
    m.sql("INSERT INTO t VALUES(8)")
    m.sql("ROLLBACK")
    assert m.one("SELECT count(*) FROM tt") == 501
    # Sorting and materialising through temp files
    m.sql("PRAGMA cache_size=10")
    m.sql("INSERT INTO t SELECT randomblob(500) FROM (WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 5000) SELECT i FROM r)")
    assert m.one("SELECT count(*) FROM (SELECT x FROM t ORDER BY hex(x) || 'z')") == 5001
    m.sql("CREATE INDEX big ON t(x)")
    assert m.one("PRAGMA integrity_check") == "ok"


def test_what_is_on_disk(m):
    fill(m, 10)
    d = m.path + "-dust"
    assert stat.S_IMODE(os.stat(d).st_mode) == 0o700
    names = set(os.listdir(d))
    assert {"member", "raft", "pages"} <= names
    with open(d + "/member") as f:
        assert m.address in f.read()
    assert set(os.listdir(m.box.dir)) <= {"m.db", "m.db-dust", "m.db-journal"}
    m.checkpoint()
    assert plain(m.path, "SELECT count(*) FROM t") == [(10,)]
    # A clean end leaves a complete file.
    m.sql("INSERT INTO t(x) VALUES(1)")
    assert m.end() == 0
    assert plain(m.path, "SELECT count(*) FROM t") == [(11,)]


def test_checkpoint_comes_by_itself(m):
    from cluster import wait_until

    fill(m, 10)
    wait_until("the file is brought up to date",
               lambda: plain(m.path, "SELECT count(*) FROM sqlite_master") == [(1,)]
               and plain(m.path, "SELECT count(*) FROM t") == [(10,)], 20, every=0.2)


def test_what_was_cut_short(box):
    """A folder that nobody finished: the error says what to do, and that helps."""
    m = box.member("p")
    m.open(m.path)
    m.sql("CREATE TABLE t(x)")
    os.mkdir(m.path + "-dust")
    with pytest.raises(SqlError, match="cut short.*delete %s" % re.escape(m.path + "-dust")):
        m.sql("SELECT dust_start(?)", m.address)
    os.rmdir(m.path + "-dust")
    m.sql("SELECT dust_start(?)", m.address)
    m.sql("INSERT INTO t VALUES(1)")
    assert m.one("SELECT dust_role()") == "leader"


def test_odd_paths(box):
    """Spaces, quotes, percent, non-ASCII, a relative path, a symbolic link."""
    for name in ("with space.db", "it's.db", "100%.db", "naïve-ünï.db", "a;b?c#d.db", "noext", "x" * 180 + ".db"):
        m = box.member("p", path=box.path(name))
        m.open(name)  # relative: the worker's folder is the box
        m.sql("SELECT dust_start(?)", m.address)
        m.sql("CREATE TABLE t(x)")
        m.again(conn="absolute")
        m.sql("INSERT INTO t VALUES(?)", name, conn="absolute")
        assert m.one("SELECT x FROM t") == name
        assert m.end() == 0
        assert os.path.isdir(box.path(name) + "-dust")
        os.symlink(name, box.path("link"))
        m = box.member("q", path=box.path("link"))
        m.again()
        assert m.one("SELECT x FROM t") == name
        assert m.one("SELECT dust_role()") == "leader"
        assert m.end() == 0
        os.unlink(box.path("link"))


def test_two_members_in_one_process(box):
    """Two databases, two clusters, one process."""
    w = box.worker()
    for name in "ab":
        w.open(box.path(name + ".db"), conn=name)
        w.sql("SELECT dust_start(?)", address(), conn=name)
        w.sql("CREATE TABLE t(x)", conn=name)
        w.sql("INSERT INTO t VALUES(?)", name, conn=name)
    assert w.one("SELECT x FROM t", conn="a") == "a"
    assert w.one("SELECT x FROM t", conn="b") == "b"
    assert w.one("SELECT dust_leader()", conn="a") != w.one("SELECT dust_leader()", conn="b")
    # And three members of one cluster in one process.
    one = w.one("SELECT dust_leader()", conn="a")
    for name in "cd":
        w.open(box.path(name + ".db"), conn=name)
        w.sql("SELECT dust_join(?, ?)", address(), one, conn=name)
        w.sql("INSERT INTO t VALUES(?)", name, conn=name)
    index = w.one("SELECT max(idx) FROM dust_log", conn="a")
    for name in "acd":
        assert w.one("SELECT dust_wait(?, 20000)", index, conn=name) == 1
        assert w.one("SELECT group_concat(x) FROM (SELECT x FROM t ORDER BY x)", conn=name) == "a,c,d"
    assert w.end() == 0


def test_large_transactions_of_one_member(m, reopened):
    mb = scaled(30, 4)
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    m.sql("BEGIN")
    for _ in range(mb):
        m.sql("INSERT INTO t(x) VALUES(randomblob(1048576))")
    m.sql("COMMIT")
    m.sql("INSERT INTO t(x) SELECT x FROM t")
    assert m.one("SELECT count(*) FROM t") == 2 * mb
    reopened(kill=True)
    assert m.one("SELECT sum(length(x)) FROM t") == 2 * mb << 20
