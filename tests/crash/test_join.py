"""Power loss while an empty file joins a cluster, and while a member leaves: the one that stays is unharmed, and the
other is a member, or none, or says what to do; never another database."""
import os
import shutil

import pytest

from losses import Losses, mark, plain, points, stop

N = 200
FILL = ("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < %d) "
        "INSERT INTO t SELECT i, randomblob(500) FROM r" % N)
CHECK = "PRAGMA integrity_check"
IDS = "SELECT id FROM t ORDER BY id"
WRITE = ["BEGIN", "INSERT INTO t VALUES(100000, x'')", "DELETE FROM t WHERE id = 100000", "COMMIT"]


def record(recording, end=True):
    """a has rows, b joins, then both write; acknowledged rows are noted by their id."""
    for name in ("a", "b"):
        os.mkdir(os.path.join(recording.live, name))
    recording.begin()
    a = recording.member("a", "a")
    a.create()
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, data)")
    a.sql(FILL)
    b = recording.member("b", "b")
    mark(a, "joining")
    joining = b.start("py", conn="main", code="""
        c = connect(arg["path"])
        c.execute("SELECT dust_join(?, ?)", (arg["own"], arg["other"])).fetchall()
        conns["main"] = c
    """.replace("\n        ", "\n"), arg={"path": b.path, "own": b.address, "other": a.address})
    for i in range(N + 1, N + 6):
        a.sql("INSERT INTO t VALUES(?, x'')", i)
        mark(a, "ack %d" % i)
    b.get(joining)
    mark(b, "joined")
    for i, m in ((N + 11, b), (N + 12, a)):
        m.sql("INSERT INTO t VALUES(?, x'')", i)
        mark(m, "ack %d" % i)
    for m in (a, b):
        m.checkpoint()
    if end:
        stop(a, b)
    return {"a": a, "b": b}


def acked(point):
    return set(range(1, N + 1)) | {int(m.split()[1]) for m in point.marks if m.startswith("ack ")}


def tables(path):
    """As plain SQLite sees it: the ids in t, or None without it."""
    check, names = plain(path, CHECK, "SELECT name FROM sqlite_master")
    assert check == [("ok",)], check[:3]
    return {r[0] for r in plain(path, IDS)[0]} if names else None


def look_plain(point, folder):
    """No half of a transaction, and no version that there was not."""
    copy = folder + "-plain"
    shutil.rmtree(copy, ignore_errors=True)
    point.state.write(copy, only=lambda p: "-dust/" not in p)
    for name in ("a", "b"):
        ids = tables(os.path.join(copy, name, name + ".db"))
        assert ids is None or not ids or ids >= set(range(1, N + 1)), "%s has %d rows" % (name, len(ids))


def look(opener, point, folder):
    look_plain(point, folder)
    a, b = (os.path.join(folder, name, name + ".db") for name in ("a", "b"))
    jobs = [(a, WRITE + [CHECK, IDS])]
    if os.path.exists(b + "-dust"):
        jobs.append((b, WRITE + [CHECK, IDS]))
    answers = opener.open(*jobs)
    said = "" if len(jobs) == 1 else ", b says: %s" % answers[1][1]
    rows, error = answers[0]
    assert error is None, "a: %s%s" % (error, said)
    assert rows[-2] == [["ok"]], rows[-2]
    ids = {r[0] for r in rows[-1]}
    lost = acked(point) - ids
    assert not lost, "a has lost %s" % sorted(lost)
    if len(jobs) == 1:
        assert "joined" not in point.marks, "b has forgotten that it is a member"
        assert tables(b) is None
        return
    rows, error = answers[1]
    if error is None:
        assert rows[-2] == [["ok"]], rows[-2]
        assert {r[0] for r in rows[-1]} <= ids
        assert acked(point) <= {r[0] for r in rows[-1]}, "b has lost rows"
        return
    assert "joined" not in point.marks, "b: " + error
    assert "delete" in error and "join" in error, "b: " + error


@pytest.mark.parametrize("only", ["b/", ""])
def test_join(box, opener, recording, only):
    """Power loss of the one that joins; of both at once."""
    record(recording)
    losses = Losses(recording, only=only, first="joining")
    losses.check(points(5), lambda point, folder: look(opener, point, folder))


def read_only(opener, path):
    """It was removed from the cluster before it had put its file in order. What such a member says to do is done."""
    (_, error), = opener.open((path, [("SELECT dust_leave()", [])]))
    assert error is None, error
    (rows, error), = opener.open((path, WRITE + [CHECK, IDS]))
    assert error is None, error
    assert rows[-2] == [["ok"]] and {r[0] for r in rows[-1]} >= set(range(1, N + 1))


def look_leave(opener, point, folder, leaver, stays):
    look_plain(point, folder)
    left, there = (os.path.join(folder, name, name + ".db") for name in (leaver, stays))
    jobs = [(there, WRITE + [CHECK, IDS])]
    if os.path.exists(left + "-dust"):
        jobs.append((left, [CHECK, IDS]))
    answers = opener.open(*jobs)
    rows, error = answers[0]
    said = "" if len(jobs) == 1 else ", %s says: %s" % (leaver, answers[1][1])
    assert error is None, "%s: %s%s" % (stays, error, said)
    ids = {r[0] for r in rows[-1]}
    assert rows[-2] == [["ok"]] and acked(point) <= ids
    if len(jobs) == 1:
        assert tables(left) >= set(range(1, N + 1))
        return
    assert "left" not in point.marks, "it has not left: %s" % answers[1][1]
    rows, error = answers[1]
    if error is None:
        assert rows[-2] == [["ok"]] and {r[0] for r in rows[-1]} <= ids
    elif "SQLITE_READONLY" in error:
        read_only(opener, left)
    else:
        assert "cut short" in error and "delete" in error, error


@pytest.mark.parametrize("leaver, stays", ["ab", "ba"])
def test_leave(box, opener, recording, leaver, stays):
    """Power loss of a member that leaves another one, and of both at once."""
    members = record(recording, end=False)
    mark(members[leaver], "leaving")
    members[leaver].one("SELECT dust_leave()")
    mark(members[leaver], "left")
    stop(*members.values())
    for only in (leaver + "/", ""):
        losses = Losses(recording, only=only, first="leaving")
        losses.check(points(2), lambda point, folder: look_leave(opener, point, folder, leaver, stays))
