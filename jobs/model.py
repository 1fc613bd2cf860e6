"""The model of a job: a row of the table of backbones, built, with the weights that it starts from; the part
of it that is trained: all, the head (lp), adapters and the head (lora), the last blocks; and how an adapter,
saved alone, becomes a whole model again."""

import copy
import re

import torch

import models_vit
from jobs import parallel
from jobs.tasks.base import Task
from util.core.errors import InputError
from util.model import lora, lr_decay
from util.options.checks import check_part
from util.options.groups import Options
from util.parallel import sharding
from util.parallel.processes import World
from util.weights import finding, shard_files
from util.weights.fitting import COVARIATE_HEAD, HEAD_PREFIX, MAY_BE_NEW, WeightFile, put_in, set_buffers


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
    # the options go on saying what was asked, so that the same launch again is the same
    for drop_path in (options.model.drop_path, 0.0):
        torch.manual_seed(options.run.seed)
        try:
            with torch.device(device):
                return task.build(backbone, drop_path)
        except models_vit.NoStochasticDepth:
            if "drop_path" in options.typed or not drop_path:
                raise
            if device == "cpu" or options.run.dry_run:
                world.say(f"{backbone.arch} has no stochastic depth: --drop_path is 0")


def build(backbone: models_vit.Backbone, resumed: WeightFile | None, world: World, task: Task,
          parts: sharding.Parts | None = None) -> tuple[torch.nn.Module, dict | None, str]:
    """The model with its weights, where they come from, and a line on a checkpoint's. On a dry run it has
    shapes alone; so it has with `parts`, which takes what of a file goes into which part of it."""
    options, started_from, loaded = task.options, None, ""
    model = new_model(backbone, world, task, "cpu" if parts is None and not options.run.dry_run else "meta")
    put = put_in if parts is None else lambda part, fitted: parts.append((part, fitted))
    if resumed is not None:
        started_from, loaded = _load_resumed(model, backbone, resumed, task, put, streamed=parts is not None)
    elif options.model.finetune:
        asked = options.model
        try:
            started_from = models_vit.load_backbone(task.backbone_of(model), backbone, asked.finetune,
                                                    asked.weights_dir, asked.allow_partial, put)
        except InputError as error:
            if "finetune" in options.typed or options.head.pretrained:
                raise
            raise InputError(f"{error}; {options.model.finetune} is only the default: another model does as "
                             "well, such as --model efficientnet_b4 (--pretrained takes timm's weights of "
                             "it)") from error
    if not options.run.eval and not lora.adapted_layers(model):
        choose_part(task, model, backbone, has_weights=started_from is not None or options.run.dry_run)
    lora.require_gradients(task.backbone_of(model), options.model.input_size, backbone.arch)
    runs_backwards = options.model.adaptation != "lp" and not options.run.eval
    if options.training.activation_checkpointing and runs_backwards:
        parallel.recompute_blocks(model)
    return model, started_from, loaded


def restore_values(model: torch.nn.Module, resumed: WeightFile, task: Task) -> None:
    """Into a sharded model: what its checkpoint keeps in shards of its own, and buffers that stand beside the
    weights."""
    folder = shard_files.folder_of(resumed)
    if folder is not None:
        own = models_vit.head_prefixes(model) if task.keeps_own_head(resumed) else ()
        wanted = {f"model.{name}": tensor for name, tensor in model.state_dict().items()
                  if not name.startswith(own)}
        shard_files.read_shards(folder, wanted)
    set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))


def idle_for_backbone(options: Options, backbone: models_vit.Backbone) -> list[str]:
    """Lines about typed flags of the model that only the family of MAE (RETFound_mae) knows."""
    typed = options.typed if backbone.family != "mae" else ()
    pools = f"{backbone.arch} reads {backbone.reads} anyway"
    if backbone.model == models_vit.TIMM:
        pools = "a timm model pools as timm builds it"
    lines = [("global_pool" in typed and not options.model.global_pool,
              f"--cls_token changes nothing: {pools}"),
             ("fc_norm_passes" in typed,
              f"--fc_norm_passes does nothing for {backbone.arch}: models of MAE's family, such as "
              "RETFound_mae, alone have fc_norm")]
    return [line for applies, line in lines if applies]


