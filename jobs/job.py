"""What was decided before the first step of a training or an evaluation."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

import models_vit
from engine_finetune import Schedule
from jobs.run_folder import RunFolder
from jobs.tasks.base import Task
from util.data import cases, sampling, tables
from util.data.images.cache import Filling, ImageCache
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
    started_from: dict | None  # what models_vit.load_backbone says of the weights
    resumed: WeightFile | None
    loaded: str  # the line about the checkpoint's tensors
    eval_transform: dict
    norm_source: str  # where its mean and standard deviation are from
    train_transform: dict | None = None
    plan: sampling.StepPlan | None = None
    schedule: Schedule | None = None
    # with --image_cache: what the check of all files has brought into the cache
    filled: Filling | None = None
    cache: ImageCache | None = None  # images decoded once, where they are read many times
    # of a frozen backbone, by split: then the head alone is run
    features: dict[str, torch.Tensor] | None = None
    # which columns of them are which kind of feature (util/model/feature_kinds.py)
    kinds: dict[str, slice] | None = None
    # what an attentive head reads, by split, on the disk (main process)
    tokens: dict[str, np.ndarray] | None = None

    @property
    def options(self) -> Options:
        """As they are resolved so far: the task's."""
        return self.task.options

    @property
    def running(self) -> torch.nn.Module:
        """What a loader's batches are given to: the model, or its head where features are stored."""
        return self.model if self.features is None else self.task.head_of(self.model)

    def samples(self, split: str) -> pd.DataFrame:
        """What a step of the training takes: the rows of the images, or of cases where an attention over
        their images is trained."""
        rows = self.rows(split)
        return cases.of_images(rows)[0] if self.options.data.attends else rows

    def rows(self, split: str) -> pd.DataFrame:
        """The split's images."""
        return self.data.table[self.data.table["split"] == split].reset_index(drop=True)
