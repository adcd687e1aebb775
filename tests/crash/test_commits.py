"""Power loss while a member commits, checkpoints, takes snapshots and cuts its log: what was acknowledged is there."""
import os
import re

import losses
from losses import Losses, Recording, plain, points

TABLES = (
    "PRAGMA page_size = 16384",
    "CREATE TABLE t(who TEXT, seq INT, part INT, big INT, data BLOB, sum INT)",
    "CREATE TABLE big(who TEXT PRIMARY KEY, seq INT, data BLOB, sum INT)",
    "INSERT INTO big VALUES('w0', 0, x'', 0), ('w1', 0, x'', 0)",
)

# A writer: transactions of three rows, of 1 MiB more now and then, with a note before and after each.
WRITER = """
import ctypes, random, zlib
mark = ctypes.CDLL(None).crash_mark
rng = random.Random(arg["who"])
c = connect(arg["path"])
for seq in range(1, arg["n"] + 1):
    big = seq % arg["every"] == 0
    mark(b"try %s %d" % (arg["who"].encode(), seq))
    c.execute("BEGIN IMMEDIATE")
    for part in range(3):
        data = rng.randbytes(rng.randrange(3000))
        c.execute("INSERT INTO t VALUES(?, ?, ?, ?, ?, ?)", (arg["who"], seq, part, big, data, zlib.crc32(data)))
    if big:
        data = rng.randbytes(1 << 20)
        c.execute("UPDATE big SET seq = ?, data = ?, sum = ? WHERE who = ?", (seq, data, zlib.crc32(data), arg["who"]))
    c.execute("COMMIT")
    mark(b"ack %s %d" % (arg["who"].encode(), seq))
c.close()
"""

ROWS = "SELECT who, seq, count(*), sum(crc(data) <> sum), max(big) FROM t GROUP BY who, seq"
BIG = "SELECT who, seq, crc(data) = sum FROM big"
CHECK = "PRAGMA integrity_check"


def write(m, n, every, checkpoints):
    """Two writers, and checkpoints meanwhile, besides those that the member makes by itself."""
    jobs = [m.start("py", conn=who, code=WRITER, arg={"who": who, "path": m.path, "n": n, "every": every})
            for who in ("w0", "w1")]
    while checkpoints and not all(j.done() for j in jobs):
        m.checkpoint()
    for j in jobs:
        m.get(j)


def noted(marks, word):
    return {(who, int(seq)) for w, who, seq in (x.split() for x in marks if x.count(" ") == 2) if w == word}


def whole(rows, big):
    """The transactions that are there; each of them must be whole."""
    for who, seq, n, wrong, _ in rows:
        assert n == 3 and wrong == 0, "%s %d: %d rows, %d of them damaged" % (who, seq, n, wrong)
    for who, seq, right in big:
        assert right, "big of %s is damaged" % who
        last = max([s for w, s, _, _, has in rows if w == who and has], default=0)
        assert seq == last, "big of %s is of %d, the rows of %d" % (who, seq, last)
    return {(who, seq) for who, seq, *_ in rows}


def check_plain(point, folder):
    """As plain SQLite sees it: a version that there was."""
    copy = folder + "-plain"
    losses.shutil.rmtree(copy, ignore_errors=True)
    point.state.write(copy, only=lambda p: p in ("a.db", "a.db-journal"))
    try:
        check, rows, big = plain(os.path.join(copy, "a.db"), CHECK, ROWS, BIG)
    except losses.sqlite3.Error as e:
        raise AssertionError("plain SQLite: %s" % e) from None
    assert check == [("ok",)], check[:3]
    there = whole(rows, big)
    assert there <= noted(point.marks, "try"), "rows that nobody has tried to write"
    for who in ("w0", "w1"):
        seqs = sorted(s for w, s in there if w == who)
        assert seqs == list(range(1, len(seqs) + 1)), "gaps in the rows of %s: %s" % (who, seqs)


