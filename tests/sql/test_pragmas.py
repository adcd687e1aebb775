"""PRAGMAs: those that are answered and not obeyed, those that are dust's, and those that are SQLite's."""
import os

import pytest

from cluster import plain


@pytest.mark.parametrize("pragma, answer", [
    ("journal_mode=WAL", [("wal",)]),
    ("journal_mode=wal", [("wal",)]),
    ("journal_mode=DELETE", [("delete",)]),
    ("journal_mode=truncate", [("truncate",)]),
    ("journal_mode=PERSIST", [("persist",)]),
    ("journal_mode=MEMORY", [("memory",)]),
    ("journal_mode=OFF", [("off",)]),
    ("main.journal_mode=WAL", [("wal",)]),
    ("journal_mode", [("wal",)]),
    ("journal_mode=nonsense", [("wal",)]),
    ("locking_mode=EXCLUSIVE", [("exclusive",)]),
    ("locking_mode=NORMAL", [("normal",)]),
    ("locking_mode", [("normal",)]),
    ("mmap_size=268435456", [("0",)]),
    ("synchronous=OFF", []),
    ("synchronous=NORMAL", []),
    ("synchronous=EXTRA", []),
    ("journal_size_limit=1000000", [(1000000,)]),
    ("wal_autocheckpoint=100", [(100,)]),
    ("busy_timeout=30000", [(30000,)]),
    ("temp_store=MEMORY", []),
    ("cache_size=-2000", []),
    ("foreign_keys=ON", []),
    ("secure_delete=ON", [(1,)]),
    ("page_size=4096", []),
    ("encoding='UTF-8'", []),
    ("application_id=77", []),
    ("user_version=5", []),
    ("optimize", []),
    ("quick_check", [("ok",)]),
    ("integrity_check", [("ok",)]),
    ("data_version", None),
    ("freelist_count", [(0,)]),
    ("page_size", [(4096,)]),
])
def test_answers(m, pragma, answer):
    """The answer is what programs expect; and the database works on as before."""
    m.sql("CREATE TABLE t(x)")
    rows = m.sql("PRAGMA " + pragma)
    if answer is not None:
        assert [tuple(str(v) for v in r) for r in rows] == [tuple(str(v) for v in r) for r in answer]
    m.sql("INSERT INTO t VALUES(1)")
    m.sql("BEGIN")
    m.sql("INSERT INTO t VALUES(2)")
    m.sql("ROLLBACK")
    m.again(conn="other")
    m.sql("INSERT INTO t VALUES(3)", conn="other")
    assert m.sql("SELECT group_concat(x) FROM t") == [("1,3",)]
    files = set(os.listdir(m.box.dir))
    assert files <= {"m.db", "m.db-dust", "m.db-journal"}, files
    m.kill9()
    m.restart()
    assert m.sql("SELECT group_concat(x) FROM t") == [("1,3",)]


def test_wal_checkpoint(m):
    m.sql("PRAGMA journal_mode=WAL")
    m.sql("CREATE TABLE t(x)")
    for mode in ("PASSIVE", "FULL", "RESTART", "TRUNCATE"):
        rows = m.sql("PRAGMA wal_checkpoint(%s)" % mode)
        assert len(rows) == 1 and len(rows[0]) == 3 and rows[0][0] == 0, rows


def test_values_are_kept(m, reopened):
    m.sql("PRAGMA user_version = 7")
    m.sql("PRAGMA application_id = 1234")
    m.sql("CREATE TABLE t(x)")
    reopened(kill=True)
    assert m.one("PRAGMA user_version") == 7
    assert m.one("PRAGMA application_id") == 1234
    reopened()
    assert plain(m.path, "PRAGMA user_version") == [(7,)]


def test_marks_are_hidden(m):
    """SQLite sees a page 1 without dust's marks; the file carries them."""
    m.sql("CREATE TABLE t(x)")
    m.checkpoint()
    with open(m.path, "rb") as f:
        header = f.read(100)
    assert header[18] == 3 and header[19] == 1
    assert any(header[72:92])
    assert m.one("PRAGMA journal_mode") == "wal"
    m.py("""
        import sqlite3
        data = conn.serialize() if hasattr(conn, 'serialize') else None
        if data is not None:
            assert data[18] in (1, 2) and not any(data[72:92]), data[:100]
        """)


def test_consistency(m):
    assert m.one("PRAGMA dust_consistency") == "local"
    m.sql("CREATE TABLE t(x)")
    for c in ("stale", "local", "fresh", "linearizable", "LOCAL"):
        assert m.one("PRAGMA dust_consistency=" + c) == c.lower()
        assert m.one("PRAGMA dust_consistency") == c.lower()
        m.sql("INSERT INTO t VALUES(1)")
        assert m.one("SELECT count(*) > 0 FROM t") == 1
    assert "dust_consistency" in m.error("PRAGMA dust_consistency=maybe").text
    assert m.one("PRAGMA dust_freshness=500") == "500"
    assert m.error("PRAGMA dust_freshness=-1").text


def test_page_size_is_the_clusters(m):
    m.sql("CREATE TABLE t(x)")
    for sql in ("PRAGMA page_size=8192", "VACUUM"):
        try:
            m.sql(sql)
        except Exception as e:
            assert "page size" in str(e)
    assert m.one("PRAGMA page_size") == 4096
    assert m.one("PRAGMA integrity_check") == "ok"
