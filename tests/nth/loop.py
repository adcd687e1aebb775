"""Makes call after call of a scenario fail. What fails, and what must hold then: runner.py.

    DUST_LIB=… loop.py [--seed N] [--budget N] SCENARIO KIND MODE [N ...]

tries every call, from the first on, until a run meets none; or the calls N; or, with a budget, as many of them, each
from another place in the program. As scenario, kind and mode `all` means each. Prints what was wrong, and a sum.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

from cluster import LIB, PYTHON, SLOW, child_env, copy_folder, free_port  # noqa: E402

NTH = os.environ.get("NTH_LIBRARY") or os.path.join(os.path.dirname(LIB), "tests", "libnth.so")
MEMORY, DISK, NETWORK, LOOP = 1, 2, 4, 8
DUST, RAFT, UV, SQLITE = 1, 2, 4, 8
# nanomsg ends the process when its memory runs out, and libraft does not survive all of that either: only dust's own.
KINDS = {"memory": (MEMORY, DUST), "disk": (DISK, DUST | RAFT | UV | SQLITE), "network": (NETWORK | LOOP, DUST)}
MODES = {"once": 0, "persistent": 1, "short": 2}
SCENARIOS = ["one", "start", "open", "join", "follow", "fetch", "recover", "leave", "attach", "host", "takeover"]


def cases():
    for scenario in SCENARIOS:
        for kind in KINDS:
            for mode in MODES:
                if mode != "short" or (kind == "disk" and scenario != "attach"):  # a process that is attached writes no file
                    yield scenario, kind, mode


class Sum:
    """Of a loop: calls met by a run without a failure, runs in which one failed, what was wrong, the worst."""

    def __init__(self, calls):
        self.calls, self.failed, self.wrong, self.seconds, self.longest = calls, 0, [], time.monotonic(), (0, 0)

    def __str__(self):
        return "%5d calls met, %5d made to fail, %3d wrong (%.0f s; call %d took %.1f s)" % (
            self.calls, self.failed, len(self.wrong), time.monotonic() - self.seconds, self.longest[1], self.longest[0])


class Loop:
    def __init__(self, folder):
        self.dir = os.path.realpath(folder)
        self.p = subprocess.Popen([PYTHON, "-B", os.path.join(HERE, "runner.py")], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, env=child_env())
        self.tell({"lib": LIB, "nth": NTH, "control": os.path.join(self.dir, "control")})

    def tell(self, request):
        self.p.stdin.write(json.dumps(request) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        assert line, "the runner has ended: %s" % self.p.wait(10)
        return json.loads(line)

    def ask(self, what, scenario, folder, **more):
        return self.tell(dict(more, what=what, scenario=scenario, dir=folder, port=self.port, limit=100 * SLOW))

    def prepare(self, scenario):
        """The files that each run begins with."""
        self.scenario = scenario
        self.made, self.live = os.path.join(self.dir, "made"), os.path.join(self.dir, "live")
        self.port = free_port()
        shutil.rmtree(self.made, ignore_errors=True)
        os.mkdir(self.made)
        self.place()
        r = self.ask("make", scenario, self.live)
        assert r["wrong"] == [], r["wrong"]
        shutil.rmtree(self.made)
        os.rename(self.live, self.made)

    def place(self):
        end = time.monotonic() + 10
        shutil.rmtree(self.live, ignore_errors=True)
        while os.path.exists(self.live) and time.monotonic() < end:  # another process of the last run is just ending
            time.sleep(0.01)
            shutil.rmtree(self.live, ignore_errors=True)
        copy_folder(self.made, self.live)

    def one(self, kind, mode, n):
        """A run in which the nth call fails (0: none), and a look at what it left."""
        kinds, libs = KINDS[kind]
        self.place()
        r = self.ask("run", self.scenario, self.live, kinds=kinds, libs=libs, mode=MODES[mode], n=n)
        if r["wrong"] == []:
            again = self.ask("look", self.scenario, self.live, acked=r["acked"], refused=r["refused"])
            r["wrong"] = ["opened again: " + x for x in again["wrong"]]
        return r

    def run(self, scenario, kind, mode, which=None, budget=0, seed=0, say=None, seconds=1e9):
        """Those in `which`; or a sample, for so many seconds; or all."""
        self.prepare(scenario)
        r = self.one(kind, mode, 0)
        assert r["wrong"] == [], "without a failure: %s" % r["wrong"]
        out = Sum(r["met"])
        if which is None and budget:
            which = sample(r["calls"], budget, "%s %s %s %s" % (seed, scenario, kind, mode))
        n, more, end = 0, list(which or []), time.monotonic() + seconds
        while (more or which is None) and (out.failed == 0 or time.monotonic() < end):
            n = more.pop(0) if more else n + 1
            t = time.monotonic()
            r = self.one(kind, mode, n)
            out.longest = max(out.longest, (time.monotonic() - t, n))
            out.failed += r["failed"] > 0
            if r["wrong"]:
                out.wrong.append("%s %s %s %d, %s in %s: %s" % (
                    scenario, kind, mode, n, r["call"], r["stack"], "; ".join(r["wrong"])[:3000]))
                if say:
                    say(out.wrong[-1])
            if which is None and r["failed"] == 0:
                break
        return out

    def shut(self):
        self.p.stdin.close()
        self.p.wait(30)


def sample(calls, budget, seed):
    """Of the first calls from each place. calls: a hash of the stack of each."""
    first = {}
    for i, stack in enumerate(calls):
        first.setdefault(stack, i + 1)
    return random.Random(seed).sample(sorted(first.values()), min(budget, len(first)))


def main(args):
    seed, budget = "0", 0
    while args and args[0].startswith("--"):
        if args[0] == "--seed":
            seed = args[1]
        else:
            budget = int(args[1])
        args = args[2:]
    wanted, which = args[:3], [int(x) for x in args[3:]] or None
    bad = 0
    folder = tempfile.mkdtemp(prefix="nth.", dir=os.environ.get("DUST_TMP"))
    loop = Loop(folder)
    for case in cases():
        if all(w in ("all", c) for w, c in zip(wanted, case)):
            s = loop.run(*case, which=which, budget=budget, seed=seed, say=lambda x: print("  " + x, flush=True))
            print("%-8s %-8s %-10s %s" % (case + (s,)), flush=True)
            bad += len(s.wrong)
    loop.shut()
    shutil.rmtree(folder)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
