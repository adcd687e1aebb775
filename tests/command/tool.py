"""The program `dust`, as a user runs it."""
import json
import os
import signal
import subprocess
import threading
import time

from cluster import LIB, SLOW, address, child_env, wait_until

DUST = os.path.join(os.path.dirname(LIB), "dust")


def run(*args, code=0, env=None, timeout=100, cwd=None):
    """What it printed. code: that it has to end with; None: any."""
    p = subprocess.run([DUST, *args], capture_output=True, text=True, env=child_env(env), timeout=timeout * SLOW, cwd=cwd,
                       stdin=subprocess.DEVNULL)
    assert code is None or p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p.stdout if code == 0 else p.stdout + p.stderr


def as_json(*args):
    return json.loads(run(*args, "--json"))


def sql(path, text):
    """Rows, as lists."""
    return [list(r.values()) for r in as_json("sql", text, path)]


def status(path):
    return {r["name"]: r["value"] for r in as_json("status", path)}


class Serve:
    """`dust serve`, until it is told to end."""

    def __init__(self, path, *args, env=None):
        self.path = path
        self.p = subprocess.Popen([DUST, "serve", path, *args], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env=child_env(env), stdin=subprocess.DEVNULL)
        self.lines = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.p.stderr:
            self.lines.append(line)

    def said(self, text):
        return any(text in line for line in self.lines)

    def ready(self):
        wait_until("it serves", lambda: self.said("members: ") or self.p.poll() is not None, 60)
        assert self.p.poll() is None, self.lines
        return self

    def end(self, how=signal.SIGTERM):
        """Seconds that it took."""
        t = time.monotonic()
        self.p.send_signal(how)
        code = self.p.wait(60 * SLOW)
        t = time.monotonic() - t
        self.reader.join()
        assert how == signal.SIGKILL or code == 0, (code, self.lines)
        return t


class Served:
    """Three members, each by a process that does nothing else."""

    def __init__(self, box):
        self.paths = [box.path(x + ".db") for x in "abc"]
        self.addresses = [address() for _ in self.paths]
        run("start", self.paths[0], "--bind", self.addresses[0])
        self.serves = [Serve(self.paths[0]).ready()]
        for path, own in zip(self.paths[1:], self.addresses[1:]):
            self.serves.append(Serve(path, "--bind", own, "--join", self.addresses[0]).ready())
        wait_until("three voters", lambda: [m["role"] for m in as_json("members", self.paths[0])] == ["voter"] * 3, 30)

    def leader(self):
        return wait_until("a leader", lambda: [i for i, p in enumerate(self.paths)
                                               if self.serves[i].p.poll() is None and status(p)["role"] == "leader"], 30)[0]

    def shut(self):
        for s in self.serves:
            if s.p.poll() is None:
                s.end()
