"""Is a history possible? Reads what the clients have recorded and what the members hold at the end, and lists the
violations.

    order       a transaction recorded as done is in `hist` once, at the place it was told; a failed one is not there
    time        what began after another operation had ended comes after it (strict serializability): all write
                transactions, and reads that are linearizable; the reads of one member never go backwards; what is fresh
                is not older than it may be
    snapshot    whatever a read shows is what replaying `hist` up to its last row gives, sums included
    set         every element added is there once; none that failed is
    counter     no value is handed out twice
    register    the operations on one key have an order that explains them (Wing and Gong's search, with memory)
    outcome     dust_outcome said what came to be
"""
import json

FRESH_NS = 1_000_000_000
FRESH_SLACK_NS = 1_500_000_000  # while leadership changes: one election timeout, and a little


class Op:
    __slots__ = ("id", "who", "member", "start", "end", "what", "outcome", "result", "saw")

    def __init__(self, id_, thread, start, what):
        self.id, self.who, self.start, self.what = id_, thread.split("/")[0], start, what
        self.member = self.who.split("#")[0]
        self.end, self.outcome, self.result, self.saw = None, "unknown", {}, None


def load(paths):
    ops = {}
    for path in paths:
        with open(path) as f:
            for line in f:
                if not line.endswith("\n"):
                    break  # cut short by a kill
                kind, id_, rest = line.split(" ", 2)
                if kind == "B":
                    thread, t, what = rest.split(" ", 2)
                    ops[id_] = Op(id_, thread, int(t), json.loads(what))
                elif kind == "S":
                    ops[id_].saw = json.loads(rest)
                else:
                    t, outcome, result = rest.split(" ", 2)
                    op = ops[id_]
                    op.end, op.outcome, op.result = int(t), outcome, json.loads(result) or {}
    return ops


class State:
    """What the tables hold after a prefix of `hist`."""

    def __init__(self, accounts, start):
        self.accounts = [start] * accounts
        self.lists = {}
        self.v = 0

    def apply(self, effect):
        if effect[0] == "move":
            _, a, b, amount = effect
            self.accounts[a - 1] -= amount
            self.accounts[b - 1] += amount
        elif effect[0] == "append":
            for key, value in effect[1:]:
                self.lists.setdefault(key, []).append(value)
        elif effect[0] == "count":
            self.v += 1

    def contradicts(self, seen):
        if "accounts" in seen and seen["accounts"] != self.accounts:
            return "accounts are %s, seen were %s" % (self.accounts, seen["accounts"])
        if "v" in seen and seen["v"] != self.v:
            return "the counter is %d, seen was %d" % (self.v, seen["v"])
        for key, values in (seen.get("lists") or {}).items():
            if values != self.lists.get(int(key), []):
                return "list %s is %s, seen was %s" % (key, self.lists.get(int(key), [])[-8:], values[-8:])
        return None


