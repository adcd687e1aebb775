"""Loss of power: takes back what a killed member had written and not flushed (preload.c keeps the undo log).

For each sector the disk may hold what any one of the writes since the last flush left, or what was there before them;
a file's size, a new name, a removal and a renaming may have reached the disk or not. A write that is durable when it is
done (O_DSYNC) counts as flushed, it alone, once it is.
"""
import os
import shutil
import struct

SECTOR = 512
WRITE, SYNC, CREATE, UNLINK, RENAME, SYNCDIR, WRITTEN = 1, 2, 3, 4, 5, 6, 7
HEAD = struct.Struct("<IIIIQQI")
MAGIC = 0x6F646E75


def records(path):
    with open(path, "rb") as f:
        while True:
            head = f.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            magic, kind, n_path, n_other, offset, size, n = HEAD.unpack(head)
            assert magic == MAGIC, "the undo log is damaged"
            name, other, data = f.read(n_path), f.read(n_other), f.read(n)
            if len(data) < n:
                return
            yield kind, name.decode(), other.decode(), offset, size, data


def mend(undo):
    """A process that was killed in the middle of a record leaves a part of it, behind which the next one would write. What
    it was to undo was not written yet, or nobody has been told of it."""
    whole = 0
    with open(undo, "r+b") as f:
        end = f.seek(0, os.SEEK_END)
        while whole + HEAD.size <= end:
            f.seek(whole)
            magic, _, n_path, n_other, _, _, n = HEAD.unpack(f.read(HEAD.size))
            assert magic == MAGIC, "the undo log is damaged"
            if whole + HEAD.size + n_path + n_other + n > end:
                break
            whole += HEAD.size + n_path + n_other + n
        f.truncate(whole)


def lose(undo, rng, keep=0.5):
    """Apply it. keep: how likely a thing not flushed has reached the disk. Gives what was not flushed,
    as {name of the file: number of records}."""
    pending = []
    for r in records(undo):
        kind, path = r[0], r[1]
        if kind == SYNC:
            pending = [p for p in pending if not (p[0] in (WRITE, WRITTEN) and p[1] == path)]
        elif kind == SYNCDIR:
            pending = [p for p in pending if p[0] in (WRITE, WRITTEN) or os.path.dirname(p[1]) != path]
        else:
            if kind == WRITTEN:  # what it covers as a whole is done with
                begin, end = r[3], r[3] + r[4]
                pending = [p for p in pending if not (p[0] in (WRITE, WRITTEN) and p[1] == path and
                                                      begin <= p[3] and p[3] + max(size_of(p), 1) <= end)]
            pending.append(r)
    writes = [p for p in pending if p[0] in (WRITE, WRITTEN)]
    for path in sorted({p[1] for p in writes}):
        lose_writes(path, [p for p in writes if p[1] == path], rng, keep)
    for kind, path, other, _, _, data in reversed([p for p in pending if p[0] not in (WRITE, WRITTEN)]):
        if rng.random() < keep:
            continue
        if kind == CREATE and os.path.exists(path):
            os.unlink(path)
        elif kind == UNLINK and os.path.exists(other) and not os.path.exists(path):
            shutil.move(other, path)
        elif kind == RENAME and os.path.exists(other):
            os.rename(other, path)
            if data and os.path.exists(data.decode()):
                shutil.move(data.decode(), other)
    clear(undo)
    count = {}
    for r in pending:
        if r[0] == WRITTEN:
            continue
        name = os.path.basename(r[1])
        count[name] = count.get(name, 0) + 1
    return count


def size_of(r):
    return r[4] if r[0] == WRITTEN else len(r[5])


def lose_writes(path, writes, rng, keep):
    if not os.path.exists(path):
        return
    sectors = {}  # number: what it held before each write to it, oldest first
    sizes = []
    for kind, _, _, offset, size, data in writes:
        if kind == WRITTEN:
            for at in range(offset // SECTOR, (offset + size + SECTOR - 1) // SECTOR):
                sectors.pop(at, None)
            sizes = [max(x, offset + size) for x in sizes]
            continue
        sizes.append(size)
        for at in range(offset // SECTOR, (offset + len(data) + SECTOR - 1) // SECTOR):
            lo, hi = max(offset, at * SECTOR), min(offset + len(data), (at + 1) * SECTOR)
            sectors.setdefault(at, []).append((lo, data[lo - offset:hi - offset]))
    mode = rng.random()
    with open(path, "r+b") as f:
        for at, before in sorted(sectors.items()):
            # All lost, none lost, or each for itself.
            if mode < 0.25:
                first = 0
            elif mode < 0.4:
                first = len(before)
            else:
                first = len(before) if rng.random() < keep else rng.randrange(len(before))
            for lo, data in reversed(before[first:]):
                f.seek(lo)
                f.write(data)
        if sizes and rng.random() >= keep and mode < 0.6:
            size = sizes[0]
            f.truncate(size)


def clear(undo):
    open(undo, "wb").close()
    for name in os.listdir(undo + ".d"):
        os.unlink(os.path.join(undo + ".d", name))
