"""Measures dust with three members against plain SQLite (WAL, synchronous=FULL); run by tools/bench.

Three processes with a member each, one with a plain database, and one with a plain database that has dust loaded, all
on one disk and one machine. They take turns, cell by cell, so that a machine that is busy for a while is so for both; what counts is the median over the repetitions.
Writers and readers are threads of one process (for dust: the leader's), each with its own connection; the program is
tools/bench.c.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from cluster import LIB, ROOT, address

PROGRAM = os.path.join(os.path.dirname(LIB), "tools", "bench")
# What, on which database ("dust": the leader's; "other": one that is no member's, in a program that has dust loaded),
# how many threads, and the ratio to plain SQLite to be reached.
CELLS = [("insert", "dust", 1, 0.3), ("insert", "dust", 8, None), ("insert", "dust", 64, 1.0), ("read", "dust", 1, 0.9),
         ("read", "dust", 8, None), ("insert", "other", 1, 0.9), ("read", "other", 1, 0.9)]


class Bench:
    def __init__(self, path, lib=None):
        self.p = subprocess.Popen([PROGRAM, path] + ([lib] if lib else []), stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True, bufsize=1)
        self.answer()

    def answer(self):
        rows = []
        for line in self.p.stdout:
            line = line.rstrip("\n")
            if line == "ok" or line.startswith("ok "):
                self.last = line
                return rows
            if line.startswith("error "):
                raise SystemExit("bench: " + line)
            rows.append(line)
        raise SystemExit("bench: a program has ended (%s)" % self.p.wait())

    def do(self, line):
        self.p.stdin.write(line + "\n")
        return self.answer()

    def sql(self, sql):
        return self.do("sql " + sql)

    def measure(self, kind, threads, seconds):
        """Per second, and errors."""
        self.do("%s %d %g" % (kind, threads, seconds))
        count, took, errors, *why = self.last.split(" ", 4)[1:]
        if int(errors):
            print("  %s errors: %s" % (errors, " ".join(why)), file=sys.stderr)
        return int(count) / float(took), int(errors), int(count)

    def end(self):
        self.p.stdin.close()
        try:
            self.p.wait(20)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def content(b):
    b.sql("CREATE TABLE foo(id INTEGER PRIMARY KEY, name TEXT)")
    b.sql("CREATE TABLE p(id INTEGER PRIMARY KEY, name TEXT)")
    b.sql("WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r WHERE i < 100000) "
          "INSERT INTO p(name) SELECT 'a name of some length, number ' || i FROM r")


def main():
    arg = argparse.ArgumentParser(prog="tools/bench")
    arg.add_argument("--seconds", type=float, default=3, help="for one measurement")
    arg.add_argument("--reps", type=int, default=3, help="repetitions of all")
    arg.add_argument("--dir", help="folder (and so the disk) to work in")
    arg.add_argument("--json", action="store_true")
    opt = arg.parse_args()
    box = tempfile.mkdtemp(prefix="dust-bench-", dir=opt.dir)
    every = []
    say = (lambda *a: print(*a, file=sys.stderr)) if opt.json else print
    started = time.monotonic()
    try:
        plain = Bench(os.path.join(box, "plain.db"))
        every.append(plain)
        assert plain.sql("PRAGMA journal_mode=WAL") == ["wal"]
        content(plain)
        other = Bench(os.path.join(box, "other.db"), LIB)
        every.append(other)
        assert other.sql("PRAGMA journal_mode=WAL") == ["wal"]
        content(other)
        members = []
        for i in range(3):
            b = Bench(os.path.join(box, "dust%d.db" % i), LIB)
            every.append(b)
            addr = address()
            b.sql("SELECT dust_start('%s')" % addr if i == 0 else "SELECT dust_join('%s', '%s')" % (addr, first))
            if i == 0:
                first = addr
                content(b)
            members.append(b)
        dust = members[0]
        rates = {}
        inserted = 0
        errors = 0
        say("in %s, %d CPUs; %d repetitions of %g s each" % (box, os.cpu_count(), opt.reps, opt.seconds))
        for rep in range(opt.reps):
            for kind, on, n, _ in CELLS:
                for name, b in (("plain", plain), (on, {"dust": dust, "other": other}[on])):
                    rate, bad, count = b.measure(kind, n, opt.seconds)
                    rates.setdefault((kind, on, n, name == "plain"), []).append(rate)
                    errors += bad
                    if name == "dust" and kind == "insert":
                        inserted += count
            if dust.sql("SELECT dust_role()") != ["leader"]:
                say("  (the first member no longer leads: what follows is a follower's)")
        index = dust.sql("SELECT dust_index()")[0]
        for b in members[1:]:
            b.sql("SELECT dust_wait(%s, 30000)" % index)
        heads = {b.sql("SELECT dust_head()")[0] for b in members}
        rows = {b.sql("SELECT count(*) FROM foo")[0] for b in members}
        result = []
        say("%-40s %12s %14s %8s  %s" % ("each second", "plain SQLite", "dust", "ratio", "aim"))
        for kind, on, n, aim in CELLS:
            a, d = (statistics.median(rates[kind, on, n, x]) for x in (True, False))
            what = "%s%s, %d %s%s" % (
                "other database: " if on == "other" else "", "one-row insert" if kind == "insert" else "point read", n,
                "writer" if kind == "insert" else "reader", "" if n == 1 else "s")
            say("%-40s %12.0f %14.0f %8.2f  %s" % (
                what, a, d, d / a, "" if aim is None else "%.1f %s" % (aim, "reached" if d / a >= aim else "MISSED")))
            result.append({"kind": kind, "on": on, "threads": n, "plain": a, "dust": d, "ratio": d / a, "aim": aim,
                           "all": {"plain": rates[kind, on, n, True], "dust": rates[kind, on, n, False]}})
        good = len(heads) == 1 and rows == {str(inserted)}
        say("%d rows acknowledged, on the members: %s; %s; %d errors; %.0f s" % (
            inserted, ", ".join(sorted(rows)), "equal heads" if len(heads) == 1 else "DIFFERENT HEADS", errors,
            time.monotonic() - started))
        if opt.json:
            print(json.dumps({"cells": result, "errors": errors, "equal": good}, indent=1))
        return 0 if good else 1
    finally:
        for b in every:
            b.end()
        shutil.rmtree(box, ignore_errors=True)


sys.exit(main())
