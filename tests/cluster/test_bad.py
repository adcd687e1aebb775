"""Bad input: an error that says what is wrong, and nothing is changed."""
import os
import re
import shutil
import socket
import stat
import struct
import subprocess
import time

import pytest

import raftlog
from cluster import Dead, SqlError, address, copy_folder, free_port, plain, scaled, wait_until


def snapshot(*paths):
    """What is in these files and folders."""
    d = {}
    for path in paths:
        if os.path.isdir(path):
            for root, _, files in os.walk(path):
                d[root] = None
                for f in files:
                    if stat.S_ISSOCK(os.lstat(os.path.join(root, f)).st_mode):
                        continue
                    with open(os.path.join(root, f), "rb") as x:
                        d[os.path.join(root, f)] = x.read()
        elif os.path.exists(path):
            with open(path, "rb") as x:
                d[path] = x.read()
    return d


@pytest.mark.parametrize("query, word", [
    ("vfs=dust&bind=127.0.0.1:%d&bnid=x", "bnid"),
    ("vfs=dust&bindd=127.0.0.1:%d", "bindd"),
    ("vfs=dust&bind=127.0.0.1:%d&timeout=soon", "timeout"),
    ("vfs=dust&bind=127.0.0.1:%d&timeout=-1", "timeout"),
    ("vfs=dust&bind=127.0.0.1:%d&timeout=", "timeout"),
    ("vfs=dust&bind=127.0.0.1:%d&election=1e3", "election"),
    ("vfs=dust&bind=127.0.0.1:%d&election=0", "election"),
    ("vfs=dust&bind=127.0.0.1:%d&role=king", "role"),
    ("vfs=dust&bind=127.0.0.1:%d&consistency=maybe", "consistency"),
    ("vfs=dust&bind=127.0.0.1:%d&statements=all", "statements"),
    ("vfs=dust&bind=127.0.0.1:%d&join=", "join"),
    ("vfs=dust&bind=127.0.0.1:%d&join=nobody", "nobody"),
    ("vfs=dust&bind=127.0.0.1:%d&join=127.0.0.1:1,,127.0.0.1:2", "address"),
    ("vfs=dust&join=127.0.0.1:%d", "bind"),
    ("vfs=dust&bind=", "address"),
    ("vfs=dust&bind=127.0.0.1:%d&advertise=here", "here"),
    ("vfs=dust&bind=10.0.0.1:%d", "loopback"),
    ("vfs=dust&bind=0.0.0.0:%d", "loopback"),
])
def test_uri_parameters(box, query, word):
    w = box.worker()
    query = query % free_port() if "%d" in query else query
    e = w.open_error("file:%s?%s" % (box.path("x.db"), query), uri=True)
    assert word in e.text, e
    assert not os.path.exists(box.path("x.db-dust"))
    assert not os.path.exists(box.path("x.db")) or os.path.getsize(box.path("x.db")) == 0


@pytest.mark.parametrize("addr", ["", "x", "127.0.0.1", "127.0.0.1:", ":4001", "127.0.0.1:99999", "127.0.0.1:-1",
                                  "127.0.0.1:12x", "127.0.0.1:4001:5", "127.0.0.1 :4001", "300.1.1.1:4001", "a b:1",
                                  "127.0.0.1:4001\n", "x" * 10000 + ":1", None, "10.1.2.3:4001", "0.0.0.0:4001",
                                  "[::]:4001", 4001, b"127.0.0.1\x00:4001"])
def test_addresses(box, addr):
    w = box.worker()
    w.open(box.path("x.db"))
    w.sql("CREATE TABLE t(x)")
    before = snapshot(box.path("x.db"))
    e = w.error("SELECT dust_start(?)", addr)
    assert e.text
    e = w.error("SELECT dust_join(?, '127.0.0.1:4001')", addr)
    assert e.text
    assert not os.path.exists(box.path("x.db-dust"))
    assert snapshot(box.path("x.db")) == before
    w.sql("INSERT INTO t VALUES(1)")  # the connection goes on as it was
    assert w.one("SELECT count(*) FROM t") == 1


