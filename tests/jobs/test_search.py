"""What a search proposes for a regression's head."""

from types import SimpleNamespace

import pytest

from jobs.tasks.regression import Regression
from util.core.errors import InputError
from util.options.flag import REGRESSION
from util.options.groups import Options
from util.options.training import SPACES


def space(width):
    task = Regression(Options.of(REGRESSION, {"select_metric": "r2"}))
    return task.space(SimpleNamespace(regression_head=SimpleNamespace(dim=width)))


def test_heads_that_do_not_divide_the_width_are_never_proposed():
    assert space(64) == SPACES[REGRESSION] and list(space(12)) == list(SPACES[REGRESSION])
    assert space(12)["head_num_heads"].values == (2, 4)
    with pytest.raises(InputError, match="--head_embed_dim"):
        space(15)
