"""Heads trained in one stack: each as if it were alone, by PyTorch's own optimizer and loss."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from util.data.sampling import epoch_order
from util.model.lr_schedule import learning_rate_at
from util.model.probe_heads import (
    Heads,
    HeadSetting,
    Pass,
    classic_classifiers,
    grid,
    probabilities,
    train_heads,
)

CLASSES = 3
SETTINGS = [HeadSetting(1e-2, 0.0, False), HeadSetting(1e-1, 1.0, False), HeadSetting(3e-3, 0.05, True)]


def features_and_labels(rows, seed, width=7, scale=0.02):
    """Features that differ little around a mean far from zero, as those of an untrained backbone do."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, CLASSES, rows))
    centres = np.random.default_rng(0).normal(size=(CLASSES, width))
    values = 5 + scale * (centres[labels.numpy()] + rng.normal(size=(rows, width)))
    return torch.from_numpy(values.astype(np.float32)), labels


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def rate_at(position):
    return learning_rate_at(position, 1.0, 0.0, 1.0, 6)


def train(settings, views=1, epochs=6):
    train_views = [features_and_labels(50, 1)[0] + 0.001 * view for view in range(views)]
    labels, (val, val_labels) = features_and_labels(50, 1)[1], features_and_labels(31, 2)
    run = Pass(CLASSES, cross_entropy, cross_entropy, epochs, 16, rate_at,
               lambda epoch: epoch_order(50, 3, epoch))
    trained = train_heads(train_views, labels, val, val_labels, settings, run)
    return trained, train_views, labels, val, val_labels


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("place", range(len(SETTINGS)))
def test_every_head_is_what_pytorch_trains_alone(place, views):
    trained, train_views, labels, val, val_labels = train(SETTINGS, views)
    setting, everything = SETTINGS[place], torch.cat(train_views)
    mean, deviation = (everything.mean(0), everything.std(0, correction=0)) if setting.normalised else (0, 1)
    layer = torch.nn.Linear(7, CLASSES)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW([{"params": [layer.weight], "weight_decay": setting.weight_decay},
                                   {"params": [layer.bias], "weight_decay": 0}])
    for epoch in range(6):
        order = torch.from_numpy(epoch_order(50, 3, epoch))
        for step in range(4):
            rows = order[math.ceil(step * 50 / 4):math.ceil((step + 1) * 50 / 4)]
            for group in optimizer.param_groups:
                group["lr"] = setting.learning_rate * rate_at(epoch + (step + 0.5) / 4)
            optimizer.zero_grad()
            features = (train_views[epoch % views][rows] - mean) / deviation
            torch.nn.functional.cross_entropy(layer(features), labels[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(trained.last[0][place], layer.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.last[1][place], layer.bias.detach(), rtol=1e-3, atol=1e-4)
    chances = torch.softmax(layer((val - mean) / deviation), dim=1).detach().double().numpy()
    assert trained.val_loss[5, place] == pytest.approx(
        log_loss(val_labels, chances / chances.sum(1, keepdims=True)), abs=1e-4
    )


def test_the_normalisation_is_folded_in():
    trained, _, _, val, _ = train(SETTINGS)
    ends = {candidate.head: candidate for candidate in trained.candidates() if candidate.epoch == 5}
    for head, candidate in ends.items():
        weight, bias = trained.folded(candidate)
        direct = trained.heads.logits(val, *trained.last)[head]
        torch.testing.assert_close(val @ weight.T + bias, direct, rtol=1e-3, atol=2e-3)
    assert set(ends) == {0, 1, 2}


def test_the_normalised_head_learns_what_the_others_cannot_see():
    trained, _, _, val, val_labels = train([SETTINGS[0], HeadSetting(1e-1, 0.0, True)], epochs=6)
    right = [(trained.heads.logits(val, *trained.last)[head].argmax(1) == val_labels).float().mean()
             for head in (0, 1)]
    assert right[1] > 0.75 > right[0]


def test_a_feature_that_never_changes_is_harmless():
    features = torch.cat([features_and_labels(20, 0)[0], torch.full((20, 1), 7.0)], dim=1)
    heads = Heads([HeadSetting(1, 0, True)], CLASSES, features.mean(0), features.std(0, correction=0))
    assert heads.logits(features).isfinite().all() and heads.deviation[-1] == 1


def test_a_head_that_diverges_leaves_the_others_alone():
    alone = train([SETTINGS[0]])[0]
    both = train([SETTINGS[0], HeadSetting(1e30, 1e10, False)])[0]
    torch.testing.assert_close(both.last[0][0], alone.last[0][0], rtol=1e-4, atol=1e-6)
    assert {candidate.head for candidate in both.candidates() if candidate.epoch == 5} == {0}


def test_the_epoch_of_the_least_loss_is_kept():
    trained = train([HeadSetting(1.0, 0.0, True)], epochs=6)[0]
    epochs = [candidate.epoch for candidate in trained.candidates()]
    assert epochs[0] == int(trained.val_loss[:, 0].argmin()) and epochs[-1] == 5
    assert np.isclose(trained.val_loss[epochs[0], 0], cross_entropy(
        trained.heads.logits(features_and_labels(31, 2)[0], *trained.least)[0],
        features_and_labels(31, 2)[1]).mean())


def test_the_grid_holds_the_runs_own_rate_and_decay():
    settings = grid(0.0025, 0.05)
    assert len(settings) == len(set(settings)) == 2 * 8 * 3
    assert {HeadSetting(0.0025, 0.05, normalised) for normalised in (True, False)} <= set(settings)
    with pytest.raises(ValueError, match="before"):
        Heads(settings[::-1], CLASSES, torch.zeros(7), torch.ones(7))


def test_classic_classifiers_know_absent_classes():
    features, labels = features_and_labels(40, 1)
    labels = labels.numpy() % 2 * 2  # 0 and 2
    for candidates in classic_classifiers(features.numpy(), labels, 0).values():
        for classifier in candidates:
            found = probabilities(classifier, features.numpy(), CLASSES)
            assert found.shape == (40, CLASSES) and not found[:, 1].any() and np.allclose(found.sum(1), 1)
