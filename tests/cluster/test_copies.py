"""Folders that are not what they seem: copies, old backups, removed members, strangers. Each is recognised, told why, and
never mixed with the cluster."""
import os
import re
import shutil
import time

import pytest

from cluster import SLOW, SqlError, copy_folder, plain, scaled, wait_until


def copy(m, to):
    """The member's file and folder, under another name."""
    shutil.copy(m.path, to)
    copy_folder(m.path + "-dust", to + "-dust")


def put_back(m, kept):
    os.unlink(m.path)
    shutil.rmtree(m.path + "-dust")
    shutil.copy(kept, m.path)
    copy_folder(kept + "-dust", m.path + "-dust")


def status(m):
    m.open(m.path, conn="status")
    m.sql("PRAGMA dust_consistency = stale", conn="status")  # it may never be confirmed
    return dict(m.sql("SELECT name, value FROM dust_status", conn="status"))


def member_file(m):
    with open(m.path + "-dust/member") as f:
        return f.read()


def failure(m):
    """Why it has stopped, None if it has not: from dust_status, or from the attempt to open it."""
    try:
        return status(m).get("failure")
    except SqlError as e:
        assert e.name in ("SQLITE_CANTOPEN", "SQLITE_READONLY"), e
        return e.text


def errors(m):
    return " ".join(str(v) for k, v in status(m).items() if "error" in k)


def refused(b, id_):
    """It has been told: it serves nothing, takes nothing, and is not started again, so it takes no number of the
    member's."""
    try:
        b.open(b.path, conn="later", timeout=1)
        rows = b.sql("SELECT count(*) FROM t", conn="later")
    except SqlError as e:
        assert e.name == "SQLITE_CANTOPEN", e
    else:
        raise AssertionError("it serves %r" % rows)
    try:
        b.open(b.path, conn="writes", timeout=1)
        b.sql("INSERT INTO t(v) VALUES('never')", conn="writes")
    except SqlError as e:
        assert e.name in ("SQLITE_READONLY", "SQLITE_CANTOPEN"), e
    else:
        raise AssertionError("it takes rows")
    b.kill9()
    starts = [x for x in member_file(b).split("\n") if x.startswith("starts=")]
    b.restart(open_=False)
    e = b.open_error(b.path)
    assert "copy" in e.text and "member %d" % id_ in e.text and "join anew" in e.text, e
    assert starts == [x for x in member_file(b).split("\n") if x.startswith("starts=")]


def three(box):
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a.sql("INSERT INTO t(v) VALUES('first')")
    box.settle(a, b, c)
    return a, b, c


def still_well(box, *members):
    """These go on as if nothing had been."""
    n = members[0].one("SELECT count(*) FROM t")
    for i, m in enumerate(members):
        m.sql("INSERT INTO t(v) VALUES(?)", "still well %d" % i)
    box.settle(*members)
    assert members[0].one("SELECT count(*) FROM t") == n + len(members)


@pytest.mark.sanitize
def test_copy_of_a_folder_started_instead(box):
    """Both are started, one after the other: whichever came first stays, the second is refused by its name."""
    a, b, c = three(box)
    id_ = b.id()
    b.kill9()
    kept = box.path("copy.db")
    copy(b, kept)
    twin = box.member("twin", path=kept, addr=b.address)
    twin.again()
    twin.sql("INSERT INTO t(v) VALUES('by the twin')")
    twin.kill9()
    b.restart(open_=False)
    why = wait_until("the original is told", lambda: failure(b), 30)
    assert "copy" in why and "member %d" % id_ in why, why
    refused(b, id_)
    if "stored its log" not in why:  # else it was told before it had said a word: its log lacks what the twin's had
        wait_until("the others say so", lambda: "member %d" % id_ in errors(a) + errors(c), 10)
    still_well(box, a, c)
    b.kill9()
    twin.restart()  # it is the member now
    still_well(box, a, c, twin)
    assert a.one("SELECT count(*) FROM t WHERE v = 'never'") == 0
    box.same_files(a, c, twin)


def test_two_processes_of_one_folder(box):
    a, b, c = three(box)
    kept = box.path("copy.db")
    b.checkpoint()
    copy(b, kept)
    twin = box.member("twin", path=kept, addr=b.address)
    e = twin.open_error(kept)
    assert b.address in e.text and "use" in e.text, e
    still_well(box, a, b, c)


