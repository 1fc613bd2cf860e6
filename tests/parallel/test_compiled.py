"""How many graphs --compile makes, and that images which fill a batch up change nothing."""

import copy
import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

import models_vit
from engine_finetune import (
    ClassificationLoss,
    Progress,
    Schedule,
    Trainer,
    outputs,
    train_one_epoch,
)
from tests.test_engine_finetune import FP32, loader_of
from util.data.loader import make_loader
from util.data.sampling import EvalBatches, StepPlan
from util.parallel import compiled
from util.parallel.processes import World
from util.parallel.sharding import shard


class Images(torch.utils.data.Dataset):
    covariates = None

    def __init__(self, number):
        self.values = torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        return self.values[key[1]], key[1] % 3, key[1]


@pytest.fixture
def counted(monkeypatch):
    """Graphs are counted, and run as they are, not through a C++ compiler."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(plain, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trainer_of(model, size, batch_size):
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=1e-3, fused=True)
    return Trainer(model, ClassificationLoss(3), optimizer, FP32.scaler(), Schedule(1e-3, 1e-4, 0, 5),
                   StepPlan(size, batch_size, 1, 1), FP32, World(), seed=0)


def evaluated(model, images):
    batches = make_loader(images, EvalBatches(len(images), 4, 0, 1), 0, False)
    return outputs(model, batches, FP32, World(), "val")


@pytest.mark.parametrize("sharded", [False, True])
def test_one_graph_for_training_and_one_for_evaluation(sharded, counted, group):
    """Three epochs of batches of 4 and 3, evaluations of 4, 4 and 2, six blocks of six drop path rates."""
    torch.manual_seed(0)
    backbone = models_vit.find_backbone("timm", "test_vit")
    model = models_vit.build_model(backbone, 3, 32, drop_path=0.3, pretrained=False)
    alone = copy.deepcopy(model)
    if sharded:
        shard(model, World())
    compiled.compile_in_place(model, torch.device("cpu"))
    images = Images(10)
    np.testing.assert_allclose(evaluated(model, images), evaluated(alone, images), atol=1e-5)
    assert counted() == 1
    trainer = trainer_of(model, 11, 4)
    for epoch in range(3):
        train_one_epoch(trainer, loader_of(trainer, Images(11)), Progress(epoch))
        evaluated(model, images)
    assert counted() == 2


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet"])
def test_what_fills_a_batch_up_changes_nothing(arch):
    """Weights after an epoch of batches of 4 and 3, filled up and not; batch norm would count each image."""
    backbone = models_vit.find_backbone("timm", arch)
    ends = []
    for fills in (False, True):
        torch.manual_seed(0)
        model = models_vit.build_model(backbone, 3, 32, pretrained=False)
        if fills:
            model.is_compiled = True
        trainer = trainer_of(model, 11, 4)
        train_one_epoch(trainer, loader_of(trainer, Images(11)), Progress(0))
        ends.append(model.state_dict())
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=2e-5)


def test_a_rate_in_a_tensor_drops_as_often():
    torch.manual_seed(0)
    drop = compiled.TensorDropPath(0.3, torch.device("cpu"))
    out = drop(torch.ones(20000, 2, 3))
    kept = out[:, 0, 0] > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.015)
    assert torch.equal(out, out[:, :1, :1].expand_as(out)) and out.max().item() == pytest.approx(1 / 0.7)
    assert torch.equal(drop.eval()(out), out)
