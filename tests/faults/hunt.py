#!/usr/bin/python3
"""Does the harness find faults? Builds dust with each fault put in on purpose (vfs/bug.h) and runs faults.py, seed after
seed, until it reports a violation.

    hunt.py [--limit SECONDS] [--seconds S] [--members 3|5] [--keep DIR] [BUG ...]

Prints for each bug the runs, the time until the first violation, and what it was. The exit status is 0 if all were
found within the limit. --keep DIR: the histories of the runs that found something stay there.
"""
import argparse
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUGS = {
    "ack": "a commit is acknowledged before a majority has it",
    "parent": "an entry takes effect whatever it was made on",
    "read": "a linearizable read is not confirmed",
    "sync": "a checkpoint does not flush its journal",
    "resend": "what is sent again gets a new id",
    "row": "rows are handed out from a head that is not agreed",
}


def build(bug):
    path = os.path.join(ROOT, "build-bug-" + bug)
    with open(os.path.join("/dev", "null")) as nothing:
        if not os.path.exists(os.path.join(path, "build.ninja")):
            subprocess.run(["meson", "setup", "-Dbench=false", "-Dbug=" + bug, path, ROOT], stdin=nothing, check=True,
                           stdout=subprocess.DEVNULL)
        subprocess.run(["ninja", "-C", path, "libdust.so", "tests/faults_proxy", "tests/libfaults_preload.so"],
                       stdin=nothing, check=True, stdout=subprocess.DEVNULL)
    return os.path.join(path, "libdust.so")


def hunt(bug, args):
    lib = build(bug)
    begun = time.monotonic()
    seed = args.seed
    while time.monotonic() - begun < args.limit:
        argv = [sys.executable, os.path.join(HERE, "faults.py"), "--quiet", "--seed", str(seed), "--seconds",
                str(args.seconds), "--members", str(args.members)]
        if args.keep:
            argv += ["--keep", os.path.join(args.keep, "%s-%d" % (bug, seed))]
        p = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                           env=dict(os.environ, DUST_LIB=lib))
        lines = p.stdout.splitlines()
        found = [x for x in lines if x.startswith("VIOLATION")]
        if p.returncode != 0 and not found:
            found = ["the harness itself failed: " + (p.stderr.splitlines() or ["?"])[-1]]
        if found:
            return time.monotonic() - begun, seed - args.seed + 1, found, lines[-1]
        seed += 1
    return None, seed - args.seed, [], lines[-1]


def main():
    p = argparse.ArgumentParser(description="does the harness find faults that are there?")
    p.add_argument("bugs", nargs="*", metavar="BUG", help=" ".join(BUGS))
    p.add_argument("--limit", type=float, default=300)
    p.add_argument("--seconds", type=float, default=40)
    p.add_argument("--members", type=int, default=3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--keep", default=None)
    args = p.parse_args()
    missed = 0
    for bug in args.bugs or BUGS:
        took, runs, found, last = hunt(bug, args)
        print("%s (%s):" % (bug, BUGS[bug]))
        if took is None:
            missed += 1
            print("    NOT FOUND in %d runs" % runs)
        else:
            print("    found in run %d, after %.0f s" % (runs, took))
        for line in found[:5]:
            print("    " + line[:400])
        if len(found) > 5:
            print("    … %d violations" % len(found))
        print("    " + last, flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