# ---- the part that is trained ------------------------------------------------------------------------------

def choose_part(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone, has_weights: bool = True,
                options: Options | None = None) -> None:
    """Leave trainable what --adaptation and --train_last_blocks say; with lora the adapters are put in.
    InputError.

    has_weights: whether the backbone holds pre-trained ones; options: others than the task's.
    """
    options = options or task.options
    check_part(options)
    if options.model.adaptation == "lp":
        models_vit.freeze_backbone(model)
    elif options.model.adaptation == "lora":
        if not has_weights:
            raise InputError("--adaptation lora adapts pre-trained weights and there are none: name them "
                             "with --finetune")
        _inject(model, task.backbone_of(model), backbone, lora.Settings.of(options.part), options.run.seed)
    elif options.part.train_last_blocks:
        _train_last_blocks(model, task.backbone_of(model), options.part.train_last_blocks, backbone.arch)


def shapes_adapted(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone,
                   adaptation: str) -> torch.nn.Module:
    """A copy of a model of shapes, as another --adaptation would train it. InputError where it can't."""
    shapes = copy.deepcopy(model)
    lora.merge(shapes)
    shapes.requires_grad_(True)
    options = task.options.having(adaptation=adaptation, train_last_blocks=None, allow_partial=False)
    choose_part(task, shapes, backbone, options=options)
    return shapes


def _inject(model: torch.nn.Module, body: torch.nn.Module, backbone: models_vit.Backbone,
            settings: lora.Settings, seed: int) -> None:
    """Adapters into `body`, the part of `model` that timm built, drawn from the seed. The head is trained
    whole, and so is what the weight files of its family don't have (RETFound_mae's fc_norm)."""
    lora.inject(body, settings, models_vit.head_names(body), backbone.arch)
    prefixes = models_vit.head_prefixes(model)
    for name, parameter in model.named_parameters():
        is_new = re.fullmatch(MAY_BE_NEW[backbone.family], name.removeprefix("backbone."))
        if name.startswith(prefixes) or is_new:
            parameter.requires_grad_(True)
    lora.draw(body, seed)


