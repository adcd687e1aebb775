"""A small application for gunicorn, preloaded: it opens the database before the workers are forked, and they go on with the
connection that they inherit. For test_servers.py."""
import os
import sqlite3

first = sqlite3.connect(":memory:")
first.enable_load_extension(True)
first.load_extension(os.environ["APP_LIB"])
first.close()
db = sqlite3.connect(os.environ["APP_DB"], timeout=30, isolation_level=None)
db.execute("SELECT count(*) FROM hits").fetchall()


def app(environ, start):
    if environ["PATH_INFO"] == "/write":
        db.execute("INSERT INTO hits(pid) VALUES(?)", (os.getpid(),))
        text = "written"
    else:
        text = "%d" % db.execute("SELECT max(id) FROM hits").fetchone()[0]
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text.encode()]
