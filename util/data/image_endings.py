"""The endings of image files: those that are read, and those of kinds that are not, which a line names."""

import os
from collections import Counter

from util.data.csv_columns import some

# All by which Pillow knows the formats of images.FORMATS. Of an animated GIF, PNG or WebP, and of a TIFF of
# several pages, the first frame is read.
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".webp", ".gif",
              ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")
# Images too, but of kinds that are not read (DICOM, phones, OCT devices, volumes, raw, …): data must not be
# small unnoticed.
NOT_READ = (".dcm", ".dicom", ".ima", ".heic", ".heif", ".avif", ".svg", ".e2e", ".fda", ".fds", ".vol",
            ".oct", ".npy", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".jxl", ".psd", ".dng", ".cr2",
            ".cr3", ".nef", ".arw", ".tga", ".dib")


def left_out(ignored: list[str]) -> list[str]:
    """Lines about what `tables.pictures_below` did not take, or none: a warning that names the kinds that are
    not read, and the rest."""
    endings = {path: _ending_not_read(os.path.basename(path).lower()) for path in ignored}
    kinds, lines = Counter(filter(None, endings.values())), []
    rest = [path for path, ending in endings.items() if not ending]
    if kinds:
        counted = ", ".join(f"{number:,} {ending}" for ending, number in kinds.most_common())
        lines.append(f"warning: left out {kinds.total():,} files of kinds that are not read ({counted}): "
                     "convert them to PNG, or take them away")
    what = "files that are hidden, no images or this program's own"
    return lines + ([f"left out {len(rest):,} {what}: {some(rest)}"] if rest else [])


def _ending_not_read(name: str) -> str:
    return "" if name.startswith(".") else next((ending for ending in NOT_READ if name.endswith(ending)), "")
