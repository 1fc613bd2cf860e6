"""Gated attention over the images of a case: in a batch of images, on stored features, in a model."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch

import models_vit
from util.data import cases
from util.model import case_attention
from util.model.case_attention import CaseFeatures, CaseHeads, attended, case_outputs
from util.model.mirrors import with_mirrors
from util.model.probe_heads import HeadSetting

OWNERS = np.array([0, 1, 0, 2, 1, 0])


def model():
    torch.manual_seed(0)
    found = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    case_attention.put_attention(models_vit.final_linear(found))
    with torch.no_grad():
        found.head.attention.score.weight.normal_()
    return found


def test_it_starts_as_the_mean():
    found = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    case_attention.put_attention(models_vit.final_linear(found))
    assert found(torch.randn(2, 3, 32, 32))[:, -1].abs().max() == 0


def test_it_is_that_of_ilse_and_others():
    """z = sum of a_k h_k, a = softmax(w . (tanh(V h) * sigmoid(U h))); then the classifier."""
    found, images = model(), torch.randn(6, 3, 32, 32)
    features = found.forward_head(found.forward_features(images), pre_logits=True)
    parts = dict(found.head.named_parameters())
    v, u = (features @ parts[f"attention.{name}.weight"].T + parts[f"attention.{name}.bias"]
            for name in ("tanh", "gate"))
    scores = case_attention.SCALE * (torch.tanh(v) * torch.sigmoid(u)) @ parts["attention.score.weight"][0]
    expected = []
    for case in range(3):
        own = torch.from_numpy(case == OWNERS)
        mean = torch.softmax(scores[own], 0) @ features[own]
        expected.append(mean @ parts["weight"].T + parts["bias"])
    values = attended(found(images), torch.from_numpy(OWNERS), 3)
    torch.testing.assert_close(values, torch.stack(expected))
    # what evaluation makes of the outputs of all images is what training makes of a batch
    rows = pd.DataFrame({"case": OWNERS.astype(str)})
    _, pooled, _ = cases.pooled(rows, found(images).detach().numpy(), "attention", True)
    np.testing.assert_allclose(pooled, values.detach(), rtol=1e-4, atol=1e-6)


def test_one_image_of_a_case_far_above_the_others():
    outputs = torch.tensor([[1.0, 2.0, 500.0], [3.0, 4.0, -500.0], [5.0, 6.0, 0.0]], requires_grad=True)
    found = attended(outputs, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0], [5.0, 6.0]]))
    found.sum().backward()
    assert outputs.grad.isfinite().all()


def test_gradients_by_differences():
    outputs = torch.randn(6, 4, dtype=torch.float32, requires_grad=True)
    weights = torch.randn(3, 3)

    def loss(values):
        return (attended(values, torch.from_numpy(OWNERS), 3) * weights).sum()

    loss(outputs).backward()
    for place in ((0, 3), (4, 3), (2, 1)):
        step = torch.zeros_like(outputs)
        step[place] = 1e-2
        slope = (loss(outputs.detach() + step) - loss(outputs.detach() - step)) / 2e-2
        assert slope.item() == pytest.approx(outputs.grad[place].item(), abs=2e-3)


def heads(features, number=2):
    settings = [HeadSetting(1e-3, 0.0, True)] * number
    stack = CaseHeads(settings, 3, features.mean(dim=0), features.std(dim=0, correction=0), 0)
    with torch.no_grad():
        for parameter in stack.parameters:
            parameter.normal_(std=0.3)
    return stack


def test_stored_features_padding_and_folding():
    """A head of the grid reads padded, standardised features; in the model it reads them as they are."""
    features = torch.randn(6, 16) * 3 + 1
    stack, of_cases = heads(features), CaseFeatures.of(features, OWNERS)
    values, is_image = of_cases.padded([0, 1, 2])
    assert values.shape == (3, 3, 16) and is_image.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    together = stack.logits(stack.load(of_cases, slice(0, 3)))
    alone = torch.cat([stack.logits(stack.load(of_cases, torch.tensor([case]))) for case in range(3)], dim=1)
    torch.testing.assert_close(together, alone)
    for head in range(2):
        tensors = stack.folded(head, *(values[head] for values in stack.parameters))
        outputs = case_outputs(features, tensors)
        torch.testing.assert_close(attended(outputs, torch.from_numpy(OWNERS), 3), together[head], rtol=1e-3,
                                   atol=1e-4)
    assert CaseHeads.names == tuple(name for name, _ in model().head.named_parameters())


def test_mirror_images_keep_the_score_apart():
    found, images = model(), torch.randn(2, 3, 32, 32)
    both = torch.stack([found(images), found(images.flip(-1))])
    values = with_mirrors(found, "mirror", "classification", attends=True)(images)
    torch.testing.assert_close(values[:, -1], both[..., -1].mean(dim=0))
    torch.testing.assert_close(torch.softmax(values[:, :-1], 1),
                               torch.softmax(both[..., :-1], 2).mean(dim=0))
