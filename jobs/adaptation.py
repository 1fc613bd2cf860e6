"""Which part of a model is trained: all, the head (lp), adapters and the head (lora), the last blocks; and
how an adapter, saved alone, becomes a whole model again."""

import copy
import re

import torch

import models_vit
from jobs.tasks.base import Task
from util.core.errors import InputError
from util.model import lora
from util.model.lr_decay import layer_of_parameters
from util.options.checks import check_part
from util.options.groups import Options
from util.parallel.sharding import is_own
from util.weights.finding import find_weights, sha256
from util.weights.fitting import HEAD_PREFIX, MAY_BE_NEW, WeightFile, put_in, set_buffers


def choose_part(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone, has_weights: bool = True,
                options: Options | None = None) -> None:
    """Leave trainable what --adaptation and --train_last_blocks say; with lora the adapters are put in.
    InputError.

    has_weights: whether the backbone holds pre-trained ones; options: others than the task's.
    """
    options = options or task.options
    check_part(options)
    if options.model.adaptation == "lp":
        task.freeze(model)
    elif options.model.adaptation == "lora":
        if not has_weights:
            raise InputError("--adaptation lora adapts pre-trained weights and there are none: name them "
                             "with --finetune")
        _inject(model, task.backbone_of(model), backbone, lora.Settings.of(options.part))
        lora.draw(task.backbone_of(model), options.run.seed)
    elif options.part.train_last_blocks:
        _train_last_blocks(model, task.backbone_of(model), options.part.train_last_blocks, backbone.arch)


def shapes_adapted(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone,
                   adaptation: str) -> torch.nn.Module:
    """A copy of a model of shapes, as another --adaptation would train it. InputError where it can't."""
    shapes = copy.deepcopy(model)
    lora.merge(shapes)
    shapes.requires_grad_(True)
    choose_part(
        task,
        shapes,
        backbone,
        options=task.options.having(adaptation=adaptation, train_last_blocks=None, allow_partial=False),
    )
    return shapes


def _inject(model: torch.nn.Module, body: torch.nn.Module, backbone: models_vit.Backbone,
            settings: lora.Settings) -> None:
    """Adapters into `body`, the part of `model` that timm built. The head is trained whole, and so is what
    the weight files of its family don't have (RETFound_mae's fc_norm)."""
    lora.inject(body, settings, models_vit.head_names(body), backbone.arch)
    prefixes = models_vit.head_prefixes(model)
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes) or re.fullmatch(
            MAY_BE_NEW[backbone.family], name.removeprefix("backbone.")
        ):
            parameter.requires_grad_(True)


