"""A part of a model trained for real: adapters small on the disk, whole at the end; the last blocks and
nothing before."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import latent_feature
import predict as predicting
from tests import parity
from tests.conftest import ROOT, SMALL, needs_package, start_process, weights_of
from tests.end_to_end.test_regression import demo, predict  # noqa: F401 (fixtures)
from util.core.ending import exit_code_of
from util.metrics.predictions import read_predictions

LORA = ["--adaptation", "lora", "--lora_rank", "4"]
ATTENTION = {f"blocks.{number}.attn.{layer}.weight" for number in range(6) for layer in ("qkv", "proj")}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Weights of a small backbone, as timm saves them."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("base") / "base.pth"
    torch.save(timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), path)
    return path


@pytest.fixture
def cut(monkeypatch):
    """cut(epoch): the run dies as that epoch is told, before its checkpoint is written; cut(None): no
    more."""
    from jobs import train

    say_line = train.terminal.epoch_line

    def die_at(number):
        def line(task, epoch, *rest):
            if epoch == number:
                raise KeyboardInterrupt
            return say_line(task, epoch, *rest)
        monkeypatch.setattr(train.terminal, "epoch_line", line)
    return die_at


def content_of(path):
    return torch.load(path, weights_only=True)


def beside(program, *words):
    return exit_code_of(program.main, [*map(str, words), "--device", "cpu", "--num_workers", "0",
                                       "--precision", "fp32"])


def test_adapters_are_small_resume_to_the_bit_and_end_as_a_whole_model(start, tmp_path, base, cut, pictures):
    needs_package("peft")
    options = (*LORA, "--lora_dropout", 0.1, "--epochs", 3, "--mixup", 0.4, "--finetune", base)
    code, out, err = start("--task", "whole", *options)
    assert code == 0, err
    assert "adapters   LoRA of rank 4, alpha 16, dropout 0.1 on 12 layers (attention)" in out
    assert re.search(r"309,507 parameters .9,411 of them trained", out)
    whole, best = tmp_path / "output_dir/whole", tmp_path / "output_dir/whole/checkpoint-best.pth"
    assert (whole / "checkpoint-adapter.pth").stat().st_size < 0.07 * best.stat().st_size
    assert (whole / "checkpoint-last.pth").stat().st_size < 0.2 * best.stat().st_size
    assert {path.name for path in (whole / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    # cut in the second epoch: what is there is scored as it is, and goes on to the same bits
    cut(1)
    assert start("--task", "cut", *options)[0] == 130
    cut(None)
    code, out, err = start("--task", "cut", "--eval", "--resume", "auto")
    assert (
        code == 0
        and "checkpoint-adapter.pth" in out
        and "26 tensors of an adapter (rank 4) and a head, on" in out
    ), err
    (tmp_path / "output_dir/cut/metrics_test.csv").unlink()
    code, out, err = start("--task", "cut", *options, "--resume", "same")
    assert code == 0 and "resumed at epoch 1" in out, err
    last = [content_of(tmp_path / f"output_dir/{task}/checkpoint-last.pth") for task in ("whole", "cut")]
    assert all(torch.equal(last[0]["model"][name], last[1]["model"][name]) for name in last[0]["model"])
    assert all(torch.equal(a["exp_avg_sq"], b["exp_avg_sq"]) for a, b in zip(
        *(each["optimizer"]["state"].values() for each in last), strict=True))
    for name in ("predictions_test.csv", "metrics_val.csv", "metrics_test.csv"):
        assert (tmp_path / f"output_dir/cut/{name}").read_bytes() == (whole / name).read_bytes()
    code, out, err = start("--task", "cut", *options, "--resume", "same")
    assert code == 0 and "this run is complete" in out, err

    # the whole model: timm's names, only adapted weights moved, read by every program without its base
    # weights and PEFT
    before, after = torch.load(base, weights_only=True), weights_of(best)
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"} | ATTENTION
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.load_state_dict(after)
    scored = (whole / "predictions_test.csv").read_bytes()
    hidden = base.rename(base.with_name("away"))
    try:
        assert start("--task", "whole", "--eval", "--resume", "auto")[0] == 0
        assert (whole / "predictions_test.csv").read_bytes() == scored
        for program, output in ((predicting, "p.csv"), (latent_feature, "f.npz")):
            assert beside(program, "--resume", best, "--input", pictures / "test", "--output", output) == 0
    finally:
        hidden.rename(base)

    # and the adapter alone says the same, to rounding, where its base weights are
    adapter = whole / "checkpoint-adapter.pth"
    for program, output in ((predicting, "q.csv"), (latent_feature, "g.npz")):
        assert beside(program, "--resume", adapter, "--input", pictures / "test", "--output", output) == 0
    of_whole, alone = pd.read_csv("p.csv"), pd.read_csv("q.csv")
    assert np.allclose(of_whole.filter(like="logit_"), alone.filter(like="logit_"), atol=1e-6)
    assert np.allclose(np.load("f.npz")["pooled"], np.load("g.npz")["pooled"], atol=1e-5)


def test_base_weights_are_held_to_their_sha256(start, tmp_path, base, cut, pictures):
    needs_package("peft")
    mine = shutil.copy(base, tmp_path / "mine.pth")
    cut(1)
    assert start("--task", "r", *LORA, "--finetune", mine)[0] == 130
    cut(None)
    adapter = tmp_path / "output_dir/r/checkpoint-adapter.pth"

    def refused(*words, says):
        code, _, err = start("--task", "r", *words)
        assert code == 2 and err.count("\n") == 1 and re.search(says, err), err

    refused(*LORA, "--lora_alpha", 8, "--resume", "auto", says="holds an adapter that was made otherwise")
    refused("--adaptation", "finetune", "--resume", "auto", says="holds an adapter that was made otherwise")
    refused("--finetune", adapter, says="holds an adapter alone: pass .*checkpoint-best.pth")
    state = torch.load(mine, weights_only=True)
    torch.save(state | {"cls_token": state["cls_token"] + 1}, mine)
    refused("--resume", "auto",
            says=r"is an adapter to .*mine.pth with sha256 \w{12}…, and .*mine.pth has \w{12}…")
    (tmp_path / "mine.pth").unlink()
    refused("--resume", "auto",
            says=r"is an adapter to .*mine.pth, which is not at .*pass its place with --finetune")
    code, out, err = start("--task", "r", "--resume", "auto", "--finetune", base)
    assert code == 0 and "resumed at epoch 1" in out and "--finetune does nothing" not in out, err


def test_what_can_not_be_adapted_is_refused_in_one_line(start, base, monkeypatch):
    needs_package("peft")
    for words, says in (
        (
            ["--finetune", base, "--train_last_blocks", 2],
            "--train_last_blocks and --adaptation lora each say",
        ),
        (["--finetune", base, "--allow_partial"], "would never train them"),
        ([], "adapts pre-trained weights and there are none: name them with --finetune"),
        (["--finetune", base, "--lora_rank", 100], "--lora_rank 100 is above 64"),
        (
            ["--finetune", base, "--lora_targets", "("],
            "argument --lora_targets: '(' is no regular expression",
        ),
        (["--finetune", base, "--lora_targets", "nothing"], "test_vit has no such layers"),
    ):
        code, _, err = start("--task", "x", *LORA, *words)
        assert code == 2 and err.count("\n") == 1 and says in err, (words, err)
    code, out, _ = start("--task", "x", "--lora_rank", 3, "--dry_run")
    assert code == 0 and "--lora_rank does nothing without --adaptation lora" in out
    code, out, err = start("--task", "x", *LORA, "--finetune", base, "--dry_run", "--batch_size", 256)
    assert code == 0 and "9,411 of them trained" in out and "memory     about" in out, err
    monkeypatch.setitem(sys.modules, "peft", None)
    code, _, err = start("--task", "x", *LORA, "--finetune", base)
    assert code == 2 and err == ("error: --adaptation lora needs PEFT, which is not installed: pip install "
                                 "-r requirements-lora.txt\n")


def test_without_checkpoints_and_again_in_the_same_folder(start, tmp_path, base):
    needs_package("peft")
    assert start("--task", "n", *LORA, "--finetune", base)[0] == 0
    scored = (tmp_path / "output_dir/n/predictions_test.csv").read_bytes()
    code, out, err = start("--task", "n", *LORA, "--finetune", base, "--no_savemodel")
    assert code == 0 and "it now stands in" in out, err
    folder = tmp_path / "output_dir/n"
    assert not list(folder.glob("checkpoint-*")) and not (folder / "adapter").exists()
    assert {"adapter", "checkpoint-adapter.pth",
            "checkpoint-best.pth"} <= {path.name for path in folder.glob("earlier-1/*")}
    assert (folder / "predictions_test.csv").read_bytes() == scored


def test_dinov3_in_metas_format(start, tmp_path):
    """Its attention goes past the layer that is adapted, and its rotary periods are in no state dict."""
    needs_package("peft")
    weights = parity.weight_file(tmp_path / "dinov3_vits16_pretrain.pth", "dinov3_vits16", periods="bf16")
    code, out, err = start("--model", "Dinov3", "--model_arch", "dinov3_vits16", *LORA, "--finetune", weights,
                           "--task", "d", "--epochs", 1, "--batch_size", 24)
    assert code == 0 and "on 24 layers (attention)" in out, err
    folder = tmp_path / "output_dir/d"
    adapter = content_of(folder / "checkpoint-adapter.pth")["model"]
    learned = [name for name, tensor in adapter.items() if "lora_B" in name and tensor.any()]
    assert len(learned) == 24
    scored = read_predictions(folder / "predictions_test.csv")
    assert start("--model", "Dinov3", "--model_arch", "dinov3_vits16", "--task", "d", "--eval", "--resume",
                 "auto")[0] == 0
    again = read_predictions(folder / "predictions_test.csv")
    logits = [name for name in scored if name.startswith("logit_")]
    # weights of equal bits at another place in memory: on some CPUs a product ends one unit of fp32 beside
    np.testing.assert_allclose(again[logits], scored[logits], rtol=0, atol=1e-6)
    assert list(again["path"]) == list(scored["path"]) and again[logits].abs().max().max() > 1e-2


def test_two_processes_train_adapters_and_last_blocks_like_one(start, base, pictures, tmp_path):
    needs_package("peft")
    words = [word for word in SMALL if word not in ("--batch_size", "8")]
    words += ["--drop_path", 0, "--finetune", base]
    packages = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    for part, how in (("lora", LORA), ("last", ["--train_last_blocks", "2"])):
        assert start(*words, *how, "--batch_size", 8, "--task", f"{part}1")[0] == 0
        run = start_process(*words, *how, "--data_path", pictures, "--batch_size", 4, "--task", f"{part}2",
                            folder=tmp_path, processes=2, OMP_NUM_THREADS="1", PYTHONPATH=packages)
        assert run.returncode == 0, run.stderr
        one, two = (
            [
                json.loads(line)
                for line in (tmp_path / f"output_dir/{part}{n}/log.txt").read_text().splitlines()
            ]
            for n in (1, 2)
        )
        for a, b in zip(one, two, strict=True):
            assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
            assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-4)
        a, b = (weights_of(tmp_path / f"output_dir/{part}{n}/checkpoint-last.pth") for n in (1, 2))
        assert a.keys() == b.keys() and max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-3


def test_a_regression_and_its_search_train_adapters(predict, tmp_path, base):  # noqa: F811
    needs_package("peft")
    words = (*LORA, "--finetune", base, "--epochs", 1)
    code, out, err = predict("--task", "r", *words, "--covariates", "eye")
    assert code == 0 and "adapters   LoRA of rank 4" in out, err
    folder = tmp_path / "output_dir/r"
    scored = (folder / "predictions_test.csv").read_bytes()
    assert predict("--task", "r", "--eval", "--resume", "auto")[0] == 0
    assert (folder / "predictions_test.csv").read_bytes() == scored
    after, before = weights_of(folder / "checkpoint-best.pth"), torch.load(base, weights_only=True)
    moved = {name for name in before if not torch.equal(before[name], after[f"backbone.{name}"])}
    assert moved == ATTENTION
    assert predict("--task", "r", "--eval", "--resume", folder / "checkpoint-adapter.pth")[0] == 0
    rows = pd.read_csv(folder / "metrics_test.csv")
    # whole twice, then the adapter on its base weights
    assert len(rows) == 3 and rows["val_loss"].std() < 1e-6

    code, out, err = predict("--task", "s", *words, "--optuna_trials", 2, "--optuna_epochs", 1)
    assert code == 0 and "layer_decay is not proposed" in out and "2 trials (2 complete)" in out, err
    params = json.loads((tmp_path / "output_dir/s/optuna_best.json").read_text())["params"]
    assert "layer_decay" not in params and "drop_path" in params


def test_adapters_of_a_classification_with_covariates(start, tmp_path, base, pictures):
    """Its checkpoint is scored as it was, whole or as the adapter alone, and gives features."""
    needs_package("peft")
    rows = ["path,label,split,age"] + [f"{path},{path.parts[-2]},{path.parts[-3]},{30 + number % 40}"
                                       for number, path in enumerate(sorted(pictures.glob("*/*/*.png")))]
    (tmp_path / "c.csv").write_text("\n".join(rows) + "\n")
    words = (*LORA, "--finetune", base, "--csv_file", "c.csv", "--covariates", "age")
    code, out, err = start("--task", "c", "--epochs", 2, *words, data=None)
    assert code == 0 and "adapters   LoRA of rank 4" in out, err
    folder = tmp_path / "output_dir/c"
    scored = (folder / "predictions_test.csv").read_bytes()
    for name in ("checkpoint-best.pth", "checkpoint-adapter.pth"):
        code, _, err = start("--task", "c", "--eval", "--resume", folder / name, data=None)
        assert code == 0, err
    rows = pd.read_csv(folder / "metrics_test.csv")
    assert len(rows) == 3 and rows["val_loss"].std() < 1e-6
    assert start("--task", "c", "--eval", "--resume", "auto", data=None)[0] == 0
    assert (folder / "predictions_test.csv").read_bytes() == scored
    after, before = weights_of(folder / "checkpoint-best.pth"), torch.load(base, weights_only=True)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name.removeprefix("backbone.") for name in ATTENTION}
    code, out, err = start("--task", "c", "--epochs", 3, "--resume", "auto", *words, data=None)
    assert code == 0 and "resumed at epoch 2" in out, err
    import latent_feature
    assert latent_feature.main(["--resume", str(folder / "checkpoint-adapter.pth"), "--input", str(pictures),
                                "--output", "f.npz", "--device", "cpu", "--num_workers", "0"]) == 0


@pytest.mark.parametrize("arch", ["test_vit", "resnet18"])
def test_blocks_before_the_last_stay_as_they_are(start, tmp_path, base, arch):
    """To the bit, batch norm's statistics too; the last ones and what follows them move."""
    weights = base
    if arch == "resnet18":
        torch.save(timm.create_model("resnet18", num_classes=0).state_dict(),
                   weights := tmp_path / "resnet.pth")
    code, out, err = start("--model_arch", arch, "--finetune", weights, "--train_last_blocks", 2, "--task",
                           "t", "--epochs", 1)
    assert (
        code == 0
        and "the last 2 blocks and what follows them are trained" in out
        and "of them trained" in out
    ), err
    before, after = torch.load(weights,
                               weights_only=True), weights_of(tmp_path / "output_dir/t/checkpoint-last.pth")
    moved = {".".join(name.split(".")[:2]) for name, tensor in after.items()
             if name not in before or not torch.equal(before[name], tensor)}
    assert moved == ({"blocks.4", "blocks.5", "norm.weight", "norm.bias", "head.weight", "head.bias"}
                     if arch == "test_vit" else
                     {"layer4.0", "layer4.1", "fc.weight", "fc.bias"})
    state = content_of(tmp_path / "output_dir/t/checkpoint-last.pth")["optimizer"]["param_groups"]
    assert {".".join(name.split(".")[:2]) for group in state for name in group["names"]} == moved
    for words, says in ((["--adaptation", "lp"], "--train_last_blocks and --adaptation lp each say"),
                        (["--train_last_blocks", 99], f"but {arch} has")):
        code, _, err = start("--model_arch", arch, "--finetune", weights, "--train_last_blocks", 2, "--task",
                             "u", *words)
        assert code == 2 and err.count("\n") == 1 and says in err, err
    code, _, err = start("--model_arch", arch, "--train_last_blocks", 1, "--resume", "auto", "--task", "t",
                         "--epochs", 2)
    assert (
        code == 2
        and "was trained with other parameters or groups of them (--adaptation, --train_last_blocks" in err
    )
