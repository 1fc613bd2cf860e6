"""util/study/comparison.py: tests of differences against brute force, published numbers and their own error
rates."""

import math

import numpy as np
import pytest
from scipy.stats import chi2, kstest, norm, ttest_ind
from sklearn.metrics import roc_auc_score

from benchmarks import error_rates
from tests.compared_runs import CLASSES, guesses, images, write_regression, write_run
from util.metrics import delong
from util.metrics.classification import predictions_table
from util.study.comparison import compare, figures_of, holm, paired_bootstrap, with_seeds
from util.study.comparison_runs import Group, Run, align, read_runs


def run_of(samples, logits, classes=CLASSES, kind="classification") -> Run:
    return Run(None, kind, {}, 0, {}, predictions_table(samples, logits, list(classes)))


def compared(first: list[Run], second: list[Run], *metrics, draws=2000):
    align([*first, *second])
    found = compare([Group("A", first), Group("B", second)], list(metrics), "test", draws, 0)
    return {(test.metric, test.method): test for test in found.tests}, found


def macro_auc(labels, scores) -> float:
    return float(np.mean([roc_auc_score(labels == k, scores[:, k]) for k in range(scores.shape[1])]))


# ---- DeLong ------------------------------------------------------------------------------------------------

def by_all_pairs(is_class, first, second):
    """(difference, p) by DeLong's structural components, written down as the paper has them: a kernel a pair
    of images."""
    components = []
    for scores in (first, second):
        kernel = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in scores[~is_class]]
                           for x in scores[is_class]])
        components.append((kernel.mean(), kernel.mean(axis=1), kernel.mean(axis=0)))
    (a, inside_a, outside_a), (b, inside_b, outside_b) = components
    covariance = np.cov(inside_a, inside_b) / len(inside_a) + np.cov(outside_a, outside_b) / len(outside_a)
    z = (a - b) / math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return a - b, 2 * norm.sf(abs(z))


@pytest.mark.parametrize("metric, decimals", [("roc_auc", 9), ("roc_auc_yes", 1)], ids=["macro", "with ties"])
def test_two_classes_are_delongs_test(metric, decimals):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 70)
    logits = [np.round(guesses(labels, skill, seed, 2), decimals) for skill, seed in ((1.0, 1), (0.4, 2))]
    samples = images(labels, classes=("no", "yes"))
    tests, _ = compared(*([run_of(samples, each, ("no", "yes"))] for each in logits), metric)
    test = tests[metric, "paired DeLong"]
    probabilities = [run_of(samples, each, ("no", "yes")).table["prob_yes"].to_numpy() for each in logits]
    difference, p = by_all_pairs(labels == 1, *probabilities)
    assert test.difference == pytest.approx(difference) and test.p == pytest.approx(p)
    assert test.p_holm == test.p and math.isnan(test.p_seeds)
    half = (test.upper - test.lower) / 2
    assert 2 * norm.sf(abs(difference)
                       / (half / norm.ppf(0.975))) == pytest.approx(p), "interval and p belong together"


@pytest.mark.long
def test_macro_auc_over_seeds_has_the_jackknifes_error():
    """Three classes and two seeds: the error of the mean over classes and seeds, leaving out one image at a
    time."""
    rng = np.random.default_rng(4)
    labels, samples = (found := rng.integers(0, 3, 150)), images(found)
    logits = {
        name: [guesses(labels, skill, seed) for seed in seeds]
        for name, skill, seeds in (("A", 1.2, (1, 2)), ("B", 0.8, (3, 4)))
    }
    tests, _ = compared(*([run_of(samples, each) for each in logits[name]] for name in "AB"), "roc_auc")

    def difference(kept):
        means = [np.mean([macro_auc(labels[kept], each[kept]) for each in softmaxed])
                 for softmaxed in probabilities]
        return means[0] - means[1]

    probabilities = [[np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in logits[name]]
                     for name in "AB"]
    everything = np.arange(len(labels))
    left_out = np.array([difference(np.delete(everything, n)) for n in everything])
    error = math.sqrt((len(labels) - 1) / len(labels) * ((left_out - left_out.mean()) ** 2).sum())
    delong, bootstrap = tests["roc_auc", "paired DeLong"], tests["roc_auc", "paired bootstrap"]
    assert delong.difference == pytest.approx(difference(everything))
    for test in (delong, bootstrap):
        assert (test.upper - test.lower) / (2 * norm.ppf(0.975)) == pytest.approx(error, rel=0.06)


