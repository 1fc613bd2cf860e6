"""compare.py on run folders made of numbers: what it writes, what it says, what it refuses."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import compare
from tests.compared_runs import CLASSES, guesses, images, write_regression, write_run
from util.core.ending import exit_code_of
from util.metrics.predictions import read_predictions
from util.study import comparison_chart
from util.study.comparison_runs import align, grouped, read_runs
from util.study.comparison_text import figure_text, p_text

LABELS = np.random.default_rng(1).integers(0, 3, 120)


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """start(*words) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        code = exit_code_of(compare.main,
                            [*map(str, words), *(["--draws", "200"] if "--run" not in words else [])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused(result) -> str:
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def make(folder, skill=1.0, seed=0, samples=None, intervals=False, **options):
    return write_run(folder, images(LABELS) if samples is None else samples,
                     guesses(LABELS, skill, seed + 100 * sum(map(ord, str(options)))), seed,
                     intervals=intervals, **options)


# ---- what is written ---------------------------------------------------------------------------------------

def test_groups_of_seeds(start, tmp_path):
    for arch, skill in (("vit_a", 1.5), ("vit_b", 0.5)):
        for seed in range(3):
            make(tmp_path / f"{arch}_{seed}", skill, seed, model_arch=arch, intervals=True)
    make(tmp_path / "alone", 1.0, 0, adaptation="lp", intervals=True)
    folders = [*(f"{arch}_{seed}" for seed in range(3) for arch in ("vit_a", "vit_b")), "alone"]
    code, out, err = start(*folders, "--metric", "roc_auc", "f1", "calibration_slope", "--output", "found")
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "found/comparison.csv")
    assert list(table["group"]) == ["vit_a, finetune", "vit_b, finetune",
                                    "vit_a, lp"] and list(table["seeds"]) == [3, 3, 1]
    assert list(table["option_model_arch"]) == ["vit_a", "vit_b", "vit_a"]
    stored = [json.loads((tmp_path / f"vit_a_{seed}/metrics_test.json").read_text()) for seed in range(3)]
    values = [entries["f1"]["value"] for entries in stored]
    assert table["f1"][0] == pytest.approx(np.mean(values)) and table["f1_sd"][0] == pytest.approx(
        np.std(values, ddof=1)
    )
    slopes = [entries["calibration_slope"]["value"] for entries in stored]
    assert table["calibration_slope"][0] == pytest.approx(np.mean(slopes)) and math.isnan(
        table["calibration_slope_lower"][0]
    )
    alone = json.loads((tmp_path / "alone/metrics_test.json").read_text())
    for metric in ("roc_auc", "f1", "calibration_slope"):
        assert table[f"{metric}_lower"][2] == pytest.approx(alone[metric]["lower"]), (
            "a single run's own interval"
        )
        assert table[f"{metric}_interval"][2] == alone[metric]["method"]
    assert math.isnan(table["f1_sd"][2])
    tests = pd.read_csv(tmp_path / "found/comparison_tests.csv")
    assert set(zip(tests["metric"], tests["method"], strict=True)) == {
        ("roc_auc", "paired DeLong"), ("roc_auc", "paired bootstrap"), ("f1", "paired bootstrap")}
    first = tests[(tests["first"] == "vit_a, finetune") & (tests["second"] == "vit_b, finetune")]
    assert (first["p"] < 0.02).all() and (first["p_holm"]
                                          >= first["p"]).all() and first["p_seeds"].notna().all()
    assert tests[tests["second"] == "vit_a, lp"]["p_seeds"].isna().all(), "one seed says nothing of others"
    page = (tmp_path / "found/comparison.md").read_text()
    cell = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} ["
    for text in (cell, "| vit_a, finetune | vit_b, finetune | roc_auc | paired DeLong "
                       "|", "Holm", "120 images", "`vit_b_2`",
                 "no paired test of calibration_slope"):
        assert text in page, text
    joint = pd.read_csv(tmp_path / "found/comparison_joint.csv")
    assert joint[["metric", "method", "groups", "degrees_of_freedom"]].to_numpy().tolist() == [
        ["roc_auc", "joint DeLong", 3, 2]] and joint["p"][0] < 0.05
    assert (
        "## All groups at once" in page
        and "| roc_auc | joint DeLong | 3 | " in page
        and "joint DeLong: one test" in out
    )
    assert cell in out and "p (new seeds)" in out and "written to found" in out
    assert "the stored" not in out, "what is stored and what is computed from the predictions agree"
    with Image.open(tmp_path / "found/comparison.png") as picture:
        assert picture.width > 800 and np.asarray(picture.convert("L")).std() > 5


def test_the_picture_says_the_joint_test(start, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_chart, "save_figure",
                        lambda figure, path, names: drawn.append(figure.texts[0].get_text()) or [])
    for number in range(3):
        make(tmp_path / f"m{number}", 1.0 + number / 9, epochs=10 + number)
    start("m0", "m1", "m2", "--metric", "roc_auc", "f1")
    joint = pd.read_csv("output_dir/comparison/comparison_joint.csv").iloc[0]
    found = f"chi-square {figure_text(joint['chi_square'])}, 2 df, p {p_text(joint['p'])} (joint DeLong)."
    assert f"Test that all 3 have one ROC AUC: {found}" in " ".join(drawn[0].split())


def test_older_runs_get_intervals_from_their_predictions(start, tmp_path):
    make(tmp_path / "old", seed=1)
    make(tmp_path / "new", seed=1, intervals=True, epochs=60)
    shutil.copy(tmp_path / "new/predictions_test.csv", tmp_path / "old/predictions_test.csv")
    entries = json.loads((tmp_path / "new/metrics_test.json").read_text())
    (tmp_path / "old/metrics_test.json").write_text(json.dumps(
        {name: {"value": entry["value"], "lower": None, "upper": None} for name, entry in entries.items()}))
    code, out, _ = start("old", "new", "--metric", "roc_auc", "f1")
    table = pd.read_csv("output_dir/comparison/comparison.csv")
    assert code == 0 and list(table["group"]) == ["old", "new"]
    assert table["roc_auc_lower"][0] == pytest.approx(table["roc_auc_lower"][1])
    assert table["f1_lower"][0] == pytest.approx(table["f1_lower"][1], abs=0.02)
    assert "  0.000 [0.000, 0.000]  1.000" in out
    assert "no test of these runs can say" in out


def test_a_regression_and_one_run_alone(start, tmp_path):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(60, 2))
    for name, error in (("A", 0.3), ("B", 0.9)):
        write_regression(tmp_path / name, images(LABELS[:60]), true, true + error * rng.normal(size=(60, 2)),
                         ["tc", "ldl"], epochs=50 if name == "A" else 60)
    code, out, err = start("A", "B")
    assert (code, err) == (0, "") and "r2" in out and "lower is better for mae" in out
    tests = pd.read_csv("output_dir/comparison/comparison_tests.csv")
    assert list(tests["metric"]) == ["r2", "pearson", "mae"] and (tests["p"] < 0.02).all()
    code, out, _ = start("A", "--metric", "rmse_ldl", "--output", "one")
    assert code == 0 and "paired" not in out and (tmp_path / "one/comparison.png").exists()
    assert "joint" not in out.replace("comparison_joint.csv",
                                      "") and pd.read_csv("one/comparison_joint.csv").empty
    assert pd.read_csv("one/comparison_tests.csv").empty


