"""A classification that reads covariates beside the image: trained, resumed, scored, predicted with, explained,
searched for; and that it is better than the image or the covariates alone where both decide the class."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

import models_vit
from tests.conftest import SMALL, start_process
from util.core.ending import exit_code_of
from util.metrics import delong
from util.metrics.predictions import read_predictions

COVARIATES = ("--covariates", "age", "sex")


def draw(folder, numbers, is_sick, seed=0):
    """Images of noise, the brighter the larger z, and d.csv: the class is what `is_sick` says of z and of the
    standardised age; sex means nothing, and some cells are empty."""
    rng, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir(parents=True)
    for split, number in numbers.items():
        for k in range(number):
            z, age = rng.normal(size=2)
            pixels = rng.integers(0, 60, (40, 40, 3)) + np.clip(90 + 35 * z, 0, 190)
            path = f"images/{split}_{k:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
            rows.append((path, split, f"p{split}{k}", "sick" if is_sick(z, age) else "well",
                         "" if k % 9 == 8 else f"{60 + 10 * age:.1f}", rng.choice(["F", "M", "unknown"])))
    table = pd.DataFrame(rows, columns=["path", "split", "patient", "label", "age", "sex"])
    table.to_csv(folder / "d.csv", index=False)
    return folder / "d.csv"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("covariates"), {"train": 40, "val": 16, "test": 16},
                lambda z, age: z + age > 0)


@pytest.fixture
def classify(start, drawn):
    def run(*words, csv=drawn, small=True):
        options = [word for word in SMALL if word not in ("--nb_classes", "3")] if small else []
        return start(*options, *(["--csv_file", csv] if csv else []), *words, data=None, small=False)
    return run


def use(program, *words):
    return exit_code_of(__import__(program).main, [*map(str, words)])


def test_train_cut_resume_and_score_again(classify, tmp_path, drawn, monkeypatch):
    code, out, err = classify("--task", "whole", "--epochs", 3, *COVARIATES)
    assert code == 0, err
    age = pd.read_csv(drawn).query("split == 'train'")["age"]
    assert f"covariate age: number, mean {age.mean():.4g}, sd {age.std():.4g} in train" in out
    assert "covariate sex: one of F, M" in out and "age is missing in some rows" in out
    folder = tmp_path / "output_dir/whole"
    content = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert [entry["name"] for entry in content["covariates"]] == ["age", "sex"]
    # timm's names for what is timm's
    timms = timm.create_model("test_vit", num_classes=0, img_size=32).state_dict()
    own = content["model"].keys() - timms.keys()
    assert timms.keys() <= content["model"].keys() and all(name.startswith("covariate_head.") for name in own)
    page = (folder / "report.html").read_text()
    assert "age (number); sex (F, M)" in page and "--covariates age sex" in page

    classify_again = ("--task", "whole2", "--epochs", 3, *COVARIATES)
    from jobs.run_folder import RunFolder
    add_scalars = RunFolder.add_scalars

    def die(folder, values, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        add_scalars(folder, values, epoch)

    monkeypatch.setattr(RunFolder, "add_scalars", die)
    assert classify(*classify_again)[0] == 130
    monkeypatch.setattr(RunFolder, "add_scalars", add_scalars)
    code, out, err = classify(*classify_again, "--resume", "same")
    assert code == 0 and "resumed at epoch 1" in out, err
    again = torch.load(tmp_path / "output_dir/whole2/checkpoint-best.pth", weights_only=True)["model"]
    assert all(torch.equal(content["model"][name], again[name]) for name in again)

    best = folder / "checkpoint-best.pth"
    first = (folder / "predictions_test.csv").read_bytes()
    code, out, err = classify("--eval", "--resume", best, "--task", "again", "--device", "cpu", csv=None,
                              small=False)
    assert code == 0 and (tmp_path / "output_dir/again/predictions_test.csv").read_bytes() == first, err
    # the covariates act: with others, other outputs
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False)
    table["path"] = [str(drawn.parent / path) for path in table["path"]]
    table["age"] = ""
    table.to_csv(tmp_path / "ageless.csv", index=False)
    code, out, err = classify("--eval", "--resume", best, "--task", "ageless", "--device", "cpu",
                              csv=tmp_path / "ageless.csv", small=False)
    assert code == 0 and (tmp_path / "output_dir/ageless/predictions_test.csv").read_bytes() != first, err

    # what contradicts the checkpoint, or lacks the columns, is one line
    (tmp_path / "bare.csv").write_text(table.drop(columns="age").to_csv(index=False))
    for words, csv, says in (
            (("--covariates", "sex"), drawn, "reads age sex; leave the flag out"),
            ((), tmp_path / "bare.csv", "no column age (--covariates)"),
            (("--data_path", drawn.parent / "images"), None, "a folder has none")):
        code, _, err = classify("--eval", "--resume", best, "--task", "no", "--device", "cpu", *words,
                                csv=csv, small=False)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_predict_heat_maps_and_features(classify, tmp_path, drawn, capsys):
    assert classify("--task", "c", "--epochs", 2, *COVARIATES)[0] == 0
    best = tmp_path / "output_dir/c/checkpoint-best.pth"
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False).query("split == 'test'")
    table["path"] = [str(drawn.parent / path) for path in table["path"]]
    table.to_csv(tmp_path / "new.csv", index=False)
    words = ("--resume", best, "--output", tmp_path / "p.csv", "--device", "cpu", "--num_workers", 0)
    assert use("predict", *words, "--input", tmp_path / "new.csv", "--heatmaps", tmp_path / "maps") == 0
    assert "beside each image it reads age, sex" in capsys.readouterr().out
    found, scored = pd.read_csv(tmp_path / "p.csv"), read_predictions(
        tmp_path / "output_dir/c/predictions_test.csv")
    assert np.allclose(found["logit_sick"], scored["logit_sick"], atol=1e-5)
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(table)
    table["sex"] = ["M" if sex == "F" else "F" for sex in table["sex"]]
    table.to_csv(tmp_path / "other.csv", index=False)
    assert use("predict", *words, "--input", tmp_path / "other.csv") == 0
    assert not np.allclose(pd.read_csv(tmp_path / "p.csv")["logit_sick"], found["logit_sick"], atol=1e-7)
    table.drop(columns="sex").to_csv(tmp_path / "bare.csv", index=False)
    for place, says in (("bare.csv", "no column sex (a covariate of this model)"), (".", "reads age, sex")):
        capsys.readouterr()
        assert use("predict", *words, "--input", tmp_path / place) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert use("latent_feature", "--resume", best, "--input", tmp_path / "new.csv", "--output",
               tmp_path / "f.npz", "--device", "cpu", "--num_workers", 0) == 0
    # it starts another model, with a head of its own
    code, out, err = classify("--task", "next", "--epochs", 1, "--finetune", best)
    assert code == 0 and "not needed: head with covariates" in out, err
    code, out, err = classify("--task", "next2", "--epochs", 1, "--finetune",
                              tmp_path / "output_dir/next/checkpoint-best.pth", *COVARIATES)
    assert code == 0 and "not needed: head 2" in out, err


def test_a_frozen_backbone_and_a_search(classify, tmp_path):
    words = ("--adaptation", "lp", "--epochs", 3, *COVARIATES)
    code, out, err = classify("--task", "lp", *words, "--lp_views", 3, "--hflip", 0)
    assert code == 0 and "these do nothing" in out and "--lp_views" in out and "--hflip" in out, err
    assert "72 images computed" in out
    best = tmp_path / "output_dir/lp/checkpoint-best.pth"
    code, out, err = classify("--eval", "--resume", best, "--task", "e", "--device", "cpu", csv=None, small=False)
    assert code == 0, err
    one, two = (read_predictions(tmp_path / f"output_dir/{task}/predictions_test.csv") for task in ("lp", "e"))
    assert np.allclose(one["logit_sick"], two["logit_sick"], atol=1e-4)
    for adaptation in ("lp", "finetune"):
        code, out, err = classify("--task", f"s{adaptation}", "--optuna_trials", 2, "--optuna_epochs", 1,
                                  "--adaptation", adaptation, *COVARIATES)
        assert code == 0 and "2 trials (2 complete)" in out, err
    code, _, err = classify("--task", "slp", "--optuna_trials", 3, "--optuna_epochs", 1, "--adaptation", "lp",
                            "--covariates", "sex", "--optuna_resume")
    assert code == 2 and "covariates ['age', 'sex'] -> ['sex']" in err


def test_other_models_parts_and_flags(classify, tmp_path):
    for number, words in enumerate((("--model_arch", "test_resnet"), ("--model_arch", "test_convnext"),
                                    ("--train_last_blocks", 1, "--tta"), ("--class_weights", "balanced"),
                                    ("--head_depth", 1, "--head_embed_dim", 16, "--precision", "bf16"))):
        code, _, err = classify("--task", f"m{number}", "--epochs", 1, *COVARIATES, *words)
        assert code == 0, (words, err)
    code, out, err = classify("--dry_run", *COVARIATES)
    assert code == 0 and "lora" in out, err
    code, out, err = classify("--dry_run", "--head_depth", 1)
    assert code == 0 and "--head_depth does nothing without --covariates" in out, err
    for words, says in (((*COVARIATES, "--mixup", 0.5), "pass one of them"),
                        (("--covariates", "label"), "already a target, the label"),
                        (("--covariates", "colour"), "no column colour (--covariates)"),
                        ((*COVARIATES, "--head_num_heads", 3), "--head_num_heads 3 does not divide")):
        code, _, err = classify("--task", "x", *words)
        assert code == 2 and says in err and err.count("\n") == 1, (words, err)


def test_images_of_a_case_with_their_own_covariates(classify, tmp_path, drawn):
    table = pd.read_csv(drawn, dtype=str, keep_default_na=False)
    table["path"] = [str(drawn.parent / path) for path in table["path"]]
    table["case"] = table.groupby(["split", "label"]).cumcount() // 2
    table["case"] = table["split"] + table["label"] + table["case"].astype(str)
    table.to_csv(tmp_path / "c.csv", index=False)
    words = ("--epochs", 1, "--case_col", "case", *COVARIATES)
    code, _, err = classify("--task", "c", *words, "--pool", "mean", csv=tmp_path / "c.csv")
    cases = read_predictions(tmp_path / "output_dir/c/predictions_test.csv")
    assert code == 0 and len(cases) == table.query("split == 'test'")["case"].nunique(), err
    code, _, err = classify("--task", "a", *words, "--pool", "attention", csv=tmp_path / "c.csv")
    assert code == 2 and "pass --pool mean or max" in err


def test_two_processes_train_like_one(drawn, tmp_path):
    losses = []
    for processes in (1, 2):
        run = start_process(*[word for word in SMALL if word not in ("--nb_classes", "3")], *COVARIATES,
                            "--batch_size", 8 // processes, "--drop_path", 0, "--head_dropout", 0,
                            "--csv_file", drawn, "--task", processes, folder=tmp_path, processes=processes)
        assert run.returncode == 0, run.stderr
        log = (tmp_path / f"output_dir/{processes}/log.txt").read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_model_keeps_what_timm_says_of_its_layers():
    """The head is in the last layer, and names of weights that a file may hold are known."""
    from util.data.covariates import Covariate
    from util.model.lr_decay import layer_of_parameters, parameter_groups
    from util.model.regression_head import RegressionHead
    from util.options.model import HeadOptions

    backbone = models_vit.find_backbone("timm", "test_resnet")
    model = models_vit.build_model(backbone, 0, 64)
    head = RegressionHead(models_vit.feature_width(model), 2, HeadOptions(), [Covariate("age")])
    models_vit.put_covariate_head(model, head, 2)
    layer_of, last = layer_of_parameters(model)
    of_head = {layer for name, layer in layer_of.items() if name.startswith("covariate_head.")}
    assert of_head == {last} and min(layer_of.values()) < last
    assert layer_of.keys() == dict(model.named_parameters()).keys()
    exempt = {name for group in parameter_groups(model, 0.1, 0.5) if not group["weight_decay"]
              for name in group["names"]}
    assert {"covariate_head.target_tokens", "covariate_head.covariates.0.missing"} <= exempt
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), model(images, torch.full((2, 1), torch.nan)))
    features = models_vit.FeatureOfModel(model)(images)
    assert torch.equal(head(features, torch.zeros(2, 1)), model(images, torch.zeros(2, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [lambda z, age: z + age > 0, lambda z, age: (z > 0) != (age > 0)],
                         ids=["both add up", "one turns the other round"])
def test_better_than_the_image_or_the_covariate_alone(tmp_path, rule):
    """The bar, by DeLong's paired test on the test images: image and covariates against the image alone, and
    against covariates beside images that tell nothing."""
    numbers = {"train": 400, "val": 100, "test": 300}
    csv, blank = (draw(tmp_path / name, numbers, rule) for name in ("both", "blank"))
    for path in (blank.parent / "images").iterdir():
        Image.new("RGB", (40, 40)).save(path)
    words = [word for word in SMALL if word not in ("--nb_classes", "3")]
    words += ["--epochs", 25, "--batch_size", 32, "--drop_path", 0, "--leakage", "off"]
    aucs, influences = {}, {}
    for task, table, more in (("both", csv, COVARIATES), ("image", csv, ()),
                              ("covariates", blank, COVARIATES)):
        run = start_process(*words, *more, "--csv_file", table, "--task", task, folder=tmp_path)
        assert run.returncode == 0, run.stderr
        found = read_predictions(tmp_path / f"output_dir/{task}/predictions_test.csv").sort_values("index")
        aucs[task], influences[task] = delong.auc_influence(
            (found["true_class"] == "well").to_numpy(), found["prob_well"].to_numpy())
    for other in ("image", "covariates"):
        lower, _, p = delong.difference_test(influences["both"], influences[other],
                                             aucs["both"] - aucs[other])
        print(f"both {aucs['both']:.3f}, {other} {aucs[other]:.3f}: p {p:.2g}")
        assert lower > 0 and p < 0.001
    # the same by compare.py, where the runs have the same images
    run = start_process("output_dir/both", "output_dir/image", "--metric", "roc_auc", folder=tmp_path,
                        program="compare.py")
    assert run.returncode == 0, run.stderr