@pytest.mark.parametrize("metric", ["roc_auc", "f1"])
def test_images_of_one_patient_count_once(metric):
    """Every image three times, as three of one patient: the test is that of the single images; without
    patients it is not."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 90)
    logits = [guesses(labels, skill, seed) for skill, seed in ((1.0, 1), (0.8, 2))]
    single, _ = compared(*([run_of(images(labels), each)] for each in logits), metric)
    thrice = np.repeat(labels, 3)
    patients = np.repeat([f"p{n}" for n in range(90)], 3)
    for known in (True, False):
        samples = images(thrice, patients if known else None)
        together, found = compared(*([run_of(samples, np.repeat(each, 3, axis=0))] for each in logits),
                                   metric)
        assert found.patients == (90 if known else None)
        for key, test in together.items():
            width, of_single = (one.upper - one.lower for one in (test, single[key]))
            assert width == pytest.approx(of_single if known else of_single / math.sqrt(3), rel=0.1)


# ---- bootstrap ---------------------------------------------------------------------------------------------

def test_p_of_the_bootstrap_counts_resamples():
    draws = np.arange(1, 1000) / 1000.0  # B = 999, all above 0
    assert paired_bootstrap(draws, 0.5)[2] == pytest.approx(2 / 1000)
    draws[:20] *= -1
    assert paired_bootstrap(draws, 0.5)[2] == pytest.approx(2 * 21 / 1000)
    assert paired_bootstrap(-draws, -0.5)[2] == pytest.approx(2 * 21 / 1000), "two-sided"
    assert paired_bootstrap(np.zeros(99), 0.0)[:3] == (0.0, 0.0, 1.0)
    lower, upper, p, undefined = paired_bootstrap(np.append(draws, [np.nan] * 5), 0.5)
    assert (p, undefined) == (pytest.approx(0.042), 5) and (lower, upper) == paired_bootstrap(draws, 0.5)[:2]
    assert all(map(math.isnan, paired_bootstrap(np.full(9, np.nan), 0.1)[:3]))
    assert all(map(math.isnan, paired_bootstrap(draws, math.nan)[:3]))


def test_p_and_interval_of_the_bootstrap_agree():
    rng = np.random.default_rng(0)
    for shift in np.linspace(-0.5, 0.5, 21):
        draws = rng.normal(shift, 0.2, 1999)
        lower, upper, p, _ = paired_bootstrap(draws, shift)
        assert (p < 0.05) == (lower > 0 or upper < 0) or 0.045 < p < 0.055


def test_of_a_shifted_figure_the_spread_counts_alone():
    """ECE: resampling moved the difference from 0.02 to 0.03; that it did is no evidence of a difference."""
    draws = np.random.default_rng(0).normal(0.03, 0.01, 4000)
    lower, upper, p, _ = paired_bootstrap(draws, 0.02, shifted=True)
    assert (lower, upper) == (pytest.approx(0.02 - 0.0196, abs=1e-3), pytest.approx(0.02 + 0.0196, abs=1e-3))
    assert p == pytest.approx(2 * norm.sf(2.0), abs=0.01)
    assert paired_bootstrap(draws, 0.0, shifted=True)[2] == 1.0
    assert paired_bootstrap(draws, 1.0, shifted=True)[2] == pytest.approx(1 / 4001)


@pytest.mark.long
def test_without_a_difference_p_is_uniform():
    """Two equally good models: p below 0.05 in 5 % of the test sets, by either test, and even elsewhere."""
    rng = np.random.default_rng(8)
    found = {"paired DeLong": [], "paired bootstrap": []}
    for trial in range(150):
        labels = rng.integers(0, 2, 60)
        samples = images(labels, classes=("no", "yes"))
        runs = [run_of(samples, guesses(labels, 1.0, 2 * trial + k, 2), ("no", "yes")) for k in range(2)]
        for (_, method), test in compared(runs[:1], runs[1:], "roc_auc", draws=200)[0].items():
            found[method].append(test.p)
    for p in found.values():
        assert 0.005 <= np.mean(np.array(p) < 0.05) <= 0.105  # 5 % +- 3 standard errors
        assert kstest(p, "uniform").pvalue > 0.01


def test_error_rates_are_measured():
    """benchmarks/error_rates.py measures what its docstring says, with more test sets than a test has time
    for."""
    for setting in error_rates.SETTINGS:
        found = error_rates.rates(setting, 6, 0)
        assert set(found) == {("roc_auc", "paired DeLong"),
                              *((metric, "paired bootstrap") for metric in error_rates.METRICS)}
        assert max(found.values()) <= 0.5
    assert 0 <= error_rates.joint_rate(3, 60, 30, 20, 0) <= 0.3


def test_models_that_predict_alike_do_not_differ():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    logits = [guesses(labels, 1.0, seed) for seed in range(3)]
    tests, _ = compared([run_of(images(labels), each) for each in logits],
                        [run_of(images(labels), each) for each in (logits[2], logits[0], logits[1])],
                        "roc_auc", "f1", "ece")
    assert {test.p for test in tests.values()} == {1.0}
    assert all(test.difference == 0 for test in tests.values())


# ---- seeds -------------------------------------------------------------------------------------------------

def test_seeds_alone_are_welchs_test():
    first, second = np.array([0.81, 0.84, 0.83, 0.80]), np.array([0.86, 0.85, 0.88])
    expected = ttest_ind(first, second, equal_var=False).pvalue
    assert with_seeds(first.mean() - second.mean(), 0.0, first, second) == pytest.approx(expected)


def test_images_alone_are_a_normal_test_and_one_seed_tells_nothing():
    same = np.array([0.8, 0.8])
    assert with_seeds(0.1, 0.05**2, same + 0.1, same) == pytest.approx(2 * norm.sf(2.0))
    assert math.isnan(with_seeds(0.1, 0.01, np.array([0.9]), same))
    assert with_seeds(0.0, 0.0, same, same) == 1.0


def test_with_seeds_keeps_its_error_rate_where_seeds_matter():
    """Two equal recipes whose seeds spread as much as the images do: the fixed-models test calls too many of
    them different."""
    rng = np.random.default_rng(2)
    plain, both = [], []
    for _ in range(2000):
        values = rng.normal(0, 0.02, (2, 3)) + rng.normal(0, 0.01, (2, 1))
        difference = values[0].mean() - values[1].mean()
        plain.append(2 * norm.sf(abs(difference) / math.sqrt(2 * 0.01**2)))
        both.append(with_seeds(difference, 2 * 0.01**2, *values))
    assert np.mean(np.array(both) < 0.05) < 0.065
    assert np.mean(np.array(plain) < 0.05) > 0.15


def test_the_figure_of_seeds_is_their_mean_and_not_the_ensembles(tmp_path):
    labels = np.random.default_rng(1).integers(0, 3, 120)
    samples = images(labels)
    folders = [write_run(tmp_path / f"s{seed}", samples, guesses(labels, 1.0, seed), seed)
               for seed in range(3)]
    runs = read_runs(list(map(str, folders)), "test")
    align(runs)
    found = compare([Group("A", runs)], ["roc_auc", "f1"], "test", 500, 0)
    values = [run.entries["roc_auc"]["value"] for run in runs]
    one = found.summary("A", "roc_auc")
    assert one.values == pytest.approx(values)
    assert (one.mean, one.sd) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert one.lower < one.mean < one.upper and one.method == "DeLong"
    assert found.summary("A", "f1").method == "bootstrap of images" and not found.tests


# ---- Holm --------------------------------------------------------------------------------------------------

def test_holm():
    """Worked by hand: sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 may not be below the one before
    it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([]) == []
    found = holm([0.02, math.nan, 0.03])
    assert found[0] == pytest.approx(0.04) and math.isnan(found[1]) and found[2] == pytest.approx(0.04)


