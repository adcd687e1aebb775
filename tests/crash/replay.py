"""What a power loss could leave of a folder, from the log that record.c made of the changes to it.

    disk = Disk(folder_as_it_was_before)
    for record in read_log(path):
        disk.apply(record)
        disk.state(Choice("any", rng)).write(folder)

The model. A file is a durable content and, behind it, the operations on it that no flush has covered yet; a folder is
durable names and unflushed operations on names. fsync and fdatasync of a file cover what was done to it before, not its
name; of a folder, the names in it. A write through O_DSYNC or RWF_DSYNC (SUBMIT) is durable when it is DONE, with its size
and the changes of size before it, but not with what else was written. One that is under way may be there.

A Choice says what of the unflushed becomes of it:
    none     nothing of it is there
    all      all of it is (the process was killed, the machine lived)
    files    all names, nothing of the content;  names: the reverse
    ordered  names up to a point in time (as journalling filesystems have it), of the writes any, whole or torn
    any      any of the names, any of the writes, whole or torn
    torn     all of it, but each write is torn
    tail     all of it, but each write lacks its first sector
A torn write has some of its sectors of 512 bytes, be it the first ones or any, and the file is as long as if it had
all. Names are put together from the operations kept, in their order: a rename whose file was not created by name before
creates it. Contents of a mapped file (`pages`, -shm) are noise after a crash.
"""
import os
import stat
import struct

BLOCK = 4096
SECTOR = 512
KINDS = ["OPEN", "CLOSE", "WRITE", "SIZE", "ALLOC", "RENAME", "UNLINK", "MKDIR", "RMDIR", "LINK", "SYNC", "SUBMIT",
         "DONE", "MARK", "ODD", "CUT"]
HEAD = struct.Struct("=IIiiiIIIqqQ")
MAGIC = 0x43524153
CHANGES = {"WRITE", "SIZE", "ALLOC", "RENAME", "UNLINK", "MKDIR", "RMDIR", "LINK", "SYNC", "SUBMIT", "DONE", "CUT"}
STYLES = ("none", "all", "files", "names", "ordered", "any", "torn", "tail")
NOISE = ("/pages", "-shm")


def is_noise(path):
    return path.endswith(NOISE)


class Record:
    """file: the path of what it is about, known once it was applied."""

    __slots__ = ("seq", "kind", "pid", "fd", "flags", "off", "len", "id", "path", "path2", "data", "file")

    def __repr__(self):
        return "%d %s fd %d %s%s off %d len %d flags %x" % (
            self.seq, self.kind, self.fd, self.path, " -> " + self.path2 if self.path2 else "", self.off, self.len,
            self.flags)


def read_log(path):
    """All records of a log. One that was cut off with its process ends it."""
    with open(path, "rb") as f:
        raw = memoryview(f.read())
    records, at = [], 0
    while at + HEAD.size <= len(raw):
        r = Record()
        magic, kind, r.pid, r.fd, r.flags, n1, n2, _, r.off, r.len, r.id = HEAD.unpack_from(raw, at)
        assert magic == MAGIC, "no record at byte %d" % at
        r.kind = KINDS[kind]
        at += HEAD.size
        r.path, at = bytes(raw[at:at + n1]).decode(), at + n1
        r.path2, at = bytes(raw[at:at + n2]).decode(), at + n2
        n = r.len if r.kind in ("WRITE", "SUBMIT") else 0
        r.data, at = raw[at:at + n], at + n
        if len(r.data) == n:
            records.append(r)
    for seq, r in enumerate(records):
        r.seq = seq
    return records


