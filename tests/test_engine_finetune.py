"""Losses and steps against PyTorch's own and a second way of computing them."""

import copy
import functools
import os
import signal
import time
import types

import numpy as np
import pytest
import timm
import torch

import engine_finetune
from engine_finetune import (
    READ_EVERY,
    ClassificationLoss,
    LabelMixing,
    Mixing,
    MultilabelLoss,
    Progress,
    Schedule,
    Trainer,
    balanced_class_weights,
    outputs,
    seed_step,
    train_one_epoch,
)
from util.core import signals
from util.core.errors import RunError
from util.data.loader import loaded, make_loader
from util.data.sampling import EvalBatches, StepPlan, TrainBatches
from util.model.precision import Precision
from util.parallel.processes import World

CPU = torch.device("cpu")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, generator=generator), torch.randint(0, 4, (7,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_pytorchs(batch, smoothing):
    logits, labels = batch
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    assert torch.allclose(ClassificationLoss(4, smoothing)(logits, labels), expected, atol=1e-6)


def test_soft_labels_and_class_weights(batch):
    logits, labels = batch
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    expected = torch.nn.functional.cross_entropy(logits, labels, weight=weights, reduction="none")
    assert torch.allclose(ClassificationLoss(4, 0.0, weights)(logits, labels), expected, atol=1e-6)
    soft = torch.softmax(torch.randn(7, 4), dim=1)
    expected = torch.nn.functional.cross_entropy(logits, soft, reduction="none")
    assert torch.allclose(ClassificationLoss(4)(logits, soft), expected, atol=1e-6)


def test_loss_is_fp32_under_bf16(batch):
    logits, labels = batch
    assert ClassificationLoss(4)(logits.bfloat16(), labels).dtype == torch.float32


def test_balanced_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 2], [50, 30, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights(np.bincount(labels)).numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_mixing_takes_odd_batches(mode, size):
    images, labels = torch.rand(size, 3, 8, 8), torch.arange(size) % 3
    seed_step(0, 0, 0, 0, CPU)
    before = images.clone()
    mixed, soft = Mixing(0.8, 1.0, mode=mode, label_smoothing=0.1, num_classes=3)(images, labels)
    assert mixed.shape == (size, 3, 8, 8) and soft.shape == (size, 3)
    assert torch.allclose(soft.sum(1), torch.ones(size), atol=1e-5)
    assert torch.equal(images, before)  # the loader's tensor is not written to


def test_mixing_equals_timms_on_an_even_batch():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    seed_step(1, 2, 3, 0, CPU)
    mixed, soft = Mixing(0.8, 0.0, label_smoothing=0.1, num_classes=3)(images, labels)
    seed_step(1, 2, 3, 0, CPU)
    theirs = timm.data.Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=3)
    expected, targets = theirs(images.clone(), labels)
    assert torch.equal(mixed, expected) and torch.allclose(soft, targets)


def test_draws_of_a_step_depend_on_where_the_run_stands():
    def draw(*where):
        seed_step(*where, CPU)
        return torch.rand(1).item(), np.random.rand()

    assert draw(0, 1, 2, 0) == draw(0, 1, 2, 0)
    assert len({draw(*where) for where in [(0, 1, 2, 0), (1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0),
                                           (0, 1, 2, 1)]}) == 5


def test_the_devices_generator_gets_the_seed_of_the_cpus(monkeypatch):
    seeds, other = [], torch.device("meta")
    monkeypatch.setattr(torch, "get_device_module", {other: types.SimpleNamespace(manual_seed=seeds.append)}.get)
    seed_step(0, 1, 2, 0, other)
    assert seeds == [torch.initial_seed()]
    seed_step(0, 1, 3, 0, CPU)
    assert seeds != [torch.initial_seed()]


# ---- the loop ----------------------------------------------------------------------------------------------

FP32 = Precision("fp32", "cpu")


class Numbers(torch.utils.data.Dataset):
    """Features as samples; those of `bad` are infinite."""

    covariates = None

    def __init__(self, size, bad=()):
        self.values = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))
        self.values[list(bad)] = torch.inf

    def __len__(self):
        return len(self.values)

    def path(self, position):
        return f"image {position}"

    def __getitem__(self, key):
        return self.values[key[1]], key[1] % 3, key[1]


