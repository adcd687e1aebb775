"""What is measured once each, not cell by cell: each function measures with systems of its own, says what it found, and
returns it."""
import json
import os
import threading
import time

from systems import Cost, address, median, memory, release, until

MEGABYTE = dict(rows=1000, size=1000)  # one transaction of the bulk load
LOAD_MB = int(os.environ.get("BENCH_LOAD_MB", "1000"))
MEMORY_MB = int(os.environ.get("BENCH_MEMORY_MB", "10000"))
LONG_S = float(os.environ.get("BENCH_LONG_S", "600"))
TRANSACTIONS = (1000, 10000, 100000)  # before a restart
DEATHS = 5


def run(worker, job):
    return [json.loads(x) for x in worker.do("run " + job)]


def fill(worker, megabytes, first=0):
    return run(worker, "insert 1 0 count=%d rows=%d size=%d first=%d" % (megabytes, MEGABYTE["rows"], MEGABYTE["size"], first))[0]


def folder_bytes(path):
    """On disk, of all files in it."""
    total = 0
    for where, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                pass  # it was removed meanwhile
    return total


def load(names, opt, say, make):
    """A bulk load in transactions of a megabyte, and then a member that joins."""
    found = []
    for name in [s for s in names if s in ("plain WAL FULL", "dust 1", "dust 3")]:
        system = make(name)
        try:
            cost = Cost(system)
            r = fill(system.order()[0], LOAD_MB)
            r.update(cost.each(r["count"]))
            entry = dict(group="load", name="bulk load", system=name, megabytes=LOAD_MB, **r)
            say("bulk load of %d MB, %-16s %7.1f s, %6.1f MB/s, transaction 50 %% %.1f ms, 99 %% %.1f ms, at most %.1f ms; "
                "%.2f bytes to disk for each" % (LOAD_MB, name + ":", r["seconds"], LOAD_MB / r["seconds"], r["p50"] / 1e3,
                                                r["p99"] / 1e3, r["max"] / 1e3, r["disk_bytes"] / 1e6))
            if name.startswith("dust"):
                entry["join_s"] = join(system)
                say("%s of %d MB, one more joins:    %7.1f s" % (" " * len("bulk load"), LOAD_MB, entry["join_s"]))
            found.append(entry)
        finally:
            system.end()
    return found


def join(system):
    """Seconds until a new member has everything."""
    a = address()
    release()
    begun = time.monotonic()
    w = system.member(len(system.workers))
    w.sql("SELECT dust_join('%s', '%s')" % (a, system.addresses[0]))
    w.sql("SELECT dust_wait(%s, 600000)" % system.order()[0].one("SELECT dust_index()"))
    return time.monotonic() - begun


def restart(names, opt, say, make):
    """A cluster of one is killed after so many transactions; seconds until it has been opened and written to again."""
    if "dust 1" not in names:
        return []
    found = []
    for n in TRANSACTIONS:
        system = make("dust 1")
        try:
            run(system.workers[0], "insert 8 0 count=%d" % (n // 8))
            system.workers[0].kill()
            system.workers.clear()
            begun = time.monotonic()
            w = system.member(0)
            w.sql("SELECT count(*) FROM foo")
            opened = time.monotonic() - begun
            w.sql("INSERT INTO foo(name) VALUES('again')")
            took = time.monotonic() - begun
            say("killed after %6d transactions: open again after %.3f s, written to after %.3f s" % (n, opened, took))
            found.append(dict(group="restart", transactions=n, opened_s=opened, written_s=took))
        finally:
            system.end()
    return found


def death(names, opt, say, make):
    """The leader's process is killed while eight clients write on a follower; the longest time without a commit."""
    found = []
    for name in [s for s in names if s == "dust 3"]:
        gaps = []
        system = make(name)
        try:
            for k in range(DEATHS):
                leader, follower = system.order()[:2]
                place = system.workers.index(leader)
                follower.do("begin insert 8 6 first=%d" % (k << 40))
                threading.Event().wait(2)
                leader.kill()
                system.workers.remove(leader)
                r = json.loads(follower.do("end")[0])
                gaps.append(r["gap"] / 1e6)
                if r["errors"]:
                    say("    %d errors: %s" % (r["errors"], r["why"]))
                again = system.member(place)
                until("the killed member is back", lambda: again.one("SELECT dust_role()") == "follower")
                system.settle()
            say("death of the leader, %s: no commit for %.2f s (median of %d; at most %.2f s)" % (
                name, median(gaps), DEATHS, max(gaps)))
            found.append(dict(group="death", system=name, gaps_s=gaps))
        finally:
            system.end()
    return found


def long(names, opt, say, make):
    """64 writers at full speed for ten minutes: pauses, memory, files."""
    if "dust 3" not in names:
        return []
    system = make("dust 3")
    try:
        leader = system.order()[0]
        before = system.counters()
        r = run(leader, "insert 64 %g" % LONG_S)[0]
        after = system.counters()
        sizes = [folder_bytes(os.path.join(system.dir, "%d.db-dust" % i)) for i in range(3)]
        rss = [memory(w.p.pid) for w in system.workers]
        say("64 writers for %g s: %.0f a second; 50 %% %.1f ms, 99.9 %% %.1f ms, longest commit %.1f ms, longest time without a "
            "commit %.1f ms; least and most of a writer %d and %d; longest flush of the leader %.1f ms" % (
                LONG_S, r["count"] / r["seconds"], r["p50"] / 1e3, r["p999"] / 1e3, r["max"] / 1e3, r["gap"] / 1e3, r["least"],
                r["most"], after["log_flush_us_max"] / 1e3))
        say("    memory of its own of a member: %s MB; its folder: %s MB" % (
            ", ".join("%.0f" % (m["RssAnon"] / 1e6) for m in rss), ", ".join("%.0f" % (s / 1e6) for s in sizes)))
        return [dict(group="long", before=before, after=after, rss=rss, folders=sizes, **r)]
    finally:
        system.end()


def memory_of(system, found):
    """The largest so far."""
    for i, w in enumerate(system.workers):
        m = memory(w.p.pid)
        found[i] = {k: max(v, found[i].get(k, 0)) for k, v in m.items()}


def memory_under_load(names, opt, say, make):
    """A large database, grown to its size by bulk loads, then updated at random."""
    if "dust 3" not in names:
        return []
    system = make("dust 3")
    try:
        leader = system.order()[0]
        top, folders = [{} for _ in system.workers], [0] * 3
        stop = threading.Event()

        def watch():
            while not stop.wait(0.5):
                memory_of(system, top)
                for i in range(3):
                    folders[i] = max(folders[i], folder_bytes(os.path.join(system.dir, "%d.db-dust" % i)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            r = fill(leader, MEMORY_MB)
            u = run(leader, "insert 16 30 first=%d + update 16 30 + read 4 30" % (1 << 50))
        finally:
            stop.set()
            watcher.join()
        say("%d MB in %.0f s (%.1f MB/s), then 30 s of inserts (%.0f a second), updates (%.0f) and reads (%.0f)" % (
            MEMORY_MB, r["seconds"], MEMORY_MB / r["seconds"], *(x["count"] / x["seconds"] for x in u)))
        say("    at most: memory of its own of a member %s MB, resident %s MB; its folder %s MB" % (
            ", ".join("%.0f" % (m["RssAnon"] / 1e6) for m in top), ", ".join("%.0f" % (m["VmRSS"] / 1e6) for m in top),
            ", ".join("%.0f" % (s / 1e6) for s in folders)))
        return [dict(group="memory", megabytes=MEMORY_MB, load=r, work=u, memory=top, folders=folders)]
    finally:
        system.end()