class Checker:
    def __init__(self, ops, final, accounts=8, start=100):
        """final: hist [(n, op, effect)], elements [value], accounts, counters {id: v}, register {k: v}."""
        self.ops, self.final = ops, final
        self.n_accounts, self.start = accounts, start
        self.violations = []
        self.notes = {}

    def wrong(self, kind, text):
        self.violations.append("%s: %s" % (kind, text))

    def check(self):
        self.order()
        self.snapshots()
        self.time()
        self.set()
        self.counter()
        self.registers()
        self.outcomes()
        return self.violations

    # ---- order ----

    def order(self):
        places = {}
        for n, op, _ in self.final["hist"]:
            if op in places:
                self.wrong("order", "%s is in hist twice: %d and %d" % (op, places[op], n))
            places[op] = n
        ns = [n for n, _, _ in self.final["hist"]]
        if ns != list(range(1, len(ns) + 1)):
            self.wrong("order", "hist has gaps")
        for op in self.ops.values():
            if op.what["op"] not in ("bank", "list", "counter"):
                continue
            if op.outcome == "ok" and places.get(op.id) != op.result["n"]:
                self.wrong("order", "%s was acknowledged at place %s, and is at %s" % (op.id, op.result["n"],
                                                                                       places.get(op.id)))
            if op.outcome == "fail" and op.id in places:
                self.wrong("order", "%s failed (%s) and is at place %d all the same" % (
                    op.id, op.result.get("error"), places[op.id]))
        self.places = places

    # ---- snapshots ----

    def sightings(self):
        """(place, what was seen there, by whom)."""
        for op in self.ops.values():
            if op.what["op"] == "read" and op.outcome == "ok":
                yield op.result["n"], op.result, op
            if op.saw is not None:
                yield op.saw["n"], op.saw, op

    def snapshots(self):
        state = State(self.n_accounts, self.start)
        at = 0
        hist = self.final["hist"]
        seen_values = sorted(((n or 0, s, op) for n, s, op in self.sightings()), key=lambda x: x[0])
        for n, seen, op in seen_values:
            if n > len(hist):
                self.wrong("snapshot", "%s saw place %d, which does not exist" % (op.id, n))
                continue
            while at < n:
                state.apply(json.loads(hist[at][2]))
                at += 1
            why = state.contradicts(seen)
            if n > 0 and seen.get("last") != hist[n - 1][1]:
                why = "it is %s, seen was %s" % (hist[n - 1][1], seen.get("last"))
            if why is not None:
                self.wrong("snapshot", "%s at place %d: %s" % (op.id, n, why))
        while at < len(hist):
            effect = json.loads(hist[at][2])
            state.apply(effect)
            at += 1
            if effect[0] == "count" and effect[1] != state.v:
                self.wrong("counter", "place %d counted to %d, and is number %d" % (at, effect[1], state.v))
        why = state.contradicts({"accounts": self.final["accounts"], "v": self.final["counters"][1]})
        if why is not None:
            self.wrong("snapshot", "at the end: " + why)
        if sum(self.final["accounts"]) != self.n_accounts * self.start:
            self.wrong("snapshot", "the accounts sum up to %d" % sum(self.final["accounts"]))

    # ---- time ----

    def time(self):
        points = []  # (time, 0 = end before 1 = start, op, place)
        for op in self.ops.values():
            if op.outcome != "ok" or op.what["op"] not in ("bank", "list", "counter", "read"):
                continue
            points.append((op.start, 1, op, op.result["n"] or 0))
            points.append((op.end, 0, op, op.result["n"] or 0))
        points.sort(key=lambda p: (p[0], p[1]))
        highest, at_start, by_member, by_process = 0, {}, {}, {}
        ended = []  # (time, highest place that had been seen by then)
        for t, starts, op, n in points:
            if starts:
                at_start[op.id] = (highest, by_member.get(op.member, 0), by_process.get(op.who, 0))
                continue
            before, member, process = at_start[op.id]
            level = op.what.get("level")
            if (level is None and n <= before) or (level == "linearizable" and n < before):
                self.wrong("time", "%s (%s) is at place %d, but %d had been seen before it began" % (
                    op.id, level or "write", n, before))
            if level in ("local", "fresh") and n < member:
                self.wrong("time", "%s (%s) went back to place %d from %d on its member" % (op.id, level, n, member))
            if level == "stale" and n < process:
                self.wrong("time", "%s (stale) went back to place %d from %d in its process" % (op.id, n, process))
            if level == "fresh":
                limit = self.seen_by(ended, op.start - FRESH_NS - FRESH_SLACK_NS)
                if n < limit:
                    self.wrong("time", "%s (fresh) is at place %d; %d had been seen %g s before" % (
                        op.id, n, limit, (FRESH_NS + FRESH_SLACK_NS) / 1e9))
            by_process[op.who] = max(by_process.get(op.who, 0), n)
            if level != "stale":
                by_member[op.member] = max(by_member.get(op.member, 0), n)
            if n > highest:
                highest = n
                ended.append((t, n))

    @staticmethod
    def seen_by(ended, t):
        lo, hi = 0, len(ended)
        while lo < hi:
            mid = (lo + hi) // 2
            if ended[mid][0] <= t:
                lo = mid + 1
            else:
                hi = mid
        return ended[lo - 1][1] if lo else 0

    # ---- set, counter ----

    def set(self):
        there = {}
        for v in self.final["elements"]:
            there[v] = there.get(v, 0) + 1
        for op in self.ops.values():
            if op.what["op"] != "add":
                continue
            n = there.pop(op.id, 0)
            if n > 1:
                self.wrong("set", "%s is there %d times" % (op.id, n))
            if op.outcome == "ok" and n == 0:
                self.wrong("set", "%s was acknowledged and is not there" % op.id)
            if op.outcome == "fail" and n != 0:
                self.wrong("set", "%s failed (%s) and is there all the same" % (op.id, op.result.get("error")))
        for v in there:
            self.wrong("set", "%s was never added" % v)

    def counter(self):
        handed = {}
        possible = 0
        for op in self.ops.values():
            if op.what["op"] != "bump":
                continue
            possible += op.outcome != "fail"
            if op.outcome == "ok":
                v = op.result["v"]
                if v in handed:
                    self.wrong("counter", "%d was handed to %s and to %s" % (v, handed[v], op.id))
                handed[v] = op.id
        final = self.final["counters"][2]
        if handed and max(handed) > final:
            self.wrong("counter", "%d was handed out, but the counter is %d" % (max(handed), final))
        if not len(handed) <= final <= possible:
            self.wrong("counter", "it is %d after %d increments acknowledged, %d possible" % (final, len(handed),
                                                                                              possible))

    # ---- registers ----

    def registers(self):
        keys = {}
        for op in self.ops.values():
            if op.what["op"] in ("write", "cas", "look"):
                keys.setdefault(op.what["k"], []).append(op)
        longest = 0
        for k, ops in sorted(keys.items()):
            events = []
            for op in ops:
                if op.outcome == "fail" or (op.what["op"] == "look" and op.outcome != "ok"):
                    continue
                events.append(op)
            longest = max(longest, len(events))
            # At the end the register is read once more.
            verdict = linearizable(events, self.final["register"].get(k))
            if verdict is None:
                self.notes["registers too long to decide"] = self.notes.get("registers too long to decide", 0) + 1
            elif not verdict:
                self.wrong("register", "no order explains the %d operations on %s" % (len(events), k))
        self.notes["registers"] = len(keys)
        self.notes["longest register history"] = longest

    # ---- outcomes ----

    def outcomes(self):
        elements = set(self.final["elements"])
        asked = 0
        for op in self.ops.values():
            answer = op.result.get("answer") if op.what["op"] == "outcome" else None
            of = self.ops.get(op.what.get("of")) if answer in ("agreed", "void") else None
            if of is None or of.what["op"] not in ("bank", "list", "counter", "add"):
                continue
            asked += 1
            there = of.id in self.places or of.id in elements
            if there != (answer == "agreed"):
                self.wrong("outcome", "%s is %s, dust_outcome said %s" % (of.id, "there" if there else "not there",
                                                                          answer))
        self.notes["outcomes asked"] = asked


