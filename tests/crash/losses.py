"""What the tests of power loss share: a member whose writes are recorded, the points and states of its log, and how
what is left is opened.

Environment
  CRASH_RECORD  the library of record.c; default beside the extension
  CRASH_ALL     1: every point and every style (by hand: many minutes); else a sample
  CRASH_JOBS    so many states at once, each in a network namespace of its own (by hand, as root); default 1
  CRASH_SEED    of the sample and of what is lost; default 1
  DUST_SCALE    multiplies the size of the sample
"""
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
import zlib

import raftlog
import replay
from cluster import LIB, PYTHON, SLOW, Member, child_env, copy_folder, scaled

RECORD = os.path.abspath(
    os.environ.get("CRASH_RECORD", os.path.join(os.path.dirname(LIB), "tests", "librecord.so")))
ALL = os.environ.get("CRASH_ALL", "") == "1"
JOBS = int(os.environ.get("CRASH_JOBS", "1"))
SEED = int(os.environ.get("CRASH_SEED", "1"))


class Recording:
    """A folder in the box, and the log of what recorded programs do to it. state: what is in it at first. marks: notes
    that stand before all of the log."""

    def __init__(self, box, name="live", state=None, marks=()):
        self.box = box
        self.live = os.path.join(os.path.realpath(box.dir), name)
        self.before, self.log = self.live + "-before", self.live + "-log"
        self.marks = list(marks)
        if state is None:
            os.mkdir(self.live)
        else:
            state.write(self.live)

    def begin(self):
        """What is in the folder now is on disk."""
        copy_folder(self.live, self.before)

    def remove(self):
        """What is no longer needed of it."""
        shutil.rmtree(self.live)
        shutil.rmtree(self.before)
        os.unlink(self.log)

    def member(self, name, folder=""):
        path = os.path.join(self.live, folder, name + ".db")
        env = {"LD_PRELOAD": RECORD, "CRASH_DIR": self.live, "CRASH_LOG": self.log}
        return Member(self.box, name, path=path, env=env)


MARK = """
import ctypes
ctypes.CDLL(None).crash_mark(arg.encode())
"""


def mark(m, text):
    """Put a note into the log; it stands behind all that the member was asked before and has answered."""
    m.py(MARK, text, conn="marks")


def stop(*members):
    """End them with a log that is whole."""
    for m in members:
        m.py("import ctypes\nctypes.CDLL(None).crash_stop()", conn="marks")
    for m in members:
        m.kill9()


APART = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']


