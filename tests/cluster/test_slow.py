"""A slow network: what is large takes its time, and is neither lost nor taken over meanwhile."""
import pytest

from cluster import free_port, scaled
from tap import Tap

MB = 1 << 20


def behind_taps(box, rates, extra=""):
    members, taps = [], []
    for name, rate in zip("abcde", rates):
        port = free_port()
        tap = Tap(port, rate)
        m = box.member(name)
        m.open("file:%s?vfs=dust&bind=127.0.0.1:%d&advertise=%s%s%s" % (
            m.path, port, tap.address, extra, "&join=" + taps[0].address if taps else ""), uri=True, timeout=60)
        m.sql("PRAGMA user_version", timeout=60)
        members.append(m)
        taps.append(tap)
    return members


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_large_transaction_over_a_slow_network(box, who):
    """Several election timeouts, and more than the time that a commit waits for a majority. Others want the turn all the
    while."""
    a, b, c = members = behind_taps(box, [6 * MB] * 3, "&timeout=2000")
    a.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB)")
    a.sql("CREATE TABLE acked(id INTEGER PRIMARY KEY, who, seq)")
    box.settle(*members)
    assert a.role() == "leader"
    term = a.status()["term"]
    large, small = (a, b) if who == "leader" else (b, c)
    small.writer(pause=0.01, timeout=120.0)
    mb = scaled(30)
    took = large.py("""
        import time
        t = time.monotonic()
        conn.execute('BEGIN IMMEDIATE')
        for i in range(arg):
            conn.execute('INSERT INTO t(x) VALUES(randomblob(1048576 - 100))')
        conn.execute('COMMIT')
        result = time.monotonic() - t
        """, mb, timeout=120)
    state = small.writer_stop()
    assert state["errors"] == []
    assert took > 3  # it was slow
    box.settle(*members, timeout=120)
    assert a.status()["term"] == term
    for m in members:
        assert m.one("SELECT count(*) FROM t") == mb
