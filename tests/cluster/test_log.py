"""What the log says and what it costs."""
import os

import pytest

from cluster import scaled, wait_until


@pytest.mark.sanitize
def test_bytes_of_a_small_insert(box):
    members = box.cluster(3)
    a, b, c = members
    a.sql("CREATE TABLE foo (id integer not null primary key, name text)")
    box.settle(*members)
    sql = "INSERT INTO foo(name) VALUES('fiona')"
    for m in members:
        for _ in range(scaled(40, 5)):
            m.sql(sql)
    box.settle(*members)
    for m in members:
        rows = m.sql("SELECT idx, kind, id, parent, origin, n_pages, bytes, statements FROM dust_log "
                     "WHERE statements LIKE '%fiona%' ORDER BY idx")
        assert len(rows) == 3 * scaled(40, 5)
        assert {r[4] for r in rows} == {x.id() for x in members}
        assert all(r[7] == sql for r in rows), rows[0]
        worst = max(r[6] for r in rows)
        assert worst <= 600, worst
        print("%s: %d to %d bytes" % (m.name, min(r[6] for r in rows), worst))
        # Each names its parent.
        for p, r in zip(rows, rows[1:]):
            assert r[3] == p[2], "%r does not stand on %r" % (r, p)
        assert rows[-1][2] == m.head()


def test_sql_text_is_capped_and_optional(box):
    m = box.member("a")
    m.open("file:%s?vfs=dust&bind=%s&statements=off" % (m.path, m.address), uri=True)
    m.sql("CREATE TABLE t(x)")
    m.sql("INSERT INTO t VALUES('secret')")
    assert m.one("SELECT count(*) FROM dust_log WHERE statements LIKE '%secret%'") == 0
    n = box.member("b").create()
    n.sql("CREATE TABLE t(x)")
    n.sql("INSERT INTO t VALUES('%s')" % ("long" * 100000))
    assert n.one("SELECT length(x) FROM t") == 400000
    text = n.sql("SELECT statements, bytes FROM dust_log WHERE n_pages > 50")[0]
    assert text[0].startswith("INSERT INTO t VALUES('long")
    assert len(text[0]) < 100000
    n.sql("INSERT INTO t VALUES(?)", "bound")
    assert n.one("SELECT statements FROM dust_log ORDER BY idx DESC LIMIT 1") == "INSERT INTO t VALUES(?)"


def test_log_is_cut(box):
    """What is folded into the file need not stay in the log; and it does not grow for ever."""
    a, b, c = box.cluster(3)
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x)")
    a.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 500) "
          "INSERT INTO t(x) SELECT randomblob(1000) FROM r")
    for i in range(scaled(150, 30)):
        b.sql("UPDATE t SET x = randomblob(1000)")
    for m in (a, b, c):
        wait_until("the log of %s is cut" % m.name, lambda: m.status()["log_bytes"] < 48 << 20, 30)
    box.same_files(a, b, c)


def test_log_of_lone_commits_is_cut(box):
    """Each takes a block on disk, whatever is in it: that is what is counted, and its files are used again."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    for _ in range(40):
        m.py("""
            for i in range(500):
                conn.execute('INSERT INTO t VALUES(1)')
            """, timeout=120)
        if m.status()["snapshot_index"] > 1000:  # one is taken at once, when there is nothing yet
            break
    n = m.one("SELECT count(*) FROM t")
    assert m.status()["snapshot_index"] > 1000, n
    assert 4000 <= n <= 10000, n  # of 4 KiB each: some 24 MiB
    m.sql("INSERT INTO t VALUES(1)")
    folder = m.path + "-dust/raft"
    assert sum(os.path.getsize(os.path.join(folder, x)) for x in os.listdir(folder)) < 64 << 20


def test_lone_commits_of_a_block_and_a_bit(box):
    """They take twice as much on disk as they hold: what is kept of the log must not make it too long again at once."""
    m = box.member("a").create()
    m.sql("CREATE TABLE t(x)")
    m.py("""
        for i in range(%d):
            conn.execute('INSERT INTO t VALUES(randomblob(4300))')
        """ % 6000, timeout=300)
    taken = m.one("SELECT value FROM dust_metrics WHERE name = 'checkpoints'")
    assert 2 <= taken <= 10, taken  # 47 MiB on disk, of which some 12 are cut at a time