FOREVER = 1 << 62


def linearizable(ops, final, limit=200000):
    """Search for an order of one register's operations. True, False, or None: given up."""
    ops = sorted(ops, key=lambda o: o.start)
    ends = [o.end if o.outcome == "ok" else FOREVER for o in ops]
    count = len(ops)
    required = sum(1 << i for i in range(count) if ends[i] != FOREVER)
    seen = set()
    stack = [(0, None)]  # (those that are placed, value)
    while stack:
        done, value = stack.pop()
        if (done, value) in seen:
            continue
        seen.add((done, value))
        if len(seen) > limit:
            return None
        if done & required == required and value == final:
            return True
        first_end = min((ends[i] for i in range(count) if not done >> i & 1), default=FOREVER)
        for i in range(count):
            if done >> i & 1:
                continue
            o = ops[i]
            if o.start > first_end:
                break
            for new in outcomes_of(o, value):
                stack.append((done | 1 << i, new))
    return False


def outcomes_of(o, value):
    """What the register may hold after this operation on this value; nothing: it is not possible here."""
    kind = o.what["op"]
    if kind == "look":
        return [value] if o.result["v"] == value else []
    if kind == "write":
        return [o.id]
    # A compare-and-set is two statements: the read may be older than the write (its level is local), the write is atomic.
    if o.outcome != "ok":
        return [o.id]
    if o.result["done"]:
        return [o.id] if value == o.result["old"] else []
    # Not done: another value was there, or the key was not there at all.
    return [value] if value != o.result["old"] or value is None else []
