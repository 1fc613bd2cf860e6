"""util/study/grid_file.py: what a study's file means, and what it may not say."""

from pathlib import Path

import pytest

from util.core.errors import InputError
from util.study.grid_file import read_grid

GRID = """\
name: study
flags: {data_path: images, nb_classes: 3, lr: 1e-3}
backbones:
  - small: {model: timm, model_arch: test_vit}
  - --model timm --model_arch test_resnet
"""


@pytest.fixture
def grid(tmp_path):
    def read(text):
        path = tmp_path / "grid.yaml"
        path.write_text(text, encoding="utf-8")
        return read_grid(str(path))
    return read


def refusal(grid, text) -> str:
    with pytest.raises(InputError) as caught:
        grid(text)
    return str(caught.value)


WITH_ALL = """\
name: study
output_dir: results
flags: {data_path: images, nb_classes: 3, lr: 1e-3, savemodel: false, stratified: no, crop_scale: [0.5, 1], finetune: ""}
backbones:
  small: {model: timm, model_arch: test_vit}
  other: --model timm --model_arch test_resnet --crop_scale 0.2 1
adaptations:
  - finetune
  - lp: {batch_size: 128, lr: 2e-3}
dataratios: [0.5, 1]
seeds: [0, 7]
"""


def test_every_combination_is_a_run(grid):
    found = grid(WITH_ALL)
    assert found.folder == Path("results/study") and found.program == "main_finetune.py"
    names = [cell.name for cell in found.cells]
    assert len(names) == len(set(names)) == 16
    assert names[:3] == ["small_finetune_ratio0.5_seed0", "small_finetune_ratio0.5_seed7",
                         "small_finetune_ratio1_seed0"]
    by_name = {cell.name: cell for cell in found.cells}
    cell = by_name["other_lp_ratio0.5_seed7"]
    options = cell.options
    assert (options.model.model_arch, options.model.adaptation) == ("test_resnet", "lp")
    assert (options.data.dataratio, options.run.seed) == ([0.5], 7)
    assert (options.training.lr, options.training.batch_size) == (2e-3, 128), (
        "an adaptation's flags win over those of all"
    )
    other = by_name["small_lp_ratio0.5_seed7"].options
    assert options.images.crop_scale == [0.2, 1.0] and other.images.crop_scale == [0.5, 1.0]
    assert (options.run.savemodel, options.data.stratified, options.model.finetune) == (False, False, "")
    assert cell.folder == Path("results/study/other_lp_ratio0.5_seed7")
    assert cell.arguments[-4:] == ("--output_dir", "results", "--task", "study/other_lp_ratio0.5_seed7")
    assert cell.group == by_name["other_lp_ratio0.5_seed0"].group == "other lp ratio0.5"


def test_axes_that_are_not_given(grid):
    found = grid("name: s\nbackbones: [{model: timm, model_arch: test_vit}, {model: timm, model_arch: "
                 "a/b.c}]\n")
    assert [cell.name for cell in found.cells] == ["test_vit_finetune_ratio1_seed0",
                                                   "a-b.c_finetune_ratio1_seed0"]
    assert [cell.group for cell in found.cells] == ["test_vit", "a-b.c"]


def test_a_regression(grid):
    found = grid("name: s\nprogram: main_regression.py\nflags: {csv_file: d.csv, targets: [tc, ldl]}\n"
                 "backbones: [{model: RETFound_dinov2}]\nseeds: [1]\n")
    (cell,) = found.cells
    assert cell.options.data.targets == ["tc", "ldl"] and cell.name == "RETFound_dinov2_finetune_ratio1_seed1"


def test_the_example_is_understood():
    found = read_grid(str(Path(__file__).parents[2] / "examples" / "grid.yaml"))
    assert len(found.cells) == 3 * 2 * 3 * 3
    models = {cell.options.model.model_arch or cell.options.model.model for cell in found.cells}
    assert models == {"RETFound_dinov2", "RETFound_mae", "dinov3_vitl16"}


