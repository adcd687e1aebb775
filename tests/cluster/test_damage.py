"""A byte flipped underneath: found out, named, never served, repaired from another member."""
import os
import time

import pytest

from cluster import SqlError, different, plain, scaled, wait_until

ROWS = 400


def cluster(box, n):
    members = box.cluster(n) if n > 1 else [box.member("a").create()]
    a = members[0]
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    a.sql("CREATE TABLE other(x)")
    a.sql("INSERT INTO other VALUES('untouched')")
    a.many("INSERT INTO t VALUES(?, ?)", [[i, "row %06d " % i + "x" * 100] for i in range(ROWS)])
    box.same_files(*members)
    return members


def flip(path, text):
    """Flip one bit of the byte behind this text. The number of its page."""
    fd = os.open(path, os.O_RDWR)
    try:
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        at = data.index(text) + len(text) + 3
        os.pwrite(fd, bytes([data[at] ^ 0x20]), at)
        return at // 4096 + 1
    finally:
        os.close(fd)


def right(rows):
    return rows == [(i, "row %06d " % i + "x" * 100) for i in range(ROWS)]


def read(m, conn, table="t"):
    """All rows, by a connection of its own; None if it is an error (and then it is the one to be)."""
    m.open(m.path, conn=conn, timeout=20)
    try:
        return m.sql("SELECT * FROM %s ORDER BY 1" % table, conn=conn)
    except SqlError as e:
        assert e.name.startswith("SQLITE_CORRUPT"), e
        return None
    finally:
        m.close(conn)


def log_of(m):
    return " ".join(str(v) for k, v in m.status().items() if "error" in k)


def repaired(m):
    """Reads until they are right again; whatever is read meanwhile is right or an error."""
    n = [0]

    def again():
        n[0] += 1
        rows = read(m, "r%d" % n[0])
        assert rows is None or right(rows), "damaged data was served"
        return rows is not None and "repaired" in log_of(m)
    wait_until("it is repaired", again, 40, every=0.1)


@pytest.mark.sanitize
@pytest.mark.parametrize("where", ["follower", "leader"])
def test_in_the_file(box, where):
    members = cluster(box, 3)
    leader = box.leader(*members)
    m = leader if where == "leader" else [x for x in members if x is not leader][0]
    page = flip(m.path, b"row 000200 ")
    rows = read(m, "first")
    assert rows is None or right(rows)
    wait_until("the page is named", lambda: "page %d " % page in log_of(m), 20)
    repaired(m)
    box.same_files(*members)
    for x in members:
        x.sql("INSERT INTO other VALUES(?)", x.name)
    box.same_files(*members)


def test_in_a_page_that_nobody_reads(box):
    a, b, c = cluster(box, 3)
    m = b if b is not box.leader(a, b, c) else c
    page = flip(m.path, b"row 000300 ")
    wait_until("it is found and repaired", lambda: "page %d " % page in log_of(m) and "repaired" in log_of(m), 40)
    assert right(read(m, "after"))
    box.same_files(a, b, c)


def test_under_writes(box):
    members = cluster(box, 3)
    members[0].sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    box.settle(*members)
    leader = box.leader(*members)
    m = [x for x in members if x is not leader][0]
    for x in members:
        x.writer()
    wait_until("rows", lambda: all(x.writer_state()["n"] > 50 for x in members), 60)
    m.checkpoint()
    flip(m.path, b"row 000100 ")
    repaired(m)
    n = [x.writer_state()["n"] for x in members]
    wait_until("more rows", lambda: all(x.writer_state()["n"] > k + 20 for x, k in zip(members, n)), 60)
    for x in members:
        errors = x.writer_stop()["errors"]
        # What was on its way while the member was brought up to date: its outcome was not known at that moment.
        assert all(e["name"] in ("SQLITE_IOERR_COMMIT_ATOMIC", "SQLITE_BUSY_SNAPSHOT") for e in errors), errors[:3]
        assert len(errors) <= 3
    box.same_files(*members)
    rows = set(members[0].sql("SELECT who, seq FROM acked"))
    assert box.acked(*[x.name for x in members]) <= rows


