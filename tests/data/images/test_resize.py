"""--resize: how an image that is no square comes into one, and how much of it evaluation sees."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from util.data.images import seen_area
from util.data.images.cache import Kept, open_cache
from util.data.images.scan import NO_FACTS
from util.data.images.transforms import (
    EvalTransform,
    TrainTransform,
    eval_settings,
    resized_side,
    seen_share,
    train_settings,
)
from util.options.data import ImageOptions
from util.options.model import ModelOptions

HALF = (0.5, 0.5, 0.5)


def wide(seed, width=1536, height=496):
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    waves = sum(np.sin(x / rng.uniform(20, 90) + y / rng.uniform(20, 90) + c)[..., None] * rng.normal(size=3)
                for c in range(4))
    return (127 + 40 * waves).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans that are the same in the middle 28 % of their width, and one that is upright."""
    folder = tmp_path_factory.mktemp("scans")
    one, other = wide(0), wide(1)
    other[:, 550:986] = one[:, 550:986]
    for name, pixels in (("one", one), ("other", other), ("upright", wide(2, 300, 500))):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=95)
    return folder


def tensor(path, fit, decode="full", **more):
    model = ModelOptions(resize=fit, **more)
    return EvalTransform(eval_settings(224, HALF, HALF, decode, model=model))(str(path))


def by_pillow(image):
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy((pixels - 0.5) / 0.5).permute(2, 0, 1)


def levels(one, other):
    return float((one - other).abs().mean() * 127.5)


def test_the_centre_alone_is_seen_or_all(scans):
    assert levels(tensor(scans / "one.png", "crop"), tensor(scans / "other.png", "crop")) < 0.5
    for fit in ("pad", "squash"):
        assert levels(tensor(scans / "one.png", fit), tensor(scans / "other.png", fit)) > 5


