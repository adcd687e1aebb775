"""What all Python tests share: the harness on the path, a Box for each test, and what members say when one fails."""
import os
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.dont_write_bytecode = True

import cluster as harness  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitize: part of what runs on the sanitizer builds")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        item.failed_call = True
        box = item.funcargs.get("box")
        if box is not None:
            report.sections.append(("members", state_of(box)))


def state_of(box):
    out = []
    for p in box.processes:
        out.append("%s: pid %d, %s" % (p.name, p.pid, "alive" if p.alive() else "ended (%s)" % p.p.returncode))
        if p.stderr:
            out.append("  stderr: " + "".join(p.stderr[-30:]))
        if p.alive() and isinstance(p, harness.Member):
            try:
                f = p.start("py", conn="post-mortem", arg=p.path, code=(
                    "c = connect(arg, timeout=1)\n"
                    "result = c.execute('SELECT name, value FROM dust_status').fetchall()\n"))
                out += ["  %s = %s" % tuple(r) for r in f.result(5)]
            except BaseException as e:
                out.append("  no dust_status: %s" % e)
    return "\n".join(out)


@pytest.fixture
def box(request):
    b = harness.Box(request.node.name.split("[")[0])
    yield b
    b.failed = getattr(request.node, "failed_call", False)
    b.shut()


@pytest.fixture
def small_disk(box):
    """Makes file systems of a few megabytes, with a file on them that takes up space until it is removed."""
    mounts = []

    def make(name, size_mb, filler_mb):
        path = box.path(name)
        os.mkdir(path)
        p = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % size_mb, "dust-test", path], capture_output=True,
                           text=True)
        if p.returncode != 0:
            pytest.skip("cannot mount a small file system: " + p.stderr.strip())
        mounts.append(path)
        with open(os.path.join(path, "filler"), "wb") as f:
            os.posix_fallocate(f.fileno(), 0, filler_mb << 20)
        return path

    yield make
    box.shut()
    for path in mounts:
        subprocess.run(["umount", "-l", path])
