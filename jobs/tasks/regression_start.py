"""What the names on a regression's command line stand for: the model, its weights, the task."""

import timm

import models_vit
from util.core.errors import InputError
from util.model import timm_models
from util.options.model import DEFAULT_WEIGHTS
from util.options.parsing import Parsed

LONGEST_TASK = 100  # letters of a task's name that is made of the targets


def resolve_names(parsed: Parsed) -> None:
    """--model NAME of timm, --pretrained, the weights that belong to another model, the task's own name. InputError."""
    options, typed = parsed.options, parsed.typed
    families = {row.model.lower() for row in models_vit.BACKBONES} | {models_vit.TIMM, *models_vit.MODEL_ALIASES}
    name = options.model.removeprefix("timm/")
    if options.model.lower() not in families and timm.is_model(name):
        if options.model_arch not in (None, name):
            raise InputError(f"--model {options.model} is a name of timm, and --model_arch {options.model_arch} another: "
                             "pass one of the two")
        options.model, options.model_arch = models_vit.TIMM, name
        typed.add("model_arch")
    if options.finetune == DEFAULT_WEIGHTS and "finetune" not in typed and options.model != "RETFound_dinov2":
        options.finetune = ""
    if options.pretrained:
        options.finetune = _timms_own_weights(parsed)
    if not options.task and not options.resume.endswith(".pth"):
        arch = models_vit.find_backbone(options.model, options.model_arch).arch if options.model_arch or (
            options.model != models_vit.TIMM) else options.model
        options.task = f"{arch}_{'_'.join(options.targets)}".replace("/", "_")[:LONGEST_TASK]


def _timms_own_weights(parsed: Parsed) -> str:
    options = parsed.options
    if "finetune" in parsed.typed:
        raise InputError("--pretrained takes timm's own weights and --finetune names others: pass one of the two")
    backbone = models_vit.find_backbone(options.model, options.model_arch)
    if backbone.model != models_vit.TIMM:
        raise InputError(f"--pretrained is for --model timm: {backbone.arch} takes its weights by --finetune "
                         f"({', '.join(backbone.weights)})")
    settings = timm_models.settings_of(backbone.timm_name)
    if not settings or not settings.hf_hub_id:
        raise InputError(f"timm has no weights of {backbone.arch} on the hub: leave --pretrained out, or pass a file with "
                         "--finetune")
    return f"hf:{settings.hf_hub_id}/{settings.hf_hub_filename or 'model.safetensors'}"
