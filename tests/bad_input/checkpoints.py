"""Weight files and checkpoints: cut, foreign, lying, hostile."""

import argparse
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from tests.bad_input.place import TRAINING, Place, predicting, train
from tests.bad_input.table import ACCEPTED, FAILED, Row, Table

KIND = "Weights and checkpoints"
TABLE = Table()

ABSENT = Row(
    KIND,
    "The file is not there, is a folder, a pipe or a device",
    "…",
    "pass the path of the file itself",
    does="one line that says what stands there instead",
)
EMPTY = Row(
    KIND, "The file is empty", "weight file … is empty: fetch or copy it again", "fetch or copy it again"
)
POINTER = Row(
    KIND,
    "The file is a Git LFS pointer",
    "… is a Git LFS pointer, not the weights themselves: fetch it with `git lfs pull`",
    "`git lfs pull`",
)
PAGE = Row(
    KIND,
    "The file is a web page: a download was answered by a log-in",
    "… is a web page, not weights: the download was answered with a page (log in or ask for access first)",
    "log in, or ask for access first",
)
DAMAGED = Row(
    KIND,
    "The file was cut short, damaged, or is of another kind (an image, a zip archive, a numpy or Keras file)",
    "… is damaged or no …: fetch or copy it again (…)",
    "fetch it again; compare its size with the source",
)
PACKED = Row(
    KIND,
    "An archive with weight files in it, as RETFound-DE's PreTraining.zip",
    "… is an archive with weight files in it (…): unpack it and pass one of them",
    "unpack it",
)
HOSTILE = Row(
    KIND,
    "The file holds code, or objects that only code can make: nothing in it is run",
    "… holds …: refused, and nothing in it was run; ask its author for a file of tensors alone (or a "
    ".safetensors file)",
    "ask its author for the tensors alone, or a `.safetensors` file",
)
BOMB = Row(
    KIND,
    "A zip bomb, or a tensor that claims far more numbers than its file holds",
    "… claims …: refused…",
    "do not use that file",
)
NO_TENSORS = Row(
    KIND,
    "The file holds no table of tensors",
    "… holds …",
    'pass the file of weights: a table of tensors by name, or {"model": table}',
)
OTHER_ENTRY = Row(
    KIND,
    "There is something else among the tensors, or a sparse, quantized or complex one",
    "… is no weight file: its entry … is …",
    "pass the file of weights, or take that entry out",
)
MISFIT = Row(
    KIND,
    "The weights are of another model, another size, or only a part is there",
    "… does not fit … (… of … tensors fit; …): check --model, --model_arch and the file",
    "pass the flags of the model that the file belongs to; `--allow_partial` starts all the same and names "
    "what is new",
)
NOT_FINITE = Row(
    KIND,
    "The weights to start from hold NaN or infinite numbers",
    "… holds NaN or infinite numbers in …",
    "the file's training diverged or the file is damaged: take another",
)
DIVERGED = Row(
    KIND,
    "A trained checkpoint holds NaN",
    "…NaN…",
    "its training diverged: train again with a lower `--lr`",
    FAILED,
)
CONTRADICTS = Row(
    KIND,
    "Flags contradict what a trained checkpoint says of itself (architecture, number of classes, task, "
    "targets)",
    "…",
    "leave the flags out: the checkpoint knows its own",
    does="one line that names the flag and what the checkpoint says",
)
NOT_TO_RESUME = Row(
    KIND,
    "Training cannot go on from this file (the best epoch's, backbone weights, another task's, one of "
    "another `--adaptation`)",
    "…",
    "resume from `checkpoint-last.pth`; start from other weights with `--finetune`",
    does="one line that says what the file is and what to go on from",
)
NO_HEAD = Row(
    KIND,
    "A backbone's weights are given where a trained checkpoint is needed",
    "… has no …: …",
    "train first: `main_finetune.py --finetune FILE`",
)
WORKS = Row(
    KIND,
    "Weights of another script (`model`, `state_dict`, `module.`), with an `argparse.Namespace`, in half "
    "precision, or a `.safetensors` file called `.pth` and the other way round",
    "",
    "nothing to do",
    ACCEPTED,
    "they are read",
)

START = "--finetune"


