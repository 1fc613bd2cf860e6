"""util/data/images/transforms.py: timm's training recipe and torchvision's evaluation, bit for bit; scaled
decoding comes close."""
import json
import pickle
import random
import resource

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms

from util.core.errors import InputError
from util.data.images.cache import Kept, KeptSource
from util.data.images.files import ImageError, ImageSource
from util.data.images.transforms import (
    EvalTransform,
    TrainTransform,
    _augment_operations,
    _posterize,
    color_jitter_applies,
    eval_settings,
    train_settings,
)
from util.options.data import ImageOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def drawn(width, height, noise):
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 97), np.cos(y / 61), np.sin((x + y) / 83)], axis=-1)
    values = 127 + 90 * waves + np.random.default_rng(0).normal(0, noise, waves.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("pictures") / "drawn.jpg")
    drawn(333, 217, noise=20).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def large_jpeg(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("pictures") / "large.jpg")
    drawn(2048, 2047, noise=10).save(path, quality=92)
    return path


def grey_levels(one, other):
    """Mean absolute difference of two normalised tensors, in levels of 0…255."""
    return float(((one - other).abs() * torch.tensor(STD)[:, None, None]).mean() * 255)


RECIPES = {
    "default": {},
    "aa none": {"aa": "none"},
    "jitter": {"aa": "none", "color_jitter": 0.4},
    "hue jitter": {"aa": "", "color_jitter": [0.3, 0.3, 0.2, 0.1]},
    "jitter under aa": {"color_jitter": 0.4},
    "3-augment": {"aa": "3a", "color_jitter": 0.3},
    "augmix": {"aa": "augmix-m5-w2"},
    "original": {"aa": "original-mstd0.5"},
    "vflip": {"hflip": 0.0, "vflip": 0.5},
    "erase const": {"aa": "none", "reprob": 1.0, "remode": "const", "recount": 3},
    "no erase": {"reprob": 0.0},
    "crop": {"crop_scale": (0.5, 0.6), "crop_ratio": (0.5, 3.0)},
    "wide crop": {"crop_scale": (0.95, 1.0), "crop_ratio": (0.2, 0.4)},  # never fits: timm's centre crop
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_full_decoding_trains_on_exactly_what_timm_makes(jpeg, recipe):
    ours = TrainTransform(train_settings(48, MEAN, STD, "full", ImageOptions(**recipe)))
    aa = recipe.get("aa", "rand-m9-mstd0.5-inc1")
    theirs = create_transform(
        48,
        is_training=True,
        scale=recipe.get("crop_scale", (0.08, 1.0)),
        ratio=recipe.get("crop_ratio", (3 / 4, 4 / 3)),
        hflip=recipe.get("hflip", 0.5),
        vflip=recipe.get("vflip", 0.0),
        color_jitter=recipe.get("color_jitter"),
        auto_augment=None if aa in ("", "none") else aa,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        re_prob=recipe.get("reprob", 0.25),
        re_mode=recipe.get("remode", "pixel"),
        re_count=recipe.get("recount", 1),
    )
    picture = Image.open(jpeg).convert("RGB")
    for number in range(25):
        seed(number)
        mine = ours(jpeg)
        seed(number)
        try:
            expected = theirs(picture)
        except ValueError as error:  # timm's posterize under Pillow 13, tested below
            assert "bits must be" in str(error)
            continue
        assert mine.dtype == torch.float32 and mine.shape == (3, 48, 48)
        assert torch.equal(mine, expected), number


def test_scaled_training_draws_the_same_crop_and_flip(large_jpeg):
    settings = [train_settings(64, MEAN, STD, decode, ImageOptions(aa="none", reprob=0, vflip=0.5))
                for decode in ("full", "scaled")]
    full, scaled = map(TrainTransform, settings)
    differences = []
    for number in range(6):
        results = []
        for transform in (full, scaled):
            seed(number)
            results.append(transform(large_jpeg))
        differences.append(grey_levels(*results))
    assert 0 < max(differences) < 2


@pytest.fixture
def parts(monkeypatch):
    """Shapes (width, height) of all parts that a source gives out."""
    plain, plain_whole, seen = ImageSource.part, ImageSource.whole, []

    def watch(source, box=None, resolution=None):
        pixels = plain(source, box, resolution)
        seen.append(pixels.shape[1::-1])
        return pixels

    def watch_whole(source, resolution):
        pixels, covers = plain_whole(source, resolution)
        seen.append(pixels.shape[1::-1])
        return pixels, covers

    monkeypatch.setattr(ImageSource, "part", watch)
    monkeypatch.setattr(ImageSource, "whole", watch_whole)
    return seen


def test_scaled_decoding_leaves_the_crop_its_resolution(jpeg, monkeypatch, parts):
    scaled = TrainTransform(train_settings(40, MEAN, STD, "scaled", ImageOptions(aa="none", reprob=0)))
    monkeypatch.setattr(scaled, "_draw_crop", lambda image, scale, ratio: (10, 20, *crop))
    for crop, size in (((79, 200), (200, 79)), ((80, 80), (40, 40)), ((159, 200), (100, 79)),
                       ((160, 160), (40, 40))):
        scaled(jpeg)
        assert parts.pop() == size, crop


@pytest.mark.parametrize(("edge", "resized"), [(32, 36), (224, 256), (225, 225), (336, 336)])
def test_full_decoding_evaluates_exactly_as_torchvision(jpeg, large_jpeg, tmp_path, edge, resized):
    # int(input_size / 0.875) by hand in the parameters
    theirs = transforms.Compose(
        [
            transforms.Resize(resized, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(edge),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    ours = EvalTransform(eval_settings(edge, MEAN, STD, "full"))
    tall, exact = str(tmp_path / "tall.png"), str(tmp_path / "exact.png")
    drawn(101, 303, noise=30).save(tall)
    drawn(resized, resized + 7, noise=30).save(exact)
    for path in (jpeg, large_jpeg, tall, exact):
        assert torch.equal(ours(path), theirs(Image.open(path).convert("RGB"))), path


def test_scaled_evaluation_is_close(large_jpeg):
    full, scaled = (EvalTransform(eval_settings(224, MEAN, STD, decode))(large_jpeg)
                    for decode in ("full", "scaled"))
    assert 0 < grey_levels(full, scaled) <= 2


def test_scaled_evaluation_decodes_no_finer_than_the_resized_picture(tmp_path, parts):
    scaled = EvalTransform(eval_settings(224, MEAN, STD, "scaled"))
    # 256 · denominator
    for edge, denominator in ((511, 1), (512, 2), (1023, 2), (1024, 4), (2047, 4), (2048, 8)):
        Image.new("RGB", (edge, edge + 100), (200, 100, 50)).save(tmp_path / "a.jpg")
        scaled(str(tmp_path / "a.jpg"))
        assert parts.pop() == (-(-edge // denominator), -(-(edge + 100) // denominator))


@pytest.mark.parametrize("size", [(1153, 1033), (1150, 1085), (2303, 2309), (520, 777)])
def test_a_scaled_picture_is_not_stretched_by_its_last_partial_pixel(tmp_path, size):
    """At 1/8 libjpeg gives 288 x 289 pixels of 2303 x 2309, that is of 287.875 x 288.625; stripes show where
    they are."""
    across, down = np.meshgrid(*(np.arange(side) / side for side in size))
    stripes = 127 + 100 * np.stack([np.sin(60 * across), np.sin(60 * down), np.sin(40 * (across + down))],
                                   axis=-1)
    for suffix, options in ((".jpg", {"quality": 95, "subsampling": 0}), (".png", {"compress_level": 1})):
        path = str(tmp_path / f"a{suffix}")
        Image.fromarray(np.uint8(stripes)).save(path, **options)
        full, scaled = (EvalTransform(eval_settings(224, MEAN, STD, decode))(path)
                        for decode in ("full", "scaled"))
        assert grey_levels(full, scaled) < 1  # half a pixel beside its place it is 5 to 10
        kept, whole = (Kept(256, decode).pixels(path).astype(int) for decode in ("scaled", "full"))
        assert kept.shape == whole.shape and np.abs(kept - whole).mean() < 1


def test_a_kept_size_is_where_the_crop_is_drawn(large_jpeg):
    """As if the image had been stored at that size."""
    whole = Kept(512, "full").pixels(large_jpeg)
    assert whole.shape == (512, 512, 3)
    for make, transform in ((eval_settings, EvalTransform), (train_settings, TrainTransform)):
        results = []
        for kept, source in ((512, large_jpeg), (None, KeptSource(whole)), (512, KeptSource(whole))):
            seed(4)
            results.append(transform(make(224, MEAN, STD, "full") | {"kept": kept})(source))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    scaled = EvalTransform(eval_settings(224, MEAN, STD, "scaled", kept=512))(large_jpeg)
    assert grey_levels(scaled, EvalTransform(eval_settings(224, MEAN, STD, "full"))(large_jpeg)) <= 2


def test_a_source_does_as_well_as_a_path(jpeg):
    for transform in (
        EvalTransform(eval_settings(32, MEAN, STD, "scaled")),
        TrainTransform(train_settings(32, MEAN, STD, "scaled")),
    ):
        results = []
        for source in (jpeg, ImageSource(jpeg)):
            seed(3)
            results.append(transform(source))
        assert torch.equal(*results)
    with pytest.raises(ImageError, match="no such file"):
        EvalTransform(eval_settings(32, MEAN, STD, "full"))("absent.jpg")


# RandAugment under Pillow 13


def test_posterize_to_no_bits_is_black_as_it_used_to_be(jpeg, monkeypatch):
    picture = drawn(32, 32, noise=50)
    assert not np.asarray(_posterize(picture, 0)).any()
    for bits in range(1, 10):
        assert (np.asarray(_posterize(picture, bits))
                == np.asarray(auto_augment.posterize(picture, bits))).all()

    transform = TrainTransform(train_settings(32, (0, 0, 0), (1, 1, 1), "full",
                                              ImageOptions(aa="rand-m10-n1-inc1-p1", reprob=0)))
    augmenting = next(step for step in transform._augment.transforms if hasattr(step, "ops"))
    posterizes = [op for op in augmenting.ops if op.name == "PosterizeIncreasing"]
    assert len(posterizes) == 1
    monkeypatch.setattr(augmenting, "ops", posterizes)
    assert not transform(jpeg).any()
    assert auto_augment.AugmentOp("Posterize").aug_fn is auto_augment.posterize  # timm's own is left as it is


@pytest.mark.parametrize("name", sorted(auto_augment.NAME_TO_OP))
def test_every_operation_runs_at_every_magnitude(name):
    picture = drawn(24, 24, noise=50)
    hparams = {"translate_const": 10, "img_mean": (120, 110, 100), "interpolation": Image.Resampling.BICUBIC}
    for magnitude in range(11):
        operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)
        if name.startswith("Posterize"):
            operation.aug_fn = _posterize
        result = operation(picture)
        assert result.size == picture.size and result.mode == "RGB"


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "augmix-m3", "v0", "original", "v0r", "originalr",
                                "3a"])
def test_posterize_is_replaced_wherever_timm_puts_it(aa):
    settings = train_settings(32, MEAN, STD, "full", ImageOptions(aa=aa))
    operations = list(_augment_operations(TrainTransform(settings)._augment))
    assert len(operations) > 2
    posterizes = [op for op in operations if op.name.startswith("Posterize")]
    assert (aa == "3a") == (not posterizes) and all(op.aug_fn is _posterize for op in posterizes)


# Settings


def test_settings_survive_a_checkpoint_and_a_spawned_worker(jpeg):
    for make, transform in ((eval_settings, EvalTransform), (train_settings, TrainTransform)):
        settings = make(32, torch.tensor(MEAN).numpy(), np.float32(STD), "scaled")
        stored = json.loads(json.dumps(settings))
        assert stored == settings
        results = []
        for one in (transform(settings), transform(stored), pickle.loads(pickle.dumps(transform(settings)))):
            seed(1)
            results.append(one(jpeg))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("--aa", {"aa": "random-m9"}),
        ("--aa", {"aa": "rand-m9-oops"}),  # timm takes this one and says nothing
        ("--aa", {"aa": "rand-m9.5"}),
        ("--aa", {"aa": "rand_m9"}),
        ("--crop_scale", {"crop_scale": (0.5, 0.2)}),
        ("--crop_scale", {"crop_scale": (0, 1)}),
        ("--crop_scale", {"crop_scale": (0.5, 1.5)}),
        ("--crop_ratio", {"crop_ratio": (0, 1)}),
        ("--hflip", {"hflip": 1.5}),
        ("--vflip", {"vflip": -0.1}),
        ("--reprob", {"reprob": 2}),
        ("--remode", {"remode": "noise"}),
        ("--recount", {"recount": 0}),
        ("--color_jitter", {"color_jitter": -1}),
        ("--color_jitter", {"color_jitter": [0.1, 0.2]}),
        ("--decode", {"decode": "half"}),
        ("--input_size", {"input_size": 0}),
        ("--input_size", {"input_size": 224.5}),
        ("mean", {"mean": (0.5,)}),
        ("std", {"std": (0.5, 0, 0.5)}),
    ],
)
def test_wrong_settings_are_refused_by_the_flags_name(flag, wrong):
    settings = {"input_size": 32, "mean": MEAN, "std": STD, "decode": "full"}
    images = ImageOptions(**{name: value for name, value in wrong.items() if name not in settings})
    settings |= {name: value for name, value in wrong.items() if name in settings}
    with pytest.raises(InputError, match=flag) as caught:
        train_settings(**settings, images=images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("aa", ["rand-m9-mstd0.5-inc1", "rand", "rand-m7-n3-p0.5-mmax20-tweights",
                                "augmix-m5-w4-d2"])
def test_strings_that_timm_takes_are_taken(aa):
    assert train_settings(32, MEAN, STD, "full", ImageOptions(aa=aa))["aa"] == aa
    TrainTransform(train_settings(32, MEAN, STD, "full", ImageOptions(aa=aa)))


def test_whether_color_jitter_counts():
    def applies(**options):
        return color_jitter_applies(train_settings(32, MEAN, STD, "full", ImageOptions(**options)))

    assert applies(aa="none", color_jitter=0.4) and applies(aa="3a", color_jitter=0.4)
    assert not applies(color_jitter=0.4) and not applies(aa="none")


@pytest.mark.parametrize("decode", ["full", "scaled"])
def test_a_strip_costs_no_more_than_what_is_looked_at(tmp_path, decode):
    """256 x 15,360,000 pixels, 12 GB, are what it comes to when it is resized whole."""
    Image.fromarray(np.full((1, 60000, 3), 200, np.uint8)).save(tmp_path / "strip.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = eval_settings(224, [0.0] * 3, [1.0] * 3, decode)
    pixels = EvalTransform(settings)(str(tmp_path / "strip.png"))
    assert pixels.shape == (3, 224, 224) and torch.allclose(pixels, torch.tensor(200 / 255), atol=1e-3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


# what comes of the full decode: speckle, noise, checkerboards

def speckle(height, width):
    """A grey B-scan: layers, each pixel times a number of its own, as the interference of light makes
    them."""
    generator, down = np.random.default_rng(0), np.arange(height)[:, None] / height
    layers = 40 + 120 * np.exp(-(((down - 0.5 - 0.1 * np.sin(3 * np.arange(width) / width)) / 0.08) ** 2))
    return np.clip(layers * generator.gamma(1.5, 1 / 1.5, (height, width)), 0, 255).astype(np.uint8)


def noise(height, width):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def checkerboard(height, width):
    return ((np.add.outer(np.arange(height), np.arange(width)) % 2) * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1000, 512), (300, 257), (768, 496), (999, 1001), (230, 1500), (40, 31)])
@pytest.mark.parametrize("draw", [speckle, noise, checkerboard])
def test_what_is_no_jpeg_is_read_to_a_level_of_the_full_decode(tmp_path, size, draw):
    for suffix in (".png", ".tif"):
        path = str(tmp_path / f"a{suffix}")
        Image.fromarray(draw(*size[::-1])).save(path)
        for edge, kept in ((224, None), (384, None), (224, 400)):
            settings = (eval_settings(edge, MEAN, STD, decode, kept=kept) for decode in ("full", "scaled"))
            full, scaled = (EvalTransform(one)(path) for one in settings)
            assert grey_levels(full, scaled) < 1, (suffix, edge, kept)


@pytest.mark.parametrize("quality", [75, 85, 95])
def test_a_jpeg_of_speckle_is_decoded_whole(tmp_path, quality):
    """At half its size its speckle would differ by 7 levels; so it does in checkpoints that were trained that
    way."""
    scan, path = Image.fromarray(speckle(512, 1000)), str(tmp_path / "a.jpg")
    marked = scan.convert("RGB")
    marked.paste((0, 255, 0), (700, 0, 702, 512))  # the line that says where the scan was taken
    for picture in (scan, scan.convert("RGB"), marked):
        picture.save(path, quality=quality)
        settings = [eval_settings(224, MEAN, STD, decode) for decode in ("full", "scaled")]
        full, scaled = (EvalTransform(one)(path) for one in settings)
        assert grey_levels(full, scaled) < 1
        before = {name: value for name, value in settings[1].items() if name != "reduced"}
        assert grey_levels(full, EvalTransform(before)(path)) > 4


def test_settings_of_before_there_was_an_entry_read_as_they_did(tmp_path):
    path = str(tmp_path / "a.png")
    Image.fromarray(speckle(512, 1000)).save(path)
    settings = eval_settings(224, (0, 0, 0), (1, 1, 1), "scaled")
    assert settings.pop("reduced") == "colour"
    halved = Image.open(path).convert("RGB").reduce(2)
    expected = torch.from_numpy(np.array(halved)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(expected, (256, 500), mode="bicubic",
                                               antialias=True)[0, :, 16:240, 138:362]
    assert (EvalTransform(settings)(path) * 255 - expected).abs().max() < 0.01
