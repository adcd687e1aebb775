"""What was never agreed on is cut off the log: a change of the cluster, with which the member begins again; transactions,
also if the disk does not let it."""
import resource

import pytest

import raftlog
from cluster import SqlError, wait_until


def reports(m):
    return [v for k, v in m.status().items() if k == "last_error" or k.startswith("error_")]


@pytest.mark.sanitize
def test_a_change_that_was_not_agreed(box):
    """The leader alone writes a change of membership into its log, and is overtaken by the others. A transaction that
    was under way on it either waits until that is over, or was made on a version that the others went on from."""
    a, b, c = members = [box.member(n) for n in "abc"]
    for m in members:  # a leader that hears nobody steps down after this time: enough for a slow machine
        m.open("file:%s?vfs=dust&election=4000&bind=%s%s" % (m.path, m.address, "&join=" + a.address if m is not a else ""),
               uri=True)
    a.sql("CREATE TABLE t(x)")
    box.settle(*members)
    target = c.id()
    stored = a.status()["stored_index"]
    b.kill9()
    c.kill9()
    a.open(a.path, conn="change")
    a.open(a.path, conn="write")
    change = a.start("sql", conn="change", sql="SELECT dust_demote(?)", params=[target])
    wait_until("the change is in the leader's log", lambda: a.status()["stored_index"] > stored, 20)
    row = a.start("sql", conn="write", sql="INSERT INTO t VALUES('alone')", params=[])
    a.freeze()
    b.restart()
    c.restart()
    b.sql("INSERT INTO t VALUES('agreed')", timeout=90)
    a.thaw()
    wait_until("a has cut its log", lambda: any("the log is cut from entry" in r for r in reports(a)), 60)
    expected = ["after", "agreed", "alone"]
    try:
        a.get(row, 90)
    except SqlError as e:
        assert e.name == "SQLITE_BUSY_SNAPSHOT", e
        expected.remove("alone")
    try:
        a.get(change, 90)  # asked of the new leader again, if there was time
    except SqlError as e:
        assert e.name.startswith("SQLITE_BUSY") or "leader" in e.text, e
    a.sql("INSERT INTO t VALUES('after')", timeout=90)
    box.same_files(a, b, c)
    assert sorted(r[0] for r in c.sql("SELECT x FROM t")) == expected
    # And it can still lead, and change.
    a.one("SELECT dust_transfer(?)", a.id(), timeout=90)
    assert box.leader(a, b, c) is a
    a.one("SELECT dust_demote(?)", target, timeout=90)
    wait_until("c is a standby", lambda: c.sql("SELECT role FROM dust_members WHERE is_self") == [("standby",)], 30)
    c.one("SELECT dust_promote(?)", target, timeout=90)
    a.kill9()
    a.restart()
    a.sql("INSERT INTO t VALUES('again')", timeout=90)
    box.same_files(a, b, c)


def test_a_log_that_cannot_be_cut(box):
    """A leader that was overtaken cannot write what replaces its entries that were not agreed. What comes after must not
    get behind those."""
    a, b, c = members = [box.member(n) for n in "abc"]
    for m in members:  # as above
        m.open("file:%s?vfs=dust&election=4000&bind=%s%s" % (m.path, m.address, "&join=" + a.address if m is not a else ""),
               uri=True)
    a.sql("CREATE TABLE t(x)")
    box.settle(*members)
    stored = a.status()["stored_index"]
    b.kill9()
    c.kill9()
    alone = []
    for i in range(3):
        a.open(a.path, conn="alone%d" % i)
        alone.append(a.start("sql", conn="alone%d" % i, sql="INSERT INTO t VALUES('alone')", params=[]))
    wait_until("they are in the leader's log", lambda: a.status()["stored_index"] == stored + 3, 20)
    a.freeze()
    b.restart()
    c.restart()
    b.sql("INSERT INTO t VALUES('agreed')", timeout=90)
    # It can write no file beyond where its log ends now.
    raft = a.path + "-dust/raft"
    before = raftlog.log(raft)
    assert before[-1].last == stored + 3
    _, hard = resource.prlimit(a.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(a.pid, resource.RLIMIT_FSIZE, (before[-1].end, hard))
    a.thaw()
    wait_until("a notices", lambda: any("a write to the log failed" in r for r in reports(a)), 60)
    for i in range(20):
        b.sql("INSERT INTO t VALUES(?)", "more%d" % i, timeout=90)
    assert [x.seq for x in raftlog.log(raft)] == [x.seq for x in before]  # what was there is there
    resource.prlimit(a.pid, resource.RLIMIT_FSIZE, (hard, hard))
    for job in alone:
        with pytest.raises(SqlError) as e:
            a.get(job, 90)
        assert e.value.name == "SQLITE_BUSY_SNAPSHOT", e.value

    def goes_on():
        try:
            a.sql("INSERT INTO t VALUES('after')", timeout=90)
            return True
        except SqlError as error:
            assert error.name in ("SQLITE_IOERR", "SQLITE_FULL"), error  # it has not begun anew yet
            return False

    wait_until("a writes again", goes_on, 60, every=0.1)
    box.same_files(*members)
    for m in members:
        m.kill9()
    for m in members:
        m.restart()
    a.sql("INSERT INTO t VALUES('again')", timeout=90)
    box.same_files(*members)
    assert sorted(r[0] for r in a.sql("SELECT x FROM t")) == sorted(
        ["agreed", "after", "again"] + ["more%d" % i for i in range(20)])
