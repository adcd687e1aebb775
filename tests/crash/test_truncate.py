"""Power loss while a member that has led cuts off its log what was not agreed, and writes on: each entry stays at its
place."""
import os

import pytest

from cluster import SqlError, wait_until
from losses import Losses, mark, points, stop

ALONE, AGREED = 6, 4
LOG = "SELECT idx, id FROM dust_log WHERE id IS NOT NULL"


def log_of(m):
    return dict(m.sql(LOG))


def record(recording, box, size, filler):
    """What a has in its log before it is cut, and at the end. size: of each row that is not agreed; filler: bytes before."""
    os.mkdir(os.path.join(recording.live, "a"))
    recording.begin()
    a, b, c = members = recording.member("a", "a"), box.member("b"), box.member("c")
    for m in members:  # a leader that hears nobody steps down after this time: enough for a slow machine
        m.open("file:%s?vfs=dust&election=4000&bind=%s%s" % (m.path, m.address, "&join=" + a.address if m is not a else ""),
               uri=True)
    a.sql("CREATE TABLE t(x)")
    a.sql("INSERT INTO t VALUES('before')")
    box.settle(*members)
    a.checkpoint()  # alone, a member applies nothing that app.db has not
    if filler:
        a.sql("CREATE TABLE filler(x)")
        a.sql("INSERT INTO filler VALUES(randomblob(?))", filler)
        box.settle(*members)
    stored = a.status()["stored_index"]
    b.kill9()
    c.kill9()
    jobs = []
    for i in range(ALONE):
        a.open(a.path, conn="alone%d" % i)
        jobs.append(a.start("sql", conn="alone%d" % i, sql="INSERT INTO t VALUES(randomblob(?))", params=[size]))
        stored += 1
        wait_until("it is in the leader's log", lambda: a.status()["stored_index"] >= stored, 20)
    old = log_of(a)
    mark(a, "alone")
    a.freeze()
    b.restart()
    c.restart()
    for i in range(AGREED):
        b.sql("INSERT INTO t VALUES('agreed')", timeout=90)
    a.thaw()
    for job in jobs:
        try:
            a.get(job, 90)
            raise AssertionError("it was agreed")
        except SqlError as e:
            assert e.name == "SQLITE_BUSY_SNAPSHOT", e
    a.sql("INSERT INTO t VALUES('after')", timeout=90)
    box.settle(*members)
    new = log_of(b)
    stop(a)
    b.kill9()  # what is left of a is to be opened alone
    c.kill9()
    return old, new


def look(opener, folder, old, new):
    (rows, error), = opener.open((os.path.join(folder, "a", "a.db"), [
        "PRAGMA dust_consistency = stale", "PRAGMA integrity_check", "SELECT x FROM t", LOG]))
    assert error is None, error
    _, check, there, log = rows
    assert check == [["ok"]], check[:3]
    names = [r[0] for r in there]
    assert names == ["before"] + ["agreed"] * names.count("agreed") + ["after"] * names.count("after"), names
    assert names.count("agreed") in (0, AGREED) or "after" not in names, names
    cut = False
    for i, id_ in log:
        if not cut and old.get(i) == id_:
            continue
        cut = True
        assert new.get(i) == id_, "at %d is %s, and should be %s or %s" % (i, id_, old.get(i), new.get(i))


@pytest.mark.parametrize("segments,size,filler", [(1, 100, 0), (2, 300 << 10, 7 << 20)])  # one has 8 MiB
def test_truncate(box, opener, recording, segments, size, filler):
    old, new = record(recording, box, size, filler)
    losses = Losses(recording, first="alone")
    alone = next(r.seq for r in losses.records if r.kind == "MARK" and r.path == "alone")
    cut = [r.path for r in losses.records if r.seq > alone and r.kind == "UNLINK" and "/raft/0" in r.path]
    assert len(cut) == segments, cut
    losses.check(points(20), lambda point, folder: look(opener, folder, old, new))
