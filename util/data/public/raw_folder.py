"""What a reader of a public data set gets, an unpacked folder, and what it gives, labelled images."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from util.core.errors import InputError
from util.data.csv_columns import some
from util.data.image_endings import EXTENSIONS


class Picture(NamedTuple):
    """A labelled image of RAW_DIR: its class is one of the set's (of several labels those that it has, parted
    by ;), patient "" where unknown, split the owner's or ""."""

    path: Path
    label: str
    patient: str = ""
    split: str = ""


@dataclass
class Found:
    """What a reader found; notes are lines worth telling. no_patients: why patients that are published are
    not known."""

    pictures: list[Picture]
    notes: list[str] = field(default_factory=list)
    no_patients: str = ""


@dataclass(frozen=True)
class PublicSet:
    """A row of the table. pictures: how many images the whole set has with a label; published: the splits its
    owner makes; several: whether an image can have several of the classes, or none."""

    name: str
    url: str
    files: str
    terms: str
    imaging: str
    task: str
    classes: tuple[str, ...]
    pictures: int
    reader: Callable[["RawFolder"], Found]
    patients: str = ""
    published: tuple[str, ...] = ()
    several: bool = False


class RawFolder:
    """All files below a folder, listed once. Hidden ones, and what macOS adds to archives, are passed
    over."""

    def __init__(self, folder: str | os.PathLike, public_set: PublicSet) -> None:
        from util.data.tables import pictures_below  # brings PyTorch, which --help does not need

        if not os.path.isdir(folder):
            problem = "is not a folder" if os.path.exists(folder) else "is not there"
            raise InputError(f"RAW_DIR {folder} {problem}: it must hold {public_set.files}, from "
                             f"{public_set.url}")
        self.folder, self.set, others = Path(folder), public_set, []
        found = map(Path, pictures_below(str(self.folder), others))
        self.pictures, self.others = ([path for path in paths if "__MACOSX" not in self.folders_of(path)]
                                      for paths in (found, map(Path, sorted(others))))
        self.others = [path for path in self.others if not path.name.startswith(".")]

    def missing(self, what: str) -> InputError:
        return InputError(f"{self.set.name}: {what} below {self.folder}; needed are {self.set.files}, from "
                          f"{self.set.url}")

    def file(self, *names: str) -> Path | None:
        """The file whose name ends with one of `names`, however it is punctuated; None where there is
        none."""
        found = [path for path in self.others if plain(path.name).endswith(tuple(map(plain, names)))]
        contents = {path.read_bytes() for path in found} if len(found) > 1 else set()
        if len(contents) > 1:
            raise InputError(f"{self.set.name}: two different files could be {names[0]}: {some(found)}; keep "
                             "one of them")
        return found[0] if found else None

    def needed(self, *names: str) -> Path:
        found = self.file(*names)
        if found is None:
            raise self.missing(f"no file {' or '.join(names)}")
        return found

    def folders_of(self, path: Path) -> list[str]:
        """The names of the folders between RAW_DIR and a file, the nearest first."""
        return list(path.relative_to(self.folder).parts[-2::-1])

    def matched(self, pictures: Iterable[Path], label_of: dict[str, str],
                what: str) -> tuple[list[tuple[Path, str]], list[str]]:
        """Images and {stem: label} -> ([(path, stem)] of those in both, in the labels' order; notes on the
        others)."""
        by_stem = {}
        for path in pictures:
            by_stem.setdefault(stem_of(path.name), []).append(path)
        twice = next((stem for stem in label_of if len(by_stem.get(stem, ())) > 1), None)
        if twice is not None:
            raise InputError(f"{self.set.name}: two images for {twice}: {some(by_stem[twice])}; keep one of "
                             "them")
        pairs = [(by_stem[stem][0], stem) for stem in label_of if stem in by_stem]
        if not pairs:
            raise self.missing(f"none of the {len(label_of)} images that {what} names, such as "
                               f"{next(iter(label_of))},")
        absent = [stem for stem in label_of if stem not in by_stem]
        unlabelled = [path.name for stem, paths in by_stem.items() if stem not in label_of for path in paths]
        return pairs, [*counted(f"named in {what}, but not there", absent),
                       *counted(f"without a label in {what}, left out", unlabelled)]


def counted(what: str, names: list[str]) -> list[str]:
    """A note that says what, how many and which; none where there are none."""
    return [f"{what}: {len(names)} ({some(names)})"] if names else []


def plain(name: str) -> str:
    """A name without what differs between copies: capitals, blanks (also as %20), dots, dashes."""
    return re.sub(r"[^a-z0-9]", "", unquote(name).lower())


def stem_of(name: str) -> str:
    """What names an image in lists and on disk alike: without folder, the ending of an image, and
    capitals."""
    name = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
    return name.rsplit(".", 1)[0] if name.endswith(EXTENSIONS) else name
