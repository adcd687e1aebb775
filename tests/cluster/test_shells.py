"""Three stock shells: start, join, ordinary SQL and dot-commands in all of them."""
import os

import pytest

from cluster import address, different, plain


@pytest.mark.sanitize
def test_three_shells(box):
    addr = {m: address() for m in "abc"}
    sh = {m: box.shell(box.path(m + ".db"), m) for m in "abc"}
    assert sh["a"].run("SELECT dust_start('%s');" % addr["a"]).strip() == addr["a"]
    sh["a"].run("CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT);")
    for m in "bc":
        sh[m].run("SELECT dust_join('%s', '%s');" % (addr[m], addr["a"]))
    for m in "abc":
        sh[m].run("INSERT INTO people(name) VALUES('from %s');" % m)
    for m in "abc":
        index = sh["c"].run("SELECT dust_index();").strip()
        assert sh[m].run("SELECT dust_wait(%s, 20000);" % index).strip() == "1"
        assert sh[m].run("SELECT name FROM people ORDER BY id;").split("\n")[:3] == ["from a", "from b", "from c"]

    # Dot-commands, each in every shell.
    for m in "abc":
        assert sh[m].run(".tables").split() == ["people"]
        assert "CREATE TABLE people" in sh[m].run(".schema")
    with open(box.path("in.csv"), "w") as f:
        f.writelines("%d,imported %d\n" % (i, i) for i in range(100, 200))
    for i, m in enumerate("abc"):
        sh[m].run("CREATE TABLE imp%d(id INTEGER PRIMARY KEY, name TEXT);" % i)
        sh[m].run(".mode csv\n.import in.csv imp%d\n.mode list" % i)
    index = max(int(sh[m].run("SELECT dust_index();")) for m in "abc")
    dumps = set()
    for m in "abc":
        sh[m].run("SELECT dust_wait(%d, 20000);" % index)
        for i in range(3):
            assert sh[m].run("SELECT count(*), max(name) FROM imp%d;" % i).strip() == "100|imported 199"
        dump = sh[m].run(".dump")
        assert "CREATE TABLE people" in dump and dump.count("imported") == 300
        dumps.add(dump)
    assert len(dumps) == 1
    assert len({sh[m].run("SELECT dust_head();") for m in "abc"}) == 1
    assert sh["b"].run("SELECT count(*) FROM dust_members;").strip() == "3"

    # Leaving a shell is a clean end: the file is complete, and read by plain SQLite.
    for m in "cba":
        sh[m].send(".quit")
    for m in "abc":
        assert sh[m].end() == 0
    different(box.path("a.db"), box.path("b.db"), box.path("c.db"))


def test_restore_and_clone_through_shell(box):
    """.restore, .backup, .clone, .recover-free commands that copy whole databases."""
    a = box.shell(box.path("a.db"), "a")
    a.run("SELECT dust_start('%s');" % address())
    a.run("CREATE TABLE t(x); INSERT INTO t SELECT value FROM generate_series(1, 500);")
    a.run(".backup copy.db")
    assert a.run("SELECT sum(x) FROM t;").strip() == "125250"
    plain = box.shell(box.path("copy.db"), "plain", load=False)
    assert plain.run("SELECT sum(x) FROM t; PRAGMA integrity_check;").split() == ["125250", "ok"]
    plain.run("INSERT INTO t VALUES(1);")  # a copy by the backup API is an ordinary database
    a.run(".save saved.db")
    saved = box.shell(box.path("saved.db"), "saved", load=False)
    assert saved.run("SELECT sum(x) FROM t;").strip() == "125250"


def test_second_process_shares_it(box):
    """A shell on a member that another one hosts reads and writes as that one does, and goes on without it."""
    a = box.shell(box.path("a.db"), "a")
    a.run("SELECT dust_start('%s');" % address())
    a.run("CREATE TABLE t(x);")
    other = box.shell(name="other")
    other.run(".timeout 30000\n.open a.db")
    assert other.run("INSERT INTO t VALUES(1) RETURNING x; SELECT dust_role();").split() == ["1", "leader"]
    assert a.run("SELECT count(*) FROM t;").strip() == "1"
    a.send(".quit")
    assert a.end() == 0
    assert other.run("INSERT INTO t VALUES(2); SELECT count(*) FROM t;").strip() == "2"
    other.send(".quit")
    assert other.end() == 0
    assert plain(box.path("a.db"), "SELECT sum(x) FROM t") == [(3,)]


def test_open_again_and_several_connections(box):
    """.open, .connection, and the plain path only."""
    a = box.shell(box.path("a.db"), "a")
    a.run("SELECT dust_start('%s');" % address())
    a.run("CREATE TABLE t(x); INSERT INTO t VALUES(1);")
    a.run(".connection 1\n.timeout 30000\n.open a.db")
    assert a.run("INSERT INTO t VALUES(2); SELECT group_concat(x) FROM t; SELECT dust_role();").split() == [
        "1,2", "leader"]
    a.run(".connection 0")
    assert a.run("SELECT group_concat(x) FROM t;").strip() == "1,2"
    a.send(".quit")
    assert a.end() == 0
    # .load after the file was opened on the old VFS: that connection is adopted.
    again = box.shell(box.path("a.db"), "again")
    assert again.run("INSERT INTO t VALUES(3); SELECT group_concat(x) FROM t;").strip() == "1,2,3"
    # And the other order: the file is opened when dust is loaded already.
    again.send(".quit")
    assert again.end() == 0
    late = box.shell(name="late")
    late.run(".open " + os.path.join(box.dir, "a.db"))
    assert late.run("SELECT group_concat(x) FROM t; SELECT dust_role();").split() == ["1,2,3", "leader"]
