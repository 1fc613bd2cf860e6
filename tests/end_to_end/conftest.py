"""What the tests of whole programs share."""

import pytest

from tests import undrawn


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch):
    undrawn.install(monkeypatch.setattr)
