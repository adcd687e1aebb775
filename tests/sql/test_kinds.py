"""Every kind of table and of work that SQLite knows, on a member; after kill -9 and after a clean end all is there."""
import pytest

from cluster import plain, scaled


def fts5(m):
    m.sql("CREATE VIRTUAL TABLE f USING fts5(a, b, prefix='2 3')")
    m.sql("CREATE VIRTUAL TABLE g USING fts5(a, content='')")
    m.sql("CREATE VIRTUAL TABLE v USING fts5vocab(f, 'row')")
    for i in range(60):
        m.sql("INSERT INTO f VALUES(?, ?)", "word%d common" % i, "x" * (i % 7))
        m.sql("INSERT INTO g(rowid, a) VALUES(?, ?)", i, "only index %d" % i)
    m.sql("BEGIN")
    m.sql("DELETE FROM f WHERE rowid < 20")
    m.sql("UPDATE f SET a = 'changed common' WHERE rowid = 30")
    m.sql("SAVEPOINT s")
    m.sql("DELETE FROM f")
    m.sql("ROLLBACK TO s")
    m.sql("COMMIT")
    m.sql("INSERT INTO f(f, rank) VALUES('merge', 50)")
    m.sql("INSERT INTO f(f) VALUES('integrity-check')")
    return ["SELECT count(*) FROM f WHERE f MATCH 'common'", "SELECT rowid FROM f WHERE f MATCH 'cha*'",
            "SELECT count(*) FROM g WHERE g MATCH 'index'", "SELECT doc FROM v WHERE term = 'common'"]


def fts4(m):
    m.sql("CREATE VIRTUAL TABLE f4 USING fts4(a)")
    for i in range(40):
        m.sql("INSERT INTO f4 VALUES(?)", "four %d" % i)
    m.sql("INSERT INTO f4(f4) VALUES('optimize')")
    return ["SELECT count(*) FROM f4 WHERE a MATCH 'four'"]


def rtree(m):
    m.sql("CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1, +note)")
    m.many("INSERT INTO r VALUES(?, ?, ?, ?, ?, ?)", [[i, i, i + 1.5, -i, -i + 2, "n%d" % i] for i in range(300)])
    m.sql("DELETE FROM r WHERE id % 3 = 0")
    assert m.one("SELECT rtreecheck('r')") == "ok"
    return ["SELECT group_concat(note) FROM r WHERE x0 > 10 AND x1 < 30"]


def without_rowid(m):
    m.sql("CREATE TABLE w(a TEXT, b INT, c, PRIMARY KEY(a, b)) WITHOUT ROWID")
    m.many("INSERT INTO w VALUES(?, ?, ?)", [["k%d" % (i * 7 % 100), i, i * i] for i in range(500)])
    m.sql("UPDATE w SET b = b + 10000 WHERE b % 2")
    m.sql("DELETE FROM w WHERE a < 'k3'")
    return ["SELECT count(*), sum(b), sum(c) FROM w"]


def strict_generated_partial(m):
    m.sql("CREATE TABLE s(id INTEGER PRIMARY KEY AUTOINCREMENT, i INT, t TEXT, g INT AS (i * 2) STORED, h TEXT AS (t || '!')) STRICT")
    m.sql("CREATE INDEX si ON s(g) WHERE i > 5")
    m.sql("CREATE INDEX se ON s(lower(t))")
    m.many("INSERT INTO s(i, t) VALUES(?, ?)", [[i, "T%d" % i] for i in range(100)])
    assert "cannot store" in m.error("INSERT INTO s(i) VALUES('no number')").text
    m.sql("DELETE FROM s WHERE i > 50")
    m.sql("INSERT INTO s(i, t) VALUES(7, 'x')")
    return ["SELECT max(id), sum(g), max(h) FROM s", "SELECT seq FROM sqlite_sequence"]


def views_and_triggers(m):
    m.script("""
        CREATE TABLE base(a, b);
        CREATE TABLE audit(n INTEGER PRIMARY KEY, what);
        CREATE VIEW vw AS SELECT a, sum(b) AS s FROM base GROUP BY a;
        CREATE TRIGGER t1 INSTEAD OF INSERT ON vw BEGIN INSERT INTO base VALUES(new.a, new.s); END;
        CREATE TRIGGER t2 AFTER INSERT ON base BEGIN
            INSERT INTO audit(what) VALUES('in ' || new.a);
            UPDATE base SET b = b + 1 WHERE a = new.a AND rowid <> new.rowid;
        END;
        CREATE TRIGGER t3 BEFORE UPDATE ON base WHEN new.b > 100 BEGIN SELECT RAISE(ABORT, 'too much'); END;
        """)
    for i in range(30):
        m.sql("INSERT INTO vw VALUES(?, ?)", i % 3, i)
    assert "too much" in m.error("UPDATE base SET b = 1000").text
    return ["SELECT group_concat(a || ':' || s) FROM vw", "SELECT count(*) FROM audit"]


