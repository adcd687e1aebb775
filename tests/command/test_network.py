"""Members at addresses that others can reach, in a network namespace made here: only with a key."""
import os
import subprocess

import pytest

import tool
from cluster import child_env, wait_until

DUST = tool.DUST
ADDRESSES = ["10.77.0.%d" % i for i in (1, 2, 3)] + ["fd77::1"]


class Net:
    """A namespace whose loopback device has more addresses; programs run in it."""

    def __init__(self):
        user = [] if os.getuid() == 0 else ["--map-root-user"]
        self.p = subprocess.Popen(["unshare", "--net", *user, "sh", "-c", "ip link set lo up && for a in %s; do "
                                   "ip addr add $a dev lo; done && echo up && exec cat" % " ".join(
                                       a + ("/128" if ":" in a else "/32") for a in ADDRESSES)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.up = self.p.stdout.readline() == "up\n"
        self.prefix = ["nsenter", "--net=/proc/%d/ns/net" % self.p.pid] + (
            [] if os.getuid() == 0 else ["--user=/proc/%d/ns/user" % self.p.pid, "--preserve-credentials"])

    def run(self, *args, code=0):
        p = subprocess.run([*self.prefix, DUST, *args], capture_output=True, text=True, env=child_env(), timeout=100,
                           stdin=subprocess.DEVNULL)
        assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
        return p.stdout + p.stderr

    def serve(self, *args):
        return subprocess.Popen([*self.prefix, DUST, "serve", *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, env=child_env())

    def close(self):
        self.p.stdin.close()
        self.p.wait(10)


@pytest.fixture
def net():
    n = Net()
    if not n.up:
        why = n.p.stderr.read()
        n.close()
        pytest.skip("no network namespace: " + why)
    yield n
    n.close()


def test_other_addresses(box, net):
    key = box.path("cluster.key")
    said = net.run("key", key)
    assert os.stat(key).st_mode & 0o777 == 0o600
    assert "exists" in net.run("key", key, code=1).lower()  # is not overwritten
    hint = said.split("the key ")[1].split(".")[0]
    paths = [box.path(x + ".db") for x in "abc"]
    assert "dust key" in net.run("start", paths[0], "--bind", "10.77.0.1:4001", code=1)
    assert "advertise" in net.run("start", paths[0], "--bind", "0.0.0.0:4001", "--keyfile", key, code=1)
    assert not os.path.exists(paths[0] + "-dust")
    served = []
    try:
        served.append(net.serve(paths[0], "--bind", "10.77.0.1:4001", "--keyfile", key))
        wait_until("it is up", lambda: os.path.exists(paths[0] + "-dust/member"), 20)
        served.append(net.serve(paths[1], "--bind", "0.0.0.0:4002", "--advertise", "10.77.0.2:4002", "--join",
                                "10.77.0.1:4001", "--keyfile", key))
        served.append(net.serve(paths[2], "--bind", "[fd77::1]:4003", "--join", "10.77.0.1:4001", "--keyfile", key))
        wait_until("three voters", lambda: net.run("sql", "SELECT count(*) FROM dust_members WHERE role = 'voter'",
                                                   paths[0]).split()[-1] == "3", 40, every=0.2)
        net.run("sql", "CREATE TABLE t(x)", paths[0])
        for p in paths:
            net.run("sql", "INSERT INTO t VALUES (1)", p)
            assert hint in net.run("status", p)
        served[0].kill()
        served[0].wait()
        net.run("sql", "INSERT INTO t VALUES (2)", paths[1])
        # Back by its path alone; but not when its key is gone.
        os.rename(paths[0] + "-dust/key", box.path("aside"))
        assert "key is gone" in net.run("status", paths[0], code=1)
        served[0] = net.serve(paths[0], "--keyfile", key)
        wait_until("it has its key again", lambda: os.path.exists(paths[0] + "-dust/key"), 30)
        wait_until("it is back", lambda: net.run("sql", "SELECT count(*) FROM t", paths[0]).split()[-1] == "4", 30)
    finally:
        for p in served:
            p.kill()
            p.wait()
