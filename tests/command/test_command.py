"""The command line: every subcommand, as a user runs it; and what it says when it cannot."""
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

from cluster import ROOT, SLOW, address, child_env, plain, wait_until
from tool import DUST, Serve, Served, as_json, run, sql, status

NAMES = ["serve", "start", "join", "status", "members", "remove", "promote", "demote", "transfer", "leave", "backup", "restore",
         "recover", "log", "key", "sql", "run", "bench"]


@pytest.fixture
def served(box):
    s = Served(box)
    yield s
    s.shut()


def test_help_and_manual_agree():
    """Each subcommand has its help and its paragraph, with the same arguments and options."""
    with open(os.path.join(ROOT, "tools/dust/dust.1")) as f:
        page = f.read()
    paragraphs = {}
    for head in re.findall(r"^\.TP\n\.B (\w+) ?(.*)$", page[page.index(".SH SUBCOMMANDS"):page.index(".SH OPTIONS")], re.M):
        paragraphs[head[0]] = head[1].replace("\\-", "-").replace("\\fI", "").replace("\\fB", "").replace("\\fR", "")
    overview = run("help")
    assert re.findall(r"^  (\w+) ", overview, re.M) == NAMES == list(paragraphs)
    described = set(re.findall(r"^\.B[IR]? (?:\\-\\-)([a-z]+)", page[page.index(".SH OPTIONS"):], re.M)) - {"help"}
    seen = set()
    for name in NAMES:
        text = run(name, "--help")
        assert text == run("help", name)
        synopsis = re.match(r"usage: dust %s (.*)" % name, text).group(1)
        options = set(re.findall(r"^  --([a-z]+)", text, re.M))
        seen |= options
        in_page = paragraphs[name]
        assert [x for x in synopsis.replace("[", " ").replace("]", " ").split() if not x.startswith("-")][0] in in_page
        if name == "run":
            continue  # its options stand in the paragraph's text
        assert set(re.findall(r"--([a-z]+)", in_page)) == options, name
    assert seen == described
    assert subprocess.run(["man", "--warnings", "-l", os.path.join(ROOT, "tools/dust/dust.1")], capture_output=True,
                          text=True, stdin=subprocess.DEVNULL).stderr == "" if os.path.exists("/usr/bin/man") else True


def test_usage(box):
    for args, word in (([], "usage"), (["nonsense"], "no subcommand"), (["status"], "usage"), (["status", "a", "b"], "usage"),
                       (["status", "--follow", "a.db"], "no option"), (["sql", "SELECT 1", "a.db", "--timeout", "x"], "number"),
                       (["members", "a.db", "--timeout"], "missing"), (["join", "x.db", "--role", "king"], "voter or standby"),
                       (["start", box.path("x.db")], "--bind"), (["join", box.path("x.db"), "--bind", "127.0.0.1:0"], "--join"),
                       (["remove", "seven", "a.db"], "number"), (["help", "me"], "no subcommand"),
                       (["serve", box.path("x.db")], "--bind"), (["run"], "usage")):
        assert word in run(*args, code=2), args
    for name in ("status", "members", "log", "leave"):
        assert "no member of a cluster" in run(name, box.path("x.db"), code=5)
    plain(box.path("plain.db"), "CREATE TABLE t(x)")
    assert "dust start" in run("sql", "SELECT 1", box.path("plain.db"), code=5)
    assert not os.path.exists(box.path("x.db"))
    assert re.fullmatch(r"dust-key-1:[0-9a-f]{64}\n", run("key")) and run("key") != run("key")
    assert "keyfile" in run("serve", "--keyfile", box.path("none"), "--bind", address(), box.path("x.db"), code=1)
    assert "loopback" in run("start", box.path("y.db"), "--bind", "8.8.8.8:1", code=1)


