"""Charts that nobody looks at: drawing them is a third of a test of the whole way. tests/report looks at
them."""

from matplotlib.figure import Figure
from PIL import Image


def savefig(figure: Figure, path, **how) -> None:
    """In place of Figure.savefig: an image of one pixel, or an empty drawing."""
    if how["format"] == "svg":
        path.write(b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>')
    else:
        Image.new("RGB", (1, 1)).save(path, format="png")