@pytest.mark.parametrize("name", ["one", "upright"])
def test_pad_and_squash_are_pillows(scans, name):
    image = Image.open(scans / f"{name}.png")
    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, (-((image.width - side) // 2), -((image.height - side) // 2)))
    for fit, expected in (("pad", by_pillow(square)), ("squash", by_pillow(image))):
        assert levels(tensor(scans / f"{name}.png", fit), expected) < 1e-4
        for ending, most in (("png", 1.0), ("jpg", 2.0)):
            assert levels(tensor(scans / f"{name}.{ending}", fit, "scaled"), expected) < most
    assert torch.equal(tensor(scans / f"{name}.png", "pad")[:, 0, 0], torch.full((3,), -1.0))  # black


def test_a_square_is_the_same_padded_and_squashed(tmp_path):
    Image.fromarray(wide(3, 400, 400)).save(tmp_path / "square.png")
    assert torch.equal(tensor(tmp_path / "square.png", "pad"), tensor(tmp_path / "square.png", "squash"))


def test_the_fundus_crop_comes_before(tmp_path):
    from tests.drawn_fields import draw_field

    Image.fromarray(draw_field(0, "plain")[0]).save(tmp_path / "f.png")
    assert torch.equal(*(tensor(tmp_path / "f.png", fit, fundus_crop="auto") for fit in ("pad", "squash")))


@pytest.mark.parametrize("decode", ["full", "scaled"])
def test_training_draws_its_crops_from_the_same_square(scans, decode, tmp_path):
    """squash: what timm draws from the squashed image, to the rounding of a crop to whole pixels; pad: from
    the padded one."""
    image = Image.open(scans / "one.png")
    image.resize((1536, 1536), Image.Resampling.BICUBIC).save(tmp_path / "squash.png")
    square = Image.new("RGB", (1536, 1536))
    square.paste(image, (0, 520))
    square.save(tmp_path / "pad.png")
    for fit in ("squash", "pad"):
        images = ImageOptions(crop_scale=[0.3, 1], aa="none", reprob=0)
        settings = train_settings(64, HALF, HALF, decode, images, ModelOptions(resize=fit))
        for seed in range(6):
            found = []
            for transform, path in ((TrainTransform(settings), scans / "one.png"),
                                    (TrainTransform({**settings, "fit": "crop"}), tmp_path / f"{fit}.png")):
                random.seed(seed)
                torch.manual_seed(seed)
                found.append(transform(str(path)))
            assert levels(*found) < 3, (fit, seed)


def test_a_cache_gives_the_same(scans, tmp_path):
    path = str(scans / "one.png")
    for fit, size in (("crop", (929, 300)), ("pad", (300, 300)), ("squash", (929, 300))):
        settings = eval_settings(224, HALF, HALF, "scaled", 300, ModelOptions(resize=fit))
        cache = open_cache(tmp_path, [path], Kept.of(settings), 1, lambda line: None)
        assert cache(path).size == size
        assert torch.equal(EvalTransform(settings)(path), EvalTransform(settings)(cache(path)))


def test_the_share_that_is_seen():
    settings = eval_settings(224, HALF, HALF, "full")
    assert seen_share((500, 500), settings) == pytest.approx(0.875**2)
    assert seen_share((1536, 496), settings) == pytest.approx(0.875**2 * 496 / 1536)
    assert seen_share((300, 900), eval_settings(384, HALF, HALF, "full")) == pytest.approx(1 / 3)
    for fit in ("pad", "squash"):
        model = ModelOptions(resize=fit)
        assert seen_share((1536, 496), eval_settings(224, HALF, HALF, "full", model=model)) == 1
    assert resized_side(224) == 256 and resized_side(224, "pad") == 224 and resized_side(384, "crop") == 384


def test_lines(scans):
    paths = [str(scans / "one.png"), str(scans / "other.jpg"), str(scans / "not there.png")]
    lines = seen_area.describe(paths, eval_settings(224, HALF, HALF, "full"), None, NO_FACTS)
    assert "evaluation sees 25% of an image's area (median of 2; --resize crop)" in lines[0]
    assert lines[1].startswith("warning: what lies outside the centre") and len(lines) == 2
    padded = eval_settings(224, HALF, HALF, "full", model=ModelOptions(resize="pad"))
    assert len(seen_area.describe(paths, padded, None, NO_FACTS)) == 1
    assert seen_area.describe([], eval_settings(224, HALF, HALF, "full"), None, NO_FACTS) == []


def test_the_whole_way(scans, start, tmp_path, capsys):
    place, number = tmp_path / "data", 0
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for name in ("a", "b"):
            (place / split / name).mkdir(parents=True)
            for _ in range(count):
                Image.fromarray(wide(number, 160, 60)).save(place / split / name / f"{number}.png")
                number += 1
    code, out, err = start("--nb_classes", 2, "--epochs", 1, "--task", "run", "--resize", "squash",
                           "--image_cache", "c", data=place)
    assert code == 0 and "evaluation sees 100% of an image's area (median of 16; --resize squash)" in out, err
    run = tmp_path / "output_dir" / "run"
    assert torch.load(run / "checkpoint-best.pth", weights_only=True)["transform"]["eval"]["fit"] == "squash"
    predicted = pd.read_csv(run / "predictions_test.csv")

    import predict
    from util.core.ending import exit_code_of

    assert exit_code_of(predict.main, ["--resume", str(run / "checkpoint-best.pth"), "--input",
                                       str(place / "test"),
                                       "--output", "p.csv", "--device", "cpu", "--num_workers", "0"]) == 0
    assert "--resize squash" in capsys.readouterr().out
    rows = pd.read_csv("p.csv").set_index("path")["prob_a"]
    np.testing.assert_allclose(rows[predicted["path"]].to_numpy(), predicted["prob_a"], atol=1e-6)
    code, out, err = start("--nb_classes", 2, "--task", "c", "--eval", "--resume",
                           run / "checkpoint-best.pth", "--resize", "crop", data=place)
    assert (
        code == 0 and "--resize squash -> crop" in out and "warning: what lies outside the centre" in out
    ), err
    other = pd.read_csv(tmp_path / "output_dir/c/predictions_test.csv")
    assert (other["prob_a"] - predicted["prob_a"]).abs().max() > 1e-5
