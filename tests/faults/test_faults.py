"""A short run of the fault harness: all faults mixed, three members and five. By hand: faults.py."""
import os
import random
import subprocess
import sys

import pytest

from cluster import SLOW, scaled

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.mark.sanitize
@pytest.mark.parametrize("members", [3, 5])
def test_mixed(members):
    seed = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1 << 30)))
    seconds = scaled(60, 60) if members == 3 else scaled(30, 20)
    p = subprocess.run([sys.executable, "-B", os.path.join(HERE, "faults.py"), "--seed", str(seed), "--seconds", str(seconds),
                        "--members", str(members), "--pause", str(0.02 * SLOW)],
                       capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500)
    print(p.stdout[-12000:])
    print(p.stderr[-4000:])
    assert p.returncode == 0, p.stdout.splitlines()[-1:]