class Opener:
    """Opens databases in fresh processes (opener.py), which each process that uses this has of its own."""

    def __init__(self):
        self.p = self.pid = None

    def begin(self):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "opener.py")
        self.p = subprocess.Popen((APART if JOBS > 1 else []) + [PYTHON, program], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, env=child_env())
        self.pid = os.getpid()

    def open(self, *jobs):
        """jobs: (path, [sql or (sql, params)]). For each: the rows of each step, and the error that ended it or None.
        """
        if self.pid != os.getpid():
            self.begin()
        request = {"lib": LIB, "jobs": [
            {"path": path, "steps": [[s, []] if isinstance(s, str) else list(s) for s in steps]}
            for path, steps in jobs]}
        self.p.stdin.write(json.dumps(request) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        assert line, "the opener has ended"
        answers = json.loads(line)
        return [(a["rows"], a["error"]) for a in answers]

    def shut(self):
        if self.pid == os.getpid():
            self.p.stdin.close()
            self.p.wait(120 * SLOW)


def plain(path, *sqls):
    """The rows of each statement, from plain SQLite."""
    c = sqlite3.connect(path, isolation_level=None)
    c.create_function("crc", 1, zlib.crc32)
    try:
        return [c.execute(sql).fetchall() for sql in sqls]
    finally:
        c.close()


class Point:
    """A state that a power loss may leave. marks: the notes before it."""

    def __init__(self, state, seq, record, style, marks):
        self.state, self.seq, self.record, self.style, self.marks = state, seq, record, style, marks

    def __str__(self):
        return "after record %d (%r), %s" % (self.seq, self.record, self.style)


class Losses:
    """Goes through the states of a recording and counts what it sees.

        losses = Losses(recording)
        losses.check(30, lambda point, folder: ...)

    The function looks at the state in `folder` and raises AssertionError for a loss; all losses are gathered, and the
    first ones told of at the end."""

    def __init__(self, recording, only="", first=None, styles=replay.STYLES, pick=None):
        """only: what begins with this path suffers the loss. first: begin at this mark. pick: after such records
        only."""
        self.box, self.before, self.live = recording.box, recording.before, recording.live
        self.only, self.styles, self.marks = only, styles, recording.marks
        self.rng = random.Random(SEED)
        self.records = replay.read_log(recording.log)
        disk = replay.Disk(self.before)
        at = [r.seq for r in self.records if disk.apply(r)]
        assert disk.compare(recording.live, self.rng) == [], "the recording is not complete"
        if first is not None:
            begin = next(r.seq for r in self.records if r.kind == "MARK" and r.path == first)
            at = [seq for seq in at if seq > begin]
        self.points = [seq for seq in at if pick is None or pick(self.records[seq])]
        self.tried = {}

    def batches(self, folder):
        """What was written to the log in this folder, whole, in order."""
        key = raftlog.key_of(os.path.join(self.live, folder))
        found = [(r.seq, raftlog.batch_at(r.file, r.off, r.data, key, r.off)) for r in self.records
                 if r.kind == "SUBMIT" and r.file.startswith(folder + "/log-")]
        return [(seq, batch) for seq, batch in found if batch is not None]

    def sample(self, n):
        if n is None or n >= len(self.points):
            return list(self.points)
        return sorted(self.rng.sample(self.points, n))

    def states(self, chosen):
        """The states that can be left after these points."""
        disk = replay.Disk(self.before)
        chosen = set(chosen)
        marks, last = list(self.marks), None
        for r in self.records + [None]:
            if r is not None and r.kind == "MARK":
                marks.append(r.path)
            if last is not None and (r is None or r.kind in replay.CHANGES):
                yield from self.states_of(disk, last, marks)
                last = None
            if r is not None:
                disk.apply(r)
                last = r if r.seq in chosen else last

    def states_of(self, disk, r, marks):
        few = [self.styles[(r.seq + i) % len(self.styles)] for i in range(2)][:len(self.styles)]
        for style in self.styles if ALL else few:
            state = disk.state(replay.Choice(style, self.rng, self.only))
            key = state.key()
            if self.tried.get(key) != len(marks):
                self.tried[key] = len(marks)
                yield Point(state, r.seq, r, style, marks)

    def look_at(self, chosen, look, folder):
        """The count of states after these points, and what was wrong with them."""
        n, bad = 0, []
        for point in self.states(chosen):
            shutil.rmtree(folder, ignore_errors=True)
            point.state.write(folder)
            n += 1
            try:
                look(point, folder)
            except AssertionError as e:
                bad.append("%s: %s" % (point, e))
                if os.environ.get("DUST_KEEP"):
                    point.state.write("%s-loss%d" % (folder, len(bad)))
        return n, bad

    def in_child(self, chosen, look, job):
        """The same in a process of its own: its pid and the pipe that brings the answer."""
        from_child, to_parent = os.pipe()
        pid = os.fork()
        if pid == 0:
            answer = [0, ["job %d has failed" % job]]
            try:
                self.rng = random.Random("%d %d" % (SEED, job))
                answer = self.look_at(chosen, look, self.box.path("state%d" % job))
            finally:
                with os.fdopen(to_parent, "w") as f:
                    json.dump(answer, f)
                os._exit(0)
        os.close(to_parent)
        return pid, os.fdopen(from_child)

    def check(self, n, look):
        """n: after how many points, unless all are wanted."""
        t = time.monotonic()
        chosen = self.sample(None if ALL else n)
        if JOBS > 1:
            children = [self.in_child(chosen[job::JOBS], look, job) for job in range(JOBS)]
            answers = []
            for pid, pipe in children:
                with pipe:
                    answers.append(json.load(pipe))
                os.waitpid(pid, 0)
        else:
            answers = [self.look_at(chosen, look, self.box.path("state"))]
        self.n_states = sum(a[0] for a in answers)
        bad = [b for a in answers for b in a[1]]
        print("%d records, %d points, %d tried, %d states, %d losses, %.0f s" % (
            len(self.records), len(self.points), len(chosen), self.n_states, len(bad), time.monotonic() - t))
        sys.stdout.flush()
        assert not bad, "%d losses in %d states:\n%s" % (len(bad), self.n_states, "\n".join(bad[:10]))


def points(n):
    return scaled(n, 2)
