"""The fingerprints of many images, remembered in a file, so that a second launch computes only new ones. See
util/data/leakage/near_duplicates.py for what they are."""

from collections.abc import Sequence

import numpy as np

from util.data.images.files import ImageFile
from util.data.images.remembered import Remembered
from util.data.leakage.near_duplicates import FINGERPRINT, VERSION, fingerprint

# the field's name: a file of another version is then of another type
VALUE = f"fingerprint of version {VERSION}"


class Fingerprints(Remembered):
    """One of each image file: path -> FINGERPRINT."""

    dtype = np.dtype([("identity", "<u8"), (VALUE, FINGERPRINT)])
    again = "all images are compared again"
    mapped = True
    most = 100_000  # some 450 MB

    def look(self, file: ImageFile) -> tuple[np.ndarray]:
        return (fingerprint(file),)

    def of(self, paths: Sequence[str]) -> np.ndarray:
        """(N,) of FINGERPRINT; zeros for a file of which none is remembered."""
        entries, known = self._entries(paths)
        found = entries[VALUE]
        found[~known] = 0
        return found