class Image:
    """The bytes of a file: blocks by number, those of zeros left out. Blocks are never changed, so a copy is cheap."""

    def __init__(self, size=0, blocks=None):
        self.size = size
        self.blocks = {} if blocks is None else blocks

    def copy(self):
        return Image(self.size, dict(self.blocks))

    def put(self, off, data):
        end = off + len(data)
        at = off
        while at < end:
            i, begin = divmod(at, BLOCK)
            n = min(BLOCK - begin, end - at)
            piece = data[at - off:at - off + n]
            if n == BLOCK:
                block = bytes(piece)
            else:
                block = bytearray(self.blocks.get(i) or bytes(BLOCK))
                block[begin:begin + n] = piece
                block = bytes(block)
            if block.count(0) == BLOCK:
                self.blocks.pop(i, None)
            else:
                self.blocks[i] = block
            at += n
        self.size = max(self.size, end)

    def resize(self, size):
        if size < self.size:
            last, part = divmod(size, BLOCK)
            for i in [i for i in self.blocks if i >= last]:
                old = self.blocks.pop(i)
                if i == last and part and any(old[:part]):
                    self.blocks[i] = old[:part] + bytes(BLOCK - part)
        self.size = size

    def key(self):
        return hash((self.size, tuple(sorted((i, hash(b)) for i, b in self.blocks.items()))))

    def write(self, path):
        with open(path, "wb", buffering=0) as f:
            run, start, next_ = [], 0, -1
            for i in sorted(self.blocks) + [-2]:
                if i != next_ and run:
                    os.pwrite(f.fileno(), b"".join(run), start * BLOCK)
                    run = []
                if not run:
                    start = i
                if i >= 0:
                    run.append(self.blocks[i])
                next_ = i + 1
            f.truncate(self.size)


class Op:
    """An operation on a file. durable: it is, whatever becomes of those before it."""

    __slots__ = ("kind", "off", "len", "data", "durable", "path")

    def __init__(self, kind, off=0, len_=0, data=None, durable=False, path=""):
        self.kind, self.off, self.len, self.data, self.durable, self.path = kind, off, len_, data, durable, path

    def do(self, image, sectors=None):
        """sectors: only these of a write."""
        if self.kind == "SIZE":
            image.resize(self.len)
        elif self.kind == "ALLOC":
            image.size = max(image.size, self.off + self.len)
        elif sectors is None:
            image.put(self.off, self.data)
        else:
            first = self.off // SECTOR
            for s in sectors:
                begin = max(self.off, (first + s) * SECTOR)
                end = min(self.off + len(self.data), (first + s + 1) * SECTOR)
                image.put(begin, self.data[begin - self.off:end - self.off])
            image.size = max(image.size, self.off + len(self.data))

    def n_sectors(self):
        return (self.off + len(self.data) - 1) // SECTOR - self.off // SECTOR + 1


class File:
    def __init__(self, path):
        self.path = path
        self.image = Image()  # durable
        self.pending = []

    def settle(self):
        """What stands before any operation that may yet be lost is merely content."""
        while self.pending and self.pending[0].durable:
            self.pending.pop(0).do(self.image)

    def flush(self, under_way=()):
        for op in self.pending:
            op.durable = op.durable or op not in under_way
        self.settle()


class Folder:
    def __init__(self, path):
        self.path = path
        self.names = {}  # as the processes see them
        self.durable = {}


class NameOp:
    """Names set, or taken away (None), at once, in one or two folders."""

    def __init__(self, *changes):
        self.changes = changes

    def do(self, names_of):
        for folder, name, node in self.changes:
            if node is None:
                names_of(folder).pop(name, None)
            else:
                names_of(folder)[name] = node