def test_life_of_a_cluster(box, served):
    a, b, c = served.paths
    members = as_json("members", a)
    assert [m["address"] for m in members] == served.addresses
    assert list(members[0]) == ["id", "address", "role", "state", "is_self", "is_leader", "match_index", "lag",
                                "last_contact_ms"]
    text = run("members", b).splitlines()
    assert text[0].split() == list(members[0]) and len(text) == 4 and len({x.index(":") for x in text[1:]}) == 1
    assert status(c)["host_pid"] == served.serves[2].p.pid
    assert run("sql", "CREATE TABLE t(id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES(1, 'one'), (2, NULL), (3, x'00ff')", a) == ""
    assert sql(b, "SELECT * FROM t") == [[1, "one"], [2, None], [3, "00ff"]]
    assert run("sql", b, "SELECT * FROM t WHERE id = 1").split() == ["id", "x", "1", "one"]  # either order
    assert "UNIQUE" in run("sql", "INSERT INTO t VALUES(1, 1)", c, code=1)
    assert "not committed" in run("sql", "BEGIN; DELETE FROM t", c, code=1)
    assert sql(c, "SELECT count(*) FROM t") == [[3]]
    ids = [m["id"] for m in members]
    run("demote", str(ids[2]), a)
    assert [m["role"] for m in as_json("members", a)] == ["voter", "voter", "standby"]
    run("promote", a, str(ids[2]))
    wait_until("a voter again", lambda: as_json("members", a)[2]["role"] == "voter", 20)
    to = next(i for i in range(3) if i != served.leader())
    run("transfer", str(ids[to]), a)
    wait_until("it leads", lambda: status(served.paths[to])["role"] == "leader", 20)
    log = as_json("log", b)
    assert [e["kind"] for e in log].count("transaction") == 2 and log[-1]["idx"] >= len(log)
    gone = 1 if to != 1 else 2
    rest = 3 - to - gone
    run("remove", str(ids[gone]), served.paths[to])
    assert len(as_json("members", served.paths[to])) == 2
    run("leave", served.paths[rest])
    assert not os.path.exists(served.paths[rest] + "-dust")
    assert plain(served.paths[rest], "SELECT count(*) FROM t") == [(3,)]
    assert len(as_json("members", served.paths[to])) == 1


def test_serve_ends_in_good_order(box, served):
    """SIGTERM: in less than two seconds, with the leadership handed over, and no error at the others' clients."""
    run("sql", "CREATE TABLE t(who, n); CREATE TABLE acked(id INTEGER PRIMARY KEY, who TEXT, seq INT)", served.paths[0])
    leader = served.leader()
    stop, errors, done = threading.Event(), [], []

    def write(path, who):
        n = 0
        while not stop.is_set():
            try:
                run("sql", "INSERT INTO t VALUES('%s', %d)" % (who, n), path)
                n += 1
            except BaseException as e:
                errors.append(e)
                return
        done.append(n)

    threads = [threading.Thread(target=write, args=(p, str(i))) for i, p in enumerate(served.paths) if i != leader]
    for t in threads:
        t.start()
    other = served.paths[(leader + 1) % 3]
    wait_until("they write", lambda: sql(other, "SELECT count(*) FROM t")[0][0] > 10, 30)
    fast = box.worker("fast")
    fast.call("writer_start", conn="writers", who="fast", path=other, acks=box.path("acked-fast"))
    wait_until("it writes", lambda: fast.call("writer_state", who="fast")["n"] > 50, 30)
    took = served.serves[leader].end()
    n = sql(other, "SELECT count(*) FROM t")[0][0]
    wait_until("they go on", lambda: sql(other, "SELECT count(*) FROM t")[0][0] > n + 10, 30)
    stop.set()
    for t in threads:
        t.join()
    state = fast.call("writer_stop", conn="writers", who="fast")
    assert state["errors"] == []
    fast.end()
    print("ended in %.2f s" % took)
    assert errors == []
    assert took < 2 * SLOW
    assert served.serves[leader].said("leadership handed over to member")
    assert sql(other, "SELECT count(*) FROM t") == [[sum(done)]]
    assert plain(served.paths[leader], "PRAGMA integrity_check") == [("ok",)]  # complete, and nobody has it open
    served.serves[leader] = Serve(served.paths[leader]).ready()
    wait_until("it has caught up", lambda: sql(served.paths[leader], "SELECT count(*) FROM t") == [[sum(done)]], 30)


def test_serve_takes_over(box):
    """A second one is attached, says so, and takes over when the first is killed."""
    path = box.path("a.db")
    first = Serve(path, "--bind", address()).ready()
    second = Serve(path).ready()
    assert second.said("attached to process %d" % first.p.pid)
    first.end(signal.SIGKILL)
    wait_until("it takes over", lambda: second.said("this process hosts the member"), 20)
    assert status(path)["host_pid"] == second.p.pid
    assert second.end(signal.SIGINT) < 2 * SLOW


