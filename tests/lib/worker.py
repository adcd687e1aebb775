"""A program of somebody who uses SQLite, driven by a test.

Run by cluster.Worker as a child process. Reads commands as JSON lines from standard input, answers with JSON lines on
standard output: {"id": 7, "result": ...} or {"id": 7, "error": {...}}. Each connection has a thread of its own, so a
command that waits on one connection holds up no other. At the end of the input the program ends as a program should:
connections closed, exit handlers run.

A command: {"id": N, "cmd": NAME, "conn": CONNECTION, ...its arguments}. Those that exist are the functions do_NAME.
bytes travel as {"hex": "..."}.
"""
import json
import os
import queue
import sqlite3
import sys
import threading
import time
import traceback

out_lock = threading.Lock()
conns = {}
threads = {}
writers = {}
names = {"conns": conns, "sqlite3": sqlite3, "os": os, "time": time, "threading": threading, "sys": sys}


def pack(v):
    if isinstance(v, (bytes, memoryview)):
        return {"hex": bytes(v).hex()}
    if isinstance(v, (list, tuple)):
        return [pack(x) for x in v]
    if isinstance(v, dict):
        return {k: pack(x) for k, x in v.items()}
    return v


def unpack(v):
    if isinstance(v, dict) and set(v) == {"hex"}:
        return bytes.fromhex(v["hex"])
    if isinstance(v, dict):
        return {k: unpack(x) for k, x in v.items()}
    if isinstance(v, list):
        return [unpack(x) for x in v]
    return v


def error_of(e):
    return {
        "type": type(e).__name__,
        "code": getattr(e, "sqlite_errorcode", None),
        "name": getattr(e, "sqlite_errorname", None),
        "text": str(e),
        "trace": traceback.format_exc(limit=3),
    }


def answer(d):
    line = json.dumps(d) + "\n"
    with out_lock:
        sys.stdout.write(line)
        sys.stdout.flush()


# ---- commands ----

def do_load(a):
    """Load the extension into a connection of no file, as a program does that wants it for all to come."""
    c = sqlite3.connect(":memory:")
    c.enable_load_extension(True)
    c.load_extension(a["lib"])
    version = c.execute("SELECT dust_version()").fetchone()[0]
    if a.get("keep"):
        conns[a["conn"]] = c
    else:
        c.close()
    return version


def connect(path, uri=False, timeout=30.0, trace=False, load=None, functions=True, isolation=None):
    c = sqlite3.connect(path, uri=uri, timeout=timeout, isolation_level=isolation, check_same_thread=False,
                        cached_statements=32)
    try:
        if load:
            c.enable_load_extension(True)
            c.load_extension(load)
        if functions:
            c.create_function("my_function", -1, lambda *args: "%d:%s" % (os.getpid(), args))
        if trace:
            c.set_trace_callback(lambda sql: None)
    except BaseException:
        c.close()
        raise
    return c


def do_open(a):
    conns[a["conn"]] = connect(a["path"], a.get("uri", False), a.get("busy", 30.0), a.get("trace", False),
                               a.get("load"), a.get("functions", True), a.get("isolation"))


def do_close(a):
    conns.pop(a["conn"]).close()


def do_sql(a):
    cur = conns[a["conn"]].execute(a["sql"], unpack(a.get("params", [])))
    return cur.fetchall()


def do_many(a):
    c = conns[a["conn"]]
    c.executemany(a["sql"], unpack(a["rows"]))


def do_script(a):
    conns[a["conn"]].executescript(a["sql"])


def do_trace(a):
    conns[a["conn"]].set_trace_callback((lambda sql: None) if a.get("on", True) else None)


def do_py(a):
    """Run Python; its `result` is the answer. `conns` and everything set by earlier code is there."""
    scope = dict(names)
    scope["conn"] = conns.get(a["conn"])
    scope["connect"] = connect
    scope["arg"] = unpack(a.get("arg"))
    exec(compile(a["code"], "<test>", "exec"), scope)
    return scope.get("result")


def do_backup(a):
    dest = sqlite3.connect(a["dest"])
    conns[a["conn"]].backup(dest, pages=a.get("pages", -1))
    dest.close()


