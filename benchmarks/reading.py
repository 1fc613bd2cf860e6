"""Reading images: what a loader's core does to a file, plain and ours."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from simplejpeg import decode_jpeg

from benchmarks import plain
from benchmarks.pictures import photographs
from benchmarks.timing import Measure, Row, compare_apart, seconds
from util.core.machine import keep_freed_memory
from util.data.images.cache import Kept, default_side, open_cache
from util.data.images.files import ImageSource, resized
from util.data.images.transforms import EvalTransform, TrainTransform, eval_settings, train_settings
from util.options.data import ImageOptions

SIZE = 224


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)


def plain_way(what: str, paths: list[str], number: int) -> Callable[[], None]:
    """A call that takes `number` images through the plain train or eval transform, the k-th with the same
    random draws every time."""
    transform = plain.train_transform(SIZE) if what == "train" else plain.eval_transform(SIZE)

    def work() -> None:
        for k in range(number):
            seed(k)
            # timm's posterize fails under Pillow 13 for 0 bits, after all else is done
            with contextlib.suppress(ValueError):
                transform(plain.read(paths[k % len(paths)]))

    return work


def our_way(what: str, paths: list[str], number: int, kept: int | None = None,
            folder: Path | None = None) -> Callable[[], None]:
    """The same through ours, in memory as the program's loaders have it. kept: the short side to which images
    are first reduced; folder: from the cache there."""
    keep_freed_memory()
    transform = scaled(kept)[what == "eval"]
    source = (open_cache(folder, paths, Kept(kept, "scaled"), 1, lambda line: None) if folder else
              lambda path: path)

    def work() -> None:
        for k in range(number):
            seed(k)
            transform(source(paths[k % len(paths)]))

    return work


def scaled(kept: int | None = None) -> tuple[TrainTransform, EvalTransform]:
    return (TrainTransform(train_settings(SIZE, plain.MEAN, plain.STD, "scaled",
                                          ImageOptions(cache_size=kept))),
            EvalTransform(eval_settings(SIZE, plain.MEAN, plain.STD, "scaled", kept=kept)))


def rows(folder: Path, quick: bool) -> list[Row]:
    """One core; a call is some 20 images, the same draws for both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_files(folder, quick), *_cached(folder, quick)]
    finally:
        torch.set_num_threads(threads)


def _files(folder: Path, quick: bool) -> list[Row]:
    kinds = [("JPEG 2048x2048", (2048, 2048), {}, (">= 4.5x", ">= 7x")),
             ("JPEG 4288x2848", (4288, 2848), {}, (">= 7x", ">= 11x")),
             ("progressive JPEG 2048x2048", (2048, 2048), {"progressive": True}, ("", "")),
             ("noisy JPEG 2048x2048 (2 bits a pixel)", (2048, 2048), {"noise": 5.0}, ("", "")),
             ("PNG 2048x2048", (2048, 2048), {"suffix": ".png", "compress_level": 3}, ("", "")),
             ("TIFF 2048x2048 (LZW)", (2048, 2048), {"suffix": ".tif", "compression": "tiff_lzw"}, ("", ""))]
    found, pairs, number = [], 1 if quick else 7, 3 if quick else 21
    for name, size, options, goals in kinds[:1] if quick else kinds:
        paths = photographs(folder, size, 3, **options)
        limit = _limit(paths)
        for what, goal in zip(("train", "eval"), goals, strict=True):
            found.append(compare_apart(
                f"{name}, {what}, an image", (plain_way, what, paths, number), (our_way, what, paths, number),
                pairs, goal, limit, Measure(of_plain=1 / number, of_ours=1 / number, threads=1)))
        if goals[0]:
            found.append(_difference(name, paths, number))
    return found


def _limit(paths: list[str]) -> str:
    """What no reader can leave out: a JPEG's Huffman codes (the coarsest scale), another file's whole
    decoding."""
    contents = [Path(path).read_bytes() for path in paths]
    jpeg = paths[0].endswith(".jpg")

    def decode() -> None:
        for path, content in zip(paths, contents, strict=True):
            if jpeg:
                decode_jpeg(content, "RGB", min_height=1, min_width=1)
            else:
                Image.open(path).load()

    decode()
    least = min(seconds(decode) for _ in range(5)) / len(paths)
    return f"{1e3 * least:.1f} ms: {'its Huffman codes' if jpeg else 'decoding'} alone"


def _grey_levels(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(((one - other).abs() * 255 * torch.tensor(plain.STD)[:, None, None]).mean())


def _difference(name: str, paths: list[str], number: int) -> Row:
    """Mean difference of crops from those of the full decode, in grey levels: the larger of train's and
    eval's."""
    off = ImageOptions(aa="none", reprob=0)
    exact = (TrainTransform(train_settings(SIZE, plain.MEAN, plain.STD, "full", off)),
             EvalTransform(eval_settings(SIZE, plain.MEAN, plain.STD, "full")))
    ours = (TrainTransform(train_settings(SIZE, plain.MEAN, plain.STD, "scaled", off)), scaled()[1])
    means = []
    for one, other in zip(exact, ours, strict=True):
        crops = []
        for k in range(number):
            for transform in (one, other):
                seed(k)
                crops.append(transform(paths[k % len(paths)]))
        means.append(np.mean([_grey_levels(*pair) for pair in zip(crops[::2], crops[1::2], strict=True)]))
    return Row(f"{name}, crops against the full decode", None, float(max(means)), "grey levels", goal="<= 2")


def _cached(folder: Path, quick: bool) -> list[Row]:
    paths = photographs(folder, (2048, 2048), 3)
    side = default_side(SIZE, (0.08, 1.0), (3 / 4, 4 / 3))
    open_cache(folder / "cache", paths, Kept(side, "scaled"), 2, lambda line: None)
    pairs, number, many = (1, 3, 6) if quick else (7, 12, 240)
    found = []
    for what, goal in (("train", ">= 20x"), ("eval", ">= 60x")):
        found.append(compare_apart(
            f"image cache at {side}, {what}, an image of 2048x2048 from the second epoch on",
            (plain_way, what, paths, number), (our_way, what, paths, many, side, folder / "cache"), pairs,
            goal, measure=Measure(of_plain=1 / number, of_ours=1 / many, threads=1)))
        found.append(compare_apart(
            f"JPEG 2048x2048, {what}, an image, reduced to {side} but not kept",
            (plain_way, what, paths, number), (our_way, what, paths, number, side), pairs,
            measure=Measure(of_plain=1 / number, of_ours=1 / number, threads=1)))
    found.append(_kept_difference(paths, side, 3 if quick else 60))
    return found


def _kept_difference(paths: list[str], side: int, number: int) -> Row:
    """Crops of kept images against the same part of the whole image, flips and colours left out."""
    draw = scaled()[0]._draw_crop
    differences = []
    for k in range(number):
        path = paths[k % len(paths)]
        kept, whole = Kept(side, "scaled").pixels(path), ImageSource(path).decode()
        seed(k)
        top, left, height, width = draw(torch.empty(1).expand(3, *kept.shape[:2]), (0.08, 1.0),
                                        (3 / 4, 4 / 3))
        ours = resized(np.ascontiguousarray(kept[top:top + height, left:left + width]), (SIZE, SIZE))
        scale = whole.width / kept.shape[1]
        box = tuple(scale * edge for edge in (left, top, left + width, top + height))
        exact = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))
        differences.append(np.abs(ours.astype(int) - exact).mean())
    return Row(f"image cache at {side}, crops against the same part of the whole image", None,
               float(np.mean(differences)), "grey levels", goal="<= 2")
