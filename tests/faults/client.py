"""What the programs of a cluster under faults do: runs inside a member's process (worker.py), threads of several
workloads, each operation recorded before it begins and after it ends.

The history is one file for each process, of lines that a kill cannot take back:
    B <op> <thread> <t> <what, JSON>        an operation begins, at t (monotonic, nanoseconds; one clock for all)
    S <op> <saw, JSON>                      rows that it was given in the middle of a write transaction
    E <op> <t> <outcome> <result, JSON>     it has ended: ok, fail (certainly not written), unknown
An operation without its second line is unknown.

Write transactions of the workloads bank, list and counter insert a row into `hist`, whose key is the place they take
among all of them; so what a reader sees is to be exactly what replaying `hist` up to the last row it sees gives
(history.py). The workloads set and register do without, and use single statements.
"""
import json
import os
import random
import sqlite3
import threading
import time

ACCOUNTS = 8
START = 100
KEYS = 6
REGISTERS = 3

SCHEMA = """
CREATE TABLE hist(n INTEGER PRIMARY KEY, op TEXT NOT NULL, effect TEXT NOT NULL);
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INT NOT NULL);
CREATE TABLE list(key INT NOT NULL, value INT NOT NULL, at INTEGER PRIMARY KEY);
CREATE TABLE counter(id INTEGER PRIMARY KEY, v INT NOT NULL);
CREATE TABLE element(value TEXT NOT NULL, pad BLOB);
CREATE INDEX element_value ON element(value);
CREATE TABLE register(k TEXT PRIMARY KEY, v TEXT);
"""


class Stop(Exception):
    pass


class History:
    def __init__(self, path, who):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.who = who
        self.n = 0
        self.lock = threading.Lock()

    def begin(self, thread, what):
        with self.lock:
            self.n += 1
            op = "%s.%d" % (self.who, self.n)
        os.write(self.fd, ("B %s %s %d %s\n" % (op, thread, time.monotonic_ns(), json.dumps(what))).encode())
        return op

    def seen(self, op, saw):
        os.write(self.fd, ("S %s %s\n" % (op, json.dumps(saw))).encode())

    def end(self, op, outcome, result):
        os.write(self.fd, ("E %s %d %s %s\n" % (op, time.monotonic_ns(), outcome, json.dumps(result))).encode())


def classify(e):
    """What an error says of the transaction."""
    name = getattr(e, "sqlite_errorname", None) or type(e).__name__
    return ("unknown" if name == "SQLITE_IOERR_COMMIT_ATOMIC" else "fail"), name


