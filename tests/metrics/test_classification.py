"""The figures against scikit-learn and against a hand-computed example; the files against what was put in."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from util.core import run_files
from util.core.errors import InputError, RunError
from util.metrics import classification, delong, predictions, weighted
from util.metrics.bootstrap import resamples


def make_table(target, logits, class_names=None):
    logits = np.asarray(logits, dtype=np.float64)
    class_names = class_names or [f"{k} grade" for k in range(logits.shape[1])]
    samples = pd.DataFrame({"index": range(len(target)), "path": [f"{i}.png" for i in range(len(target))],
                            "patient": "", "split": "val", "target": target})
    return classification.predictions_table(samples, logits, class_names)


def random_table(num_classes, n=160, seed=0, rounded=False):
    generator = np.random.default_rng(seed)
    target = np.concatenate([np.arange(num_classes), generator.integers(num_classes, size=n - num_classes)])
    logits = generator.normal(size=(n, num_classes)) + 1.5 * np.eye(num_classes)[target]
    return make_table(target, np.round(logits) if rounded else logits)


def sklearn_figures(table):
    """The same figures the long way: one-hot matrices as SPEC.md has them, scikit-learn for every one."""
    names = predictions.class_names_of(table)
    numbers = {name: k for k, name in enumerate(names)}
    true, predicted = (
        table["true_class"].map(numbers).to_numpy(),
        table["predicted_class"].map(numbers).to_numpy(),
    )
    true_one_hot, predicted_one_hot = (
        np.eye(len(names), dtype=int)[true],
        np.eye(len(names), dtype=int)[predicted],
    )
    probabilities = table[[f"prob_{name}" for name in names]].to_numpy()
    present = np.flatnonzero(true_one_hot.any(axis=0))
    macro = {"average": "macro", "zero_division": 0}
    figures = {
        "loss": sklearn_metrics.log_loss(true, probabilities, labels=range(len(names))),
        "accuracy": sklearn_metrics.accuracy_score(true, predicted),
        "f1": sklearn_metrics.f1_score(true_one_hot, predicted_one_hot, **macro),
        "roc_auc": np.mean([sklearn_metrics.roc_auc_score(true_one_hot[:, k], probabilities[:, k])
                            for k in present]),
        "hamming": sklearn_metrics.hamming_loss(true_one_hot, predicted_one_hot),
        "jaccard": sklearn_metrics.jaccard_score(true_one_hot, predicted_one_hot, **macro),
        "precision": sklearn_metrics.precision_score(true_one_hot, predicted_one_hot, **macro),
        "recall": sklearn_metrics.recall_score(true_one_hot, predicted_one_hot, **macro),
        "average_precision": sklearn_metrics.average_precision_score(
            true_one_hot[:, present], probabilities[:, present], average="macro"),
        "kappa": sklearn_metrics.cohen_kappa_score(true, predicted),
        "qwk": sklearn_metrics.cohen_kappa_score(true, predicted, weights="quadratic",
                                                 labels=range(len(names))),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(true, predicted),
        "mae_grades": sklearn_metrics.mean_absolute_error(true, predicted),
        "ece": calibration_error(probabilities, true, 15),
        "n": len(table),
        "brier": ((probabilities - true_one_hot) ** 2).sum(axis=1).mean() / (2 if len(names) == 2 else 1),
    }
    return figures | {"score": (figures["f1"] + figures["roc_auc"] + figures["kappa"]) / 3}


def calibration_error(probabilities, true, bins):
    """Guo et al.'s formula, bin by bin."""
    confidence, right, total = probabilities.max(axis=1), probabilities.argmax(axis=1) == true, 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct scores", "tied scores"])
@pytest.mark.parametrize("num_classes", [2, 5, 39])
def test_equal_to_scikit_learn(num_classes, rounded):
    table = random_table(num_classes, rounded=rounded, seed=num_classes)
    figures, notes = classification.classification_metrics(table)
    assert notes == []
    assert figures == pytest.approx(sklearn_figures(table), abs=1e-12)