def test_address_in_use(box):
    w = box.worker()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        addr = "127.0.0.1:%d" % s.getsockname()[1]
        w.open(box.path("x.db"))
        w.sql("CREATE TABLE t(x)")
        e = w.error("SELECT dust_start(?)", addr)
        assert addr in e.text and "use" in e.text, e
    assert not os.path.exists(box.path("x.db-dust"))
    assert plain(box.path("x.db"), "SELECT count(*) FROM t") == [(0,)]
    plain(box.path("x.db"), "INSERT INTO t VALUES(1)")
    w.sql("SELECT dust_start(?)", address())
    assert w.one("SELECT count(*) FROM t") == 1


def test_start_twice_and_without_a_file(box):
    m = box.member("a").create()
    assert "member" in m.error("SELECT dust_start(?)", address()).text
    assert "member" in m.error("SELECT dust_join(?, ?)", address(), m.address).text
    w = box.worker()
    w.open(":memory:")
    assert w.error("SELECT dust_start(?)", address()).text
    assert w.error("SELECT dust_join(?, ?)", address(), m.address).text
    w.open("")
    assert w.error("SELECT dust_start(?)", address()).text
    for f in ("dust_id", "dust_role", "dust_leader", "dust_head", "dust_index", "dust_checkpoint", "dust_leave"):
        assert "member" in w.error("SELECT %s()" % f).text
    assert w.sql("SELECT * FROM dust_members") == []
    w.open(box.path("x.db"))
    w.sql("CREATE TABLE t(x)")
    w.sql("BEGIN")
    w.sql("INSERT INTO t VALUES(1)")
    assert "transaction" in w.error("SELECT dust_start(?)", address()).text
    w.sql("COMMIT")
    assert w.one("SELECT count(*) FROM t") == 1


def test_join_nobody_itself_and_a_stranger(box):
    w = box.worker()
    path = box.path("x.db")
    w.open(path)
    t = time.monotonic()
    e = w.error("SELECT dust_join(?, ?)", address(), address(), timeout=90)
    print("nobody: %.1f s: %s" % (time.monotonic() - t, e))
    assert not os.path.exists(path + "-dust")
    own = address()
    e = w.error("SELECT dust_join(?, ?)", own, own)
    assert "own" in e.text, e
    with socket.socket() as s:  # it listens, but says nothing
        s.bind(("127.0.0.1", 0))
        s.listen()
        e = w.error("SELECT dust_join(?, ?)", address(), "127.0.0.1:%d" % s.getsockname()[1], timeout=90)
        assert e.text
    assert not os.path.exists(path + "-dust")
    for bad in ("", "x", ",", "127.0.0.1:1;127.0.0.1:2", "127.0.0.1:0"):
        assert w.error("SELECT dust_join(?, ?)", address(), bad).text
    # After all that, a good one works.
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    w.sql("SELECT dust_join(?, ?)", own, a.address)
    w.sql("INSERT INTO t VALUES(1)")


def test_join_with_an_address_in_use(box):
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b)
    b.kill9()  # its address is free to bind, but is a member's
    c = box.member("c")
    c.open(c.path, timeout=1)
    e = c.error("SELECT dust_join(?, ?)", b.address, a.address, timeout=90)
    assert b.address in e.text or "address" in e.text, e
    assert not os.path.exists(c.path + "-dust")
    assert len(a.sql("SELECT * FROM dust_members")) == 2
    b.restart()
    c.sql("SELECT dust_join(?, ?)", c.address, a.address)
    c.sql("INSERT INTO t VALUES(1)")
    box.same_files(a, b, c)


def test_join_with_content(box):
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    c = box.member("c")
    c.open(c.path)
    c.sql("CREATE TABLE mine(x)")
    before = snapshot(c.path)
    e = c.error("SELECT dust_join(?, ?)", c.address, a.address)
    assert "empty" in e.text, e
    e = c.open_error("file:%s?vfs=dust&bind=%s&join=%s" % (c.path, c.address, a.address), uri=True)
    assert "empty" in e.text, e
    assert snapshot(c.path) == before
    assert not os.path.exists(c.path + "-dust")
    assert len(a.sql("SELECT * FROM dust_members")) == 1
    c.sql("INSERT INTO mine VALUES(1)")


