"""Weights and unlabelled images -> feature vectors. Read `extract` from top to bottom."""

import json
import time

import numpy as np
import torch

import models_vit
from jobs.inference import (
    AGAIN,
    DEFAULT_BATCH,
    Inference,
    computed,
    describe,
    read_pictures,
    resolve,
    take_checkpoint,
)
from jobs.model import load_adapter
from jobs.run_folder import commit, now, versions
from util.core.disk import writing
from util.core.errors import InputError
from util.core.plain_numbers import duration
from util.data import feature_files, unlabelled
from util.model import feature_kinds, lora
from util.options.adaptation import KINDS
from util.options.groups import Options
from util.parallel.processes import World
from util.weights import checkpoint, finding
from util.weights.fitting import WeightFile

WHAT = {
    "cls": "class token after the model's last norm",
    "patch_mean": "mean of the patch tokens or of the last feature map",
    "pooled": "what a classifier's head reads",
}


class FeatureParts(torch.nn.Module):
    """A timm model without classifier: (B, 3, S, S) -> (B, sum of the widths), its parts side by side, in
    fp32.

    cls         class token after the final norm; not there where the model has none
    patch_mean  mean of the final patch tokens, class and register tokens left out, or of the final feature
                map's places
    pooled      what a classifier's head would read

    Where the final norm comes after the pooling (RETFound_mae with its mean: fc_norm), cls and patch_mean
    pass it too. `widths` says which columns are whose; it is learnt from two images, as is whether pooled is
    the model's own output.
    """

    def __init__(self, model: torch.nn.Module, input_size: int) -> None:
        super().__init__()
        self.model = model
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            images = torch.linspace(-2, 2, 2 * 3 * input_size**2).view(2, 3, input_size, input_size)
            parts, whole = self.parts(images), model(images)
        if (parts["pooled"].shape != whole.shape
                or not torch.allclose(parts["pooled"], whole, rtol=1e-3, atol=1e-5)):
            raise InputError(f"{type(model).__name__} does more than pool its last features: choose another "
                             "--model_arch")
        model.train(was_training)
        self.widths = {name: part.shape[1] for name, part in parts.items()}

    def parts(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = feature_kinds.read(self.model, images)
        parts = {"cls": found["cls0"]} if "cls0" in found else {}
        if "tokens" in found:
            parts["patch_mean"] = found["mean"] if "mean" in found else found["tokens"].mean(dim=1)
        parts["pooled"] = self.model.forward_head(found["features"], pre_logits=True)
        return parts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.float() for part in self.parts(images).values()], dim=1)

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """(N, sum of the widths) -> {part: (N, width)}, views."""
        ends = np.cumsum([0, *self.widths.values()])
        return {name: values[:, start:end]
                for name, start, end in zip(self.widths, ends, ends[1:], strict=False)}


def extract(options: Options, world: World) -> None:
    """Load, compute, write, tell. InputError, RunError: see util/core/errors.py."""
    began = time.monotonic()
    if options.use.output.lower().endswith(".parquet"):
        feature_files.require_parquet()
    file = world.main_first(lambda: checkpoint.read(options.run.resume)) if options.run.resume else None
    ours = file if file is not None and checkpoint.is_ours(file) else None
    options, lines = _resolved(options, file)
    options, backbone, precision = resolve(options, world, ours, lines)
    torch.manual_seed(options.run.seed)
    asked = options.model
    model = models_vit.build_model(backbone, 0, asked.input_size, 0.0, asked.global_pool,
                                   asked.fc_norm_passes)
    weights, line = _load(model, backbone, options, world, file)
    data, transform, norm_source = read_pictures(options, world, backbone, ours)
    job = Inference(world, options, backbone, precision, model, data, transform, norm_source)
    parts = FeatureParts(model, asked.input_size).eval()
    world.say(f"weights    {line}", *_describe_parts(job, parts), *describe(job))
    if ours is not None and ours.rest.get("reads"):
        kind = ours.rest["reads"]["kind"]
        world.say(f"           the checkpoint's head reads the {KINDS[kind]} ({kind}): pooled is what the "
                  "model's own head would read")
    precision.place(model)
    parts.to(world.device)
    facts = {"model": backbone.model, "model_arch": backbone.arch, "timm": backbone.timm_name,
             "seed": options.run.seed, "input_size": asked.input_size, "global_pool": asked.global_pool,
             "fc_norm_passes": asked.fc_norm_passes}
    partial = computed(job, parts, facts | {"weights": weights.get("sha256")}, "features")
    if partial is None:
        return
    arrays = parts.split(partial.values())
    facts |= {"weights": weights, "arrays": {name: WHAT[name] for name in arrays}, "transform": transform,
              "norm_source": norm_source, "precision": precision.name, "device": world.device.type,
              "pictures": len(data.table), "input": options.use.input, "versions": versions(),
              "commit": commit(), "made": now()}
    with writing(f"--output {options.use.output}", again=AGAIN):
        feature_files.write_features(options.use.output, list(data.table["path"]), arrays,
                                     json.dumps(checkpoint.plain(facts), ensure_ascii=False))
    partial.remove()
    unlabelled.forget(options.use.output)
    shapes = ", ".join(f"{name} {len(values):,} x {values.shape[1]:,}" for name, values in arrays.items())
    world.say(f"written to {options.use.output}: {shapes}; {duration(time.monotonic() - began)}")


def _resolved(options: Options, file: WeightFile | None) -> tuple[Options, list[str]]:
    """The options, which say everything: a checkpoint's where they were not typed."""
    seed, decode, lines = options.run.seed, options.images.decode, []
    if file is not None:
        task, lines = take_checkpoint(options, file)
        options = task.options
        decode = decode or (file.rest["options"].get("decode") if checkpoint.is_ours(file) else None)
    return options.having(seed=seed, decode=decode or "full",
                          fc_norm_passes=options.model.fc_norm_passes or 1,
                          batch_size=options.training.batch_size or DEFAULT_BATCH), lines


def _load(model: torch.nn.Module, backbone: models_vit.Backbone, options: Options, world: World,
          file: WeightFile | None) -> tuple[dict, str]:
    """The weights into the model, every tensor accounted for -> (facts about them, a line)."""
    if options.use.random_weights:
        return {"random": options.run.seed}, f"RANDOM, drawn with seed {options.run.seed}: nothing was learnt"
    if file is not None and lora.is_adapter(file):
        _, line = world.main_first(lambda: load_adapter(model, model, backbone, file))
        lora.merge(model)
        return {"name": options.run.resume, "sha256": finding.sha256(file.path), "text": line}, line
    loaded = world.main_first(lambda: models_vit.load_backbone(
        model, backbone, options.model.finetune or options.run.resume, options.model.weights_dir,
        options.model.allow_partial))
    return ({name: value for name, value in loaded.items() if name != "path"},
            loaded["text"].removeprefix("weights: "))


def _describe_parts(job: Inference, parts: FeatureParts) -> list[str]:
    lacking = {"cls": "class token", "patch_mean": "patch tokens or feature map that are pooled"}
    widths = ", ".join(f"{name} {width:,}" for name, width in parts.widths.items())
    lines = [f"model      {job.backbone.model} {job.backbone.arch}, input {job.options.model.input_size} "
             f"pixels: {widths}"]
    lines += [f"           {name} is absent: {job.backbone.arch} has no {what}"
              for name, what in lacking.items() if name not in parts.widths]
    if len(job.data.others.columns):
        lines.append("           the CSV's other columns are not stored (rows are in its order): "
                     + ", ".join(job.data.others.columns))
    return lines
