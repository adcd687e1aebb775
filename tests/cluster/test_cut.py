"""A change of the cluster that was never agreed on: the member that has it in its log cuts it off and begins again."""
import pytest

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