class Choice:
    """What becomes of the unflushed. only: the loss strikes what begins with this path; all of the rest is there."""

    def __init__(self, style, rng, only=""):
        self.style, self.rng, self.only = style, rng, only
        self.kept = rng.choice((0.1, 0.5, 0.9))

    def names(self, ops):
        struck = [any(f.path.startswith(self.only) for f, _, _ in op.changes) for op in ops]
        if self.style in ("none", "names"):
            keep = [False] * len(ops)
        elif self.style in ("all", "files", "torn", "tail"):
            keep = [True] * len(ops)
        elif self.style == "ordered":
            cut = self.rng.randint(0, len(ops))
            keep = [i < cut for i in range(len(ops))]
        else:
            keep = [self.rng.random() < self.kept for _ in ops]
        return [op for op, k, s in zip(ops, keep, struck) if k or not s]

    def do(self, op, image):
        if op.durable or self.style in ("all", "names") or not op.path.startswith(self.only):
            op.do(image)
        elif self.style in ("torn", "tail") and op.data is None:
            op.do(image)
        elif self.style == "tail":
            op.do(image, range(1, op.n_sectors()))
        elif self.style in ("ordered", "any", "torn", "tail"):
            dice = self.rng.random() * (0.3 if self.style == "torn" else 1)
            if op.data is None or dice > 0.3:
                if self.rng.random() < self.kept:
                    op.do(image)
            elif dice > 0.15:
                op.do(image, range(self.rng.randint(0, op.n_sectors())))
            else:
                op.do(image, [s for s in range(op.n_sectors()) if self.rng.random() < self.kept])


class State:
    """Files and folders by path."""

    def __init__(self):
        self.files, self.folders = {}, []

    def key(self):
        files = tuple(sorted((p, 0 if is_noise(p) else i.key()) for p, i in self.files.items()))
        return hash((files, tuple(sorted(self.folders))))

    def write(self, folder, under="", only=None):
        """Make it so in a folder, which must not be there. only: files whose path this accepts."""
        os.mkdir(folder)
        for p in sorted(self.folders):
            if p.startswith(under):
                os.makedirs(os.path.join(folder, p[len(under):]), exist_ok=True)
        for p, image in self.files.items():
            if p.startswith(under) and (only is None or only(p)):
                image.write(os.path.join(folder, p[len(under):]))


