"""How well, and how fast, the round field of a photograph is found (util/data/images/fundus.py).

    python benchmarks/fundus.py   # drawn fields, IDRiD with its hand marks, images without, the time
    python benchmarks/fundus.py --number 100   # of each kind of drawn field; 40

IDRiD is read from ../shared/data where it lies beside the checkout; scikit-image's photographs where it is
installed (pip install -r requirements-benchmarks.txt). Times are of one thread, the best of five of each
image, on a machine that should do nothing else.
"""

import argparse
import functools
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.data.images.test_fundus import MARKS, circle, crops  # noqa: E402
from tests.drawn_fields import KINDS, draw_field, draw_scan, overlap  # noqa: E402
from util.data.images.files import ImageFile, ImageSource  # noqa: E402
from util.data.images.fundus import find_field, small_image  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
PARTS = 60  # random parts of each ordinary photograph
# Of those that ship with scikit-image: photographs of other things than eyes, and microscopy.
PHOTOGRAPHS = ("astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass",
               "gravel", "hubble_deep_field", "ihc", "moon", "motorcycle_left", "page", "rocket", "text")


def drawn(number: int) -> None:
    everything = []
    for kind in KINDS:
        found = []
        for seed in range(number):
            pixels, true = draw_field(seed, kind)
            field = find_field(pixels)
            found.append(overlap(true, circle(field), pixels.shape) if field else 0.0)
        everything += found
        print(f"  {kind:<20}  least {min(found):.3f}  median {np.median(found):.4f}")
    everything = np.array(everything)
    print(f"drawn fields          {(everything > 0.98).sum()} of {len(everything)} above 0.98; "
          f"found {np.count_nonzero(everything)}; median {np.median(everything):.4f}")


def marked() -> None:
    found = []
    for path in sorted((DATA / "idrid_original").rglob("*.jpg")):
        pixels, factor = small_image(ImageSource(str(path)))
        true = tuple(value / factor for value in MARKS[int(path.stem.split("_")[-1])])
        found.append(overlap(true, circle(find_field(pixels)), pixels.shape))
    print(f"marked originals      least {min(found):.4f} of {len(found)}")
    paths = sorted((DATA / "idrid_512").rglob("*.jpg"))
    radii = [field.radius for path in paths if (field := find_field(small_image(ImageSource(str(path)))[0]))]
    print(f"IDRiD at 512          {len(radii)} of {len(paths)} found; radius {min(radii):.1f} to "
          f"{max(radii):.1f} pixels")


def digits() -> Iterator[np.ndarray]:
    from sklearn.datasets import load_digits

    for values in load_digits().images:
        for size in (64, 280):
            image = Image.fromarray((values * 255 / 16).astype(np.uint8)).convert("RGB")
            yield np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def photographs() -> Iterator[np.ndarray]:
    from sklearn.datasets import load_sample_images

    images = list(load_sample_images().images)
    package = importlib.util.find_spec("skimage")
    if package is None:
        print("scikit-image's photographs are left out: it is not installed (requirements-benchmarks.txt)")
    else:
        folder = Path(package.origin).parent / "data"
        images += [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())
                   if path.stem in PHOTOGRAPHS and path.suffix in (".png", ".jpg", ".jpeg", ".gif")]
    print(f"ordinary photographs: {len(images)}, each whole and in {PARTS} random parts")
    rng = np.random.default_rng(0)
    for image in images:
        size = [max(1, round(side * 300 / min(image.shape[:2]))) for side in image.shape[1::-1]]
        yield np.asarray(Image.fromarray(image).resize(size))
        yield from crops(image, PARTS, rng)


def without(name: str, images: Iterator[np.ndarray]) -> None:
    found = [find_field(pixels) is not None for pixels in images]
    print(f"{name:<20}  {sum(found)} of {len(found)} taken for a field ({100 * np.mean(found):.2f} %)")


def best_of_five(work: Callable[[], object]) -> float:
    """Milliseconds."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def timed() -> None:
    sets = {"drawn": [draw_field(seed, kind)[0] for seed in range(4) for kind in KINDS]}
    paths = sorted((DATA / "idrid_512").rglob("*.jpg"))[::10]
    if paths:
        sets["IDRiD at 512"] = [small_image(ImageSource(str(path)))[0] for path in paths]
    for name, images in sets.items():
        times = [best_of_five(functools.partial(find_field, image)) for image in images]
        print(f"time, {name:<14}  {np.median(times):.2f} ms")
    original = next((DATA / "idrid_original").rglob("*.jpg"), None)
    if original is not None:
        small = best_of_five(lambda: small_image(ImageSource(str(original))))
        check = best_of_five(lambda: ImageFile(str(original), look=True).facts())
        print(f"time, an original     decoding for the search {small:.1f} ms, for the check of all files "
              f"alone {check:.1f} ms")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--number", type=int, default=40, help="drawn fields of each kind")
    torch.set_num_threads(1)
    drawn(parser.parse_args().number)
    if DATA.is_dir():
        marked()
    else:
        print(f"IDRiD is left out: {DATA} is not there")
    without("digits", digits())
    without("drawn OCT scans", (draw_scan(seed) for seed in range(600)))
    without("photographs", photographs())
    timed()


if __name__ == "__main__":
    main()
