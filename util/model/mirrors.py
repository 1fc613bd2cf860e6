"""--tta mirror: a model that answers with the mean of what it says of an image and of its mirror image."""

import math

import torch


class Mirrored(torch.nn.Module):
    """(B, 3, S, S), and what else the model reads -> as the model, over each image and its left-right mirror
    image.

    Of a classifier the probabilities are averaged: it gives out the logarithms of their means, of which
    softmax makes the means again. Of a regressor the outputs are averaged, and so is the score of an
    attention over cases behind a classifier's outputs (`attends`).
    """

    def __init__(self, model: torch.nn.Module, classifies: bool, attends: bool = False) -> None:
        super().__init__()
        self.model, self.classifies, self.attends = model, classifies, attends

    def forward(self, images: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.model(images, *beside).float(),
                            self.model(images.flip(-1), *beside).float()])
        if not self.classifies:
            return both.mean(dim=0)
        logits = both[..., :-1] if self.attends else both
        logs = torch.logsumexp(torch.log_softmax(logits, dim=-1), dim=0) - math.log(2)
        return torch.cat([logs, both[..., -1:].mean(dim=0)], dim=-1) if self.attends else logs


def with_mirrors(model: torch.nn.Module, tta: str, kind: str, attends: bool = False) -> torch.nn.Module:
    """The model that evaluation and predictions run. tta: off or mirror; kind: of the task, classification or
    regression; attends: --pool attention."""
    return Mirrored(model, kind == "classification", attends) if tta == "mirror" else model
