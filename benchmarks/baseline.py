"""The published formulation, the baseline of every benchmark.

All arithmetic is float32 in NCHW order. The penalty is one padded convolution per layer with a new identity each time,
and SReLU is three operations. Worker processes transform the images one at a time with PIL. Loss and accuracy are read
from the device after every step. No part of the baseline is slower than in the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from isonet.data.sources import ImageSource
from isonet.models import SReLU


class BaselineSReLU(nn.Module):
    """``relu(x - b) + b``: three passes, two of which save a tensor for the backward pass."""

    def __init__(self, shift: nn.Parameter) -> None:
        super().__init__()
        self.srelu_bias = shift

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x - self.srelu_bias) + self.srelu_bias


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
    target = torch.zeros(gram.shape, device=weight.device)
    centre = gram.shape[2] // 2
    target[:, :, centre, centre] = torch.eye(narrow, device=weight.device)
    return 0.5 * (gram - target).square().sum()


def baseline_penalty(model: nn.Module) -> Tensor:
    """Return the penalty of ``model``, computed layer by layer."""
    total = torch.zeros((), device=next(model.parameters()).device)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels != 3 and conv.kernel_size != (7, 7):
            total = total + penalty_of_weight(conv.weight, conv.stride[0])
    return total


def baseline_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, ortho_coeff: float
) -> tuple[float, float, float]:
    """Take one training step, and return cross entropy, penalty and accuracy in [0, 1], each read from the device."""
    logits = model(images)
    cross_entropy = F.cross_entropy(logits, labels)
    penalty = baseline_penalty(model)
    loss = cross_entropy + ortho_coeff * penalty
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    correct = (logits.argmax(1) == labels).float().mean()
    return cross_entropy.item(), penalty.item(), correct.item()


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