class DeafAdamW:
    """An optimizer that nobody can tell of a loss that is not finite."""

    def __init__(self, kind, *words, **named):
        self.__dict__["optimizer"] = kind(*words, **named | {"fused": False})

    def __getattr__(self, name):
        return getattr(self.optimizer, name)

    def __setattr__(self, name, value):
        assert name == "found_inf"


def trainer_of(size, batch_size=2, accum_iter=1):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 3)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 1.0}], lr=0.1, fused=True)
    return Trainer(model, ClassificationLoss(3), optimizer, FP32.scaler(), Schedule(0.1, 0.01, 0, 5),
                   StepPlan(size, batch_size, accum_iter, 1), FP32, World(), seed=0)


def loader_of(trainer, dataset):
    return make_loader(dataset, TrainBatches(trainer.plan, 0, 0), 0, False)


@pytest.mark.parametrize("accum_iter", [1, 3])
def test_an_epoch_is_pytorchs_own_adamw_step_by_step(accum_iter):
    dataset = Numbers(61)
    trainer = trainer_of(len(dataset), accum_iter=accum_iter)
    other, losses = copy.deepcopy(trainer.model), []
    optimizer = torch.optim.AdamW(other.parameters(), foreach=False)
    found, done = train_one_epoch(trainer, loader_of(trainer, dataset), Progress(0))

    order = [position for batch in TrainBatches(trainer.plan, 0, 0) for _, position in batch]
    for step in range(trainer.plan.steps):
        rows = order[slice(*trainer.plan.of_step(step))]
        optimizer.param_groups[0]["lr"] = trainer.schedule.at((step + 0.5) / trainer.plan.steps)
        loss = torch.nn.functional.cross_entropy(other(dataset.values[rows]), torch.tensor(rows) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(rows)
    torch.testing.assert_close(trainer.model.weight, other.weight, rtol=1e-5, atol=1e-6)
    assert found["train_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert done == Progress(0, trainer.plan.steps, done.loss) and done.loss / 61 == found["train_loss"]


@pytest.mark.parametrize("keep_every, accum_iter", [(1, 1), (7, 1), (4, 3)])
def test_an_epoch_cut_after_any_kept_step_ends_with_the_same_bits(keep_every, accum_iter):
    dataset = Numbers(61)

    def whole_run(trainer, done, keep=None):
        return train_one_epoch(trainer, loader_of(trainer, dataset), done, keep, keep_every)

    whole = trainer_of(len(dataset), accum_iter=accum_iter)
    kept = []
    figures, end = whole_run(whole, Progress(0), lambda done: kept.append(
        (done, copy.deepcopy(whole.model.state_dict()), copy.deepcopy(whole.optimizer.state_dict()))))
    assert [done.steps for done, _, _ in kept] == list(range(keep_every, whole.plan.steps + 1, keep_every))
    for done, weights, moments in kept:
        again = trainer_of(len(dataset), accum_iter=accum_iter)
        again.model.load_state_dict(weights)
        again.optimizer.load_state_dict(moments)
        assert whole_run(again, done) == (figures, end)
        assert torch.equal(again.model.weight, whole.model.weight)


def test_asked_to_end_it_keeps_the_step_that_it_is_in():
    trainer, kept = trainer_of(61), []
    dataset = Numbers(61)
    plain = dataset.__getitem__

    class Signals(Numbers):
        def __getitem__(self, key):
            if len(seen) == 9:
                os.kill(os.getpid(), signal.SIGUSR1)
            seen.append(key)
            return plain(key)

    seen = []
    with signals.answered(), pytest.raises(signals.StopRequested, match="step 5 of 31"), signals.held():
        train_one_epoch(trainer, loader_of(trainer, Signals(61)), Progress(0), kept.append)
    assert [done.steps for done in kept] == [5]


@pytest.mark.parametrize("heeds", [True, False])  # False: as on MPS
@pytest.mark.parametrize("bad_step", [0, 3, READ_EVERY - 1, READ_EVERY, 2 * READ_EVERY + 4])
def test_the_step_of_a_loss_that_is_not_finite_changes_nothing_nor_do_those_after_it(bad_step, heeds,
                                                                                     monkeypatch):
    if not heeds:
        monkeypatch.setattr(engine_finetune, "HEED_FOUND_INF", ())
        monkeypatch.setattr(torch.optim, "AdamW", functools.partial(DeafAdamW, torch.optim.AdamW))
    size = 2 * (3 * READ_EVERY)
    order = [position for batch in TrainBatches(StepPlan(size, 2, 1, 1), 0, 0) for _, position in batch]
    bad = order[2 * bad_step + 1]
    trainer, until_then = trainer_of(size), trainer_of(size)
    with pytest.raises(RunError, match=rf"epoch 0, step {bad_step} \(images of the batch: image") as caught:
        train_one_epoch(trainer, loader_of(trainer, Numbers(size, [bad])), Progress(0))
    assert f"image {bad}" in str(caught.value) and caught.value.everywhere

    steps = 0

    class Enough(Exception):
        pass

    def count(stepped):
        nonlocal steps
        if steps == bad_step:
            raise Enough
        plain(stepped)
        steps += 1

    plain = engine_finetune._optimizer_step
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Enough):
        patched.setattr(engine_finetune, "_optimizer_step", count)
        train_one_epoch(until_then, loader_of(until_then, Numbers(size)), Progress(0))
    assert torch.equal(trainer.model.weight, until_then.model.weight)


class Noted(Numbers):
    """Leaves a file for each sample that a worker has read."""

    def __init__(self, size, folder):
        super().__init__(size)
        self.folder = folder

    def __getitem__(self, key):
        (self.folder / "{}_{}".format(*key)).touch()
        return super().__getitem__(key)


def test_the_first_batches_are_read_before_they_are_asked_for(tmp_path):
    plan = StepPlan(6, 2, 1, 1)
    loader = make_loader(Noted(6, tmp_path), TrainBatches(plan, 0, 0), 1, False)
    plain = make_loader(Numbers(6), TrainBatches(plan, 0, 0), 0, False)

    def positions(of, epoch, start=0):
        of.batch_sampler.set_epoch(epoch, start)
        return [batch[2].tolist() for batch in of]

    assert positions(loader, 0) == positions(plain, 0)
    loader.batch_sampler.set_epoch(1)
    loader.begin()
    for _ in range(600):
        if len(list(tmp_path.glob("1_*"))) == 6:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("nothing was read")
    read = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert positions(loader, 1) == positions(plain, 1)
    assert read == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}  # not a second time
    for epoch, start in ((3, 0), (2, 1)):  # begun for another pass than the one that is asked for
        loader.batch_sampler.set_epoch(2)
        loader.begin()
        assert positions(loader, epoch, start) == positions(plain, epoch, start)


