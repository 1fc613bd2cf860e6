"""LoRA (Hu et al. 2022) by the PEFT library: small matrices beside a frozen backbone's own, and how they come
out again.

The one place that knows PEFT and its names. A layer `blocks.0.attn.qkv` with an adapter has
`blocks.0.attn.qkv.base_layer.weight` (frozen) and `blocks.0.attn.qkv.lora_A.default.weight`, `…lora_B…`
(trained). What is saved while training is what is trained (`trained_state`); `merge` adds the products to the
frozen matrices and leaves a plain timm model.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from util.core.errors import InputError
from util.model.lr_decay import layer_of_parameters
from util.options.model import PartOptions
from util.parallel.sharding import is_own, local, plain_name, shard_of
from util.weights.fitting import WeightFile, some_of

# Names of timm's linear layers. The whole name has to match, and `attn.` keeps patch_embed.proj out.
ATTENTION = r"(.*\.)?attn\.(qkv|q|k|v|kv|q_proj|k_proj|v_proj|proj)"
MLP = r"(.*\.)?mlp\.(fc1|fc2|fc1_g|fc1_x)"
NAMED_TARGETS = {"attention": ATTENTION, "attention+mlp": f"({ATTENTION})|({MLP})"}
SUFFIXES = re.compile(r"[\w.]+(,[\w.]+)*")


@dataclass(frozen=True)
class Settings:
    """rank: columns of A, rows of B; alpha / rank: what their product is multiplied with; targets: see
    `layers_to_adapt`."""

    rank: int
    alpha: float
    dropout: float
    targets: str

    @classmethod
    def of(cls, asked: PartOptions) -> "Settings":
        return cls(asked.lora_rank, asked.lora_alpha, asked.lora_dropout, asked.lora_targets)

    @classmethod
    def stored_in(cls, file: WeightFile) -> "Settings":
        """Those of an adapter's file; InputError where it doesn't hold them."""
        stored, weights, options = (file.rest.get(name) for name in ("adapter", "weights", "options"))
        kinds = {"rank": int, "alpha": int | float, "dropout": int | float, "targets": str}
        complete = (all(isinstance(part, dict) for part in (stored, weights, options))
                    and all(isinstance(stored.get(name), kind) for name, kind in kinds.items())
                    and all(isinstance(weights.get(name), str) for name in ("name", "path", "sha256")))
        if (not complete or stored["rank"] < 1 or not 0 <= stored["dropout"] < 1
                or not _is_expression(stored["targets"])):
            raise InputError(f"{file.path} is damaged: it does not say how its adapter was made")
        return cls(**{name: stored[name] for name in kinds})


def require() -> None:
    """InputError where PEFT is not installed."""
    try:
        import peft  # noqa: F401  (it brings transformers: only where it is asked for)
    except ImportError as error:
        raise InputError("--adaptation lora needs PEFT, which is not installed: pip install -r "
                         "requirements-lora.txt") from error


def is_adapter(file: WeightFile) -> bool:
    """Whether a checkpoint holds the adapter and the head alone."""
    return "adapter" in file.rest


# ---- which layers ------------------------------------------------------------------------------------------

def _is_expression(targets: str) -> bool:
    try:
        return bool(re.compile(_expression(targets)))
    except re.error:
        return False


def _expression(targets: str) -> str:
    if targets in NAMED_TARGETS:
        return NAMED_TARGETS[targets]
    if SUFFIXES.fullmatch(targets):
        return r"(.*\.)?(" + "|".join(map(re.escape, targets.split(","))) + ")"
    return targets


def layers_to_adapt(model: torch.nn.Module, targets: str, heads: tuple[str, ...], arch: str) -> list[str]:
    """Names of the layers that `--lora_targets` means, the head's never among them.

    attention, attention+mlp; or ends of names, parted by commas (qkv,mlp.fc2), of linear layers; or a regular
    expression that a layer's whole name matches, which may name convolutions too. InputError where there is
    none.
    """
    kinds = ((torch.nn.Linear,) if targets in NAMED_TARGETS or SUFFIXES.fullmatch(targets)
             else (torch.nn.Linear, torch.nn.Conv2d))
    pattern = re.compile(_expression(targets))
    usable = [name for name, module in model.named_modules()
              if isinstance(module, kinds) and getattr(module, "groups", 1) == 1
              and not any(name == head or name.startswith(f"{head}.") for head in heads)]
    found = [name for name in usable if pattern.fullmatch(name)]
    if not found:
        ends = dict.fromkeys(".".join(name.split(".")[-2:]) for name in usable)
        known = f"its layers' names end in {', '.join(list(ends)[:6])}: " if ends else ""
        raise InputError(f"--lora_targets {targets}: {arch} has no such layers; {known}name layers to adapt "
                         "with --lora_targets (a regular expression may name convolutions), or take "
                         "--train_last_blocks")
    return found


# ---- in and out --------------------------------------------------------------------------------------------

def inject(model: torch.nn.Module, settings: Settings, heads: tuple[str, ...], arch: str) -> None:
    """Put adapters into a timm model, in place: they are trainable, all else in it stands still. InputError.

    They start with B = 0, so that the outputs are those of the model without them. The layers of
    util/model/lr_decay.py are those of the layers that the adapters belong to.
    """
    require()
    from peft import LoraConfig, inject_adapter_in_model

    names = layers_to_adapt(model, settings.targets, heads, arch)
    for name in names:
        smallest = min(model.get_submodule(name).weight.shape[:2])
        if settings.rank > smallest:
            raise InputError(f"--lora_rank {settings.rank} is above {smallest}, the smaller side of {name}: "
                             "lower it")
    layer_of, last = layer_of_parameters(model)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
                        target_modules="|".join(map(re.escape, names)))
    inject_adapter_in_model(config, model)
    if adapted_layers(model) != names:
        raise AssertionError("PEFT adapted other layers than it was told to")
    model.layers_with_head = (
        layer_of | {name: layer_of[plain_name(name)] for name, _ in model.named_parameters()}, last)
    _call_adapted_layers(model)


@torch.no_grad()
def draw(model: torch.nn.Module, seed: int) -> None:
    """The adapters' start on the CPU, a function of the seed and the layer's name: A as PEFT draws it
    (Kaiming's uniform), B zero. A model of shapes gets values there alone."""
    for name in adapted_layers(model):
        layer = model.get_submodule(name)
        first, second = layer.lora_A["default"], layer.lora_B["default"]
        digest = hashlib.blake2b(f"{seed},{name}".encode(), digest_size=7).digest()
        values = torch.empty(first.weight.shape)
        torch.nn.init.kaiming_uniform_(
            values, a=math.sqrt(5), generator=torch.Generator().manual_seed(int.from_bytes(digest, "little")))
        first.weight = torch.nn.Parameter(values)
        second.weight = torch.nn.Parameter(torch.zeros(second.weight.shape))


def _call_adapted_layers(model: torch.nn.Module) -> None:
    """Some of timm's attentions (EVA's, which DINOv3 has, BEiT's, Swin v2's) multiply with qkv.weight
    themselves where the biases are kept apart, and an adapter would never be called: there is a switch that
    makes them call the layer."""
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = hasattr(module.qkv, "lora_A")


def require_gradients(model: torch.nn.Module, input_size: int, arch: str) -> None:
    """InputError where an adapter has no part in the model's outputs: timm calls not every layer as a layer,
    and an adapter beside one whose weight is used directly would learn nothing and say nothing.

    One image goes forward and back through tensors that have shapes alone, so that it costs no memory,
    whatever the model's size, and works for one on the meta device.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    if not adapted_layers(model):
        return
    was_training = model.training
    model.eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = {name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
                      for name, p in model.named_parameters()}
        buffers = {name: torch.empty(buffer.shape, dtype=buffer.dtype)
                   for name, buffer in model.named_buffers()}
        outputs = torch.func.functional_call(model, parameters | buffers,
                                             torch.empty(1, 3, input_size, input_size))
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        found = torch.autograd.grad(outputs.sum(), [parameters[name] for name in trained], allow_unused=True)
    model.train(was_training)
    without = list(dict.fromkeys(plain_name(name).removesuffix(".weight")
                                 for name, gradient in zip(trained, found, strict=True) if gradient is None))
    if without:
        raise InputError(f"--lora_targets: {arch} does not call {some_of(without, 3)} as layers of their "
                         "own, so that adapters there would learn nothing: name other layers")


def adapted_layers(model: torch.nn.Module) -> list[str]:
    """Names of the layers that have an adapter; none in a model of timm's own."""
    return [name for name, module in model.named_modules() if hasattr(module, "lora_A")]


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The part of a state dict that training changes: trained parameters, and buffers (batch norm's
    statistics)."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


@torch.no_grad()
def put_in(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: str | Path) -> int:
    """Copy a `trained_state` into a model with the same adapters -> how many tensors. InputError unless all
    of it fits."""
    wanted = {_flat(name): tensor for name, tensor in trained_state(model).items()}
    found = {_flat(name): tensor for name, tensor in tensors.items()}
    misfits = (sorted(wanted.keys() ^ found.keys())
               or [name for name in wanted if wanted[name].shape != found[name].shape])
    if misfits:
        raise InputError(f"{path} holds an adapter that does not fit this model ({some_of(misfits, 3)}): "
                         "leave the model's flags to it")
    if not any(tensor.is_meta for tensor in wanted.values()):
        for name, tensor in found.items():
            wanted[name].copy_(tensor)
    return len(wanted)


def _flat(name: str) -> str:
    return name.removeprefix("backbone.")  # as a checkpoint is read


@torch.no_grad()
def merge(model: torch.nn.Module) -> None:
    """Add each adapter's product to its layer's weight and take the adapter out: names and modules are timm's
    again."""
    for name in adapted_layers(model):
        layer = model.get_submodule(name)
        if isinstance(layer.base_layer.weight, DTensor):
            _merge_shards(layer)
        elif not layer.base_layer.weight.is_meta:
            layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    _call_adapted_layers(model)
    for module in model.modules():
        if hasattr(module, "peft_config"):
            del module.peft_config


def _merge_shards(layer: torch.nn.Module) -> None:
    """The same in shards: the small matrices are gathered, and each process adds to its rows; collective."""
    first, second = (whole.full_tensor() if isinstance(whole, DTensor) else whole
                     for whole in (layer.lora_A["default"].weight, layer.lora_B["default"].weight))
    if first.ndim > 2:
        raise InputError("--lora_targets names convolutions, whose adapters can't be merged in shards: pass "
                         "--parallel ddp")
    base = layer.base_layer.weight
    local(base).add_(shard_of(layer.scaling["default"] * (second @ first), base))


def tensors_of_peft(model: torch.nn.Module, also: Iterable[str]) -> dict[str, torch.Tensor]:
    """What `write_peft` writes, under PEFT's names; in shards where the model is."""
    prefixes = tuple(f"{name}." for name in also)
    return {f"base_model.model.{name.replace('.default.', '.')}": tensor
            for name, tensor in model.state_dict().items() if is_own(name) or name.startswith(prefixes)}


def write_peft(folder: Path, model: torch.nn.Module, also: Iterable[str], tensors: dict[str, torch.Tensor],
               base: str) -> None:
    """The adapter as PEFT itself keeps one (adapter_config.json, adapter_model.safetensors), so that
    PeftModel.from_pretrained(timm's model with the base weights, folder) is this model.

    also: modules trained whole; tensors: `tensors_of_peft`, whole.
    """
    from safetensors.torch import save

    config = model.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = base, True
    config.modules_to_save = sorted(also) or None
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    config.save_pretrained(part)
    (part / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
