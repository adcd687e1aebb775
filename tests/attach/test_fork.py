"""Programs that open a member's database and then fork."""
import json
import os
import signal
import subprocess

import pytest

from cluster import LIB, PYTHON, SLOW, child_env, scaled, wait_until
from test_attach import attach, three

PREFORK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prefork.py")


class Prefork:
    def __init__(self, path, workers, count, how):
        self.p = subprocess.Popen([PYTHON, "-B", PREFORK, LIB, path, str(workers), str(count), how], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_env())
        self.workers = self.line()["forked"] if count == 0 else None

    def line(self):
        return json.loads(self.p.stdout.readline())

    def rest(self):
        return [json.loads(x) for x in self.p.stdout.read().splitlines()]


def value(m):
    return m.one("SELECT n FROM counter WHERE id = 0")


@pytest.mark.parametrize("how", ["own", "inherited", "middle"])
@pytest.mark.parametrize("parent", ["hosts", "attached"])
def test_workers(box, parent, how):
    """Four workers count, and so does the parent, which hosts the member or is attached to it."""
    a, b, c = three(box)
    if parent == "hosts":
        assert a.end() == 0
    n = scaled(25)
    p = Prefork(a.path, 4, n, how)
    said = [x for x in p.rest() if "done" in x]
    assert p.p.wait(60 * SLOW) == 0
    assert len(said) == 5 and all(x["errors"] == [] for x in said), said
    assert [x["done"] for x in said] == [n] * 5
    if parent == "hosts":
        assert {x["host"] for x in said if "host" in x} == {p.p.pid}
        a.restart()
    box.same_files(a, b, c)
    assert value(b) == 5 * n


@pytest.mark.parametrize("how", ["own", "inherited"])
def test_workers_outlive_their_parent(box, how):
    """The parent, which hosts the member, is killed: one of the workers takes over, which nanomsg does not make easy; then
    that one too, and another does."""
    a, b, c = three(box)
    assert a.end() == 0
    p = Prefork(a.path, 3, 0, how)
    before = value(b)
    wait_until("they count", lambda: value(b) > before + 20, 30)
    p.p.kill()
    p.p.wait()
    before = value(b)
    wait_until("they go on", lambda: value(b) > before + 20, 30)
    w = attach(box, a, "w")
    host = w.one("SELECT value FROM dust_status WHERE name = 'host_pid'")
    assert host in p.workers
    os.kill(host, signal.SIGKILL)
    before = value(b)
    wait_until("they go on again", lambda: value(b) > before + 20, 30)
    p.p.stdin.close()
    said = p.rest()
    assert len(said) == 2 and all(x["errors"] == [] for x in said), said
    box.same_files(b, c)
    assert value(c) >= sum(x["done"] for x in said)
    assert w.end() == 0
    a.restart()
    box.same_files(a, b, c)


def test_a_child_that_only_execs(box):
    """It disturbs nobody, and holds nothing: the address is free when its parent has ended, and so is the member."""
    a, b, c = three(box)
    child = a.py("import subprocess\nresult = subprocess.Popen(['sleep', '1000'], preexec_fn=lambda: None, "
                 "close_fds=False).pid")
    try:
        a.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
        fds = [os.readlink("/proc/%d/fd/%s" % (child, x)) for x in os.listdir("/proc/%d/fd" % child)]
        assert not [x for x in fds if "-dust" in x or x.endswith(".db")], fds
        a.kill9()
        a.restart()
        a.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
    finally:
        os.kill(child, signal.SIGKILL)
    box.same_files(a, b, c)
    assert value(c) == 2


# Every socket once more, as a child has them that was forked a moment ago.
KEPT = """
for x in os.listdir("/proc/self/fd"):
    try:
        if os.readlink("/proc/self/fd/" + x).startswith("socket:"):
            os.dup(int(x))
    except OSError:
        pass
"""

# What sockets a child has when it is there: of those that the program has, none is its own.
CHILD = """
r, w = os.pipe()
pid = os.fork()
if pid == 0:
    names = []
    for x in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink("/proc/self/fd/" + x))
        except OSError:
            pass
    os.write(w, ("\\n".join(names) + "\\n").encode())
    os._exit(0)
os.waitpid(pid, 0)
result = os.read(r, 65536).decode().split("\\n")[:-1]
"""


def test_a_connection_ends_while_a_child_still_has_it(box):
    """The host closes its end, and nothing more comes of it, though the child that is just being forked has it open."""
    a, b, c = three(box)
    for i in range(3):
        w = attach(box, a, "w%d" % i)
        w.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
        a.py(KEPT)
        assert w.end() == 0
        a.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
    assert value(a) == 6
    assert a.one("SELECT value FROM dust_status WHERE name = 'host_pid'") == a.pid
    box.same_files(a, b, c)


def test_a_child_has_none_of_the_sockets(box):
    """Whatever the threads of its parent, which hosts the member or is attached, were about to do with them."""
    a, b, c = three(box)
    w = attach(box, a, "w")
    w.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
    for p in (a, w):
        before = [x for x in p.py(CHILD) if x.startswith("socket:")]
        p.py(KEPT)
        assert [x for x in p.py(CHILD) if x.startswith("socket:")] == before
    w.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
    a.sql("UPDATE counter SET n = n + 1 WHERE id = 0")
    box.same_files(a, b, c)
    assert value(c) == 3