@pytest.mark.parametrize("levels", [2, 4, 10**6])
def test_auc_and_average_precision_equal_scikit_learn_with_ties_and_weights(levels):
    """Of the images as they are, of bootstrap resamples (float32 counts), and the AUC that DeLong's
    influences belong to."""
    generator = np.random.default_rng(3)
    for _ in range(30):
        scores, is_class = generator.integers(levels, size=40) / levels, generator.random(40) < 0.3
        is_class[:4] = True, False, True, False
        counts = np.vstack([np.ones((1, 40), np.float32), next(resamples(40, None, 5, 0))])
        aucs, precisions = weighted.Ranks.of(is_class, scores).figures(counts)
        for auc, precision, weights in zip(aucs, precisions, counts, strict=True):
            if len(np.unique(is_class[weights > 0])) == 2:
                how = {"sample_weight": weights}
                assert auc == pytest.approx(sklearn_metrics.roc_auc_score(is_class, scores, **how), abs=1e-6)
                assert precision == pytest.approx(
                    sklearn_metrics.average_precision_score(is_class, scores, **how), abs=1e-6
                )
        exact, _ = weighted.Ranks.of(is_class, scores).figures(np.ones((1, 40)))
        assert exact[0] == pytest.approx(sklearn_metrics.roc_auc_score(is_class, scores), abs=1e-12)
        assert exact[0] == pytest.approx(delong.auc_influence(is_class, scores)[0], abs=1e-12)


def test_example_computed_by_hand():
    # Class probabilities 1/4 and 3/4 from logits 0 and ln 3. True a a b b, predicted a b b b.
    low, high = 0.0, math.log(3)
    table = make_table([0, 0, 1, 1], [[high, low], [low, high], [low, high], [low, high]], ["a", "b"])
    figures, _ = classification.classification_metrics(table)
    assert figures == pytest.approx({
        "loss": -(3 * math.log(3 / 4) + math.log(1 / 4)) / 4,
        "accuracy": 3 / 4,
        "f1": (2 / 3 + 4 / 5) / 2,
        "roc_auc": 3 / 4,  # of the four pairs two are won and two tied, for a and for b
        "hamming": 2 * 1 / (4 * 2),
        "jaccard": (1 / 2 + 2 / 3) / 2,
        "precision": (1 + 2 / 3) / 2,
        "recall": (1 / 2 + 1) / 2,
        "average_precision": ((1 / 2 * 1 + 1 / 2 * 2 / 4) + 2 / 3) / 2,
        "kappa": (3 / 4 - 1 / 2) / (1 - 1 / 2),
        "score": ((2 / 3 + 4 / 5) / 2 + 3 / 4 + 1 / 2) / 3,
        "n": 4,
        "brier": (3 * (1 / 4) ** 2 + (3 / 4) ** 2) / 4,
        "qwk": 1 / 2, "balanced_accuracy": 3 / 4, "mae_grades": 1 / 4,
        "ece": 0,  # all are 3/4 sure, and three of four are right
    }, abs=1e-12)


def test_brier_is_scikit_learns():
    for num_classes in (2, 5):
        table = random_table(num_classes)
        probabilities = table.filter(regex="^prob_").to_numpy()
        # scikit-learn takes the columns in the sorted order of its labels, which is ours here
        expected = sklearn_metrics.brier_score_loss(
            table["true_class"],
            probabilities[:, 1] if num_classes == 2 else probabilities,
            **(
                {"pos_label": "1 grade"}
                if num_classes == 2
                else {"labels": predictions.class_names_of(table)}
            ),
        )
        assert classification.classification_metrics(table)[0]["brier"] == pytest.approx(expected, abs=1e-12)


def test_absent_class_counts_zero_in_f1_and_is_left_out_of_auc():
    table = random_table(5, seed=1)
    table = table[~table["true_class"].isin(["2 grade", "4 grade"])]
    figures, notes = classification.classification_metrics(table)
    assert figures == pytest.approx(sklearn_figures(table), abs=1e-12)
    assert len(notes) == 1 and "'2 grade', '4 grade'" in notes[0] and "2 of the 5" in notes[0]
    perfect = make_table([0, 1, 0, 1], 9 * np.eye(3)[[0, 1, 0, 1]])
    figures, _ = classification.classification_metrics(perfect)
    assert (
        figures["f1"]
        == figures["recall"]
        == figures["jaccard"]
        == figures["precision"]
        == pytest.approx(2 / 3)
    )
    assert figures["roc_auc"] == figures["average_precision"] == figures["kappa"] == 1


