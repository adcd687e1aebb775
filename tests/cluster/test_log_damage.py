"""A byte flipped in the log, or in the metadata beside it: what had been promised is not forgotten in silence.

After kill -9 the newest entries are in open segments, of which libraft drops whatever does not fit a checksum, and all
that follows, as if a crash had cut it off."""
import os
import shutil

import pytest

from cluster import SqlError, copy_folder, plain, scaled, wait_until

ROWS = 60


def raft_of(m):
    return m.path + "-dust/raft"


def segments(m):
    return sorted(f for f in os.listdir(raft_of(m)) if f.startswith("open-") or f[0].isdigit())


def used(path):
    """How far a segment was written."""
    with open(path, "rb") as f:
        return len(f.read().rstrip(b"\0"))


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        b = f.read(1)[0]
        f.seek(at)
        f.write(bytes([b ^ 0x20]))


def newest(m):
    """The segment that was written to last, and how far."""
    paths = [os.path.join(raft_of(m), f) for f in segments(m)]
    n, path = max((used(p), p) for p in paths if os.path.basename(p).startswith("open-"))
    assert n > 1000, "there is nothing in %s" % path
    return path, n


def three(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    box.settle(a, b, c)
    for i in range(ROWS):
        (a, b, c)[i % 3].sql("INSERT INTO t(v) VALUES(?)", "row %d" % i)
    box.settle(a, b, c)
    return a, b, c


def rows_of(m, conn="main"):
    return [r[0] for r in m.sql("SELECT v FROM t ORDER BY id", conn=conn)]


ALL = ["row %d" % i for i in range(ROWS)]


def refused(m):
    """It cannot be opened, and says why."""
    m.restart(open_=False)
    e = m.open_error(m.path, timeout=2)
    assert "raft" in e.text and m.path in e.text and "damaged" in e.text, e
    m.kill9()
    return e


@pytest.mark.sanitize
def test_of_one_of_three(box):
    """Wherever the byte is: either it was not needed and all is there, or it is refused."""
    a, b, c = three(box)
    b.kill9()
    path, n = newest(b)
    kept = box.path("kept")
    copy_folder(b.path + "-dust", kept)
    shutil.copy(b.path, kept + ".db")
    seen = set()
    step = n // scaled(12, 4)
    for at in [8, 20, n - 10] + list(range(step, n, step)):
        shutil.rmtree(b.path + "-dust")
        copy_folder(kept, b.path + "-dust")
        shutil.copy(kept + ".db", b.path)
        flip(path, at)
        e = refused(b)
        seen.add(e.text.split("entry ")[-1].split(",")[0])
    assert len(seen) == 1, seen  # the same promise each time
    # What the message says.
    id_ = next(r[0] for r in a.sql("SELECT id, address FROM dust_members") if r[1] == b.address)
    a.one("SELECT dust_remove(?)", id_)
    os.unlink(b.path)
    shutil.rmtree(b.path + "-dust")
    b.restart(open_=False)
    b.join(a)
    assert rows_of(b) == ALL
    box.same_files(a, b, c)


def test_after_all_were_killed(box):
    """Nobody is left who remembers how far the log of each was."""
    a, b, c = three(box)
    for m in (a, b, c):
        m.kill9()
    path, n = newest(b)
    flip(path, n // 2)
    for m in (a, c):
        m.restart(open_=False)
    refused(b)
    for m in (a, c):
        m.open(m.path)
    for m in (a, c):
        assert rows_of(m) == ALL


@pytest.mark.sanitize
def test_of_the_only_member(box):
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    for i in range(ROWS):
        m.sql("INSERT INTO t(v) VALUES(?)", "row %d" % i)
    m.kill9()
    path, n = newest(m)
    flip(path, n // 2)
    refused(m)
    w = box.worker()
    w.open(":memory:")
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("r1.db"))
    assert "damaged" in e.text, e
    assert not os.path.exists(box.path("r1.db"))
    said = w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("r2.db"))
    assert "the log went to" in said
    some = [r[0] for r in plain(box.path("r2.db"), "SELECT v FROM t ORDER BY id")]
    assert some == ALL[:len(some)] and len(some) < ROWS
    # The byte put right: all is there.
    flip(path, n // 2)
    m.restart()
    assert rows_of(m) == ALL


def test_in_a_closed_segment(box):
    """A process that ended well has closed its segments, and app.db holds all of them."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    for i in range(ROWS):
        m.sql("INSERT INTO t(v) VALUES(?)", "row %d" % i)
    assert m.end() == 0
    path = os.path.join(raft_of(m), [f for f in segments(m) if f[0].isdigit()][-1])
    flip(path, used(path) // 2)
    m.restart(open_=False)
    e = m.open_error(m.path, timeout=2)
    assert os.path.basename(path) in e.text and m.path in e.text, e
    m.kill9()
    w = box.worker()
    w.open(":memory:")
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("r1.db"))
    assert os.path.basename(path) in e.text and m.path in e.text and "force" in e.text, e
    assert not os.path.exists(box.path("r1.db")) and not os.path.exists(box.path("r1.db-dust"))
    assert "could not be read" in w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("r2.db"))
    assert [r[0] for r in plain(box.path("r2.db"), "SELECT v FROM t ORDER BY id")] == ALL
    flip(path, used(path) // 2)
    m.restart()
    assert rows_of(m) == ALL


def voted(m):
    """Has it promised a vote in its term?"""
    with open(m.path + "-dust/promise", "rb") as f:
        return f.read(24)[16:] != bytes(8)


def test_in_the_metadata(box):
    """Term and vote: what is lower than it was, is noticed; a member that votes twice in a term does harm."""
    a, b, c = three(box)
    b.kill9()
    kept = box.path("kept")
    copy_folder(raft_of(b), kept)
    for at in (16, 24):  # the term, the vote; the file with the higher version counts
        for name in [x for x in ("metadata1", "metadata2") if os.path.exists(os.path.join(raft_of(b), x))]:
            with open(os.path.join(raft_of(b), name), "r+b") as f:
                f.seek(at)
                before = f.read(8)
                f.seek(at)
                f.write(bytes(8) if at == 16 or before != bytes(8) else b"\x09" + bytes(7))
        if at == 24 and not voted(b):
            continue  # in this term it had no vote to forget
        refused(b)
        shutil.rmtree(raft_of(b))
        copy_folder(kept, raft_of(b))
    shutil.rmtree(raft_of(b))
    copy_folder(kept, raft_of(b))
    b.restart()
    assert rows_of(b) == ALL
    box.same_files(a, b, c)


def test_power_is_lost_before_the_note(box):
    """What is noted may be behind: that is no damage."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    m.kill9()
    with open(m.path + "-dust/promise", "rb") as f:
        old = f.read()
    m.restart()
    for i in range(ROWS):
        m.sql("INSERT INTO t(v) VALUES(?)", "row %d" % i)
    m.kill9()
    for content in (old, bytes(64), b""):
        with open(m.path + "-dust/promise", "wb") as f:
            f.write(content)
        m.restart()
        assert rows_of(m) == ALL
        m.kill9()
