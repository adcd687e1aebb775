"""Joining, leaving, and what members are."""
import os
import re

import pytest

from cluster import Dead, SLOW, plain, scaled, wait_until


def roles(m):
    return {r[0]: r[1] for r in m.sql("SELECT address, role FROM dust_members")}


@pytest.mark.sanitize
def test_grow_and_shrink(box):
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    others = [box.member(n) for n in "bcde"]
    known = [a]
    for m in others:
        m.join(known[-1])  # through whoever: the leader is told
        m.sql("INSERT INTO t VALUES(?)", m.name)
        known.append(m)
    head = box.settle(*known)
    for m in known:
        assert len(roles(m)) == 5
        assert m.head() == head
        assert m.one("SELECT count(*) FROM dust_members WHERE is_leader") == 1
        assert m.sql("SELECT address, id FROM dust_members WHERE is_self") == [(m.address, m.id())]
    assert len({m.id() for m in known}) == 5
    # Remove one from another.
    gone = known.pop(1)
    known[1].one("SELECT dust_remove(?)", gone.id())
    wait_until("everybody knows", lambda: all(gone.address not in roles(m) for m in known), 20)
    e = None
    gone.open(gone.path, conn="short", timeout=0.5)
    e = gone.error("INSERT INTO t VALUES('removed')", conn="short")
    assert e.text, e
    for m in known:
        m.sql("INSERT INTO t VALUES(?)", m.name + " again")
    box.same_files(*known)


def test_standby_promote_demote(box):
    a = box.member("a").create()
    b = box.member("b")
    b.open("file:%s?vfs=dust&bind=%s&join=%s&role=standby" % (b.path, b.address, a.address), uri=True)
    assert roles(a) == {a.address: "voter", b.address: "standby"}
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b)
    b.sql("INSERT INTO t VALUES(1)")
    b.one("SELECT dust_promote(?)", b.id())
    wait_until("b is a voter", lambda: roles(a)[b.address] == "voter" == roles(b)[b.address], 20)
    a.sql("INSERT INTO t VALUES(2)")
    a.one("SELECT dust_demote(?)", b.id())
    wait_until("b is a standby", lambda: roles(a)[b.address] == "standby" == roles(b)[b.address], 20)
    b.kill9()
    a.sql("INSERT INTO t VALUES(3)")  # its vote is not needed
    b.restart()
    box.same_files(a, b)


def test_transfer(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b, c)
    for target in (b, c, a):
        a.one("SELECT dust_transfer(?)", target.id())
        assert box.leader(a, b, c) is target
        a.sql("INSERT INTO t VALUES(1)")
        assert target.one("SELECT dust_leader()") == target.address
    box.same_files(a, b, c)


def test_transfer_under_load(box):
    """Every one of them succeeds, though entries are on their way to the next leader, and no writer hears of it."""
    members = box.cluster(3)
    members[0].sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    box.settle(*members)
    for m in members:
        for i in range(2):
            m.writer("%s%d" % (m.name, i))
    for i in range(scaled(12, 6)):
        target = members[(i + 1) % 3]
        before = target.index()
        members[2 - i % 3].one("SELECT dust_transfer(?)", target.id())  # also asked of one that is not concerned
        wait_until("they go on", lambda: target.index() > before + 100, 60)
    states = [m.writer_stop("%s%d" % (m.name, i)) for m in members for i in range(2)]
    assert [s["errors"] for s in states if s["errors"]] == []
    box.same_files(*members)


def test_leave_makes_an_ordinary_database(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    a.sql("INSERT INTO t VALUES(1)")
    box.settle(a, b, c)
    leader = box.leader(a, b, c)
    for m in ([m for m in (a, b, c) if m is not leader] + [leader]):
        m.one("SELECT dust_leave()", timeout=90)
        assert not os.path.exists(m.path + "-dust")
        assert m.end() == 0
        assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]
        plain(m.path, "INSERT INTO t VALUES(2)")
        assert plain(m.path, "SELECT count(*) FROM t") == [(2,)]
        assert plain(m.path, "PRAGMA journal_mode=WAL") == [("wal",)]


def test_left_and_started_anew(box):
    a, b = box.cluster(2)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b)
    b.one("SELECT dust_leave()", timeout=90)
    b.close()
    b.again()
    b.sql("INSERT INTO t VALUES(1)")
    assert a.one("SELECT count(*) FROM t") == 0
    b.sql("SELECT dust_start(?)", b.address)
    b.sql("INSERT INTO t VALUES(2)")
    assert b.one("SELECT count(*) FROM dust_members") == 1
    a.sql("INSERT INTO t VALUES(3)")
    assert b.one("SELECT count(*) FROM t") == 2
    assert a.one("SELECT count(*) FROM t") == 1


