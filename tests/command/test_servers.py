"""Web servers with several workers on one member, under load, while the cluster's leader is killed: no request fails."""
import os
import re
import signal
import subprocess
import time

import pytest

from cluster import LIB, SLOW, child_env, free_port, scaled, wait_until
from tool import DUST, Served, as_json, run, sql, status

HERE = os.path.dirname(os.path.abspath(__file__))


def fetch(port, path):
    p = subprocess.run(["/usr/bin/python3", "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())",
                        "http://127.0.0.1:%d%s" % (port, path)], capture_output=True, text=True)
    return p.stdout.strip()


def gunicorn(port, path):
    return subprocess.Popen(["/usr/bin/python3", "-B", "-m", "gunicorn", "--preload", "-w", "4", "-b", "127.0.0.1:%d" % port,
                             "--log-level", "warning", "--timeout", "60", "--chdir", HERE, "wsgi_app:app"],
                            env=child_env({"APP_LIB": LIB, "APP_DB": path}), stdin=subprocess.DEVNULL,
                            stderr=open(path + ".log", "w"), start_new_session=True)


def php(port, path):
    return subprocess.Popen([DUST, "run", "--", "php", "-q", "-S", "127.0.0.1:%d" % port, os.path.join(HERE, "app.php")],
                            env=child_env({"APP_DB": path, "PHP_CLI_SERVER_WORKERS": "4"}), stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.parametrize("server", [gunicorn, php])
def test_under_load(box, server):
    served = Served(box)
    a, b, c = served.paths
    run("sql", "CREATE TABLE hits(id INTEGER PRIMARY KEY, pid); INSERT INTO hits(pid) VALUES(0)", a)
    served.serves[0].end()  # from now on the server's processes host that member
    port = free_port()
    p = server(port, a)
    try:
        wait_until("it answers", lambda: fetch(port, "/write") == "written", 60)
        leader = 1 if status(b)["role"] == "leader" else 2
        if status(b)["role"] != "leader" and status(c)["role"] != "leader":
            run("transfer", str(as_json("members", b)[1]["id"]), b)
            leader = wait_until("b leads", lambda: 1 if status(b)["role"] == "leader" else 0, 20)
        before = sql(b, "SELECT count(*) FROM hits")[0][0]
        seconds = scaled(12, 6)
        load = subprocess.Popen(["wrk", "-t", "1", "-c", "8", "-d", "%ds" % seconds, "--timeout", "60s", "-s",
                                 os.path.join(HERE, "mix.lua"), "http://127.0.0.1:%d" % port], stdout=subprocess.PIPE, text=True)
        wait_until("half of it is over", lambda end=time.monotonic() + seconds / 2: time.monotonic() > end, seconds)
        served.serves[leader].end(signal.SIGKILL)
        out, _ = load.communicate(timeout=100 * SLOW)
        r = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", out[out.index("RESULT"):])}
        print("%s: %s" % (server.__name__, r))
        assert r["requests"] > 50 and r["written"] > 5, out
        assert [r[k] for k in ("bad", "connect", "read", "write", "timeout")] == [0] * 5, out
        other = served.paths[3 - leader]
        wait_until("all is there", lambda: sql(other, "SELECT count(*) FROM hits")[0][0] >= before + r["written"], 30)
        assert sql(other, "SELECT count(*) FROM hits")[0][0] <= before + r["written"] + 8  # those that wrk did not wait for
        assert sql(other, "SELECT count(DISTINCT pid) > 2 FROM hits") == [[1]]
    finally:
        os.killpg(p.pid, signal.SIGTERM)
        try:
            p.wait(30 * SLOW)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        served.shut()
    if server is gunicorn:
        with open(a + ".log") as f:
            log = f.read()
        assert not re.search("due to signal (11|6)|Traceback", log), log