def test_val(start, tmp_path):
    make(tmp_path / "A", split="val")
    make(tmp_path / "B", split="val", epochs=20)
    code, out, _ = start("A", "B", "--split", "val")
    assert code == 0 and "val chose the best epoch" in out
    assert "so its test split was never scored: score it" in refused(start("A", "B"))


def test_names_of_groups(start, tmp_path):
    for name, options in (("s0", {}), ("s1", {"seed": 1}), ("x", {"blr": 1e-3})):
        make(tmp_path / name, **options)
    code, out, _ = start("s0", "s1", "x", "--names", "眼底 | ours", "theirs", "--output", "o")
    assert code == 0 and "眼底 \\| ours" in (tmp_path / "o/comparison.md").read_text()
    assert "gives 3 names to 2 groups (s0, s1; x)" in refused(
        start("s0", "s1", "x", "--names", "a", "b", "c")
    )
    assert "gives a name twice" in refused(start("s0", "s1", "x", "--names", "a", "a"))


def test_names_that_no_font_can_draw(start, tmp_path):
    for name, options in (("a", {}), ("b", {"blr": 1e-3}), ("c", {"blr": 1e-4})):
        make(tmp_path / name, **options)
    code, out, _ = start("a", "b", "c", "--names", "A $x", "\U00014400", "C")
    assert code == 0 and "class 1" not in out
    assert ("group 1 is '\U00014400'" in out) == ("no installed font" in out)


