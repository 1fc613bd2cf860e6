"""Scales of targets and covariates: learnt from the training rows, undone exactly."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from util.core.errors import InputError
from util.data.covariates import Covariate, encode_all
from util.metrics.target_scale import TargetScale


@pytest.fixture
def values():
    values = np.random.RandomState(0).lognormal(1, 0.5, (40, 2))
    values[3, 1] = np.nan
    return values


def test_standardised_and_back(values):
    scale = TargetScale.learn(["a", "b"], ["none", "log"], values)
    standard = scale.standardise(values)
    # scikit-learn divides by n, this by n - 1
    assert standard[:, 0] == pytest.approx(StandardScaler().fit_transform(values[:, :1])[:, 0]
                                           * np.sqrt(39 / 40))
    known = np.log(values[~np.isnan(values[:, 1]), 1])
    assert scale.means[1] == pytest.approx(known.mean()) and scale.sds[1] == pytest.approx(known.std(ddof=1))
    assert np.isnan(standard[3, 1]) and np.nanmax(np.abs(scale.restore(standard) - values)) < 1e-12
    assert TargetScale.from_plain(scale.plain()) == scale


@pytest.mark.parametrize(
    "column, says", [([2.0, 2.0, 2.0], "constant in train"), ([1.0, np.nan, np.nan], "1 values in train")]
)
def test_what_can_not_be_learnt(column, says):
    with pytest.raises(InputError, match=says):
        TargetScale.learn(["hdl"], ["none"], np.array(column)[:, None])


def test_covariates():
    age, eye = Covariate.learn("age", ["50", "60", "", "70"]), Covariate.learn("eye", ["L", "R", "L", ""])
    assert (age.is_category, age.mean, age.sd) == (False, 60.0, 10.0) and eye.levels == ("L", "R")
    encoded = encode_all([age, eye], [["70", ""], ["R", "both"]])
    assert encoded.dtype == torch.float32 and encoded[0].tolist() == [1.0, 1.0] and encoded[1].isnan().all()
    assert [Covariate.from_plain(c.plain()) for c in (age, eye)] == [age, eye]
    assert encode_all([], []) is None
    site = Covariate.learn("site", ["A", "unknown", "B", "-"])
    assert (
        site.levels == ("A", "B")
        and site.encode(["B", "unknown"])[0] == 1
        and np.isnan(site.encode(["unknown"])[0])
    )
    before = Covariate("site", ("A", "unknown"))  # of a checkpoint that took it for a level
    assert before.encode(["unknown"])[0] == 1
    with pytest.raises(InputError, match="covariate site has 1 value"):
        Covariate.learn("site", ["A", "A"])
