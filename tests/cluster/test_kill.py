"""kill -9. Nothing acknowledged is lost, nothing is there twice, and writers on live members see only a pause."""
import os
import time

import pytest

from cluster import SqlError, plain, scaled, wait_until


def check_rows(box, members, whos, killed=()):
    """Every acknowledged row once on every member; a row that was not acknowledged only where a writer was killed."""
    acked = box.acked(*whos)
    for m in members:
        rows = m.sql("SELECT who, seq FROM acked")
        assert len(rows) == len(set(rows)), "%s: rows twice: %s" % (
            m.name, sorted(r for r in set(rows) if rows.count(r) > 1)[:5] if len(rows) < 20000 else "many")
        lost = acked - set(rows)
        assert not lost, "%s lost %d of %d: %s" % (m.name, len(lost), len(acked), sorted(lost)[:10])
        more = {}
        for who, _ in set(rows) - acked:
            more[who] = more.get(who, 0) + 1
        for who, n in more.items():
            assert who in killed and n <= 1, "%s: %d rows of %s that nobody was told of" % (m.name, n, who)
    return len(acked)


def cluster_of_three(box, **args):
    members = box.cluster(3, **args)
    members[0].sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    box.settle(*members)
    return members


@pytest.mark.sanitize
def test_kill_the_leader_again_and_again(box):
    members = cluster_of_three(box)
    whos, killed = [], set()

    def begin(m, life):
        m.who = m.writer("%s%d" % (m.name, life))
        whos.append(m.who)

    for m in members:
        m.life = 0
        begin(m, 0)
    pauses = []
    for _ in range(scaled(20, 3)):
        leader = box.leader(*members)
        others = [m for m in members if m is not leader]
        n = {m: m.writer_state(m.who)["n"] for m in members}
        wait_until("rows from all", lambda: all(m.writer_state(m.who)["n"] >= n[m] + 5 for m in members), 60)
        leader.kill9()
        killed.add(leader.who)
        n = {m: m.writer_state(m.who)["n"] for m in others}
        wait_until("rows from those left", lambda: all(m.writer_state(m.who)["n"] >= n[m] + 5 for m in others), 60)
        pauses.append(max(m.writer_state(m.who)["worst"] for m in others))
        leader.restart()
        leader.life += 1
        begin(leader, leader.life)
    errors = {}
    for m in members:
        state = m.writer_stop(m.who)
        if state["errors"]:
            errors[m.who] = state["errors"][:3]
    for m in members:
        assert m.alive()
    n = None
    box.same_files(*members)
    n = check_rows(box, members, whos, killed)
    print("%d rows; pauses %s" % (n, [round(p, 2) for p in pauses]))
    assert not errors


def test_kill_all_at_once(box):
    members = cluster_of_three(box)
    for round_ in range(scaled(3, 1)):
        whos = ["%s%d" % (m.name, round_) for m in members]
        for m, who in zip(members, whos):
            m.writer(who)
            m.writer(who + "x", explicit=True)
        wait_until("rows from all", lambda: all(m.writer_state(w)["n"] >= 50 for m, w in zip(members, whos)), 60)
        for m in members:
            m.p.kill()  # all of them before the first one has ended
        for m in members:
            m.kill9()
        for m in members:  # the file is a valid database at any time
            assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]
        for m in members:
            m.restart(open_=False)
        opens = [m.start("open", conn="main", path=m.path) for m in members]  # none is ready before two are up
        for m, f in zip(members, opens):
            m.get(f, 60)
        box.same_files(*members)
        for r in range(round_ + 1):
            names = ["%s%d%s" % (m.name, r, x) for m in members for x in ("", "x")]
            acked = box.acked(*names)
            for m in members:
                rows = [tuple(x) for x in m.sql("SELECT who, seq FROM acked WHERE who IN (%s)" % ",".join("?" * 6), *names)]
                assert len(rows) == len(set(rows))
                assert acked <= set(rows)
                assert len(rows) <= len(acked) + 6


@pytest.mark.sanitize
def test_kill_a_follower(box):
    """The others do not even pause; it catches up."""
    members = cluster_of_three(box)
    leader = box.leader(*members)
    victim, other = [m for m in members if m is not leader]
    for m in members:
        m.writer()
    wait_until("rows", lambda: all(m.writer_state()["n"] > 20 for m in members), 60)
    victim.kill9()
    n = leader.writer_state()["n"]
    wait_until("rows", lambda: leader.writer_state()["n"] > n + scaled(200, 20), 60)
    victim.restart()
    victim.writer("again")
    wait_until("rows of the restarted", lambda: victim.writer_state("again")["n"] > 20, 60)
    assert victim.writer_stop("again")["errors"] == []
    for m in (leader, other):
        assert m.writer_stop()["errors"] == []
    box.same_files(*members)
    check_rows(box, members, [m.name for m in members] + ["again"], {victim.name})


def test_kill_the_only_member(box):
    m = box.member("a").create()
    m.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    for i in range(scaled(10, 2)):
        who = m.writer("w%d" % i)
        wait_until("rows", lambda: m.writer_state(who)["n"] > 30, 60)
        m.kill9()
        assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]
        m.restart()
        check_rows(box, [m], ["w%d" % j for j in range(i + 1)], {"w%d" % j for j in range(i + 1)})


