"""A majority lost for good, and a copy of app.db: back to an ordinary database, offline."""
import os
import shutil
import sqlite3

import pytest

import raftlog
from cluster import copy_folder, plain, scaled, wait_until


def lost_cluster(box, rows=50):
    """Three members; two are gone with their disks. Gives the third, whose process is dead, and a folder of one lost."""
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a.sql("CREATE INDEX ti ON t(v)")
    for i in range(rows):
        (a, b, c)[i % 3].sql("INSERT INTO t(v) VALUES(?)", "row %d" % i)
    box.settle(a, b, c)
    for m in (a, b, c):
        m.kill9()
    kept = box.path("b-kept")
    os.mkdir(kept)
    shutil.copy(b.path, kept)
    copy_folder(b.path + "-dust", os.path.join(kept, "b.db-dust"))
    for m in (a, b):
        os.unlink(m.path)
        shutil.rmtree(m.path + "-dust")
    return c, b, kept


def contents(path):
    return plain(path, "SELECT v FROM t ORDER BY id")


@pytest.mark.sanitize
def test_from_one_survivor(box):
    c, b, kept = lost_cluster(box)
    before = {name: open(os.path.join(c.path + "-dust/raft", name), "rb").read()
              for name in os.listdir(c.path + "-dust/raft")}
    w = box.worker()
    w.open(":memory:")
    new = box.path("new.db")
    said = w.one("SELECT dust_recover(?, ?)", c.path, new)
    assert "ordinary database" in said, said
    assert contents(new) == [("row %d" % i,) for i in range(50)]  # those that were never checkpointed, too
    assert plain(new, "PRAGMA integrity_check") == [("ok",)]
    assert not os.path.exists(new + "-dust") and not os.path.exists(new + "-journal")
    plain(new, "INSERT INTO t(v) VALUES('plain')")
    for name, data in before.items():
        with open(os.path.join(c.path + "-dust/raft", name), "rb") as f:
            assert f.read() == data, "%s was changed" % name
    # On with it: a new cluster, in which the old ones have no place.
    x = box.member("x", path=new)
    x.open(new)
    x.sql("SELECT dust_start(?)", x.address)
    y = box.member("y").join(x)
    y.sql("INSERT INTO t(v) VALUES('new cluster')")
    box.same_files(x, y)
    shutil.copy(os.path.join(kept, "b.db"), b.path)
    copy_folder(os.path.join(kept, "b.db-dust"), b.path + "-dust")
    b.restart(open_=False)
    c.restart(open_=False)
    opens = [m.start("open", conn="main", path=m.path) for m in (b, c)]
    for m, f in zip((b, c), opens):
        m.get(f, 60)
    c.sql("INSERT INTO t(v) VALUES('old cluster')")  # two of three are back: it lives on by itself
    x.sql("INSERT INTO t(v) VALUES('after')")
    box.settle(x, y)
    assert x.one("SELECT count(*) FROM t WHERE v = 'old cluster'") == 0
    assert c.one("SELECT count(*) FROM t WHERE v IN ('new cluster', 'after', 'plain')") == 0


def test_with_large_transactions_in_the_log(box):
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    m.checkpoint()
    for i in range(3):
        m.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) INSERT INTO t(v) SELECT randomblob(1000) FROM r",
              scaled(1500, 300))
    m.sql("UPDATE t SET v = id || 'x' WHERE id % 2")
    want = m.sql("SELECT v FROM t ORDER BY id")
    m.kill9()
    w = box.worker()
    w.open(":memory:")
    w.one("SELECT dust_recover(?, ?)", m.path, box.path("new.db"))
    assert contents(box.path("new.db")) == want
    m.restart()
    assert m.sql("SELECT v FROM t ORDER BY id") == want


