"""Every vision transformer of the table in shards; the largest one's probe, cut to two blocks, and its
checkpoint."""

import pytest
import torch

from models_vit import BACKBONES
from tests import parity
from tests.conftest import ROOT, start_process, weights_of
from util.metrics.predictions import read_predictions


@pytest.mark.slow
def test_every_backbone_is_sharded_filled_from_a_file_and_stepped(tmp_path):
    run = start_process(tmp_path, folder=tmp_path, processes=2, program="tests/shard_backbones.py",
                        OMP_NUM_THREADS="1")
    assert run.returncode == 0, run.stderr
    done = [line.split()[1] for line in run.stdout.splitlines() if line.startswith(("ok ", "shapes "))]
    assert done == [row.arch for row in BACKBONES]
    assert run.stdout.count("ok ") == len(BACKBONES) - 1


CUT = """
import functools, sys
sys.path.insert(0, {root!r})
import models_vit, main_finetune
models_vit.build_model = functools.partial(models_vit.build_model, depth=2)
from util.core.ending import exit_with
exit_with(main_finetune.main())
"""


@pytest.mark.slow
def test_the_largest_models_probe_in_bf16(pictures, tmp_path):
    """dinov3_vit7b16 at its full width of 4096, two of its 40 blocks: 0.34 thousand million parameters, from
    a file of Meta's form, streamed into two processes."""
    (tmp_path / "cut.py").write_text(CUT.format(root=str(ROOT)))
    path = parity.weight_file(tmp_path / "dinov3_vit7b16_pretrain.pth", "dinov3_vit7b16", depth=2)
    words = ["--model", "Dinov3", "--model_arch", "dinov3_vit7b16", "--finetune", path, "--input_size", 32,
             "--nb_classes", 3,
             "--batch_size", 8, "--epochs", 2, "--adaptation", "lp", "--precision", "bf16", "--parallel",
             "fsdp", "--device",
             "cpu", "--num_workers", 0, "--data_path", pictures, "--task", "probe"]
    run = start_process(*words, folder=tmp_path, processes=2, program=str(tmp_path / "cut.py"),
                        OMP_NUM_THREADS="1", timeout=600)
    assert run.returncode == 0, run.stderr
    assert "12,291 of them trained" in run.stdout and "each process built the whole model" not in run.stdout
    folder = tmp_path / "output_dir/probe"
    table = read_predictions(folder / "predictions_test.csv")
    assert len(table) == 25 and table[[name for name in table
                                       if name.startswith("logit_")]].notna().all().all()
    best, source = weights_of(folder / "checkpoint-best.pth"), torch.load(path, weights_only=True, mmap=True)
    assert torch.equal(best["blocks.1.mlp.fc2.weight"], source["blocks.1.mlp.w3.weight"])
    assert best["head.weight"].shape == (3, 4096) and best["head.weight"].any()
