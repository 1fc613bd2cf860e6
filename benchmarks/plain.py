"""The plain way: what a straightforward script of this field does, with timm and torchvision as they come."""

import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(path: str) -> Image.Image:
    """As torchvision's ImageFolder reads an image: all of it, in RGB."""
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def train_transform(input_size: int) -> transforms.Compose:
    """The usual recipe: random resized crop, flip, RandAugment, random erasing."""
    return create_transform(input_size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1",
                            interpolation="bicubic", re_prob=0.25, re_mode="pixel", mean=MEAN, std=STD)


def eval_transform(input_size: int) -> transforms.Compose:
    return transforms.Compose([
        transforms.Resize(int(input_size / 0.875), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(input_size), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


class Step:
    """A training step: forward in fp32 or under autocast, backward, AdamW, the loss read at once."""

    def __init__(self, model: torch.nn.Module, bf16: bool = False, learning_rate: float = 1e-4) -> None:
        self.model, self.bf16 = model, bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = torch.nn.functional.cross_entropy(self.model(images).float(), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