@pytest.mark.sanitize
def test_old_backup_of_a_folder(box):
    a, b, c = three(box)
    id_ = b.id()
    b.kill9()
    kept = box.path("backup.db")
    copy(b, kept)
    for i in range(2):
        b.restart()
        b.sql("INSERT INTO t(v) VALUES('later')")
        b.kill9()
    put_back(b, kept)
    b.restart(open_=False)
    why = wait_until("it is told", lambda: failure(b), 30)
    assert "older" in why and "member %d" % id_ in why and "join anew" in why, why
    refused(b, id_)
    still_well(box, a, c)
    # What the message says.
    b.kill9()
    a.one("SELECT dust_remove(?)", id_)
    os.unlink(b.path)
    shutil.rmtree(b.path + "-dust")
    b.restart(open_=False)
    b.join(a)
    still_well(box, a, b, c)
    box.same_files(a, b, c)


def test_backup_made_while_it_ran(box):
    """The number of starts is right, but its log is shorter than what it had acknowledged."""
    a, b, c = three(box)
    box.leader(a, b, c)
    b_id = b.id()
    if b.role() == "leader":
        b.one("SELECT dust_transfer(?)", a.id())
        wait_until("another leads", lambda: a.role() == "leader", 20)
    kept = box.path("backup.db")
    b.checkpoint()
    b.freeze()
    copy(b, kept)
    b.thaw()
    for i in range(scaled(50, 20)):
        a.sql("INSERT INTO t(v) VALUES(?)", i)
    box.settle(a, b, c)
    b.kill9()
    put_back(b, kept)
    b.restart(open_=False)
    why = wait_until("it finds out", lambda: failure(b), 30)
    assert "older copy" in why, why
    refused(b, b_id)
    still_well(box, a, c)
    a.open(":memory:", conn="tool")
    a.one("SELECT dust_recover(?, ?, 'force')", b.path, box.path("recovered.db"), conn="tool")
    assert [r[0] for r in plain(box.path("recovered.db"), "SELECT v FROM t")] == ["first"]


@pytest.mark.parametrize("starts", [1, 2])
def test_known_after_all_have_restarted(box, starts):
    """The numbers of starts are on disk, and which one it was: a copy made at rest takes the number of the next."""
    a, b, c = three(box)
    b.kill9()
    kept = box.path("backup.db")
    copy(b, kept)
    for i in range(starts):
        b.restart()
        b.sql("INSERT INTO t(v) VALUES('later')")
        b.kill9()
    a.kill9()
    c.kill9()
    put_back(b, kept)
    for m in (a, b, c):
        m.restart(open_=False)
    opens = [m.start("open", conn="main", path=m.path) for m in (a, b, c)]
    for m, f in zip((a, b, c), opens):
        m.get(f, 60)
    assert "older" in wait_until("it is told", lambda: failure(b), 30)
    still_well(box, a, c)


def test_known_to_those_who_never_heard_it(box):
    """A follower hears only the leader. It knows all the same which start another follower is at, for the leader says
    so: with the old leader gone, who is left does not vote with an old copy."""
    a, b, c = three(box)
    if a.role() != "leader":
        box.leader(a, b, c).one("SELECT dust_transfer(?)", a.id())
        wait_until("a leads", lambda: a.role() == "leader", 20)
    id_ = b.id()
    kept = box.path("backup.db")
    for i in range(3):
        b.kill9()
        if i == 0:
            copy(b, kept)
        b.restart()
        b.sql("INSERT INTO t(v) VALUES('later')")
    starts = int(re.search(r"^starts=(\d+)$", member_file(b), re.M).group(1))
    wait_until("c has heard of it", lambda: "seen=%d:%d:" % (id_, starts) in member_file(c), 20)
    a.kill9()
    b.kill9()
    put_back(b, kept)
    b.restart(open_=False)
    why = wait_until("it is told", lambda: failure(b), 30)
    assert "older" in why and c.address in why, why
    a.restart()
    still_well(box, a, c)
    assert a.one("SELECT count(*) FROM t WHERE v = 'later'") == 3


def test_removed_member_returns(box):
    a, b, c = three(box)
    id_ = b.id()
    b.checkpoint()
    b.kill9()
    a.one("SELECT dust_remove(?)", id_)
    b.restart(open_=False)
    why = wait_until("it is told", lambda: failure(b), 30)
    assert "removed" in why, why
    assert b.one("SELECT v FROM t", conn="status") == "first"
    still_well(box, a, c)
    assert len(a.sql("SELECT * FROM dust_members")) == 2
    assert "dust_leave()" in why, why
    b.one("SELECT dust_leave()", conn="status")
    assert not os.path.exists(b.path + "-dust")
    b.kill9()
    b.restart()
    b.sql("INSERT INTO t(v) VALUES('its own')")
    assert plain(b.path, "SELECT v FROM t") == [("first",), ("its own",)]
    assert a.one("SELECT count(*) FROM t WHERE v = 'its own'") == 0