def foreign_keys(m):
    m.sql("PRAGMA foreign_keys=ON")
    m.sql("CREATE TABLE p(id INTEGER PRIMARY KEY)")
    m.sql("CREATE TABLE ch(p REFERENCES p(id) ON DELETE CASCADE ON UPDATE CASCADE, x)")
    m.many("INSERT INTO p VALUES(?)", [[i] for i in range(50)])
    m.many("INSERT INTO ch VALUES(?, 'x')", [[i % 50] for i in range(500)])
    m.sql("DELETE FROM p WHERE id % 5 = 0")
    m.sql("UPDATE p SET id = id + 1000 WHERE id % 7 = 0")
    return ["SELECT count(*), sum(p) FROM ch"]


def blobs(m):
    m.sql("CREATE TABLE b(id INTEGER PRIMARY KEY, x BLOB)")
    m.sql("INSERT INTO b VALUES(1, zeroblob(2000000)), (2, x'00ff'), (3, zeroblob(0)), (4, NULL)")
    m.py("""
        with conn.blobopen('b', 'x', 1) as blob:
            for i in range(0, 2000000, 100000):
                blob.seek(i)
                blob.write(b'%07d' % i)
            blob.seek(100000)
            assert blob.read(7) == b'0100000'
        conn.execute('BEGIN')
        with conn.blobopen('b', 'x', 1) as blob:
            blob[0:4] = b'gone'
        conn.execute('ROLLBACK')
        ro = conn.blobopen('b', 'x', 1, readonly=True)
        assert ro.read(7) == b'0000000'
        ro.close()
        """)
    return ["SELECT sum(length(x)), hex(substr(x, 300001, 7)) FROM b WHERE id < 4 AND length(x) > 2",
            "SELECT hex(x) FROM b WHERE id = 2"]


def alters(m):
    m.sql("CREATE TABLE al(a, b, c)")
    m.sql("CREATE INDEX ali ON al(b)")
    m.sql("CREATE VIEW alv AS SELECT b FROM al")
    m.many("INSERT INTO al VALUES(?, ?, ?)", [[i, i * 2, "x" * 50] for i in range(200)])
    m.sql("ALTER TABLE al RENAME COLUMN b TO bb")
    m.sql("ALTER TABLE al ADD COLUMN d NOT NULL DEFAULT 'd'")
    m.sql("ALTER TABLE al DROP COLUMN c")
    m.sql("ALTER TABLE al RENAME TO altered")
    m.sql("CREATE TABLE as_select AS SELECT * FROM altered WHERE a % 2")
    m.sql("DROP INDEX ali")
    return ["SELECT count(*), sum(bb), max(d) FROM altered", "SELECT sum(bb) FROM alv", "SELECT count(*) FROM as_select"]


def large_rows_and_tables(m):
    m.sql("CREATE TABLE big(id INTEGER PRIMARY KEY, x TEXT)")
    n = scaled(20000, 2000)
    m.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < ?) "
          "INSERT INTO big(x) SELECT printf('%0*d', i % 100, i) FROM r", n)
    m.sql("CREATE INDEX bi ON big(x)")
    m.sql("UPDATE big SET x = x || x WHERE id % 9 = 0")
    m.sql("DELETE FROM big WHERE id % 10 = 1")
    m.sql("ANALYZE")
    return ["SELECT count(*), sum(length(x)) FROM big", "SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'big'"]


def not_deterministic(m):
    m.sql("CREATE TABLE nd(a DEFAULT (random()), b DEFAULT CURRENT_TIMESTAMP, c DEFAULT (hex(randomblob(20))))")
    for _ in range(20):
        m.sql("INSERT INTO nd DEFAULT VALUES")
    m.sql("INSERT INTO nd(a) SELECT my_function(a) FROM nd")
    return ["SELECT group_concat(a || b || c) FROM nd"]


KINDS = [fts5, fts4, rtree, without_rowid, strict_generated_partial, views_and_triggers, foreign_keys, blobs, alters,
         large_rows_and_tables, not_deterministic]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_kind(m, reopened, kind):
    queries = kind(m)
    before = [m.sql(q) for q in queries]
    assert m.one("PRAGMA integrity_check") == "ok"
    m.again(conn="other")
    assert [m.sql(q, conn="other") for q in queries] == before
    reopened(kill=True)
    assert [m.sql(q) for q in queries] == before
    m.checkpoint()
    assert [m.sql(q) for q in queries] == before
    reopened()
    assert [m.sql(q) for q in queries] == before
    assert m.end() == 0
    assert plain(m.path, "PRAGMA integrity_check") == [("ok",)]
    assert [plain(m.path, q) for q in queries] == before


def test_all_kinds_in_one_database(m, reopened):
    queries = [q for k in KINDS for q in k(m)]
    before = [m.sql(q) for q in queries]
    m.sql("VACUUM")
    m.sql("REINDEX")
    assert [m.sql(q) for q in queries] == before
    reopened(kill=True)
    assert [m.sql(q) for q in queries] == before
