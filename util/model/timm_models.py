"""What timm's registry and its models say of themselves: names, tags, the settings of a name, the input sizes
that run."""

import functools
import inspect
import warnings
from collections.abc import Callable

import timm
import torch
from timm.models import PretrainedCfg, get_deprecated_models

from util.core import machine_faults
from util.core.errors import InputError
from util.model.precision import Precision
from util.options.groups import Options

Build = Callable[[int], torch.nn.Module]  # an input size -> the model for it


# ---- names -------------------------------------------------------------------------------------------------

def current_name(arch: str) -> str:
    """The name that timm has today for `arch`, an old name mapped as timm maps it; InputError for a name or a
    tag that timm does not know."""
    asked = _without_owner(arch)
    name = get_deprecated_models().get(asked, asked)
    if name is None:
        raise InputError(f"--model_arch {arch}: timm {timm.__version__} has removed this model and names no "
                         "other in its place")
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise InputError(f"--model_arch {arch} is no model of timm {timm.__version__}: {hint}")
    bare, dot, tag = name.partition(".")
    tags = timm.models.get_arch_pretrained_cfgs(bare)
    if dot and name not in tags:
        known = [other for other in tags if other != bare]
        raise InputError(f"--model_arch {arch}: timm {timm.__version__} has no tag {tag} of {bare}: choose "
                         + ", ".join([bare, *known]))
    return name


def with_current_name(options: Options) -> tuple[Options, list[str]]:
    """The options with today's name in the place of an old one of timm's in --model_arch; a line that says
    so."""
    old = _without_owner(options.model.model_arch or "")
    if old not in get_deprecated_models():
        return options, []
    name = current_name(old)
    return options.having(model_arch=name), [f"--model_arch {old} is an old name of timm's: it is {name} now"]


def _without_owner(arch: str) -> str:
    return arch.removeprefix("hf-hub:").removeprefix("timm/")


def settings_of(name: str) -> PretrainedCfg | None:
    """timm's settings (input size, normalisation, hub file) of a name that is known; None where timm has none
    of it."""
    return timm.get_pretrained_cfg(name, allow_unregistered=True)


@functools.cache  # each launch asks several things of it
def shapes_of(name: str) -> torch.nn.Module:
    """The model of a name without a classifier and without values (on meta), to ask, not to change."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


# ---- input sizes -------------------------------------------------------------------------------------------

def own_size(name: str) -> int:
    settings = settings_of(name)
    return settings.input_size[-1] if settings else 224


def is_fixed_size(name: str) -> bool:
    """Whether a model is built for one input size, which timm then wants to be told."""
    settings = settings_of(name)
    return bool(settings and settings.fixed_input_size) or "img_size" in inspect.signature(
        timm.model_entrypoint(name)).parameters


def patch_of(name: str) -> int:
    """Side in pixels of a fixed-size model's patches (0 where it takes any size), asked of the model
    itself."""
    if not is_fixed_size(name):
        return 0
    embed = getattr(shapes_of(name), "patch_embed", None)
    if not getattr(embed, "grid_size", None) or not getattr(embed, "img_size", None):
        return 0  # a stem of convolutions takes what it gets
    return round(embed.img_size[0] / embed.grid_size[0])


def require_size(name: str, build: Build, size: int) -> None:
    """InputError, naming sizes that work, unless the model can be trained with images of `size` pixels:
    architectures have conditions of their own (windows, halos, levels), and many state them nowhere but in a
    failing step."""
    reason = _why_not(build, size)
    if reason is None:
        return
    own, below = own_size(name), size // 32 * 32
    near = dict.fromkeys(other for other in sorted({below, below + 32, own}) if other >= 32 and other != size)
    works = [str(other) for other in near if _why_not(build, other) is None]
    if not works:
        tried = ", ".join(map(str, [size, *near]))
        raise InputError(f"--model_arch {name} can't be trained here ({reason}): tried --input_size {tried}; "
                         "choose another architecture")
    raise InputError(f"--model_arch {name} does not take --input_size {size} ({reason}): what works is "
                     f"{' or '.join(works)}")


def _why_not(build: Build, size: int) -> str | None:
    """What goes wrong in a training step; None where it works.

    The step is first taken with shapes alone (meta), which costs no memory and little time whatever the
    model's size. Some models can't do that, so what fails is tried once more with numbers, and only that
    failure counts.
    """
    for device in ("meta", "cpu"):
        try:
            outputs = _step(build, size, device)
        except Exception as error:  # whatever its class, it is some architecture's error, and it is told
            if machine_faults.explain(error):  # but this is the machine's, of which the caller tells
                raise
            cause = error.__cause__ or error if isinstance(error, InputError) else error
            text = str(cause).partition("\n")[0][:200]
            reason = text if isinstance(cause, InputError) else f"timm's model raises {type(cause).__name__}"
            reason += f": {text}" if text and text != reason else ""
            continue
        if isinstance(outputs, torch.Tensor) and outputs.shape == (2, 2):
            return None
        shape = list(getattr(outputs, "shape", [type(outputs).__name__]))
        reason = f"for two images and two classes it gives out {shape}"
    return reason


def _step(build: Build, size: int, device: str) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]), torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model that is kept says them
        model = Precision("fp32", "cpu").place(build(size)).train()
        return model(torch.zeros(2, 3, size, size))
