"""The model of a job: the row of the table of backbones, built, with the weights that it starts from."""

from argparse import Namespace

import torch

import models_vit
from jobs import parallel
from jobs.adaptation import choose_part, load_resumed
from jobs.tasks.base import Task
from util.core.errors import InputError
from util.model import lora
from util.options.parsing import Parsed
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import shard_files
from util.weights.fitting import WeightFile, put_in, set_buffers


def resolve_backbone(options: Namespace, resumed: WeightFile | None) -> models_vit.Backbone:
    """The row of the table that the options and the checkpoint name; the options then say its names and its input size."""
    backbone = models_vit.find_backbone(options.model, options.model_arch)
    options.model, options.model_arch = backbone.model, backbone.arch
    stored = resumed.rest.get("backbone") if resumed is not None else None
    if stored and stored["arch"] != backbone.arch:
        raise InputError(f"{resumed.path} is a checkpoint of --model {stored['model']} --model_arch {stored['arch']}: "
                         f"{backbone.arch} contradicts it; leave the two flags out, or name its own")
    options.input_size = models_vit.resolve_input_size(backbone, options.input_size)
    return backbone


def new_model(parsed: Parsed, backbone, world: World, task: Task, device: str) -> torch.nn.Module:
    """The model as it starts, on the CPU, or its shapes alone on "meta"."""
    options = parsed.options

    def start():
        torch.manual_seed(options.seed)
        with torch.device(device):
            return task.build(backbone)
    try:
        model = start()
    except models_vit.NoStochasticDepth:
        if "drop_path" in parsed.typed:
            raise
        asked, options.drop_path = options.drop_path, 0.0
        if device == "cpu" or options.dry_run:
            world.say(f"{backbone.arch} has no stochastic depth: --drop_path is 0")
        model = start()
        options.drop_path = asked  # stored as asked, so that the same start again is the same
    return model


def build(parsed: Parsed, backbone, resumed: WeightFile | None, world: World, task: Task,
           parts: sharding.Parts | None = None):
    """The model with its weights, where they come from, and a line on a checkpoint's. On a dry run it has shapes alone; so
    it has with `parts`, which takes what of a file goes into which part of it."""
    options, loaded = parsed.options, ""
    model = new_model(parsed, backbone, world, task, "cpu" if parts is None and not options.dry_run else "meta")
    put = put_in if parts is None else lambda part, fitted: parts.append((part, fitted))
    if resumed is not None:
        started_from, loaded = load_resumed(parsed, model, backbone, resumed, task, put, streamed=parts is not None)
    elif options.finetune:
        try:
            started_from = models_vit.load_backbone(task.backbone_of(model), backbone, options.finetune, options.weights_dir,
                                                    options.allow_partial, put)
        except InputError as error:
            if "finetune" in parsed.typed or getattr(options, "pretrained", False):
                raise
            raise InputError(f"{error}; {options.finetune} is only the default: another model does as well, such as "
                             "--model efficientnet_b4 (--pretrained takes timm's weights of it)") from error
    else:
        started_from = None
    if not options.eval and not lora.adapted_layers(model):
        choose_part(task, model, backbone, options, has_weights=started_from is not None or options.dry_run)
    lora.require_gradients(task.backbone_of(model), options.input_size, backbone.arch)
    if options.activation_checkpointing and options.adaptation != "lp" and not options.eval:
        parallel.recompute_blocks(model)
    return model, started_from, loaded


def restore_values(model: torch.nn.Module, resumed: WeightFile | None, task: Task) -> None:
    """Into a sharded model: what its checkpoint keeps in shards of its own, and buffers that stand beside the weights."""
    folder = shard_files.folder_of(resumed) if resumed is not None else None
    if folder is not None:
        shard_files.read_shards(folder, {f"model.{name}": tensor for name, tensor in model.state_dict().items() if not (
            task.keeps_own_head(resumed) and name.startswith(models_vit.head_prefixes(model)))})
    if resumed is not None:
        set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))


def idle_for_backbone(parsed: Parsed, backbone: models_vit.Backbone) -> list[str]:
    """Lines about typed flags of the model that only RETFound_mae knows."""
    lines = []
    if "global_pool" in parsed.typed and not parsed.options.global_pool and backbone.family != "mae":
        lines.append(f"--cls_token changes nothing: {backbone.arch} reads its class token anyway"
                     if backbone.model != models_vit.TIMM else
                     "--cls_token changes nothing: a timm model pools as timm builds it")
    if "fc_norm_passes" in parsed.typed and backbone.family != "mae":
        lines.append(f"--fc_norm_passes does nothing for {backbone.arch}: RETFound_mae alone has fc_norm")
    return lines
