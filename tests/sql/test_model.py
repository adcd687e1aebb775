"""The same random SQL on a member and on plain SQLite: the same answers, the same errors, the same content."""
import random
import sqlite3

import pytest

from cluster import SqlError, plain, scaled


class Plain:
    def __init__(self, path):
        self.conns = {}
        self.path = path

    def open(self, conn):
        c = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        self.conns[conn] = c

    def sql(self, sql, conn):
        try:
            return self.conns[conn].execute(sql).fetchall()
        except sqlite3.Error as e:
            return e.sqlite_errorname


def dust_sql(m, sql, conn):
    try:
        return m.sql(sql, conn=conn)
    except SqlError as e:
        return e.name


CONTENT = "SELECT id, k, hex(v) FROM a UNION ALL SELECT rowid, k, hex(v) FROM b ORDER BY 1, 2, 3"


def statement(r):
    """Something to do that is the same wherever it is done."""
    i = r.randrange(1, 60)
    n = r.choice([1, 10, 100, 1000, 5000, 20000])
    t = r.choice(["a", "b"])
    return r.choice([
        "INSERT INTO a(k, v) VALUES(%d, zeroblob(%d))" % (i, n),
        "INSERT OR REPLACE INTO a(id, k, v) VALUES(%d, %d, printf('%%.*c', %d, 'x'))" % (i, i * 3, n),
        "INSERT INTO a(id, k, v) VALUES(%d, %d, 'v')" % (i, i),
        "INSERT OR IGNORE INTO b(k, v) VALUES(%d, printf('%%.*c', %d, 'y'))" % (i, n % 3000),
        "INSERT INTO b(k, v) SELECT k + %d, v FROM a LIMIT 20" % (i * 100),
        "UPDATE a SET v = v || 'z' WHERE id %% 7 = %d" % (i % 7),
        "UPDATE a SET k = k + 1 WHERE id < %d" % i,
        "UPDATE b SET k = k + 100000 WHERE k < %d" % i,
        "DELETE FROM %s WHERE k %% 5 = %d" % (t, i % 5),
        "DELETE FROM a WHERE id > %d" % (i * 10),
        "DELETE FROM " + t,
        "SELECT count(*), sum(k), sum(length(v)) FROM " + t,
        "SELECT k FROM b ORDER BY k DESC LIMIT 5",
        "CREATE TABLE IF NOT EXISTS c%d(x, y)" % (i % 4),
        "DROP TABLE IF EXISTS c%d" % (i % 4),
        "CREATE INDEX IF NOT EXISTS i%d ON a(v)" % (i % 3),
        "DROP INDEX IF EXISTS i%d" % (i % 3),
        "INSERT INTO a(k, v) WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < %d) SELECT i, i FROM r" % (
            i * 5),
        "PRAGMA user_version = %d" % i,
        "REINDEX",
    ])


