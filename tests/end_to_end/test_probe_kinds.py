"""A probe whose head reads more than the model's own: its checkpoint in every program that reads one."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import latent_feature
import predict
from jobs import linear_probe
from jobs import loaders as features
from tests.conftest import weights_of
from util.core.ending import exit_code_of
from util.metrics.predictions import read_predictions
from util.options.adaptation import ATTENTIVE, KINDS

PROBE = ("--adaptation", "lp", "--epochs", 4, "--task", "p")
HERE = ("--device", "cpu", "--num_workers", "0", "--precision", "fp32")
# of test_vit, 64 wide, whose own head reads the class token
WIDTHS = {"cls_mean": 128, "last4": 320, ATTENTIVE: 64}


@pytest.fixture
def probed(start, monkeypatch, tmp_path):
    """probed(kind, *words) runs a probe whose best head reads that kind -> (stdout, its folder)."""
    def run(kind, *words):
        def of_kind(scored):
            return max((one for one in scored if one.kind == kind), key=lambda one: one.rank)

        monkeypatch.setattr(linear_probe, "choose", of_kind)
        code, out, err = start(*PROBE, *words)
        assert code == 0, err
        return out, tmp_path / "output_dir/p"

    return run


def logits_of(table: pd.DataFrame) -> np.ndarray:
    return table[[name for name in table if name.startswith("logit_")]].to_numpy()


def run_program(program, *words) -> None:
    assert exit_code_of(program.main, [*map(str, words), *HERE]) == 0


@pytest.mark.parametrize("kind", WIDTHS)
def test_every_program_reads_it(probed, start, pictures, tmp_path, kind, capsys):
    out, folder = probed(kind)
    assert f"best on val: {kind}, " in out
    best = folder / "checkpoint-best.pth"
    stored = torch.load(best, weights_only=True)
    assert stored["reads"] == {"kind": kind, "width": WIDTHS[kind]} and "head" not in stored["best"]
    of_head = {name: tuple(tensor.shape) for name, tensor in stored["model"].items()
               if name.startswith("head.")}
    query = {"head.query": (64,)} if kind == ATTENTIVE else {}
    assert of_head == {"head.weight": (3, WIDTHS[kind]), "head.bias": (3,)} | query
    assert (
        stored["model"].keys() - query.keys()
        == timm.create_model("test_vit", num_classes=3).state_dict().keys()
    )

    # the whole model on images says what the head said on stored features (tokens are stored in float16)
    scored = read_predictions(folder / "predictions_test.csv")
    near = {"rtol": 2e-3, "atol": 2e-3} if kind == ATTENTIVE else {"rtol": 1e-4, "atol": 1e-4}
    code, out, err = start("--task", "p", "--eval", "--resume", "auto")
    assert code == 0 and f"reads the {KINDS[kind]}" in out, err
    again = logits_of(read_predictions(folder / "predictions_test.csv"))
    np.testing.assert_allclose(again, logits_of(scored), **near)
    assert np.ptp(again, axis=0).min() > 0.05

    run_program(predict, "--resume", best, "--input", pictures / "test", "--output", "p.csv", "--heatmaps",
                "maps")
    assert f"its head reads the {KINDS[kind]}" in capsys.readouterr().out
    table = pd.read_csv("p.csv")
    np.testing.assert_allclose(logits_of(table), again, rtol=1e-5, atol=1e-5)
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(table)

    run_program(latent_feature, "--resume", best, "--input", pictures / "test", "--output", "f.npz")
    assert f"the checkpoint's head reads the {KINDS[kind]}" in capsys.readouterr().out
    found = np.load("f.npz")
    assert found["pooled"].shape == (len(table), 64)
    if kind == "cls_mean":
        head = {name: tensor.numpy() for name, tensor in stored["model"].items() if name.startswith("head.")}
        side_by_side = np.concatenate([found["cls"], found["patch_mean"]], axis=1)
        np.testing.assert_allclose(side_by_side @ head["head.weight"].T + head["head.bias"], again, **near)

    code, out, err = start("--task", "next", "--epochs", 1, "--finetune", best)
    assert code == 0 and f"not needed: head {len(of_head)}" in out, err
    assert weights_of(tmp_path / "output_dir/next/checkpoint-best.pth")["head.weight"].shape == (3, 64)


def test_a_start_again_and_more_epochs(probed, start, tmp_path):
    _, folder = probed("last4")
    code, out, err = start(*PROBE, "--resume", "same")
    assert code == 0 and "this run is complete" in out, err
    first = (folder / "predictions_test.csv").read_bytes()
    (folder / "metrics_test.csv").unlink()
    code, out, err = start(*PROBE, "--resume", "same")  # it was cut before test was scored
    assert code == 0 and (folder / "predictions_test.csv").read_bytes() == first, err
    code, out, err = start("--adaptation", "lp", "--task", "p", "--epochs", 6, "--resume", "auto")
    assert code == 0 and "trained for 6 epochs" in out and "0 images computed" in out, err
    assert torch.load(folder / "checkpoint-best.pth", weights_only=True)["reads"]["kind"] == "last4"
    code, out, err = start("--task", "p", "--epochs", 9, "--resume", "auto", "--adaptation", "finetune")
    assert code == 2 and "was trained with other parameters" in err and err.count("\n") == 1


def test_a_cnn_attends_to_the_places_of_its_last_map(probed, start, pictures, tmp_path):
    out, folder = probed(ATTENTIVE, "--model_arch", "resnet18", "--input_size", 64)
    assert "on each of 1 kind of features" in out
    assert "cls" not in out.split("probe      ")[1].split("best on val")[0]
    stored = torch.load(folder / "checkpoint-best.pth", weights_only=True)
    assert stored["model"]["fc.query"].shape == (512,)
    first = logits_of(read_predictions(folder / "predictions_test.csv"))
    code, out, err = start("--task", "p", "--eval", "--resume", "auto", "--model_arch", "resnet18",
                           "--input_size", 64)
    assert code == 0, err
    np.testing.assert_allclose(logits_of(read_predictions(folder / "predictions_test.csv")), first, rtol=5e-3,
                               atol=5e-3)
    run_program(predict, "--resume", folder / "checkpoint-best.pth", "--input", pictures / "test", "--output",
                "p.csv", "--heatmaps", "maps")
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(pd.read_csv("p.csv"))


def test_what_is_tried_is_said_and_listed(start, tmp_path):
    code, out, err = start(*PROBE)
    assert code == 0, err
    heads = pd.read_csv(tmp_path / "output_dir/p/probe_heads.csv")
    assert list(heads["reads"].unique()) == ["pooled", "cls_mean", "last4", ATTENTIVE]
    assert "probe      130 heads: 42 on each of 3 kinds of features" in out and "and 4 attentive ones" in out
    for kind, width in {"pooled": 64, "cls_mean": 128, "last4": 320}.items():
        assert f"{kind:<10} {KINDS[kind]}, width {width}" in out
    assert heads["chosen"].sum() == 1
    kept = sorted(path.name for path in (tmp_path / "output_dir/.features").iterdir())
    assert len(kept) == 6 and sum(name.endswith(".tokens.npy") for name in kept) == 3


def test_without_room_for_tokens_there_is_no_attentive_head(start, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "MOST_TOKEN_BYTES", 2**10)
    code, out, err = start(*PROBE)
    assert code == 0 and "more than 0.0 MiB: no attentive head is tried" in out, err
    assert "126 heads: 42 on each of 3 kinds" in out and not list(
        (tmp_path / "output_dir/.features").glob("*.tokens.npy")
    )
    monkeypatch.setattr(features, "MOST_TOKEN_BYTES", 2**30)
    monkeypatch.setattr(features, "FREE_SHARE", 1e-12)
    code, out, err = start(*PROBE)
    assert (
        code == 0 and "leaves free in output_dir: no attentive head is tried" in out and "87 found" in out
    ), err
    monkeypatch.undo()


def test_tokens_that_are_gone_or_damaged_are_computed_again(start, tmp_path):
    assert start(*PROBE)[0] == 0
    first = (tmp_path / "output_dir/p/probe_heads.csv").read_bytes()
    one, other, _ = sorted((tmp_path / "output_dir/.features").glob("*.tokens.npy"))
    one.unlink()
    other.write_bytes(b"cut")
    code, out, err = start(*PROBE)
    assert code == 0 and "0 found" not in out and "0 images computed" not in out, err
    assert (tmp_path / "output_dir/p/probe_heads.csv").read_bytes() == first


def test_views_and_a_stranger_entry(probed, start, pictures, tmp_path):
    out, folder = probed(ATTENTIVE, "--lp_views", 2)
    assert f"{2 * 43 + 44} images computed" in out
    best = folder / "checkpoint-best.pth"
    stored = torch.load(best, weights_only=True)
    for reads in ({"kind": "nose", "width": 64}, {"kind": "last4"}, {"kind": "last4", "width": 0}, "last4",
                  ["last4", 64]):
        torch.save(stored | {"reads": reads}, best)
        code, out, err = start("--task", "p", "--eval", "--resume", "auto")
        assert code == 2 and "its entry 'reads' is" in err and err.count("\n") == 1
    # another kind than its tensors are of
    torch.save(stored | {"reads": {"kind": "last4", "width": 320}}, best)
    code, out, err = start("--task", "p", "--eval", "--resume", "auto")
    assert code == 2 and "head.query" in err and err.count("\n") == 1
    torch.save({name: value for name, value in stored.items() if name != "reads"}, best)
    code, out, err = start("--task", "p", "--eval", "--resume", "auto")
    assert code == 2 and "head.query" in err
    assert json.loads((folder / "metrics_val.json").read_text())
