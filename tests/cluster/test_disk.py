"""A full disk, of one member, of the leader, of all: writers get a clear error or a pause, reads go on, space is all it
takes to go on, and nothing is lost."""
import itertools
import os
import time

import pytest

from cluster import SLOW, SqlError, wait_until

NAMES = ("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_IOERR", "SQLITE_IOERR_COMMIT_ATOMIC")


number = itertools.count()


def insert(m, acked, n, size=200000):
    """Rows until one fails: its error, or None after n of them. One of unknown outcome may be there later, so that each try
    has a name of its own."""
    for _ in range(n):
        who = "%s%d" % (m.name, next(number))
        try:
            m.sql("INSERT INTO t(who, x) VALUES(?, randomblob(?))", who, size, timeout=60)
        except SqlError as e:
            assert e.name in NAMES, e
            return e
        acked.append(who)
    return None


def goes_on(m, acked, within=40):
    wait_until("%s writes again" % m.name, lambda: insert(m, acked, 1, 100) is None, within, every=0.2)


def check(acked, *members):
    for m in members:
        rows = [r[0] for r in m.sql("SELECT who FROM t", timeout=60)]
        assert len(rows) == len(set(rows))
        assert set(acked) <= set(rows)
        assert m.one("PRAGMA integrity_check", timeout=60) == "ok"


def create(m):
    m.create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, x)")


def test_the_only_member(box, small_disk):
    disk = small_disk("disk", 110, 40)
    m = box.member("a", path=os.path.join(disk, "a.db"))
    create(m)
    acked = []
    e = insert(m, acked, 2000)
    assert e is not None
    assert m.alive()
    assert m.one("SELECT count(*) FROM t") >= len(acked)  # reads go on
    again = insert(m, acked, 3)
    if again is not None:
        assert again.name != "SQLITE_OK"
    status = m.status()
    assert "full" in " ".join(str(v) for v in status.values()).lower() or "space" in " ".join(
        str(v) for v in status.values()).lower(), status
    os.unlink(os.path.join(disk, "filler"))
    goes_on(m, acked)
    check(acked, m)
    m.kill9()
    m.restart()
    check(acked, m)


@pytest.mark.sanitize
@pytest.mark.parametrize("who", ["follower", "leader"])
def test_one_of_three(box, small_disk, who):
    disk = small_disk("disk", 110, 40)
    paths = {"leader": "a", "follower": "c"}
    a, b, c = [box.member(n, path=os.path.join(disk, n + ".db") if paths[who] == n else None) for n in "abc"]
    create(a)
    b.join(a)
    c.join(a)
    box.settle(a, b, c)
    bad, good = (a, [b, c]) if who == "leader" else (c, [a, b])
    acked = []
    # The others go on all the while.
    end = time.monotonic() + 90 * SLOW
    while bad.one("SELECT dust_role()") != "recovering":
        e = insert(good[0], acked, 1)
        assert e is None or e.name in NAMES, e
        assert time.monotonic() < end, "the disk does not get full"
    goes_on(good[1], acked)
    bad.sql("PRAGMA dust_consistency = stale")
    assert bad.one("SELECT count(*) FROM t") > 0  # reads go on
    bad.open(bad.path, conn="short", timeout=0.5)
    bad.sql("PRAGMA dust_consistency = stale", conn="short")
    e = bad.error("INSERT INTO t(who) VALUES('never')", conn="short", timeout=60)
    assert e.name == "SQLITE_FULL", e
    os.unlink(os.path.join(disk, "filler"))
    goes_on(bad, acked, 60)
    bad.sql("PRAGMA dust_consistency = local")
    head = box.settle(a, b, c)
    check(acked, a, b, c)
    assert head
    assert a.one("SELECT count(*) FROM t WHERE who = 'never'") == 0


def test_all_of_them(box, small_disk):
    disk = small_disk("disk", 330, 120)
    members = [box.member(n, path=os.path.join(disk, n + ".db")) for n in "abc"]
    create(members[0])
    for m in members[1:]:
        m.join(members[0])
    box.settle(*members)
    acked = []
    e = None
    for i in range(3000):
        e = insert(members[i % 3], acked, 1)
        if e is not None:
            break
    assert e is not None
    for m in members:
        assert m.alive()
        m.sql("PRAGMA dust_consistency = stale")
        assert m.one("SELECT count(*) FROM t") > 0
    os.unlink(os.path.join(disk, "filler"))
    for m in members:
        goes_on(m, acked, 60)
        m.sql("PRAGMA dust_consistency = local")
    box.settle(*members)
    check(acked, *members)


def test_in_the_middle_of_a_large_transaction(box, small_disk):
    """The follower has had some of its parts when there is no space for the rest."""
    disk = small_disk("disk", 400, 300)
    a, b, c = [box.member(n, path=os.path.join(disk, n + ".db") if n == "c" else None) for n in "abc"]
    create(a)
    b.join(a)
    c.join(a)
    box.settle(a, b, c)
    c.sql("PRAGMA dust_consistency = stale")
    n = 0
    while c.one("SELECT count(*) FROM dust_status WHERE name = 'last_error'") == 0:
        assert n < 6, "the disk does not get full"
        a.py("""
            conn.execute('BEGIN IMMEDIATE')
            for i in range(20):
                conn.execute("INSERT INTO t(who, x) VALUES('n' || ?, randomblob(1000000))", (arg * 20 + i,))
            conn.execute('COMMIT')
            """, n, timeout=60)
        n += 1
    assert c.one("SELECT count(*) FROM t") % 20 == 0
    os.unlink(os.path.join(disk, "filler"))
    c.sql("PRAGMA dust_consistency = local")
    a.sql("INSERT INTO t(who) VALUES('last')")
    box.same_files(a, b, c)
    assert c.one("SELECT count(*) FROM t") == 20 * n + 1


def test_removed_while_its_disk_is_full(box, small_disk):
    """It is told when it is back; and its disk being well again does not make it a member again, whose reads count."""
    disk = small_disk("disk", 110, 40)
    a, b, c = [box.member(n, path=os.path.join(disk, "c.db") if n == "c" else None) for n in "abc"]
    create(a)
    b.join(a)
    c.join(a)
    box.settle(a, b, c)
    acked = []
    end = time.monotonic() + 90 * SLOW
    while c.one("SELECT dust_role()") != "recovering":
        e = insert(a, acked, 1)
        assert e is None or e.name in NAMES, e
        assert time.monotonic() < end, "the disk does not get full"
    c.sql("PRAGMA dust_consistency = stale")
    a.one("SELECT dust_remove(?)", c.id(), timeout=60)
    assert insert(a, acked, 3, 100) is None
    os.unlink(os.path.join(disk, "filler"))
    wait_until("c is told", lambda: "was removed" in str(c.status().get("failure")), 60)
    c.open("file:%s?consistency=linearizable" % c.path, conn="linearizable", uri=True, timeout=1)
    for _ in range(20):
        e = c.error("SELECT count(*) FROM t", conn="linearizable", timeout=60)
        assert e.name != "SQLITE_BUSY", e
        assert "was removed" in c.status()["failure"]
        time.sleep(0.1)
    e = c.error("INSERT INTO t(who) VALUES('never')", timeout=60)
    assert e.name == "SQLITE_READONLY", e
    check(acked, a, b)