def _train_last_blocks(model: torch.nn.Module, body: torch.nn.Module, number: int, arch: str) -> None:
    """Leave the last blocks trainable and what follows them (norm, head): layers as in
    util/model/lr_decay.py."""
    if not hasattr(body, "group_matcher"):
        raise InputError(f"--train_last_blocks: timm does not say what the blocks of {arch} are; leave it "
                         "out, or choose another --model_arch")
    layer_of, last = lr_decay.layer_of_parameters(model)
    if number > last - 1:
        raise InputError(f"--train_last_blocks {number}, but {arch} has {last - 1} blocks: pass at most "
                         f"{last - 1}, or leave it out to train all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of[name] >= last - number)


def describe_part(options: Options, model: torch.nn.Module) -> list[str]:
    """A line about the part that is trained, where it is not all and not the head alone."""
    layers = lora.adapted_layers(model)
    if layers:
        size = sum(p.numel() for name, p in model.named_parameters() if sharding.is_own(name))
        made = lora.Settings.of(options.part)
        return [f"adapters   LoRA of rank {made.rank}, alpha {made.alpha:g}, dropout {made.dropout:g} on "
                f"{len(layers)} layers ({made.targets}): {size:,} numbers; the head is trained too"]
    if options.part.train_last_blocks and not options.run.eval:
        return [f"part       the last {options.part.train_last_blocks} blocks and what follows them are "
                "trained; the blocks before stand still and run as in evaluation, without drop path"]
    return []


# ---- an adapter alone --------------------------------------------------------------------------------------

def load_adapter(model: torch.nn.Module, body: torch.nn.Module, backbone: models_vit.Backbone,
                 file: WeightFile, place: str = "", weights_dir: str | None = None,
                 put: models_vit.Put = put_in) -> tuple[dict, str]:
    """Base weights and the adapter of `file` into a new model -> (the facts about the weights, a line about
    both).

    body: the part of `model` that timm built. place: where the base weights are now, where it was typed. put:
    see models_vit.load_backbone. InputError where they are gone or are others than the adapter was trained
    on, by their sha256.
    """
    settings, weights = lora.Settings.stored_in(file), file.rest["weights"]
    base = _find_base(file, weights, place, weights_dir)
    loaded = models_vit.load_backbone(body, backbone, base, "", put=put)
    digest = loaded["sha256"]
    if digest != weights["sha256"]:
        raise InputError(f"{file.path} is an adapter to {weights['name']} with sha256 "
                         f"{weights['sha256'][:12]}…, and {base} has {digest[:12]}…: pass the place "
                         "of those weights with --finetune")
    _inject(model, body, backbone, settings, seed=0)  # the values are the file's
    tensors = file.tensors
    if model is body and not model.num_classes:  # for features: built without a head
        heads = (HEAD_PREFIX, COVARIATE_HEAD, *(f"{head}." for head in models_vit.head_names(model)))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    count = lora.put_in(model, tensors, file.path)
    return weights | {"path": loaded["path"]}, (
        f"{file.path}  {count} tensors of an adapter (rank {settings.rank}) and a head, on {loaded['path']}  "
        f"sha256 {digest}")


def _find_base(file: WeightFile, weights: dict, place: str, weights_dir: str | None) -> str:
    stored = file.rest["options"]
    folder = weights_dir or stored.get("weights_dir") or "./weights"
    for name in [place] if place else [weights.get("path"), weights.get("name")]:
        try:
            return str(finding.find_weights(str(name), folder, models_vit.HUB_FILES,
                                            "it is what the adapter was trained on"))
        except InputError as error:
            problem = error
    raise InputError(f"{file.path} is an adapter to {weights.get('name')}, which is not at "
                     f"{weights.get('path')} now: put the file back, or pass its place with --finetune "
                     f"({problem})") from problem


def load_whole(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone, file: WeightFile,
               place: str = "", weights_dir: str | None = None, put: models_vit.Put = put_in) -> str:
    """A trained checkpoint into the model -> a line about its tensors; an adapter is merged into its base
    weights. place, weights_dir: see `load_adapter`."""
    if not lora.is_adapter(file):
        return task.load_trained(model, backbone, file, put).describe()
    _, line = load_adapter(model, task.backbone_of(model), backbone, file, place, weights_dir)
    lora.merge(model)
    return line


def _load_resumed(model: torch.nn.Module, backbone: models_vit.Backbone, resumed: WeightFile, task: Task,
                  put: models_vit.Put, streamed: bool) -> tuple[dict | None, str]:
    """A checkpoint into the model -> the weights that its run began with, and a line. An adapter stays one
    for training. streamed: the model has shapes alone, and `put` takes what will go into it."""
    options = task.options
    place = options.model.finetune if "finetune" in options.typed else ""
    weights_dir = options.model.weights_dir if "weights_dir" in options.typed else None
    if lora.is_adapter(resumed) and not options.run.eval:
        made = lora.Settings.stored_in(resumed)
        if options.model.adaptation != "lora" or lora.Settings.of(options.part) != made:
            raise InputError(f"{resumed.path} holds an adapter that was made otherwise: leave --adaptation "
                             "and the --lora_ flags to it, or start a new run with another --task")
        started_from, line = load_adapter(model, task.backbone_of(model), backbone, resumed, place,
                                          weights_dir, put)
    else:
        started_from = resumed.rest.get("weights")
        line = load_whole(task, model, backbone, resumed, place, weights_dir, put)
        line = f"{resumed.path}  sha256 {finding.sha256(resumed.path)}  {line}"
    if not options.run.dry_run and not streamed:
        set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))
    return started_from, line
