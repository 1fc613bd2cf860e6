"""What a probe's head may read of a frozen backbone, and heads that read more than timm's own.

kind       what is read, V numbers an image (or P tokens of W)
pooled     what the model's own head reads: the class token, or the mean of the patch tokens or of the feature
           map
cls        the class token of the last block
cls_mean   that class token and the mean of the last block's patch tokens, side by side
last4      the class tokens of the last four blocks and the mean of the last block's patch tokens, as the
           linear evaluation of DINOv2 reads them (Oquab et al. 2023)
attentive  the patch tokens of the last block, or the places of the last feature map: a learned query says how
           much each counts (the simplest of the attentive probes of Chen et al., Context Autoencoder 2022,
           and of V-JEPA, 2024)

Every token has passed the model's final norm. Where that norm comes after the pooling (RETFound_mae with its
mean: fc_norm) each part passes it alone: every class token, the mean of the patch tokens, every token that a
query attends to. Class and register tokens are no patch tokens. A kind that a model does not have, or that is
another one of it, is not offered: CNNs have `pooled` and `attentive`; where the class token is what the
model's own head reads, `cls` is `pooled`.

A head that reads another kind than `pooled` stands in timm's own head's place, under its name, and the rest
of the model keeps timm's names: head.weight (K, V), head.bias (K,), and of an attentive one head.query (W,).
Its kind is the checkpoint's entry "reads". B is the number of images of a batch, K of classes.
"""

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from util.options.adaptation import ATTENTIVE, POOLED

BLOCKS = 4