@pytest.mark.parametrize("workers, first", [(0, 5), (1, 1)])
def test_the_next_pass_begins_when_the_last_images_are_read(workers, first):
    """Six batches, four of which a worker reads ahead."""
    trainer, loader = trainer_of(12), make_loader(Numbers(12), TrainBatches(StepPlan(12, 2, 1, 1), 0, 0), workers,
                                                  False)
    assert loader.last() == first
    seen, calls = [], []
    batches = loaded(loader, "", World(), lambda: calls.append(len(seen)))
    for batch, _ in batches:
        seen.append(batch)
    assert calls == [first]
    train_one_epoch(trainer, loader, Progress(0), then=lambda: calls.append("train"))
    engine_finetune.outputs(trainer.model, loader_of_all(12), FP32, World(), "", lambda: calls.append("eval"))
    assert calls[1:] == ["train", "eval"]


def loader_of_all(size):
    return make_loader(Numbers(size), EvalBatches(size, 4, 0, 1), 0, False)


def test_the_host_does_not_wait_for_a_step(monkeypatch):
    """Tensors are read once in READ_EVERY steps: with every reading a GPU's queue runs empty."""
    readings = []
    for name in ("item", "tolist", "cpu", "__bool__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, *rest, plain=plain: (
            readings.append(tensor.dtype) if tensor.dtype.is_floating_point else None)
                            or plain(tensor, *rest))
    trainer = trainer_of(8 * READ_EVERY)
    train_one_epoch(trainer, loader_of(trainer, Numbers(8 * READ_EVERY)), Progress(0))
    assert 0 < len(readings) <= 4 * READ_EVERY / READ_EVERY + 1


