"""What the names on a regression's command line stand for: the model, its weights, the task."""

import timm

import models_vit
from util.core.errors import InputError
from util.model import timm_models
from util.options.groups import Options
from util.options.model import DEFAULT_WEIGHTS

LONGEST_TASK = 100  # letters of a task's name that is made of the targets


def resolve_names(options: Options) -> Options:
    """The options with what stands for --model NAME of timm, --pretrained, the weights that belong to another
    model, the task's own name. InputError."""
    asked = options.model
    families = {row.model.lower() for row in models_vit.BACKBONES} | {
        models_vit.TIMM,
        *models_vit.MODEL_ALIASES,
    }
    name = asked.model.removeprefix("timm/")
    if asked.model.lower() not in families and timm.is_model(name):
        if asked.model_arch not in (None, name):
            raise InputError(f"--model {asked.model} is a name of timm, and --model_arch {asked.model_arch} "
                             "another: pass one of the two")
        options = options.having(model=models_vit.TIMM).typing(model_arch=name)
    if (
        asked.finetune == DEFAULT_WEIGHTS
        and "finetune" not in options.typed
        and asked.model != "RETFound_dinov2"
    ):
        options = options.having(finetune="")
    if options.head.pretrained:
        options = options.having(finetune=_timms_own_weights(options))
    if not options.run.task and not options.run.resume.endswith(".pth"):
        asked = options.model
        arch = models_vit.find_backbone(asked.model, asked.model_arch).arch if asked.model_arch or (
            asked.model != models_vit.TIMM) else asked.model
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