@pytest.fixture
def ended(box):
    """A member of a cluster of one, with content, whose process has ended; and a second such cluster."""
    members = []
    for name in "ab":
        m = box.member(name).create()
        m.sql("CREATE TABLE t(x)")
        m.sql("INSERT INTO t VALUES(?)", name)
        assert m.end() == 0
        members.append(m)
    return members


def refused(box, m, *words):
    """Opening it fails with a reason; and everything is as it was."""
    before = snapshot(m.path, m.path + "-dust")
    w = box.worker("try")
    e = w.open_error(m.path, timeout=1)
    print(e)
    assert e.name != "SQLITE_OK"
    assert any(x in e.text for x in words), e
    w.end()
    after = snapshot(m.path, m.path + "-dust")
    for p in set(before) | set(after):
        if os.path.basename(p) not in ("pages", "host", "socket"):
            assert before.get(p) == after.get(p), "%s was changed" % p
    return e


def test_member_file(box, ended):
    a, b = ended
    file = a.path + "-dust/member"
    with open(file, "rb") as f:
        good = f.read()
    with open(b.path + "-dust/member", "rb") as f:
        other = f.read()
    for bad in (b"", good[:len(good) // 2], good[:-3], b"\0" * 100, b"hello\n", good.replace(b"1", b"9"), good * 2,
                os.urandom(200), other):
        with open(file, "wb") as f:
            f.write(bad)
        refused(box, a, "member", "cluster", "database")
    newer = re.sub(r"^format=\d+$", "format=77", good.decode(), flags=re.M)
    assert newer != good.decode(), good
    with open(file, "w") as f:
        f.write(newer)
    refused(box, a, "newer", "format", "member")
    os.unlink(file)
    refused(box, a, "member")
    with open(file, "wb") as f:
        f.write(good)
    a.restart()
    assert a.one("SELECT x FROM t") == "a"


def test_database_file(box, ended):
    a, b = ended
    with open(a.path, "rb") as f:
        good = f.read()
    with open(b.path, "rb") as f:
        other = f.read()
    for name, bad in (("other cluster", other), ("cut", good[:4096]), ("cut in a page", good[:5000]),
                      ("garbage", os.urandom(len(good))), ("zeros", bytes(len(good))), ("one byte", b"S"),
                      ("header only", good[:100])):
        print(name)
        with open(a.path, "wb") as f:
            f.write(bad)
        refused(box, a, a.path, "database", "cluster")
    # A database without the marks: somebody put a plain one there.
    os.unlink(a.path)
    plain(a.path, "CREATE TABLE t(x)")
    refused(box, a, "mark", "database")
    # A newer format of the mark.
    with open(a.path, "wb") as f:
        f.write(good[:72] + bytes([good[72] + 1]) + good[73:])
    refused(box, a, "format", "newer", "mark")
    # Gone.
    os.unlink(a.path)
    refused(box, a, "gone", "database")
    assert not os.path.exists(a.path)
    with open(a.path, "wb") as f:
        f.write(good)
    a.restart()
    assert a.one("SELECT x FROM t") == "a"


def test_log_files(box, ended):
    a, _ = ended
    raft = a.path + "-dust/raft"
    a.restart()
    wait_until("it has its first snapshot", lambda: a.status()["snapshot_index"] > 0)
    a.sql("CREATE TABLE beyond(x)")
    assert a.end() == 0
    promise = a.path + "-dust/promise"  # how far the log was: goes with it
    good = box.path("good")
    copy_folder(raft, good)
    shutil.copy(promise, good + "-promise")
    with open(a.path, "rb") as f:
        file = f.read()

    def restore():
        shutil.rmtree(raft)
        copy_folder(good, raft)
        shutil.copy(good + "-promise", promise)
        with open(a.path, "wb") as f:
            f.write(file)

    def spoil(name, what):
        p = os.path.join(raft, name)
        size = os.path.getsize(p)
        if what == "gone":
            os.unlink(p)
        else:
            with open(p, "r+b") as f:
                f.truncate(0)
                if what == "garbage":
                    f.write(os.urandom(min(size, 65536)))

    # Garbage in each of its files, one at a time: it is refused …
    log = raftlog.log(raft)
    used = {b.name for b in log} | {"term", "snapshot"}
    for name in sorted(used):
        for what in ("garbage", "empty", "gone"):
            if (name, what) == ("snapshot", "gone") and log[0].first == 1:
                continue  # the log is whole without it
            spoil(name, what)
            e = refused(box, a, "damaged")
            assert "raft" in e.text and a.path in e.text and "join anew" in e.text, "%s %s: %s" % (name, what, e)
            restore()
    # … or nothing of it was needed.
    for what in ("garbage", "empty", "gone"):
        spare = [f for f in raftlog.files(raft) if f not in used]
        assert spare, os.listdir(raft)
        for name in spare:
            spoil(name, what)
        a.restart()
        assert a.sql("SELECT x FROM t") == [("a",)], what
        assert a.end() == 0
    shutil.rmtree(good)  # an old copy of it
    copy_folder(raft, good)
    shutil.rmtree(raft)
    w = box.worker("try")
    e = w.open_error(a.path, timeout=2)
    print("no log:", e)
    assert "log" in e.text or "raft" in e.text, e
    w.end()
    shutil.rmtree(raft, ignore_errors=True)
    copy_folder(good, raft)
    a.restart()
    assert a.one("SELECT x FROM t") == "a"


def test_log_that_cannot_be_looked_at(box):
    """As if a disk, or the number of open files, did not let it: it is not taken for none, which would be begun anew."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    m.kill9()  # before its first checkpoint
    raft = m.path + "-dust/raft"
    if os.path.exists(raft + "/snapshot"):
        os.unlink(raft + "/snapshot")  # as if before it was there
    os.rename(raft + "/log-1", box.path("log-1"))
    os.symlink(box.path("log-1"), raft + "/log-1")
    e = refused(box, m, "log")
    assert raft in e.text and e.name == "SQLITE_IOERR", e
    os.unlink(raft + "/log-1")
    os.rename(box.path("log-1"), raft + "/log-1")
    m.restart()
    assert m.one("SELECT count(*) FROM t") == 0


def test_torn_tail_is_cut(box):
    """A log whose last write did not finish: that entry was never acknowledged."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    for i in range(50):
        m.sql("INSERT INTO t VALUES(?)", i)
    m.kill9()
    raft, n = m.path + "-dust/raft", 50
    for keep in (range(8), range(8, 16), range(1, 16), range(11), (0, 5, 9)):  # of its sectors; the last ones are zeros
        last = raftlog.log(raft)[-1]
        torn = raftlog.seal(raftlog.key_of(raft), last.seq + 1, last.seq, last.last + 1, last.floor,
                            [(last.entries[-1][1], last.entries[-1][2], os.urandom(6000))])
        with open(last.path, "r+b") as f:
            for i in keep:
                f.seek(last.end + 512 * i)
                f.write(torn[512 * i:512 * (i + 1)])
        assert raftlog.log(raft)[-1].seq == last.seq
        m.restart()
        assert m.one("SELECT count(*) FROM t") == n
        m.sql("INSERT INTO t VALUES(?)", n)
        n += 1
        m.kill9()
        again = raftlog.log(raft)
        assert again[-1].last > last.last and any(b.follows == last.seq and b.at == last.end for b in again), again
    m.restart()
    assert m.one("SELECT count(*) FROM t") == n


def test_database_without_its_folder(box, ended):
    """A copy of a member's file: plain SQLite and dust read it; nobody writes it; it cannot be started or joined as it
    stands."""
    a, b = ended
    shutil.rmtree(a.path + "-dust")
    before = snapshot(a.path)
    w = box.worker()
    w.open(a.path, timeout=1)
    assert w.one("SELECT x FROM t") == "a"
    assert w.error("INSERT INTO t VALUES(1)").name.startswith("SQLITE_READONLY")
    assert "copy" in w.error("SELECT dust_start(?)", address()).text
    w.open(a.path, timeout=1)
    assert w.error("SELECT dust_join(?, ?)", address(), address()).text
    assert snapshot(a.path) == before
    assert not os.path.exists(a.path + "-dust")


def sp_handshake(port):
    """What nanomsg says first: a PUSH socket's greeting."""
    s = socket.create_connection(("127.0.0.1", port), 5)
    s.sendall(b"\0SP\0" + struct.pack(">H", 0x50) + b"\0\0")
    s.settimeout(5)
    s.recv(8)
    return s


@pytest.mark.sanitize
def test_garbage_from_the_network(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq)")
    box.settle(a, b, c)
    for m in (a, b, c):
        m.writer()
    rng = __import__("random").Random(5)
    reached = a.status()["messages_in"]
    for m in (a, b):
        port = int(m.address.rpartition(":")[2])
        for i in range(scaled(200, 60)):
            with socket.create_connection(("127.0.0.1", port), 5) as s:  # not even the greeting
                s.sendall(os.urandom(rng.randrange(1, 100)))
            try:
                with sp_handshake(port) as s:
                    kind = i % 6
                    if kind == 0:  # random messages
                        for _ in range(20):
                            n = rng.randrange(0, 300)
                            s.sendall(struct.pack(">Q", n) + os.urandom(n))
                    elif kind == 1:  # cut short
                        s.sendall(struct.pack(">Q", 1000) + b"x" * 10)
                    elif kind == 2:  # far too long
                        s.sendall(struct.pack(">Q", 1 << 62) + b"x" * 1000)
                    elif kind == 3:  # empty ones
                        s.sendall(struct.pack(">Q", 0) * 50)
                    elif kind == 4:  # small numbers everywhere: versions, types, lengths
                        for _ in range(50):
                            n = rng.randrange(1, 128)
                            s.sendall(struct.pack(">Q", n) + bytes(rng.randrange(0, 4) for _ in range(n)))
                    else:  # all ones
                        s.sendall(struct.pack(">Q", 200) + b"\xff" * 200)
            except OSError:
                pass  # it has hung up on us: quite right
    assert a.status()["messages_in"] > reached
    assert "message" in a.status()["last_error"]
    for m in (a, b, c):
        assert m.alive()
        assert m.writer_stop()["errors"] == []
    box.same_files(a, b, c)


@pytest.mark.sanitize
def test_damaged_messages(box):
    """True messages of a member, overheard, damaged, and played back: from another version, truncated, bits flipped."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    # Somebody who listens where a member is expected hears true messages: a join request.
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        s.settimeout(20)
        j = box.worker("j")
        j.open(box.path("j.db"))
        f = j.start("sql", sql="SELECT dust_join(?, ?)", params=[address(), "127.0.0.1:%d" % s.getsockname()[1]])
        heard = b""
        conn, _ = s.accept()
        conn.settimeout(5)
        conn.sendall(b"\0SP\0" + struct.pack(">H", 0x51) + b"\0\0")  # PULL
        try:
            while len(heard) < 8 + 8 + 16:
                heard += conn.recv(65536)
        except socket.timeout:
            pass
        conn.close()
    j.kill9()
    with pytest.raises(Dead):
        j.get(f)
    n = struct.unpack(">Q", heard[8:16])[0]
    msg = heard[16:16 + n]
    print("heard %d bytes: %s" % (n, msg[:64].hex()))
    assert len(msg) == n
    port = int(a.address.rpartition(":")[2])
    rng = __import__("random").Random(7)
    bad = [msg[:k] for k in range(0, n, max(1, n // 40))]
    for i in range(n):
        x = bytearray(msg)
        x[i] ^= 1 << rng.randrange(8)
        bad.append(bytes(x))
    bad += [msg + b"\0" * k for k in (1, 8, 1000)]
    members = a.one("SELECT count(*) FROM dust_members")
    with sp_handshake(port) as s:
        for x in bad:
            try:
                s.sendall(struct.pack(">Q", len(x)) + x)
            except OSError:
                break
        wait_until("they have come", lambda: a.status()["messages_in"] > n, 10)
    assert a.alive()
    a.sql("INSERT INTO t VALUES(1)")
    print("members %d, then %d" % (members, a.one("SELECT count(*) FROM dust_members")))


def test_another_page_size(box):
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    a.sql("INSERT INTO t VALUES(1)")
    box.settle(a, b)
    for sql in ("PRAGMA page_size = 1024", "VACUUM"):  # one of them may say why not
        try:
            a.sql(sql)
        except SqlError as e:
            assert "page size" in e.text, e
    assert a.one("PRAGMA page_size") == 4096
    assert a.one("SELECT x FROM t") == 1
    b.sql("INSERT INTO t VALUES(2)")
    box.same_files(a, b)


def test_two_dust_databases_in_one_transaction(box):
    w = box.worker()
    for name in "ab":
        w.open(box.path(name + ".db"), conn=name)
        w.sql("SELECT dust_start(?)", address(), conn=name)
        w.sql("CREATE TABLE t(x)", conn=name)
    w.sql("ATTACH ? AS b", box.path("b.db"), conn="a")
    assert w.one("SELECT count(*) FROM b.t", conn="a") == 0  # reading both is fine
    w.sql("BEGIN", conn="a")
    w.sql("INSERT INTO main.t VALUES(1)", conn="a")
    try:
        w.sql("INSERT INTO b.t VALUES(1)", conn="a")
        e = w.error("COMMIT", conn="a")
    except Exception as x:
        e = x
        w.sql("ROLLBACK", conn="a")
    print(e.name, e)
    for name in "ab":
        assert w.one("SELECT count(*) FROM t", conn=name) == 0
    # One at a time is fine.
    w.sql("INSERT INTO main.t VALUES(1)", conn="a")
    w.sql("INSERT INTO b.t VALUES(2)", conn="a")
    assert w.one("SELECT x FROM t", conn="a") == 1
    assert w.one("SELECT x FROM t", conn="b") == 2


@pytest.fixture
def small_disk(box):
    """A file system of 48 MB."""
    path = box.path("small")
    os.mkdir(path)
    p = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "dust-test", path], capture_output=True, text=True)
    if p.returncode != 0:
        pytest.skip("cannot mount a small file system: " + p.stderr.strip())
    yield path
    box.shut()
    subprocess.run(["umount", "-l", path])


def test_full_disk_of_one(box, small_disk):
    m = box.member("a", path=os.path.join(small_disk, "a.db")).create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    n = 0
    e = None
    for _ in range(2000):
        try:
            m.sql("INSERT INTO t(x) VALUES(randomblob(200000))")
            n += 1
        except Exception as x:
            e = x
            break
    print(n, e)
    assert e is not None and type(e).__name__ == "SqlError"
    assert m.alive()
    # Reading goes on; what was acknowledged is there.
    assert m.one("SELECT count(*) FROM t") == n
    print({k: v for k, v in m.status().items() if "error" in k or "fail" in k})
    # With room again, a new start finds everything.
    m.kill9()
    target = box.path("moved.db")
    shutil.copy(m.path, target)
    copy_folder(m.path + "-dust", target + "-dust")
    m.path = target
    m.restart()
    got = m.one("SELECT count(*) FROM t")
    assert n <= got <= n + 1
    m.sql("INSERT INTO t(x) VALUES('more')")
    assert m.one("PRAGMA integrity_check") == "ok"


def test_full_disk_of_a_follower(box, small_disk):
    """The others go on."""
    a = box.member("a").create()
    b = box.member("b").join(a)
    c = box.member("c", path=os.path.join(small_disk, "c.db")).join(a)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    c.sql("PRAGMA dust_consistency = stale")
    seen = 0
    for i in range(500):
        a.sql("INSERT INTO t(x) VALUES(randomblob(200000))")
        if i % 10 == 0 and i > 0:  # what it serves gets old, but never older than it was
            now = c.one("SELECT count(*) FROM t")
            assert now >= seen
            seen = now
    assert seen > 0
    box.settle(a, b)
    assert a.one("SELECT count(*) FROM t") == 500
    assert c.alive()
    print({k: v for k, v in c.status().items() if "error" in k or "fail" in k})
    box.same_files(a, b)
