"""From an image to the (3, S, S) tensor that a model takes, for training and for evaluation.

Training is timm's recipe (random resized crop, flips, RandAugment or colour jitter, random erasing), built by
timm. Only the crop is our own: its box is drawn, with timm's own draws, from the size in the file's header,
so that the decoder may compute the image no finer than the crop needs (`decode="scaled"`); the part is then
resized as 8-bit pixels, which PyTorch does in a fraction of Pillow's time. Evaluation resizes the short side
and cuts out the centre. With `decode="full"` both equal timm's and torchvision's own results bit for bit.

Settings are plain dicts of numbers, strings and lists: they are stored in the checkpoint. What came to be
said of the reading of an image after the first version has an entry of its own; where it is absent, images
are read as they were.
"""
import math
import os
import random
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import Compose
from torchvision.transforms import functional as F

from util.core.errors import InputError
from util.data.images import affine
from util.data.images.as_shown import Reading
from util.data.images.cache import Kept, KeptSource
from util.data.images.files import ImageSource, resized
from util.data.images.fundus_fields import FUNDUS_CROPS, Fields, SquareSource
from util.options.data import ImageOptions
from util.options.model import ModelOptions

DECODES = ("full", "scaled")
FITS = ("crop", "pad", "squash")
READ_IMAGES = ("as_shown", "as_stored")
# raise it when the same file and settings give other numbers: what was kept of the old ones is computed anew
READING = 2
# Pixels of an image resized whole. A strip of 1 x 60,000 would become one of 256 x 15,360,000, 12 GB of it,
# for the 224 x 224 in its middle: beyond this only these are computed, equal to a level or two.
MOST_RESIZED = 2**28
ERASE_MODES = ("const", "rand", "pixel")
# Entries that decide which pixels a transform gets, the same in training and evaluation.
OF_READING = ("mean", "std", "decode", "kept", "reduced", "fundus_crop", "fit", "read_images", "bits",
              "floats")
OFF = ("", "none", "off")
USUAL_IMAGES, USUAL_MODEL = ImageOptions(), ModelOptions()
Source = ImageSource | SquareSource | KeptSource  # what a transform reads

# What timm's parsers take. They skip a section they don't know ("rand-m9-oops"), which is an error here.
_NUMBER = r"\d+(\.\d*)?"
_AUTO_AUGMENTS = re.compile(
    rf"rand(-(m\d+|n[1-9]|inc[01]|mmax\d+|p{_NUMBER}|mstd{_NUMBER}|t(weights|3aw|3a)))*"
    rf"|augmix(-(m\d+|w[1-9]|d\d+|b[01]|a{_NUMBER}|mstd{_NUMBER}))*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})*"
)


def eval_settings(input_size: int, mean: Sequence[float], std: Sequence[float], decode: str,
                  kept: int | None = None, model: ModelOptions = USUAL_MODEL) -> dict:
    """Settings of `EvalTransform`: input_size in pixels, mean and std a channel (of 0…1), decode full or
    scaled.

    kept: the short side in pixels that an image is first brought to, so that it can be kept in a cache; None:
    its own. Of the model's options those count that say how an image is read.

    fundus_crop: "auto" cuts a photograph to the square around its round field first
    (util/data/images/fundus_fields.py). resize: how an image that is no square comes into one: "crop" takes
    the centre of the resized image, "pad" adds black beside its longer sides, "squash" resizes width and
    height alike to input_size. read_images: as_shown or as_stored (`Reading`); the range of deep images is
    told by `with_depth`.

    With "crop" the short side becomes int(input_size / 0.875) up to 224 pixels, input_size itself beyond.
    Raises InputError.
    """
    settings = _common_settings("eval", input_size, mean, std, decode, kept, model)
    _require_one_of("--read_images", model.read_images, READ_IMAGES)
    return settings | {"resize": resized_side(input_size, model.resize), "read_images": model.read_images}