def test_one_class_alone_has_no_auc_and_the_score_says_what_it_is_made_of():
    table = make_table([1, 1, 1], [[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures, notes = classification.classification_metrics(table)
    assert math.isnan(figures["roc_auc"]) and figures["kappa"] == 0 and figures["average_precision"] == 1
    assert figures["score"] == pytest.approx((figures["f1"] + 0) / 2) and figures["f1"] == pytest.approx(0.4)
    assert any("roc_auc is undefined" in note for note in notes) and any(
        "f1 and kappa alone" in note for note in notes
    )

    figures, notes = classification.classification_metrics(table[2:])  # one image, predicted right
    assert math.isnan(figures["kappa"]) and figures["accuracy"] == 1 and figures["n"] == 1
    assert figures["score"] == figures["f1"] == 0.5
    assert any("kappa is undefined" in note for note in notes)
    assert all("\n" not in note for note in notes)


def test_order_of_rows_changes_no_bit():
    table = random_table(5, rounded=True)
    expected = classification.classification_metrics(table)
    for seed in range(5):
        assert classification.classification_metrics(table.sample(frac=1, random_state=seed)) == expected


def test_order_of_samples_changes_no_bit_of_the_table():
    generator = np.random.default_rng(0)
    samples = pd.DataFrame({"index": range(30), "path": [f"{i}.png" for i in range(30)], "patient": "p",
                            "split": "test", "target": generator.integers(3, size=30)})
    logits, order = generator.normal(size=(30, 3)).astype(np.float32), generator.permutation(30)
    names = ["c", "a", "b"]
    pd.testing.assert_frame_equal(classification.predictions_table(samples.iloc[order], logits[order], names),
                                  classification.predictions_table(samples, logits, names), check_exact=True)


def test_large_logits_stay_finite_and_exact():
    table = make_table([0, 1], [[1000.0, 0.0], [1000.0, 0.0]])
    assert table["prob_0 grade"].tolist() == [1, 1] and table["prob_1 grade"].tolist() == [0, 0]
    # from the logits: log(prob) would be infinite
    assert classification.classification_metrics(table)[0]["loss"] == 500


def test_diverged_outputs_are_named_and_not_scored():
    with pytest.raises(RunError, match=r"2 of 3 images.*1\.png"):
        make_table([0, 1, 1], [[1.0, 0.0], [math.nan, 1.0], [0.0, math.inf]])
    table = make_table([0, 1, 1], np.zeros((3, 2)))
    table["logit_0 grade"] = math.nan
    with pytest.raises(RunError, match=r"3 of 3 images.*0\.png"):
        classification.classification_metrics(table)
    with pytest.raises(RunError, match="no predictions"):
        classification.classification_metrics(table[:0])


def test_pieces_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="logits"):
        make_table([0, 1], np.zeros((3, 2)))
    with pytest.raises(ValueError, match="targets"):
        make_table([0, 2], np.zeros((2, 2)))
    with pytest.raises(ValueError, match="unique"):
        make_table([0, 1], np.zeros((2, 2)), ["a", "a"])
    table = make_table([0, 1], np.zeros((2, 2)), ["a", "b"])
    with pytest.raises(InputError, match="true_class 'z'"):
        classification.classification_metrics(table.assign(true_class=["a", "z"]))
    twice = pd.DataFrame({"index": [4, 4], "path": "x", "patient": "", "split": "val", "target": 0})
    with pytest.raises(ValueError, match="twice"):
        classification.predictions_table(twice, np.zeros((2, 1)), ["a"])


def test_stacked_confusions_equal_each_alone():
    generator = np.random.default_rng(5)
    true, predicted = generator.integers(4, size=(18, 50)), generator.integers(4, size=(18, 50))
    stack = np.array([weighted.confusion_matrix(*pair, 4) for pair in zip(true, predicted, strict=True)])
    figures = weighted.count_figures(stack.reshape(3, 6, 4, 4))
    for i, j in [(0, 0), (1, 5), (2, 3)]:
        expected = sklearn_metrics.confusion_matrix(true[6 * i + j], predicted[6 * i + j], labels=range(4))
        np.testing.assert_array_equal(stack[6 * i + j], expected)
        for name, value in weighted.count_figures(expected).items():
            assert figures[name][i, j] == value, name


# ---- files -------------------------------------------------------------------------------------------------

NASTY_NAMES = ["0", "1", "01", "1e3", "NA", "None", "nan", "", " edge ", 'comma, and "quote"', "two\nlines",
               "cr\rin",
               "正常眼底", "naïve"]


def test_predictions_come_back_equal_in_every_bit(tmp_path):
    generator = np.random.default_rng(7)
    n, num_classes = 60, len(NASTY_NAMES)
    samples = pd.DataFrame({
        "index": generator.permutation(n), "path": [f"图像/{i}, \"a\".png" for i in range(n)],
        "patient": [None, "", "007", "NA", "1.0", "None"] * 10, "split": "val",
        "target": np.arange(n) % num_classes})
    logits = generator.normal(size=(n, num_classes)) * 10.0 ** generator.integers(-12, 3, size=(n, 1))
    table = classification.predictions_table(samples, logits, NASTY_NAMES)
    run_files.write_predictions(table, tmp_path / "predictions_val.csv")
    back = predictions.read_predictions(tmp_path / "predictions_val.csv")
    pd.testing.assert_frame_equal(back, table, check_exact=True)
    assert predictions.class_names_of(back) == NASTY_NAMES
    assert set(back["patient"]) == {"", "007", "NA", "1.0", "None"}
    np.testing.assert_equal(classification.classification_metrics(back),
                            classification.classification_metrics(table))
    assert [file.name for file in tmp_path.iterdir()] == ["predictions_val.csv"]


def test_probabilities_are_softmax_and_names_follow_their_numbers():
    table = make_table([1, 0, 2], [[0.0, 1.0, 2.0], [5.0, 4.0, 3.0], [0.0, 0.0, 0.0]], ["b", "a", "c"])
    assert list(table.columns) == ["index", "path", "patient", "split", "true_class", "predicted_class",
                                   "prob_b", "prob_a", "prob_c", "logit_b", "logit_a", "logit_c"]
    assert table["true_class"].tolist() == ["a", "b", "c"] and table["predicted_class"].tolist() == [
        "c",
        "b",
        "b",
    ]
    total = math.exp(0) + math.exp(1) + math.exp(2)
    assert table.loc[0, ["prob_b", "prob_a", "prob_c"]].tolist() == pytest.approx(
        [1 / total, math.e / total, math.e ** 2 / total], abs=1e-15)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a,b\n1,2\n", "no columns of predictions"),
        ("", "no columns of predictions"),
        ("index,path,patient,split,true_class,predicted_class\n", "no columns of predictions"),
        ("index,path,patient,split,true_class,predicted_class,prob_a\n", "lacks the columns logit_a"),
        ("index,path,patient,split,true_class,predicted_class,prob_a,prob_a,logit_a\n", "twice"),
        ("index,path,patient,split,true_class,predicted_class,prob_a,logit_a\n0,x,,val,a,a,high,1\n", "high"),
        (
            "index,path,patient,split,true_class,predicted_class,prob_a,logit_a\n0,x,,val,a,a,0.5\n",
            "not a table",
        ),
        (
            "index,path,patient,split,true_class,predicted_class,prob_a,logit_a\n0,x,,val,a,a,1,1\n1,x\n",
            "not a table",
        ),
    ],
)
def test_file_that_is_no_table_is_one_line(tmp_path, text, problem):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        predictions.read_predictions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_predictions_file_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere.csv"):
        predictions.read_predictions(tmp_path / "nowhere.csv")


def test_metrics_columns_keep_the_names_that_scripts_read():
    assert classification.METRIC_COLUMNS[:11] == ("epoch", "val_loss", "accuracy", "f1", "roc_auc", "hamming",
                                                  "jaccard",
                                                  "precision", "recall", "average_precision", "kappa")