def test_outputs_come_in_the_order_of_the_pictures_whatever_the_batch():
    dataset, model = Numbers(8 * READ_EVERY + 3), torch.nn.Linear(6, 3)
    for batch_size in (1, 4, 1000):
        loader = make_loader(dataset, EvalBatches(len(dataset), batch_size, 0, 1), 0, False)
        values = outputs(model, loader, FP32, World(), "test")
        np.testing.assert_allclose(values, model(dataset.values).detach(), rtol=1e-5, atol=1e-6)


# ---- several labels an image -------------------------------------------------------------------------------

@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_label_is_that_of_two_classes(smoothing, weighted):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 3, generator=generator)
    labels = torch.randint(0, 2, (9, 3), generator=generator).float()
    weights = torch.tensor([[0.5, 3.0], [1.0, 1.0], [2.0, 0.25]]) if weighted else None
    found = MultilabelLoss(3.0, smoothing, weights)(logits, labels)
    expected = torch.zeros(9)
    for k in range(3):
        two = torch.stack([torch.zeros(9), logits[:, k]], dim=1)
        of_label = ClassificationLoss(2, smoothing, None if weights is None else weights[k])
        expected += of_label(two, labels[:, k].long()) / 3
    assert torch.allclose(found, expected, atol=1e-6)


def test_labels_that_are_not_known_change_nothing():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, generator=generator, requires_grad=True)
    labels = torch.randint(0, 2, (6, 4), generator=generator).float()
    labels[torch.rand(6, 4, generator=generator) < 0.4] = torch.nan
    known = ~labels.isnan()
    loss = MultilabelLoss(float(known.sum(dim=1).float().mean()))(logits, labels).mean()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    assert torch.allclose(loss, expected, atol=1e-6)  # the mean of all that is known
    loss.backward()
    assert (logits.grad[~known] == 0).all() and (logits.grad[known] != 0).all()


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [6, 7])
def test_labels_are_mixed_as_their_images_are(mode, size):
    """Images that are as bright as a label is: what is mixed says the share."""
    labels = (torch.arange(3 * size).view(size, 3) % 2).float()
    labels[1, 0] = torch.nan
    level = torch.rand(size)
    images = level[:, None, None, None].expand(size, 3, 8, 8).contiguous()
    seed_step(0, 0, 0, 0, CPU)
    mixing = LabelMixing(0.8, 0.0, None, 1.0, 0.5, mode, label_smoothing=0.0)
    mixed, found = mixing(images, torch.cat([labels, level[:, None]], dim=1))
    assert mixed.shape == images.shape and found.shape == (size, 4)
    assert torch.allclose(mixed[:, 0, 0, 0], found[:, 3], atol=1e-6)
    assert not torch.allclose(found[:, 3], level, atol=1e-3)
    unknown = found[:, 0].isnan()
    assert unknown[1] and unknown.sum() <= 2 and not found[:, 1:].isnan().any()
