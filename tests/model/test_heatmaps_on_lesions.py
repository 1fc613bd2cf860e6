"""Images with one lesion that decides the class: after training, the map lies on it."""

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from util.model.heatmaps import heat_maps


@pytest.fixture
def one_thread():
    """Layers this small are slower on several threads, and many times slower where other programs run
    beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LESIONS = {"red": (110, 40, 40), "yellow": (210, 190, 90)}


def retina(rng: np.random.Generator, kind: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy grey field on black with at most one lesion of 2.3 % of the image -> (size, size, 3), where the
    lesion is."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    picture = np.repeat(110 + 12 * rng.standard_normal((size, size, 1)), 3, axis=2)
    picture[np.hypot(x, y) > 0.48 * size] = 0
    distance, angle, radius = (
        0.33 * size * rng.uniform() ** 0.5,
        rng.uniform(0, 2 * np.pi),
        size * rng.uniform(0.07, 0.10),
    )
    lesion = np.hypot(x - distance * np.cos(angle), y - distance * np.sin(angle)) < radius
    if kind not in LESIONS:
        return picture, np.zeros_like(lesion)
    picture[lesion] = LESIONS[kind]
    return picture, lesion


def retinas(number: int, kinds, size: int, seed: int):
    rng = np.random.default_rng(seed)
    labels = torch.arange(number) % len(kinds)
    pictures, lesions = zip(*(retina(rng, kinds[label], size) for label in labels), strict=True)
    images = torch.tensor(np.stack(pictures), dtype=torch.float32).permute(0, 3, 1, 2) / 255
    return (images - 0.45) / 0.225, labels, torch.tensor(np.stack(lesions))


def trained(model, images, labels, epochs, learning_rate):
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    steps = epochs * (len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=draw).split(32):
            sides = [side for side in (2, 3) if torch.rand((), generator=draw) < 0.5]
            loss = F.cross_entropy(model(images[chosen].flip(sides)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def on_the_lesion(model, test, method="auto") -> float:
    """Mean of (the map's mass inside the lesion / the lesion's share of the area), over images that are
    classified right."""
    images, labels, lesions = test
    with torch.no_grad():
        right = (model(images).argmax(1) == labels) & lesions.any(dim=(1, 2))
    assert right.sum() >= 0.9 * lesions.any(dim=(1, 2)).sum()  # it learnt the task
    maps, lesions = torch.tensor(heat_maps(model, images[right], method=method)), lesions[right].float()
    shares = (maps * lesions).sum((1, 2)) / maps.sum((1, 2)).clamp(min=1e-6)
    return float((shares / lesions.mean((1, 2))).mean())


@pytest.mark.long
@pytest.mark.parametrize("pool, kinds", [("token", ("none", "red")), ("avg", ("red", "yellow"))])
def test_a_transformer_looks_at_the_lesion(one_thread, pool, kinds):
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(img_size=48, patch_size=8, embed_dim=64, depth=3, num_heads=4,
                                          num_classes=2, global_pool=pool)
    test = retinas(96, kinds, 48, seed=1)
    model = trained(model, *retinas(640, kinds, 48, seed=0)[:2], epochs=12, learning_rate=1e-3)
    factors = {method: round(on_the_lesion(model, test, method), 1) for method in ("auto", "rollout")}
    print(f"{pool}, {kinds}: {factors}")
    assert factors["auto"] >= 3, factors


@pytest.mark.long
def test_a_cnn_looks_at_the_lesion(one_thread):
    torch.manual_seed(0)
    resnet = timm.models.resnet
    model = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), num_classes=2, channels=(16, 24, 32, 32),
                          stem_width=16, output_stride=8)
    test = retinas(96, ("red", "yellow"), 96, seed=1)
    model = trained(model, *retinas(384, ("red", "yellow"), 96, seed=0)[:2], epochs=6, learning_rate=3e-3)
    factor = on_the_lesion(model, test)
    print(f"Grad-CAM: {factor:.1f}")
    assert factor >= 3
