"""Classification: a folder or a CSV with a class an image, cross-entropy, metrics of counts and ranks."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch

import models_vit
from engine_finetune import ClassificationLoss, Mixing, balanced_class_weights
from jobs import recalibration, terminal
from jobs.run_folder import RunFolder
from jobs.tasks.base import AUGMENTATIONS, Task, started_on_cpu
from util.core.errors import InputError
from util.data import cases, tables
from util.metrics import calibration, class_order, selection, weighted
from util.metrics.classification import (
    METRIC_COLUMNS,
    classification_metrics,
    figures_of_outputs,
    predictions_table,
)
from util.metrics.intervals import classification_intervals, entry
from util.metrics.predictions import read_predictions
from util.metrics.table import BY_NAME, COMPOSED
from util.model.case_attention import put_attention
from util.model.feature_kinds import KindsReader, put_wide_head
from util.model.regression_head import RegressionHead
from util.options.adaptation import OF_CASES, POOLED
from util.options.data import DataOptions
from util.options.groups import Options
from util.report import charts, class_charts
from util.weights.fitting import Fit, WeightFile, put_in


class Classification(Task):
    """One class of several an image."""

    kind, program = "classification", "main_finetune.py"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.class_names: list[str] = []

    @property
    def columns(self) -> tuple[str, ...]:
        return METRIC_COLUMNS + ((COMPOSED,) if self.score == COMPOSED else ())

    @property
    def head_is_linear(self) -> bool:
        return not self.covariates_read

    # ---- data

    def read(self, resumed: WeightFile | None, splits: tuple[str, ...]) -> tables.Data:
        options = self.options
        known = resumed.rest.get("class_names") if resumed is not None else None
        order_of = tables.sorted_alone if resumed is not None else partial(
            class_order.in_order, typed=options.data.class_order, positive=options.data.positive_class)
        self.require_covariates(resumed)
        if options.data.csv_file:
            data = tables.read_csv(options.data, splits, order_of)
        elif options.data.covariates:
            raise InputError(f"--covariates {' '.join(options.data.covariates)}: the model reads these "
                             "columns beside each image, and a folder has none; name a CSV that has them "
                             "with --csv_file")
        else:
            data = tables.read_folder(options.data.data_path, splits, order_of, options.data.external,
                                      options.data.folds)
        if not known:
            data = tables.check_classes(data, options.data.nb_classes, explicit="nb_classes" in options.typed)
        elif "nb_classes" in options.typed and options.data.nb_classes != len(known):
            raise InputError(f"--nb_classes {options.data.nb_classes}, but {resumed.path} knows "
                             f"{len(known)}: pass --nb_classes {len(known)}")
        else:
            data = tables.match_classes(data, known)
        self.class_names = data.class_names
        self.options = options.having(nb_classes=len(data.class_names))
        self._require_order(resumed)
        self._require_pool(resumed)
        self._require_test_set(data)
        return data

    def _require_test_set(self, data: tables.Data) -> None:
        """InputError where --recalibrate names none."""
        asked = self.options.metrics.recalibrate
        if asked is not None and recalibration.split_of(asked) not in data.test_sets:
            raise InputError(f"--recalibrate {asked}: no such test set; there is {', '.join(data.test_sets)}")

    def _require_order(self, resumed: WeightFile | None) -> None:
        """InputError where the best epoch is to be chosen by a distance of grades whose order nobody told, or
        where what is typed is not the order that a checkpoint has."""
        options, positive = self.options, self.options.data.positive_class
        if positive is not None and self.class_names[1:] != [positive]:
            raise InputError(f"--positive_class {positive}: {resumed.path} has the classes "
                             f"{', '.join(self.class_names)}, and of two the second is the positive one; "
                             "train anew for another")
        if options.data.class_order:
            class_order.require_same(self.class_names, options.data.class_order)
        flags = ["select_metric"] + ["optuna_metric"] * bool(options.search.optuna_trials)
        asked = [(flag, name) for flag in flags for name in options.value(flag).split("+")
                 if BY_NAME[name].needs_order]
        known = class_order.ranks(self.class_names, options.data.class_order) is not None
        if options.run.eval or not asked or known:
            return
        if resumed is None:
            flag, name = asked[0]
            raise InputError(f"--{flag} {name} needs classes in order, and nothing says in which order "
                             f"{', '.join(self.class_names)} stand: --class_order names them from the lowest "
                             "grade on")
        # as the run chose its best epoch so far
        self.options = options.having(class_order=list(self.class_names))

    def _require_pool(self, resumed: WeightFile | None) -> None:
        """InputError where the checkpoint's head has an attention over cases and this launch wants none, or
        the other way round."""
        data, then = self.options.data, resumed.rest.get("options", {}) if resumed is not None else None
        if then is None:
            return
        names = ("case_col", "case_regex", "case", "pool")
        before = DataOptions(**{name: then[name] for name in names if name in then})
        if before.attends != data.attends:
            raise InputError(f"--pool {data.pool}: {resumed.path} was trained with --pool {before.pool}, and "
                             "its head is made for that: leave the flag out")

    def targets(self, rows: pd.DataFrame) -> np.ndarray:
        return rows["target"].to_numpy(np.int64)

    def settle(self, data: tables.Data, resumed: WeightFile | None) -> None:
        """Learn what the head reads. A probe is trained anew, and val chooses again."""
        self.settle_covariates(data, resumed)
        if resumed is not None and (self.options.run.eval or self.options.model.adaptation != "lp"):
            self.reads = resumed.rest.get("reads") or None

    # ---- model

    def build(self, backbone: models_vit.Backbone, drop_path: float) -> torch.nn.Module:
        asked = self.options.model
        if self.covariates_read:
            model = models_vit.build_model(backbone, 0, asked.input_size, drop_path, asked.global_pool,
                                           asked.fc_norm_passes)
            return self.new_head(model)
        model = models_vit.build_model(backbone, len(self.class_names), asked.input_size, drop_path,
                                       asked.global_pool, asked.fc_norm_passes,
                                       pretrained=bool(asked.finetune))
        if self.reads is not None:
            self._put_wide_head(model)
        if self.options.data.attends:
            layer = models_vit.final_linear(model)
            if layer is None:
                raise InputError(f"--pool attention needs a model with one linear classifier, and "
                                 f"{backbone.arch} has none: choose another, or --pool mean")
            put_attention(layer)
        return model

    def new_head(self, model: torch.nn.Module) -> torch.nn.Module | None:
        if not self.covariates_read:
            return None
        head = started_on_cpu(lambda: RegressionHead(models_vit.feature_width(model), len(self.class_names),
                                                     self.options.head, self.covariates_read))
        models_vit.put_covariate_head(model, head, len(self.class_names))
        return model

    def _put_wide_head(self, model: torch.nn.Module) -> None:
        put_wide_head(model, models_vit.head_names(model)[0], self.reads["kind"], self.reads["width"],
                      len(self.class_names))

    @torch.no_grad()
    def put_probe_head(self, model: torch.nn.Module, kind: str, values: dict[str, torch.Tensor]) -> None:
        """A trained head of a kind of features (util/model/feature_kinds.py) into the model."""
        if kind not in (POOLED, OF_CASES):
            self.reads = {"kind": kind, "width": values["weight"].shape[1]}
            self._put_wide_head(model)
            self.head_of(model).to(values["weight"].device)
        for name, parameter in self.head_of(model).named_parameters():
            parameter.copy_(values[name])

    def head_of(self, model: torch.nn.Module) -> torch.nn.Module:
        return getattr(model, "covariate_head", None) or models_vit.final_linear(model) or model

    def feature_reader(self, model: torch.nn.Module) -> KindsReader | models_vit.FeatureOfModel | None:
        if self.covariates_read:
            return models_vit.FeatureOfModel(model)
        return models_vit.feature_reader(model, self.options.model.input_size)

    def load_trained(self, model: torch.nn.Module, backbone: models_vit.Backbone, file: WeightFile,
                     put: models_vit.Put = put_in) -> Fit:
        if self.keeps_own_head(file):
            of_head = models_vit.head_prefixes(model)
            own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(of_head)}
            rest = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(of_head)}
            file = replace(file, tensors=rest | own)
        return super().load_trained(model, backbone, file, put)

    def keeps_own_head(self, file: WeightFile) -> bool:
        return self.reads is None and bool(file.rest.get("reads"))

    def loss(self, train_rows: pd.DataFrame) -> torch.nn.Module:
        weights = None
        if self.options.mixing.class_weights == "balanced":
            weights = balanced_class_weights(np.bincount(train_rows["target"],
                                                         minlength=len(self.class_names)))
        return ClassificationLoss(len(self.class_names), self.options.mixing.smoothing, weights)

    def plain_loss(self, rows: pd.DataFrame) -> torch.nn.Module:
        """The loss of rows of val, without what is done for training alone: by it a grid of heads is
        compared."""
        return torch.nn.CrossEntropyLoss(reduction="none")

    def mixing(self) -> Mixing | None:
        mixing = self.options.mixing
        if not (mixing.mixup > 0 or mixing.cutmix > 0 or mixing.cutmix_minmax):
            return None
        return Mixing(mixing.mixup, mixing.cutmix, mixing.cutmix_minmax, mixing.mixup_prob,
                      mixing.mixup_switch_prob, mixing.mixup_mode, label_smoothing=mixing.smoothing,
                      num_classes=len(self.class_names))

    def made_for(self) -> dict:
        return {"classes": list(self.class_names), "covariates": list(self.options.data.covariates)}

    # ---- metrics

    def predictions(self, rows: pd.DataFrame, outputs: np.ndarray) -> pd.DataFrame:
        return predictions_table(rows, outputs, self.class_names)

    def metrics(self, predictions: pd.DataFrame,
                decided: dict | None = None) -> tuple[dict[str, float], list[str]]:
        figures, notes = classification_metrics(predictions, self.options.data.class_order)
        return figures | selection.composed(self.options.metrics.select_metric, figures), notes

    def _score_of(self, rows: pd.DataFrame, outputs: np.ndarray) -> float:
        logits = np.asarray(outputs, dtype=np.float64)
        ranks = class_order.ranks(self.class_names, self.options.data.class_order)
        images = weighted.Images(self.class_names, self.targets(rows), logits.argmax(axis=1),
                                 calibration.softmax(logits), logits, None, ranks)
        figures = figures_of_outputs(images)
        return (figures | selection.composed(self.options.metrics.select_metric, figures))[self.score]

    def decide(self, predictions: pd.DataFrame) -> dict:
        images, temperature = weighted.Images.of(predictions), None
        if self.options.metrics.calibrate:
            temperature = calibration.fit_temperature(images.logits, images.true)
        return {"temperature": temperature, "thresholds": weighted.operating_thresholds(images)}

    def intervals(self, predictions: pd.DataFrame, figures: dict[str, float],
                  decided: dict) -> dict[str, dict]:
        entries = classification_intervals(predictions, self.options.run.seed,
                                           thresholds=decided.get("thresholds"),
                                           temperature=decided.get("temperature"),
                                           order=self.options.data.class_order)
        if (predictions["split"] == "val").any():  # the thresholds were chosen on these very images
            entries |= {name: entry(found["value"]) for name, found in entries.items() if "_at_" in name}
        if COMPOSED in figures:
            entries[COMPOSED] = entry(figures[COMPOSED], metric=self.options.metrics.select_metric)
        return {name: found | ({"value": figures[name]} if name in figures else {})
                for name, found in entries.items()}

    def lines_below(self, entries: dict[str, dict]) -> list[str]:
        lines = []
        if "temperature" in entries:
            lines.append(
                f"  calibrated on val (temperature {entries['temperature']['value']:.3f}): "
                + "  ".join(f"{label} {terminal.figure_with_interval(entries[f'{name}_calibrated'])}"
                            for name, label in (("loss", "loss"), ("brier", "Brier"), ("ece", "ECE"))))
        at_thresholds = [name for name in entries if "_at_" in name]
        for name in at_thresholds:
            figure, _, point, other = name.split("_")
            lines.append(f"  {figure} at {point} % {other}, with val's threshold for {self.class_names[1]}: "
                         + terminal.figure_with_interval(entries[name]))
        if len(self.class_names) == 2 and not at_thresholds:
            lines.append("  sensitivity at 90 % specificity and its like are left out: they need a threshold "
                         "that was chosen on val, and there is none in this checkpoint")
        return lines

    def draw(self, folder: RunFolder, split: str) -> list[str]:
        predictions = read_predictions(folder.file(f"predictions_{split}.csv"))
        chart = class_charts.confusion_matrix(split, predictions, self.class_names,
                                              f"{split}, {len(predictions):,} {self.options.data.unit}",
                                              self.options.data.unit)
        return charts.save_png(chart, folder.file(self.pictures(split)))

    def pictures(self, split: str) -> str:
        return f"confusion_matrix_{split}.png"

    # ---- what is said and stored

    def idle(self) -> list[str]:
        if self.options.model.adaptation != "lp":
            typed = "lp_views" in self.options.typed
            return ["--lp_views does nothing without --adaptation lp"] if typed else []
        if self.covariates_read:
            return self.idle_in_a_probe((*AUGMENTATIONS, "lp_views"),
                                        "with --covariates features are those of the whole image")
        names, of = ("mixup", "cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode",
                     "clip_grad", "min_lr", "compile"), ""
        if self.options.probe.lp_views == 1:
            names, of = names + AUGMENTATIONS, " of the evaluation's view; --lp_views K takes K random ones"
        return self.idle_in_a_probe(names, f"heads are trained on stored features{of}")

    def describe_data(self, data: tables.Data) -> list[str]:
        source = self.options.data.csv_file or self.options.data.data_path
        return terminal.classes(data, source) + self.describe_covariates()

    def stored(self) -> dict:
        return {"class_names": self.class_names, **({"reads": self.reads} if self.reads is not None else {}),
                **self._stored_covariates()}

    def _stored_covariates(self) -> dict:
        if not self.covariates_read:
            return {}
        return {"covariates": [covariate.plain() for covariate in self.covariates_read]}

    def facts(self, data: tables.Data) -> dict:
        counts = tables.counts(data.table, data.class_names)
        by_case = {}
        if cases.COLUMN in data.table:
            first = tables.counts(data.table.drop_duplicates(cases.COLUMN), data.class_names)
            by_case = {"cases": {split: dict(first[split]) for split in first}}
        patients = tables.patient_counts(data.table, data.class_names)
        return {"class_names": data.class_names, "images": {split: dict(counts[split]) for split in counts},
                **by_case, **({"patients": patients} if patients else {}), **self._stored_covariates()}

    @staticmethod
    def with_foreign(options: Options, file: WeightFile) -> tuple[Options, str]:
        """A checkpoint of the original scripts: its `args` say the model, and how often fc_norm is
        applied."""
        said, typed = file.arguments, options.typed
        stored = {name: said[name] for name in ("model", "model_arch", "input_size", "global_pool")
                  if said.get(name) not in (None, "")}
        # fp32, so that its metrics are those that it had, to rounding
        stored |= {"read_images": "as_stored", "precision": "fp32"}
        options = options.having(**{name: value for name, value in stored.items() if name not in typed})
        if ("model_arch" not in typed
                and not models_vit.belongs(options.model.model, options.model.model_arch)):
            # the original's parser stores its default for every model, which it then ignores
            options = options.having(model_arch=None)
        if options.model.fc_norm_passes is None:
            is_mean = said.get("model") == "RETFound_mae" and options.model.global_pool
            options = options.having(fc_norm_passes=2 if is_mean else 1)
        epoch = file.rest.get("epoch", "unknown")
        model = f" (model {said['model']}, epoch {epoch})" if said.get("model") else ""
        passes = ", scored as they do, with fc_norm applied twice (--fc_norm_passes)"
        return options, (f"{file.path} is a checkpoint of the original scripts{model}"
                         + (passes if options.model.fc_norm_passes == 2 else "")
                         + "; it does not name its classes, so the folders' names in order are taken")
