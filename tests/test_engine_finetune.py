"""Losses and steps against PyTorch's own and a second way of computing them."""

import numpy as np
import pytest
import timm
import torch

from engine_finetune import ClassificationLoss, Mixing, balanced_class_weights, seed_step


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
    seed_step(0, 0, 0, 0)
    before = images.clone()
    mixed, soft = Mixing(3, 0.1, 0.8, 1.0, None, 1.0, 0.5, mode)(images, labels)
    assert mixed.shape == (size, 3, 8, 8) and soft.shape == (size, 3)
    assert torch.allclose(soft.sum(1), torch.ones(size), atol=1e-5)
    assert torch.equal(images, before)  # the loader's tensor is not written to


def test_mixing_equals_timms_on_an_even_batch():
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    seed_step(1, 2, 3, 0)
    mixed, soft = Mixing(3, 0.1, 0.8, 0.0, None, 1.0, 0.5, "batch")(images, labels)
    seed_step(1, 2, 3, 0)
    theirs = timm.data.Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=3)
    expected, targets = theirs(images.clone(), labels)
    assert torch.equal(mixed, expected) and torch.allclose(soft, targets)


def test_draws_of_a_step_depend_on_where_the_run_stands():
    def draw(*where):
        seed_step(*where)
        return torch.rand(1).item(), np.random.rand()

    assert draw(0, 1, 2, 0) == draw(0, 1, 2, 0)
    assert len({draw(*where) for where in [(0, 1, 2, 0), (1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)]}) == 5
