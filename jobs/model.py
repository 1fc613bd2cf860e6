"""The model of a job: the row of the table of backbones, built, with the weights that it starts from."""

import torch

import models_vit
from jobs import parallel
from jobs.adaptation import choose_part, load_resumed
from jobs.tasks.base import Task
from util.core.errors import InputError
from util.model import lora
from util.options.groups import Options
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import shard_files
from util.weights.fitting import WeightFile, put_in, set_buffers


def resolve_backbone(options: Options, resumed: WeightFile | None) -> tuple[Options, models_vit.Backbone]:
    """The row of the table that the options and the checkpoint name; the options with its names and its input
    size."""
    backbone = models_vit.find_backbone(options.model.model, options.model.model_arch)
    stored = resumed.rest.get("backbone") if resumed is not None else None
    if stored and stored["arch"] != backbone.arch:
        raise InputError(f"{resumed.path} is a checkpoint of --model {stored['model']} --model_arch "
                         f"{stored['arch']}: {backbone.arch} contradicts it; leave the two flags out, or "
                         "name its own")
    size = models_vit.resolve_input_size(backbone, options.model.input_size)
    return options.having(model=backbone.model, model_arch=backbone.arch, input_size=size), backbone


def new_model(backbone: models_vit.Backbone, world: World, task: Task, device: str) -> torch.nn.Module:
    """The model as it starts, on the CPU, or its shapes alone on "meta"."""
    options = task.options

    def start(drop_path: float) -> torch.nn.Module:
        torch.manual_seed(options.run.seed)
        with torch.device(device):
            return task.build(backbone, drop_path)
    try:
        return start(options.model.drop_path)
    except models_vit.NoStochasticDepth:
        if "drop_path" in options.typed:
            raise
    if device == "cpu" or options.run.dry_run:
        world.say(f"{backbone.arch} has no stochastic depth: --drop_path is 0")
    return start(0.0)  # the options say what was asked, so that the same start again is the same


def build(
    backbone: models_vit.Backbone,
    resumed: WeightFile | None,
    world: World,
    task: Task,
    parts: sharding.Parts | None = None,
) -> tuple[torch.nn.Module, models_vit.LoadedWeights | dict | None, str]:
    """The model with its weights, where they come from, and a line on a checkpoint's. On a dry run it has
    shapes alone; so it has with `parts`, which takes what of a file goes into which part of it."""
    options, loaded = task.options, ""
    model = new_model(backbone, world, task, "cpu" if parts is None and not options.run.dry_run else "meta")
    put = put_in if parts is None else lambda part, fitted: parts.append((part, fitted))
    if resumed is not None:
        started_from, loaded = load_resumed(model, backbone, resumed, task, put, streamed=parts is not None)
    elif options.model.finetune:
        try:
            asked = options.model
            started_from = models_vit.load_backbone(
                task.backbone_of(model), backbone, asked.finetune, asked.weights_dir, asked.allow_partial, put
            )
        except InputError as error:
            if "finetune" in options.typed or options.head.pretrained:
                raise
            raise InputError(
                f"{error}; {options.model.finetune} is only the default: another model does as "
                "well, such as --model efficientnet_b4 (--pretrained takes timm's weights of "
                "it)"
            ) from error
    else:
        started_from = None
    if not options.run.eval and not lora.adapted_layers(model):
        choose_part(task, model, backbone, has_weights=started_from is not None or options.run.dry_run)
    lora.require_gradients(task.backbone_of(model), options.model.input_size, backbone.arch)
    if (
        options.training.activation_checkpointing
        and options.model.adaptation != "lp"
        and not options.run.eval
    ):
        parallel.recompute_blocks(model)
    return model, started_from, loaded


def restore_values(model: torch.nn.Module, resumed: WeightFile | None, task: Task) -> None:
    """Into a sharded model: what its checkpoint keeps in shards of its own, and buffers that stand beside the
    weights."""
    folder = shard_files.folder_of(resumed) if resumed is not None else None
    if folder is not None:
        shard_files.read_shards(folder, {f"model.{name}": tensor
                                         for name, tensor in model.state_dict().items() if not (
            task.keeps_own_head(resumed) and name.startswith(models_vit.head_prefixes(model)))})
    if resumed is not None:
        set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))


def idle_for_backbone(options: Options, backbone: models_vit.Backbone) -> list[str]:
    """Lines about typed flags of the model that only RETFound_mae knows."""
    lines = []
    if "global_pool" in options.typed and not options.model.global_pool and backbone.family != "mae":
        lines.append(f"--cls_token changes nothing: {backbone.arch} reads its class token anyway"
                     if backbone.model != models_vit.TIMM else
                     "--cls_token changes nothing: a timm model pools as timm builds it")
    if "fc_norm_passes" in options.typed and backbone.family != "mae":
        lines.append(f"--fc_norm_passes does nothing for {backbone.arch}: RETFound_mae alone has fc_norm")
    return lines
