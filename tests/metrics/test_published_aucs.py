"""util/metrics/delong.py and compare.py on the examples whose results others published.

aSAH: 113 patients with a subarachnoid haemorrhage (Turck et al. 2010); the figures are those of the R package
pROC (Robin et
al. 2011). Ovarian: 43 patients (DeLong, DeLong and Clarke-Pearson 1988). In all of them a higher score speaks
for the outcome, and ties count half (wfns has five levels).
"""

import numpy as np
import pandas as pd
import pytest

from tests.compared_runs import images
from tests.shared_data import FOLDER, shared_data
from util.metrics import delong
from util.metrics.classification import predictions_table
from util.study.comparison import JointTest, compare, table_of_tests
from util.study.comparison_runs import Group, Run
from util.study.comparison_text import markdown, terminal


def influences(table: pd.DataFrame, positive: pd.Series,
               scores: tuple[str, ...]) -> dict[str, tuple[float, np.ndarray]]:
    """{score: (AUC, influences (N,))}"""
    return {name: delong.auc_influence(positive.to_numpy(), table[name].to_numpy()) for name in scores}


@pytest.fixture
def asah():
    table = pd.read_csv(shared_data("delong") / "aSAH.csv")
    return influences(table, table["outcome"] == "Poor", ("wfns", "s100b", "ndka"))


# ---- two models --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("score, auc", [("wfns", 0.823678861788618), ("ndka", 0.611957994579946)])
def test_aucs_are_procs(asah, score, auc):
    assert asah[score][0] == pytest.approx(auc, abs=1e-14)


def test_the_symmetric_interval_is_procs(asah):
    """pROC's interval is the AUC and 1.96 standard errors to either side. Ours has the same error, on the
    logit scale."""
    auc, influence = asah["ndka"]
    error = delong.variance(influence) ** 0.5
    symmetric = auc - delong.QUANTILE * error, auc + delong.QUANTILE * error
    assert symmetric == pytest.approx((0.501244999271703, 0.722670989888189), abs=1e-13)
    ours = delong.logit_interval(auc, error**2, 41)
    logits = [np.log(bound / (1 - bound)) for bound in ours]
    assert sum(logits) / 2 == pytest.approx(np.log(auc / (1 - auc))), "symmetric on the logit scale"
    assert logits[1] - logits[0] == pytest.approx((symmetric[1] - symmetric[0])
                                                  / (auc * (1 - auc))), "of the same error"


@pytest.mark.parametrize("first, second, p", [
    ("wfns", "s100b", 0.0271757822291882), ("wfns", "ndka", 0.00514557970691098),
    ("ndka", "s100b", 0.164295175223054)])
def test_paired_p_are_procs(asah, first, second, p):
    (one, of_one), (other, of_other) = asah[first], asah[second]
    assert delong.difference_test(of_one, of_other, one - other)[2] == pytest.approx(p, rel=1e-12)


# ---- three models at once ----------------------------------------------------------------------------------

@pytest.fixture
def ovarian():
    table = pd.read_csv(shared_data("delong") / "ovarian_delong1988.csv")
    return table["popind"].to_numpy() == 1, table[["alb", "tp", "kg_score"]].to_numpy().T


def test_the_joint_comparison_is_that_of_the_paper(ovarian):
    of_each = [delong.auc_influence(ovarian[0], scores) for scores in ovarian[1]]
    chi_square, freedom, p = delong.joint_test(np.array([auc for auc, _ in of_each]),
                                               np.array([each for _, each in of_each]))
    assert (round(chi_square, 4), freedom, round(p, 4)) == (2.5340, 2, 0.2817)


def test_compare_has_the_papers_joint_comparison(ovarian):
    """From predictions to the tables: scores as logits of two classes, which keep their order and their
    ties."""
    labels, groups = ovarian[0].astype(int), []
    for number, scores in enumerate(ovarian[1]):
        logits = np.column_stack([np.zeros(len(scores)), scores - scores.mean()])
        table = predictions_table(images(labels, classes=("no", "yes")), logits, ["no", "yes"])
        groups.append(Group(f"score {number}", [Run(None, "classification", {}, 0, {}, table)]))
    found = compare(groups, ["roc_auc"], "test", 100, 0)
    assert table_of_tests(found.joint, JointTest).round(4).to_numpy().tolist() == [
        ["roc_auc", "joint DeLong", 3, 2.5340, 2, 0.2817]
    ]
    assert any("2.534" in line and line.endswith("0.282") for line in terminal(found))
    assert "| roc_auc | joint DeLong | 3 | 2.534 | 2 | 0.282 |" in markdown(found)


# ---- where the data are not --------------------------------------------------------------------------------

def test_absent_data_leave_a_test_out_with_a_line():
    with pytest.raises(
        pytest.skip.Exception, match="real data not here: ../shared/data/nowhere does not lie beside"
    ):
        shared_data("nowhere")
    assert FOLDER.parts[-2:] == ("shared", "data")
