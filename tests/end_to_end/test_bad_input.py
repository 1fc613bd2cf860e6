"""What a user can get wrong: one clear line with the remedy, exit code 2, nothing lost, no traceback."""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tests import parity
from tests.conftest import CLASSES, start_process, write_pictures


@pytest.fixture
def copy(pictures, tmp_path):
    return Path(shutil.copytree(pictures, tmp_path / "copy"))


def wrong(result, *says):
    code, out, err = result
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for words in says:
        assert words in err
    assert "epoch 0" not in out


def test_folders(start, copy, tmp_path):
    wrong(start(data=tmp_path / "nowhere"), "nowhere")
    shutil.move(copy / "val", copy / "validation")
    wrong(start(data=copy), "val", "validation")
    shutil.move(copy / "validation", copy / "val")
    shutil.move(copy / "test" / "mild", copy / "test" / "Mild")
    wrong(start(data=copy), "mild", "test")
    shutil.rmtree(copy / "test" / "Mild")
    wrong(start(data=copy), "mild")
    (copy / "test" / "mild").mkdir()
    wrong(start(data=copy), "mild")


def test_number_of_classes(start):
    wrong(start("--nb_classes", 5), "found 3 classes (healthy, mild, severe): pass --nb_classes 3")


def test_files_that_do_not_decode(start, copy, tmp_path):
    bad = [copy / "train" / "mild" / "bad.png", copy / "test" / "severe" / "cut.png"]
    bad[0].write_text("this is text")
    bad[1].write_bytes((copy / "test" / "severe" / "00.png").read_bytes()[:200])
    wrong(start(data=copy), "2 of", "bad.png", "cut.png", "--bad_images skip")
    code, out, err = start("--bad_images", "skip", "--task", "skip", data=copy)
    assert code == 0, err
    assert "left out 2 of 89 pictures" in out
    listed = pd.read_csv(tmp_path / "output_dir/skip/skipped_images.csv")
    assert sorted(listed["path"]) == sorted(map(str, bad))
    assert len(pd.read_csv(tmp_path / "output_dir/skip/predictions_test.csv")) == 25


def test_csv(start, tmp_path, pictures):
    rows = pd.DataFrame({"path": [str(p) for p in pictures.rglob("*.png")]})
    rows["label"] = [Path(p).parent.name for p in rows["path"]]
    rows["split"] = [Path(p).parent.parent.name for p in rows["path"]]

    def run(table, *words):
        table.to_csv(tmp_path / "d.csv", index=False)
        return start("--csv_file", tmp_path / "d.csv", *words, data=None)

    wrong(start("--csv_file", tmp_path / "none.csv", data=None), "none.csv")
    wrong(run(rows.rename(columns={"label": "grade"})), "label", "grade")
    wrong(run(rows, "--patient_col", "who"), "who")
    missing = rows.copy()
    missing.loc[3, "path"] = "gone.png"
    wrong(run(missing), "gone.png")
    unknown = rows.copy()
    unknown.loc[4, "split"] = "holdout"
    wrong(run(unknown), "holdout")
    empty = rows.copy()
    empty.loc[5, "label"] = ""
    wrong(run(empty), "label")
    twice = pd.concat([rows, rows[rows["split"] == "train"].head(1).assign(split="test")])
    wrong(run(twice), ".png")


@pytest.mark.parametrize("words, says", [
    (["--model_arch", "test_vitt"], "no model of timm"),
    (["--input_size", 33], "nearest sizes are 32 and 48"),
    (["--finetune", "nothing.pth"], "no such file here"),
    (["--finetune", "hf:x"], "hf:owner/repo/file"),
    (["--resume", "nothing.pth"], "nothing.pth does not exist"),
    (["--aa", "rand-m9-oops"], "--aa rand-m9-oops"),
    (["--precision", "fp16"], "needs a GPU"),
    (["--min_lr", 1], "--min_lr 1 is above"),
    (["--epochs", 0], "--epochs"),
    (["--eval"], "--eval needs --resume"),
    (["--task", "/tmp"], "no name for a folder"),
    (["--task", "../elsewhere"], "no name for a folder"),
    (["--model_arch", "deepseek_vit_base_patch14"], "deepseek_vit_base_patch14"),
    (["--fc_norm_passes", 3], "--fc_norm_passes"),
])
def test_flags(start, words, says):
    wrong(start(*words), says)


def test_fp16_with_dinov3(start):
    wrong(start("--model", "Dinov3", "--model_arch", "dinov3_vits16", "--precision", "fp16"), "65504")


