"""dust run: programs that know nothing of dust."""
import os
import shutil
import subprocess

import pytest

from cluster import PYTHON, SHELL, SLOW, address, child_env, wait_until
from tool import DUST, run

CODE = """
import sqlite3, sys, threading
def work(i):
    c = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
    for k in range(5):
        c.execute("INSERT INTO t VALUES(?)", ("python %d.%d" % (i, k),))
    c.close()
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for t in threads:
    t.start()
for t in threads:
    t.join()
"""


@pytest.fixture
def two(box):
    a, b = members = [box.member(x) for x in "ab"]
    a.create()
    a.sql("CREATE TABLE t(x)")
    b.join(a)
    return members


def test_shell(box, two):
    """The stock shell, on a member that another process hosts, and on one that nobody does."""
    a, b = two
    run("run", "--", SHELL, a.path, "INSERT INTO t VALUES('by a shell')")
    wait_until("it is there", lambda: b.sql("SELECT x FROM t") == [("by a shell",)], 20)
    out = run("run", SHELL, "-separator", ":", b.path, "SELECT x, dust_role() FROM t")  # its options are its own
    assert out.strip().split(":") == ["by a shell", b.role()]
    assert b.end() == 0
    run("run", "--", SHELL, b.path, "INSERT INTO t VALUES('alone')", env={"LD_PRELOAD": ""})
    wait_until("it is there", lambda: a.one("SELECT count(*) FROM t") == 2, 20)


def test_threads_that_open_at_once(box, two):
    a, b = two
    run("run", "--", PYTHON, "-c", CODE, a.path)
    wait_until("all are there", lambda: b.one("SELECT count(*) FROM t WHERE x LIKE 'python%'") == 40, 20)


def test_made_members_by_the_environment(box):
    """A program starts a cluster with its first connection, another one joins it."""
    a, b = box.path("app-a.db"), box.path("app-b.db")
    own = address()
    p = subprocess.Popen([DUST, "run", "--db", box.path("app-*.db"), "--bind", own, "--", PYTHON, "-c",
                          "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('CREATE TABLE t(x)'); "
                          "print('up', flush=True); sys.stdin.read()", a],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_env())
    assert p.stdout.readline() == "up\n"
    out = run("run", "--db", box.path("app-*.db"), "--bind", address(), "--join", own, "--", SHELL, b,
              "INSERT INTO t VALUES(1); SELECT count(*), dust_role() FROM t; SELECT count(*) FROM dust_members")
    assert out.split() == ["1|follower", "2"]
    other = box.path("other.db")
    run("run", "--db", box.path("app-*.db"), "--bind", own, "--", SHELL, other, "CREATE TABLE t(x)")
    assert not os.path.exists(other + "-dust")  # it was not meant
    p.stdin.close()
    assert p.wait(30 * SLOW) == 0


def test_programs_without_sqlite(box):
    assert run("run", "--", "true") == ""
    assert run("run", "--", "sh", "-c", "echo one; echo two") == "one\ntwo\n"
    run("run", "--", "false", code=1)
    run("run", "--", "sh", "-c", "exit 42", code=42)


def test_what_cannot_be_run(box):
    assert "no program" in run("run", "--", "nosuchprogram", code=127)
    assert "no program" in run("run", "--", box.path("nosuch"), code=127)
    with open(box.path("text"), "w") as f:
        f.write("text")
    assert "cannot be executed" in run("run", "--", box.path("text"), code=126)
    with open(box.path("static.c"), "w") as f:
        f.write("int main(void) { return 0; }")
    subprocess.run(["gcc", "-static", "-o", box.path("static"), box.path("static.c")], check=True)
    assert "statically" in run("run", "--", box.path("static"), code=1)


def test_again_after_shutdown(box, two):
    """sqlite3_shutdown() takes all registrations away; the next use puts them back."""
    a, b = two
    with open(box.path("twice.c"), "w") as f:
        f.write("""
            #include <sqlite3.h>
            #include <stdio.h>
            int main(int argc, char **argv)
            {
                for (int i = 0; i < 2; i++) {
                    sqlite3 *db;
                    char *text = NULL;
                    if (sqlite3_open(argv[1], &db) != 0 ||
                        sqlite3_exec(db, "PRAGMA busy_timeout = 20000; INSERT INTO t VALUES('again')", 0, 0, &text) != 0) {
                        printf("%s\\n", text ? text : sqlite3_errmsg(db));
                        return 1;
                    }
                    sqlite3_close(db);
                    sqlite3_shutdown();
                }
                return argc != 2;
            }
            """)
    subprocess.run(["gcc", "-o", box.path("twice"), box.path("twice.c"), "-lsqlite3"], check=True)
    run("run", "--", box.path("twice"), a.path)
    wait_until("both are there", lambda: b.one("SELECT count(*) FROM t WHERE x = 'again'") == 2, 20)


def test_without_the_library(box, two):
    """libdust-run alone, without libdust: an error, and no write that nobody replicates."""
    a, _ = two
    shutil.copy(os.path.join(os.path.dirname(DUST), "libdust-run.so"), box.path("libdust-run.so"))
    p = subprocess.run([SHELL, a.path, "INSERT INTO t VALUES('lost')"], capture_output=True, text=True,
                       env=child_env({"LD_PRELOAD": box.path("libdust-run.so")}))
    assert p.returncode != 0 and p.stdout == "", p
    assert a.one("SELECT count(*) FROM t") == 0
