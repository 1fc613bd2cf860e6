"""What was decided before the first step: of a training or an evaluation (Job), of predictions
(Prediction)."""

from dataclasses import dataclass, field

import numpy as np
import torch

import models_vit
from engine_finetune import Schedule
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from jobs.tasks.classification import Classification
from util.data import tables
from util.data.images.cache import Filling, ImageCache
from util.data.images.fundus_fields import Fields
from util.data.images.scan import NO_FACTS
from util.data.sampling import StepPlan
from util.data.unlabelled import Unlabelled
from util.model.precision import Precision
from util.options.groups import Options
from util.parallel.processes import World
from util.weights.fitting import WeightFile


@dataclass
class Job:
    """All that was decided before the first step."""

    world: World
    folder: RunFolder
    task: Task
    backbone: models_vit.Backbone
    precision: Precision
    data: tables.Data
    model: torch.nn.Module
    started_from: models_vit.LoadedWeights | dict | None
    resumed: WeightFile | None
    loaded: str  # the line about the checkpoint's tensors
    eval_transform: dict
    norm_source: str  # where its mean and standard deviation are from
    train_transform: dict | None = None
    plan: StepPlan | None = None
    schedule: Schedule | None = None
    # what the check found of the images (`ImageFacts.of`)
    facts: np.ndarray = field(default_factory=lambda: NO_FACTS)
    fields: Fields | None = None  # with --fundus_crop auto
    # with --image_cache: what the check of all files has brought into the cache
    filled: Filling | None = None
    cache: ImageCache | None = None  # images decoded once, where they are read many times
    # of a frozen backbone, by split: then the head alone is run
    features: dict[str, torch.Tensor] | None = None
    # which columns of them are which kind of feature (util/model/feature_kinds.py)
    kinds: dict[str, slice] | None = None
    tokens: dict | None = None  # what an attentive head reads, by split, on the disk (main process)

    @property
    def options(self) -> Options:
        """As they are resolved so far: the task's."""
        return self.task.options

    @property
    def running(self) -> torch.nn.Module:
        """What a loader's batches are given to: the model, or its head where features are stored."""
        return self.model if self.features is None else self.task.head_of(self.model)

    def rows(self, split: str):
        return self.data.table[self.data.table["split"] == split].reset_index(drop=True)


@dataclass
class Prediction:
    """All that was decided before the first image of a prediction."""

    world: World
    task: Task
    backbone: models_vit.Backbone
    precision: Precision
    data: Unlabelled
    covariates: torch.Tensor | None
    model: torch.nn.Module
    transform: dict
    norm_source: str  # where its mean and standard deviation are from
    digest: str  # sha256 of the checkpoint
    best: dict  # what was decided on val

    @property
    def options(self) -> Options:
        return self.task.options

    @property
    def names(self) -> list[str]:
        """Of the model's outputs: classes or targets."""
        return self.task.class_names if isinstance(self.task, Classification) else list(self.task.scale.names)
