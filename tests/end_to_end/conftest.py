"""What the tests of whole programs share."""

import pytest


@pytest.fixture(autouse=True)
def nobody_looks_at_charts(charts_are_not_drawn):
    pass