def test_what_makes_a_group(tmp_path):
    """Seed, task and place do not tell runs apart; an option, the effective batch and the same seed again
    do."""
    make(tmp_path / "a", seed=0, task="a", output_dir="x", fingerprint="f" * 64, data_path="/data")
    make(tmp_path / "b", seed=1, task="b", output_dir="y", fingerprint="f" * 64, data_path="/mnt")
    make(tmp_path / "c", seed=1, fingerprint="f" * 64)
    make(tmp_path / "d", seed=2, fingerprint="e" * 64)
    make(tmp_path / "e", seed=2, fingerprint="f" * 64)
    facts = json.loads((tmp_path / "e/run.json").read_text())
    (tmp_path / "e/run.json").write_text(json.dumps(facts | {"effective_batch": 48}))
    groups, notes = grouped(read_runs([str(tmp_path / name) for name in "abcde"], "test"))
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert len(notes) == 1 and "c has the options and the seed of another run" in notes[0]
    assert [group.settings["effective_batch"] for group in groups] == [24, 24, 24, 48]
    assert len({group.name for group in groups}) == 4


def test_an_option_of_a_later_release_makes_no_group(tmp_path):
    make(tmp_path / "a", seed=0)
    make(tmp_path / "b", seed=1, new_flag=3)
    (group,), notes = grouped(read_runs([str(tmp_path / name) for name in "ab"], "test"))
    assert len(group.runs) == 2 and not notes and not group.settings


@pytest.mark.parametrize("value, text",
                         [(0.12345, "0.123"), (-0.0004, "0.000"), (-0.0006, "-0.001"), (12.345, "12.3"),
                                         (12345.6, "12346"), (math.nan, "–")])
def test_numbers_as_text(value, text):
    assert figure_text(value) == text


# ---- the same images ---------------------------------------------------------------------------------------

def test_another_order_of_rows_and_classes_changes_nothing(start, tmp_path):
    samples, classes = images(LABELS), ("severe", "healthy", "mild")
    make(tmp_path / "A")
    logits = guesses(LABELS, 1.0, 5)
    write_run(tmp_path / "B", samples, logits, epochs=20)
    shuffled = np.random.default_rng(0).permutation(len(LABELS))
    other = samples.iloc[shuffled].reset_index(drop=True).assign(index=np.arange(len(LABELS)))
    new_place = np.array([classes.index(name) for name in CLASSES])
    other["target"] = new_place[other["target"]]
    write_run(tmp_path / "C", other, logits[shuffled][:, np.argsort(new_place)], classes=classes, epochs=20)
    metrics = ("--metric", "roc_auc", "roc_auc_mild", "f1", "qwk", "mae_grades", "loss", "ece")
    _, out, _ = start("A", "B", *metrics, "--output", "b")
    _, moved, _ = start("A", "C", *metrics, "--output", "c")
    tests = [pd.read_csv(f"{name}/comparison_tests.csv").drop(columns="second") for name in "bc"]
    pd.testing.assert_frame_equal(*tests, check_exact=False, rtol=1e-5)
    assert "classes in another order" in moved and "classes in another order" not in out


def test_another_mount_point_is_accepted_and_said(start, tmp_path):
    make(tmp_path / "A")
    make(tmp_path / "B", samples=images(LABELS, place="/mnt/copy/test"), epochs=20)
    code, out, _ = start("A", "B")
    assert (
        code == 0
        and "warning: B names its images by another folder than A" in out
        and "the files are not here" in out
    )
    make(tmp_path / "C", fingerprint="f" * 64)
    make(tmp_path / "D", samples=images(LABELS, place="./copy/test"), fingerprint="f" * 64, epochs=20)
    code, out, _ = start("C", "D")
    assert code == 0 and "same fingerprint" in out and "warning" not in out