def with_depth(settings: dict, bits: int | None, floats: float | None) -> dict:
    """The settings with the range of images of more than 8 bits (`Reading`), where nothing said it before."""
    known = {name: settings.get(name) or value for name, value in (("bits", bits), ("floats", floats))}
    return settings | known if settings.get("read_images") == "as_shown" else settings


def resized_side(input_size: int, fit: str = "crop") -> int:
    """Pixels of the short side from which evaluation cuts out its centre of `input_size`."""
    return int(input_size / 0.875) if input_size <= 224 and fit == "crop" else input_size


def seen_share(size: tuple[int, int], settings: dict) -> float:
    """Of the area of an image of `size` (width, height), the share that evaluation looks at; after the fundus
    crop."""
    if settings.get("fit", "crop") != "crop":
        return 1.0
    shares = (min(1.0, settings["input_size"] * min(size) / (settings["resize"] * side)) for side in size)
    return math.prod(shares)


def train_settings(input_size: int, mean: Sequence[float], std: Sequence[float], decode: str,
                   images: ImageOptions = USUAL_IMAGES, model: ModelOptions = USUAL_MODEL) -> dict:
    """Settings of `TrainTransform`; input_size, mean, std, decode and model as in `eval_settings`; of the
    images' options (whose kept_side is its `kept`):

    crop_scale: (least, most) share of the image's area in a crop; crop_ratio: (least, most) width / height.
    hflip, vflip: probabilities. aa: a timm auto-augment string; none or "" is off. color_jitter: a strength,
    or one each for brightness, contrast, saturation (and hue); None is off, and timm applies it only where aa
    is off or is its 3-augment (see `color_jitter_applies`). reprob, remode, recount: probability, filling and
    most boxes of random erasing.

    A random crop is one of the image as it is (crop), with its black (pad), or as a square (squash). Raises
    InputError naming the flag.
    """
    settings = _common_settings("train", input_size, mean, std, decode, images.kept_side, model)
    for flag, (low, high), most in (("--crop_scale", images.crop_scale, 1),
                                    ("--crop_ratio", images.crop_ratio, math.inf)):
        if not 0 < low <= high <= most:
            raise InputError(f"{flag} {low} {high}: two numbers MIN MAX with 0 < MIN <= "
                             f"MAX{' <= 1' * (most == 1)}")
    for flag, value in (("--hflip", images.hflip), ("--vflip", images.vflip), ("--reprob", images.reprob)):
        if not 0 <= value <= 1:
            raise InputError(f"{flag} {value}: a probability is between 0 and 1")
    _require_one_of("--remode", images.remode, ERASE_MODES)
    if int(images.recount) != images.recount or images.recount < 1:
        raise InputError(f"--recount {images.recount}: a whole number, at least 1")
    aa = "" if images.aa is None or images.aa.lower() in OFF else images.aa
    if aa and not _AUTO_AUGMENTS.fullmatch(aa):
        raise InputError(f"--aa {aa}: not a timm auto-augment string; write none, or for example "
                         "rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original, v0, 3a")
    return settings | {
        "crop_scale": [float(value) for value in images.crop_scale],
        "crop_ratio": [float(value) for value in images.crop_ratio],
        "hflip": float(images.hflip),
        "vflip": float(images.vflip),
        "color_jitter": _color_jitter(images.color_jitter),
        "aa": aa,
        "reprob": float(images.reprob),
        "remode": images.remode,
        "recount": int(images.recount),
    }


def read_alike(settings: dict, other: dict) -> dict:
    """The settings, with what decides how an image is read as the other has it: so a resumed run that began
    before an entry was there reads as it began."""
    kept = {name: value for name, value in settings.items() if name not in OF_READING}
    return kept | {name: other[name] for name in OF_READING if name in other}


def color_jitter_applies(settings: dict) -> bool:
    """False where timm leaves a given color_jitter out, because an auto-augment string takes its place."""
    return settings["color_jitter"] is not None and (not settings["aa"] or "3a" in settings["aa"])


