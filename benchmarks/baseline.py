"""The published formulation, the baseline of every benchmark.

All arithmetic is float32 in NCHW order. The penalty is one padded convolution per layer with a new identity each time,
made on the CPU and copied to the device, and SReLU is three operations. The optimizer is torch's default SGD. Worker
processes transform the images one at a time with PIL. Every step reads cross entropy, penalty and accuracy from the
device, each as soon as it is computed.

The operations and their order are those of the published code, and so are their costs: ``python -m
benchmarks.published`` interleaves a step of the published trainer with ``baseline_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from yacs.config import CfgNode

from isonet.data.sources import ImageSource
from isonet.models import SReLU
from isonet.training import build_optimizer


class BaselineSReLU(nn.Module):
    """``relu(x - b) + b``: three passes, two of which save a tensor for the backward pass."""

    def __init__(self, shift: nn.Parameter) -> None:
        super().__init__()
        self.srelu_bias = shift
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x - self.srelu_bias) + self.srelu_bias


def published_form_(model: nn.Module) -> nn.Module:
    """Replace every SReLU of ``model`` by the published formulation with the same shift, and return the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, SReLU):
                setattr(module, name, BaselineSReLU(child.srelu_bias))
    return model


def penalty_of_weight(weight: Tensor, stride: int) -> Tensor:
    """Return 1/2 ||W * W - delta||^2. The convolution of the kernel with itself is padded to reach every offset."""
    c_out, c_in, kernel = weight.shape[0], weight.shape[1], weight.shape[2]
    if c_in < c_out:
        weight = weight.transpose(0, 1)
    narrow = min(c_in, c_out)
    # The padding is a multiple of the stride, so the output includes offset zero
    reach = (kernel - 1) // stride * stride
    gram = F.conv2d(weight, weight, stride=stride, padding=reach)
    target = torch.zeros(gram.shape).to(weight.device)
    centre = gram.shape[2] // 2
    target[:, :, centre, centre] = torch.eye(narrow)
    return torch.sum((gram - target) ** 2.0) / 2.0


def baseline_penalty(model: nn.Module) -> Tensor:
    """Return the penalty of ``model``, computed layer by layer."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels != 3 and conv.kernel_size != (7, 7):
            total = total + penalty_of_weight(conv.weight, conv.stride[0])
    return total


def baseline_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.SGD:
    """Return torch's SGD as it is by default, which is not fused, with the groups of ``build_optimizer``.

    Call this before ``published_form_``: the type of a module decides the group of its parameters.
    """
    groups = build_optimizer(model, cfg).param_groups
    options = ("params", "lr", "weight_decay", "momentum", "dampening", "nesterov")
    return torch.optim.SGD([{key: group[key] for key in options} for group in groups])


def baseline_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, ortho_coeff: float
) -> tuple[float, float, float]:
    """Take one training step, and return cross entropy, penalty and accuracy in [0, 1], each read from the device."""
    optimizer.zero_grad()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    cross_entropy = loss.item()
    penalty = baseline_penalty(model)
    penalty_value = penalty.item()
    loss += ortho_coeff * penalty
    loss.backward()
    optimizer.step()
    correct = logits.max(1).indices.eq(labels).sum().item()
    return cross_entropy, penalty_value, correct / len(labels)


def baseline_evaluation(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Return mean cross entropy and accuracy in [0, 1] over ``batches``, read from the device after every batch."""
    model.eval()
    loss = correct = 0.0
    images = 0
    with torch.no_grad():
        for inputs, labels in batches:
            logits = model(inputs)
            loss += F.cross_entropy(logits, labels).item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            images += len(labels)
    return loss / images, correct / images


class PilImages(Dataset):
    """The images of a source, each as a normalised float tensor (3, H, W) with its label."""

    def __init__(self, source: ImageSource, transform: Callable[[Image.Image], Tensor]) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.source.read(index)), self.source.labels[index]


def cifar_transform(mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """Return a transform that pads by 4, takes a random crop of 32 pixels, flips and normalises."""
    return transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def imagenet_transform(mean: Sequence[float], std: Sequence[float]) -> transforms.Compose:
    """Return a transform that takes a random resized crop of 224 pixels, flips and normalises."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def baseline_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """Return a loader of shuffled batches that uses worker processes."""
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers, pin_memory=torch.cuda.is_available())