def _train_last_blocks(model: torch.nn.Module, body: torch.nn.Module, number: int, arch: str) -> None:
    """Leave the last blocks trainable and what follows them (norm, head): layers as in
    util/model/lr_decay.py."""
    if not hasattr(body, "group_matcher"):
        raise InputError(f"--train_last_blocks: timm does not say what the blocks of {arch} are; leave it "
                         "out, or choose another --model_arch")
    layer_of, last = layer_of_parameters(model)
    if number > last - 1:
        raise InputError(f"--train_last_blocks {number}, but {arch} has {last - 1} blocks: pass at most "
                         f"{last - 1}, or leave it out to train all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layer_of[name] >= last - number)


def describe(options: Options, model: torch.nn.Module) -> list[str]:
    """A line about the part that is trained, where it is not all and not the head alone."""
    layers = lora.adapted_layers(model)
    if layers:
        size = sum(p.numel() for name, p in model.named_parameters() if is_own(name))
        made = lora.Settings.of(options.part)
        return [f"adapters   LoRA of rank {made.rank}, alpha {made.alpha:g}, dropout {made.dropout:g} on "
                f"{len(layers)} layers ({made.targets}): {size:,} numbers; the head is trained too"]
    if options.part.train_last_blocks and not options.run.eval:
        return [f"part       the last {options.part.train_last_blocks} blocks and what follows them are "
                "trained; the blocks before stand still and run as in evaluation, without drop path"]
    return []


# ---- an adapter alone --------------------------------------------------------------------------------------

def load_adapter(model: torch.nn.Module, body: torch.nn.Module, backbone: models_vit.Backbone,
                 file: WeightFile,
                 place: str = "", weights_dir: str | None = None, put=put_in) -> tuple[dict, str]:
    """Base weights and the adapter of `file` into a new model -> (the facts about the weights, a line about
    both).

    body: the part of `model` that timm built. place: where the base weights are now, where it was typed. put:
    see models_vit.load_backbone. InputError where they are gone or are others than the adapter was trained
    on, by their sha256.
    """
    settings, weights = lora.Settings.stored_in(file), file.rest["weights"]
    base = _find_base(file, weights, place, weights_dir)
    loaded = models_vit.load_backbone(body, backbone, base, "", put=put)
    if loaded.sha256 != weights["sha256"]:
        raise InputError(f"{file.path} is an adapter to {weights['name']} with sha256 "
                         f"{weights['sha256'][:12]}…, and {base} has {loaded.sha256[:12]}…: pass the place "
                         "of those weights with --finetune")
    _inject(model, body, backbone, settings)
    lora.draw(body, 0)  # room for the file's values, also in a model of shapes
    tensors = file.tensors
    if model is body and not model.num_classes:  # for features: built without a head
        heads = (HEAD_PREFIX, *(f"{head}." for head in models_vit.head_names(model)))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    count = lora.put_in(model, tensors, file.path)
    return weights | {"path": loaded.path}, (
        f"{file.path}  {count} tensors of an adapter (rank {settings.rank}) and a head, on {loaded.path}  "
        f"sha256 {loaded.sha256}")


def _find_base(file: WeightFile, weights: dict, place: str, weights_dir: str | None) -> str:
    stored = file.rest["options"]
    folder = weights_dir or stored.get("weights_dir") or "./weights"
    for name in [place] if place else [weights.get("path"), weights.get("name")]:
        try:
            return str(
                find_weights(str(name), folder, models_vit.HUB_FILES, "it is what the adapter was trained on")
            )
        except InputError as error:
            problem = error
    raise InputError(f"{file.path} is an adapter to {weights.get('name')}, which is not at "
                     f"{weights.get('path')} now: put the file back, or pass its place with --finetune "
                     f"({problem})") from problem


def load_whole(task: Task, model: torch.nn.Module, backbone: models_vit.Backbone, file: WeightFile,
               put=put_in,
               **where) -> str:
    """A trained checkpoint into the model -> a line about its tensors; an adapter is merged into its base
    weights."""
    if not lora.is_adapter(file):
        return task.load_trained(model, backbone, file, put).describe()
    _, line = load_adapter(model, task.backbone_of(model), backbone, file, **where)
    lora.merge(model)
    return line


def load_resumed(model: torch.nn.Module, backbone, resumed: WeightFile, task: Task, put, streamed: bool):
    """A checkpoint into the model -> the weights that its run began with, and a line. An adapter stays one
    for training.
    streamed: the model has shapes alone, and `put` takes what will go into it."""
    options, where = task.options, {"put": put}
    if lora.is_adapter(resumed):
        where |= {"place": options.model.finetune if "finetune" in options.typed else "",
                  "weights_dir": options.model.weights_dir if "weights_dir" in options.typed else None}
    if lora.is_adapter(resumed) and not options.run.eval:
        if options.model.adaptation != "lora" or lora.Settings.of(options.part) != lora.Settings.stored_in(
            resumed
        ):
            raise InputError(f"{resumed.path} holds an adapter that was made otherwise: leave --adaptation "
                             "and the --lora_ flags to it, or start a new run with another --task")
        started_from, line = load_adapter(model, task.backbone_of(model), backbone, resumed, **where)
    else:
        started_from, line = resumed.rest.get("weights"), load_whole(task, model, backbone, resumed, **where)
        line = f"{resumed.path}  sha256 {sha256(resumed.path)}  {line}"
    if not options.run.dry_run and not streamed:
        set_buffers(task.backbone_of(model), resumed.rest.get("buffers", {}))
    return started_from, line
