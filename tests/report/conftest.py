"""Reports without their PNG files."""

import pytest

from util.report import charts


@pytest.fixture
def drawing():
    """Asked for by the tests that look at the PNG files."""


@pytest.fixture
def no_drawing(request, monkeypatch):
    """The PNG files take half of a report's time and are not what most of these tests look at."""
    if "drawing" not in request.fixturenames:
        monkeypatch.setattr(charts, "save_png", lambda *words: [])
