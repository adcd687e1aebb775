"""Measures dust beside plain SQLite, etcd and dqlite, on one disk, in one run; run by tools/bench.

    tools/bench [--seconds S] [--reps N] [--dir FOLDER] [--json FILE] [--figures FOLDER] [--systems A,B] [GROUP ...]

GROUP is one of those below, or `all`; without any, writers, placed and reads. Every cell of a group is measured with each
system in turn, and that again and again, so that a machine that is busy for a while is so for all of them; what counts is the
median, and beside it the least and the most. How much the groups load and memory load, and how long the group long takes, is
said by BENCH_LOAD_MB, BENCH_MEMORY_MB and BENCH_LONG_S. Members, servers and clients share the machine, as they do in none that is
used: what is compared is what they cost.
"""
import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
import time

import figures
import single
from systems import BUILD, Cost, Dqlite, Dust, Etcd, Failed, Plain, at_once, median

WARM_S = 0.5  # each system, before it is measured
PLAIN = "plain WAL FULL"
REPLICATED = ("dust 3", "etcd 3", "dqlite 3")
EVERY = (PLAIN, "plain WAL NORMAL", "plain DELETE FULL", "dust 1", "dust 3", "dust 5", "etcd 3", "dqlite 3")


class Cell:
    """One measurement. jobs: on which of the ordered workers what is run; a system with one worker does all of it there.
    aims: the least ratio to plain SQLite that a system is to reach."""

    def __init__(self, name, jobs, systems, **aims):
        self.name, self.jobs, self.systems = name, jobs, systems
        self.aims = {k.replace("_", " "): v for k, v in aims.items()}


def writers():
    aims = {1: dict(dust_1=0.8, dust_3=0.4), 8: dict(dust_3=1.2), 64: dict(dust_3=2.0), 256: dict(dust_3=3.0)}
    for n in (1, 2, 8, 32, 64, 256):
        yield Cell("insert, %d writer%s" % (n, "s" * (n > 1)), {0: "insert %d {s}" % n}, EVERY, **aims.get(n, {}))