class EvalTransform:
    """Bicubic resize of the short side, centre crop, normalisation. settings: from `eval_settings`; fields:
    `Fields` that are known already, or None."""

    def __init__(self, settings: dict, fields: Fields | None = None) -> None:
        self.settings, self._fields = settings, fields
        self._normalise = _Normalise(settings)

    def __call__(self, source: str | os.PathLike | Source) -> torch.Tensor:
        """source: a path, or an object like `ImageSource` -> (3, S, S) float32. Raises ImageError."""
        return self._normalise(self.pixels(source))

    def pixels(self, source: str | os.PathLike | Source) -> np.ndarray:
        """(S, S, 3) uint8, before the normalisation. Raises ImageError."""
        settings, source = self.settings, _as_source(source, self.settings, self._fields)
        width, height = source.size
        short, edge = min(width, height), settings["input_size"]
        # As torchvision rounds: the long side down, the centre to the nearest pixel.
        size = tuple(int(settings["resize"] * side / short) for side in (width, height))
        if settings.get("fit", "crop") == "squash":
            size = edge, edge
        if settings["decode"] == "full" and size[0] * size[1] <= MOST_RESIZED:
            image = source.decode().resize(size, Image.Resampling.BICUBIC)  # as timm and torchvision do it
            return np.array(F.center_crop(image, edge))
        pixels, covers = source.whole(size)
        left, top = (round((side - edge) / 2) for side in size)
        # as checkpoints of before were scored
        within = 1 / 64 if Reading.of(settings).reduced == "any" else 1 / 512
        return resized(pixels, size, (left, top, left + edge, top + edge), covers, within)


class TrainTransform:
    """timm's training recipe. settings: from `train_settings`; fields: `Fields` that are known already, or
    None. Draws from python's, numpy's and torch's generators."""

    def __init__(self, settings: dict, fields: Fields | None = None) -> None:
        self.settings, self._fields = settings, fields
        cropping, augmenting, finishing = create_transform(
            input_size=settings["input_size"],
            is_training=True,
            scale=tuple(settings["crop_scale"]),
            ratio=tuple(settings["crop_ratio"]),
            hflip=settings["hflip"],
            vflip=settings["vflip"],
            color_jitter=settings["color_jitter"],
            auto_augment=settings["aa"] or None,
            interpolation="bicubic",
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            re_prob=settings["reprob"],
            re_mode=settings["remode"],
            re_count=settings["recount"],
            separate=True,
        )
        for operation in _augment_operations(augmenting):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
            elif settings["decode"] == "scaled":
                affine.use_in(operation)
        self._draw_crop = cropping.transforms[0].get_params
        self._augment = Compose(cropping.transforms[1:] + augmenting.transforms)
        # timm's own tensor and normalisation are left out for `_Normalise`, which gives the same bits sooner
        self._normalise = _Normalise(settings)
        self._erase = Compose([step for step in finishing.transforms if isinstance(step, RandomErasing)])

    def __call__(self, source: str | os.PathLike | Source) -> torch.Tensor:
        """source: a path, or an object like `ImageSource` -> (3, S, S) float32. Raises ImageError."""
        found = self.pixels(source)
        return found if isinstance(found, torch.Tensor) else self._normalise(found)

    def pixels(self, source: str | os.PathLike | Source) -> np.ndarray | torch.Tensor:
        """(S, S, 3) uint8, before the normalisation; (3, S, S) float32 of an image in which random erasing,
        whose fillings are no pixels, has erased. Raises ImageError."""
        settings, source = self.settings, _as_source(source, self.settings, self._fields)
        width, height = source.size
        if squashes := settings.get("fit", "crop") == "squash":  # a crop of the square that the image becomes
            side = max(width, height)
            across, down, (width, height) = width / side, height / side, (side, side)
        shape_only = torch.empty(1).expand(3, height, width)  # timm asks for its size alone; one element
        top, left, crop_height, crop_width = self._draw_crop(shape_only, settings["crop_scale"],
                                                             settings["crop_ratio"])
        box, size = (left, top, left + crop_width, top + crop_height), (settings["input_size"],) * 2
        if squashes:
            left, top = int(left * across), int(top * down)
            box = (left, top, left + max(1, round(crop_width * across)),
                   top + max(1, round(crop_height * down)))
        if settings["decode"] == "full":
            # cut first, then resized: Pillow's resize with a box would also look at pixels outside it
            crop = source.decode().crop(box).resize(size, Image.Resampling.BICUBIC)
        else:
            crop = Image.fromarray(resized(source.part(box, size), size))
        pixels = np.array(self._augment(crop))
        return self._erase(self._normalise(pixels)) if self._erases() else pixels

    def _erases(self) -> bool:
        """Whether timm's erasing, whose next draw decides that, will do anything."""
        state = random.getstate()
        drawn = random.random()
        random.setstate(state)
        return any(drawn <= step.probability for step in self._erase.transforms)

    def __reduce__(self) -> tuple[type["TrainTransform"], tuple[dict, Fields | None]]:
        return TrainTransform, (self.settings, self._fields)


