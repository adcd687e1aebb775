"""Opens what power losses have left, each in a process of its own, for the tests of power loss.

Reads requests as JSON lines: {"lib": path, "jobs": [{"path": database, "steps": [[sql, [params]], ...]}, ...]}. The
library is loaded once, in this process; each request is served by a forked child, which does its jobs at once, each in
a thread, and then ends without ceremony. The answer is a list, for each job {"rows": [of each step], "error": text or
null}: a job ends with its first error.
"""
import json
import os
import signal
import sqlite3
import sys
import threading
import zlib

LIMIT = 60  # seconds


def load(lib):
    c = sqlite3.connect(":memory:")
    c.enable_load_extension(True)
    c.load_extension(lib)
    c.close()


def do(job):
    answer = {"rows": [], "error": None}
    try:
        c = sqlite3.connect(job["path"], timeout=10, isolation_level=None, check_same_thread=False)
        c.create_function("crc", 1, zlib.crc32)
        for sql, params in job["steps"]:
            answer["rows"].append(c.execute(sql, params).fetchall())
        job["connection"] = c
    except sqlite3.Error as e:
        answer["error"] = "%s: %s" % (getattr(e, "sqlite_errorname", "?"), e)
    job["answer"] = answer


def child(jobs, out):
    signal.alarm(LIMIT)
    threads = [threading.Thread(target=do, args=(job,)) for job in jobs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    os.write(out, json.dumps([job["answer"] for job in jobs]).encode())
    os._exit(0)


def main():
    loaded = False
    for line in sys.stdin:
        request = json.loads(line)
        if not loaded:
            load(request["lib"])
            loaded = True
        from_child, to_parent = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(from_child)
            child(request["jobs"], to_parent)
        os.close(to_parent)
        answer = b""
        while chunk := os.read(from_child, 1 << 20):
            answer += chunk
        os.close(from_child)
        _, status = os.waitpid(pid, 0)
        if not answer or status != 0:
            why = {"rows": [], "error": "the process ended with status %d" % os.waitstatus_to_exitcode(status)}
            answer = json.dumps([why] * len(request["jobs"])).encode()
        print(answer.decode(), flush=True)


main()