class Disk:
    def __init__(self, before):
        """before: a folder, all of which is durable."""
        self.root = Folder("")
        self.name_ops = []
        self.fds = {}
        self.under_way = {}
        self.copy_of(before, self.root)

    def copy_of(self, path, folder):
        for name in os.listdir(path):
            p = os.path.join(path, name)
            if os.path.isdir(p):
                node = Folder(folder.path + name + "/")
                self.copy_of(p, node)
            else:
                node = File(folder.path + name)
                with open(p, "rb") as f:
                    node.image.put(0, f.read())
            folder.names[name] = folder.durable[name] = node

    def find(self, path):
        """The folder and the last name of a path."""
        folder = self.root
        *folders, name = path.split("/")
        for f in folders:
            folder = folder.names[f]
        return folder, name

    def node(self, path):
        if path == "":
            return self.root
        folder, name = self.find(path)
        return folder.names[name]

    def name(self, *changes):
        op = NameOp(*changes)
        op.do(lambda folder: folder.names)
        self.name_ops.append(op)

    def file_of(self, r):
        return self.fds[r.pid, r.fd]

    def apply(self, r):
        """Take in a record. Says whether it changed what a power loss may leave."""
        getattr(self, "do_" + r.kind.lower())(r)
        r.file = r.path
        if r.kind not in CHANGES:
            return False
        node = self.fds.get((r.pid, r.fd))
        r.file = node.path if node is not None else r.file
        return node is None or not is_noise(node.path)

    def do_open(self, r):
        folder, name = self.find(r.path) if r.path else (None, None)
        node = self.root if not r.path else folder.names.get(name)
        if node is None:
            assert r.flags & os.O_CREAT, r
            node = File(r.path)
            self.name((folder, name, node))
        if r.flags & os.O_TRUNC and isinstance(node, File):
            self.op(node, Op("SIZE", len_=0))
        self.fds[r.pid, r.fd] = node

    def do_close(self, r):
        del self.fds[r.pid, r.fd]

    def op(self, node, op):
        op.path = node.path
        if not is_noise(node.path):
            node.pending.append(op)
            node.settle()
        return op

    def durable(self, node, op):
        op.durable = True
        for earlier in node.pending:
            if earlier is op:
                break
            earlier.durable = earlier.durable or earlier.data is None
        node.settle()

    def do_write(self, r):
        self.op(self.file_of(r), Op("WRITE", r.off, r.len, r.data))

    def do_size(self, r):
        self.op(self.file_of(r), Op("SIZE", len_=r.len))

    def do_cut(self, r):
        self.op(self.node(r.path), Op("SIZE", len_=r.len))

    def do_alloc(self, r):
        assert r.flags & ~1 == 0, r
        if r.flags == 0:
            self.op(self.file_of(r), Op("ALLOC", r.off, r.len))

    def do_submit(self, r):
        node = self.file_of(r)
        self.under_way[r.pid, r.id] = (node, self.op(node, Op("WRITE", r.off, r.len, r.data)))

    def do_done(self, r):
        node, op = self.under_way.pop((r.pid, r.id))
        if r.off <= 0:
            node.pending.remove(op)
        else:
            op.data = op.data[:r.off]  # the writer goes on with the rest
            self.durable(node, op)

    def do_sync(self, r):
        node = self.file_of(r)
        if isinstance(node, File):
            node.flush([op for n, op in self.under_way.values() if n is node])
            return
        rest = []
        for op in self.name_ops:
            if any(folder is node for folder, _, _ in op.changes):
                op.do(lambda folder: folder.durable)
            else:
                rest.append(op)
        self.name_ops = rest

    def do_rename(self, r):
        (f1, n1), (f2, n2) = self.find(r.path), self.find(r.path2)
        node = f1.names[n1]
        if isinstance(node, File):
            node.path = r.path2
        self.name((f1, n1, None), (f2, n2, node))

    def do_link(self, r):
        folder, name = self.find(r.path2)
        self.name((folder, name, self.node(r.path)))

    def do_unlink(self, r):
        folder, name = self.find(r.path)
        self.name((folder, name, None))

    do_rmdir = do_unlink

    def do_mkdir(self, r):
        folder, name = self.find(r.path)
        self.name((folder, name, Folder(r.path + "/")))

    def do_mark(self, r):
        pass

    def do_odd(self, r):
        node = self.fds.get((r.pid, r.fd))
        assert r.path == "mmap" and is_noise(node.path), "cannot follow this: %r" % r

    def unflushed(self):
        """How much of it there is: without any, all choices are one."""
        return len(self.name_ops) + sum(len(f.pending) for f in set(self.all_files()))

    def all_files(self, folder=None):
        for node in list((folder or self.root).names.values()) + list((folder or self.root).durable.values()):
            if isinstance(node, File):
                yield node
            else:
                yield from self.all_files(node)

    def state(self, choice):
        names = {}

        def names_of(folder):
            return names.setdefault(folder, dict(folder.durable))

        for op in choice.names(self.name_ops):
            op.do(names_of)
        state = State()

        def walk(folder, path):
            for name, node in sorted(names_of(folder).items()):
                if isinstance(node, Folder):
                    state.folders.append(path + name)
                    walk(node, path + name + "/")
                    continue
                image = node.image.copy()
                for op in node.pending:
                    choice.do(op, image)
                if is_noise(path + name):
                    image.put(0, choice.rng.randbytes(2 * BLOCK))
                state.files[path + name] = image

        walk(self.root, "")
        return state

    def compare(self, folder, rng):
        """The folder as it is must be what all operations make of it: nothing was missed. Gives what differs."""
        state = self.state(Choice("all", rng))
        there = set()
        different = []
        for path, _, files in os.walk(folder):
            for name in files:
                p = os.path.relpath(os.path.join(path, name), folder)
                if stat.S_ISSOCK(os.lstat(os.path.join(path, name)).st_mode):
                    continue  # holds nothing, and is made anew
                there.add(p)
                if is_noise(p):
                    continue
                with open(os.path.join(folder, p), "rb") as f:
                    data = f.read()
                image = Image()
                image.put(0, data)
                if p not in state.files or state.files[p].key() != image.key():
                    different.append(p)
        return different + sorted(there ^ set(state.files))