def test_files_of_the_same_name_and_other_content_are_refused(start, tmp_path):
    for place in ("one", "two"):
        samples = images(LABELS, place=str(tmp_path / place))
        make(tmp_path / f"run_{place}", samples=samples, epochs=len(place) + (place == "two"))
        for number, path in enumerate(samples["path"]):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"x" * (7 if place == "one" or number >= 5 else 8))
    assert "5 of 120 files of the same name differ in size" in refused(start("run_one", "run_two"))
    for path in samples["path"]:
        (tmp_path / path).write_bytes(b"x" * 7)
    code, out, _ = start("run_one", "run_two")
    assert code == 0 and "names, labels and file sizes agree" in out


def test_a_picture_that_stands_twice_is_matched_twice(tmp_path):
    samples = images(LABELS)
    samples.loc[1, ["path", "target"]] = samples.loc[0, ["path", "target"]]
    for name in "AB":
        write_run(tmp_path / name, samples, guesses(samples["target"].to_numpy(int), 1.0, 3))
    runs = read_runs([str(tmp_path / name) for name in "AB"], "test")
    assert align(runs) == [] and runs[0].table.equals(runs[1].table)


def change_predictions(folder, edit):
    from util.core.run_files import write_predictions

    table = read_predictions(folder / "predictions_test.csv")
    write_predictions(edit(table), folder / "predictions_test.csv")


@pytest.mark.parametrize(
    "edit, said",
    [
        (
            lambda table: table.iloc[:-3],
            "not scored on the same images: 3 of 120 of the first are not among the "
            "117 of the second, 0 the other way round (only in A: /data/test/",
        ),
        (
            lambda table: table.assign(path=[*table["path"][:-1], "/data/test/mild/other.png"]),
            "1 of 120 of the first are not among the 120 of the second, 1 the other way",
        ),
        (
            lambda table: table.assign(
                true_class=["severe" if name == "mild" else name for name in table["true_class"]]
            ),
            f"true_class of {(LABELS == 1).sum()} of 120 images (the first: /data/test/mild/",
        ),
        (
            lambda table: table.rename(columns=lambda name: name.replace("mild", "moderate")).replace(
                "mild", "moderate"
            ),
            "different classes ('mild' only in A; 'moderate' only in B)",
        ),
        (lambda table: table.assign(index=0), "holds an index twice"),
        (lambda table: table.iloc[:0], "holds no image"),
    ],
    ids=["fewer", "another", "labels", "classes", "index", "empty"],
)
def test_other_images_are_refused(start, tmp_path, edit, said):
    make(tmp_path / "A")
    make(tmp_path / "B", epochs=20)
    change_predictions(tmp_path / "B", edit)
    assert said in refused(start("A", "B"))


def test_patients_are_lent_and_may_not_contradict(start, tmp_path):
    patients = [f"p{n // 2}" for n in range(len(LABELS))]
    make(tmp_path / "A", intervals=True)
    make(tmp_path / "B", samples=images(LABELS, patients), epochs=20)
    code, out, _ = start("A", "B", "--metric", "f1")
    assert code == 0 and "120 images of 60 patients" in out and "B's patients are taken" in out
    table = pd.read_csv("output_dir/comparison/comparison.csv")
    assert list(table["f1_interval"]) == ["bootstrap of patients"] * 2, (
        "A's stored interval knows no patients"
    )
    make(tmp_path / "C", samples=images(LABELS, patients[::-1]), epochs=30)
    assert "different patients: of 120 of 120 images" in refused(start("B", "C"))