@pytest.mark.parametrize(
    "change, line, said",
    [
        (("seeds: [0]", "seed: [0]"), 6, "(seed): unknown; did you mean seeds?"),
        (("lr: 1e-3", "learn_rate: 1e-3"), 2, "(learn_rate): unknown flag"),
        (("lr: 1e-3", "batchsize: 4"), 2, "did you mean batch_size?"),
        (("lr: 1e-3", "lr: fast"), 2, "(lr): argument --lr: 'fast' is no number"),
        (("lr: 1e-3", "epochs: 2.5"), 2, "(epochs): argument --epochs: '2.5' is no whole number"),
        (("lr: 1e-3", "lr:"), 2, "(lr): has no value"),
        (("lr: 1e-3", "lr: [1e-3, 1e-4]"), 2, "(lr): takes one value, not a list"),
        (("lr: 1e-3", "lr: true"), 2, "(lr): takes a value, not true"),
        (("lr: 1e-3", "lr: 1e-3, lr: 1e-4"), 2, "(lr): stands there twice"),
        (("lr: 1e-3", "stratified: 3"), 2, "(stratified): is a switch: true or false"),
        (("lr: 1e-3", "seed: 3"), 2, "(seed): the grid's own key seeds says it"),
        (("lr: 1e-3", "resume: x.pth"), 2, "(resume): the study decides it itself"),
        (("lr: 1e-3", "csv_file: x.csv"), 2, "--data_path and --csv_file both name the images"),
        (("test_resnet", "test_resnet --lrr 3"), 5, "unknown flag --lrr; did you mean lr?"),
        (("test_resnet", "test_resnet --task x"), 5, "(task): the grid's own key name says it"),
        (
            ("- --model timm --model_arch test_resnet", "- {model: timm, model_arch: test_vit}"),
            5,
            "are the same run",
        ),
        (("- --model timm", "- small: --model timm"), 5, "small stands there twice"),
        (("seeds: [0]", "seeds: [0, 1, 0]"), 6, "(seeds): seed0 stands there twice"),
        (("seeds: [0]", "seeds: 3"), 6, "(seeds): needs a list"),
        (("seeds: [0]", "seeds: []"), 6, "(seeds): is an empty list"),
        (("seeds: [0]", "seeds: [a]"), 6, "(seeds): 'a' is no whole number"),
        (("seeds: [0]", "seeds: [-1]"), 6, "(seed): argument --seed: -1 is out of range"),
        (("seeds: [0]", "dataratios: [1, 1.0]"), 6, "(dataratios): ratio1 stands there twice"),
        (("seeds: [0]", "dataratios: [1.5]"), 6, "is out of range"),
        (("seeds: [0]", "adaptations: [lpp]"), 6, "(adaptations): lpp is none of finetune, lp"),
        (("seeds: [0]", "program: train.py"), 6, "(program): train.py is none of"),
        (("seeds: [0]", "seeds: [0"), 7, "no YAML"),
        (("name: study", "name: a/b"), 1, "(name): 'a/b' is no name for a folder"),
        (
            ("  - small: {model: timm, model_arch: test_vit}\n", "  - {epochs: 3}\n"),
            4,
            "neither model nor model_arch is given",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else None,
)
def test_what_is_refused(grid, change, line, said):
    text = GRID + "seeds: [0]\n"
    assert change[0] in text
    message = refusal(grid, text.replace(*change))
    assert f"grid.yaml, line {line}" in message and said in message and "\n" not in message


def test_files_that_are_no_grid(grid, tmp_path):
    assert "is empty" in refusal(grid, "# nothing\n")
    assert "needs keys with values" in refusal(grid, "- a\n")
    assert "backbones is not given" in refusal(grid, "name: s\n")
    assert "can't be read" in str(pytest.raises(InputError, read_grid, str(tmp_path / "none.yaml")).value)


def test_a_search_is_no_cell(grid):
    text = ("name: s\nprogram: main_regression.py\nflags: {csv_file: d.csv, optuna_trials: 3}\n"
            "backbones: [{model: RETFound_dinov2}]\n")
    assert "line 3 (optuna_trials): a study trains given settings" in refusal(grid, text)