def test_holm_counts_the_pairs_of_a_metric():
    labels = np.random.default_rng(0).integers(0, 3, 80)
    runs = [run_of(images(labels), guesses(labels, skill, seed))
            for seed, skill in enumerate((1.5, 1.0, 0.6))]
    align(runs)
    found = compare([Group(name, [run]) for name, run in zip("ABC", runs, strict=True)], ["roc_auc", "f1"],
                    "test", 400, 0)
    for method, metric in (("paired DeLong", "roc_auc"), ("paired bootstrap", "f1")):
        tests = [test for test in found.tests if (test.method, test.metric) == (method, metric)]
        assert [(test.first, test.second) for test in tests] == [("A", "B"), ("A", "C"), ("B", "C")]
        assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert len(found.main_tests()) == 6 and len(found.tests) == 9


# ---- several groups at once --------------------------------------------------------------------------------

def all_compared(labels, logits, *metrics, patients=None, classes=CLASSES):
    runs = [run_of(images(labels, patients, classes=classes), each, classes) for each in logits]
    align(runs)
    return compare([Group(str(n), [run]) for n, run in enumerate(runs)], list(metrics), "test", 100, 0)


def test_the_joint_test_takes_the_means_over_seeds():
    """Every metric that is an AUC has one; a group of two seeds enters with their mean, whose influence is
    their mean too."""
    labels = np.random.default_rng(0).integers(0, 3, 200)
    runs = [run_of(images(labels), guesses(labels, 1.0 + 0.1 * seed, seed)) for seed in range(4)]
    align(runs)
    found = compare([Group("A", runs[:2]), Group("B", runs[2:3]), Group("C", runs[3:])],
                    ["roc_auc", "f1", "roc_auc_mild"], "test", 100, 0)
    assert [(test.metric, test.groups, test.degrees_of_freedom) for test in found.joint] == [
        ("roc_auc", 3, 2),
        ("roc_auc_mild", 3, 2),
    ]
    pairs = [delong.auc_influence(labels == 1, run.table["prob_mild"].to_numpy()) for run in runs]
    aucs, influences = np.array([auc for auc, _ in pairs]), np.array([each for _, each in pairs])
    contrasts = np.array([[0.5, 0.5, -1, 0], [0.5, 0.5, 0, -1]])
    apart = contrasts @ aucs
    chi_square = apart @ np.linalg.inv(contrasts @ influences @ influences.T @ contrasts.T) @ apart
    assert found.joint[1].chi_square == pytest.approx(chi_square) and found.joint[1].p == pytest.approx(
        chi2.sf(chi_square, 2))
    assert not any("joint test" in note for note in found.notes)


