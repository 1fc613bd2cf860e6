"""--tta mirror: a model that answers with the mean of what it says of an image and of its mirror image."""

import math

import torch


class Mirrored(torch.nn.Module):
    """(B, 3, S, S), and what else the model reads -> as the model, over each image and its left-right mirror
    image.

    Of a classifier the probabilities are averaged: it gives out the logarithms of their means, of which
    softmax makes the means again; of several labels the log odds of the means of their sigmoids. Of a
    regressor the outputs are averaged, and so is the score of an attention over cases behind a classifier's
    outputs (`attends`).
    """

    def __init__(self, model: torch.nn.Module, kind: str, attends: bool = False) -> None:
        super().__init__()
        self.model, self.kind, self.attends = model, kind, attends

    def forward(self, images: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        both = torch.stack([self.model(images, *beside).float(),
                            self.model(images.flip(-1), *beside).float()])
        if self.kind == "regression":
            return both.mean(dim=0)
        logits = both[..., :-1] if self.attends else both
        means = _of_classes(logits) if self.kind == "classification" else _of_labels(logits)
        return torch.cat([means, both[..., -1:].mean(dim=0)], dim=-1) if self.attends else means


def _of_classes(logits: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(torch.log_softmax(logits, dim=-1), dim=0) - math.log(2)


def _of_labels(logits: torch.Tensor) -> torch.Tensor:
    there, absent = (torch.nn.functional.logsigmoid(sign * logits) for sign in (1, -1))
    return torch.logsumexp(there, dim=0) - torch.logsumexp(absent, dim=0)


def with_mirrors(model: torch.nn.Module, tta: str, kind: str, attends: bool = False) -> torch.nn.Module:
    """The model that evaluation and predictions run. tta: off or mirror; kind: of the task, classification,
    multilabel or regression; attends: --pool attention."""
    return Mirrored(model, kind, attends) if tta == "mirror" else model