def check_member(opener, point, folder):
    """As the member does, which can be written to, too."""
    after = [("INSERT INTO t VALUES('after', 1, 0, 0, x'', 0)", []), "SELECT count(*) FROM t WHERE who = 'after'"]
    (answer, error), = opener.open((os.path.join(folder, "a.db"), [CHECK, ROWS, BIG, "SELECT dust_role()"] + after))
    assert error is None, error
    check, rows, big, role, _, n = answer
    assert check == [["ok"]], check[:3]
    assert role == [["leader"]] and n == [[1]]
    there = whole(rows, big)
    lost = noted(point.marks, "ack") - there
    assert not lost, "lost: %s" % sorted(lost)[:5]
    assert there <= noted(point.marks, "try"), "rows that nobody has tried to write"


def record(recording, n, every, checkpoints=True):
    """A member's life, recorded from before its start to its clean end."""
    path = os.path.join(recording.live, "a.db")
    plain(path, *TABLES)
    recording.begin()
    m = recording.member("a")
    m.create()
    losses.mark(m, "started")
    write(m, n, every, checkpoints)
    losses.mark(m, "end")
    assert m.end() == 0


def check(opener, losses_, n):
    def look(point, folder):
        check_plain(point, folder)
        check_member(opener, point, folder)

    losses_.check(points(n), look)


def test_commits(box, opener, recording):
    """Small transactions of two writers, checkpoints meanwhile, the end of the process."""
    record(recording, 10, 100)
    check(opener, Losses(recording, first="started"), 25)


def log_writes(losses_):
    """How often each of the log's files was written to from its beginning, after it was made."""
    count = {}
    for r in losses_.records:
        if r.kind == "SUBMIT" and r.off == 0 and "/raft/log-" in r.file:
            count[r.file] = count.get(r.file, 0) + 1
    return count


def test_snapshots(box, opener, recording):
    """More bytes than the log is to hold: snapshots are taken, and its files used again."""
    record(recording, 36, 2, checkpoints=False)
    losses_ = Losses(recording, first="started")
    assert len([r for r in losses_.records if r.kind == "RENAME" and r.path2.endswith("/raft/snapshot")]) > 1
    assert max(log_writes(losses_).values()) > 1, log_writes(losses_)
    check(opener, losses_, 30)


def test_first_write_of_a_file(box, opener, recording):
    """It is on disk without its beginning, in a new file and in one that is used again."""
    record(recording, 36, 2)
    losses_ = Losses(recording, first="started", styles=("tail",),
                     pick=lambda r: r.kind == "SUBMIT" and r.off == 0 and "/raft/log-" in r.file)
    assert max(log_writes(losses_).values()) > 1, log_writes(losses_)
    check(opener, losses_, 8)


def test_end(box, opener, recording):
    """The last checkpoint of a process that ends."""
    record(recording, 10, 4, checkpoints=False)
    losses_ = Losses(recording, first="end")
    assert losses_.points
    check(opener, losses_, 12)


def recover(box, point, name):
    """What is left at the point is opened, recorded, and three transactions more are made."""
    again = Recording(box, name, point.state, point.marks)
    again.begin()
    m = again.member("a").again()
    losses.mark(m, "opened")
    m.py(WRITER, {"who": "w2", "path": m.path, "n": 3, "every": 100}, conn="writer")
    m.checkpoint()
    losses.stop(m)
    return again


def opening(records):
    """How many records there are of the recovery itself, and what it consists of: the changes, in their order, to which
    files, whose numbers do not matter."""
    end = next(i for i, r in enumerate(records) if r.kind == "MARK" and r.path == "opened")
    return end, tuple((r.kind, re.sub(r"\d+", "0", os.path.basename(r.path)))
                      for r in records[:end] if r.kind in losses.replay.CHANGES)


def test_recovery(box, opener, recording):
    """Power loss while what an earlier one left is put in order, and in the commits after it. When all is wanted: after
    each point of the first life, and there at each point of a recovery that is unlike those before, and at a few of one
    that is not and of the commits."""
    record(recording, 10, 4)
    first = Losses(recording, first="started")
    seen = set()
    for i, point in enumerate(first.states(first.sample(None if losses.ALL else points(2)))):
        again = recover(box, point, "again%d" % i)
        second = Losses(again)
        if losses.ALL:
            few, (end, what) = set(second.sample(2)), opening(second.records)
            second.points = [p for p in second.points if p in few or (p < end and what not in seen)]
            seen.add(what)
        check(opener, second, 5)
        again.remove()
    if losses.ALL:
        print("%d first points, %d states, %d unlike recoveries" % (len(first.points), i + 1, len(seen)))
