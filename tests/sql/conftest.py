"""A cluster of one for each test."""
import pytest


@pytest.fixture
def m(box):
    """A member whose database is empty, with the connection `main`."""
    return box.member("m").create()


@pytest.fixture
def reopened(m):
    """A function that ends the member's process as it should end, or kills it, and opens the database anew."""
    def do(kill=False):
        if kill:
            m.kill9()
        else:
            assert m.end() == 0
        m.restart()
        assert m.one("PRAGMA integrity_check") == "ok"
        return m
    return do
