"""Power loss of three members at once: what was acknowledged is on a majority of the disks, so it is there afterwards,
on all of them."""
import os

from cluster import wait_until
from losses import Losses, mark, points, stop
from test_commits import BIG, CHECK, ROWS, TABLES, WRITER, noted, whole

NAMES = ("a", "b", "c")


def path_of(folder, name):
    return os.path.join(folder, name, name + ".db")


def record(recording, box):
    """Writers on the leader and on a follower; checkpoints on all."""
    for name in NAMES:
        os.mkdir(os.path.join(recording.live, name))
    recording.begin()
    members = [recording.member(name, name) for name in NAMES]
    members[0].create()
    for sql in TABLES[1:]:  # the page size is settled
        members[0].sql(sql)
    for m in members[1:]:
        m.join(members[0])
    wait_until("three voters",
               lambda: members[0].one("SELECT count(*) FROM dust_members WHERE role = 'voter'") == 3)
    box.settle(*members)
    mark(members[0], "started")
    jobs = [m.start("py", conn="writer", code=WRITER, arg={"who": who, "path": m.path, "n": 10, "every": 4})
            for who, m in (("w0", members[0]), ("w1", members[1]))]
    while not all(j.done() for j in jobs):
        for m in members:
            m.checkpoint()
    for m, j in zip(members, jobs):
        m.get(j)
    stop(*members)


STEPS = [CHECK, "INSERT INTO t VALUES('after', 1, 0, 0, x'', 0)", "PRAGMA dust_consistency = linearizable", ROWS, BIG]


def look(opener, point, folder):
    answers = opener.open(*[(path_of(folder, name), STEPS) for name in NAMES])
    for name, (rows, error) in zip(NAMES, answers):
        assert error is None, "%s: %s" % (name, error)
        check, _, _, rows, big = rows
        assert check == [["ok"]], check[:3]
        there = whole([r for r in rows if r[0] != "after"], big)
        assert there <= noted(point.marks, "try"), "rows that nobody has tried to write"
        lost = noted(point.marks, "ack") - there
        assert not lost, "%s has lost %s" % (name, sorted(lost)[:5])


def test_all_of_three(box, opener, recording):
    record(recording, box)
    Losses(recording, first="started").check(points(4), lambda point, folder: look(opener, point, folder))
