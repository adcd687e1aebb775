"""Runs the tests of all suites, on up to three builds; called by tools/check, which installs what they need.

    check.py [quick] [normal|asan|tsan ...] [unit|fuzz|sim|sql|cluster|attach|command|crash|nth|faults ...]

With names of builds or suites, only those. Each unit program and each Python file is one run, with a time limit and a
log of its own in BUILD/check/. What fails is printed. The last line is the sum: N passed, N failed, N skipped.
"""
import glob
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = "/usr/bin/python3"
CORES = os.cpu_count() or 1
SUITES = ["unit", "fuzz", "sim", "sql", "cluster", "attach", "command", "crash", "nth", "faults"]

SANITIZED = {"cluster": "sanitize", "attach": "sanitize", "faults": "sanitize"}

# san: what meson is told. suites: those that run. select: which Python tests (pytest -m). slow, scale: DUST_SLOW,
# DUST_SCALE.
BUILDS = {
    "normal": {"dir": "build", "options": [], "suites": SUITES, "slow": 1, "scale": 1},
    "asan": {
        "dir": "build-asan",
        "options": ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Db_ndebug=false", "-Dbench=false"],
        "suites": ["unit", "fuzz", "sql", "cluster", "attach", "faults"], "select": SANITIZED, "slow": 4, "scale": 0.25,
        "preload": "libasan.so",
    },
    "tsan": {
        "dir": "build-tsan",
        "options": ["-Db_sanitize=thread", "-Db_lundef=false", "-Db_ndebug=false", "-Dbench=false"],
        "suites": ["unit", "fuzz", "cluster", "attach", "faults"], "select": SANITIZED, "slow": 4, "scale": 0.25,
        "preload": "libtsan.so",
    },
}
LIMIT = {  # seconds, one run
    "unit": 300, "fuzz": 300, "sim": 1800, "sql": 300, "cluster": 400, "attach": 400, "command": 300, "crash": 400, "nth": 600, "faults": 600,
}
MUTATIONS = 20000  # of the corpus of a fuzz target

started = time.monotonic()
say_lock = threading.Lock()
total = {"passed": 0, "failed": 0, "skipped": 0}


def say(text):
    with say_lock:
        print("[%4d s] %s" % (time.monotonic() - started, text), flush=True)


class Run:
    """One program to run: what it is called, how it is started, how its results are counted."""

    def __init__(self, build, suite, name, argv, env):
        self.build, self.suite, self.name, self.argv, self.env = build, suite, name, argv, env
        self.base = os.path.join(build["path"], "check", suite + "-" + name)
        self.log = self.base + ".log"

    def __call__(self):
        limit = LIMIT[self.suite] * (2 if self.build.get("preload") else 1)
        env = dict(os.environ, **self.env)
        t = time.monotonic()
        late = False
        with open(self.log, "w") as f:
            p = subprocess.Popen(self.build["prefix"] + self.argv, stdin=subprocess.DEVNULL, stdout=f,
                                 stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True)
            try:
                p.wait(limit)
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()
        try:
            os.killpg(p.pid, signal.SIGKILL)  # what it may have left behind
        except ProcessLookupError:
            pass
        with open(self.log, errors="replace") as f:
            text = f.read()
        passed, failed, skipped = self.count(text, p.returncode)
        why = []
        if late:
            why.append("stopped after %d s" % limit)
        elif p.returncode < 0:
            why.append("killed by signal %d" % -p.returncode)
        reports = [r for r in glob.glob(glob.escape(self.base) + ".san.*") if os.path.getsize(r) > 0]
        if reports:
            why.append("%d sanitizer reports" % len(reports))
            failed += len(reports)
        if failed == 0 and (late or p.returncode not in (0, 77)):
            failed = 1
        if passed + failed + skipped == 0:
            if p.returncode == 77:
                skipped = 1
            elif self.suite in ("unit", "fuzz", "sim"):
                failed = 1
                why.append("it ran no test")
        with say_lock:
            for k, n in (("passed", passed), ("failed", failed), ("skipped", skipped)):
                total[k] += n
        if passed + failed + skipped == 0:
            return
        say("%-6s %-7s %-22s %4d passed%s%s  (%.0f s)%s" % (
            self.build["name"], self.suite, self.name, passed, ", %d FAILED" % failed if failed else "",
            ", %d skipped" % skipped if skipped else "", time.monotonic() - t, "  " + "; ".join(why) if why else ""))
        if failed:
            with say_lock:
                print("    ---- %s, the end of it:" % os.path.relpath(self.log, ROOT))
                for line in text.splitlines()[-120:]:
                    print("    " + line)
                for r in reports[:3]:
                    print("    ---- %s:" % os.path.relpath(r, ROOT))
                    with open(r, errors="replace") as f:
                        for line in f.read().splitlines()[:60]:
                            print("    " + line)
                sys.stdout.flush()

    def count(self, text, status):
        if self.suite in ("unit", "fuzz"):  # cmocka's TAP, and that of fuzz/replay.c
            skipped = len(re.findall(r"^(?:not )?ok\b.*# SKIP", text, re.M))  # cmocka says "not ok N # SKIP"
            passed = len(re.findall(r"^ok\b(?!.*# SKIP)", text, re.M))
            failed = len(re.findall(r"^not ok\b(?!.*# SKIP)", text, re.M))
            planned = sum(int(n) for n in re.findall(r"^1\.\.(\d+)", text, re.M))
            if status not in (0, 77) and passed + failed + skipped < planned:
                failed = planned - passed - skipped
            return passed, failed, skipped
        if self.suite == "sim":
            m = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped", text, re.M)
            return tuple(int(x) for x in m[-1]) if m else (0, 1, 0)
        try:
            suite = xml.etree.ElementTree.parse(self.base + ".xml").getroot().find("testsuite")
        except (OSError, xml.etree.ElementTree.ParseError):
            return (0, 0, 0) if status == 5 else (0, 1, 0)
        n = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
        bad = n["failures"] + n["errors"]
        return n["tests"] - bad - n["skipped"], bad, n["skipped"]