def test_not_on_a_live_cluster(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a.sql("INSERT INTO t(v) VALUES(1)")
    box.settle(a, b, c)
    w = box.worker()
    w.open(":memory:")
    new = box.path("new.db")
    e = w.error("SELECT dust_recover(?, ?)", c.path, new)
    assert e.name == "SQLITE_BUSY" and "open" in e.text, e
    e = c.error("SELECT dust_recover(?, ?)", c.path, new)
    assert e.name == "SQLITE_BUSY" and "open" in e.text, e
    c.sql("INSERT INTO t(v) VALUES(2)")  # its locks are what they were
    c.kill9()
    e = w.error("SELECT dust_recover(?, ?)", c.path, new)
    assert a.address in e.text and b.address in e.text and "majority" in e.text, e
    assert not os.path.exists(new) and not os.path.exists(new + "-dust")
    b.kill9()
    e = w.error("SELECT dust_recover(?, ?)", c.path, new)
    assert a.address in e.text and b.address not in e.text, e
    a.kill9()
    w.one("SELECT dust_recover(?, ?)", c.path, new)
    assert contents(new) == [(1,), (2,)]
    w.one("SELECT dust_recover(?, ?, 'force')", c.path, box.path("other.db"))
    for m in (a, b, c):
        m.restart(open_=False)
    opens = [m.start("open", conn="main", path=m.path) for m in (a, b, c)]
    for m, f in zip((a, b, c), opens):
        m.get(f, 60)
    c.sql("INSERT INTO t(v) VALUES(3)")  # it has taken no harm
    box.same_files(a, b, c)


def test_restore_from_a_copy(box):
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a.sql("INSERT INTO t(v) VALUES(1)")
    box.same_files(a, b)
    copy = box.path("copy.db")
    shutil.copy(b.path, copy)
    a.sql("INSERT INTO t(v) VALUES(2)")
    w = box.worker()
    w.open(":memory:")
    new = box.path("new.db")
    w.one("SELECT dust_recover(?, ?)", copy, new)
    assert contents(new) == [(1,)]
    assert contents(copy) == [(1,)]
    plain(new, "INSERT INTO t(v) VALUES('mine')")
    x = box.member("x", path=new)
    x.open(new)
    x.sql("SELECT dust_start(?)", x.address)
    x.sql("INSERT INTO t(v) VALUES('again')")
    assert x.one("SELECT count(*) FROM t") == 3


def test_wrong_names(box):
    w = box.worker()
    w.open(":memory:")
    c = sqlite3.connect(box.path("plain.db"))
    c.execute("CREATE TABLE t(x)")
    c.commit()
    c.close()
    new = box.path("new.db")
    assert "no file" in w.error("SELECT dust_recover(?, ?)", box.path("nothing.db"), new).text
    assert "ordinary" in w.error("SELECT dust_recover(?, ?)", box.path("plain.db"), new).text
    assert not os.path.exists(new) and not os.path.exists(new + "-dust")
    open(new, "w").close()
    m = box.member("a").create()
    wait_until("it has its first snapshot", lambda: m.status()["snapshot_index"] > 0)
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    m.kill9()
    assert "exists" in w.error("SELECT dust_recover(?, ?)", m.path, new).text
    assert os.path.getsize(new) == 0
    for args in (("", new), (m.path, ""), (None, None)):
        assert "two names" in w.error("SELECT dust_recover(?, ?)", *args).text
    assert "force" in w.error("SELECT dust_recover(?, ?, 'please')", m.path, box.path("x.db")).text
    # A damaged log is refused, and says so.
    last = raftlog.log(m.path + "-dust/raft")[-1]
    raftlog.flip(last.path, last.at + 100)
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("y.db"))
    assert "log" in e.text, e
    assert not os.path.exists(box.path("y.db"))


def test_damaged_pages(box):
    """They are not passed on unnoticed."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    m.many("INSERT INTO t VALUES(?, ?)", [[i, "row %d " % i + "x" * 200] for i in range(200)])
    m.checkpoint()
    m.kill9()
    with open(m.path, "r+b") as f:
        at = f.read().index(b"row 150 ") + 20
        f.seek(at)
        f.write(b"y")
    w = box.worker()
    w.open(":memory:")
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("new.db"))
    assert e.name == "SQLITE_CORRUPT" and "page %d " % (at // 4096 + 1) in e.text and "force" in e.text, e
    assert not os.path.exists(box.path("new.db"))
    w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("new.db"))
    rows = plain(box.path("new.db"), "SELECT id, v FROM t")
    assert [id_ for id_, v in rows if v != "row %d " % id_ + "x" * 200] == [150]
