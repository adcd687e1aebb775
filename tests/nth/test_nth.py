"""One call fails, or all from it on: of memory, of the disk, of the network; call after call, until a run meets none.

What fails, and what must hold then: runner.py. Environment: NTH_ALL=1 tries every call (by hand: an hour; as loop.py
does); else a sample of the places in the program from which something is called, chosen by DUST_SEED. NTH_LIBRARY: the
injector.
"""
import os
import time

import pytest

import loop
from cluster import SCALE

ALL = os.environ.get("NTH_ALL", "") == "1"
SECONDS = 2 * SCALE  # for a case; a call more is begun until then
SEED = os.environ.get("DUST_SEED") or str(time.time_ns() // 1000000)


@pytest.fixture(scope="module")
def the_loop(tmp_path_factory):
    one = loop.Loop(tmp_path_factory.mktemp("nth"))
    yield one
    one.shut()


@pytest.mark.parametrize("scenario, kind, mode", loop.cases())
def test_nth(the_loop, scenario, kind, mode):
    s = the_loop.run(scenario, kind, mode, budget=0 if ALL else 20, seed=SEED, seconds=1e9 if ALL else SECONDS)
    print("%s, %s, %s: %s; DUST_SEED=%s" % (scenario, kind, mode, s, SEED))
    assert not s.wrong, "%s; DUST_SEED=%s:\n%s" % (s, SEED, "\n".join(s.wrong[:5]))
    assert s.failed > 0
