"""One call fails, or all from it on: of memory, of the disk, of the network; call after call, until a run meets none.

What fails, and what must hold then: runner.py. Environment: NTH_ALL=1 tries every call (by hand: hours); else one call
for each place in the program, and of these a sample. NTH_SEED chooses the sample. NTH_LIBRARY: the injector.
"""
import json
import os
import random
import shutil
import subprocess
import time

import pytest

from cluster import LIB, PYTHON, SLOW, child_env, free_port, scaled

HERE = os.path.dirname(os.path.abspath(__file__))
NTH = os.environ.get("NTH_LIBRARY", os.path.join(os.path.dirname(LIB), "tests", "libnth.so"))
ALL = os.environ.get("NTH_ALL", "") == "1"
MEMORY, DISK, NETWORK, LOOP = 1, 2, 4, 8
DUST, RAFT, UV, SQLITE = 1, 2, 4, 8
ONCE, FROM_THEN_ON, SHORT = 0, 1, 2
KINDS = {"memory": (MEMORY, DUST), "disk": (DISK, DUST | RAFT | UV | SQLITE), "network": (NETWORK | LOOP, DUST)}
MODES = {"once": ONCE, "persistent": FROM_THEN_ON, "short": SHORT}


class Runner:
    def __init__(self, folder):
        self.dir = folder
        self.p = subprocess.Popen([PYTHON, "-B", os.path.join(HERE, "runner.py")], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, env=child_env())
        self.ports = [free_port() for _ in range(1)]
        self.tell({"lib": LIB, "nth": NTH, "control": os.path.join(folder, "control")})

    def tell(self, request):
        self.p.stdin.write(json.dumps(request) + "\n")
        self.p.stdin.flush()
        line = self.p.stdout.readline()
        assert line, "the runner has ended: %s" % self.p.wait(10)
        return json.loads(line)

    def run(self, what, scenario, folder, **more):
        return self.tell(dict(more, what=what, scenario=scenario, dir=folder, port=self.port, limit=100 * SLOW))

    def loop(self, scenario, kind, mode, budget):
        """Gives the number of calls that were made to fail, and what went wrong."""
        made, live = os.path.join(self.dir, "made"), os.path.join(self.dir, "live")
        kinds, libs = KINDS[kind]
        self.port = free_port()
        shutil.rmtree(made, ignore_errors=True)
        os.mkdir(made)
        r = self.run("make", scenario, made)
        assert r["wrong"] == [], r
        wrong, tried, chosen, n = [], 0, None, 0
        while chosen is None or chosen:
            if chosen is not None:
                n = chosen.pop(0)
            shutil.rmtree(live, ignore_errors=True)
            shutil.copytree(made, live)
            r = self.run("run", scenario, live, kinds=kinds, libs=libs, mode=MODES[mode], n=n)
            if chosen is None:
                assert r["wrong"] == [], "without a failure: %s" % r["wrong"]
                chosen = self.choose(r["met"], r["calls"], budget)
                calls = r["met"]
                continue
            tried += r["failed"] > 0
            if r["wrong"] == []:
                again = self.run("look", scenario, live, acked=r["acked"], refused=r["refused"])
                r["wrong"] = ["opened again: " + x for x in again["wrong"]]
            if r["wrong"]:
                wrong.append("call %d, %s, %s: %s" % (n, r["call"], mode, "; ".join(r["wrong"])[:3000]))
            if ALL and r["failed"] > 0 and not chosen:
                chosen.append(n + 1)
        print("%s, %s, %s: %d calls, %d made to fail, %d wrong" % (scenario, kind, mode, calls, tried, len(wrong)))
        return tried, wrong

    @staticmethod
    def choose(met, calls, budget):
        if ALL:
            return [1]
        first = {}
        for i, stack in enumerate(calls):
            first.setdefault(stack, i + 1)
        chosen = sorted(first.values())
        rng = random.Random(os.environ.get("NTH_SEED", str(time.time_ns() if "NTH_SEED" not in os.environ else 0)))
        return sorted(rng.sample(chosen, min(budget, len(chosen))))

    def shut(self):
        self.p.stdin.close()
        self.p.wait(30)


@pytest.fixture
def runner(box):
    r = Runner(os.path.realpath(box.dir))
    yield r
    r.shut()


@pytest.mark.parametrize("mode", ["once", "persistent"])
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("scenario", ["one", "start", "open", "join"])
def test_nth(runner, scenario, kind, mode):
    tried, wrong = runner.loop(scenario, kind, mode, scaled(4, 2))
    assert not wrong, "%d of %d:\n%s" % (len(wrong), tried, "\n".join(wrong[:5]))
    assert tried > 0
