"""jobs/data.py: by which numbers images are normalised, and that every program says whose they
are."""

import json
import types

import pytest

import latent_feature
import models_vit
import predict
from jobs.data import evaluation_settings
from jobs.data import normalisation_source as source
from tests.jobs.test_data import DEEP, STORED
from util.core.ending import exit_code_of
from util.core.errors import InputError
from util.options.flag import FINETUNE
from util.options.parsing import parse

TAG = "timm/vit_base_patch16_224.mae"  # ImageNet's numbers; the name's default tag has 0.5


def both(*words, model="vit_base_patch16_224", rest=None):
    """(mean of evaluation's transform, its source) of a command line and a checkpoint's entries."""
    options = parse(FINETUNE, "", [str(word) for word in words]).having(input_size=64, decode="full")
    backbone = models_vit.find_backbone("timm" if "dino" not in model else "Dinov2", model)
    file = types.SimpleNamespace(rest=rest) if rest else None
    return evaluation_settings(options, backbone, file, DEEP[:0])["mean"][0], source(
        options, backbone, rest or {}
    )


@pytest.mark.parametrize(
    ("words", "model", "mean", "of"),
    [
        (
            ("--finetune", f"hf:{TAG}/model.safetensors"),
            "vit_base_patch16_224",
            0.485,
            "timm's constants of vit_base_patch16_224.mae",
        ),
        (
            ("--finetune", f"hf:{TAG}"),
            "vit_base_patch16_224",
            0.485,
            "timm's constants of vit_base_patch16_224.mae",
        ),
        (
            ("--finetune", "hf:timm/vit_base_patch16_224.augreg_in1k/model.safetensors"),
            "vit_base_patch16_224.mae",
            0.5,
            "timm's constants of vit_base_patch16_224.augreg_in1k",
        ),  # the weights' tag, not the architecture's
        ((), "vit_base_patch16_224.mae", 0.485, "timm's constants of vit_base_patch16_224.mae"),
        (
            (),
            "vit_base_patch16_224",
            0.5,
            "timm's constants of vit_base_patch16_224.augreg2_in21k_ft_in1k, its default tag",
        ),
        (
            ("--finetune", "weights/vit_base_patch16_224.mae.safetensors"),
            "vit_base_patch16_224",
            0.5,
            "timm's constants of vit_base_patch16_224.augreg2_in21k_ft_in1k, its default tag",
        ),
        (
            ("--finetune", "hf:timm/vit_base_patch16_224.unheard/x"),
            "vit_base_patch16_224",
            0.5,
            "timm's constants of vit_base_patch16_224.augreg2_in21k_ft_in1k, its default tag",
        ),
        (
            ("--finetune", "hf:someone/vit_base_patch16_224.mae/x"),
            "vit_base_patch16_224",
            0.5,
            "timm's constants of vit_base_patch16_224.augreg2_in21k_ft_in1k, its default tag",
        ),
        (("--finetune", f"hf:{TAG}", "--norm", "half"), "vit_base_patch16_224", 0.5, "0.5 throughout"),
        (("--norm", "imagenet"), "vit_base_patch16_224", 0.485, "ImageNet's"),
        (("--norm", "0.25,0,0,1,1,2"), "vit_base_patch16_224", 0.25, "typed"),
        ((), "dinov2_vits14", 0.485, "ImageNet's, by which dinov2_vits14 was trained"),
    ],
)
def test_the_weights_tag_decides_and_the_source_is_said(words, model, mean, of):
    assert both(*words, model=model) == (mean, of)


def test_a_checkpoint_keeps_its_numbers_and_says_whose_they_are():
    def stored(mean, std, **options):
        return {"transform": {"eval": STORED | {"mean": [mean] * 3, "std": [std] * 3}}, "options": options}

    assert both(rest=stored(0.1, 0.2)) == (0.1, "the checkpoint's")
    default = "timm's constants of vit_base_patch16_224.augreg2_in21k_ft_in1k, its default tag"
    assert both(rest=stored(0.5, 0.5)) == (0.5, f"the checkpoint's, {default}")
    before = stored(0.5, 0.5, norm="backbone", finetune=f"hf:{TAG}/x")  # trained when the tag did not count
    assert both(rest=before) == (0.5, "the checkpoint's")
    assert both("--norm", "backbone", rest=before) == (0.485, "timm's constants of vit_base_patch16_224.mae")
    assert both("--norm", "imagenet", rest=before) == (0.485, "ImageNet's")


def test_a_tag_that_timm_has_not_is_refused_with_those_it_has():
    with pytest.raises(InputError, match=r"has no tag unheard of .*vit_base_patch16_224\.mae"):
        models_vit.find_backbone("timm", "vit_base_patch16_224.unheard")


def test_every_program_says_it_and_run_json_and_the_report_keep_it(start, tmp_path, pictures, capsys):
    code, out, err = start("--output_dir", "out", "--task", "t", "--epochs", 1)
    of_timm = "timm's constants of test_vit.r160_in1k, its default tag"
    numbers = "mean 0.5 0.5 0.5, standard deviation 0.5 0.5 0.5"
    assert code == 0 and f"normalised by {numbers} (--norm backbone: {of_timm})" in out, err
    facts = json.loads((tmp_path / "out/t/run.json").read_text())
    assert facts["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3, "source": of_timm}
    page = (tmp_path / "out/t/report.html").read_text().replace("&#x27;", "'").replace("&#39;", "'")
    assert f"<dt>Normalisation</dt><dd>{numbers} ({of_timm})</dd>" in page
    checkpoint = ("--resume", "out/t/checkpoint-best.pth")
    words = ("--input", str(pictures / "test"), "--num_workers", "0", "--device", "cpu")
    code, out, err = start("--output_dir", "out", "--task", "t", "--eval", *checkpoint)
    assert code == 0 and f"(--norm backbone: the checkpoint's, {of_timm})" in out, err
    for main, output, more in ((predict.main, "p.csv", ("--heatmaps", "maps")),
                               (latent_feature.main, "f.npz", ())):
        capsys.readouterr()
        code, said = exit_code_of(main,
                                  [*checkpoint, *words, "--output", output, *more]), capsys.readouterr().out
        assert code == 0 and f"normalised by {numbers} (--norm backbone: the checkpoint's, {of_timm})" in said