def test_two_groups_and_regressions_have_no_joint_test():
    labels = np.random.default_rng(0).integers(0, 3, 60)
    logits = [guesses(labels, 1.0, seed) for seed in range(3)]
    assert (
        not all_compared(labels, logits[:2], "roc_auc").joint and not all_compared(labels, logits, "f1").joint
    )


def test_what_weakens_a_joint_test_is_said():
    labels = np.repeat([0, 1, 2], [60, 60, 60])
    logits = [guesses(labels, 1.0, seed) for seed in range(2)]
    alike = all_compared(labels, [logits[0]] * 3, "roc_auc")
    assert (alike.joint[0].chi_square, alike.joint[0].degrees_of_freedom, alike.joint[0].p) == (0.0, 0, 1.0)
    assert (
        "joint test of roc_auc: all 3 groups rank the images alike, so there is no difference to test"
        in alike.notes
    )
    twice = all_compared(labels, [*logits, logits[0]], "roc_auc")
    assert twice.joint[0].degrees_of_freedom == 1
    assert any("1 instead of 2 degrees of freedom: some groups rank the images as others "
               "do" in note for note in twice.notes)
    pair = all_compared(labels, logits, "roc_auc")
    assert twice.joint[0].p == pytest.approx(pair.main_tests()[0].p)


def test_a_joint_test_of_few_images_is_said():
    rng, classes = np.random.default_rng(0), ("no", "yes")
    for positives, few in ((39, True), (40, False)):
        labels = np.repeat([0, 1], [80, positives])
        found = all_compared(labels, [rng.normal(size=(len(labels), 2)) for _ in range(3)], "roc_auc",
                             classes=classes)
        said = [note for note in found.notes if f"{positives} images of a class (or of the rest) are few for "
                                                "2" in note]
        assert len(said) == few and found.joint[0].p > 0
    labels = np.repeat([0, 1], [80, 1])
    found = all_compared(labels, [rng.normal(size=(81, 2)) for _ in range(3)], "roc_auc", classes=classes)
    assert math.isnan(found.joint[0].p)
    assert any("no joint test of roc_auc: its variance is unknown" in note for note in found.notes)
    labels = np.repeat([0, 1], [40, 40])
    certain = 9.0 * np.eye(2)[labels] + 0.01 * rng.normal(size=(80, 2))
    found = all_compared(labels, [certain, -certain, 0.9 * certain], "roc_auc", classes=classes)
    assert math.isnan(found.joint[0].p) and math.isnan(found.joint[0].chi_square)
    assert any("these images give their difference no variance" in note for note in found.notes)