class Client(threading.Thread):
    """One thread: a connection for writing, and one for each level of reading as needed."""

    def __init__(self, path, history, name, seed, mix, busy):
        super().__init__(daemon=True)
        self.path, self.history, self.name_, self.busy = path, history, name, busy
        self.random = random.Random(seed)
        self.mix = mix
        self.conns = {}
        self.stop = threading.Event()
        self.pause = 0.0
        self.ops = 0
        self.crash = None

    # ---- connections ----

    def conn(self, level="local"):
        c = self.conns.get(level)
        if c is None:
            c = sqlite3.connect(self.path, timeout=self.busy, isolation_level=None, check_same_thread=False)
            if level != "local":
                c.execute("PRAGMA dust_consistency = " + level)
            if self.random.random() < 0.3:
                c.set_trace_callback(lambda sql: None)  # the statement hook is the program's
            self.conns[level] = c
        return c

    def run(self):
        names = [n for n, w in self.mix.items() for _ in range(w)]
        try:
            while not self.stop.is_set():
                getattr(self, "op_" + self.random.choice(names))()
                self.ops += 1
                if self.pause:
                    self.stop.wait(self.pause * self.random.random())
        except BaseException as e:
            import traceback
            self.crash = traceback.format_exc()
        for c in self.conns.values():
            try:
                c.close()
            except sqlite3.Error:
                pass

    def do(self, what, body, level="local"):
        """One operation: body(connection) gives its result. Errors end it; a transaction left open is rolled back."""
        try:
            c = self.conn(level)
        except sqlite3.Error:
            self.stop.wait(0.05)
            return None
        op = self.history.begin(self.name_, what)
        try:
            result = body(c, op)
            self.history.end(op, "ok", result)
            return result
        except Stop:
            self.rollback(c)
            self.history.end(op, "fail", {})
        except sqlite3.Error as e:
            outcome, name = classify(e)
            result = {"error": name, "text": str(e)}
            if outcome == "unknown":
                result["id"] = self.unknown_id(c)
            self.rollback(c)
            self.history.end(op, outcome, result)
            if outcome == "unknown" and result["id"]:
                self.ask_outcome(c, op, *result["id"])
            self.stop.wait(0.02)
        return None

    def rollback(self, c):
        if c.in_transaction:
            try:
                c.execute("ROLLBACK")
            except sqlite3.Error:
                pass

    def unknown_id(self, c):
        try:
            d = dict(c.execute("SELECT name, value FROM dust_status WHERE name LIKE 'connection_unknown%'").fetchall())
            return [d["connection_unknown"], int(d["connection_unknown_after"])]
        except (sqlite3.Error, KeyError):
            return None

    def ask_outcome(self, c, of, id_, after):
        """dust_outcome until it is decided, or a while has passed."""
        op = self.history.begin(self.name_, {"op": "outcome", "of": of})
        answer = None
        end = time.monotonic() + 20
        while time.monotonic() < end and not self.stop.is_set():
            try:
                answer = c.execute("SELECT dust_outcome(?, ?)", (id_, after)).fetchone()[0]
            except sqlite3.Error:
                answer = None
            if answer in ("agreed", "void"):
                break
            self.stop.wait(0.2)
        self.history.end(op, "ok", {"answer": answer})

    # ---- transactions with a place in hist ----

    def begin(self, c):
        c.execute(self.random.choice(["BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN"]))

    def place(self, c, op, effect):
        sql = "INSERT INTO hist(op, effect) VALUES(?, ?)"
        if self.random.random() < 0.3:
            n = c.execute(sql + " RETURNING n", (op, json.dumps(effect))).fetchone()[0]
        else:
            n = c.execute(sql, (op, json.dumps(effect))).lastrowid
        return n

    def last(self, c):
        """The last row of hist: its place, and whose it is."""
        return c.execute("SELECT n, op FROM hist ORDER BY n DESC LIMIT 1").fetchone() or (0, None)

    def perhaps_give_up(self, op, saw):
        """Some transactions only look, from within a write transaction, and roll back. What was seen counts in any case,
        also if the process is killed right after."""
        self.history.seen(op, saw)
        if self.random.random() < 0.05:
            raise Stop()

    def op_bank(self):
        a, b = self.random.sample(range(1, ACCOUNTS + 1), 2)
        amount = self.random.randrange(1, 10)

        def body(c, op):
            self.begin(c)
            n, last = self.last(c)
            rows = c.execute("SELECT balance FROM account ORDER BY id").fetchall()
            self.perhaps_give_up(op, {"n": n, "last": last, "accounts": [r[0] for r in rows]})
            c.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, a))
            c.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, b))
            n = self.place(c, op, ["move", a, b, amount])
            c.execute("COMMIT")
            return {"n": n}

        self.do({"op": "bank"}, body)

    def op_list(self):
        steps = [(self.random.choice("ra"), self.random.randrange(KEYS)) for _ in range(self.random.randrange(1, 4))]
        steps.append(("a", self.random.randrange(KEYS)))
        base = int(time.monotonic() / 30) * KEYS  # lists stay short

        def body(c, op):
            self.begin(c)
            n, last = self.last(c)
            self.history.seen(op, {"n": n, "last": last})
            read, effect = {}, ["append"]
            for i, (kind, key) in enumerate(steps):
                key += base
                if kind == "r":
                    rows = [r[0] for r in c.execute("SELECT value FROM list WHERE key = ? ORDER BY at", (key,))]
                    if not any(e[0] == key for e in effect[1:]):
                        read[key] = rows
                else:
                    value = int(op.split(".")[-1]) * 10 + i
                    c.execute("INSERT INTO list(key, value) VALUES(?, ?)", (key, value))
                    effect.append([key, value])
            self.perhaps_give_up(op, {"n": n, "last": last, "lists": read})
            m = self.place(c, op, effect)
            c.execute("COMMIT")
            return {"n": m}

        self.do({"op": "list"}, body)

    def op_counter(self):
        def body(c, op):
            self.begin(c)
            n, last = self.last(c)
            self.history.seen(op, {"n": n, "last": last})
            v = c.execute("UPDATE counter SET v = v + 1 WHERE id = 1 RETURNING v").fetchone()[0]
            n = self.place(c, op, ["count", v])
            c.execute("COMMIT")
            return {"n": n, "v": v}

        self.do({"op": "counter"}, body)

    def op_peek(self):
        """What is the newest for a writer? It looks, and writes nothing."""
        def body(c, op):
            c.execute("BEGIN IMMEDIATE")
            n, last = self.last(c)
            self.history.seen(op, {"n": n, "last": last})
            raise Stop()

        self.do({"op": "peek"}, body)

    def op_read(self):
        """A snapshot of everything, at some level."""
        level = self.random.choice(["stale", "local", "local", "fresh", "linearizable", "linearizable"])
        key = int(time.monotonic() / 30) * KEYS + self.random.randrange(KEYS)

        def body(c, op):
            c.execute("BEGIN")
            n, last = self.last(c)
            accounts = [r[0] for r in c.execute("SELECT balance FROM account ORDER BY id")]
            lists = {key: [r[0] for r in c.execute("SELECT value FROM list WHERE key = ? ORDER BY at", (key,))]}
            v = c.execute("SELECT v FROM counter").fetchone()[0]
            c.execute("COMMIT")
            return {"n": n, "last": last, "accounts": accounts, "lists": lists, "v": v}

        self.do({"op": "read", "level": level}, body, level)

    # ---- single statements ----

    def op_add(self):
        """Set: one INSERT, nothing else."""
        pad = self.random.choice([0, 0, 0, 100, 5000])

        def body(c, op):
            c.execute("INSERT INTO element(value, pad) VALUES(?, randomblob(?))", (op, pad))

        self.do({"op": "add"}, body)

    def op_bump(self):
        """The counter with a single statement: its row is handed out only if it is true."""
        def body(c, op):
            return {"v": c.execute("UPDATE counter SET v = v + 1 WHERE id = 2 RETURNING v").fetchone()[0]}

        self.do({"op": "bump"}, body)

    def register_key(self):
        return "%d-%d" % (int(time.monotonic() / 2), self.random.randrange(REGISTERS))

    def op_write(self):
        k = self.register_key()
        self.do({"op": "write", "k": k}, lambda c, op: c.execute(
            "INSERT INTO register VALUES(?, ?) ON CONFLICT(k) DO UPDATE SET v = excluded.v", (k, op)) and None)

    def op_cas(self):
        k = self.register_key()

        def body(c, op):
            old = c.execute("SELECT v FROM register WHERE k = ?", (k,)).fetchone()
            old = old[0] if old else None
            n = c.execute("UPDATE register SET v = ? WHERE k = ? AND v IS ?", (op, k, old)).rowcount
            return {"old": old, "done": n == 1}

        self.do({"op": "cas", "k": k}, body)

    def op_look(self):
        """The register, linearizable."""
        k = self.register_key()

        def body(c, op):
            row = c.execute("SELECT v FROM register WHERE k = ?", (k,)).fetchone()
            return {"v": row[0] if row else None}

        self.do({"op": "look", "k": k}, body, "linearizable")