def test_again_and_again_under_its_own_writer(box):
    """What the other members have may be a transaction that this one has in flight, which does not change the page."""
    members = cluster(box, 3)
    members[0].sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    box.settle(*members)
    m = [x for x in members if x is not box.leader(*members)][0]

    def repairs():
        return m.one("SELECT value FROM dust_metrics WHERE name = 'damage_repaired'")

    m.writer()
    for i in range(scaled(12, 4)):
        wait_until("rows", lambda: m.writer_state()["n"] > 20 * i, 60)
        m.checkpoint()
        before = repairs()
        flip(m.path, b"row %06d " % (7 + 37 * i % 390))
        read(m, "finds it")
        wait_until("it is repaired", lambda: repairs() > before, 40)
        assert right(read(m, "after"))
    errors = m.writer_stop()["errors"]
    assert all(e["name"] in ("SQLITE_IOERR_COMMIT_ATOMIC", "SQLITE_BUSY_SNAPSHOT") for e in errors), errors[:3]
    box.same_files(*members)


@pytest.mark.sanitize
def test_while_it_was_down(box):
    a, b, c = cluster(box, 3)
    b.kill9()
    page = flip(b.path, b"row 000000 ")
    b.restart()
    wait_until("the page is named", lambda: "page %d " % page in log_of(b), 20)
    repaired(b)
    box.same_files(a, b, c)


def test_in_pages(box):
    """What is not in app.db yet."""
    a, b, c = cluster(box, 3)
    leader = box.leader(a, b, c)
    m = [x for x in (a, b, c) if x is not leader][0]
    a.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    box.settle(a, b, c)
    leader.writer(pause=0.2)  # no pause in which a checkpoint would be taken
    leader.sql("UPDATE t SET v = replace(v, 'row', 'new') WHERE id = 222")
    box_index = leader.index()
    m.one("SELECT dust_wait(?, 20000)", box_index)
    flip(m.path + "-dust/pages", b"new 000222 ")

    def seen():
        rows = read(m, "p%f" % time.monotonic())
        if rows is not None:
            got = dict(rows)[222]
            assert got == "new 000222 " + "x" * 100, "damaged data was served: %r" % got
        return rows is not None and "repaired" in log_of(m)
    wait_until("it is repaired", seen, 40, every=0.1)
    assert "damaged in pages" in log_of(m)
    leader.writer_stop()
    box.same_files(a, b, c)


def test_the_only_member(box):
    (m,) = cluster(box, 1)
    page = flip(m.path, b"row 000123 ")
    assert read(m, "one") is None
    assert "page %d " % page in log_of(m)
    assert read(m, "two", "other") == [("untouched",)]  # the rest goes on
    m.sql("INSERT INTO other VALUES('more')")
    assert read(m, "three") is None
    # Put right by hand, as from a backup of the file.
    flip(m.path, b"row 000123 ")
    assert right(read(m, "four"))


def test_checksums_survive_restarts_and_kills(box):
    (m,) = cluster(box, 1)
    for i in range(4):
        m.sql("UPDATE t SET v = v WHERE id % 7 = ?", i)
        m.sql("INSERT INTO other SELECT randomblob(3000) FROM t LIMIT 100")
        if i % 2:
            m.checkpoint()
        if i == 2:
            m.sql("DELETE FROM other WHERE typeof(x) = 'blob'")
            m.sql("VACUUM")
        m.kill9()
        m.restart()
        assert right(read(m, "r%d" % i))
        assert "damaged" not in log_of(m)
    time.sleep(1)
    assert "damaged" not in log_of(m)
    m.kill9()
    page = flip(m.path, b"row 000001 ")
    m.restart()
    assert read(m, "last") is None
    assert "page %d " % page in log_of(m)
    assert different(m.path) is None
    assert plain(m.path, "SELECT count(*) FROM other") is not None


@pytest.mark.parametrize("at", [3, 20, 26, 34, 4096 + 9, 4096 + 4090])
def test_in_the_checksums(box, at):
    """They are made anew; pages that are as they were are not suspected."""
    (m,) = cluster(box, 1)
    m.kill9()
    path = m.path + "-dust/sums"
    with open(path, "r+b") as f:
        f.seek(at)
        b = f.read(1)[0]
        f.seek(at)
        f.write(bytes([b ^ 1]))
    m.restart()
    assert right(read(m, "r1"))
    time.sleep(0.5)  # the scrub goes over all pages
    assert "damaged" not in log_of(m)
    flip(m.path, b"row 000001 ")
    assert read(m, "r2") is None
