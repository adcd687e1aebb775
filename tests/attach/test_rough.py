"""Several processes on one member, under rough treatment: readers that never stop, nonsense on the socket, full disks."""
import os
import random
import socket
import struct

import pytest

from cluster import SqlError, scaled, wait_until
from test_attach import COUNT, attach, hosts, status, three, value

READ = """
c = connect(arg["path"], timeout=30)
last = reads = back = 0
while not os.path.exists(arg["stop"]):
    n, = c.execute("SELECT n FROM counter WHERE id = 0").fetchone()
    back += n < last
    last = n
    reads += 1
result = [reads, back]
"""


def test_a_reader_for_the_whole_run(box):
    """While one host after the other is killed, it reads on, without an error, and what it sees never goes back."""
    a, b, c = three(box)
    reader = attach(box, a, "reader")
    stop = box.path("stop")
    reading = reader.start("py", conn="job", code=READ, arg={"path": a.path, "stop": stop})
    host, kills = a, 0
    for i in range(scaled(4)):
        w = attach(box, a, "w%d" % i)
        job = w.start("py", conn="job", code=COUNT, arg={"path": a.path, "stop": stop, "threads": 2, "n": 0, "id": 0})
        before = b.one("SELECT n FROM counter WHERE id = 0")
        wait_until("it writes", lambda: b.one("SELECT n FROM counter WHERE id = 0") > before + 20, 60)
        host.kill9()
        kills += 1
        before = b.one("SELECT n FROM counter WHERE id = 0")
        wait_until("it goes on", lambda: b.one("SELECT n FROM counter WHERE id = 0") > before + 20, 60)
        host = hosts([reader, w])
        if host is reader:
            break
    with open(stop, "w"):
        pass
    reads, back = reader.get(reading, 60)
    print("%d kills, %d reads" % (kills, reads))
    assert back == 0 and reads > 100
    assert w.get(job, 60)["errors"] == []
    box.same_files(b, c)
    assert value(reader, "SELECT n FROM counter WHERE id = 0") == c.one("SELECT n FROM counter WHERE id = 0")


def test_nonsense_on_the_socket(box):
    """Whoever speaks it is hung up on; nobody else notices."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    w = attach(box, a, "w")
    rng = random.Random(4)
    for i in range(scaled(200, 50)):
        s = socket.socket(socket.AF_UNIX)
        s.connect(a.path + "-dust/socket")
        junk = (b"", rng.randbytes(rng.choice((1, 12, 13, 500, 70000))), b"\xff" * 64, bytes(200),
                struct.pack("<I", 0x7fffffff) + bytes(20))[i % 5]
        try:
            s.sendall(junk)
            s.shutdown(socket.SHUT_WR)
            s.settimeout(20)
            while s.recv(4096):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        s.close()
    w.call("sql", conn="main", sql="INSERT INTO t VALUES(1)", params=[])
    assert a.one("SELECT count(*) FROM t") == 1
    assert len([k for k in status(w) if k.startswith("attached_")]) == 1


def test_a_full_disk(box, small_disk):
    """Of the member that two processes share: writing fails with a clear error in both, reading goes on, space is enough."""
    disk = small_disk("disk", 110, 40)
    a = box.member("a", path=os.path.join(disk, "a.db")).create()
    a.sql("CREATE TABLE t(x)")
    w = attach(box, a, "w")
    acked = 0
    with pytest.raises(SqlError) as e:
        for _ in range(2000):
            w.call("sql", conn="main", sql="INSERT INTO t VALUES(randomblob(200000))", params=[])
            acked += 1
    assert e.value.name in ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_IOERR_COMMIT_ATOMIC"), e.value
    assert acked > 10
    for m in (a, w):
        assert value(m, "SELECT count(*) FROM t") >= acked
    os.unlink(os.path.join(disk, "filler"))

    def writes():
        try:
            w.call("sql", conn="main", sql="INSERT INTO t VALUES('again')", params=[])
            return True
        except SqlError:
            return False
    wait_until("it writes again", writes, 40, every=0.2)
    assert a.one("SELECT count(*) FROM t WHERE x = 'again'") >= 1
    assert value(w, "PRAGMA integrity_check") == "ok"


def test_a_backup_to_a_full_disk(box, small_disk):
    """It fails with an error that says so, and nothing is left of it."""
    disk = small_disk("disk", 4, 2)
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    a.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 2000) INSERT INTO t SELECT randomblob(2000) FROM r")
    w = attach(box, a, "w")
    for m in (a, w):
        with pytest.raises(SqlError) as e:
            value(m, "SELECT dust_backup(?)", os.path.join(disk, "copy.db"))
        assert e.value.name == "SQLITE_FULL" and "full" in e.value.text, e.value
        assert os.listdir(disk) == ["filler"]
    os.unlink(os.path.join(disk, "filler"))
    assert "pages of" in value(w, "SELECT dust_backup(?)", box.path("copy.db"))


@pytest.mark.parametrize("attached", [False, True], ids=["host", "attached"])
@pytest.mark.parametrize("mode", ["wal", "memory", "delete"])
def test_a_commit_over_another_file_on_a_full_disk(box, small_disk, attached, mode):
    """It fails when dust's part of it is agreed on already. Then that part is there, for all; and what comes after, too."""
    disk = small_disk("disk", 2, 1)
    a = box.member("a").create()
    a.sql("CREATE TABLE t(k INTEGER PRIMARY KEY, x)")
    w = attach(box, a, "w") if attached else a

    def sql(text, *params):
        return w.call("sql", conn="main", sql=text, params=list(params))

    sql("INSERT INTO t(x) VALUES(0)")
    sql("ATTACH ? AS p", os.path.join(disk, "p.db"))
    sql("PRAGMA p.journal_mode=" + mode)
    sql("CREATE TABLE p.q(x)")
    sql("INSERT INTO p.q VALUES(zeroblob(90000))")
    sql("PRAGMA p.cache_size=10000")
    os.unlink(os.path.join(disk, "filler"))
    with open(os.path.join(disk, "filler"), "wb") as f:
        os.posix_fallocate(f.fileno(), 0, (2 << 20) - (600 << 10))
    sql("BEGIN")
    sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 60) INSERT INTO t(x) SELECT hex(zeroblob(200)) FROM r")
    sql("INSERT INTO p.q VALUES(randomblob(900000))")
    with pytest.raises(SqlError) as e:
        sql("COMMIT")
    assert e.value.name == "SQLITE_FULL", e.value
    s = status(w)
    n = value(w, "SELECT count(*) FROM t")
    assert n == 61
    assert value(w, "SELECT dust_outcome(?)", s["connection_unknown"]) == "agreed"
    assert "has taken effect" in s["connection_error"]
    assert a.one("SELECT count(*) FROM t") == n
    assert value(w, "SELECT count(*) FROM p.q") == 1
    a.again(conn="other")
    for i in range(3):
        sql("INSERT INTO t(x) VALUES(5)")
        a.sql("INSERT INTO t(x) VALUES(6)", conn="other")
        n += 2
        assert value(w, "SELECT count(*) FROM t") == a.one("SELECT count(*) FROM t", conn="other") == n
        a.checkpoint()
    assert value(w, "PRAGMA integrity_check") == a.one("PRAGMA integrity_check", conn="other") == "ok"
    a.kill9()
    if w is not a:
        w.kill9()
    a.restart()
    assert a.one("SELECT count(*) FROM t") == n
    assert a.one("PRAGMA integrity_check") == "ok"