def test_remove_a_dead_member_and_replace_it(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b, c)
    dead = c.id()
    c.kill9()
    a.one("SELECT dust_remove(?)", dead)
    d = box.member("d").join(b)
    assert d.id() != dead
    d.sql("INSERT INTO t VALUES('d')")
    box.same_files(a, b, d)


def leader_with_much(box):
    """Who joins it is a member for a while before it has everything."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(x)")
    a.sql("INSERT INTO t SELECT randomblob(1000000) FROM (VALUES(1),(1),(1),(1),(1),(1),(1),(1),(1),(1))")
    a.checkpoint()
    return a


def test_join_that_comes_to_a_stop(box):
    """Taken in, and then the leader is gone: the statement ends with an error that says what to do, which works."""
    a = leader_with_much(box)
    b = box.member("b")
    uri = "file:%s?vfs=dust&timeout=500&bind=%s&join=%s" % (b.path, b.address, a.address)
    joining = b.start("open", conn="main", path=uri, uri=True)
    wait_until("it is taken in", lambda: os.path.exists(b.path + "-dust/member"), 20, every=0.001)
    a.freeze()
    said = str(joining.exception(30 * SLOW))
    left = re.search(r"taken in as member (\d+), .*Remove member \1 at another one", said)
    assert left, said
    assert not os.path.exists(b.path + "-dust")
    a.thaw()
    a.one("SELECT dust_remove(?)", int(left.group(1)))
    b.join(a)
    box.same_files(a, b)


def member_file(m):
    with open(m.path + "-dust/member") as f:
        return f.read()


def join_cut_short(box):
    """A leader, and one that it has taken in, as a standby, but that was killed before anything had come."""
    a = leader_with_much(box)
    b = box.member("b")
    b.open(b.path)
    b.start("sql", conn="main", sql="SELECT dust_join(?, ?, ?)", params=[b.address, a.address, box.keyfile])
    wait_until("it is taken in", lambda: os.path.exists(b.path + "-dust/member"), 20, every=0.001)
    b.kill9()
    assert roles(a) == {a.address: "voter", b.address: "standby"}
    return a, b, int(re.search(r"^id=(\d+)$", member_file(b), re.M).group(1))


def test_leave_after_a_join_cut_short(box):
    """It does not know its cluster, but its cluster knows it: it is removed, or stays and says what to do."""
    a, b, number = join_cut_short(box)
    a.freeze()
    b.restart(open_=False)
    b.open("file:%s?vfs=dust&timeout=500" % b.path, uri=True)
    e = b.error("SELECT dust_leave()")
    assert "dust_remove(%d) at another member" % number in e.text, e
    assert os.path.exists(b.path + "-dust/member")
    a.thaw()
    box.leader(a, b)
    b.one("SELECT dust_leave()", timeout=90)
    assert not os.path.exists(b.path + "-dust")
    assert roles(a) == {a.address: "voter"}
    assert b.end() == 0
    assert plain(b.path, "SELECT count(*) FROM t") == [(10,)]


def test_leave_at_once_after_a_join_cut_short(box):
    """The call is there before the leader has been heard."""
    a, b, _ = join_cut_short(box)
    b.restart()
    b.one("SELECT dust_leave()", timeout=90)
    assert not os.path.exists(b.path + "-dust")
    assert roles(a) == {a.address: "voter"}


def test_join_cut_short_goes_on(box):
    """Opened again it becomes the voter that it was to be; and then what it is made."""
    a, b, number = join_cut_short(box)
    a.freeze()
    b.restart(open_=False)
    b.open("file:%s?vfs=dust&consistency=stale" % b.path, uri=True)
    assert b.status()["promotion"].startswith("due")
    a.thaw()
    b.close()
    b.again()
    wait_until("b is a voter", lambda: roles(a)[b.address] == "voter" == roles(b).get(b.address), 30)
    wait_until("b has noted it", lambda: "promotion=" not in member_file(b), 20)
    assert "promotion" not in b.status()
    b.sql("INSERT INTO t VALUES('b')")
    a.one("SELECT dust_demote(?)", number)
    wait_until("b knows", lambda: roles(b)[b.address] == "standby", 20)
    b.kill9()
    b.restart()
    assert "promotion" not in b.status()
    b.sql("INSERT INTO t VALUES('b')")
    box.settle(a, b)
    assert roles(a)[b.address] == "standby"


def test_join_cut_short_and_demoted(box):
    """While it is down, and a standby already: it does not promote itself, and can be promoted."""
    a, b, number = join_cut_short(box)
    a.one("SELECT dust_demote(?)", number)
    b.restart()
    wait_until("b has noted it", lambda: "role=standby" in member_file(b), 30)
    assert "promotion=" not in member_file(b)
    box.settle(a, b)
    assert roles(a)[b.address] == "standby"
    a.one("SELECT dust_promote(?)", number)
    wait_until("b is a voter", lambda: roles(a)[b.address] == "voter" == roles(b)[b.address], 20)
    box.same_files(a, b)


def test_remove_a_leader_that_cannot_hand_over(box):
    """It is removed, or the answer is an error; not done means not said to be done."""
    a, b = box.cluster(2)
    assert box.leader(a, b) is a
    a.sql("CREATE TABLE t(x)")
    box.settle(a, b)
    a.again(conn="look")
    b.freeze()
    removing = a.start("sql", conn="main", sql="SELECT dust_remove(%d)" % a.id(), params=[])
    wait_until("the transfer has failed",
               lambda: removing.done() or a.one("SELECT dust_role()", conn="look") != "leader", 20)
    b.thaw()
    a.get(removing, 60)
    wait_until("b leads alone", lambda: b.one("SELECT group_concat(id) FROM dust_members") == str(b.id()), 30)
    b.sql("INSERT INTO t VALUES(1)")


def test_every_member_sees_who_is_up(box):
    a, b, c = members = box.cluster(3)

    def states(m):
        return dict(m.sql("SELECT address, state FROM dust_members"))

    for m in members:
        wait_until("%s sees all up" % m.name, lambda: set(states(m).values()) == {"up"}, 20)
        lags = m.sql("SELECT lag, last_contact_ms FROM dust_members WHERE NOT is_self")
        assert len(lags) == 2 and all(lag is not None and ms is not None for lag, ms in lags), lags
    leader = box.leader(*members)
    gone = next(m for m in members if m is not leader)
    gone.kill9()
    for m in members:
        if m is not gone:
            wait_until("%s sees who is down" % m.name, lambda: sorted(states(m).values()) == ["down", "up", "up"], 20)
            assert states(m)[gone.address] == "down"
    gone.restart()
    for m in members:
        wait_until("%s sees all up again" % m.name, lambda: set(states(m).values()) == {"up"}, 20)
    leader.kill9()
    for m in members:
        if m is not leader:
            wait_until("%s sees that the leader is down" % m.name, lambda: states(m)[leader.address] == "down", 20)
            assert sorted(states(m).values()) == ["down", "up", "up"]


def test_status_and_functions(box):
    a, b = box.cluster(2)
    for m in (a, b):
        s = m.status()
        assert s["version"] == m.one("SELECT dust_version()")
        assert s["head"] == m.head()
        assert s["id"] == m.id()
        assert s["address"] == m.address
        assert m.one("SELECT dust_leader()") == a.address
    # wait
    assert b.one("SELECT dust_wait(?, 10000)", a.index()) == 1
    assert b.one("SELECT dust_wait(?, 50)", b.index() + 1000) == 0
    for bad in ("dust_wait(-1, 10)", "dust_wait(1, -10)", "dust_remove(0)", "dust_remove(123456789)", "dust_promote(-1)",
                "dust_transfer(99999)", "dust_demote('x')"):
        assert a.error("SELECT " + bad).text, bad
    # Tables are read-only.
    assert a.error("INSERT INTO dust_members(id) VALUES(1)").text
    assert a.error("DELETE FROM dust_log").text


def test_killed_as_it_was_started(box):
    """Before its log began with a snapshot: it gets one when it is started again, and others can join."""
    for i in range(20):
        a = box.member("a%d" % i)
        a.open(a.path)
        a.sql("CREATE TABLE t(x)")
        with pytest.raises(Dead):
            a.py("import signal\nconn.execute('SELECT dust_start(?)', (arg,))\nos.kill(os.getpid(), signal.SIGKILL)",
                 a.address)
        if not os.path.exists(a.path + "-dust/raft/snapshot"):
            break
    else:
        pytest.fail("the first snapshot is always there")
    a.restart()
    b = box.member("b").join(a)
    b.sql("INSERT INTO t VALUES(1)")
    assert a.one("SELECT x FROM t") == 1
    box.same_files(a, b)