def placed():
    """Where the writers are: all on the leader, on a follower, on all three."""
    for n in (1, 8, 64):
        yield Cell("insert, %d on the leader" % n, {0: "insert %d {s}" % n}, (PLAIN,) + REPLICATED[:2])
        yield Cell("insert, %d on a follower" % n, {1: "insert %d {s}" % n}, (PLAIN,) + REPLICATED[:2])
        if n > 1:
            yield Cell("insert, %d on all members" % n, {i: "insert %d {s}" % ((n + 2 - i) // 3) for i in range(3)},
                       (PLAIN,) + REPLICATED[:2])


def sizes():
    for rows in (10, 1000):
        for n in (1, 8):
            # etcd takes 128 operations in a transaction, and would be asked for something else.
            yield Cell("insert of %d rows, %d writer%s" % (rows, n, "s" * (n > 1)), {0: "insert %d {s} rows=%d" % (n, rows)},
                       [s for s in EVERY if rows <= 100 or s != "etcd 3"])


def updates():
    for n in (1, 8, 64):
        yield Cell("update by key, %d" % n, {0: "update %d {s}" % n}, EVERY)
    for n in (1, 8, 64):
        yield Cell("nine reads to an update, %d" % n, {0: "mix %d {s}" % n}, (PLAIN, "dust 1", "dust 3", "etcd 3", "dqlite 3"))


def reads():
    both = dict(dust_3=1.0)
    for what, job in (("point read", "read"), ("scan of 1,000 rows", "scan")):
        rows = " rows=1000" if job == "scan" else ""
        for cache, how in ((20000, "all in the connection's cache"), (10, "nothing in it")):
            for n in (1, 8):
                yield Cell("%s, %d reader%s, %s" % (what, n, "s" * (n > 1), how),
                           {0: "%s %d {s} cache=%d%s" % (job, n, cache, rows)}, (PLAIN, "dust 3"), **both)


def beside():
    """Readers while somebody writes: the first job's figures."""
    for n in (1, 8):
        yield Cell("point read, %d reader%s, idle" % (n, "s" * (n > 1)), {0: "read %d {s}" % n}, (PLAIN, "dust 3"))
        yield Cell("point read, %d reader%s, one writer" % (n, "s" * (n > 1)), {0: "read %d {s} + insert 1 {s}" % n},
                   (PLAIN, "dust 3"))
        yield Cell("point read, %d reader%s, 8 writers" % (n, "s" * (n > 1)), {0: "read %d {s} + insert 8 {s}" % n},
                   (PLAIN, "dust 3"))


def linear():
    for n in (1, 64):
        for where, i in (("leader", 0), ("follower", 1)):
            yield Cell("linearizable point read, %d on the %s" % (n, where), {i: "read %d {s} linearizable=1" % n},
                       ("dust 3", "etcd 3"))


CELLS = dict(writers=writers, placed=placed, sizes=sizes, updates=updates, reads=reads, beside=beside, linear=linear)
SINGLE = dict(load=single.load, restart=single.restart, death=single.death, long=single.long, memory=single.memory_under_load)
USUAL = ("writers", "placed", "reads")
ROWS_MAX = 1000  # of a transaction
MEASUREMENTS = itertools.count(1)  # what they insert is different by their numbers


def make(name, folder):
    kind, _, rest = name.partition(" ")
    if kind == "plain":
        return Plain(folder, *rest.split())
    if kind == "dust":
        return Dust(folder, int(rest))
    return {"etcd": Etcd, "dqlite": Dqlite}[kind](folder)


def there(name):
    """Is it installed?"""
    kind = name.split()[0]
    program = os.path.join(BUILD, "tools", "bench-" + {"plain": "sqlite", "dust": "sqlite"}.get(kind, kind))
    return os.path.exists(program) and (kind != "etcd" or shutil.which("etcd") is not None)


def measure(system, cell, seconds, first):
    """One system, one cell: its workers at once; sums, and the worst of the percentiles."""
    workers = system.order()
    jobs = [(workers[i] if len(workers) > 1 else workers[0], job) for i, job in cell.jobs.items()]
    if len(workers) == 1 and len(jobs) > 1:  # one worker does what several would
        jobs = [(workers[0], " + ".join(job for _, job in jobs))]
    lines = []
    for k, (w, job) in enumerate(jobs):
        parts = [p.strip().format(s=seconds) for p in job.split("+")]
        lines.append((w, "run " + " + ".join("%s first=%d" % (p, first + (k * 8 + j << 36)) for j, p in enumerate(parts))))
    cost = Cost(system)
    answers = at_once([lambda w=w, line=line: [json.loads(x) for x in w.do(line)] for w, line in lines])
    main = [a for worker in answers for a in worker]
    every = main
    if len(cell.jobs) == 1 and "+" in cell.jobs[min(cell.jobs)]:
        main = main[:1]  # the others are what goes on beside it
    count = sum(a["count"] for a in main)
    result = dict(count=count, rate=count / max(a["seconds"] for a in main), errors=sum(a["errors"] for a in every),
                  why="; ".join({a["why"] for a in every if a["errors"]}), least=min(a["least"] for a in main),
                  most=max(a["most"] for a in main))
    for name in ("p50", "p99", "p999", "max", "gap"):
        result[name] = max(a[name] for a in main)
    result.update(cost.each(count))
    result["rows"] = sum(a["rows"] for a in every)
    return result


def warm_up(system):
    """Files of logs and journals are made by those who write first, and count for none of the cells."""
    r = measure(system, Cell("", {0: "insert 1 {s}"}, ()), WARM_S, next(MEASUREMENTS) << 40)
    system.rows, system.errors = r["rows"], r["errors"]
    return system


def summary(results):
    """Medians over the repetitions, and the least and the most rate."""
    s = {name: median([r[name] for r in results]) for name in results[0] if name != "why"}
    s.update(errors=sum(r["errors"] for r in results), rates=[r["rate"] for r in results],
             why="; ".join({r["why"] for r in results if r["why"]}))
    return s


def show(say, cell, systems, found):
    base = found.get(PLAIN)
    for name in systems:
        r = found[name]
        ratio = r["rate"] / base["rate"] if base and name != PLAIN else None
        aim = cell.aims.get(name)
        say("%-36s %-17s %8.0f %8.0f-%-8.0f %6s %9.2f %9.2f %9.2f %9.2f %8.1f %7.2f %6.2f %6.2f %s" % (
            cell.name if name == systems[0] else "", name, r["rate"], min(r["rates"]), max(r["rates"]),
            "%.2f" % ratio if ratio is not None else "", r["p50"] / 1e3, r["p99"] / 1e3, r["p999"] / 1e3, r["max"] / 1e3,
            r["cpu_us"], r["disk_bytes"] / 1e3, r["disk_flushes"], r["net_bytes"] / 1e3,
            "" if aim is None or ratio is None else "%.1f %s" % (aim, "reached" if ratio >= aim else "MISSED")))
        if r["errors"]:
            say("    %d errors: %s" % (r["errors"], r["why"]))


def cells(group, names, opt, say, made):
    """A group's cells, with the systems that it has."""
    result = []
    say("%-36s %-17s %8s %17s %6s %9s %9s %9s %9s %8s %7s %6s %6s" % (
        group, "", "a second", "least-most", "ratio", "ms: 50%", "99%", "99.9%", "max", "CPU us", "disk kB", "flush", "net kB"))
    for cell in CELLS[group]():
        systems = [s for s in cell.systems if s in names]
        every = {s: [] for s in systems}
        for _ in range(opt.reps):
            for s in systems:
                r = measure(made(s), cell, opt.seconds, next(MEASUREMENTS) << 40)
                every[s].append(r)
                made(s).rows += r["rows"]
                made(s).errors += r["errors"]
        found = {s: summary(r) for s, r in every.items()}
        show(say, cell, systems, found)
        result.append(dict(group=group, name=cell.name, aims=cell.aims, systems=found))
    return result


def main():
    arg = argparse.ArgumentParser(prog="tools/bench")
    arg.add_argument("groups", nargs="*", metavar="GROUP", help="%s; %s; all" % (", ".join(CELLS), ", ".join(SINGLE)))
    arg.add_argument("--seconds", type=float, default=2, help="for one measurement")
    arg.add_argument("--reps", type=int, default=3, help="repetitions of each")
    arg.add_argument("--systems", default=",".join(EVERY), help="those to measure, parted by commas: " + ", ".join(EVERY))
    arg.add_argument("--dir", help="folder (and so the disk) to work in")
    arg.add_argument("--json", help="file for all figures")
    arg.add_argument("--figures", help="folder for the drawings (SVG)")
    opt = arg.parse_args()
    groups = list(CELLS) + list(SINGLE) if opt.groups == ["all"] else opt.groups or list(USUAL)
    names = [s for s in opt.systems.split(",") if s]
    for what, known in ((groups, list(CELLS) + list(SINGLE)), (names, EVERY)):
        for x in what:
            if x not in known:
                arg.error("%s is none of %s" % (x, ", ".join(known)))
    missing = [s for s in names if not there(s)]
    names = [s for s in names if there(s)]
    box = tempfile.mkdtemp(prefix="dust-bench-", dir=opt.dir)
    systems, result, good = {}, [], True

    def say(line):
        print(line, flush=True)

    def made(name):
        if name not in systems:
            systems[name] = warm_up(make(name, box))
        return systems[name]

    begun = time.monotonic()
    try:
        say("in %s, %d CPUs; %d repetitions of %g s%s" % (
            box, os.cpu_count(), opt.reps, opt.seconds, "".join("; without " + s for s in missing)))
        for group in groups:
            if group in CELLS:
                result += cells(group, names, opt, say, made)
            else:
                result += SINGLE[group](names, opt, say, lambda name: make(name, box))
        for name, system in systems.items():
            rows = system.count()
            if len(set(rows)) != 1 or not system.rows <= rows[0] <= system.rows + system.errors * ROWS_MAX:
                say("%s: %d rows acknowledged, there are %s" % (name, system.rows, rows))
                good = False
        say("every row acknowledged is there, on every member; %.0f s" % (time.monotonic() - begun) if good else "ROWS DIFFER")
        if opt.json:
            with open(opt.json, "w") as f:
                json.dump(result, f, indent=1)
        if opt.figures:
            figures.draw(result, opt.figures)
        return 0 if good else 1
    except Failed as e:
        print("tools/bench: %s" % e, file=sys.stderr)
        return 2
    finally:
        for system in systems.values():
            system.end()
        shutil.rmtree(box, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