def runtime_of(name):
    """The full path of gcc's sanitizer runtime."""
    p = subprocess.run(["gcc", "-print-file-name=" + name], capture_output=True, text=True)
    path = p.stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None


def sanitizer_env(build, base):
    """Reports go to files beside the run's log, and end nothing by themselves in a guest's process."""
    tests = os.path.join(ROOT, "tests")
    log = "log_path=%s.san" % base
    host = build.get("preload") == "libasan.so"
    return {
        # Memory that the host program leaks is not our matter.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66:%s" % log if host else "",
        "UBSAN_OPTIONS": "print_stacktrace=1:%s" % log,
        "LSAN_OPTIONS": "suppressions=%s/lsan.supp" % tests,
        "TSAN_OPTIONS": "exitcode=66:second_deadlock_stack=1:history_size=4:suppressions=%s/tsan.supp:%s" % (tests, log),
    }


def runs_of(build, suites):
    path = build["path"]
    sanitized = "preload" in build
    for suite in suites:
        if suite in ("unit", "fuzz"):
            prefix = {"unit": "test_", "fuzz": "fuzz_"}[suite]
            for exe in sorted(glob.glob(os.path.join(path, "tests", prefix + "*"))):
                if os.access(exe, os.X_OK) and os.path.isfile(exe):
                    name = os.path.basename(exe)[len(prefix):]
                    base = os.path.join(path, "check", suite + "-" + name)
                    env = {"CMOCKA_MESSAGE_OUTPUT": "TAP"}
                    if sanitized:
                        # A unit test is a whole program: its reports go to its log, and leaks count.
                        env.update(sanitizer_env(build, base))
                        env["ASAN_OPTIONS"] = "exitcode=66"
                        env["UBSAN_OPTIONS"] = "print_stacktrace=1:halt_on_error=1:exitcode=66"
                    argv = [exe]
                    if suite == "fuzz":
                        argv += [os.path.join(ROOT, "tests", "fuzz", "corpus", name), "--mutations", str(MUTATIONS),
                                 "--keep", base + ".input"]
                    yield Run(build, suite, name, argv, env)
        elif suite == "sim":
            for name in ("guard", "node"):
                yield Run(build, suite, name, [os.path.join(path, "tests", name + "_sim"), "--ci"], {})
        else:
            for f in sorted(glob.glob(os.path.join(ROOT, "tests", suite, "test_*.py"))):
                name = os.path.basename(f)[5:-3]
                base = os.path.join(path, "check", suite + "-" + name)
                argv = [PYTHON, "-B", "-m", "pytest", "-q", "--tb=short", "-rfEsx", "-p", "no:cacheprovider",
                        "--durations=5", "--junitxml=" + base + ".xml", f]
                select = build.get("select", {}).get(suite)
                if select and "mark." + select not in open(f).read():
                    continue
                if select:
                    argv += ["-m", select]
                env = {
                    "DUST_LIB": os.path.join(path, "libdust.so"),
                    "DUST_AUTOEXT": os.path.join(path, "tests", "autoext"),
                    "CRASH_RECORD": os.path.join(path, "tests", "librecord.so"),
                    "NTH_LIBRARY": os.path.join(path, "tests", "libnth.so"),
                    "DUST_SLOW": str(build["slow"]),
                    "DUST_SCALE": os.environ.get("DUST_SCALE", str(build["scale"])),
                    "DUST_TMP": os.path.join(path, "check", "tmp"),
                }
                if sanitized:
                    env.update(sanitizer_env(build, base))
                    env["DUST_PRELOAD"] = build["runtime"]
                yield Run(build, suite, name, argv, env)


