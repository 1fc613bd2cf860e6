"""The head of a regression, and of a classification that reads covariates: one token a target or class, mixed
by a small transformer, one number read from each."""

from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import nn

from util.core.errors import InputError
from util.data.covariates import Covariate
from util.options.model import HeadOptions

# of the last layer's weights: a head that starts at the targets' means does not pull at the backbone
START_SD = 2e-5


class RegressionHead(nn.Module):
    """An image feature (B, W) and covariates (B, C), or None where all are missing -> standardised targets
    (B, T), or the logits of T classes.

    The feature is projected to the head's width and a learned token a target is added to it; covariates are
    further tokens; a pre-norm transformer encoder (GELU) mixes all of them, and one linear layer reads a
    number from each target's token.

    width       of the image feature; num_targets: or classes
    options     the head's own: head_embed_dim, its width (None: that of the image feature), and the
                transformer's
    InputError where the number of attention heads does not divide the head's width.
    """

    def __init__(self, width: int, num_targets: int, options: HeadOptions,
                 covariates: Sequence[Covariate] = ()) -> None:
        super().__init__()
        dim, num_heads = options.head_embed_dim or width, options.head_num_heads
        if dim % num_heads:
            raise InputError(f"--head_num_heads {num_heads} does not divide the head's width {dim}: choose "
                             "another, or a width with --head_embed_dim")
        self.dim = dim
        self.project = nn.Linear(width, dim)
        # as large as the projected feature: small ones leave all tokens alike, and the head learns the
        # targets' mean for hundreds of steps before it tells them apart (on the demo: r of 1/sqrt(T) each)
        self.target_tokens = nn.Parameter(torch.randn(num_targets, dim))
        self.covariates = nn.ModuleList(CovariateToken(covariate, dim) for covariate in covariates)
        # each made by itself: nn.TransformerEncoder copies one, so that all would start with the same weights
        hidden = max(1, round(dim * options.head_mlp_ratio))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, num_heads, hidden, options.head_dropout, "gelu", batch_first=True,
                                       norm_first=True) for _ in range(options.head_depth))
        self.norm = nn.LayerNorm(dim)
        self.read = nn.Linear(dim, 1)
        trunc_normal_(self.read.weight, std=START_SD)
        nn.init.zeros_(self.read.bias)

    def no_weight_decay(self) -> set[str]:
        return {"target_tokens", *(f"covariates.{i}.{name}" for i, token in enumerate(self.covariates)
                                   for name, _ in token.named_parameters() if name != "number.weight")}

    def forward(self, features: torch.Tensor, covariates: torch.Tensor | None = None) -> torch.Tensor:
        tokens = self.project(features)[:, None] + self.target_tokens
        num_targets = tokens.shape[1]
        if len(self.covariates):
            if covariates is None:
                covariates = torch.full((len(tokens), len(self.covariates)), torch.nan, device=tokens.device)
            extra = [token(covariates[:, place]) for place, token in enumerate(self.covariates)]
            tokens = torch.cat([tokens, torch.stack(extra, dim=1).to(tokens.dtype)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.read(self.norm(tokens[:, :num_targets])).squeeze(-1)


class CovariateToken(nn.Module):
    """A covariate (B,), NaN where missing -> its token (B, D): a line for a number, an embedding for a
    category."""

    def __init__(self, covariate: Covariate, dim: int) -> None:
        super().__init__()
        self.num_levels = len(covariate.levels)
        if covariate.is_category:
            self.embedding = nn.Embedding(self.num_levels + 1, dim)  # the last one: missing or unknown
            nn.init.normal_(self.embedding.weight)
        else:
            self.number = nn.Linear(1, dim)
            self.missing = nn.Parameter(torch.randn(dim))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        absent = values.isnan()
        if self.num_levels:
            return self.embedding(torch.where(absent, self.num_levels, values).long())
        return torch.where(absent[:, None], self.missing, self.number(values.nan_to_num()[:, None]))
