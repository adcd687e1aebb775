import pytest

import losses


@pytest.fixture
def opener():
    o = losses.Opener()
    yield o
    o.shut()


@pytest.fixture
def recording(box):
    return losses.Recording(box)