def saved(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def old_format(content) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def weights(place: Place) -> dict:
    return torch.load(place.kit.best, weights_only=True)["model"]


def whole(place: Place) -> dict:
    return torch.load(place.kit.best, weights_only=True)


def start_from(row: Row, name: str, content, *names: str, file="w.pth", words=(), **more) -> None:
    """main_finetune.py --finetune FILE; content: bytes, or a function of the place that gives bytes."""

    def make(place: Place):
        place.write(file, content(place) if callable(content) else content)
        place.data()
        begin = [*TRAINING, "--task", "t"] if row.outcome == ACCEPTED else train(place)
        place.pictures = 4 if row.outcome == ACCEPTED else None
        return [*begin, "--data_path", "data", START, file, *words]

    TABLE.add(row, name, make, *names, **more)


def score(row: Row, name: str, content, *names: str, file="c.pth", program="predict.py", words=(),
          **more) -> None:
    """predict.py --resume FILE, or main_finetune.py --eval."""

    def make(place: Place):
        place.write(file, content(place) if callable(content) else content)
        if program == "predict.py":
            place.some_pictures()
            place.pictures = 3 if row.outcome == ACCEPTED else None
            return predicting(place, "pictures", *words, checkpoint=file)
        place.data()
        return ["--eval", "--resume", file, "--data_path", "data", "--device", "cpu", "--num_workers", 0,
                "--task", "t", *words]

    TABLE.add(row, name, make, *names, program=program, **more)


# ---- no weight file ----------------------------------------------------------------------------------------

TABLE.add(
    ABSENT,
    "not there",
    lambda place: [place.data()] and train(place, "--data_path", "data", START, "none.pth"),
    "none.pth",
    "no such file",
    real=True,
)
TABLE.add(ABSENT, "a folder", lambda place: [place.data()]
          and train(place, "--data_path", "data", START, "data"), "folder")
TABLE.add(
    ABSENT,
    "a pipe",
    lambda place: [place.data(), os.mkfifo("p.pth")] and train(place, "--data_path", "data", START, "p.pth"),
    "p.pth",
)
TABLE.add(
    ABSENT, "a device", lambda place: [place.data()]
    and train(place, "--data_path", "data", START, "/dev/zero"), "/dev/zero"
)
TABLE.add(ABSENT, "a name too long", lambda place: [place.data()]
          and train(place, "--data_path", "data", START, "x" * 5000))
TABLE.add(
    ABSENT,
    "to score, not there",
    lambda place: [place.some_pictures()] and predicting(place, "pictures", checkpoint="none.pth"),
    "none.pth",
    program="predict.py",
)
TABLE.add(
    ABSENT,
    "to score, a folder",
    lambda place: [place.some_pictures()] and predicting(place, "pictures", checkpoint="pictures"),
    "folder",
    program="predict.py",
)
TABLE.add(
    ABSENT,
    "to score, a pipe",
    lambda place: [place.some_pictures(), os.mkfifo("p.pth")]
    and predicting(place, "pictures", checkpoint="p.pth"),
    "p.pth",
    program="predict.py",
)
TABLE.add(
    ABSENT,
    "to score, a link to itself",
    lambda place: (
        [place.some_pictures(), Path("l.pth").symlink_to("l.pth")]
        and predicting(place, "pictures", checkpoint="l.pth")
    ),
    "l.pth",
    program="predict.py",
)
TABLE.add(
    ABSENT,
    "to score, a name too long",
    lambda place: [place.some_pictures()] and predicting(place, "pictures", checkpoint="x" * 5000),
    program="predict.py",
)
TABLE.add(
    ABSENT,
    "to resume, not there",
    lambda place: [place.data()] and train(place, "--data_path", "data", "--resume", "none.pth"),
    "none.pth",
)

LFS, HTML = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    b"\n<!DOCTYPE html><html>log in</html>",
)
for act, ending in ((start_from, "pth"), (score, "pth"), (start_from, "safetensors")):
    title = f"{act.__name__} {ending}".replace("_", " ")
    act(EMPTY, title, b"", file=f"w.{ending}")
    act(POINTER, title, LFS, file=f"w.{ending}")
    act(PAGE, title, HTML, file=f"w.{ending}")
    for name, content in {
        "an image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(99),
        "text": b"weights\n" * 20,
        "zeros": bytes(999),
        "random bytes": np.random.default_rng(2).bytes(999),
    }.items():
        act(DAMAGED, f"{title}, {name}", content, file=f"w.{ending}")

for cut in (2, 100, 5000, -300, -1):
    score(DAMAGED, f"cut at {cut}", lambda place, cut=cut: place.kit.best.read_bytes()[:cut],
          real=cut == 5000)
start_from(DAMAGED, "half", lambda place: place.kit.best.read_bytes()[:600_000])
start_from(DAMAGED, "old format, half", lambda place: old_format(weights(place))[:600_000])
start_from(DAMAGED, "old format, its head", lambda place: old_format(weights(place))[:700])


def flipped(place: Place) -> bytes:
    content = bytearray(place.kit.best.read_bytes())
    place_of = content.index(b"data.pkl") + 600
    content[place_of : place_of + 50] = bytes(50)
    return bytes(content)