def test_serve_under_a_service_manager(box):
    """READY=1 when it is up, STOPPING=1 when it ends; DUST_BIND from the environment; no times when there is a journal."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(box.path("notify"))
    s.settimeout(30 * SLOW)
    own = address()
    serve = Serve(box.path("a.db"), env={"NOTIFY_SOCKET": box.path("notify"), "DUST_BIND": own, "JOURNAL_STREAM": "1:1"})
    assert s.recv(100) == b"READY=1\n"
    assert status(box.path("a.db"))["address"] == own
    serve.end()
    assert s.recv(100) == b"STOPPING=1\n"
    assert serve.lines[0].startswith(box.path("a.db")), serve.lines
    with open(os.path.join(os.path.dirname(DUST), "dust@.service")) as f:
        unit = f.read()
    assert re.search(r"^ExecStart=\S+/dust serve %f$", unit, re.M) and "Type=notify" in unit


def test_log_follow(box, served):
    a, b = served.paths[:2]
    p = subprocess.Popen([DUST, "log", "--follow", "--json", b], stdout=subprocess.PIPE, text=True, env=child_env())
    run("sql", "CREATE TABLE t(x)", a)
    seen = []
    while not seen or "CREATE TABLE t(x)" not in (seen[-1]["statements"] or ""):
        seen.append(json.loads(p.stdout.readline()))
    run("sql", "INSERT INTO t VALUES('now')", a)
    t = time.monotonic()
    while "'now'" not in (seen[-1]["statements"] or ""):
        seen.append(json.loads(p.stdout.readline()))
    assert time.monotonic() - t < 2 * SLOW
    assert [e["idx"] for e in seen] == sorted({e["idx"] for e in seen})
    p.send_signal(signal.SIGINT)
    assert p.wait(20 * SLOW) == 0


def test_backup_while_it_is_written(box, served):
    """Each copy is one moment: the sum of the accounts is what it always is."""
    a, b, _ = served.paths
    run("sql", "CREATE TABLE acct(id INTEGER PRIMARY KEY, n, pad); WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE "
        "i < 2000) INSERT INTO acct SELECT i, 100, randomblob(2000) FROM r", a)
    m = box.worker("w")
    m.open(a)
    job = m.start("py", conn="job", arg=[a, box.path("stop")], code="""
import random
c = connect(arg[0], timeout=30)
n = 0
while not os.path.exists(arg[1]):
    x, y = random.sample(range(1, 2001), 2)
    c.execute("BEGIN IMMEDIATE")
    c.execute("UPDATE acct SET n = n - 1 WHERE id = ?", (x,))
    c.execute("UPDATE acct SET n = n + 1 WHERE id = ?", (y,))
    c.execute("COMMIT")
    n += 1
