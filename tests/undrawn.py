"""Charts that nobody looks at: drawing them is more than half of a test of the whole way. tests/report looks
at them."""

from collections.abc import Callable

import matplotlib.figure
import matplotlib.pyplot  # takes Figure as it is when it is imported
import numpy as np
import optuna.visualization.matplotlib  # noqa: F401 (the same)
from matplotlib.transforms import IdentityTransform
from PIL import Image


class Undrawn:
    """In place of matplotlib's Figure and of all that is drawn on it: takes every call, and saves an image of
    one pixel or an empty drawing."""

    dpi_scale_trans = transFigure = transData = IdentityTransform()

    def __init__(self, figsize: tuple[float, float] = (1, 1), **how: object):
        self.size = figsize

    def __getattr__(self, name: str) -> "Undrawn":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *words: object, **how: object) -> "Undrawn":
        return self

    def __getitem__(self, key: object) -> "Undrawn":
        return self

    def __iter__(self):
        return iter(())

    def get_size_inches(self) -> tuple[float, float]:
        return self.size

    def bar(self, middles, *words: object, **how: object) -> list["Undrawn"]:
        return [self for _ in middles]

    barh = bar

    def get_xlim(self) -> tuple[float, float]:
        return 0.0, 1.0

    def subplots(self, rows: int, columns: int, **how: object) -> np.ndarray:
        found = np.empty((rows, columns), dtype=object)
        found.fill(self)
        return found

    def savefig(self, path, **how: object) -> None:
        if how["format"] == "svg":
            path.write(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')
        else:
            Image.new("RGB", (1, 1)).save(path, format="png")


def install(put: Callable[[object, str, object], None]) -> None:
    """By `put`, setattr or monkeypatch's. Figures of pyplot, which others draw on, are built and not saved."""
    put(matplotlib.figure.Figure, "savefig", Undrawn.savefig)
    put(matplotlib.figure, "Figure", Undrawn)
