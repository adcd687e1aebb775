#!/usr/bin/python3
"""Many runs of the fault harness, seed after seed, three and five members in turn, for so many minutes of faults.

    long.py [--minutes M] [--seconds S] [--seed N]

Prints a line for each run, and at the end the sums: seconds of faults, operations, faults of each kind, violations. The
exit status is 0 if there were none; the folder of a run that found something stays, and is named.
"""
import argparse
import collections
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def run(seed, seconds, members):
    """Its result, and what it found."""
    p = subprocess.run([sys.executable, "-B", os.path.join(HERE, "faults.py"), "--quiet", "--seed", str(seed),
                        "--seconds", str(seconds), "--members", str(members)],
                       capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = p.stdout.splitlines()
    result = next((json.loads(x) for x in lines if x.startswith("{")), None)
    found = [x for x in lines if x.startswith("VIOLATION")]
    if result is None or (p.returncode != 0 and not found):
        found.append("VIOLATION the harness itself failed: " + p.stderr[-2000:])
    return result or {}, found, lines[-1] if lines else ""


def main():
    p = argparse.ArgumentParser(description="many runs of the fault harness")
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--seconds", type=float, default=120, help="of faults in each run")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    seed, done, violations = args.seed, 0, 0
    sums = collections.Counter()
    kinds, outcomes, network = collections.Counter(), collections.Counter(), collections.Counter()
    while done < args.minutes * 60:
        members = 3 if (seed - args.seed) % 2 == 0 else 5
        result, found, last = run(seed, args.seconds, members)
        print("%d members: %s" % (members, last))
        for line in found[:20]:
            print("    " + line[:1000])
        sys.stdout.flush()
        violations += len(found)
        sums.update({k: result.get(k, 0) for k in ("operations", "faults")})
        kinds.update(result.get("by_fault", {}))
        outcomes.update(result.get("outcomes", {}))
        network.update(result.get("network", {}))
        done += args.seconds
        seed += 1
    print("faults: " + ", ".join("%s %d" % i for i in sorted(kinds.items())))
    print("outcomes: " + ", ".join("%s %d" % i for i in sorted(outcomes.items(), key=lambda i: -i[1])))
    print("messages: " + ", ".join("%s %d" % i for i in network.items()))
    print("%d runs, %d minutes of faults, %d operations, %d faults, %d violations" % (
        seed - args.seed, done / 60, sums["operations"], sums["faults"], violations))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
