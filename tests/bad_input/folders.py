"""Folders of train, val and test that are not laid out as they should be, or hold more than images."""

import shutil

from tests.bad_input import picture_bytes as made
from tests.bad_input.place import TRAINING, Place, predicting, train
from tests.bad_input.table import ACCEPTED, Row, Table

KIND = "Folders"
TABLE = Table()

NO_FOLDER = Row(
    KIND,
    "The folder of the data is not there, is a file, or `--data_path` is mistyped",
    "--data_path …: not …",
    "pass the folder that holds train, val and test",
)
NO_SPLIT = Row(
    KIND,
    "A split's folder is missing or has another name (`validation`, `Train`), or the path is one level too "
    "high",
    "--data_path …: no folder …; there is …; expected …",
    "name the folders train, val and test",
)
NO_CLASS = Row(
    KIND,
    "Images lie beside the class folders or without any (one level too low)",
    "…: no class folder in it; expected …",
    "put a folder a class into each split",
)
OTHER_CLASSES = Row(
    KIND,
    "A class is missing in a split, or is written otherwise there (`Dry`, `dry `, an extra folder)",
    "--data_path …: the class folders differ between splits: …",
    "give every split the same class folders",
)
EMPTY = Row(
    KIND,
    "A class folder is empty, or holds no image",
    "no image (…) in …: add some, or remove the class from every split",
    "add images, or remove the class from every split",
)
ONE_CLASS = Row(
    KIND,
    "There is one class alone",
    "found 1 class (…): at least 2 are needed",
    "two classes or more can be learned",
)
WRONG_NUMBER = Row(
    KIND,
    "`--nb_classes` is not the number of class folders",
    "--nb_classes …, but found … classes (…): pass --nb_classes …",
    "pass what was found, or look for a stray folder among the names",
)
TEST_SETS = Row(
    KIND,
    "A further test set has a name that no file can have, the name of another one, or classes that train has "
    "not; a folder of `--external` is not there",
    "…: …",
    "name it otherwise; give it classes of train alone",
    does="one line that names the set",
)
IGNORED = Row(
    KIND,
    "Other files lie among the images: `.DS_Store`, `Thumbs.db`, `._copy.jpg`, notes, hidden folders",
    "left out … files that are hidden, no images or this program's own: …",
    "nothing to do",
    ACCEPTED,
    "counts them and names the first",
)
NOT_READ = Row(
    KIND,
    "Images of kinds that are not read lie among the others: DICOM (`.dcm`), HEIC, AVIF, SVG, files of OCT "
    "devices (`.e2e`, `.fda`, `.vol`, `.oct`), volumes (`.npy`, `.nii`)",
    "warning: left out … files of kinds that are not read (…): convert them to PNG, or take them away",
    "convert them to PNG or TIFF",
    ACCEPTED,
    "counts them by their endings",
)
NESTED = Row(
    KIND,
    "Images lie in folders below the class folders, or a link leads back up",
    "",
    "nothing to do",
    ACCEPTED,
    "all below a class folder is taken",
)
NOTHING = Row(
    KIND,
    "The input of predict.py holds no image, is one image, or is not there",
    "--input …",
    "pass a folder with images, or a CSV with their paths",
)


def changed(row: Row, name: str, change, *names: str, words=(), **more) -> None:
    """The kit's folder after `change(folder)`."""

    def make(place: Place):
        change(place.data())
        return train(place, "--data_path", "data", *words)

    TABLE.add(row, name, make, *names, **more)


TABLE.add(NO_FOLDER, "not there", lambda place: train(place, "--data_path", "nowhere"), "nowhere", real=True)
TABLE.add(NO_FOLDER, "the default", lambda place: train(place), "./data/")
TABLE.add(
    NO_FOLDER, "a file", lambda place: train(place, "--data_path", place.write("file", b"x")), "not a folder"
)
TABLE.add(
    NO_FOLDER,
    "a broken link",
    lambda place: [(place.folder / "link").symlink_to("none")] and train(place, "--data_path", "link"),
)
TABLE.add(
    NO_FOLDER,
    "a link to itself",
    lambda place: [(place.folder / "link").symlink_to("link")] and train(place, "--data_path", "link"),
)
TABLE.add(NO_FOLDER, "a name too long for any file", lambda place: train(place, "--data_path", "x" * 5000))