class _Normalise:
    """(S, S, 3) uint8 -> (3, S, S) float32: the operations of timm and torchvision, in place."""

    def __init__(self, settings: dict) -> None:
        self._mean, self._std = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        return torch.empty(planes.shape).copy_(planes).div_(255).sub_(self._mean).div_(self._std)


def _as_source(source: str | os.PathLike | Source, settings: dict, fields: Fields | None) -> Source:
    if not isinstance(source, (str, os.PathLike)):
        return source
    kept = Kept.of(settings, fields)
    return KeptSource(kept.pixels(source)) if kept.side else kept.source(source)


def _augment_operations(augmenting: Compose) -> Iterator[AugmentOp]:
    """timm's AugmentOps inside its second stage: RandAugment and AugMix have a list, AutoAugment lists."""
    for step in augmenting.transforms:
        for item in getattr(step, "ops", None) or getattr(step, "policy", None) or []:
            yield from [item] if isinstance(item, AugmentOp) else item


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """timm's posterize, also for 0 bits: black. There Pillow 13 raises (RandAugment's magnitude 10)."""
    if bits_to_keep >= 8:
        return image
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits_to_keep)


def _common_settings(kind: str, input_size: int, mean: Sequence[float], std: Sequence[float], decode: str,
                     kept: int | None, model: ModelOptions) -> dict:
    if int(input_size) != input_size or input_size < 1:
        raise InputError(f"--input_size {input_size}: a whole number of pixels, at least 1")
    _require_one_of("--decode", decode, DECODES)
    _require_one_of("--fundus_crop", model.fundus_crop, FUNDUS_CROPS)
    _require_one_of("--resize", model.resize, FITS)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"mean {mean} and std {std} of the transform: three numbers each, std above 0")
    return {
        "kind": kind,
        "input_size": int(input_size),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "decode": decode,
        "kept": kept,
        "reduced": "colour",
        "fundus_crop": model.fundus_crop,
        "fit": model.resize,
        "read_images": "as_shown",
        "bits": None,
        "floats": None,
    }


def _require_one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{flag} {value}: one of {', '.join(known)}")


def _color_jitter(strength: float | Sequence[float] | None) -> float | list[float] | None:
    if strength is None:
        return None
    values = [float(value) for value in (strength if isinstance(strength, list | tuple) else [strength])]
    if len(values) not in (1, 3, 4) or min(values) < 0 or (len(values) == 4 and values[3] > 0.5):
        raise InputError(f"--color_jitter {strength}: a number from 0 up, or 3 for brightness, contrast and "
                         "saturation, or 4 with a hue up to 0.5")
    return values if len(values) > 1 else values[0]
