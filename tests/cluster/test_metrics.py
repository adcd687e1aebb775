"""What dust_metrics counts is what happened."""
import pytest

from cluster import SLOW, SqlError, Worker, scaled, wait_until


def metrics(m):
    return dict(m.sql("SELECT name, value FROM dust_metrics"))


def change(m, before):
    return {k: v - before[k] for k, v in metrics(m).items()}


def is_whole(m):
    """Each time has its numbers, and they are in order."""
    now = metrics(m)
    for name in ("turn", "commit", "log_write", "log_flush", "confirm", "checkpoint"):
        p50, p99, p999, most = (now["%s_us_%s" % (name, x)] for x in ("p50", "p99", "p999", "max"))
        count, total = now[name + "_count"], now[name + "_us_sum"]
        assert p50 <= p99 <= p999 <= most <= total or count == 0 and most == total == 0, (name, now)


@pytest.mark.sanitize
def test_a_cluster(box):
    a, b, c = members = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    box.settle(*members)
    before = [metrics(m) for m in members]
    n = scaled(40, 10)
    for i in range(n):
        a.sql("INSERT INTO t(v) VALUES(?)", i)
    box.settle(*members)
    after = [change(m, x) for m, x in zip(members, before)]
    assert [x["commits"] for x in after] == [n, 0, 0]
    assert [x["applied"] for x in after] == [n] * 3
    for x in after:
        assert x["applied_void"] == x["commits_void"] == x["commits_unknown"] == x["log_failures"] == 0
        assert n <= x["log_entries"] and 0 < x["log_writes"] <= x["log_entries"]
        assert 100 * n < x["log_bytes_written"] < 1000 * n + 4096
        assert x["log_write_count"] == x["log_writes"]
        assert 0 < x["log_flush_count"] <= x["log_entries"]
        assert x["messages_in"] > 0 and x["bytes_out"] > 0
    assert after[0]["commit_count"] == n and after[0]["turn_count"] >= n
    for m in members:
        is_whole(m)


def test_reads_and_checkpoints(box):
    a, b, c = members = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    box.settle(*members)
    b.sql("PRAGMA dust_consistency = linearizable")
    before = metrics(b)
    for _ in range(20):
        b.sql("SELECT count(*) FROM t")
    done = change(b, before)
    assert 20 <= done["confirm_count"] <= 25  # dust_metrics itself reads no page
    assert done["commits"] == done["applied"] == 0
    before = metrics(a)
    a.sql("INSERT INTO t(v) VALUES(1)")
    a.sql("SELECT dust_checkpoint()")
    assert change(a, before)["checkpoints"] >= 1
    assert change(a, before)["checkpoint_count"] >= 1


def test_each_commit_has_one_outcome(box):
    """A transaction is on its way when its member is cut off and another leader is elected: whatever its writer is told in
    the end is what is counted."""
    a, b, c = members = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    box.settle(*members)
    before = metrics(a)
    for m in (b, c):
        m.freeze()
    told = a.start("sql", conn="main", sql="INSERT INTO t(v) VALUES('on its way')", params=[])
    a.open(a.path, conn="second")
    wait_until("it is on its way", lambda: a.one("SELECT value FROM dust_status WHERE name = 'in_flight'", conn="second"))
    a.freeze()
    for m in (b, c):
        m.thaw()
    b.sql("INSERT INTO t(v) VALUES('by the next leader')")
    a.thaw()
    try:
        told.result(60 * SLOW)
        outcome = "commits"
    except SqlError as e:
        outcome = "commits_void" if e.name == "SQLITE_BUSY_SNAPSHOT" else "commits_unknown"
    box.settle(*members)
    done = change(a, before)
    assert {k: done[k] for k in ("commits", "commits_void", "commits_unknown")} == {
        **dict.fromkeys(("commits", "commits_void", "commits_unknown"), 0), outcome: 1}
    assert done["commit_count"] == 1
    assert done["leader_changes"] >= 1
    assert done["applied"] == (2 if outcome == "commits" else 1)


def test_an_attached_process_sees_its_hosts(box):
    a = box.cluster(1)[0]
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    w = Worker(box, "w")
    w.open(a.path)
    before = metrics(w)
    w.sql("INSERT INTO t(v) VALUES(1)")
    a.sql("INSERT INTO t(v) VALUES(2)")
    assert change(w, before)["commits"] == change(a, before)["commits"] == 2
    assert w.end() == 0


def test_no_member(box):
    """An ordinary database has no metrics."""
    w = Worker(box, "w")
    w.open(str(box.dir) + "/plain.db")
    assert w.sql("SELECT * FROM dust_metrics") == []
    assert w.end() == 0
