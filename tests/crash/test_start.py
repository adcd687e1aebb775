"""Power loss in dust_start and in dust_leave: the rows are there before, between and after, and there is a way on."""
import os
import shutil

import pytest

from cluster import address
from losses import Losses, mark, plain, points, stop

CHECK = "PRAGMA integrity_check"
ROWS = "SELECT count(*), sum(id), sum(length(data)) FROM t"
N = 300
RIGHT = [[N, N * (N + 1) // 2, N * 100]]
WAYS_ON = (
    "a.db-dust has no file `member`: starting, joining or leaving was cut short, or files were removed; delete ",
    ". Or dust_leave() was cut short: then delete ",
)
FILL = ("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < %d) "
        "INSERT INTO t SELECT i, randomblob(100) FROM r" % N)


def fill(path, wal=False):
    if wal:
        plain(path, "PRAGMA journal_mode = wal")
    plain(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, data)", FILL)


def look_plain(point, folder):
    copy = folder + "-plain"
    shutil.rmtree(copy, ignore_errors=True)
    point.state.write(copy, only=lambda p: "-dust/" not in p)
    check, rows = plain(os.path.join(copy, "a.db"), CHECK, ROWS)
    assert check == [("ok",)], check[:3]
    assert [list(r) for r in rows] == RIGHT, rows


STEPS = [CHECK, ROWS, "BEGIN", "INSERT INTO t VALUES(100000, x'')", "DELETE FROM t WHERE id = 100000", "COMMIT"]
ROLE = "SELECT dust_role()"


def use(opener, path, *first):
    """Open it, read all, write; the error that this gives."""
    (rows, error), = opener.open((path, [*first, *STEPS]))
    if error is None:
        rows = rows[len(first):]
        assert rows[0] == [["ok"]] and rows[1] == RIGHT, rows
    return error


def look(opener, point, folder, member):
    """member: whether it must be one (True), must not (False), or may (None)."""
    look_plain(point, folder)
    path = os.path.join(folder, "a.db")
    error = use(opener, path)
    if error is not None and any(way_on in error for way_on in WAYS_ON):
        assert member is None, error
        shutil.rmtree(path + "-dust")  # as it says
        error = use(opener, path)
    assert error is None, error
    is_member = os.path.isdir(path + "-dust")
    assert member is None or member == is_member, "it is %sa member" % ("" if is_member else "not ")
    first = [] if is_member else [("SELECT dust_start(?)", [address()])]
    error = use(opener, path, *first, ROLE)
    assert error is None, error


@pytest.mark.parametrize("wal", [False, True])
def test_start(box, opener, recording, wal):
    """Of a database with content. A start that returned is a start."""
    m = recording.member("a")
    fill(m.path, wal)
    recording.begin()
    m.create()
    mark(m, "started")
    stop(m)
    losses = Losses(recording)
    losses.check(points(10), lambda point, folder: look(
        opener, point, folder, True if "started" in point.marks else None))


def test_leave(box, opener, recording):
    """A member that is alone. A leave that returned is one."""
    m = recording.member("a")
    fill(m.path)
    recording.begin()
    m.create()
    m.checkpoint()
    mark(m, "leaving")
    m.one("SELECT dust_leave()")
    mark(m, "left")
    stop(m)
    losses = Losses(recording, first="leaving")
    losses.check(points(15), lambda point, folder: look(
        opener, point, folder, False if "left" in point.marks else None))
