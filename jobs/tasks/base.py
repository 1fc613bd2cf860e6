"""What a classification and a regression do differently; the rest of a job is the same for both."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from engine_finetune import Mixing
from jobs.run_folder import RunFolder
from models_vit import Backbone, Put, load_trained
from util.core.errors import InputError
from util.data import cases, covariates
from util.data.covariates import Covariate, encode_all
from util.data.tables import Data
from util.metrics import selection, table
from util.metrics.predictions import Evaluated
from util.options.groups import Options
from util.options.training import SPACES, Space
from util.weights.fitting import Fit, WeightFile, put_in

Head = TypeVar("Head", bound=torch.nn.Module)
AUGMENTATIONS = ("crop_scale", "crop_ratio", "hflip", "vflip", "color_jitter", "aa", "reprob", "remode",
                 "recount")


def started_on_cpu(make: Callable[[], Head]) -> Head:
    """A head from the seed alone and on the CPU, so that a backbone of shapes (meta), which draws nothing,
    has the same one."""
    torch.manual_seed(torch.initial_seed())
    with torch.device("cpu"):
        return make()


class Task(ABC):
    """A kind of job: what it reads, what its model gives out, how that is scored.

    kind     stands in the checkpoint, so that one of another kind is rejected
    program  the entry point that runs it
    score    the metric whose highest value on val makes the best epoch (--select_metric)
    columns  of the metrics files; curves: metrics of val that are drawn; shown: (metric, label) of the
             terminal's lines, the first four of them after every epoch
    """

    kind = program = ""
    asked_by = ""  # the switch that asks for it, where a program runs several kinds
    # kind and width of what a head reads that is not the model's own (util/model/feature_kinds.py)
    reads: dict | None = None
    head_is_linear = False  # whether a grid of heads can be trained in one pass on stored features
    columns: tuple[str, ...] = ()

    def __init__(self, options: Options) -> None:
        """options: as far as they are resolved; what the data decide takes the place of what was not said
        (`read`)."""
        self.options = options
        self.score = selection.figure_of(options.metrics.select_metric)
        self.covariates_read: tuple[Covariate, ...] = ()

    @property
    def curves(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in table.of_kind(self.kind, "curve"))

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        return tuple((metric.name, metric.terminal[1]) for metric in table.of_kind(self.kind, "terminal"))

    # ---- data

    @abstractmethod
    def read(self, resumed: WeightFile | None, splits: tuple[str, ...]) -> Data:
        """The table of images, checked. InputError for anything that the user can fix."""

    @abstractmethod
    def settle(self, data: Data, resumed: WeightFile | None) -> None:
        """Learn what the training rows or the checkpoint decide, once bad images and surplus rows are out of
        the table."""

    @abstractmethod
    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        """What the loss compares with, a row an image: (N,) labels or (N, T) numbers."""

    def settle_covariates(self, data: Data, resumed: WeightFile | None) -> None:
        """Their scales: of the training rows, or of those that the checkpoint was trained on. InputError."""
        asked, train = self.options.data, data.table[data.table["split"] == "train"]
        if resumed is not None:
            self.covariates_read = tuple(map(Covariate.from_plain, resumed.rest.get("covariates", ())))
        else:
            self.covariates_read = tuple(Covariate.learn(name, list(train[covariates.PREFIX + name]))
                                         for name in asked.covariates)
        data.notes += covariates.check(str(asked.csv_file), self.covariates_read, data.table)

    def require_covariates(self, resumed: WeightFile | None) -> None:
        """InputError where others are typed than a checkpoint reads."""
        if resumed is None or "covariates" not in self.options.typed:
            return
        known = [entry["name"] for entry in resumed.rest.get("covariates", ())]
        if self.options.data.covariates != known:
            reads = f"reads {' '.join(known)}" if known else "reads nothing beside the image"
            raise InputError(f"--covariates {' '.join(self.options.data.covariates)}: {resumed.path} "
                             f"{reads}; leave the flag out, or train anew")

    def covariates(self, rows: pd.DataFrame) -> torch.Tensor | None:
        """What the model reads beside the image, (N, C), or None."""
        return encode_all(self.covariates_read,
                          [list(rows[covariates.PREFIX + one.name]) for one in self.covariates_read])

    def describe_covariates(self) -> list[str]:
        return [f"           covariate {one.name}: {one.describe()}" for one in self.covariates_read]

    def num_covariates(self, rows: pd.DataFrame) -> int:
        covariates = self.covariates(rows[:1])
        return 0 if covariates is None else covariates.shape[1]

    # ---- model

    @abstractmethod
    def build(self, backbone: Backbone, drop_path: float) -> torch.nn.Module:
        """The model with random weights."""

    def backbone_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The part of the model that takes pre-trained weights."""
        return model

    def head_of(self, model: torch.nn.Module) -> torch.nn.Module:
        """The part that is trained on stored features, where the task has a `feature_reader`."""
        return model

    def feature_reader(self, model: torch.nn.Module) -> torch.nn.Module | None:
        """(B, 3, S, S) -> (B, W), what `head_of` reads; None where the head does not read one feature an
        image."""
        return None

    def load_trained(self, model: torch.nn.Module, backbone: Backbone, file: WeightFile,
                     put: Put = put_in) -> Fit:
        """Put a trained checkpoint into the model, head included; InputError unless all of it fits. put: see
        models_vit.load_backbone."""
        return load_trained(model, backbone, file, put)

    def keeps_own_head(self, file: WeightFile) -> bool:
        """Whether the checkpoint's head has no place in the model, which keeps its own as it was drawn."""
        return False

    def new_head(self, model: torch.nn.Module) -> torch.nn.Module | None:
        """The model with its frozen backbone and a head that starts anew, for another training on stored
        features; None where such a training makes heads of its own (jobs/linear_probe.py)."""
        return None

    @abstractmethod
    def loss(self, train_rows: pd.DataFrame) -> torch.nn.Module:
        """Outputs and targets of a batch -> a loss an image, (B,)."""

    def mixing(self) -> Mixing | None:
        """What mixes the images and labels of a batch, or None."""
        return None

    # ---- a search

    def space(self, model: torch.nn.Module) -> Space:
        """What a search may propose for a model."""
        return SPACES[self.program]

    @abstractmethod
    def made_for(self) -> dict:
        """What of this task a study's values depend on, plain: one made for another is not gone on with."""

    # ---- metrics

    def evaluated(self, rows: pd.DataFrame, outputs: np.ndarray, pool: str | None = None) -> Evaluated:
        """What the model's outputs for rows of images come to, by case where images are judged together: by
        --pool, or another `pool`."""
        if cases.COLUMN not in rows:
            return Evaluated(self.predictions(rows, outputs))
        table, of_cases, weights = self._pooled(rows, outputs, pool)

        def images() -> pd.DataFrame:
            own = outputs[:, :of_cases.shape[1]]  # without attention's scores
            return self.predictions(rows.assign(weight=weights), own)

        return Evaluated(self.predictions(table, of_cases), images)

    def _pooled(self, rows: pd.DataFrame, outputs: np.ndarray,
                pool: str | None = None) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        return cases.pooled(rows, outputs, pool or self.options.data.pool, self.kind == table.CLASSIFICATION)

    @abstractmethod
    def predictions(self, rows: pd.DataFrame, outputs: np.ndarray) -> pd.DataFrame:
        """The predictions table of rows and the model's outputs for them."""

    @abstractmethod
    def metrics(self, predictions: pd.DataFrame,
                decided: dict | None = None) -> tuple[dict[str, float], list[str]]:
        """All metrics of a predictions table, and lines that say what they leave out. decided: from `decide`,
        of another split; None: of val itself."""

    @abstractmethod
    def draw(self, folder: RunFolder, split: str) -> list[str]:
        """Images of the predictions on the disk; lines for the user."""

    @abstractmethod
    def pictures(self, split: str) -> str:
        """Names of the files that `draw` makes, for the last line on the terminal."""

    def score_of(self, rows: pd.DataFrame, outputs: np.ndarray) -> float:
        """The `score` of outputs for these rows of images, without the table."""
        if cases.COLUMN in rows:
            rows, outputs, _ = self._pooled(rows, outputs)
        return self._score_of(rows, outputs)

    def _score_of(self, rows: pd.DataFrame, outputs: np.ndarray) -> float:
        return self.metrics(self.predictions(rows, outputs))[0][self.score]

    def decide(self, predictions: pd.DataFrame) -> dict:
        """What is chosen on val's predictions and used on test: it goes with the best epoch into the
        checkpoint."""
        return {}

    @abstractmethod
    def intervals(self, predictions: pd.DataFrame, figures: dict[str, float],
                  decided: dict) -> dict[str, dict]:
        """The metrics with their intervals and what else is told of a whole split; see
        util/metrics/intervals.py. decided: from `decide`, of the best epoch."""

    def lines_below(self, entries: dict[str, dict]) -> list[str]:
        """Lines of metrics below those of `shown`."""
        return []

    # ---- what is said and stored

    @abstractmethod
    def describe_data(self, data: Data) -> list[str]:
        """What stands on the terminal about the data."""

    @abstractmethod
    def idle(self) -> list[str]:
        """Lines about flags that this task and model keep from acting."""

    def idle_in_a_probe(self, names: tuple[str, ...], why: str) -> list[str]:
        typed = ", ".join(f"--{name}" for name in names if name in self.options.typed)
        return [f"with --adaptation lp these do nothing: {typed} ({why})"] if typed else []

    @abstractmethod
    def stored(self) -> dict:
        """What a checkpoint holds for this task: plain values."""

    @abstractmethod
    def facts(self, data: Data) -> dict:
        """What run.json says of the data, for this task. Its "images" name the splits, in order."""

    def take_facts(self, facts: dict) -> None:  # noqa: B027 - only some learn anything
        """Learn what `settle` learned in a run, of which run.json says `facts`."""

    @staticmethod
    @abstractmethod
    def with_foreign(options: Options, file: WeightFile) -> tuple[Options, str]:
        """The options with what a checkpoint that this program did not write says; a line about it, or
        InputError."""
