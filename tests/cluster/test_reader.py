"""A long reader sees its snapshot, whatever is committed, and holds up nobody."""
import time

import pytest

from cluster import SLOW, scaled, wait_until


@pytest.mark.sanitize
@pytest.mark.parametrize("trace", [False, True])
def test_long_reader(box, trace):
    members = box.cluster(3)
    a = members[0]
    commits = scaled(10000 if not trace else 2000, 200)
    a.script("CREATE TABLE t(id INTEGER PRIMARY KEY, v, x); CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq);")
    a.many("INSERT INTO t(v, x) VALUES(?, randomblob(200))", [[i] for i in range(2000)])
    box.settle(*members)
    query = "SELECT count(*), sum(v), sum(length(x)), (SELECT count(*) FROM acked) FROM t"
    first = {}
    for m in members:
        m.again(conn="reader", trace=trace)
        m.sql("BEGIN", conn="reader")
        first[m] = m.sql(query, conn="reader")
        assert first[m] == [(2000, 1999000, 400000, 0)]
    start = a.index()
    for m in members:
        for i in range(4):
            m.writer("%s%d" % (m.name, i))
    a.again(conn="changer")
    slowest = 0.0
    end = time.monotonic() + 120 * SLOW
    while a.index() < start + commits:
        assert time.monotonic() < end, "only %d commits" % (a.index() - start)
        a.sql("UPDATE t SET v = v + 1, x = randomblob(300) WHERE id % 100 = abs(random()) % 100", conn="changer")
        for m in members:
            t = time.monotonic()
            assert m.sql(query, conn="reader") == first[m]
            slowest = max(slowest, time.monotonic() - t)
    states = [m.writer_stop("%s%d" % (m.name, i)) for m in members for i in range(4)]
    assert [s["errors"] for s in states if s["errors"]] == []
    for m in members:
        assert m.sql(query, conn="reader") == first[m]
        assert m.one("PRAGMA integrity_check", conn="reader") == "ok"
        m.sql("COMMIT", conn="reader")
        assert m.sql(query, conn="reader") != first[m]
    print("%d commits; a reader's slowest answer %.3f s; a writer's %.3f s" % (
        a.index() - start, slowest, max(s["worst"] for s in states)))
    assert slowest < 2 * SLOW
    box.same_files(*members)
    # What the reader held is given back.
    for m in members:
        wait_until("versions let go", lambda: m.status()["versions"] < 50, 30)


def test_readers_of_many_ages(box):
    """Each sees the state as of its own start."""
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(v)")
    a.sql("INSERT INTO t VALUES(0)")
    box.settle(a, b)
    for i in range(20):
        b.one("SELECT dust_wait(?, 10000)", a.index())
        b.again(conn="r%d" % i)
        b.sql("BEGIN", conn="r%d" % i)
        assert b.one("SELECT v FROM t", conn="r%d" % i) == i
        a.sql("UPDATE t SET v = v + 1")
    b.checkpoint()
    for i in range(20):
        assert b.one("SELECT v FROM t", conn="r%d" % i) == i
    for i in range(0, 20, 2):
        b.sql("COMMIT", conn="r%d" % i)
    for i in range(1, 20, 2):
        assert b.one("SELECT v FROM t", conn="r%d" % i) == i
    for i in range(20):
        b.close("r%d" % i)
    box.same_files(a, b)


def test_a_reader_that_writes_is_told_its_snapshot_is_old(box):
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(v)")
    box.settle(a, b)
    b.again(conn="r")
    b.sql("BEGIN", conn="r")
    assert b.one("SELECT count(*) FROM t", conn="r") == 0
    a.sql("INSERT INTO t VALUES(1)")
    b.one("SELECT dust_wait(?, 10000)", a.index())
    e = b.error("INSERT INTO t VALUES(2)", conn="r")
    assert e.name == "SQLITE_BUSY_SNAPSHOT", e
    assert b.one("SELECT count(*) FROM t", conn="r") == 0  # the transaction still stands, for reading
    b.sql("ROLLBACK", conn="r")
    b.sql("INSERT INTO t VALUES(2)", conn="r")
    box.same_files(a, b)
    assert a.one("SELECT group_concat(v) FROM t") == "1,2"
