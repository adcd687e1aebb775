"""Start, end, crash, leave."""
import os
import sqlite3
import time

import pytest

from cluster import plain, scaled, wait_until


def test_reopen_many_times(m, reopened):
    m.sql("CREATE TABLE t(x)")
    for i in range(scaled(12, 3)):
        m.sql("INSERT INTO t VALUES(?)", i)
        head = m.head()
        reopened(kill=i % 2 == 0)
        assert m.head() == head
        assert m.one("SELECT count(*) FROM t") == i + 1


def test_kill_in_the_middle_of_a_transaction(m, reopened):
    m.sql("CREATE TABLE t(x)")
    m.sql("INSERT INTO t VALUES(1)")
    head = m.head()
    m.sql("PRAGMA cache_size=5")
    m.sql("BEGIN")
    m.sql("INSERT INTO t SELECT randomblob(1000) FROM (WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 500) SELECT i FROM r)")
    reopened(kill=True)
    assert m.head() == head
    assert m.sql("SELECT x FROM t") == [(1,)]
    m.sql("INSERT INTO t VALUES(2)")


def test_kill_while_it_starts(box):
    """However far dust_start had come: either a member, or clear what to do, or nothing."""
    outcomes = set()
    for i in range(scaled(15, 4)):
        m = box.member("m%d" % i)
        c = sqlite3.connect(m.path)
        c.execute("CREATE TABLE t(x)")
        c.execute("INSERT INTO t VALUES(1)")
        c.commit()
        c.close()
        m.open(m.path)
        m.start("sql", sql="SELECT dust_start(?)", params=[m.address])
        try:
            wait_until("a folder", lambda: os.path.exists(m.path + "-dust"), 2, every=0.0001)
        except Exception:
            pass
        time.sleep(i * 0.0005)
        m.kill9()
        assert plain(m.path, "SELECT x FROM t") == [(1,)]
        m.restart(open_=False)
        try:
            m.again(timeout=1)
            role = m.one("SELECT count(*) FROM dust_members")
            assert m.one("SELECT x FROM t") == 1
            if role:
                m.sql("INSERT INTO t VALUES(2)")
            outcomes.add("member" if role else "ordinary")
        except Exception as e:
            outcomes.add("error")
            assert "dust" in str(e) and "start" in str(e), e
        m.kill9()
    print(outcomes)


def test_leave(m):
    m.sql("CREATE TABLE t(x)")
    m.sql("INSERT INTO t VALUES(1)")
    m.again(conn="other")
    assert m.one("SELECT count(*) FROM t", conn="other") == 1
    m.sql("SELECT dust_leave()")
    assert not os.path.exists(m.path + "-dust")
    # Connections that were open say so, or work on as ordinary ones; none crashes, none lies.
    for conn in ("main", "other"):
        try:
            m.sql("INSERT INTO t VALUES(2)", conn=conn)
        except Exception as e:
            print(e)
        m.close(conn)
    n = plain(m.path, "SELECT count(*) FROM t")[0][0]
    m.again()
    m.sql("INSERT INTO t VALUES(3)")
    assert m.one("SELECT count(*) FROM t") == n + 1
    assert m.one("PRAGMA journal_mode") == "delete"
    with open(m.path, "rb") as f:
        header = f.read(100)
    assert header[18:20] == b"\1\1" and not any(header[72:92])
    # And back again.
    m.sql("SELECT dust_start(?)", m.address)
    m.sql("INSERT INTO t VALUES(4)")
    assert m.one("SELECT count(*) FROM t") == n + 2
    assert m.end() == 0
    assert plain(m.path, "SELECT max(x) FROM t") == [(4,)]


def test_closing_the_last_connection_keeps_the_member_up(m):
    m.sql("CREATE TABLE t(x)")
    m.close()
    m.again()
    m.sql("INSERT INTO t VALUES(1)")
    for _ in range(20):
        m.again(conn="x")
        m.sql("INSERT INTO t VALUES(1)", conn="x")
        m.close("x")
    assert m.one("SELECT count(*) FROM t") == 21


def test_a_thousand_opens(m):
    """Connections come and go: nothing piles up."""
    m.sql("CREATE TABLE t(x)")
    m.py("""
        def use(n):
            for i in range(n):
                c = sqlite3.connect(arg, isolation_level=None)
                if i % 3 == 0:
                    c.execute('INSERT INTO t VALUES(1)')
                c.execute('SELECT count(*) FROM t').fetchone()
                c.close()
        sys.modules['__main__'].names['use'] = use
        sys.modules['__main__'].names['arg'] = arg
        use(50)
        """, m.path)
    threads, fds = m.threads(), len(os.listdir("/proc/%d/fd" % m.pid))
    m.py("use(%d)" % scaled(1000, 50))
    # Work in the background (the log's next segment, a checkpoint) has a file or a thread of its own at times.
    wait_until("as many threads as before", lambda: m.threads() <= threads)
    wait_until("as many files as before", lambda: len(os.listdir("/proc/%d/fd" % m.pid)) <= fds)
    assert m.status()["snapshots_held"] <= 2


def test_the_process_ends_in_every_way(box):
    """With connections open, inside a transaction, with threads at work: it ends, and quickly."""
    for how in ("open", "transaction", "threads", "exit in a thread"):
        m = box.member(how.split()[0] + str(len(how))).create()
        m.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq)")
        if how == "transaction":
            m.sql("BEGIN IMMEDIATE")
            m.sql("INSERT INTO acked(who) VALUES('uncommitted')")
        if how == "threads":
            m.writer()
            wait_until("rows", lambda: m.writer_state()["n"] > 5)
        if how == "exit in a thread":
            m.start("py", code="import ctypes; ctypes.CDLL(None).exit(0)")
            m.p.wait(20)
        status = m.end(30)
        assert status == 0, (how, status)
        m.restart()
        assert m.one("SELECT count(*) FROM acked WHERE who = 'uncommitted'") == 0
        assert m.one("PRAGMA integrity_check") == "ok"


def test_nothing_is_printed(box):
    """A guest does not speak on its host's stdout and stderr."""
    m = box.member("m").create()
    m.sql("CREATE TABLE t(x)")
    m.error("SELECT dust_start('nonsense')")
    m.error("SELECT dust_remove(99)")
    assert m.end() == 0
    assert [line for line in m.stderr if "warning" not in line.lower()] == []
