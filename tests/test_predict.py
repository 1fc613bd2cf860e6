"""predict.py says of unlabelled images what the evaluation of the same checkpoint says of them, to the last
bit."""

import argparse
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from scipy.special import softmax

import predict
from tests.conftest import SMALL, write_pictures
from util.core.ending import exit_code_of
from util.data.public.demo import make_demo
from util.metrics.predictions import read_predictions

HERE = ["--device", "cpu", "--num_workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classification of three classes, trained for an epoch: (checkpoint, images, its
    predictions_test.csv)."""
    import main_finetune

    folder = tmp_path_factory.mktemp("trained")
    data = write_pictures(folder / "pictures", numbers=(4, 2, 5))
    assert exit_code_of(main_finetune.main,
                        [*SMALL, "--epochs", "1", "--data_path", str(data), "--output_dir", str(folder),
                                             "--log_dir", str(folder / "logs"), "--task", "c"]) == 0
    return folder / "c/checkpoint-best.pth", data, read_predictions(folder / "c/predictions_test.csv")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(*words) starts predict.py in this process, in an empty folder -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def start(*words, program=predict.main):
        capsys.readouterr()
        code = exit_code_of(program, [*map(str, words), *HERE])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return start


def wrong(result, *says):
    code, out, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (out, err)
    for words in says:
        assert words in err


def changed(checkpoint, place, **entries):
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | entries, place)
    return content


def test_a_folder_equals_the_evaluation(run, trained, tmp_path):
    checkpoint, data, expected = trained
    code, out, err = run("--resume", checkpoint, "--input", data / "test", "--output", "p.csv")
    assert code == 0, err
    assert "80/80 tensors" in out and "probabilities are not calibrated" in out and "16 images" in out
    table = pd.read_csv("p.csv")
    assert list(table.columns) == ["path", *(c for c in expected.columns
                                             if c.startswith(("predicted", "prob", "logit")))]
    pd.testing.assert_frame_equal(table, expected[list(table.columns)], check_dtype=False, check_exact=True)
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv"}  # nothing else is left


def test_a_csv_in_its_order_without_the_class_folders(run, trained, tmp_path):
    checkpoint, data, expected = trained
    paths = list(reversed(expected["path"]))
    for number, path in enumerate(paths):
        shutil.copy(path, tmp_path / f"{number}.png")
    rows = pd.DataFrame({"eye": [f"{n:03d}" for n in range(16)], "image": [f"{n}.png" for n in range(16)]})
    rows.to_csv("list.csv", index=False)
    code, _, err = run("--resume", checkpoint, "--input", tmp_path / "list.csv", "--path_col", "image",
                       "--output", "p.csv")
    assert code == 0, err
    table = pd.read_csv("p.csv", dtype={"eye": str})
    assert list(table.columns[:4]) == ["path", "image", "eye",
                                       "predicted_class"] and list(table["eye"]) == list(rows["eye"])
    logits = [name for name in table if name.startswith("logit_")]
    assert np.allclose(table[logits], expected[logits].to_numpy()[::-1], atol=1e-6)


def test_calibrated_where_the_checkpoint_holds_a_temperature(run, trained, tmp_path):
    checkpoint, data, expected = trained
    best = torch.load(checkpoint, weights_only=True)["best"]
    changed(checkpoint, "warm.pth", best=best | {"temperature": 2.5, "thresholds": {}})
    code, out, err = run("--resume", "warm.pth", "--input", data / "test", "--output", "p.csv")
    assert code == 0 and "probabilities are calibrated: temperature 2.5, fitted on val" in out, err
    table, names = pd.read_csv("p.csv"), ["healthy", "mild", "severe"]
    logits = expected[[f"logit_{name}" for name in names]].to_numpy()
    assert np.array_equal(table[[f"logit_{name}" for name in names]], logits)
    assert np.allclose(table[[f"prob_{name}" for name in names]], softmax(logits / 2.5, axis=1), rtol=1e-9)
    assert list(table["predicted_class"]) == list(expected["predicted_class"])
    changed(checkpoint, "none.pth", best=best | {"temperature": None})
    code, out, _ = run("--resume", "none.pth", "--input", data / "test", "--output", "q.csv")
    assert code == 0 and "not calibrated" in out


def test_a_model_without_heat_maps_is_refused_before_anything_is_predicted(run, tmp_path, pictures):
    torch.manual_seed(0)
    model = timm.create_model("gmlp_ti16_224", num_classes=3, img_size=32)
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "mixer.pth")
    code, out, err = run("--resume", "mixer.pth", "--model", "timm", "--model_arch", "gmlp_ti16_224",
                         "--input_size", 32, "--input", pictures / "test", "--output", "p.csv", "--heatmaps")
    assert code == 2 and "heat maps of MlpMixer can't be made" in err and err.count("\n") == 1
    assert (
        "predicted " not in out and not (tmp_path / "p.csv").exists() and not (tmp_path / "heatmaps").exists()
    )


def test_two_classes_are_called_at_the_thresholds_of_val(run, trained):
    checkpoint, data, expected = trained
    content = torch.load(checkpoint, weights_only=True)
    weights = content["model"] | {name: content["model"][name][:2] for name in ("head.weight", "head.bias")}
    levels = softmax(expected[["logit_healthy", "logit_mild"]].to_numpy(), axis=1)[:, 1]
    changed(checkpoint, "two.pth", model=weights, class_names=["no", "yes"],
            best=content["best"]
            | {"thresholds": {"sensitivity_at_90_specificity": float(np.median(levels))}})
    code, out, err = run("--resume", "two.pth", "--input", data / "test", "--output", "p.csv")
    assert code == 0 and "1 where the probability of yes, before calibration, reaches the threshold" in out, (
        err
    )
    assert list(pd.read_csv("p.csv")["called_at_90_specificity"]) == list(
        (levels >= np.median(levels)).astype(int)
    )


def test_a_checkpoint_of_the_original_scripts(run, trained, tmp_path, start):
    checkpoint, data, expected = trained
    arguments = argparse.Namespace(model="timm", model_arch="test_vit", input_size=32, nb_classes=3)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({"model": content["model"], "epoch": 4, "args": arguments}, "original.pth")
    words = ("--resume", "original.pth", "--input", data / "test", "--output", "p.csv", "--model_arch",
             "test_vit")
    code, out, err = run(*words, "--batch_size", 8)
    assert code == 0 and "checkpoint of the original scripts (model timm, epoch 4)" in out, err
    assert "classes are called 0 to 2" in out and "decoding full" in out
    code, _, err = start("--eval", "--resume", "original.pth", "--task", "o", "--device", "cpu",
                         "--num_workers", 0,
                         "--batch_size", 8, "--nb_classes", 3, "--model_arch", "test_vit", data=data,
                         small=False)
    assert code == 0, err
    evaluated = read_predictions(tmp_path / "output_dir/o/predictions_test.csv")
    table = pd.read_csv("p.csv")
    assert np.array_equal(table[["logit_0", "logit_1", "logit_2"]], evaluated.filter(like="logit_"))
    assert run(*words, "--class_names", "a", "b", "c")[0] == 0 and "prob_c" in pd.read_csv("p.csv")
    wrong(run(*words, "--class_names", "a", "b"), "--class_names has 2 names, original.pth 3 classes")
    wrong(run(*words, "--class_names", "a", "b", "b"), "a name stands there twice")


def test_weights_without_a_head_are_refused(run, trained):
    checkpoint, data, _ = trained
    content = torch.load(checkpoint, weights_only=True)
    torch.save({name: tensor for name, tensor in content["model"].items() if not name.startswith("head.")},
               "backbone.pth")
    wrong(run("--resume", "backbone.pth", "--input", data, "--output", "p.csv", "--model", "timm",
              "--model_arch", "test_vit"),
          "backbone.pth has no classifier (head.weight): it holds a backbone's weights",
          "start from it with main_finetune.py --finetune backbone.pth")


def test_what_a_user_gets_wrong(run, trained, tmp_path):
    checkpoint, data, _ = trained
    good = {"--resume": checkpoint, "--input": data / "test", "--output": "p.csv"}

    def words(**other):
        return [word for pair in (good | {f"--{name}": value for name, value in other.items()}).items()
                for word in pair]

    wrong(run(*words(output="p.xlsx")), "has to end in .csv")
    wrong(run(*words(output="nowhere/p.csv")), "there is no folder nowhere")
    wrong(run(*words(resume="none.pth")), "none.pth does not exist")
    wrong(run(*words(input="none")), "--input none: not there")
    (tmp_path / "empty").mkdir()
    wrong(run(*words(input="empty")), "no image")
    (tmp_path / "l.csv").write_text("path\n" + str(next(data.rglob("*.png"))) + "\n")
    wrong(run(*words(input="l.csv", output="l.csv")), "is the --input itself")
    wrong(run(*words(model_arch="resnet10t")), "resnet10t contradicts it")
    wrong(run(*words(class_names="x")), "names its classes itself (healthy, mild, severe)")
    wrong(
        run(*words(heatmap_of="moderate"), "--heatmaps"),
        "--heatmap_of moderate",
        "predicts healthy, mild, severe",
    )
    wrong(
        run(*words(heatmap_method="gradcam"), "--heatmaps"),
        "gradcam does not fit test_vit",
        "gradient or rollout",
    )
    wrong(run("--input", data, "--output", "p.csv"), "--resume")
    wrong(run(*words(), "--imput", "x"), "did you mean --input?")
    assert not list(tmp_path.glob("p.*"))
    code, out, err = run(*words(path_col="image", heatmap_of="mild"))
    assert code == 0, err
    assert (
        "--path_col does nothing with a folder as --input" in out
        and "--heatmap_of does nothing without --heatmaps" in out
    )


def test_pictures_that_do_not_decode(run, trained, tmp_path):
    checkpoint, data, expected = trained
    folder = shutil.copytree(data / "test", tmp_path / "some")
    (folder / "mild" / "00.png").write_text("text")
    words = ("--resume", checkpoint, "--input", "some", "--output", "p.csv")
    wrong(run(*words), "1 of 16 images cannot be read", "00.png", "--bad_images skip")
    code, out, err = run(*words, "--bad_images", "skip")
    assert code == 0 and "left out 1 of 16 images that cannot be read, listed in p.skipped.csv" in out, err
    assert list(pd.read_csv("p.skipped.csv")["path"]) == ["some/mild/00.png"]
    table = pd.read_csv("p.csv")
    assert [path.removeprefix("some") for path in table["path"]] == [
        path.removeprefix(str(data / "test")) for path in expected["path"]
        if not path.endswith("mild/00.png")]
    shutil.copy(data / "test/mild/00.png", folder / "mild/00.png")
    assert run(*words)[0] == 0 and not (tmp_path / "p.skipped.csv").exists()
    (folder / "mild" / "00.png").write_text("text")
    code, out, err = run(*words, "--skip_file_check", "--bad_images", "skip")
    assert code == 1 and err.count("\n") == 1 and "00.png" in err and "--bad_images does nothing" in out


def test_a_start_that_died_goes_on(run, trained, tmp_path, monkeypatch):
    """The second start computes the rest alone, and says so; other options begin anew."""
    import engine_finetune
    from jobs import inference as jobs_trained

    checkpoint, data, expected = trained
    words = ("--resume", checkpoint, "--input", data / "test", "--output", "p.csv")
    monkeypatch.setattr(engine_finetune, "CHUNK_SECONDS", 0)
    append, seen = jobs_trained.PartialRows.append, []

    def die(self, values):
        append(self, values)
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs_trained.PartialRows, "append", die)
    code, _, err = run(*words)
    assert code == 130 and "predict.py" in err and not (tmp_path / "p.csv").exists()
    monkeypatch.setattr(jobs_trained.PartialRows, "append", lambda self,
                        rows: (seen.append(len(rows)), append(self, rows)))
    code, out, err = run(*words)
    assert code == 0 and "8 are there from an earlier start (p.csv.partial)" in out and seen == [8], (
        out,
        err,
    )
    pd.testing.assert_frame_equal(pd.read_csv("p.csv"),
                                  expected[list(pd.read_csv("p.csv").columns)], check_dtype=False,
                                  check_exact=True)
    monkeypatch.setattr(jobs_trained.PartialRows, "append", die)
    assert run(*words)[0] == 130
    monkeypatch.setattr(jobs_trained.PartialRows, "append", append)
    code, out, _ = run(*words, "--batch_size", 3)
    assert code == 0 and "of an earlier start is of other batch size: begun anew" in out
    assert {path.name for path in tmp_path.iterdir()} == {"p.csv"}


def test_weights_that_diverged(run, trained):
    checkpoint, data, _ = trained
    content = torch.load(checkpoint, weights_only=True)
    changed(checkpoint, "nan.pth", model=content["model"]
            | {"head.bias": torch.tensor([0.0, float("nan"), 0.0])})
    code, _, err = run("--resume", "nan.pth", "--input", data / "test", "--output", "p.csv")
    assert code == 1 and "outputs are NaN or infinite" in err and "healthy/00.png" in err


def test_a_regression_with_covariates(run, tmp_path):
    import main_regression

    folder = make_demo(tmp_path / "demo", pictures=40, size=48, workers=1)
    small = [word for word in SMALL if word not in ("--nb_classes", "3")]
    code, _, err = run(*small, "--accum_iter", 1, "--csv_file", folder / "demo.csv", "--targets",
                       "lesion_area", "brightness",
                       "--target_transform", "none", "log", "--covariates", "eye", "grade",
                       "--head_embed_dim", 16, "--task", "r", "--epochs", 1, program=main_regression.main)
    assert code == 0, err
    expected = read_predictions(tmp_path / "output_dir/r/predictions_test.csv")
    rows = pd.read_csv(folder / "demo.csv", dtype=str, keep_default_na=False)
    rows = rows[rows["split"] == "test"].drop(columns=["lesion_area", "brightness", "split"])
    rows.to_csv(folder / "new.csv", index=False)
    words = ("--resume", "output_dir/r/checkpoint-best.pth", "--output", "p.csv", "--input")
    code, out, err = run(*words, folder / "new.csv")
    assert code == 0 and "regression, timm test_vit, input 32 pixels: lesion_area, brightness" in out, err
    table = pd.read_csv("p.csv")
    assert np.array_equal(table[["pred_lesion_area", "pred_brightness"]],
                          expected[["pred_lesion_area", "pred_brightness"]])
    assert list(table["patient"]) == list(rows["patient"]) and list(table["path"]) == list(expected["path"])
    code, out, err = run(*words, folder / "new.csv", "--heatmaps", "--heatmap_of", "brightness")
    assert (
        code == 0
        and "gradient, of brightness" in out
        and len(list(tmp_path.glob("heatmaps/*.png"))) == len(rows)
    ), err
    wrong(run(*words, folder), "reads eye, grade beside each image")
    rows.drop(columns="eye").to_csv(folder / "new.csv", index=False)
    wrong(run(*words, folder / "new.csv"), "no column eye (a covariate of this model)")
    rows.assign(grade="bad").to_csv(folder / "new.csv", index=False)
    wrong(run(*words, folder / "new.csv"), "covariate grade is a number in train")


def test_heat_maps_are_listed_once_a_picture(run, trained, tmp_path, monkeypatch):
    from jobs import predictions as heatmaps

    checkpoint, data, expected = trained
    words = ("--resume", checkpoint, "--input", data / "test", "--output", "p.csv", "--heatmaps")
    monkeypatch.setattr(heatmaps, "BATCH", 4)
    monkeypatch.setattr(heatmaps, "BATCHES_A_PIECE", 1)
    written, seen = heatmaps.write_overlays, []

    def die(paths, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(paths))
        return written(paths, *rest)

    monkeypatch.setattr(heatmaps, "write_overlays", die)
    assert run(*words)[0] == 130 and (tmp_path / "p.csv").exists() and (tmp_path / "p.csv.partial").exists()
    monkeypatch.setattr(heatmaps, "write_overlays", lambda paths,
                        *rest: (seen.append(len(paths)), written(paths, *rest)))
    code, out, err = run(*words)
    assert code == 0 and "8 are there from an earlier start" in out and seen == [4, 4, 4, 4], err
    listed = json.loads((tmp_path / "heatmaps/heatmaps.json").read_text())
    assert set(listed) == set(expected["path"]) and len(set(listed.values())) == 16
    for name in listed.values():
        assert Image.open(tmp_path / "heatmaps" / name).size == (32, 32)
    assert not list(tmp_path.glob("p.csv.partial*"))
    # the map of a class that is named is another one
    code, out, _ = run(*words, "maps", "--heatmap_of", "severe")
    assert code == 0 and "gradient, of severe" in out
    differ = [name for path, name in listed.items()
              if expected.set_index("path")["predicted_class"][path] != "severe"
              and (tmp_path / "heatmaps" / name).read_bytes() != (tmp_path / "maps" / name).read_bytes()]
    assert differ


def test_help_shows_how_to_start(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    out = capsys.readouterr().out
    assert (
        "torchrun --nproc_per_node=4 predict.py --resume output_dir/NAME/checkpoint-best.pth --input patients.csv"
        in out
    )
