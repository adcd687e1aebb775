"""Power loss while what was not agreed is replaced in the log of a member that has led: each entry stays at its place.

Nothing is cut off: a batch whose first entry is not behind the last one makes void what was there."""
import os

import pytest

import raftlog
from cluster import SqlError, wait_until
from losses import Losses, mark, plain, points, stop

RAFT = "a/a.db-dust/raft"


def record(recording, box, alone, agreed):
    """Of a. alone, agreed: how many rows, and of what size."""
    os.mkdir(os.path.join(recording.live, "a"))
    recording.begin()
    a, b, c = members = recording.member("a", "a"), box.member("b"), box.member("c")
    for m in members:  # a leader that hears nobody steps down after this time: enough for a slow machine
        m.open("file:%s?vfs=dust&election=4000&bind=%s%s" % (m.path, m.address, "&join=" + a.address if m is not a else ""),
               uri=True)
    a.sql("CREATE TABLE t(x, y)")
    a.sql("INSERT INTO t VALUES('before', x'')")
    box.settle(*members)
    a.checkpoint()  # alone, a member applies nothing that app.db has not
    stored = a.status()["stored_index"]
    b.kill9()
    c.kill9()
    jobs = []
    for i in range(alone[0]):
        a.open(a.path, conn="alone%d" % i)
        jobs.append(a.start("sql", conn="alone%d" % i, sql="INSERT INTO t VALUES('alone', randomblob(?))", params=[alone[1]]))
        stored += 1
        wait_until("it is in the leader's log", lambda: a.status()["stored_index"] >= stored, 20)
    mark(a, "alone")
    a.freeze()
    b.restart()
    c.restart()
    for i in range(agreed[0]):
        b.sql("INSERT INTO t VALUES('agreed', randomblob(?))", agreed[1], timeout=90)
    a.thaw()
    for job in jobs:
        try:
            a.get(job, 90)
            raise AssertionError("it was agreed")
        except SqlError as e:
            assert e.name == "SQLITE_BUSY_SNAPSHOT", e
    a.sql("INSERT INTO t VALUES('after', x'')", timeout=90)
    box.settle(*members)
    last = b.status()["stored_index"]
    wait_until("a has stored it all", lambda: a.status()["stored_index"] >= last)
    mark(a, "settled")
    a.checkpoint()
    stop(a)
    b.kill9()  # what is left of a is to be opened alone
    c.kill9()


def look_at_files(point, folder, old, new):
    """The log as it lies there: what was before, or from some entry on what replaced it."""
    there = raftlog.entries(raftlog.log(os.path.join(folder, RAFT)))
    cut = False
    for i in sorted(there):
        if not cut and old.get(i) == there[i]:
            continue
        cut = True
        assert new.get(i) == there[i], "entry %d is neither the old one nor the new one" % i
    assert cut or max(there) == max(old), "entries up to %d are there, of %d" % (max(there), max(old))
    assert "settled" not in point.marks or (cut and max(there) == max(new))
    assert sorted(there) == list(range(min(there), max(there) + 1)), sorted(there)
    return max(there)


def look(opener, point, folder, old, new, n_alone, n_agreed):
    last = look_at_files(point, folder, old, new)
    path, recovered = os.path.join(folder, "a", "a.db"), os.path.join(folder, "recovered.db")
    # All that the log has.
    (_, error), = opener.open((":memory:", [("SELECT dust_recover(?, ?)", [path, recovered])]))
    assert error is None, error
    names = [r[0] for r in plain(recovered, "SELECT x FROM t ORDER BY rowid")[0]]
    k, j = names.count("alone"), names.count("agreed")
    assert names in (["before"] + ["alone"] * n_alone, ["before"] + ["agreed"] * j,
                     ["before"] + ["agreed"] * n_agreed + ["after"]), (k, j, names)
    # And as a member, alone.
    (rows, error), = opener.open((path, [
        "PRAGMA dust_consistency = stale", "PRAGMA integrity_check", "SELECT x FROM t",
        "SELECT value FROM dust_status WHERE name = 'stored_index'"]))
    assert error is None, error
    _, check, there, stored = rows
    assert check == [["ok"]], check[:3]
    assert stored == [[last]], (stored, last)
    there = [r[0] for r in there]
    assert "alone" not in there and there == names[:len(there)], (there, names)


@pytest.mark.parametrize("alone,agreed,files", [
    ((6, 100), (4, 100), (1, 1)), ((24, 400000), (4, 100), (3, 1)), ((12, 400000), (12, 400000), (2, 2))],
    ids=["few", "many", "both"])
def test_truncate(box, opener, recording, alone, agreed, files):
    """files: in how many what is replaced is, and what replaces it."""
    record(recording, box, alone, agreed)
    losses = Losses(recording, first="alone", pick=lambda r: r.file.startswith("a/a.db-dust/"))  # not checkpoints
    mark_ = next(r.seq for r in losses.records if r.kind == "MARK" and r.path == "alone")
    before = [batch for seq, batch in losses.batches(RAFT) if seq < mark_]
    after = [batch for seq, batch in losses.batches(RAFT) if seq > mark_]
    old, new = raftlog.entries(before), raftlog.entries(before + after)
    first = next(i for i in sorted(new) if new[i] != old.get(i))
    assert after[0].first == first == max(old) - alone[0] + 1, (before, after)
    assert len({batch.path for batch in before if batch.last >= first}) >= files[0], before
    assert len({batch.path for batch in after}) >= files[1], after
    losses.check(points(20 if files == (1, 1) else 12),
                 lambda point, folder: look(opener, point, folder, old, new, alone[0], agreed[0]))
