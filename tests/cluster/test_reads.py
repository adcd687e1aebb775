"""What a read may show at each level, and what becomes of a transaction whose outcome was unknown."""
import threading
import time

import pytest

from cluster import SLOW, scaled, wait_until


def three(box, **args):
    members = []
    for name in "abc":
        m = box.member(name)
        uri = "file:%s?vfs=dust&bind=%s" % (m.path, m.address)
        if members:
            uri += "&join=" + members[0].address
        for k, v in args.items():
            uri += "&%s=%s" % (k, v)
        m.open(uri, uri=True)
        m.sql("PRAGMA user_version")  # opens it
        members.append(m)
    members[0].sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    box.settle(*members)
    return members


def reader(m, level, conn=None, timeout=30.0, **args):
    conn = conn or level
    m.open(m.path, conn=conn, timeout=timeout, **args)
    m.sql("PRAGMA dust_consistency = %s" % level, conn=conn)
    return conn


@pytest.mark.sanitize
def test_linearizable_sees_what_was_acknowledged_elsewhere(box):
    members = three(box)
    for m in members:
        reader(m, "linearizable")
    for i in range(scaled(150, 30)):
        w, r = members[i % 3], members[(i + 1 + i // 3 % 2) % 3]
        w.sql("INSERT INTO t(v) VALUES(?)", i)
        assert r.one("SELECT count(*) FROM t", conn="linearizable") == i + 1


def test_linearizable_does_not_write(box):
    members = three(box)
    for m in members:
        reader(m, "linearizable")
    index = members[0].index()
    for i in range(100):
        for m in members:
            m.one("SELECT count(*) FROM t", conn="linearizable")
    assert [m.index() for m in members] == [index] * 3


def test_readers_share_rounds(box):
    """Sixteen readers on each member at once."""
    members = three(box)
    code = """
        import threading
        done, errors = [0], []
        def run():
            c = connect(arg["path"])
            c.execute("PRAGMA dust_consistency = linearizable")
            try:
                for i in range(arg["n"]):
                    c.execute("SELECT count(*) FROM t").fetchone()
            except Exception as e:
                errors.append(repr(e))
            c.close()
        threads = [threading.Thread(target=run) for _ in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
        result = errors
    """
    out = lambda m: int(m.status()["messages_out"])
    before = sum(out(m) for m in members)
    n = scaled(100, 20)
    started = [m.start("py", conn="py", code="import textwrap; exec(textwrap.dedent(%r))" % code,
                       arg={"path": m.path, "n": n}) for m in members]
    for m, f in zip(members, started):
        assert m.get(f, 120) in (None, [])
    messages = sum(out(m) for m in members) - before
    print("%d reads, %d messages" % (3 * 16 * n, messages))
    assert messages < 3 * 16 * n * 3


@pytest.mark.sanitize
def test_levels_without_a_majority(box):
    a, b, c = three(box)
    a.sql("INSERT INTO t(v) VALUES(1)")
    box.settle(a, b, c)
    for level in ("stale", "local", "fresh", "linearizable"):
        reader(a, level, timeout=0.3)
        assert a.one("SELECT count(*) FROM t", conn=level) == 1
    b.freeze()
    c.freeze()
    assert a.one("SELECT count(*) FROM t", conn="local") == 1
    assert a.one("SELECT count(*) FROM t", conn="stale") == 1
    start = time.monotonic()
    e = a.error("SELECT count(*) FROM t", conn="linearizable")
    assert e.name == "SQLITE_BUSY", e
    assert time.monotonic() - start < 10 * SLOW
    wait_until("not fresh any more", lambda: not fresh(a), 10)
    b.thaw()
    c.thaw()
    wait_until("fresh again", lambda: fresh(a), 20)
    wait_until("linearizable again", lambda: attempt(a, "linearizable"), 20)


def attempt(m, conn):
    try:
        m.one("SELECT count(*) FROM t", conn=conn)
        return True
    except Exception as e:
        assert getattr(e, "name", None) == "SQLITE_BUSY", e
        return False


def fresh(m):
    return attempt(m, "fresh")


def test_freshness(box):
    a, b, c = three(box)
    reader(b, "fresh", timeout=0)
    assert b.one("PRAGMA dust_freshness", conn="fresh") in (1000, "1000")
    b.sql("PRAGMA dust_freshness = 60000", conn="fresh")
    leader = box.leader(a, b, c)
    for m in (a, c):
        m.freeze()
    time.sleep(1.5)
    assert b.one("SELECT count(*) FROM t", conn="fresh") == 0
    b.sql("PRAGMA dust_freshness = 300", conn="fresh")
    wait_until("not fresh", lambda: not fresh(b), 5)
    assert leader in (a, b, c)


@pytest.mark.sanitize
def test_a_deposed_leader_does_not_answer_from_memory(box):
    """Frozen, passed over, thawed: its first linearizable read sees what the others have agreed on meanwhile."""
    members = three(box)
    for round_ in range(scaled(3, 1)):
        leader = box.leader(*members)
        others = [m for m in members if m is not leader]
        conn = reader(leader, "linearizable", conn="lin%d" % round_)
        leader.one("SELECT count(*) FROM t", conn=conn)
        leader.freeze()
        future = leader.start("sql", conn=conn, sql="SELECT count(*) FROM t", params=[])  # read when it is thawed
        others[0].sql("INSERT INTO t(v) VALUES(?)", round_)
        n = others[0].one("SELECT count(*) FROM t")
        leader.thaw()
        assert leader.get(future, 60)[0][0] == n
        box.settle(*members)


def test_local_waits_at_the_start_and_says_so(box):
    members = three(box)
    members[0].sql("INSERT INTO t(v) VALUES(1)")
    box.settle(*members)
    for m in members:
        m.kill9()
    a = members[0]
    a.restart(open_=False)
    a.open(a.path, timeout=1.0)
    start = time.monotonic()
    e = a.error("SELECT count(*) FROM t")
    assert e.name == "SQLITE_BUSY"
    assert time.monotonic() - start < 15 * SLOW
    assert "leader" in a.one("SELECT dust_status('connection_error')")
    members[1].restart(open_=False)
    members[1].get(members[1].start("open", conn="main", path=members[1].path), 60)
    a.again(conn="later")
    assert a.one("SELECT count(*) FROM t", conn="later") == 1


@pytest.mark.sanitize
def test_without_a_leader_the_functions_tell_why(box):
    """At any level, on a connection that has read nothing yet too, and on one of a process that is attached. The tables do at
    `stale`: to SQLite they are read in a transaction like any other."""
    members = three(box)
    for m in members:
        m.kill9()
    a, w = members[0], box.worker()
    a.restart(open_=False)
    for p in (a, w):
        p.open(a.path, timeout=0.2)
        for level in ("local", "fresh", "linearizable", "stale"):
            p.open(a.path, conn=level, timeout=0.2)
            p.sql("PRAGMA dust_consistency = " + level, conn=level)
            began = time.monotonic()
            assert p.sql("SELECT dust_role(), dust_leader(), dust_id()", conn=level)[0][1:] == (None, 1)
            assert p.one("SELECT dust_status('leader_id')", conn=level) == 0
            assert p.sql("SELECT dust_status('host_pid'), dust_status('pid')", conn=level) == [(a.pid, p.pid)]
            assert "\nleader_id 0\n" in p.one("SELECT dust_status()", conn=level)
            assert p.sql("SELECT dust_status('connection_error'), dust_status('x'), dust_status(NULL)", conn=level) == [
                (None, None, None)]
            assert time.monotonic() - began < 2 * SLOW
        for what in ("t", "dust_status"):
            assert p.error("SELECT count(*) FROM " + what).name == "SQLITE_BUSY"
            assert "no leader is known" in p.one("SELECT dust_status('connection_error')")
        p.sql("PRAGMA dust_consistency = stale")
        assert "no leader is known" in dict(p.sql("SELECT name, value FROM dust_status"))["connection_error"]
        assert [r[0] for r in p.sql("SELECT is_leader FROM dust_members")] == [0, 0, 0]
    plain = box.worker()
    plain.open(box.path("plain.db"))
    assert plain.sql("SELECT dust_status(), dust_status('role')") == [(None, None)]


# ---- outcomes ----

def lose_majority(box, keep, *others):
    """Kill the others and write on the one that is left: (id, index applied before it was made)."""
    for m in others:
        m.kill9()
    e = keep.error("INSERT INTO t(id, v) VALUES(77, 'unknown')")
    assert e.name == "SQLITE_IOERR_COMMIT_ATOMIC", e
    keep.open(keep.path, conn="ask", timeout=5)
    keep.sql("PRAGMA dust_consistency = stale", conn="ask")
    status = dict(keep.sql("SELECT name, value FROM dust_status WHERE name LIKE 'connection%'"))
    id_, after = status["connection_unknown"], int(status["connection_unknown_after"])
    assert id_ in status["connection_error"] and "dust_outcome" in status["connection_error"]
    assert keep.one("SELECT dust_outcome(?)", id_, conn="ask") == "pending"
    return id_, after


def leader_and_others(box, members):
    leader = box.leader(*members)
    return leader, [m for m in members if m is not leader]


@pytest.mark.sanitize
def test_unknown_then_agreed(box):
    members = three(box, timeout=1500)
    members[0].sql("INSERT INTO t(v) VALUES('before')")
    leader, (x, y) = leader_and_others(box, members)
    leader.sql("PRAGMA dust_consistency = stale")
    id_, after = lose_majority(box, leader, x, y)
    x.restart()
    wait_until("decided", lambda: leader.one("SELECT dust_outcome(?)", id_, conn="ask") == "agreed", 30)
    assert leader.one("SELECT v FROM t WHERE id = 77") == "unknown"
    wait_until("known to another", lambda: x.one("SELECT dust_outcome(?)", id_) == "agreed", 30)
    y.restart()
    box.same_files(*members)
    assert y.one("SELECT dust_outcome(?, ?)", id_, after) == "agreed"


@pytest.mark.sanitize
def test_unknown_then_void(box):
    members = three(box, timeout=1500)
    members[0].sql("INSERT INTO t(v) VALUES('before')")
    leader, (x, y) = leader_and_others(box, members)
    leader.sql("PRAGMA dust_consistency = stale")
    id_, after = lose_majority(box, leader, x, y)
    leader.freeze()
    for m in (x, y):
        m.restart(open_=False)
    opens = [m.start("open", conn="main", path=m.path) for m in (x, y)]
    for m, f in zip((x, y), opens):
        m.get(f, 60)
    x.sql("INSERT INTO t(v) VALUES('instead')")
    leader.thaw()
    wait_until("decided", lambda: leader.one("SELECT dust_outcome(?)", id_, conn="ask") == "void", 30)
    assert leader.sql("SELECT v FROM t WHERE id = 77") == []
    assert x.one("SELECT dust_outcome(?, ?)", id_, after) == "void"
    assert x.one("SELECT dust_outcome(?)", id_) in ("void", "unknown")
    box.same_files(*members)
    assert y.sql("SELECT v FROM t WHERE id = 77") == []


def test_unknown_and_its_origin_gone(box):
    """Killed with the answer outstanding: whoever asks decides it, and it stays so."""
    members = three(box, timeout=1500)
    leader, (x, y) = leader_and_others(box, members)
    leader.sql("PRAGMA dust_consistency = stale")
    id_, after = lose_majority(box, leader, x, y)
    leader.kill9()
    for m in (x, y):
        m.restart(open_=False)
    opens = [m.start("open", conn="main", path=m.path) for m in (x, y)]
    for m, f in zip((x, y), opens):
        m.get(f, 60)
    assert x.one("SELECT dust_outcome(?, ?)", id_, after) == "void"
    leader.restart()
    box.same_files(*members)
    for m in members:
        assert m.one("SELECT dust_outcome(?, ?)", id_, after) == "void"
        assert m.sql("SELECT v FROM t WHERE id = 77") == []


def test_outcome_of_others(box):
    a, b, c = three(box)
    a.sql("INSERT INTO t(v) VALUES(1)")
    box.settle(a, b, c)
    id_, idx = c.sql("SELECT id, idx FROM dust_log WHERE kind = 'transaction' ORDER BY idx DESC LIMIT 1")[0]
    for m in (a, b, c):
        assert m.one("SELECT dust_outcome(?)", id_) == "agreed"
    nobody = "00112233445566778899aabbccddeeff"
    assert b.one("SELECT dust_outcome(?)", nobody) == "unknown"
    assert b.one("SELECT dust_outcome(?, ?)", nobody, idx) == "void"
    assert "hex" in b.error("SELECT dust_outcome('xyz')").text
    b.sql("BEGIN IMMEDIATE")
    assert "open" in b.error("SELECT dust_outcome(?, ?)", nobody, idx).text
    b.sql("ROLLBACK")
    c.sql("INSERT INTO t(v) VALUES(2)")  # a fence is a transaction like any other
    box.same_files(a, b, c)
