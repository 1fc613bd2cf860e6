"""Kill a training again and again, start it again, and hold what comes out against one that was left alone.

    python benchmarks/chaos.py                    50 kills and more: some 15 minutes on two cores
    python benchmarks/chaos.py --kills 200 --seed 1

A round is one small training (drop path, mixup, RandAugment, loader workers, checkpoints inside the epochs),
with one process or two under the launcher, killed at random moments and started again with the same command
until it is done. Then weights, moments, metrics and predictions must be those of the undisturbed run, bit for
bit. Exit code 1 where one is not.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import project_environment  # noqa: E402

FLAGS = shlex.split("--model timm --model_arch test_vit --input_size 32 --nb_classes 2 --batch_size 4 "
                    "--epochs 8 --lr 1e-3 --drop_path 0.2 --mixup 0.8 --num_workers 1 --device cpu "
                    "--save_every_steps 3 --warmup_epochs 1 --task run --resume same")
COMPARED = ("metrics_val.csv", "metrics_test.csv", "metrics_val.json", "metrics_test.json",
            "predictions_val.csv", "predictions_test.csv")
KINDS = {
    "kill": "SIGKILL to everything at once, as a node that loses its power",
    "write": "the same in the middle of a checkpoint's writing",
    "rank": "SIGKILL to one of the processes: the launcher starts them again",
    "term": "SIGTERM to what was started",
    "usr1": "SIGUSR1 to what was started",
}
PATIENCE_S = 300


def write_pictures(folder: Path, number: int = 96) -> None:
    """Two classes of noise, `number` images of 36 x 36 for training and a quarter of it for val and test
    each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", number), ("val", number // 4), ("test", number // 4)):
        for label in range(count):
            place = folder / split / f"class{label % 2}"
            place.mkdir(parents=True, exist_ok=True)
            values = rng.integers(0, 160 + 90 * (label % 2), (36, 36, 3), dtype=np.uint8)
            Image.fromarray(values).save(place / f"{label:03d}.png")


@dataclass
class Training:
    """A training in a folder of its own, which can be started, killed and started again."""

    folder: Path
    pictures: Path
    processes: int = 1
    process: subprocess.Popen | None = None

    @property
    def run_folder(self) -> Path:
        return self.folder / "output_dir" / "run"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        launcher = [str(ROOT / "util/parallel/torchrun.py"), "--standalone", "--nproc_per_node",
                    str(self.processes), "--max-restarts", "3", "--signals-to-handle",
                    "SIGTERM,SIGINT,SIGUSR1"] if self.processes > 1 else []
        words = [sys.executable, *launcher, str(ROOT / "main_finetune.py"), *FLAGS, "--data_path",
                 str(self.pictures)]
        environment = project_environment(OMP_NUM_THREADS="1")
        with open(self.folder / "out.txt", "a") as out, open(self.folder / "err.txt", "a") as err:
            self.process = subprocess.Popen(words, cwd=self.folder, stdout=out, stderr=err,
                                            start_new_session=True, env=environment)

    def ranks(self) -> list[int]:
        """The processes that train: what was started itself, or the launcher's children."""
        if self.processes == 1:
            return [self.process.pid]
        return [pid for pid in children(self.process.pid) if "main_finetune.py" in command_line(pid)]

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def kill_all(self) -> None:
        """SIGKILL to what was started, its children and theirs."""
        below = [pid for child in children(self.process.pid) for pid in (child, *children(child))]
        for pid in (self.process.pid, *below):
            send(pid, signal.SIGKILL)
        self.wait()

    def is_writing(self) -> bool:
        return any(self.run_folder.glob(".checkpoint-*.tmp"))

    def logged(self) -> int:
        log = self.run_folder / "log.txt"
        return len(log.read_text().splitlines()) if log.exists() else 0