def archive(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


start_from(DAMAGED, "a zip archive of images", archive({"a.png": b"x", "b.png": b"y"}))
start_from(PACKED, "a zip archive of weights", archive({"PreTraining/checkpoint-best.pth": b"x"}),
           "PreTraining/checkpoint-best.pth", file="PreTraining.zip")
start_from(DAMAGED, "an empty zip archive", archive({}))
start_from(DAMAGED, "a keras file", b"\x89HDF\r\n\x1a\n" + bytes(99), file="w.h5")
start_from(DAMAGED, "a numpy archive", archive({"w.npy": b"\x93NUMPY\x01\0v\0{'descr': '<f4'}"}))

# ---- trained checkpoints and flags -------------------------------------------------------------------------


def kits(which: str, *words, task=CONTRADICTS, name: str, says=(), program="main_finetune.py", source="data"):
    def make(place: Place):
        place.data()
        more = (
            ["--csv_file", place.kit.csv, "--targets", "depth", "--finetune", "", "--head_depth", 1]
            if program == "main_regression.py"
            else ["--data_path", source]
        )
        return [*TRAINING, "--dry_run", *more, "--resume", getattr(place.kit, which), *words]

    TABLE.add(task, name, make, *says, program=program)


kits(
    "best",
    "--eval",
    "--model_arch",
    "resnet10t",
    name="another architecture",
    says=("resnet10t contradicts it",),
)
kits("best", "--eval", "--nb_classes", 5, name="another number of classes", says=("pass --nb_classes 2",))
kits("best", "--eval", "--input_size", 33, name="a size that can't be cut", says=("nearest sizes",))
kits("numbers", "--eval", name="a regression's in classification", says=("start the other program",))
kits(
    "best",
    "--eval",
    name="a classification's in regression",
    program="main_regression.py",
    says=("start the other program",),
)
kits("best", name="the best one", task=NOT_TO_RESUME, says=("holds the model alone",))
kits("numbers_last", name="of the other program", task=NOT_TO_RESUME, says=("start the other program",))
kits("last", "--start_epoch", 1, name="--start_epoch beyond the end", says=("--start_epoch",))


@TABLE.case(CONTRADICTS, "other targets", "predicts depth", program="main_regression.py")
def _(place: Place):
    return [*TRAINING, "--dry_run", "--csv_file", place.kit.csv, "--targets", "label", "--eval", "--resume",
            place.kit.numbers]


@TABLE.case(CONTRADICTS, "classes that it does not know", "the checkpoint has no class moist")
def _(place: Place):
    (place.data() / "test/wet").rename(place.folder / "data/test/moist")
    return ["--eval", "--resume", place.kit.best, "--data_path", "data", "--device", "cpu"]


@TABLE.case(CONTRADICTS, "class names of one's own", "names its classes itself", program="predict.py")
def _(place: Place):
    place.some_pictures()
    return predicting(place, "pictures", "--class_names", "a", "b")


@TABLE.case(CONTRADICTS, "a mean of a classification and a regression", "differ in their task", program="predict.py")
def _(place: Place):
    place.some_pictures()
    return ["--resume", place.kit.best, place.kit.numbers, *predicting(place, "pictures")[2:]]


@TABLE.case(NOT_TO_RESUME, "another --adaptation", "was trained with other parameters")
def _(place: Place):
    place.data()
    return [
        *TRAINING,
        "--data_path",
        "data",
        "--task",
        "t",
        "--epochs",
        2,
        "--resume",
        place.kit.last,
        "--weight_decay",
        0,
        "--layer_decay",
        0.5,
    ]


TABLE.add(
    NOT_TO_RESUME,
    "a backbone's weights",
    lambda place: (
        [place.data(), place.write("w.pth", saved(weights(place)))]
        and train(place, "--data_path", "data", "--resume", "w.pth")
    ),
    "was not written by this program",
)
score(
    NO_HEAD,
    "in prediction",
    lambda place: saved({name: tensor for name, tensor in weights(place).items()
                         if not name.startswith("head")}),
    words=("--model", "timm", "--model_arch", "test_vit", "--input_size", 32),
)
score(
    NO_HEAD,
    "in scoring",
    lambda place: saved({name: tensor for name, tensor in weights(place).items()
                         if not name.startswith("head")}),
    program="main_finetune.py",
    words=("--model", "timm", "--model_arch", "test_vit", "--input_size", 32),
)

# ---- what works --------------------------------------------------------------------------------------------


def as_safetensors(place: Place) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in weights(place).items()})


start_from(
    WORKS,
    "state_dict with module",
    lambda place: saved({"state_dict": {f"module.{name}": tensor for name, tensor in weights(place).items()},
                         "epoch": 3}),
)
start_from(
    WORKS,
    "with a namespace",
    lambda place: saved({"model": weights(place), "args": argparse.Namespace(lr=1, seed=2)}),
)
start_from(
    WORKS,
    "in half precision",
    lambda place: saved({name: tensor.half() for name, tensor in weights(place).items()}),
)
start_from(WORKS, "old format", lambda place: old_format(weights(place)))
start_from(WORKS, "safetensors", as_safetensors, file="w.safetensors")
start_from(WORKS, "safetensors called pth", as_safetensors)
start_from(WORKS, "pth called safetensors", lambda place: saved(weights(place)), file="w.safetensors")
start_from(WORKS, "a trained checkpoint as a start", lambda place: place.kit.last.read_bytes())
