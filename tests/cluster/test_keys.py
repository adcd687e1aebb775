"""A cluster with a key: nobody without it reads, joins or is heard; what was recorded is of no use; one key is replaced by
another while everybody writes."""
import os
import socket
import threading
import time

import pytest

from cluster import Box, SqlError, free_port, wait_until
from tap import Tap, messages

MARKER = "not to be read on the way"


def uri(m, port, tap, keyfile, join=None):
    return "file:%s?vfs=dust&bind=127.0.0.1:%d&advertise=%s%s%s" % (
        m.path, port, tap.address, "&keyfile=" + keyfile if keyfile else "", "&join=" + join if join else "")


@pytest.fixture(params=["key", "none"])
def tapped(request, box):
    """Three members, each behind a Tap; with a key and without."""
    keyfile = box.make_key() if request.param == "key" else None
    members, taps = [], []
    for name in "abc":
        port = free_port()
        tap = Tap(port)
        m = box.member(name)
        m.open(uri(m, port, tap, keyfile, taps[0].address if taps else None), uri=True, timeout=30)
        m.sql("PRAGMA user_version", timeout=60)
        members.append(m)
        taps.append(tap)
    yield members, taps, keyfile is not None
    for tap in taps:
        tap.close()


def test_what_is_sent_cannot_be_read(box, tapped):
    (a, b, c), taps, keyed = tapped
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b, c)
    for m in (a, b, c):
        m.sql("INSERT INTO t VALUES (?)", MARKER + " " + m.name)
    box.settle(a, b, c)
    heads = {m.head() for m in (a, b, c)}
    assert len(heads) == 1
    tapes = b"".join(bytes(t) for tap in taps for t in tap.recorded)
    assert len(tapes) > 2000
    for text in (MARKER.encode(), b"INSERT INTO t", b"127.0.0.1:", bytes.fromhex(a.head())):
        assert (text in tapes) == (not keyed), text


def test_what_was_recorded_is_of_no_use(box, tapped):
    (a, b, c), taps, keyed = tapped
    if not keyed:
        return  # there it is the Raft messages themselves that have to bear it; test_faults.py doubles them
    a.sql("CREATE TABLE t(x)")
    for i in range(50):
        (a, b, c)[i % 3].sql("INSERT INTO t VALUES (?)", i)
    box.settle(a, b, c)
    tapes = [[bytes(t) for t in tap.recorded] for tap in taps]
    sealed = [sum(1 for t in each for m in messages(t) if m[:4] == b"dse1" and m[4] == 1) for each in tapes]
    assert min(sealed) > 20, sealed

    def replay(to):
        sockets = []
        for tape in tapes[to]:
            s = socket.create_connection(("127.0.0.1", taps[to].target))
            s.sendall(tape)
            sockets.append(s)
        return sockets

    def dropped(m):
        return int(m.status()["messages_dropped"])

    for again in ("while it is up", "after it was started again"):
        term = a.status()["term"]
        for i, m in enumerate((a, b, c)):
            before = dropped(m)
            sockets = replay(i)
            wait_until("%s: all dropped" % again, lambda m=m, n=before + sealed[i]: dropped(m) >= n)
            for s in sockets:
                s.close()
        for m in (a, b, c):
            m.sql("INSERT INTO t VALUES (?)", again)
        box.settle(a, b, c)
        assert a.status()["term"] == term
        if again == "while it is up":
            for m in (c, b):
                m.kill9()
                m.restart()
            box.settle(a, b, c)
    assert a.one("SELECT count(*) FROM t") == 56
    box.same_files(a, b, c)


def test_a_follower_that_returns_disturbs_nobody(box):
    """The leader has sealed for its last start; it is told at once that this is another one."""
    box.make_key()
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    assert a.role() == "leader"
    term = a.status()["term"]
    for _ in range(5):
        c.kill9()
        c.restart()
        t = time.monotonic()
        index = a.index()
        c.one("SELECT dust_wait(?, 10000)", index)
        c.sql("INSERT INTO t VALUES (1)")
        assert time.monotonic() - t < 5
    box.settle(a, b, c)
    assert a.status()["term"] == term and a.role() == "leader"


def test_strangers(box):
    key = box.make_key()
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    other, none = box.member("d"), box.member("e")
    box.make_key("other.key")
    futures = []
    for m, keyfile in ((other, box.keyfile), (none, None)):
        m.open(m.path)
        futures.append((m, m.start("sql", conn="main", sql="SELECT dust_join(?, ?, ?)", params=[m.address, a.address, keyfile])))
    for m, f in futures:
        with pytest.raises(SqlError) as e:
            f.result(90)
        assert "key" in e.value.text, e.value
        assert not os.path.exists(m.path + "-dust")
    said = " ".join(str(v) for k, v in a.status().items() if "error" in k)
    assert "sealed with the key" in said and "not sealed" in said, said
    assert a.one("SELECT count(*) FROM dust_members") == 2
    box.keyfile = key
    other.sql("SELECT dust_join(?, ?, ?)", other.address, a.address, key, timeout=60)
    other.sql("INSERT INTO t VALUES (1)")
    box.same_files(a, b, other)
    # One without a key is not reached by those that have one, either.
    none.sql("SELECT dust_start(?)", none.address)
    assert none.status()["key"] == "none" and len(a.status()["key"]) == 6