def test_regression_targets_and_truth(start, tmp_path):
    samples, true = images(LABELS[:30]), np.random.default_rng(0).normal(size=(30, 2))
    true[3, 1] = np.nan
    changed = true.copy()
    changed[4, 1] += 1
    write_regression(tmp_path / "A", samples, true, np.zeros((30, 2)), ["tc", "ldl"])
    write_regression(tmp_path / "B", samples, true, np.ones((30, 2)), ["tc", "hdl"], epochs=20)
    write_regression(tmp_path / "C", samples, changed, np.ones((30, 2)), ["tc", "ldl"], epochs=20)
    write_regression(tmp_path / "D", samples, true[:, ::-1], np.ones((30, 2)), ["ldl", "tc"], epochs=20)
    assert "different targets ('ldl' only in A; 'hdl' only in B)" in refused(start("A", "B"))
    assert "true_ldl of 1 of 30 images" in refused(start("A", "C"))
    code, out, _ = start("A", "D", "--metric", "mae")
    assert code == 0 and "targets in another order" in out


# ---- what is refused, what is said -------------------------------------------------------------------------

def test_folders_that_are_no_scored_runs(start, tmp_path):
    make(tmp_path / "A")
    assert "A/ and A are the same folder" in refused(start("A", "A/"))
    assert "nowhere: not there" in refused(start("A", "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "holds no run.json" in refused(start("A", "empty"))
    (tmp_path / "A/predictions_test.csv").rename(tmp_path / "kept.csv")
    message = refused(start("A"))
    assert "A has no predictions_test.csv" in message and "--eval --resume A/checkpoint-best.pth" in message
    (tmp_path / "kept.csv").rename(tmp_path / "A/predictions_test.csv")
    (tmp_path / "A/metrics_test.json").write_text("{")
    assert "metrics_test.json is no JSON" in refused(start("A"))
    (tmp_path / "A/metrics_test.json").write_text('{"f1": 0.5}')
    assert "f1 has no value" in refused(start("A"))
    (tmp_path / "A/metrics_test.json").write_text('{"f1": {"value": "high"}}')
    assert "f1 is no number" in refused(start("A"))
    (tmp_path / "A/run.json").write_text("[]")
    assert "an object is expected" in refused(start("A"))


def test_kinds_do_not_mix(start, tmp_path):
    make(tmp_path / "A")
    write_regression(tmp_path / "B", images(LABELS), np.zeros((120, 1)), np.zeros((120, 1)), ["tc"])
    assert "A is a classification and B a regression" in refused(start("A", "B"))


def test_flags_that_do_not_go_together(start, tmp_path):
    make(tmp_path / "A")
    assert "no run is named" in refused(start())
    assert "--metric A is a folder" in refused(start("A", "--metric", "f1", "A"))
    assert "--metric auc: no run has it; did you mean" in refused(start("A", "--metric", "auc"))
    assert "--nproc belong to a study" in refused(start("A", "--nproc", "2"))
    assert "pass one of the two" in refused(start("A", "--run", "grid.yaml"))
    assert "--names is for folders" in refused(start("--run", "grid.yaml", "--names", "A"))
    assert "grid.yaml: can't be read" in refused(start("--run", "grid.yaml"))
    (tmp_path / "file").touch()
    assert "--output file can't be made" in refused(start("A", "--output", "file"))


def test_figures_that_do_not_belong_to_the_predictions_are_said(start, tmp_path):
    make(tmp_path / "A", intervals=True)
    entries = json.loads((tmp_path / "A/metrics_test.json").read_text())
    true = entries["f1"]["value"]
    entries["f1"] |= {"value": 0.9876, "lower": 0.98, "upper": 0.99}
    entries["roc_auc"] = {"value": None, "lower": None, "upper": None}
    (tmp_path / "A/metrics_test.json").write_text(json.dumps(entries))
    code, out, _ = start("A", "--metric", "f1", "roc_auc")
    assert code == 0 and "the stored f1 is 0.9876" in out
    table = pd.read_csv("output_dir/comparison/comparison.csv")
    assert table["f1"][0] == pytest.approx(true) and table["f1_lower"][0] < 0.98 and table["roc_auc"][0] > 0


def test_flags_are_pinned():
    """A flag that vanished would break the commands of the documents and people's scripts."""
    flags = {action.option_strings[0]: action.default for action in compare.make_parser()._actions
             if action.option_strings}
    assert flags | {"-h": None} == {
        "-h": None, "--metric": None, "--split": "test", "--output": None, "--names": None, "--draws": 2000,
        "--seed": 0,
        "--run": None, "--nproc": None, "--slurm": None, "--dry_run": False}