changed(TEST_SETS, "a name with a blank", lambda data: shutil.copytree(data / "test", data / "test_a b"),
        "'a b'")
changed(TEST_SETS, "internal and external", lambda data: [
    shutil.copytree(data / "test", data / name) for name in ("test_A", "ev_A")], "ev_A and test_A")
changed(TEST_SETS, "another class", lambda data: [
    shutil.copytree(data / "test", data / "test_A"), (data / "test_A/dry").rename(data / "test_A/Dry")], "Dry")
changed(TEST_SETS, "no class", lambda data: (data / "ev_A").mkdir(), "ev_A")
changed(TEST_SETS, "external, not there", lambda data: None, "nowhere", words=("--external", "nowhere"))
changed(TEST_SETS, "external, a file", lambda data: (data.parent / "A").write_text("x"), "not a folder",
        words=("--external", "A"))
changed(TEST_SETS, "external, twice", lambda data: shutil.copytree(data / "test", data.parent / "A/test"),
        "same name", words=("--external", "A", "A"))
changed(TEST_SETS, "recalibrated, not there", lambda data: None, "there is test",
        words=("--recalibrate", "A"))

for split in ("train", "val", "test"):
    changed(NO_SPLIT, f"no {split}", lambda data, split=split: shutil.rmtree(data / split), split)
changed(NO_SPLIT, "validation", lambda data: (data / "val").rename(data / "validation"), "validation")
changed(NO_SPLIT, "upper case", lambda data: (data / "train").rename(data / "Train"), "Train")
changed(
    NO_SPLIT,
    "a file called val",
    lambda data: [shutil.rmtree(data / "val"), (data / "val").write_text("x")],
    "val",
)
TABLE.add(NO_SPLIT, "one level too high", lambda place: [place.data()] and train(place, "--data_path", "."),
          "data")
TABLE.add(NO_SPLIT, "one level too low",
          lambda place: [place.data()] and train(place, "--data_path", "data/train"), "dry")
TABLE.add(NO_SPLIT, "an empty folder", lambda place: [(place.folder / "data").mkdir()]
          and train(place, "--data_path", "data"))


def _flat(data):
    for path in list((data / "train").rglob("*.png")):
        path.rename(data / "train" / f"{path.parent.name}{path.name}")
    for folder in ("dry", "wet"):
        (data / "train" / folder).rmdir()


changed(NO_CLASS, "images alone", _flat, "train")
changed(NO_CLASS, "empty split", lambda data: [shutil.rmtree(data / "val"), (data / "val").mkdir()], "val")
changed(
    NO_CLASS,
    "hidden folders alone",
    lambda data: [(data / "val" / name).rename(data / "val" / f".{name}") for name in ("dry", "wet")],
    "val",
)
changed(
    NO_CLASS,
    "class folders that are links to themselves",
    lambda data: [shutil.rmtree(data / "val"), (data / "val").mkdir(), (data / "val/dry").symlink_to("dry")],
    "val",
)

changed(OTHER_CLASSES, "missing in test", lambda data: shutil.rmtree(data / "test/wet"), "test lacks wet")
changed(OTHER_CLASSES, "missing in val", lambda data: shutil.rmtree(data / "val/dry"), "val lacks dry")
changed(
    OTHER_CLASSES,
    "another case",
    lambda data: (data / "test/dry").rename(data / "test/Dry"),
    "test lacks dry",
    "train lacks Dry",
)
changed(OTHER_CLASSES, "a blank at the end", lambda data: (data / "test/dry").rename(data / "test/dry "),
        "test lacks dry")
changed(
    OTHER_CLASSES,
    "another composition of letters",
    lambda data: [
        (data / split / "dry").rename(data / split / ("é" if split == "test" else "e\u0301"))
        for split in ("train", "val", "test")
    ],
)
changed(OTHER_CLASSES, "a stray folder", lambda data: (data / "train/old").mkdir(), "old")

changed(EMPTY, "in every split", lambda data: [(data / split / "new").mkdir()
                                               for split in ("train", "val", "test")], "new")