def test_model_and_architecture_contradict(start):
    wrong(start("--model", "Dinov2", "--model_arch", "dinov3_vits16"), "belongs to --model Dinov3")
    wrong(start("--model", "Dinov2", "--model_arch", "dinov2_vits14", "--input_size", 225), "224 and 238")


def test_weights_that_do_not_fit_stop_the_start(start, tmp_path):
    parity.weight_file(tmp_path / "dinov2.pth", "dinov2_vits14")
    wrong(start("--model", "Dinov3", "--model_arch", "dinov3_vits16", "--finetune", tmp_path / "dinov2.pth"),
          "does not fit --model Dinov3", "missing")
    torch.save({"blocks.0.norm1.weight": torch.ones(64)}, tmp_path / "one.pth")
    wrong(start("--finetune", tmp_path / "one.pth"), "1 of ")
    code, out, err = start("--finetune", tmp_path / "one.pth", "--allow_partial", "--epochs", 1)
    assert code == 0, err
    assert "PARTIAL (--allow_partial)" in out and "blocks.1.norm1.weight" in out


def test_checkpoints(start, copy, tmp_path):
    assert start("--task", "t", "--epochs", 1)[0] == 0
    best = tmp_path / "output_dir/t/checkpoint-best.pth"
    wrong(start("--resume", best), "holds the model alone")
    shutil.move(copy / "test" / "mild", copy / "test" / "moderate")
    wrong(start("--eval", "--resume", best, data=copy), "the checkpoint has no class moderate", "healthy, mild, severe")
    picture = next(copy.rglob("*.png"))
    wrong(start("--eval", "--resume", picture), "no PyTorch file")
    (tmp_path / "cut.pth").write_bytes(best.read_bytes()[:5000])
    wrong(start("--eval", "--resume", tmp_path / "cut.pth"), "damaged")
    content = torch.load(best, weights_only=True)
    torch.save(content | {"thing": argparse.FileType()}, tmp_path / "odd.pth")
    wrong(start("--eval", "--resume", tmp_path / "odd.pth"), "nothing in it was run")
    wrong(start("--eval", "--resume", best, "--model_arch", "resnet10t"), "resnet10t contradicts it")
    wrong(start("--eval", "--resume", best, "--nb_classes", 4, "--input_size", 40), "nearest sizes")


def test_eval_maps_classes_by_name(start, copy, tmp_path):
    """Folders in another order, one of them absent: the same predictions for the pictures that are there."""
    assert start("--task", "t", "--epochs", 1)[0] == 0
    best = tmp_path / "output_dir/t/checkpoint-best.pth"
    whole = pd.read_csv(tmp_path / "output_dir/t/predictions_test.csv")
    shutil.rmtree(copy / "test" / "healthy")
    code, out, err = start("--eval", "--resume", best, "--task", "two", data=copy)
    assert code == 0, err
    assert "no images of 1 of the 3 classes ('healthy')" in out
    two = pd.read_csv(tmp_path / "output_dir/two/predictions_test.csv")
    expected = whole[whole["true_class"] != "healthy"].reset_index(drop=True)
    columns = [f"logit_{name}" for name in CLASSES]
    assert np.allclose(two[columns], expected[columns], atol=1e-5)
    assert list(two["true_class"]) == list(expected["true_class"])


def test_pictures_of_all_kinds_train(start, tmp_path):
    """Grey, palette, RGBA, CMYK and 16-bit pictures beside each other."""
    data = write_pictures(tmp_path / "kinds", numbers=(4, 3, 3))
    place = data / "train" / "mild"
    grey = Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40))
    grey.save(place / "grey.png")
    grey.convert("P").save(place / "palette.png")
    grey.convert("RGBA").save(place / "alpha.png")
    grey.convert("CMYK").save(place / "ink.tif")
    Image.fromarray((np.arange(1600).reshape(40, 40) * 40).astype(np.uint16)).save(place / "oct.png")
    Image.fromarray((np.arange(1600).reshape(40, 40) * 40).astype(np.uint16)).save(place / "oct.tiff")
    code, out, err = start("--task", "kinds", "--epochs", 1, data=data)
    assert code == 0, err
    assert "train 19" in out


def test_output_folder_that_can_not_be_written(start, tmp_path):
    (tmp_path / "file").write_text("in the way")
    wrong(start("--output_dir", tmp_path / "file"), "--output_dir", "can't be written")
    wrong(start("--log_dir", tmp_path / "file"), "--log_dir", "can't be written")


def test_a_real_start_ends_with_2(tmp_path):
    run = start_process("--data_path", "nowhere", "--nb_classes", 3, folder=tmp_path)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert run.stderr.strip().splitlines()[-1].startswith("error: ")
