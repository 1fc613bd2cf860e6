"""util/metrics/class_order.py and the figures that need an order of the classes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.conftest import write_pictures
from util.core.errors import InputError
from util.metrics.class_order import in_order, ranks
from util.metrics.classification import classification_metrics, predictions_table
from util.metrics.intervals import classification_intervals

APTOS = ["Mild", "Moderate", "No_DR", "Proliferate_DR", "Severe"]  # as text has them
KNOWN = [
    (APTOS, ["No_DR", "Mild", "Moderate", "Severe", "Proliferate_DR"]),
    (["0_no_dr", "10_x", "1_mild", "2_moderate"], ["0_no_dr", "1_mild", "2_moderate", "10_x"]),
    ([str(number) for number in range(11)], [str(number) for number in range(11)]),
    (["-1", "+2", "0"], ["-1", "0", "+2"]),
    (["healthy", "mild", "severe"], ["healthy", "mild", "severe"]),
    (["No apparent retinopathy", "mild NPDR", "moderate NPDR", "severe NPDR", "PDR"],
     ["No apparent retinopathy", "mild NPDR", "moderate NPDR", "severe NPDR", "PDR"]),
    (["early AMD", "intermediateAMD", "late AMD", "normal"],
     ["normal", "early AMD", "intermediateAMD", "late AMD"]),
    (["high", "low", "medium"], ["low", "medium", "high"]),
]
UNKNOWN = [["cataract", "glaucoma", "normal"], ["0.0.Normal", "1.0.DR1", "2.0.BRVO"], ["1_a", "1_b", "2_c"],
           ["1_a", "b", "3_c"], ["mild", "mild npdr", "severe"], ["AMD", "CNV", "DME", "NORMAL"],
           ["no dr", "mild", "cataract"]]


@pytest.mark.parametrize(("names", "expected"), KNOWN)
def test_known_orders(names, expected):
    found, lines = in_order(names[::-1])
    assert found == expected and bool(lines) == (expected != sorted(names))
    assert list(ranks(expected)) == list(range(len(names)))
    assert [expected[rank] for rank in ranks(names)] == names  # also of classes that stand otherwise


@pytest.mark.parametrize("names", UNKNOWN)
def test_unknown_orders(names):
    assert in_order(names[::-1]) == (sorted(names), []) and ranks(names) is None

OF_GRADES = ("qwk", "mae_grades")


def test_two_classes_and_typed_ones_have_an_order():
    assert list(ranks(["b", "a"])) == [0, 1]
    assert in_order(["a", "b", "c"], ["c", "a", "b"]) == (["c", "a", "b"], [])
    assert list(ranks(["a", "b", "c"], ["c", "a", "b"])) == [1, 2, 0]
    for typed in (["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"]):
        with pytest.raises(InputError, match="the classes are a, b, c"):
            in_order(["a", "b", "c"], typed)


def graded(names, seed=0, number=300):
    """A predictions table of a grader who is off by one step at most, names in the given order of outputs;
    true and predicted grades in clinical order."""
    rng = np.random.default_rng(seed)
    order = in_order(names)[0]
    true = rng.integers(len(names), size=number)
    predicted = (true + rng.choice([-1, 0, 1], number, p=[0.2, 0.6, 0.2])).clip(0, len(names) - 1)
    place = np.array([names.index(name) for name in order])
    samples = pd.DataFrame({"index": range(number), "path": "x", "patient": "", "split": "test",
                            "target": place[true]})
    return predictions_table(samples, 4.0 * np.eye(len(names))[place[predicted]], names), true, predicted


def test_figures_follow_the_grades_and_not_the_alphabet():
    table, true, predicted = graded(APTOS)
    figures, notes = classification_metrics(table)
    expected = cohen_kappa_score(true, predicted, weights="quadratic")
    assert figures["qwk"] == pytest.approx(expected, abs=1e-12) and expected > 0.85 and not notes
    assert figures["mae_grades"] == pytest.approx(np.abs(true - predicted).mean(), abs=1e-12)
    entries = classification_intervals(table, draws=50)
    for name in OF_GRADES:
        assert entries[name]["value"] == pytest.approx(figures[name], abs=1e-6)
        assert entries[name]["lower"] < figures[name] < entries[name]["upper"]


def test_without_an_order_they_are_left_out():
    names = ["cataract", "glaucoma", "normal"]
    table, true, predicted = graded(names)
    figures, notes = classification_metrics(table)
    assert np.isnan([figures["qwk"],
                     figures["mae_grades"]]).all() and "nothing says in which order" in notes[0]
    assert not np.isnan(figures["kappa"])
    entries = classification_intervals(table, draws=50)
    assert all(np.isnan(entries[name]["value"]) for name in OF_GRADES)
    typed = ["normal", "cataract", "glaucoma"]
    figures, notes = classification_metrics(table, typed)
    step = [typed.index(name) for name in names]
    assert not notes and figures["qwk"] == pytest.approx(
        cohen_kappa_score(np.take(step, true), np.take(step, predicted), weights="quadratic"), abs=1e-12)


def test_the_whole_way(start, tmp_path):
    data = write_pictures(tmp_path / "diseases", numbers=(3, 2, 3),
                          classes=("cataract", "glaucoma", "normal"))
    code, out, err = start("--epochs", 1, "--task", "plain", data=data)
    assert code == 0, err
    assert out.count("nothing says in which order these classes stand") == 2  # of val and of test
    row = pd.read_csv(tmp_path / "output_dir/plain/metrics_test.csv").iloc[0]
    assert np.isnan([row["qwk"], row["mae_grades"]]).all() and row["kappa"] == row["kappa"]

    code, _, err = start("--epochs", 1, "--task", "q", "--select_metric", "qwk", data=data)
    assert code == 2 and "--select_metric qwk needs classes in order" in err and err.count("\n") == 1
    code, _, err = start("--task", "q", "--optuna_trials", 1, "--optuna_metric", "mae_grades", data=data)
    assert code == 2 and "--optuna_metric mae_grades needs classes in order" in err
    typed = ("--class_order", "normal", "glaucoma", "cataract")
    code, _, err = start("--epochs", 1, "--class_order", "normal", "glaucoma", data=data)
    assert code == 2 and "name each of them once" in err

    code, out, err = start("--epochs", 1, "--task", "typed", "--select_metric", "qwk", *typed, data=data)
    assert code == 0 and "nothing says" not in out, err
    table = pd.read_csv(tmp_path / "output_dir/typed/predictions_test.csv")
    assert [name for name in table if name.startswith("prob_")] == [
        "prob_normal",
        "prob_glaucoma",
        "prob_cataract",
    ]
    place = {name: number for number, name in enumerate(typed[1:])}
    expected = cohen_kappa_score(table["true_class"].map(place), table["predicted_class"].map(place),
                                 weights="quadratic")
    row = pd.read_csv(tmp_path / "output_dir/typed/metrics_test.csv").iloc[0]
    assert row["qwk"] == pytest.approx(expected, abs=1e-9) or np.isnan([row["qwk"], expected]).all()

    for words in (typed, ()):  # what is not typed is the run's own order, once and again
        code, out, err = start("--epochs", 1, "--task", "typed", "--select_metric", "qwk", "--resume", "same",
                               *words, data=data)
        assert code == 0 and "this run is complete" in out, err

    # a checkpoint that knows another order of its outputs: the typed one is that of the grades
    code, out, err = start("--eval", "--task", "again", "--resume",
                           tmp_path / "output_dir/plain/checkpoint-best.pth", *typed, data=data)
    assert code == 0 and "nothing says" not in out, err
    again = pd.read_csv(tmp_path / "output_dir/again/metrics_test.csv").iloc[0]
    assert again["accuracy"] == pd.read_csv(tmp_path
                                            / "output_dir/plain/metrics_test.csv").iloc[0]["accuracy"]
    assert again["mae_grades"] >= 0


def test_folders_of_numbers_are_in_the_order_of_their_values(start, tmp_path):
    data = write_pictures(tmp_path / "numbers", numbers=(1, 1, 1), classes=("0", "1", "2", "10"))
    code, out, err = start("--epochs", 1, "--task", "n", "--nb_classes", 4, data=data)
    assert (
        code == 0 and "classes in the order of the numbers that their names begin with: 0, 1, 2, 10" in out
    ), err
    header = pd.read_csv(tmp_path / "output_dir/n/predictions_test.csv").columns
    assert [name for name in header if name.startswith("prob_")] == ["prob_0", "prob_1", "prob_2", "prob_10"]


def test_the_positive_class_is_the_second(start, tmp_path):
    assert in_order(["ill", "well"], positive="ill") == (["well", "ill"], [])
    for names, typed, positive in ((["a", "b", "c"], None, "a"), (["a", "b"], None, "c"),
                                   (["a", "b"], ["b", "a"], "a")):
        with pytest.raises(InputError, match="--positive_class"):
            in_order(names, typed, positive)
    data = write_pictures(tmp_path / "two", numbers=(4, 4, 8), classes=("ill", "well"))
    code, out, err = start("--epochs", 1, "--task", "p", "--nb_classes", 2, "--positive_class", "ill",
                           data=data)
    assert code == 0 and "with val's threshold for ill" in out, err
    run = tmp_path / "output_dir" / "p"
    assert [name for name in pd.read_csv(run / "predictions_test.csv")
            if name.startswith("prob_")] == ["prob_well", "prob_ill"]
    assert "threshold chosen on val; of ill" in (run / "report.html").read_text()
    for words, wrong in ((("--positive_class", "ill"), False), (("--positive_class", "well"), True)):
        code, out, err = start("--eval", "--task", "e", "--resume", run / "checkpoint-best.pth",
                               "--nb_classes", 2, *words, data=data)
        assert code == (2 if wrong else 0) and ("of two the second is the positive one" in err) == wrong, err