def averaged(tokens: torch.Tensor, query: torch.Tensor,
             shares: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> torch.Tensor:
    """(B, P, W) tokens -> (B, W), their mean weighted by the softmax of their products with a query (W,)."""
    return (shares(torch.softmax(tokens @ query, dim=1))[:, None] @ tokens)[:, 0]


class WideHead(torch.nn.Linear):
    """A linear classifier of a kind of feature, (B, V) -> (B, K), in fp32 whatever the precision."""

    kind = POOLED

    def __init__(self, kind: str, width: int, num_classes: int) -> None:
        with torch.device("cpu"):  # so that it has values beside a backbone of shapes, too
            super().__init__(width, num_classes)
        self.kind = kind
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class AttentiveHead(WideHead):
    """The same of tokens that a learned query has averaged: (B, P, W) -> (B, K)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(ATTENTIVE, width, num_classes)
        self.query = torch.nn.Parameter(torch.zeros(width, device="cpu"))
        self.shares = torch.nn.Identity()  # of the tokens, (B, P): heat maps listen to it

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            return super().forward(averaged(tokens.float(), self.query, self.shares))


def read(model: torch.nn.Module, images: torch.Tensor, blocks: int = 1) -> dict[str, torch.Tensor]:
    """Run a timm model's blocks on (B, 3, S, S) images, its head left out -> what of this there is:

    features         of forward_features
    cls0, cls1, ...  (B, W) class tokens of the last `blocks` blocks, the last one last
    tokens           (B, P, W) patch tokens, or places of the feature map
    mean             (B, W) of the patch tokens of a transformer
    """
    norm = getattr(model, "fc_norm", None) or torch.nn.Identity()
    middle = []
    if blocks > 1:
        features, middle = model.forward_intermediates(images, indices=blocks, norm=True, output_fmt="NLC",
                                                       return_prefix_tokens=True)
    else:
        features = model.forward_features(images)
    found = {"features": features}
    if not isinstance(features, torch.Tensor) or features.ndim not in (3, 4):
        return found
    if features.ndim == 4:
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return found | {"tokens": (features.flatten(1, 2) if channels_last
                                   else features.flatten(2).transpose(1, 2))}
    has_class = getattr(model, "cls_token", None) is not None
    patches = features[:, getattr(model, "num_prefix_tokens", int(has_class)):]
    classes = [*(prefix[:, 0] for _, prefix in middle[:-1]), *([features[:, 0]] if has_class else [])]
    found |= {f"cls{number}": norm(token) for number, token in enumerate(classes)}
    if patches.shape[1]:  # PiT gives out its class token alone
        found |= {"mean": norm(patches.mean(dim=1)), "tokens": norm(patches)}
    return found


def wide_features(model: torch.nn.Module, images: torch.Tensor, kind: str) -> torch.Tensor:
    """What a head of a kind reads of images: (B, V), or (B, P, W) for an attentive one."""
    found = read(model, images, _blocks(model) if kind == "last4" else 1)
    if kind == ATTENTIVE:
        return found["tokens"]
    names = [name for name in found if name.startswith("cls")] + (["mean"] if kind != "cls" else [])
    return torch.cat([found[name] for name in names], dim=1)


def _blocks(model: torch.nn.Module) -> int:
    """How many of the last blocks can be read: at most four, one where timm does not give out the class
    tokens of others."""
    blocks, needed = getattr(model, "blocks", None), {"indices", "norm", "output_fmt", "return_prefix_tokens"}
    in_a_row = isinstance(blocks, torch.nn.Sequential | torch.nn.ModuleList)
    taken = inspect.signature(getattr(model, "forward_intermediates", len)).parameters
    if getattr(model, "cls_token", None) is None or not in_a_row or not needed <= taken.keys():
        return 1
    return min(BLOCKS, len(blocks))


def wide_head(model: torch.nn.Module) -> WideHead | None:
    """The head of another kind that stands in a model's own head's place."""
    return next((module for module in model.modules() if isinstance(module, WideHead)), None)


def put_wide_head(model: torch.nn.Module, name: str, kind: str, width: int, num_classes: int) -> None:
    """A head of another kind in the place of the model's own, `name`: the model then reads that kind."""
    head = AttentiveHead(width, num_classes) if kind == ATTENTIVE else WideHead(kind, width, num_classes)
    model.set_submodule(name, head)
    model.forward = types.MethodType(_forward, model)


def _forward(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    head = wide_head(model)
    return head(wide_features(model, images, head.kind))


class KindsReader(torch.nn.Module):
    """All kinds of features of a model in one pass: (B, 3, S, S) -> (B, columns), and behind them P x W with
    `with_tokens`, in fp32.

    kinds    {kind: its columns}, pooled first; kinds share columns
    columns  how many there are
    tokens   (P, W) of what an attentive head reads, None for a model that has none

    They are learnt from two images, and so is whether the model does what is believed of it: where its head
    would read something else after timm's own forward_features and forward_head, `pooled` is all that is
    offered.
    """

    def __init__(self, model: torch.nn.Module, layer: torch.nn.Linear, input_size: int) -> None:
        super().__init__()
        self.model, self.layer, self.with_tokens, self.tokens = model, layer, False, None
        self.own_forward, self.parts = model.forward, ("pooled",)
        self.kinds, self.columns = {POOLED: slice(0, layer.in_features)}, layer.in_features
        if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
            return
        was_training = model.training
        model.eval()
        images = torch.linspace(-2, 2, 2 * 3 * input_size**2,
                                device=layer.weight.device).view(2, 3, input_size, input_size)
        with torch.no_grad(), instead_of_forward(model, self._learn):
            model(images)
        model.train(was_training)

    def _learn(self, images: torch.Tensor) -> None:
        wanted = self._read_by_layer(lambda: self.own_forward(images))
        found = self._all_parts(images)
        if not _same(found["pooled"], wanted):
            return
        classes = [name for name in found if name.startswith("cls")]
        own = next((name for name in (*classes[-1:], "mean") if name in found and _same(found[name], wanted)),
                   "pooled")
        self.parts = (*(["pooled"] if own == "pooled" else []), *classes,
                      *(["mean"] if "mean" in found else []))
        ends = dict(zip(self.parts, np.cumsum([found[name].shape[1] for name in self.parts]).tolist(),
                        strict=True))
        self.columns = max(ends.values())

        def columns(first: str, last: str) -> slice:
            return slice(ends[first] - found[first].shape[1], ends[last])

        self.kinds = {POOLED: columns(own, own)}
        if classes and own != classes[-1]:
            self.kinds["cls"] = columns(classes[-1], classes[-1])
        if classes and "mean" in found:
            self.kinds["cls_mean"] = columns(classes[-1], "mean")
            if len(classes) > 1:
                self.kinds["last4"] = columns(classes[0], "mean")
        tokens = found.get("tokens")
        self.tokens = tuple(tokens.shape[1:]) if tokens is not None and tokens.shape[1] > 1 else None

    def _read_by_layer(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What the head's last layer reads while `run` runs."""
        given = []
        with self.layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0])):
            run()
        return given[0]

    def _all_parts(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = read(self.model, images, _blocks(self.model))
        pooled = self._read_by_layer(lambda: self.model.forward_head(found["features"]))
        return found | {"pooled": pooled}

    def _side_by_side(self, images: torch.Tensor) -> torch.Tensor:
        if self.parts == ("pooled",) and not self.with_tokens:
            return self._read_by_layer(lambda: self.own_forward(images)).float()
        found = self._all_parts(images)
        names = [*self.parts, "tokens"] if self.with_tokens else self.parts
        return torch.cat([found[name].flatten(1).float() for name in names], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # inside of the model's own call, where FSDP2 has gathered what it needs
        with instead_of_forward(self.model, self._side_by_side):
            return self.model(images)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-5)


@contextmanager
def instead_of_forward(model: torch.nn.Module, forward: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """A call of the model runs `forward` within."""
    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before