def run_all(runs, jobs):
    todo = queue.Queue()
    for r in runs:
        todo.put(r)

    def work():
        while True:
            try:
                r = todo.get_nowait()
            except queue.Empty:
                return
            try:
                r()
            except Exception as e:
                total["failed"] += 1
                say("%s %s: %r" % (r.suite, r.name, e))

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def make(build):
    path = build["path"]
    say("%s: building in %s/" % (build["name"], build["dir"]))
    p = subprocess.run(["bash", "-c", '. tools/lib.sh; dust_build "$@"', "bash", path] + build["options"], cwd=ROOT,
                       stdin=subprocess.DEVNULL)
    if p.returncode != 0:
        say("%s: does not build (%s/build.log)" % (build["name"], build["dir"]))
        total["failed"] += 1
        return False
    check = os.path.join(path, "check")
    shutil.rmtree(check, ignore_errors=True)
    os.makedirs(os.path.join(check, "tmp"))
    return True


def usable(build):
    """Whether programs of this build run here; sets the prefix they need (no address randomisation, for some kernels)."""
    build["prefix"] = []
    if "preload" not in build:
        return True
    build["runtime"] = runtime_of(build["preload"])
    probe = [os.path.join(build["path"], "tests", "autoext"), ":memory:", "SELECT 1"]
    for prefix in ([], ["setarch", os.uname().machine, "-R"]):
        ok = True
        for _ in range(5):
            try:
                p = subprocess.run(prefix + probe, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
                ok = ok and p.stdout == "1\nok\n"
            except (OSError, subprocess.TimeoutExpired):
                ok = False
            if not ok:
                break
        if ok:
            build["prefix"] = prefix
            return build["runtime"] is not None
    say("%s: programs of this build do not run on this machine: %s" % (build["name"], p.stderr.strip()[-300:]))
    return False


def main(args):
    quick = "quick" in args
    builds = [a for a in args if a in BUILDS] or (["normal"] if quick else list(BUILDS))
    only = [a for a in args if a in SUITES]
    unknown = [a for a in args if a not in BUILDS and a not in SUITES and a != "quick"]
    if unknown:
        print("usage: tools/check [quick] [%s ...] [%s ...]" % ("|".join(BUILDS), "|".join(SUITES)), file=sys.stderr)
        return 2
    jobs = int(os.environ.get("DUST_CHECK_JOBS", max(1, CORES)))
    for name in builds:
        build = dict(BUILDS[name], name=name)
        build["path"] = os.path.join(ROOT, build["dir"])
        if not make(build):
            continue
        if not usable(build):
            total["skipped"] += 1
            continue
        suites = [s for s in build["suites"] if not only or s in only]
        runs = list(runs_of(build, suites))
        # Each of the simulations takes all cores by itself; the others share them.
        run_all([r for r in runs if r.suite == "sim"], 1)
        run_all([r for r in runs if r.suite in ("unit", "fuzz", "sql")], jobs)
        # Members that get no processor lose their leadership: at most as many of these at once as there are cores for.
        run_all([r for r in runs if r.suite in ("cluster", "attach", "command", "crash", "nth", "faults")], max(1, jobs // 2))
        shutil.rmtree(os.path.join(build["path"], "check", "tmp"), ignore_errors=True)
    say("done")
    print("%(passed)d passed, %(failed)d failed, %(skipped)d skipped" % total, flush=True)
    return 1 if total["failed"] else 0


sys.exit(main(sys.argv[1:]))