# ---- regression and undefined figures ----------------------------------------------------------------------

def test_regression(tmp_path):
    rng = np.random.default_rng(0)
    samples = images(np.zeros(100, int)).drop(columns="target")
    true = rng.normal(size=(100, 2)) * (1, 50)
    true[:7, 1] = np.nan  # a target that is not known of all
    noise = {"A": 0.3, "B": 1.0}
    folders = [write_regression(tmp_path / name, samples, true,
                                np.nan_to_num(true) + rng.normal(size=(100, 2)) * (error, 50 * error),
                                ["tc", "ldl"])
               for name, error in noise.items()]
    runs = read_runs(list(map(str, folders)), "test")
    align(runs)
    found = compare([Group(run.name, [run]) for run in runs], ["r2", "mae_ldl", "loss"], "test", 500, 0)
    errors = [np.abs(run.table["true_ldl"] - run.table["pred_ldl"]).to_numpy() for run in runs]
    assert found.summary("A", "mae_ldl").mean == pytest.approx(np.nanmean(errors[0]))
    by_metric = {test.metric: test for test in found.tests}
    assert set(by_metric) == {"r2", "mae_ldl"} and all(test.p < 0.01 for test in by_metric.values())
    apart = (errors[0] - errors[1])[7:]  # the mean error's interval is that of a paired mean
    half = norm.ppf(0.975) * apart.std(ddof=1) / math.sqrt(93)
    assert by_metric["mae_ldl"].upper - by_metric["mae_ldl"].lower == pytest.approx(2 * half, rel=0.1)
    assert found.summary("A", "loss").mean == 0.25 and any(
        "no paired test of loss" in note for note in found.notes
    )


def test_an_undefined_figure_stays_undefined():
    """One class alone: AUC is no number, and neither are its difference and p; what is defined is tested all
    the same."""
    labels = np.zeros(30, int)
    tests, found = compared(*([run_of(images(labels), guesses(labels, 1.0, seed))] for seed in (1, 2)),
                            "roc_auc", "accuracy", draws=100)
    assert math.isnan(tests["roc_auc", "paired DeLong"].p) and math.isnan(
        tests["roc_auc", "paired bootstrap"].p_holm
    )
    assert math.isnan(found.summary("A", "roc_auc").mean) and tests["accuracy", "paired bootstrap"].p > 0
    assert any("roc_auc is undefined for 1 of 1" in note for note in found.notes)


def test_a_metric_without_an_error_in_any_resample_has_no_interval():
    """As in a run's own files: that all is right says nothing about how far off the metric may be."""
    labels = np.arange(30) % 3
    _, found = compared(*([run_of(images(labels), scale * np.eye(3)[labels])] for scale in (3, 4)),
                        "average_precision", "f1", draws=100)
    for name in ("average_precision", "f1"):
        summary = found.summary("A", name)
        assert summary.mean == 1 and math.isnan(summary.lower) and math.isnan(summary.upper)


def test_few_resamples_for_many_pairs_are_said():
    labels = np.random.default_rng(0).integers(0, 3, 30)
    runs = [run_of(images(labels), guesses(labels, 1.0, seed)) for seed in range(4)]
    align(runs)
    found = compare([Group(str(n), [run]) for n, run in enumerate(runs)], ["f1"], "test", 100, 0)
    assert any("raise --draws above 240" in note for note in found.notes)


def test_only_what_is_asked_for_is_kept():
    labels = np.random.default_rng(0).integers(0, 3, 30)
    run = run_of(images(labels), guesses(labels, 1.0, 0))
    figures = figures_of(Group("A", [run]), 50, 0, ["f1", "roc_auc_mild"])
    assert set(figures.replicates) == {"f1", "roc_auc_mild"} and set(figures.influences) == {"roc_auc_mild"}
