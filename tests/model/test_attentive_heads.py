"""Attentive heads trained in one stack from float16 tokens: each as PyTorch's own autograd and AdamW train it
alone."""

import math

import numpy as np
import pytest
import torch

from util.data.sampling import epoch_order
from util.model.attentive_heads import attentive_grid, attentive_logits, train_attentive
from util.model.feature_kinds import AttentiveHead
from util.model.lr_schedule import learning_rate_at
from util.model.probe_heads import HeadSetting, Pass

CLASSES, ROWS, PLACES, WIDTH, EPOCHS = 3, 50, 6, 8, 12
SETTINGS = [HeadSetting(1e-2, 0.0, True), HeadSetting(3e-2, 1.0, True)]


def tokens_and_labels(seed, rows=ROWS):
    """One token of an image, anywhere, tells its class; the others are noise, and channels differ in place
    and scale."""
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(0, CLASSES, rows), rng.normal(size=(rows, PLACES, WIDTH))
    place = rng.integers(0, PLACES, rows)
    values[np.arange(rows), place, :CLASSES] += 6 * np.eye(CLASSES)[labels]
    values[np.arange(rows), place, CLASSES] += 6  # what the telling token is known by
    return (3 + values * np.linspace(0.5, 2, WIDTH)).astype(np.float16), torch.from_numpy(labels)


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def rate_at(position):
    return learning_rate_at(position, 1.0, 0.0, 1.0, EPOCHS)


def train(views, settings=SETTINGS):
    (_, labels), (val, val_labels) = tokens_and_labels(1), tokens_and_labels(2, 31)
    run = Pass(CLASSES, cross_entropy, cross_entropy, EPOCHS, 16, rate_at,
               lambda epoch: epoch_order(ROWS, 3, epoch))
    return train_attentive(views, labels, val, val_labels, settings, run)


@pytest.mark.parametrize("place", range(len(SETTINGS)))
@pytest.mark.parametrize("number", [1, 2])
def test_every_head_is_what_pytorch_trains_alone(place, number):
    views = [tokens_and_labels(1)[0] + np.float16(0.125 * view) for view in range(number)]
    trained, setting = train(views), SETTINGS[place]
    labels = tokens_and_labels(1)[1]
    everything = torch.from_numpy(np.concatenate(views)).double().flatten(0, 1)
    mean, deviation = everything.mean(0).float(), everything.std(0, correction=0).float()
    layer, query = torch.nn.Linear(WIDTH, CLASSES), torch.nn.Parameter(torch.zeros(WIDTH))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW([{"params": [layer.weight], "weight_decay": setting.weight_decay},
                                   {"params": [layer.bias, query], "weight_decay": 0}])
    for epoch in range(EPOCHS):
        order = torch.from_numpy(epoch_order(ROWS, 3, epoch))
        for step in range(4):
            rows = order[math.ceil(step * ROWS / 4):math.ceil((step + 1) * ROWS / 4)]
            for group in optimizer.param_groups:
                group["lr"] = setting.learning_rate * rate_at(epoch + (step + 0.5) / 4)
            optimizer.zero_grad()
            tokens = (torch.from_numpy(views[epoch % number]).float()[rows] - mean) / deviation
            shares = torch.softmax((tokens * query).sum(dim=2) / math.sqrt(WIDTH), dim=1)
            cross_entropy(layer((shares[..., None] * tokens).sum(dim=1)), labels[rows]).mean().backward()
            optimizer.step()
    for found, wanted in zip(trained.last, (layer.weight, layer.bias, query), strict=True):
        torch.testing.assert_close(found[place], wanted.detach(), rtol=2e-3, atol=2e-4)


def test_the_standardisation_is_folded_in():
    trained, (val, val_labels) = train([tokens_and_labels(1)[0]]), tokens_and_labels(2, 31)
    for candidate in trained.candidates():
        weight, bias, query = trained.folded(candidate)
        logits = attentive_logits(val, weight, bias, query)
        loss = cross_entropy(logits, val_labels).mean()
        assert loss.item() == pytest.approx(trained.val_loss[candidate.epoch, candidate.head], abs=1e-4)
        head = AttentiveHead(WIDTH, CLASSES)
        head.load_state_dict({"weight": weight, "bias": bias, "query": query})
        torch.testing.assert_close(head(torch.from_numpy(val)).detach(), logits, rtol=1e-4, atol=1e-4)


def test_the_query_finds_the_token_that_tells():
    """The same head without a query, which reads the mean token, is left behind."""
    trained, (val, val_labels) = train([tokens_and_labels(1)[0]],
                                       [HeadSetting(0.1, 0.0, True)]), tokens_and_labels(2, 31)
    weight, bias, query = trained.folded(trained.candidates()[0])
    right = (attentive_logits(val, weight, bias, query).argmax(1) == val_labels).float().mean()
    known_by = torch.softmax(torch.from_numpy(val).float() @ query, dim=1).argmax(1)
    telling = torch.from_numpy(val[:, :, CLASSES].astype(np.float32)).argmax(1)
    assert right > 0.85 and (known_by == telling).float().mean() > 0.85


def test_the_grid_is_of_standardised_tokens_alone():
    settings = attentive_grid()
    assert len(settings) == len(set(settings)) and all(setting.normalised for setting in settings)