clients = []
readers = []

MIX = {"bank": 3, "list": 4, "counter": 2, "peek": 4, "read": 5, "add": 3, "bump": 1, "write": 2, "cas": 1, "look": 2}


def start(path, history_path, who, seed, threads, busy=8.0, pause=0.0):
    history = History(history_path, who)
    for i in range(threads):
        c = Client(path, history, "%s/%d" % (who, i), "%s/%s/%d" % (seed, who, i), MIX, busy)
        c.pause = pause
        clients.append(c)
        c.start()


def stop(timeout=120.0):
    """The operations under way are finished. Gives how many there were, and what went wrong with a client itself."""
    for c in clients:
        c.stop.set()
    end = time.monotonic() + timeout
    stuck = []
    for c in clients:
        c.join(max(0.1, end - time.monotonic()))
        if c.is_alive():
            stuck.append(c.name_)
    done = {"ops": sum(c.ops for c in clients), "stuck": stuck, "crashes": [c.crash for c in clients if c.crash]}
    clients.clear()
    return done


def hold_snapshot(path):
    """A long reader: what it sees must not change until drop_snapshot."""
    c = sqlite3.connect(path, timeout=8, isolation_level=None, check_same_thread=False)
    c.execute("BEGIN")
    readers.append((c, look(c)))


def look(c):
    return c.execute("SELECT (SELECT max(n) FROM hist), (SELECT sum(balance) FROM account), "
                     "(SELECT count(*) FROM element), (SELECT total(length(pad)) FROM element), "
                     "(SELECT count(*) FROM list)").fetchone()


def drop_snapshot():
    """What changed under the long readers: nothing, one hopes."""
    wrong = []
    for c, first in readers:
        try:
            again = look(c)
            if again != first:
                wrong.append([first, again])
        except sqlite3.Error as e:
            wrong.append([first, repr(e)])
        c.close()
    readers.clear()
    return wrong
