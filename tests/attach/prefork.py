"""A program that opens the database and then forks workers, as servers do: for test_fork.py.

    prefork.py LIBRARY DATABASE WORKERS COUNT HOW

HOW: "own", each worker opens the database for itself; "inherited", it goes on with the connection of the parent; "middle",
likewise, and the parent was in the middle of a transaction. Each worker counts COUNT times, or until its standard input
ends if COUNT is 0, and prints a line of JSON; the parent prints one when it has forked them ("forked", pids), counts as
well if COUNT is not 0, and one when all have ended.
"""
import json
import os
import select
import sqlite3
import sys

lib, path, workers, count, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]


def connect():
    c = sqlite3.connect(":memory:")
    c.enable_load_extension(True)
    c.load_extension(lib)
    c.close()
    return sqlite3.connect(path, timeout=30, isolation_level=None)


def say(**what):
    os.write(1, (json.dumps(what) + "\n").encode())


def go_on(done):
    return done < count if count else not select.select([0], [], [], 0)[0]


def work(c):
    done, errors = 0, []
    if how == "own":
        c = connect()
    try:
        if how == "middle":
            try:
                c.execute("COMMIT")
                errors.append("the parent's transaction was committed by its child")
            except sqlite3.OperationalError as e:
                said = c.execute("SELECT value FROM dust_status WHERE name = 'connection_error'").fetchall()
                if "forked" not in str(said):
                    errors.append("COMMIT: %s %s" % (e, said))
            if c.in_transaction:
                c.execute("ROLLBACK")
        while go_on(done):
            c.execute("UPDATE counter SET n = n + 1 WHERE id = 0")
            done += 1
        host = dict(c.execute("SELECT name, value FROM dust_status").fetchall())["host_pid"]
    except sqlite3.Error as e:
        return {"pid": os.getpid(), "done": done, "errors": errors + [str(e)]}
    return {"pid": os.getpid(), "done": done, "errors": errors, "host": host}


def main():
    c = connect()
    c.execute("SELECT count(*) FROM counter").fetchall()
    if how == "middle":
        c.execute("BEGIN IMMEDIATE")
        c.execute("UPDATE counter SET n = n + 1 WHERE id = 0")
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            say(**work(c))
            sys.exit(0)
        pids.append(pid)
    say(forked=pids)
    if how == "middle":
        c.execute("COMMIT")
    done = int(how == "middle")
    while count and done < count:
        c.execute("UPDATE counter SET n = n + 1 WHERE id = 0")
        done += 1
    ended = [os.waitpid(pid, 0)[1] for pid in pids]
    say(pid=os.getpid(), done=done, errors=["worker ended with status %d" % x for x in ended if x != 0])


main()