result = n
""")
    for i in range(4):
        copy = box.path("copy%d.db" % i)
        assert "pages of" in run("backup", copy, (a, b)[i % 2])
        assert plain(copy, "SELECT sum(n), count(*) FROM acct") == [(200000, 2000)]
        assert plain(copy, "PRAGMA integrity_check") == [("ok",)]
        plain(copy, "INSERT INTO acct(n) VALUES(0)")  # an ordinary database
        assert sorted(x for x in os.listdir(box.dir) if x.startswith("copy%d" % i)) == ["copy%d.db" % i]
    with open(box.path("stop"), "w"):
        pass
    assert m.get(job, 60) > 10
    assert "exists" in run("backup", box.path("copy0.db"), a, code=1)
    assert "exists" in run("backup", b, a, code=1)
    assert run("backup", box.path("no/such/folder.db"), a, code=1)
    assert m.error("SELECT dust_backup(?)", box.path("copy0.db")).text != ""
    assert "pages of" in m.one("SELECT dust_backup(?)", box.path("by_sql.db"))


def test_restore_and_recover(box, served):
    a = served.paths[0]
    run("sql", "CREATE TABLE t(x); INSERT INTO t VALUES(1), (2)", a)
    run("backup", box.path("copy.db"), a)
    plain(box.path("wal.db"), "PRAGMA journal_mode = WAL")
    plain(box.path("wal.db"), "CREATE TABLE t(x)")
    plain(box.path("wal.db"), "INSERT INTO t VALUES(7)")
    for source, want in (("copy.db", 2), ("wal.db", 1)):
        new = box.path("new-" + source)
        assert "first member of a new cluster" in run("restore", box.path(source), new, "--bind", "127.0.0.1:0")
        assert sql(new, "SELECT count(*) FROM t") == [[want]]
        assert "exists" in run("restore", box.path(source), new, "--bind", "127.0.0.1:0", code=1)
    for s in served.serves:
        s.end()
    with open(a, "rb") as f, open(box.path("bare.db"), "wb") as g:
        g.write(f.read())  # with the marks of its cluster, and without its folder
    run("restore", box.path("bare.db"), box.path("new-bare.db"), "--bind", "127.0.0.1:0")
    assert sql(box.path("new-bare.db"), "SELECT count(*) FROM t") == [[2]]
    assert "ordinary database" in run("recover", served.paths[1], box.path("left.db"))
    assert plain(box.path("left.db"), "SELECT count(*) FROM t") == [(2,)]
    with open(box.path("junk.db"), "w") as f:
        f.write("this is no database" * 100)
    assert run("restore", box.path("junk.db"), box.path("n.db"), "--bind", "127.0.0.1:0", code=1)
    assert not os.path.exists(box.path("n.db")) and not os.path.exists(box.path("n.db-dust"))


def test_no_majority(box, served):
    """A write that cannot be agreed on ends with a code of its own, and reads go on."""
    a = served.paths[0]
    run("sql", "CREATE TABLE t(x)", a)
    for s in served.serves[1:]:
        s.end(signal.SIGKILL)
    p = subprocess.run([DUST, "sql", "INSERT INTO t VALUES(1)", a, "--timeout", "1000"], capture_output=True, text=True,
                       env=child_env(), stdin=subprocess.DEVNULL, timeout=100 * SLOW)
    assert p.returncode in (3, 4) and p.stderr.startswith("dust: "), p  # no leader, or it had just been handed in
    assert json.loads(run("sql", "SELECT count(*) AS n FROM t", a, "--json")) == [{"n": 0}]


def test_a_member_without_a_leader_is_looked_at(box, served):
    """Nothing it has can be confirmed; what it is can be told, and at once: by a process that is attached, and by one that
    has to host it. What reads the database gets the reason with the refusal."""
    a = served.paths[0]
    run("sql", "CREATE TABLE t(x)", a)
    for s in served.serves[1:]:
        s.end(signal.SIGKILL)
    wait_until("no leader", lambda: status(a)["leader_id"] == 0, 30)

    def look(*args):
        began = time.monotonic()
        p = subprocess.run([DUST, *args], capture_output=True, text=True, env=child_env(), stdin=subprocess.DEVNULL,
                           timeout=100 * SLOW)
        assert p.returncode == 0 and "knows no leader" in p.stderr, p
        assert time.monotonic() - began < 4 * SLOW
        return json.loads(p.stdout)

    for hosted_here in (False, True):
        if hosted_here:
            served.serves[0].end(signal.SIGKILL)
        said = {r["name"]: r["value"] for r in look("status", a, "--json")}
        assert said["leader_id"] == 0 and (said["pid"] == said["host_pid"]) == hosted_here, said
        assert [m["is_leader"] for m in look("members", a, "--json")] == [0, 0, 0]
        assert look("log", a, "--json")[0]["kind"] == "configuration"
    assert "no leader is known" in run("sql", "SELECT * FROM t", a, "--timeout", "100", code=3)


def test_bench(box, served):
    """Every stage did something, plain SQLite too, and nothing is left of it; nor when it is interrupted."""
    a, b, _ = served.paths
    rows = json.loads(run("bench", a, "--seconds", "1", "--clients", "1,3", "--json"))
    assert [r["clients"] for r in rows] == [1] * 5 + [3] * 5
    for r in rows:
        assert r["per_second"] > 0 and r["errors"] == 0, r
        assert 0 <= r["p50_ms"] <= r["p99_ms"] <= r["p999_ms"] <= r["max_ms"] and r["max_ms"] > 0, r
        assert (r["of_plain"] is None) == ("plain" in r["what"])
    assert sql(a, "SELECT count(*) FROM sqlite_master WHERE name = 'dust_bench'") == [[0]]
    assert not [x for x in os.listdir(box.dir) if "bench" in x]
    p = subprocess.Popen([DUST, "bench", b, "--seconds", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=child_env(), stdin=subprocess.DEVNULL)
    wait_until("it works", lambda: sql(a, "SELECT count(*) FROM sqlite_master WHERE name = 'dust_bench'") == [[1]])
    assert "dust_bench" in run("bench", a, code=1)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=60 * SLOW)
    assert p.returncode == 1 and "insert" in out
    assert sql(a, "SELECT count(*) FROM sqlite_master WHERE name = 'dust_bench'") == [[0]]
    assert not [x for x in os.listdir(box.dir) if "bench" in x]
    assert "numbers" in run("bench", a, "--clients", "0", code=2)