@pytest.mark.sanitize
def test_stranger_on_a_reused_address(box):
    a, b, c = three(box)
    b.kill9()
    other = box.member("other", addr=b.address).create()
    other.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    other.sql("INSERT INTO t(v) VALUES('of another cluster')")
    wait_until("the stranger says who talks to it", lambda: a.address in errors(other) + " " and "another cluster" in
               errors(other) or c.address in errors(other) and "another cluster" in errors(other), 30)
    assert "member" in errors(other)
    still_well(box, a, c)
    assert other.sql("SELECT v FROM t") == [("of another cluster",)]
    assert a.sql("SELECT count(*) FROM t WHERE v = 'of another cluster'") == [(0,)]
    other.kill9()
    b.restart()
    box.same_files(a, b, c)
    assert plain(other.path, "PRAGMA integrity_check") == [("ok",)]


# ---- moved away under a running member ----

def alone(box):
    """The only member, with a row in app.db, a copy of that, and one more row in the log."""
    a = box.member("a").create()
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a.sql("INSERT INTO t(v) VALUES('first')")
    a.checkpoint()
    shutil.copy(a.path, a.path + ".old")
    a.sql("INSERT INTO t(v) VALUES('second')")
    return a


def away(m, name):
    """It has noticed, says so by name, and takes nothing."""
    m.sql("PRAGMA dust_consistency = stale")
    wait_until("it is noticed", lambda: m.role() == "recovering" and name + " is not " in m.status().get("failure", ""), 30)
    e = m.error("INSERT INTO t(v) VALUES('never')")
    assert e.name == "SQLITE_READONLY_DBMOVED", e
    assert "removed, renamed or replaced" in m.status()["connection_error"]
    e = m.error("SELECT dust_checkpoint()")
    assert name in e.text and "under its name" in e.text, e


def write_until_refused(m):
    """What was acknowledged until then."""
    acked = ["first", "second"]
    end = time.monotonic() + 30 * SLOW
    while True:
        assert time.monotonic() < end, "nothing is noticed"
        v = "row %d" % len(acked)
        try:
            m.sql("INSERT INTO t(v, id) VALUES(?, ?)", v, len(acked) + 1)
        except SqlError as e:
            # (IOERR: the log was in need of another file before anybody had looked)
            assert e.name in ("SQLITE_READONLY_DBMOVED", "SQLITE_IOERR_COMMIT_ATOMIC", "SQLITE_IOERR"), e
            return acked
        acked.append(v)


def back(m):
    """It goes on by itself."""
    m.sql("PRAGMA dust_consistency = local")
    m.open(m.path, conn="short", timeout=1)

    def writes():
        try:
            m.sql("INSERT INTO t(v) VALUES('again')", conn="short")
        except SqlError as e:
            assert e.name in ("SQLITE_READONLY_DBMOVED", "SQLITE_BUSY", "SQLITE_BUSY_SNAPSHOT", "SQLITE_CANTOPEN"), e
            return False
        return True
    wait_until("it writes again", writes, 60)
    wait_until("it says so", lambda: "failure" not in m.status(), 30)
    m.close("short")


def all_there(m, acked):
    rows = [r[0] for r in m.sql("SELECT v FROM t ORDER BY id")]
    assert rows[:len(acked)] == acked
    assert "never" not in rows
    assert m.one("PRAGMA integrity_check") == "ok"


@pytest.mark.sanitize
def test_another_file_in_place_of_app_db(box):
    """The log is not cut for what went elsewhere: it leads from the older file to all that was acknowledged."""
    a = alone(box)
    os.link(a.path, a.path + ".right")
    os.rename(a.path + ".old", a.path)
    e = a.error("SELECT dust_checkpoint()")
    assert a.path in e.text and "replaced" in e.text, e
    acked = write_until_refused(a)
    away(a, a.path)
    assert [r[0] for r in a.sql("SELECT v FROM t ORDER BY id")][:len(acked)] == acked  # reading goes on
    assert plain(a.path, "SELECT v FROM t") == [("first",)]  # nothing was written to it
    e = a.open_error(a.path, conn="later")
    assert e.name == "SQLITE_CANTOPEN" and "is not the file any more" in e.text, e
    a.kill9()
    a.restart()
    all_there(a, acked)
    a.sql("INSERT INTO t(v) VALUES('on')")
    a.checkpoint()
    assert plain(a.path, "SELECT count(*) FROM t") == a.sql("SELECT count(*) FROM t")