def test_kill_in_a_checkpoint(box):
    """The file is consistent however far a checkpoint has come."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b)")
    for i in range(scaled(8, 2)):
        m.sql("BEGIN")
        m.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 3000) "
              "INSERT INTO t(a, b) SELECT i, randomblob(1000) FROM r")
        m.sql("UPDATE t SET a = ?", i)
        m.sql("COMMIT")
        m.start("sql", sql="SELECT dust_checkpoint()", params=[])
        size = os.path.getsize(m.path)
        try:
            wait_until("a checkpoint under way",
                       lambda: os.path.exists(m.path + "-journal") or os.path.getsize(m.path) != size, 5, every=0.001)
        except Exception:
            pass
        m.kill9()
        assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]
        if plain(m.path, "SELECT count(*) FROM sqlite_master") != [(0,)]:
            assert len(plain(m.path, "SELECT DISTINCT a FROM t")) <= 1
        m.restart()
        assert m.sql("SELECT DISTINCT a FROM t") == [(i,)]
        assert m.one("SELECT count(*) FROM t") == 3000 * (i + 1)
        assert m.one("PRAGMA integrity_check") == "ok"


def test_majority_lost_and_back(box):
    """Two of three gone: no write is acknowledged, reads go on; when they are back, so are writes."""
    a, b, c = cluster_of_three(box)
    a.sql("INSERT INTO acked(who, seq) VALUES('x', 1)")
    box.settle(a, b, c)
    b.kill9()
    c.kill9()
    a.open(a.path, conn="short", timeout=0.5)
    e = a.error("INSERT INTO acked(who, seq) VALUES('x', 2)", conn="short", timeout=60)
    assert e.name in ("SQLITE_BUSY", "SQLITE_IOERR_COMMIT_ATOMIC"), e
    assert a.one("SELECT count(*) FROM acked") == 1
    later = a.start("sql", sql="INSERT INTO acked(who, seq) VALUES('x', 3)", params=[])
    b.restart(open_=False)
    b.get(b.start("open", conn="main", path=b.path), 60)
    a.get(later, 60)
    c.restart()
    box.same_files(a, b, c)
    seqs = [r[0] for r in c.sql("SELECT seq FROM acked ORDER BY id")]
    assert seqs[0] == 1 and 3 in seqs and len(seqs) == len(set(seqs))


@pytest.mark.sanitize
def test_frozen_leader(box):
    """SIGSTOP is worse than death: it comes back and believes it leads. What it had in flight when it was stopped is
    void, for the others have gone on without it: its writers are told so, and nothing was written."""
    members = cluster_of_three(box)
    leader = box.leader(*members)
    others = [m for m in members if m is not leader]
    for m in members:
        m.writer()
    wait_until("rows", lambda: all(m.writer_state()["n"] > 20 for m in members), 60)
    leader.freeze()
    n = [m.writer_state()["n"] for m in others]
    wait_until("rows from those left", lambda: all(m.writer_state()["n"] > k + 20 for m, k in zip(others, n)), 60)
    leader.thaw()
    n = leader.writer_state()["n"]
    wait_until("rows from the thawed", lambda: leader.writer_state()["n"] > n + 20, 60)
    for m in others:
        assert m.writer_stop()["errors"] == []
    assert {e["name"] for e in leader.writer_stop()["errors"]} <= {"SQLITE_BUSY_SNAPSHOT"}
    box.same_files(*members)
    check_rows(box, members, [m.name for m in members])


def led_by(m, id_):
    """Transfer leadership to m; it may refuse while it is behind, so ask again."""
    if m.role() != "leader":
        try:
            m.one("SELECT dust_transfer(?)", id_)
        except SqlError as e:
            if e.name != "SQLITE_BUSY":
                raise
    return m.role() == "leader"


def test_transfers_of_leadership_under_writes(box):
    members = cluster_of_three(box)
    for m in members:
        m.writer()
    ids = {m: m.id() for m in members}
    for i in range(scaled(6, 2)):
        target = members[i % 3]
        wait_until("%s leads" % target.name, lambda: led_by(target, ids[target]), 30, every=0.1)
        n = [m.writer_state()["n"] for m in members]
        wait_until("rows from all", lambda: all(m.writer_state()["n"] > k + 10 for m, k in zip(members, n)), 60)
    for m in members:
        assert m.writer_stop()["errors"] == []
    box.same_files(*members)
    check_rows(box, members, [m.name for m in members])


@pytest.mark.sanitize
def test_a_leader_that_is_gone_is_not_waited_for(box):
    """Its connections have ended. The election timeout of the others, half a minute at least, is for one that is silent."""
    members = box.cluster(3)
    members[0].sql("CREATE TABLE t(x)")
    leader = box.leader(*members)
    others = [m for m in members if m is not leader]
    for m in others:
        assert m.end() == 0
        m.restart(open_=False)
        m.open("file:%s?vfs=dust&election=30000" % m.path, uri=True)
    leader.sql("INSERT INTO t VALUES(1)")
    box.settle(*members)
    assert leader.role() == "leader"
    begun = time.monotonic()
    leader.kill9()
    wait_until("another one leads", lambda: any(m.role() == "leader" for m in others), 60)
    assert time.monotonic() - begun < 28
    others[0].sql("INSERT INTO t VALUES(2)", timeout=30)
    leader.restart()
    box.same_files(*members)
