"""What the stages of benchmarks/gpu.py share: where they write, which models they take, how programs are
started."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import project_environment

if TYPE_CHECKING:
    import torch

    from models_vit import Backbone

ROOT = Path(__file__).resolve().parent.parent
RESULTS, FAILURES = "results.jsonl", "failures.txt"
CLASSES, LAST_LINES, AT_ONCE = 5, 6, 4
Value = TypeVar("Value")
_lock = threading.Lock()


@dataclass(frozen=True)
class Architecture:
    """A row of the table of backbones, and what its check takes. tiny_size: pixels of the small run."""

    name: str
    model: str
    arch: str | None
    tiny_size: int

    @property
    def row(self) -> "Backbone":
        import models_vit

        return models_vit.find_backbone(self.model, self.arch)

    def size(self, tiny: bool) -> int:
        return self.tiny_size if tiny else 224

    def build(self, tiny: bool, drop_path: float = 0.0) -> "torch.nn.Module":
        """The model, drawn from the same seed each time; tiny: a transformer with one block."""
        import torch

        import models_vit

        torch.manual_seed(0)
        changes = {"depth": 1} if tiny and self.model != models_vit.TIMM else {}
        return models_vit.build_model(self.row, CLASSES, self.size(tiny), drop_path, **changes)


MAE = Architecture("RETFound mae ViT-L/16", "RETFound_mae", None, 32)
LARGE = Architecture("RETFound dinov2 ViT-L/14", "RETFound_dinov2", None, 28)
DINOV3 = Architecture("DINOv3 ViT-L/16", "Dinov3", "dinov3_vitl16", 32)
SMALL = Architecture("DINOv2 ViT-S/14", "Dinov2", "dinov2_vits14", 28)
CNN = Architecture("EfficientNet-B4", "timm", "efficientnet_b4", 64)
ARCHITECTURES = (LARGE, MAE, DINOV3, SMALL, CNN)


@dataclass(frozen=True)
class Setting:
    """Where a stage writes (output: findings, work: what is deleted at the end), on what it runs, and whether
    it is the small run, which shows no more than that the check itself works."""

    output: Path
    work: Path
    device: str
    tiny: bool
    stage: str = ""

    def put(self, what: str, ok: bool | None = None, **values: object) -> None:
        """Write a finding, at once. ok: whether a check holds; None for what is only measured."""
        row = {"stage": self.stage, "what": what, **({} if ok is None else {"ok": bool(ok)}),
               **{name: _short(value) for name, value in values.items()}}
        line = json.dumps(row, ensure_ascii=False, default=str)
        with _lock:
            with open(self.output / RESULTS, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            print(line, flush=True)

    def choose(self, tiny: Value, full: Value) -> Value:
        return tiny if self.tiny else full

    def program(self, what: str, words: Sequence[object], code: int = 0, says: str = "",
                seconds: float = 150) -> subprocess.CompletedProcess:
        """Start a program of the project in the work folder, and write whether it ended with this code, said
        these words, and showed no traceback."""
        began = time.monotonic()
        try:
            run = start(ROOT / str(words[0]), [str(word) for word in words[1:]], self.work,
                        project_environment(), 1, seconds)
        except subprocess.TimeoutExpired as error:
            said = [part.decode(errors="replace") if isinstance(part, bytes) else part or ""
                    for part in (error.stdout, error.stderr)]
            late = f"{said[1]}\nno end after {seconds:g} s"
            run = subprocess.CompletedProcess(error.cmd, -1, said[0], late)
        text = run.stdout + run.stderr
        ok = run.returncode == code and says in text and "Traceback" not in text
        self.put(what, ok, code=run.returncode, seconds=time.monotonic() - began,
                 **({} if ok else {"last_lines": last_lines(text)}))
        if not ok:
            self.keep_text(what, text)
        return run

    def programs(self, runs: Sequence[Callable[[], object]]) -> None:
        """Several runs, some at once: a GPU holds several small ones."""
        with ThreadPoolExecutor(self.choose(1, AT_ONCE)) as pool:
            list(pool.map(lambda run: run(), runs))

    def keep_text(self, what: str, text: str) -> None:
        with _lock, open(self.output / FAILURES, "a", encoding="utf-8") as file:
            file.write(f"==== {self.stage}: {what}\n{text[-8000:]}\n")

    def demo(self) -> Path:
        """The demo's images in the work folder, drawn where they are not there yet."""
        from util.data.public.demo import make_demo

        return make_demo(self.work / "demo", self.choose(48, 400), self.choose(64, 320))


def start(program: Path, words: Sequence[str], folder: Path, environment: Mapping[str, str], processes: int,
          timeout: float) -> subprocess.CompletedProcess:
    """A program with its output collected; TimeoutExpired as subprocess.run raises it. processes: 1; the
    tests, which fork it, may start several."""
    if processes != 1:
        raise AssertionError("several processes are started by util/parallel/torchrun.py")
    return subprocess.run([sys.executable, str(program), *words], cwd=folder, env=environment,
                          capture_output=True, text=True, errors="replace", timeout=timeout)


def last_lines(text: str) -> list[str]:
    return [line[:300] for line in text.strip().splitlines()[-LAST_LINES:]]


def read(output: Path) -> list[dict]:
    """All findings so far, in the order of writing; a line that was cut is left out."""
    path = output / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
