"""What is written down about a run: in its checkpoints, in run.json, as images, as one page."""

from dataclasses import asdict

import models_vit
from jobs.job import Job
from jobs.run_folder import commit, now, versions
from util.core.secrets import plain_without_secrets
from util.model import lora
from util.options.table import own_values
from util.report.page import write_report
from util.weights import checkpoint


def content(job: Job, epoch: int, best: dict) -> dict:
    """What every checkpoint holds; `model` loads in timm as it is. Of a model with adapters (and of no other)
    it is what is trained alone, and `adapter` says how they were made; the base weights are `weights`."""
    adapted = bool(lora.adapted_layers(job.model))
    buffers = {name: buffer for name, buffer in job.task.backbone_of(job.model).named_buffers()
               if name == "rope.periods"}
    return {
        "model": lora.trained_state(job.model) if adapted else job.model.state_dict(), "buffers": buffers,
        "format": checkpoint.FORMAT, "epoch": epoch,
        **checkpoint.plain({
            "task": job.task.kind, **job.task.stored(), "best": best, "versions": versions(),
            "options": plain_without_secrets(own_values(job.options)),
            "transform": {"eval": job.eval_transform, "train": job.train_transform},
            "backbone": {"model": job.backbone.model, "arch": job.backbone.arch,
                         "timm": job.backbone.timm_name},
            "weights": weights_facts(job),
            **({"adapter": asdict(lora.Settings.of(job.options.part))} if adapted else {})}),
    }


def weights_facts(job: Job) -> dict | None:
    return asdict(job.started_from) if isinstance(job.started_from,
                                                  models_vit.LoadedWeights) else job.started_from


def facts(job: Job) -> dict:
    """run.json: what is needed to say, and to do, the same again."""
    return checkpoint.plain({
        "started": now(), "options": plain_without_secrets(own_values(job.options)),
        "versions": versions(), "commit": commit(),
        "processes": job.world.size, "device": str(job.world.device), "precision": job.precision.name,
        "model": {"arch": job.backbone.arch, "timm": job.backbone.timm_name,
                  "parameters": models_vit.count_parameters(job.model),
                  "trained": models_vit.count_parameters(job.model, trainable_only=True)},
        "weights": weights_facts(job),
        "normalisation": {"mean": job.eval_transform["mean"], "std": job.eval_transform["std"],
                          "source": job.norm_source},
        "data": {"fingerprint": job.data.fingerprint, **job.task.facts(job.data), "notes": job.data.notes},
        **({} if job.plan is None else {"learning_rate": job.schedule.peak,
                                        "effective_batch": job.plan.step_size,
                                        "steps_an_epoch": job.plan.steps}),
    })


def draw(job: Job, split: str) -> list[str]:
    """Images of a split's predictions; lines for the user."""
    if not job.folder.file(f"predictions_{split}.csv").exists():
        return []
    with job.folder.writing():
        return job.task.draw(job.folder, split)


def report(job: Job) -> list[str]:
    """report.html of what lies in the run's folder; lines for the user."""
    with job.folder.writing():
        return write_report(job.folder.path)