@pytest.mark.parametrize("what", ["", "-dust", "-dust/raft"])
def test_moved_away_and_back(box, what):
    a = alone(box)
    path = a.path + what
    os.rename(path, path + ".aside")
    acked = write_until_refused(a)
    away(a, path)
    if what == "":
        e = a.open_error(a.path, conn="later")
        assert e.name == "SQLITE_CANTOPEN" and "is not the file any more" in e.text, e
    assert not os.path.exists(path)  # nothing is made in its place
    os.rename(path + ".aside", path)
    back(a)
    all_there(a, acked)
    a.checkpoint()
    a.kill9()
    a.restart()
    all_there(a, acked)


@pytest.mark.parametrize("what", ["", "-dust"])
def test_removed_and_saved_by_a_copy(box, what):
    """As the error says."""
    a = alone(box)
    if what:
        os.rename(a.path + what, box.path("gone"))  # what is being made in it meanwhile would keep it
        shutil.rmtree(box.path("gone"), ignore_errors=True)
    else:
        os.unlink(a.path)
    acked = write_until_refused(a)
    away(a, a.path + what)
    a.sql("VACUUM INTO ?", box.path("saved.db"))
    a.kill9()
    b = box.member("b", path=box.path("saved.db")).create()
    all_there(b, acked)


@pytest.mark.parametrize("before", [0, 900])
def test_another_folder_in_its_place(box, before):
    """A copy of the right one is another one all the same: what is written to the one that is open is not in it. Nor does the
    log go on in another one when its file is full."""
    a = alone(box)
    dust = a.path + "-dust"
    a.py("""
        for i in range(arg):
            conn.execute("UPDATE t SET v = v WHERE id = 1")
        """, before)
    os.rename(dust, dust + ".aside")
    copy_folder(dust + ".aside", dust)
    acked = write_until_refused(a)
    away(a, dust)
    os.rename(dust, box.path("gone"))
    os.rename(dust + ".aside", dust)
    back(a)
    all_there(a, acked)


@pytest.mark.sanitize
@pytest.mark.parametrize("where", ["follower", "leader"])
def test_the_others_go_on_without_it(box, where):
    a, b, c = three(box)
    leader = box.leader(a, b, c)
    m = leader if where == "leader" else [x for x in (a, b, c) if x is not leader][0]
    others = [x for x in (a, b, c) if x is not m]
    os.rename(m.path, m.path + ".aside")
    away(m, m.path)
    box.leader(*others)
    for x in others:
        x.sql("INSERT INTO t(v) VALUES(?)", x.name)
    os.rename(m.path + ".aside", m.path)
    back(m)
    box.same_files(a, b, c)
    assert sorted(r[0] for r in m.sql("SELECT v FROM t WHERE v <> 'again'")) == sorted(["first"] + [x.name for x in others])


def test_an_attached_process_is_told(box):
    a = alone(box)
    at = box.member("at", path=a.path)
    at.again(timeout=1)
    at.sql("INSERT INTO t(v) VALUES('attached')")
    os.rename(a.path, a.path + ".aside")
    away(a, a.path)
    e = at.error("INSERT INTO t(v) VALUES('never')")
    assert e.name == "SQLITE_READONLY_DBMOVED", e
    os.rename(a.path + ".aside", a.path)
    back(at)
    all_there(a, ["first", "second", "attached"])


def test_links_and_relative_names_are_no_reason(box):
    """Each checkpoint looks. Nor is a database that is made anew (VACUUM), or a change of the working folder."""
    os.mkdir(box.path("real"))
    os.symlink(box.path("real"), box.path("folder"))
    os.symlink(os.path.join("folder", "a.db"), box.path("link.db"))
    plain(box.path("real/a.db"), "CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    a = box.member("a", path="link.db")  # programs begin in the box's folder
    a.create()
    a.py("import os; os.chdir('/')")
    for _ in range(3):
        a.sql("INSERT INTO t(v) VALUES(zeroblob(20000))")
        a.checkpoint()
        a.sql("VACUUM")
        a.checkpoint()
    assert a.role() == "leader" and "failure" not in a.status()
    a.one("SELECT dust_leave()")
    assert os.path.islink(box.path("link.db"))
    assert plain(box.path("real/a.db"), "SELECT count(*) FROM t") == [(3,)]
