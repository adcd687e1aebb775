"""A database that has content already: started, joined while it is being written, equal everywhere in the end; and
nobody holds it in memory."""
import os
import sqlite3

import pytest

from cluster import SLOW, plain, scaled, wait_until


def make(path, mb, mode="delete", page_size=4096):
    c = sqlite3.connect(path, isolation_level=None)
    c.execute("PRAGMA page_size=%d" % page_size)
    c.execute("PRAGMA journal_mode=%s" % mode)
    c.execute("PRAGMA synchronous=OFF")
    c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, k INT, x BLOB)")
    c.execute("BEGIN")
    c.execute("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) "
              "INSERT INTO t(k, x) SELECT random() % 1000, randomblob(10000) FROM r", (mb * 104,))
    c.execute("COMMIT")
    c.execute("CREATE INDEX ik ON t(k)")
    c.execute("CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)")
    c.close()
    return os.path.getsize(path)


def grow(box, mode, page_size, mb):
    a, b, c = (box.member(m) for m in "abc")
    size = make(a.path, mb, mode, page_size)
    if mode == "wal":
        assert plain(a.path, "PRAGMA journal_mode") == [("wal",)]
    a.create()
    a.writer(pause=0.001)
    wait_until("rows", lambda: a.writer_state()["n"] > 10)
    a.py("""
        # Changes all over the file while the others join.
        def churn(path):
            c = connect(path)
            while not stop.is_set():
                c.execute('UPDATE t SET x = randomblob(10000) WHERE id IN (SELECT id FROM t ORDER BY random() LIMIT 3)')
                stop.wait(0.02)
            c.close()
        stop = threading.Event()
        names['stop'] = stop
        names['churner'] = threading.Thread(target=churn, args=(arg,))
        names['churner'].start()
        """.replace("names[", "sys.modules['__main__'].names["), a.path)
    before = a.writer_state()["n"]
    b.join(a)
    b.writer(pause=0.001)
    c.join(b)
    c.writer(pause=0.001)
    wait_until("rows from all", lambda: all(m.writer_state()["n"] > 20 for m in (b, c)), 60)
    a.py("stop.set(); churner.join(30)", timeout=60)
    states = {m.name: m.writer_stop() for m in (a, b, c)}
    assert all(s["errors"] == [] for s in states.values()), {k: s["errors"][:2] for k, s in states.items()}
    assert states["a"]["n"] > before
    box.same_files(a, b, c)
    acked = box.acked("a", "b", "c")
    for m in (a, b, c):
        assert os.path.getsize(m.path) >= size
        assert set(m.sql("SELECT who, seq FROM acked")) == acked
        assert m.one("SELECT count(*) FROM t") == mb * 104
    peaks = {m.name: m.rss_kb(peak=True) >> 10 for m in (a, b, c)}
    print("%d MB, %s: peak resident MB: %s; writers' worst: %s" % (
        size >> 20, mode, peaks, {k: round(s["worst"], 2) for k, s in states.items()}))
    assert c.one("PRAGMA integrity_check", timeout=120) == "ok"
    return peaks


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_200_mb(box, mode):
    peaks = grow(box, mode, 4096, scaled(200, 20))
    if SLOW == 1:
        assert max(peaks.values()) < 150, peaks


@pytest.mark.sanitize
@pytest.mark.parametrize("page_size", [512, 1024, 65536])
def test_other_page_sizes(box, page_size):
    grow(box, "delete", page_size, scaled(8, 3))


def test_wal_database_that_somebody_has_open(box):
    """It cannot be brought out of WAL mode: refused, with the reason, and nothing changed."""
    a = box.member("a")
    make(a.path, 1, "wal")
    other = sqlite3.connect(a.path)
    other.execute("SELECT count(*) FROM t").fetchall()
    a.open(a.path, timeout=0.2)
    e = a.error("SELECT dust_start(?)", a.address)
    assert "WAL" in e.text or "wal" in e.text, e
    assert not os.path.exists(a.path + "-dust")
    other.execute("INSERT INTO acked(who, seq) VALUES('other', 1)")
    other.commit()
    other.close()
    a.sql("SELECT dust_start(?)", a.address)
    assert a.one("SELECT count(*) FROM acked") == 1
    b = box.member("b").join(a)
    box.same_files(a, b)


def test_member_too_far_behind_for_the_log(box):
    """It was away while much was written and the log was cut: its pages are streamed, and only those that differ."""
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    mb = scaled(24, 4)
    a.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) "
          "INSERT INTO t(x) SELECT randomblob(10000) FROM r", mb * 104)
    box.same_files(a, b, c)
    leader = box.leader(a, b, c)
    victim, other = [m for m in (a, b, c) if m is not leader]
    victim.kill9()
    sent = leader.status()["bytes_out"]
    for i in range(scaled(60, 20)):
        leader.sql("UPDATE t SET x = randomblob(10000) WHERE id <= 100")
    leader.checkpoint()
    victim.restart()
    victim.sql("INSERT INTO t(x) VALUES('from the one that was away')")
    box.same_files(a, b, c)
    print("sent", leader.status()["bytes_out"] - sent)


def test_past_the_lock_byte_page(box):
    """SQLite uses the page at 1 GiB for its locks, and never for content: a database grows past it, is folded, started
    again, and fetched by another member."""
    page, n = 65536, (1 << 30) // 65536
    a, b = box.member("a"), box.member("b")
    make(a.path, 0, page_size=page)
    with open(a.path, "r+b") as f:  # grown without being written: most of its pages are a hole
        f.seek(28)
        f.write(n.to_bytes(4, "big"))
        f.truncate(n * page)
    a.create()
    for i in range(3):
        a.sql("INSERT INTO t(x) VALUES(zeroblob(1000000))")
        a.checkpoint()
    assert a.one("PRAGMA page_count") > n + 2
    assert a.status()["checkpointed"] == a.head()
    a.kill9()
    a.restart()
    a.sql("INSERT INTO t(x) VALUES(randomblob(1000000))")
    b.join(a)
    box.same_files(a, b)
    assert b.sql("SELECT count(*), sum(length(x)) FROM t") == [(5, 4010000)]
    assert plain(b.path, "SELECT count(*), sum(length(x)) FROM t") == [(5, 4010000)]