@pytest.mark.parametrize("seed", range(6))
def test_one_connection(box, seed):
    r = random.Random(seed)
    p = Plain(box.path("plain.db"))
    p.open("main")
    m = box.member("m", trace=seed % 3 == 2)
    for setup in ("PRAGMA page_size=%d" % r.choice([512, 1024, 4096, 16384]), "PRAGMA auto_vacuum=%d" % (seed % 3)):
        p.sql(setup, "main")
    # The cluster starts on a copy of an ordinary database.
    p.sql("CREATE TABLE a(id INTEGER PRIMARY KEY, k INT, v)", "main")
    p.sql("CREATE TABLE b(k INTEGER UNIQUE, v)", "main")
    c = sqlite3.connect(m.path)
    p.conns["main"].backup(c)
    c.close()
    m.create()
    m.sql("PRAGMA cache_size=%d" % r.choice([5, 20, 2000]))
    depth = 0
    open_ = False
    for step in range(scaled(400, 60)):
        what = r.random()
        sqls = []
        if not open_ and what < 0.15:
            sqls.append(r.choice(["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "SAVEPOINT s0"]))
            open_, depth = True, 0
        elif open_ and what < 0.15:
            sqls.append(r.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
            open_ = False
        elif open_ and what < 0.25:
            depth += 1
            sqls.append("SAVEPOINT s%d" % depth)
        elif open_ and depth and what < 0.35:
            n = r.randrange(1, depth + 1)
            if r.random() < 0.6:
                sqls.append("ROLLBACK TO s%d" % n)
                depth = n
            else:
                sqls.append("RELEASE s%d" % n)
                depth = n - 1
        elif not open_ and what < 0.19:
            sqls.append("VACUUM")
        elif not open_ and what < 0.21:
            assert m.sql("SELECT dust_checkpoint()")
        elif not open_ and what < 0.22:
            if r.random() < 0.5:
                m.kill9()
            else:
                assert m.end() == 0
            m.restart()
        elif what < 0.24:
            sqls.append("PRAGMA incremental_vacuum(%d)" % r.randrange(1, 10))
        else:
            sqls.append(statement(r))
        for sql in sqls:
            got, want = dust_sql(m, sql, "main"), p.sql(sql, "main")
            assert got == want, "step %d: %s: %s, plain SQLite: %s" % (step, sql, got, want)
        if step % 50 == 49:
            assert m.sql(CONTENT) == p.sql(CONTENT, "main")
            assert m.one("PRAGMA integrity_check") == "ok"
            assert m.one("PRAGMA page_count") == p.sql("PRAGMA page_count", "main")[0][0]
    if open_:
        m.sql("ROLLBACK")
        p.sql("ROLLBACK", "main")
    m.again(conn="fresh")
    assert m.sql(CONTENT, conn="fresh") == p.sql(CONTENT, "main")
    m.checkpoint()
    assert m.end() == 0
    assert plain(m.path, CONTENT) == p.sql(CONTENT, "main")
    assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("seed", range(4))
def test_several_connections(box, seed):
    """In turns on four connections, some inside transactions: each sees a state that was; the end is what the
    acknowledged statements make, done in order on plain SQLite."""
    r = random.Random(1000 + seed)
    m = box.member("m", trace=seed % 2 == 1).create()
    m.sql("CREATE TABLE a(id INTEGER PRIMARY KEY, k INT, v)")
    m.sql("CREATE TABLE b(k INTEGER UNIQUE, v)")
    conns = ["c%d" % i for i in range(4)]
    done = []      # what was committed, in order
    pending = {}   # of a connection inside a transaction: what it did
    seen = {}      # of a connection inside a transaction: what it must go on seeing, unless it writes
    for c in conns:
        m.again(conn=c, timeout=0)
    for step in range(scaled(200, 60)):
        c = r.choice(conns)
        what = r.random()
        if c not in pending:
            if what < 0.3:
                got = dust_sql(m, r.choice(["BEGIN", "BEGIN IMMEDIATE"]), c)
                if got == []:
                    pending[c] = []
                    seen[c] = dust_sql(m, CONTENT, c)
                else:
                    assert got.startswith("SQLITE_BUSY"), got
            else:
                sql = statement(r)
                got = dust_sql(m, sql, c)
                if isinstance(got, str):
                    assert got.startswith(("SQLITE_BUSY", "SQLITE_CONSTRAINT", "SQLITE_LOCKED")), (sql, got)
                else:
                    done.append(sql)
        elif what < 0.2:
            got = dust_sql(m, "COMMIT", c)
            if got == []:
                done += pending.pop(c)
            else:
                assert got.startswith("SQLITE_BUSY"), got
                dust_sql(m, "ROLLBACK", c)
                pending.pop(c)
        elif what < 0.3:
            assert dust_sql(m, "ROLLBACK", c) == []
            pending.pop(c)
        elif what < 0.6 and not pending[c]:
            assert dust_sql(m, CONTENT, c) == seen[c], "a snapshot has changed"
        else:
            sql = statement(r)
            got = dust_sql(m, sql, c)
            if not isinstance(got, str):
                if not sql.startswith("SELECT"):
                    pending[c].append(sql)
            else:
                assert got.startswith(("SQLITE_BUSY", "SQLITE_CONSTRAINT", "SQLITE_LOCKED")), (sql, got)
        if step % 40 == 0:
            m.sql("SELECT dust_checkpoint()")
    for c in list(pending):
        m.sql("ROLLBACK", conn=c)
    p = Plain(box.path("plain.db"))
    p.open("main")
    p.sql("CREATE TABLE a(id INTEGER PRIMARY KEY, k INT, v)", "main")
    p.sql("CREATE TABLE b(k INTEGER UNIQUE, v)", "main")
    for sql in done:
        got = p.sql(sql, "main")
        assert not isinstance(got, str), (sql, got)
    assert m.sql(CONTENT) == p.sql(CONTENT, "main")
    assert m.one("PRAGMA integrity_check") == "ok"
    m.kill9()
    m.restart()
    assert m.sql(CONTENT) == p.sql(CONTENT, "main")
