"""What the tests of whole programs share."""

import pytest
from matplotlib.figure import Figure

from tests import undrawn


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", undrawn.savefig)
