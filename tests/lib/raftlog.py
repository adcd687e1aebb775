"""A member's log as it lies on disk (raft/batch.h, raft/termfile.h), read without dust: for tests that look at it, or
damage it. Damaged files are no error here: what is not whole is not there."""
import hashlib
import os
import re
import struct

BLOCK = 4096
LOG_FILE = 4 << 20  # bytes of each of the files
HEAD = struct.Struct("<16s8sQQQQIIQ")
ENTRY = struct.Struct("<QII")


class Batch:
    """path, at: where it begins; end: where its blocks end. entries: of each (index, term, type, data)."""

    def __init__(self, path, at, raw, seq, follows, first, floor, n, size, kind):
        self.path, self.at, self.seq, self.follows, self.first, self.floor = path, at, seq, follows, first, floor
        self.n, self.size, self.anew = n, size, kind == 1
        self.last = first + n - 1
        self.end = at + (size + BLOCK - 1) // BLOCK * BLOCK
        self.name = os.path.basename(path)
        self.entries, p = [], HEAD.size
        for i in range(n):
            term, length, type_ = ENTRY.unpack_from(raw, p)
            self.entries.append((first + i, term, type_, raw[p + ENTRY.size:p + ENTRY.size + length]))
            p += ENTRY.size + (length + 7) // 8 * 8

    def __repr__(self):
        return "%s+%d %#x follows %#x: %d..%d%s, floor %d" % (
            self.name, self.at, self.seq, self.follows, self.first, self.last, " anew" if self.anew else "", self.floor)


def key_of(folder):
    with open(os.path.join(folder, "term"), "rb") as f:
        return f.read(40)[8:]


def files(folder):
    """The names of the log's files, in the order of their numbers."""
    return sorted((f for f in os.listdir(folder) if re.fullmatch(r"log-\d+", f)), key=lambda f: int(f[4:]))


def batch_at(path, at, data, key, begin=0):
    """The one that begins there, or None. begin: of the data in the file."""
    if at - begin + HEAD.size > len(data):
        return None
    hash_, magic, *fields = HEAD.unpack_from(data, at - begin)
    size = fields[5]
    raw = bytes(data[at - begin:at - begin + size])
    if magic != b"dustlog1" or not HEAD.size <= size == len(raw):
        return None
    return Batch(path, at, raw, *fields) if hashlib.blake2b(raw[16:], digest_size=16, key=key).digest() == hash_ else None


def batches_of(path, key):
    """Those of the file's present content."""
    with open(path, "rb") as f:
        data = f.read()
    found, at, highest = [], 0, 0
    while at < len(data):
        batch = batch_at(path, at, data, key)
        if batch is not None and batch.seq > highest:
            found.append(batch)
            highest, at = batch.seq, batch.end
        else:
            at += BLOCK
    return found


def batches(folder, key=None):
    """All that are whole, in the order in which they were written."""
    key = key or key_of(folder)
    return sorted((b for f in files(folder) for b in batches_of(os.path.join(folder, f), key)), key=lambda b: b.seq)


def log(folder, key=None):
    """Those that the log consists of, in order: from the last one back to where nothing is needed any more."""
    found = {b.seq: b for b in batches(folder, key)}
    way = [found[max(found)]] if found else []
    floor = way[0].floor if way else 0
    while way and way[0].first > floor and not way[0].anew and way[0].follows in found:
        way.insert(0, found[way[0].follows])
    return way


def entries(way):
    """What these batches, in order, make of the log: {index: (term, type, data)}."""
    found = {}
    for batch in way:
        if batch.anew:
            found = {}
        found = {i: e for i, e in found.items() if i < batch.first}
        found.update({i: (term, type_, data) for i, term, type_, data in batch.entries})
    return found


def seal(key, seq, follows, first, floor, entries, anew=False):
    """The blocks of a batch; entries: of each (term, type, data)."""
    body = b"".join(ENTRY.pack(term, len(data), type_) + data + bytes(-len(data) % 8) for term, type_, data in entries)
    size = HEAD.size + len(body)
    raw = HEAD.pack(b"", b"dustlog1", seq, follows, first, floor, len(entries), size, anew) + body
    raw = hashlib.blake2b(raw[16:], digest_size=16, key=key).digest() + raw[16:]
    return raw + bytes(-size % BLOCK)


def flip(path, at):
    """Change a byte."""
    with open(path, "r+b") as f:
        f.seek(at)
        b = f.read(1)[0]
        f.seek(at)
        f.write(bytes([b ^ 0x20]))
