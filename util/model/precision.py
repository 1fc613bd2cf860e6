"""In which number format the matrix products run, and what goes with it: the layout of weights, attention."""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from util.core.errors import InputError

# PyTorch's fused attention for CPUs does not use their bf16 instructions: up to so many patches plain
# products are faster
MOST_TOKENS = 600
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A resolved precision: fp32, bf16 or fp16 on one kind of device."""

    name: str
    device_type: str
    # autocast's copies of weights stay until the forward pass ends; not of a sharded model's
    keeps_casts: bool = True

    def autocast(self) -> nullcontext | torch.autocast:
        """The context that a forward pass runs in."""
        if self.name not in DTYPES:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=DTYPES[self.name], cache_enabled=self.keeps_casts)

    def place(self, model: torch.nn.Module, device: torch.device | None = None,
              lay_out: bool = True) -> torch.nn.Module:
        """The model on its device, laid out for it: convolutions' weights with their channels last (1.1 to
        1.7 times as fast on CPUs, no difference for transformers; not without `lay_out`, for FSDP2 takes
        plain layouts alone), and in bf16 on a CPU attention by plain matrix products."""
        model = model.to(device) if device is not None else model
        tokens = getattr(getattr(model, "patch_embed", None), "num_patches", math.inf)
        if self.device_type == "cpu" and self.name == "bf16" and tokens <= MOST_TOKENS:
            for module in model.modules():
                if hasattr(module, "fused_attn"):  # timm's attention layers
                    module.fused_attn = False
        for parameter in model.parameters() if lay_out else ():
            # module.to(memory_format=...) fails where there is a Conv3d (timm's lambda layers)
            if parameter.ndim == 4:
                # not contiguous(): it leaves kernels of one pixel as they are
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return model

    def scaler(self) -> torch.amp.GradScaler:
        """fp16 scales its loss, so that small gradients are not lost; the others pass through."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def resolve_precision(wanted: str, device: torch.device, architecture: str) -> Precision:
    """What `--precision` means on this device. auto: bf16 where the hardware has it, else fp16 on a GPU, else
    fp32.

    InputError for what can't work: fp16 with DINOv3, fp16 without a GPU.
    """
    is_dinov3 = "dinov3" in architecture
    if wanted == "fp16" and is_dinov3:
        raise InputError("--precision fp16 can't be used with DINOv3: its activations go beyond 65504, "
                         "fp16's largest number, and the loss becomes NaN; pass bf16 or fp32")
    if wanted == "fp16" and device.type != "cuda":
        raise InputError(f"--precision fp16 needs a GPU (this run is on {device.type}): pass bf16, fp32 or "
                         "auto")
    if wanted == "auto" and device.type == "cuda":
        without_bf16 = "fp32" if is_dinov3 else "fp16"
        wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else without_bf16
    elif wanted == "auto":
        wanted = "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"
    return Precision(wanted, device.type)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices itself (AVX512-BF16, AMX, Arm's BF16)."""
    if hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.10, the lowest release, does not have it
        found = torch.cpu.get_capabilities()
        return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