def do_counter(a):
    """Read a number and write it back raised by one, each time in a transaction; say how long each one took."""
    c = conns[a["conn"]]
    worst = 0.0
    errors = []
    end = time.monotonic() + a.get("seconds", 1e9)
    n = 0
    while n < a["n"] and time.monotonic() < end:
        t = time.monotonic()
        try:
            c.execute("BEGIN IMMEDIATE")
            v = c.execute("SELECT v FROM counter").fetchone()[0]
            c.execute("UPDATE counter SET v = ?", (v + 1,))
            c.execute("COMMIT")
            n += 1
        except sqlite3.Error as e:
            errors.append(error_of(e))
            if c.in_transaction:
                c.execute("ROLLBACK")
            if len(errors) >= 100:
                break
        worst = max(worst, time.monotonic() - t)
    return {"n": n, "worst": worst, "errors": errors}


class Writer(threading.Thread):
    """Inserts (who, seq) rows, each in a transaction, until told to stop. What was acknowledged goes into a file, one
    line each, written before the next row is tried: it outlives this process."""

    def __init__(self, who, path, acks, trace, pause, timeout, explicit):
        super().__init__(daemon=True)
        self.who, self.path, self.acks = who, path, acks
        self.trace, self.pause, self.timeout, self.explicit = trace, pause, timeout, explicit
        self.stop = threading.Event()
        self.n = 0
        self.last = time.monotonic()
        self.worst = 0.0
        self.errors = []

    def run(self):
        try:
            self.write()
        except BaseException as e:
            self.errors.append(error_of(e))

    def write(self):
        c = connect(self.path, timeout=self.timeout, trace=self.trace)
        fd = os.open(self.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        seq = 0
        while not self.stop.is_set():
            seq += 1
            t = time.monotonic()
            try:
                if self.explicit:
                    c.execute("BEGIN IMMEDIATE")
                c.execute("INSERT INTO acked(who, seq) VALUES (?, ?)", (self.who, seq))
                if self.explicit:
                    c.execute("COMMIT")
                os.write(fd, b"%s %d\n" % (self.who.encode(), seq))
                self.n += 1
            except sqlite3.Error as e:
                d = error_of(e)
                d["seq"] = seq
                d["after"] = time.monotonic() - t
                self.errors.append(d)
                if c.in_transaction:
                    try:
                        c.execute("ROLLBACK")
                    except sqlite3.Error:
                        pass
                if len(self.errors) > 1000:
                    break
                self.stop.wait(0.05)
            self.last = time.monotonic()
            self.worst = max(self.worst, self.last - t)
            if self.pause:
                self.stop.wait(self.pause)
        c.close()


def do_writer_start(a):
    w = Writer(a["who"], a["path"], a["acks"], a.get("trace", False), a.get("pause", 0), a.get("busy", 30.0),
               a.get("explicit", False))
    writers[a["who"]] = w
    w.start()


def do_writer_state(a):
    w = writers[a["who"]]
    return {"n": w.n, "worst": w.worst, "errors": w.errors, "alive": w.is_alive(),
            "waiting": time.monotonic() - w.last}


def do_writer_stop(a):
    w = writers[a["who"]]
    w.stop.set()
    w.join(a.get("wait", 60))
    state = do_writer_state(a)
    if not w.is_alive():
        del writers[a["who"]]
    return state


commands = {k[3:]: v for k, v in list(globals().items()) if k.startswith("do_")}
at_once = {"writer_state"}


def serve(q):
    while True:
        a = q.get()
        if a is None:
            return
        run(a)


def run(a):
    try:
        answer({"id": a["id"], "result": pack(commands[a["cmd"]](a))})
    except BaseException as e:
        answer({"id": a["id"], "error": error_of(e)})


def main():
    for line in sys.stdin:
        a = json.loads(line)
        a.setdefault("conn", "main")
        if a["cmd"] in at_once:
            run(a)
            continue
        q = threads.get(a["conn"])
        if q is None:
            q = threads[a["conn"]] = queue.Queue()
            q.thread = threading.Thread(target=serve, args=(q,), daemon=True)
            q.thread.start()
        q.put(a)
    for w in writers.values():
        w.stop.set()
    for q in threads.values():
        q.put(None)
    for q in threads.values():
        q.thread.join(10)
    for c in list(conns.values()):
        c.close()


main()
