"""Damage in the log, or in what lies beside it: what had been promised is not forgotten in silence.

That its last batches are damaged looks, in the log's files, as if they had never been written; `promise` tells it. Damage
before that breaks the chain of batches, and `term` and `snapshot` have checksums. What is refused is left as it is."""
import os
import shutil
import struct

import pytest

import raftlog
from cluster import SqlError, copy_folder, plain, scaled
from raftlog import flip

ROWS = 60
ALL = ["row %d" % i for i in range(ROWS)]


def raft_of(m):
    return m.path + "-dust/raft"


def file_of(m, name):
    return os.path.join(raft_of(m), name)


def three(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    box.settle(a, b, c)
    for i, row in enumerate(ALL):
        (a, b, c)[i % 3].sql("INSERT INTO t(v) VALUES(?)", row)
    box.settle(a, b, c)
    return a, b, c


def alone(box):
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    for row in ALL:
        m.sql("INSERT INTO t(v) VALUES(?)", row)
    return m


def rows_of(m, conn="main"):
    return [r[0] for r in m.sql("SELECT v FROM t ORDER BY id", conn=conn)]


def anew(box, m, *others):
    """What the message says is done: it is removed at another member, its files are deleted, it joins."""
    id_ = next(r[0] for r in others[0].sql("SELECT id, address FROM dust_members") if r[1] == m.address)
    others[0].one("SELECT dust_remove(?)", id_)
    os.unlink(m.path)
    shutil.rmtree(m.path + "-dust")
    m.restart(open_=False)
    m.join(others[0])
    assert rows_of(m) == ALL
    box.same_files(m, *others)


class Kept:
    """A member that is down, as it was; its files can be put back."""

    def __init__(self, box, m):
        self.m, self.folder, self.file = m, box.path("kept"), box.path("kept.db")
        copy_folder(m.path + "-dust", self.folder)
        shutil.copy(m.path, self.file)

    def restore(self):
        shutil.rmtree(self.m.path + "-dust")
        copy_folder(self.folder, self.m.path + "-dust")
        shutil.copy(self.file, self.m.path)


def content(m):
    """Of all files that outlive a process."""
    found = {}
    for path, _, names in os.walk(m.path + "-dust"):
        for name in names:
            if name not in ("pages", "host", "socket"):
                with open(os.path.join(path, name), "rb") as f:
                    found[os.path.relpath(os.path.join(path, name), m.path)] = f.read()
    with open(m.path, "rb") as f:
        found["app.db"] = f.read()
    return found


def refused(m, what="", starts=False):
    """It cannot be opened, says why, where, and what to do, and leaves everything as it is. starts: save for what counts
    the starts."""
    before = content(m)
    m.restart(open_=False)
    try:
        e = m.open_error(m.path, timeout=2)
    except AssertionError as error:
        raise AssertionError("%s: %s" % (what, error)) from None
    assert e.name == "SQLITE_CORRUPT" and raft_of(m) in e.text and "damaged" in e.text, "%s: %s" % (what, e)
    assert "remove" in e.text and "delete" in e.text and "join anew" in e.text, "%s: %s" % (what, e)
    m.kill9()
    after = content(m)
    changed = [name for name in set(before) | set(after) if before.get(name) != after.get(name)]
    if starts:
        changed = [name for name in changed if os.path.basename(name) not in ("member", "term")]
    assert not changed, "%s: %s" % (what, changed)
    return e


def opened(m, what=""):
    """It can be opened, and has everything; then it is killed."""
    m.restart(open_=False)
    try:
        m.again()
        assert rows_of(m) == ALL, what
    except SqlError as e:
        raise AssertionError("%s: %s" % (what, e)) from None
    m.kill9()


def places(batch):
    """Bytes of a batch: its checksum, its head, the head and the bytes of its first entry, its last one."""
    return [batch.at + at for at in (3, 24, 32, 40, 48, 56, 64, raftlog.HEAD.size, raftlog.HEAD.size + 20, batch.size - 1)]


@pytest.mark.sanitize
def test_a_byte_of_one_of_three(box):
    """In each batch that is needed, wherever in it; also in the last one."""
    a, b, c = three(box)
    b.kill9()
    kept = Kept(box, b)
    log = raftlog.log(raft_of(b))
    assert len(log) > ROWS // 2, log
    step = max(1, len(log) // scaled(6, 2))
    said = set()
    for n, batch in enumerate(log[:-1:step]):
        at = places(batch)[n % len(places(batch))]
        flip(batch.path, at)
        refused(b, "byte %d of %r" % (at - batch.at, batch))
        kept.restore()
    for at in places(log[-1])[::3]:
        flip(log[-1].path, at)
        said.add(refused(b, "byte %d of the last" % (at - log[-1].at)).text)
        kept.restore()
    assert len(said) == 1 and "up to entry %d" % log[-1].last in said.pop()  # the same promise each time
    opened(b)  # the byte put right
    flip(log[len(log) // 2].path, log[len(log) // 2].at)
    refused(b)
    anew(box, b, a, c)


FILES = {"empty": lambda data: b"", "half": lambda data: data[:len(data) // 2], "longer": lambda data: data + bytes(5000),
         "garbage": lambda data: os.urandom(len(data)), "zeros": lambda data: bytes(len(data)), "gone": None}


def damage(path, how):
    with open(path, "rb") as f:
        data = f.read()
    os.unlink(path)
    if FILES[how] is not None:
        with open(path, "wb") as f:
            f.write(FILES[how](data))


def test_a_file_of_one_of_three(box):
    """Removed, cut off, replaced: of the log's files the one that it is in, `term`, `snapshot`."""
    a, b, c = three(box)
    b.kill9()
    kept = Kept(box, b)
    used = {batch.name: batch.end for batch in raftlog.log(raft_of(b))}
    assert len(used) == 1, used
    (log, end), = used.items()
    for name in (log, "term", "snapshot"):
        for how in FILES:
            if name == log and how == "longer":
                continue  # what is longer is not damaged
            damage(file_of(b, name), how)
            if name == log and how == "half":
                os.truncate(file_of(b, name), end - 1)  # in the last batch
            refused(b, "%s %s" % (name, how))
            kept.restore()
    shutil.rmtree(raft_of(b))
    b.restart(open_=False)
    assert raft_of(b) in b.open_error(b.path, timeout=2).text
    b.kill9()
    kept.restore()
    opened(b)
    damage(file_of(b, log), "gone")
    refused(b)
    anew(box, b, a, c)


def test_a_byte_of_the_snapshot(box):
    a, b, c = three(box)
    b.kill9()
    size = os.path.getsize(file_of(b, "snapshot"))
    for at in sorted({0, size - 1} | set(range(8, size, size // scaled(8, 3)))):
        flip(file_of(b, "snapshot"), at)
        refused(b, "byte %d" % at)
        flip(file_of(b, "snapshot"), at)
    opened(b)
    flip(file_of(b, "snapshot"), 20)
    refused(b)
    anew(box, b, a, c)


class Term:
    """The two blocks of `term` that are written in turn: the newer one's place, and what each holds."""

    def __init__(self, m):
        with open(file_of(m, "term"), "rb") as f:
            data = f.read()
        of = [struct.unpack_from("<4Q", data, at + 8) for at in (4096, 8192)]
        self.newer = 4096 if of[0][0] > of[1][0] else 8192
        self.older = 12288 - self.newer
        self.now, self.before = sorted(of)[::-1]
        _, self.term, self.vote, self.life = self.now
        _, self.term_before, self.vote_before, self.life_before = self.before


def test_a_byte_of_the_term(box):
    """Term and vote: a member that votes twice in a term does harm."""
    a, b, c = three(box)
    b.kill9()
    for at in (0, 9, 30, 50, 63):  # the key
        flip(file_of(b, "term"), at)
        refused(b, "byte %d" % at)
        flip(file_of(b, "term"), at)
    t = Term(b)
    assert t.term > t.term_before
    for at in (0, 8, 16, 24, 32, 48, 63):
        flip(file_of(b, "term"), t.newer + at)
        assert "term %d" % t.term in refused(b, "byte %d" % at).text
        flip(file_of(b, "term"), t.newer + at)
    opened(b)
    b.restart()
    box.settle(a, b, c)
    # The leader has voted for itself.
    a.kill9()
    t = Term(a)
    assert t.vote == 1 and t.vote_before == 0 and t.term == t.term_before, (t.now, t.before)
    flip(file_of(a, "term"), t.newer + 16)
    assert "vote for member 1" in refused(a).text
    anew(box, a, b, c)


def test_the_number_of_openings_is_damaged(box):
    """Nothing but that was new in `term`: two batches could have the same number. The log itself shows it."""
    a, b, c = three(box)
    for i in range(5):
        b.kill9()
        t = Term(b)
        if t.life > t.life_before and (t.term, t.vote) == (t.term_before, t.vote_before):
            break
        b.restart()  # without an election
        b.sql("CREATE TABLE written%d(x)" % i)
        box.settle(a, b, c)
    else:
        pytest.fail("there is always an election")
    flip(file_of(b, "term"), t.newer + 32)
    assert "more often" in refused(b, starts=True).text
    anew(box, b, a, c)


def test_after_all_were_killed(box):
    """Nobody is left who remembers how far the log of each was."""
    a, b, c = three(box)
    for m in (a, b, c):
        m.kill9()
    last = raftlog.log(raft_of(b))[-1]
    flip(last.path, last.at + 100)
    for m in (a, c):
        m.restart(open_=False)
    refused(b)
    for m in (a, c):
        m.open(m.path)
    for m in (a, c):
        assert rows_of(m) == ALL


def fill(m, n):
    """More bytes than the log is to hold, so that its files are used again; and they leave no trace in the table."""
    for _ in range(n):
        m.sql("INSERT INTO junk VALUES(randomblob(700000))")
    m.sql("DELETE FROM junk")


def test_what_is_not_in_use(box):
    """What is void, was used up, or is yet to be written: harmless, however it is damaged, and written over."""
    a, b, c = three(box)
    a.sql("CREATE TABLE junk(x)")
    fill(a, 40)
    box.settle(a, b, c)
    b.kill9()

    def parts():
        log = raftlog.log(raft_of(b))
        on_way = {batch.seq for batch in log}
        void = [batch for batch in raftlog.batches(raft_of(b)) if batch.seq not in on_way]
        idle = [f for f in raftlog.files(raft_of(b)) if f not in {batch.name for batch in log}]
        return log, void, idle

    log, void, idle = parts()
    assert void and idle, (log, void, idle)
    assert log[0].first > 3, log  # it does not reach back to its beginning
    for batch in void:
        for at in places(batch):
            flip(batch.path, at)
    opened(b, "void batches")
    log, _, idle = parts()
    for batch in log:
        if batch.size % raftlog.BLOCK:
            flip(batch.path, batch.at + batch.size)  # what fills the block
    with open(log[-1].path, "r+b") as f:  # behind the last one
        f.seek(log[-1].end)
        f.write(os.urandom(raftlog.LOG_FILE - log[-1].end))
    opened(b, "ahead of the log")
    for how in ("garbage", "half", "longer", "empty", "zeros", "gone"):
        _, _, idle = parts()
        assert idle
        for name in idle:
            damage(file_of(b, name), how)
        opened(b, "idle files: %s" % how)
    t = Term(b)
    for at in (0, 8, 16, 24, 32, 48, 63):
        flip(file_of(b, "term"), t.older + at)
    for block in (0, 4096, 8192):
        for at in (64, 500, 4095):
            flip(file_of(b, "term"), block + at)
    opened(b, "term")
    # All of it is written over, and the log is as good as ever.
    b.restart()
    fill(a, 24)
    box.settle(a, b, c)
    opened_ = rows_of(b)
    assert opened_ == ALL
    b.kill9()
    opened(b)
    b.restart()
    box.same_files(a, b, c)


@pytest.mark.sanitize
def test_of_the_only_member(box):
    m = alone(box)
    m.kill9()
    last = raftlog.log(raft_of(m))[-1]
    flip(last.path, last.at + 100)
    refused(m)
    w = box.worker()
    w.open(":memory:")
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("r1.db"))
    assert "damaged" in e.text and "force" in e.text, e
    assert not os.path.exists(box.path("r1.db"))
    said = w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("r2.db"))
    assert "the log went to entry %d" % (last.first - 1) in said
    assert [r[0] for r in plain(box.path("r2.db"), "SELECT v FROM t ORDER BY id")] == ALL[:-1]
    flip(last.path, last.at + 100)
    # In the middle: what is before it.
    log = raftlog.log(raft_of(m))
    middle = log[len(log) // 2]
    flip(middle.path, middle.at + 100)
    refused(m)
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("r3.db"))
    assert "damaged" in e.text and "force" in e.text, e
    said = w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("r4.db"))
    assert "could not be read: as far as it could, it went to entry %d" % (middle.first - 1) in said
    some = [r[0] for r in plain(box.path("r4.db"), "SELECT v FROM t ORDER BY id")]
    assert ROWS // 3 < len(some) < ROWS and some == ALL[:len(some)], some
    flip(middle.path, middle.at + 100)
    m.restart()
    assert rows_of(m) == ALL


def test_after_an_end(box):
    """Of a process that ended well app.db has everything."""
    m = alone(box)
    assert m.end() == 0
    log = raftlog.log(raft_of(m))
    batch = log[len(log) // 2]
    flip(batch.path, batch.at + 100)
    e = refused(m)
    assert batch.name in e.text, e
    w = box.worker()
    w.open(":memory:")
    e = w.error("SELECT dust_recover(?, ?)", m.path, box.path("r1.db"))
    assert batch.name in e.text and m.path in e.text and "force" in e.text, e
    assert not os.path.exists(box.path("r1.db")) and not os.path.exists(box.path("r1.db-dust"))
    assert "could not be read" in w.one("SELECT dust_recover(?, ?, 'force')", m.path, box.path("r2.db"))
    assert [r[0] for r in plain(box.path("r2.db"), "SELECT v FROM t ORDER BY id")] == ALL
    flip(batch.path, batch.at + 100)
    m.restart()
    assert rows_of(m) == ALL


def test_power_is_lost_before_the_note(box):
    """What is noted may be behind: that is no damage."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
    m.kill9()
    with open(m.path + "-dust/promise", "rb") as f:
        old = f.read()
    m.restart()
    for row in ALL:
        m.sql("INSERT INTO t(v) VALUES(?)", row)
    m.kill9()
    for content_ in (old, bytes(64), b""):
        with open(m.path + "-dust/promise", "wb") as f:
            f.write(content_)
        m.restart()
        assert rows_of(m) == ALL
        m.kill9()
