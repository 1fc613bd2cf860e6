"""Regression: a CSV with numbers to predict, a head with a token a target, metrics in the CSV's own units."""

import numpy as np
import pandas as pd
import timm
import torch

import models_vit
from engine_finetune import RegressionLoss
from jobs import terminal
from jobs.run_folder import RunFolder
from jobs.tasks.base import AUGMENTATIONS, Task, started_on_cpu
from util.core.errors import InputError
from util.data import cases, tables
from util.data.regression import parse_transforms, read_regression_csv
from util.metrics import selection, target_scale
from util.metrics.intervals import entry, regression_intervals
from util.metrics.predictions import read_predictions
from util.metrics.regression import metric_columns, predictions_table, regression_metrics
from util.metrics.table import COMPOSED
from util.model import timm_models
from util.model.regression_head import RegressionHead
from util.options.groups import Options
from util.options.model import DEFAULT_WEIGHTS
from util.options.training import SPACES, OneOf, Space
from util.report import bland_altman, charts
from util.weights.fitting import WeightFile

LONGEST_TASK = 100  # letters of a task's name that is made of the targets


class Regression(Task):
    """Several numbers an image."""

    kind, program = "regression", "main_regression.py"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.scale: target_scale.TargetScale | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return metric_columns(self.options.data.targets) + ((COMPOSED,) if self.score == COMPOSED else ())

    # ---- data

    def read(self, resumed: WeightFile | None, splits: tuple[str, ...]) -> tables.Data:
        data = self.options.data
        if not data.csv_file:
            raise InputError("--csv_file is not given: name the CSV with the columns path, split and the "
                             "targets")
        if resumed is not None:
            known = resumed.rest["targets"]["names"]
            if data.targets != known:
                raise InputError(f"--targets {' '.join(data.targets)}: {resumed.path} predicts "
                                 f"{' '.join(known)}; leave the flag out")
        self.require_covariates(resumed)
        return read_regression_csv(data, splits)

    def settle(self, data: tables.Data, resumed: WeightFile | None) -> None:
        """Means and standard deviations: of the training rows, or of those that the checkpoint was trained
        on."""
        names, train = self.options.data.targets, data.table[data.table["split"] == "train"]
        if resumed is not None:
            self.scale = target_scale.TargetScale.from_plain(resumed.rest["targets"])
        else:
            transforms = parse_transforms(self.options.data.target_transform, names)
            values = train[[f"true_{name}" for name in names]].to_numpy(np.float64)
            self.scale = target_scale.TargetScale.learn(names, transforms, values)
        self.settle_covariates(data, resumed)

    def _true(self, rows: pd.DataFrame) -> np.ndarray:
        return rows[[f"true_{name}" for name in self.scale.names]].to_numpy(np.float64)

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        return self.scale.standardise(self._true(rows)).astype(np.float32)

    # ---- model

    def build(self, backbone: models_vit.Backbone, drop_path: float) -> torch.nn.Module:
        asked = self.options.model
        features = models_vit.build_model(backbone, 0, asked.input_size, drop_path, asked.global_pool,
                                          asked.fc_norm_passes)
        return self.new_head(features)

    def new_head(self, model: torch.nn.Module) -> models_vit.Regressor:
        features = getattr(model, "backbone", model)
        width = models_vit.feature_width(features)
        head = started_on_cpu(lambda: RegressionHead(width, len(self.scale.names), self.options.head,
                                                     self.covariates_read))
        return models_vit.Regressor(features, head)

    def space(self, model: models_vit.Regressor) -> Space:
        """Without numbers of attention heads that don't divide the head's width; InputError where none is
        left."""
        row, dim = SPACES[self.program]["head_num_heads"], model.regression_head.dim
        fitting = tuple(number for number in row.values if dim % number == 0)
        if not fitting:
            raise InputError(f"the head's width {dim} is divided by none of the searched numbers of "
                             f"attention heads {', '.join(map(str, row.values))}: pass another "
                             "--head_embed_dim")
        return {**SPACES[self.program], "head_num_heads": OneOf(fitting)}

    def made_for(self) -> dict:
        return {"targets": list(self.options.data.targets)}

    def backbone_of(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.backbone

    def head_of(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.regression_head

    def feature_reader(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.backbone

    def loss(self, train_rows: pd.DataFrame) -> torch.nn.Module:
        known = (~np.isnan(self._true(train_rows))).sum(axis=1).mean()
        return RegressionLoss(self.options.head.huber_beta, float(known))

    # ---- metrics

    def predictions(self, rows: pd.DataFrame, outputs: np.ndarray) -> pd.DataFrame:
        return predictions_table(rows, self._true(rows), self.scale.restore(outputs), list(self.scale.names))

    def metrics(self, predictions: pd.DataFrame,
                decided: dict | None = None) -> tuple[dict[str, float], list[str]]:
        figures, notes = regression_metrics(predictions, self.scale, self.options.head.huber_beta)
        return figures | selection.composed(self.options.metrics.select_metric, figures), notes

    def intervals(self, predictions: pd.DataFrame, figures: dict[str, float],
                  decided: dict) -> dict[str, dict]:
        entries = regression_intervals(predictions, figures, list(self.scale.names), self.options.run.seed)
        if COMPOSED in figures:
            entries[COMPOSED] = entry(figures[COMPOSED], metric=self.options.metrics.select_metric)
        return entries

    def draw(self, folder: RunFolder, split: str) -> list[str]:
        predictions = read_predictions(folder.file(f"predictions_{split}.csv"))
        names, notes = list(self.scale.names), []
        for number, file in enumerate(bland_altman.agreement_files(split, names)):
            chart = bland_altman.agreement(split, predictions, names, number)
            notes += (charts.save_png(chart, folder.file(file)) if chart is not None else
                      [f"{names[number]}: no known values in {split}, so no chart"])
        return notes

    def pictures(self, split: str) -> str:
        files = bland_altman.agreement_files(split, list(self.scale.names))
        return files[0] + (f" and {len(files) - 1} more targets' images" if len(files) > 1 else "")

    def lines_below(self, entries: dict[str, dict]) -> list[str]:
        width = max(map(len, self.scale.names))
        return [f"  {name:<{width}}  "
                + "  ".join(f"{label} {terminal.figure_with_interval(entries[f'{figure}_{name}'], '.4g')}"
                            for figure, label in self.shown[:4])
                + f"  n {entries[f'n_{name}']['value']:,.0f}" for name in self.scale.names]

    # ---- what is said and stored

    def describe_data(self, data: tables.Data) -> list[str]:
        table = data.table
        totals = ", ".join(f"{split} {(table['split'] == split).sum():,}" for split in data.splits)
        lines = [f"data       {self.options.data.csv_file}: {len(self.scale.names)} targets; {totals}"]
        width = max(map(len, self.scale.names))
        for name, transform, mean, sd in zip(*self.scale.plain().values(), strict=True):
            logarithm = ", of the logarithm" if transform == "log" else ""
            known = table[f"true_{name}"].notna().groupby(table["split"]).sum()
            lines.append(f"           {name:<{width}}  mean {mean:.4g}, sd {sd:.4g} in train{logarithm}; "
                         "known in " + ", ".join(f"{split} {known[split]:,}" for split in data.splits))
        return lines + self.describe_covariates()

    def idle(self) -> list[str]:
        if self.options.model.adaptation != "lp":
            return []
        return self.idle_in_a_probe(AUGMENTATIONS, "features are those of the whole image")

    def stored(self) -> dict:
        return {"targets": self.scale.plain(),
                "covariates": [covariate.plain() for covariate in self.covariates_read]}

    def facts(self, data: tables.Data) -> dict:
        return {**self.stored(), "images": {split: int((data.table["split"] == split).sum())
                                            for split in data.splits},
                **cases.counted(data.table, data.splits)}

    def take_facts(self, facts: dict) -> None:
        self.scale = target_scale.TargetScale.from_plain(facts["targets"])

    @staticmethod
    def with_foreign(options: Options, file: WeightFile) -> tuple[Options, str]:
        raise InputError(f"{file.path} is no checkpoint of main_regression.py: start from its weights with "
                         "--finetune")


# ---- what the names on the command line stand for ----------------------------------------------------------

def resolve_names(options: Options) -> Options:
    """The options with what stands for --model NAME of timm, --pretrained, the weights that belong to another
    model, the task's own name. InputError."""
    asked = options.model
    families = {models_vit.TIMM, *models_vit.MODEL_ALIASES,
                *(row.model.lower() for row in models_vit.BACKBONES)}
    name = asked.model.removeprefix("timm/")
    if asked.model.lower() not in families and timm.is_model(name):
        if asked.model_arch not in (None, name):
            raise InputError(f"--model {asked.model} is a name of timm, and --model_arch {asked.model_arch} "
                             "another: pass one of the two")
        options = options.having(model=models_vit.TIMM).typing(model_arch=name)
    by_default = asked.finetune == DEFAULT_WEIGHTS and "finetune" not in options.typed
    if by_default and asked.model != "RETFound_dinov2":
        options = options.having(finetune="")
    if options.head.pretrained:
        options = options.having(finetune=_timms_own_weights(options))
    if not options.run.task and not options.run.resume.endswith(".pth"):
        arch = options.model.model
        if options.model.model_arch or arch != models_vit.TIMM:
            arch = models_vit.find_backbone(arch, options.model.model_arch).arch
        task = f"{arch}_{'_'.join(options.data.targets)}".replace("/", "_")[:LONGEST_TASK]
        options = options.having(task=task)
    return options


def _timms_own_weights(options: Options) -> str:
    if "finetune" in options.typed:
        raise InputError("--pretrained takes timm's own weights and --finetune names others: pass one of the "
                         "two")
    backbone = models_vit.find_backbone(options.model.model, options.model.model_arch)
    if backbone.model != models_vit.TIMM:
        raise InputError(f"--pretrained is for --model timm: {backbone.arch} takes its weights by --finetune "
                         f"({', '.join(backbone.weights)})")
    settings = timm_models.settings_of(backbone.timm_name)
    if not settings or not settings.hf_hub_id:
        raise InputError(f"timm has no weights of {backbone.arch} on the hub: leave --pretrained out, or "
                         "pass a file with --finetune")
    return f"hf:{settings.hf_hub_id}/{settings.hf_hub_filename or 'model.safetensors'}"