changed(EMPTY, "in test", lambda data: [path.unlink() for path in (data / "test/dry").iterdir()], "test/dry")
changed(
    EMPTY,
    "other files alone",
    lambda data: [path.rename(path.with_suffix(".dcm")) for path in (data / "val/wet").iterdir()],
    "val/wet",
)
changed(
    EMPTY,
    "hidden images alone",
    lambda data: [path.rename(path.with_name("." + path.name)) for path in (data / "val/wet").iterdir()],
    "val/wet",
)

changed(
    ONE_CLASS, "in folders", lambda data: [shutil.rmtree(data / split / "wet")
                                           for split in ("train", "val", "test")], "dry"
)
for number in (1, 3, 1000):
    changed(WRONG_NUMBER, f"{number}", lambda data: None, "found 2 classes (dry, wet)",
            words=("--nb_classes", number))


def clutter(folder):
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt", "setup.ini", "list.docx", "noextension"):
        (folder / name).write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints/0.png").write_bytes(made.png())


def _cluttered(place: Place):
    clutter(place.data() / "test/dry")
    place.pictures = 4
    return [*TRAINING, "--data_path", "data", "--task", "t"]


TABLE.add(IGNORED, "in training", _cluttered, "left out 8 files")


def _unread(folder):
    for name in ("a.dcm", "b.DCM", "c.dcm", "d.heic", "e.nii.gz", "f.E2E", ".hidden.dcm"):
        (folder / name).write_bytes(b"x")


@TABLE.case(NOT_READ, "in training", "left out 6 files", "(3 .dcm, 1 .")
def _(place: Place):
    _unread(place.data() / "test/dry")
    place.pictures = 4
    return [*TRAINING, "--data_path", "data", "--task", "t"]


@TABLE.case(NOT_READ, "in prediction", "left out 6 files", "1 .nii.gz", "1 .e2e", program="predict.py")
def _(place: Place):
    _unread(place.some_pictures())
    place.pictures = 3
    return predicting(place, "pictures")


def _dicom_alone(data):
    for path in list((data / "train/dry").iterdir()):
        path.rename(path.with_suffix(".dcm"))


changed(EMPTY, "DICOM files alone", _dicom_alone, "files of kinds that are not read", ".dcm)")


@TABLE.case(IGNORED, "in prediction", "left out 8 files", program="predict.py")
def _(place: Place):
    clutter(place.some_pictures())
    place.pictures = 3
    return predicting(place, "pictures")


@TABLE.case(IGNORED, "with a name that is not UTF-8", "left out 1 files", "\\udcff", program="predict.py",
            real=True)
def _(place: Place):
    place.some_pictures()
    place.write("pictures/\udcff.txt", "x")
    place.pictures = 3
    return predicting(place, "pictures")


@TABLE.case(IGNORED, "with a name of several lines", "left out 1 files", "a\\nb.txt", program="predict.py")
def _(place: Place):
    place.some_pictures()
    place.write("pictures/a\nb.txt", "x")
    place.pictures = 3
    return predicting(place, "pictures")


@TABLE.case(NESTED, "deeply")
def _(place: Place):
    data = place.data()
    for depth in range(1, 40, 6):
        place.write("data/test/dry/" + "d/" * depth + "0.png", made.png())
    (data / "test/dry/d/round").symlink_to(data / "test/dry")
    (data / "train/dry/loop").symlink_to("loop")
    place.pictures = 4 + 7
    return [*TRAINING, "--data_path", "data", "--task", "t"]


@TABLE.case(NESTED, "with a folder beside the splits, and files beside class folders")
def _(place: Place):
    place.data()
    place.write("data/unused/x/0.png", b"")
    place.write("data/train/README.txt", b"x")
    place.pictures = 4
    return [*TRAINING, "--data_path", "data", "--task", "t"]


for name, source, words in (
    ("not there", "nowhere", "not there"),
    ("an empty folder", "empty", "no image"),
    ("an image", "p.png", "is an image"),
    ("no image in a tree", "tree", "no image"),
):

    def make(place: Place, source=source):
        (place.folder / "empty").mkdir()
        place.write("p.png", made.png())
        place.write("tree/a/b/notes.txt", b"x")
        return predicting(place, source)

    TABLE.add(NOTHING, name, make, source, words, program="predict.py")