def children(pid: int) -> list[int]:
    try:
        return [int(word) for task in Path(f"/proc/{pid}/task").iterdir()
                for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def strike(training: Training, kind: str, moment: float, rng: random.Random) -> int | None:
    """Wait for `moment` (seconds), then kill as `kind` says -> the exit code; None where the training
    continues by itself.

    A training that was done before is left as it is.
    """
    process, deadline = training.process, time.monotonic() + moment
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    while kind == "write" and process.poll() is None and not training.is_writing():
        time.sleep(0.0005)
    if process.poll() is not None:
        return process.returncode
    if kind == "rank":
        ranks = training.ranks()
        return None if ranks and send(rng.choice(ranks), signal.SIGKILL) else strike(training, "kill", 0, rng)
    if kind in ("kill", "write"):
        training.kill_all()
    else:
        send(process.pid, signal.SIGTERM if kind == "term" else signal.SIGUSR1)
    return training.wait()


def torn(folder: Path) -> list[str]:
    """Files of a run that can't be read, as they lie there after a kill."""
    found = []
    for path in [*folder.glob("checkpoint-*.pth"), *folder.glob("*.json")]:
        try:
            torch.load(path, weights_only=True) if path.suffix == ".pth" else json.loads(path.read_text())
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            found.append(f"{path.name}: {error}")
    for path in folder.glob("*.csv"):
        if not path.read_text().endswith("\n"):
            found.append(f"{path.name}: its last line is cut")
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What of two finished runs is not the same: weights and moments bit for bit, tables byte for byte, the
    log but for the seconds."""
    found = [name for name in COMPARED if (one / name).read_bytes() != (other / name).read_bytes()]
    for name in ("checkpoint-best.pth", "checkpoint-last.pth"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for key in ("model", "optimizer", "best", "epoch", "progress", "schedule"):
            if not same(a.get(key), b.get(key)):
                found.append(f"{name}: {key}")
    rows = [[{key: value for key, value in json.loads(line).items() if key != "seconds"}
             for line in (folder / "log.txt").read_text().splitlines()] for folder in (one, other)]
    return found + (["log.txt"] if rows[0] != rows[1] else [])


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (isinstance(other, dict) and one.keys() == other.keys()
                and all(same(one[key], other[key]) for key in one))
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@dataclass
class Tally:
    """What a series of kills came to."""

    kills: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rounds: int = 0


def undisturbed(folder: Path, pictures: Path, processes: int) -> tuple[Training, float, float]:
    """A run that is left alone, the seconds until its first epoch is logged, and those from there to its
    end."""
    training = Training(folder, pictures, processes)
    began = time.monotonic()
    training.start()
    while training.logged() == 0 and training.process.poll() is None:
        time.sleep(0.01)
    first = time.monotonic() - began
    if training.wait() != 0:
        raise SystemExit(f"the undisturbed run failed: {(folder / 'err.txt').read_text()[-2000:]}")
    return training, first, time.monotonic() - began - first


def one_round(training: Training, reference: Path, kinds: list[str], start_s: float, train_s: float,
              rng: random.Random, tally: Tally) -> None:
    """Start and kill, once for each of `kinds`, then let the training finish and compare it with the
    undisturbed one."""
    waiting = list(kinds)
    tally.rounds += 1
    training.start()
    while True:
        if not waiting:
            code = training.wait()
        else:
            kind = waiting.pop(0)
            # one in five while it starts, the others in the first part of what is left to train
            moment = rng.uniform(0, start_s) if rng.random() < 0.2 else start_s + rng.uniform(0, train_s / 3)
            code = strike(training, kind, 0.7 * start_s if kind == "write" else moment, rng)
            if code != 0:
                tally.kills[kind] += 1
            tally.problems += torn(training.run_folder)
            if code is None:
                continue
        tally.codes[code] += 1
        if code == 0:
            break
        if code in (1, 2):
            tally.problems.append(f"a start ended with {code}: "
                                  f"{(training.folder / 'err.txt').read_text()[-500:]}")
            return
        training.start()
    tally.problems += [f"round {tally.rounds}: {name} differs"
                       for name in differences(reference, training.run_folder)]
    err = (training.folder / "err.txt").read_text()
    if "Traceback" in err:
        tally.problems.append(f"round {tally.rounds}: a traceback: {err[-1500:]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds")
    options = parser.parse_args(argv)
    rng, tally = random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        folder = Path(folder)
        write_pictures(folder / "pictures")
        references = {number: undisturbed(folder / f"alone{number}", folder / "pictures", number)
                      for number in (1, 2)}
        while tally.kills.total() < options.kills and not tally.problems:
            processes = 1 + tally.rounds % 2
            alone, start_s, train_s = references[processes]
            kinds = rng.choices([kind for kind in KINDS if processes > 1 or kind != "rank"], k=6)
            training = Training(folder / f"round{tally.rounds}", folder / "pictures", processes)
            one_round(training, alone.run_folder, kinds, start_s, train_s, rng, tally)
            print(f"round {tally.rounds} ({processes} process{'es' if processes > 1 else ''}): "
                  f"{tally.kills.total()} kills so far, {len(tally.problems)} problems", flush=True)
    kinds = ", ".join(f"{kind} {number}" for kind, number in tally.kills.items())
    print(f"{tally.kills.total()} kills in {tally.rounds} rounds: {kinds}")
    print("ends: " + ", ".join(f"{code} x {n}" for code, n in sorted(tally.codes.items())))
    print("torn files, differing results, tracebacks: "
          + ("none" if not tally.problems else "\n".join(tally.problems)))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