@pytest.mark.parametrize("content, mode, word", [
    (None, 0, "does not exist"),
    ("", 0o600, "no key"),
    ("hunter2\n", 0o600, "line 1"),
    ("# of the cluster\ndust-key-1:" + "0" * 63 + "\n", 0o600, "line 2"),
    ("dust-key-1:" + "0" * 64 + "\n", 0o644, "chmod 600"),
    (("dust-key-1:" + "0" * 64 + "\n") * 2, 0o600, "twice"),
    ("#" * 10000, 0o600, "longer"),
])
def test_keyfiles_that_are_none(box, content, mode, word):
    w = box.worker()
    path = box.path("a.key")
    if content is not None:
        with open(path, "w") as f:
            f.write(content)
        os.chmod(path, mode)
    e = w.open_error("file:%s?vfs=dust&bind=127.0.0.1:%d&keyfile=%s" % (box.path("x.db"), free_port(), path), uri=True)
    assert word in e.text and "keyfile" in e.text, e
    assert "hunter2" not in e.text and "000" not in e.text
    assert not os.path.exists(box.path("x.db-dust"))
    w.open(box.path("y.db"))
    e = w.error("SELECT dust_start(?, ?)", "127.0.0.1:%d" % free_port(), path)
    assert word in e.text, e
    assert not os.path.exists(box.path("y.db-dust"))


def test_a_member_keeps_its_key(box):
    """With its folder, for none but its owner; it needs not be told again, and the file it came from may go."""
    key = box.make_key()
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    os.unlink(key)
    for m in (a, b):
        assert os.stat(m.path + "-dust/key").st_mode & 0o777 == 0o600
        m.kill9()
    for m in (a, b):
        m.restart()
    b.sql("INSERT INTO t VALUES (1)")
    box.same_files(a, b)
    with open(a.path + "-dust/key", "w") as f:
        f.write("damaged\n")
    a.kill9()
    a.restart(open_=False)
    e = a.open_error(a.path)
    assert "key" in e.text and "line 1" in e.text, e
    b.sql("SELECT * FROM t")


def with_a_wrong_key(box, m):
    """Start it with another key than it has, and read: what it says of it."""
    keyfile = box.keyfile
    wrong = box.make_key("wrong.key")
    box.keyfile = keyfile
    m.end()
    m.restart(open_=False)
    m.open("file:%s?vfs=dust&keyfile=%s" % (m.path, wrong), uri=True, timeout=0.2)
    assert m.error("SELECT count(*) FROM t").name == "SQLITE_BUSY"
    m.sql("PRAGMA dust_consistency = stale")
    said = m.status()
    assert "keyfile=FILE" in said["last_error"], said
    m.kill9()
    return said["connection_error"]


def test_a_wrong_key_is_told_of_and_replaced(box):
    """It is kept as any other. The member itself says what to do about it; and that helps."""
    key = box.make_key()
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b, c)
    said = with_a_wrong_key(box, c)
    assert "no leader" in said and "keyfile=FILE" in said and "takes the place" in said, said
    a.sql("INSERT INTO t VALUES (1)")
    c.restart(open_=False)
    c.open("file:%s?vfs=dust&keyfile=%s" % (c.path, key), uri=True)
    c.sql("INSERT INTO t VALUES (2)")
    assert c.status()["key"] == a.status()["key"]
    c.end()
    c.restart()
    assert c.one("SELECT count(*) FROM t") == 2
    box.same_files(a, b, c)


def test_a_key_given_where_there_is_none_is_told_of(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b, c)
    said = with_a_wrong_key(box, c)
    assert "no leader" in said and "delete the file `key`" in said, said
    os.unlink(c.path + "-dust/key")
    c.restart()
    c.sql("INSERT INTO t VALUES (1)")
    assert c.status()["key"] == "none"
    box.same_files(a, b, c)


def test_a_key_is_replaced_while_everybody_writes(box):
    """Behind the old one on all, in front of it on all, alone on all; each member is started again at each step."""
    first = box.make_key()
    old = open(first).read()
    members = box.cluster(3)
    a, b, c = members
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, who TEXT, n INT)")
    box.settle(*members)
    second = box.make_key("second.key")
    new = open(second).read()
    hints = set()
    total = 0
    for text in (old + new, new + old, new):
        with open(os.open(first, os.O_WRONLY | os.O_TRUNC), "w") as f:
            f.write(text)
        for m in members:
            others = [x for x in members if x is not m]
            threads = []

            def work(x, n):
                for i in range(n):
                    x.sql("INSERT INTO t(who, n) VALUES (?, ?)", x.name, i, timeout=60)

            for x in others:
                threads.append(threading.Thread(target=work, args=(x, 30)))
                threads[-1].start()
            m.end()
            m.restart(open_=False)
            m.open("file:%s?vfs=dust&keyfile=%s" % (m.path, first), uri=True)
            m.one("SELECT dust_wait(?, 20000)", others[0].index())
            for t in threads:
                t.join()
            total += 60
            wait_until("all are up", lambda: m.one("SELECT count(*) FROM dust_members WHERE state = 'up'") == 3)
        keys = {m.status()["key"] for m in members}
        assert len(keys) == 1
        hints |= keys
    assert len(hints) == 3
    assert a.one("SELECT count(*) FROM t") == total
    box.same_files(a, b, c)
    with open(a.path + "-dust/key") as f:
        assert new.strip() in f.read()


def test_keys_by_the_environment():
    with Box("keys") as box:
        key = box.make_key()
        first = None
        for name in "ab":
            env = {"DUST_DB": box.path("*.db"), "DUST_BIND": "127.0.0.1:0", "DUST_KEYFILE": key}
            if first:
                env["DUST_JOIN"] = first.one("SELECT address FROM dust_members WHERE is_self")
            m = box.member(name, env=env)
            m.open(m.path)
            m.sql("PRAGMA user_version", timeout=60)
            if not first:
                first = m
                m.sql("CREATE TABLE t(x)")
        m.sql("INSERT INTO t VALUES (1)")
        assert m.status()["key"] == first.status()["key"] != "none"
        box.same_files(first, m)
