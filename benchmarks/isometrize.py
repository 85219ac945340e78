"""Compare isometrize's criterion with training torchvision's classifiers, and print the table of docs/isometrize.md.

python -m benchmarks.isometrize --images data/ILSVRC2012/val    all families, in an hour on a shared CPU core
python -m benchmarks.isometrize resnet18 efficientnet_b0        some families, on random images

Each family is initialised at random for each set of arguments. A network learns if it halves the cross entropy of
eight images in five classes within 30 steps of SGD (momentum 0.9, gradients clipped to norm 1) at a learning rate of
0.1, 0.01 or 0.001. If isometrize warns, the arguments that it advises are tried as well.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms.v2 import functional as TF

from isonet import isometrize
from isonet.surgery import DeadNetworkWarning, ModelError, measure_health

LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
RATES = (0.01, 0.1, 0.001)
STEPS = 30
ALSO = (nn.SiLU, nn.GELU, nn.Hardswish)
NAMES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "regnet_x_400mf"),
    *("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t"),
    *("swin_v2_t", "vgg11", "vgg11_bn", "vit_b_16", "wide_resnet50_2"),
]
SPECIAL: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "vit_b_16": {"image_size": 64, "patch_size": 16, "num_layers": 12, "hidden_dim": 384, "num_heads": 6,
                 "mlp_dim": 1536},
    "maxvit_t": {"input_size": (128, 128), "partition_size": 4, "stem_channels": 32, "head_dim": 32,
                 "block_channels": [32, 64, 128, 256], "block_layers": [1, 1, 2, 1], "stochastic_depth_prob": 0.2},
}  # fmt: skip
SIZES = {"inception_v3": 96, "maxvit_t": 128}  # pixels; other networks have 64


def network(name: str) -> nn.Module:
    """Return the network with torchvision's initialisation. ViT and MaxViT are smaller versions for smaller images."""
    torch.manual_seed(0)
    made: dict[str, Callable[..., nn.Module]] = {"vit_b_16": zoo.VisionTransformer, "maxvit_t": zoo.MaxVit}
    return made.get(name, getattr(zoo, name))(num_classes=5, **SPECIAL.get(name, {}))


def images(folder: Path | None, size: int) -> Tensor:
    if folder is None:
        return torch.randn(len(LABELS), 3, size, size, generator=torch.Generator().manual_seed(0))
    photographs = []
    for file in sorted(folder.glob("*/*.JPEG"))[: len(LABELS)]:
        image = TF.center_crop(TF.resize(read_image(str(file), ImageReadMode.RGB), [size + size // 8]), [size, size])
        photographs.append(TF.normalize(image / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return torch.stack(photographs)


def losses(model: nn.Module, batch: Tensor, rate: float) -> Iterator[float]:
    """Yield the loss of each of ``STEPS`` steps of SGD on ``batch`` at the learning rate ``rate``."""
    torch.manual_seed(0)  # determines dropout
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    for _ in range(STEPS):
        loss = F.cross_entropy(model(batch), LABELS)
        yield loss.item()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def learns(model: nn.Module, batch: Tensor) -> tuple[bool, str]:
    """Return whether any learning rate halves the loss, and a description of the best learning rate."""
    best = (math.inf, "no finite loss")
    for rate in RATES:
        seen: list[float] = []
        for loss in losses(model, batch, rate):
            seen.append(loss)
            end = sum(seen[-3:]) / len(seen[-3:])
            if not math.isfinite(loss) or (len(seen) > 3 and end < seen[0] / 2):
                break
        if math.isfinite(end):
            best = min(best, (end / seen[0], f"{seen[0]:.2f} to {end:.2f} in {len(seen)} steps at {rate}"))
        if best[0] < 0.5:
            break
    return best[0] < 0.5, best[1]


def row(name: str, batch: Tensor, arguments: dict[str, Any] | None) -> tuple[list[str], dict[str, Any] | None]:
    """Return cells of the table, and the arguments that a warning advises. arguments: None for the original network."""
    model, advised = network(name), None
    if arguments is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeadNetworkWarning)  # the table has the verdict
            try:
                model, report = isometrize(model, batch[:1], **arguments)
            except ModelError as error:
                return [name, spelled(arguments), "", "refused", str(error)], None
        assert report.health is not None
        advised = None if report.health.alive else report.advised
    health = measure_health(model, batch)
    able, how = learns(model, batch)
    verdict = "alive" if health.alive else "dead"
    cells = [name, spelled(arguments), f"{health.sensitivity:.1e}", verdict, f"{'yes' if able else 'no'}: {how}"]
    return cells, advised


def spelled(arguments: dict[str, Any] | None) -> str:
    if arguments is None:
        return "not isometrized"
    kinds = ", ".join(f"nn.{kind.__name__}" for kind in arguments.get("also", ()))
    shown = {**arguments, **({"also": f"({kinds})" if ", " in kinds else f"({kinds},)"} if kinds else {})}
    return ", ".join(f"{key}={value}" for key, value in shown.items()) or "defaults"


def rows(name: str, folder: Path | None) -> Iterator[list[str]]:
    batch = images(folder, SIZES.get(name, 64))
    stays = tuple(kind for kind in ALSO if any(isinstance(module, kind) for module in network(name).modules()))
    sets: list[dict[str, Any] | None] = [None, {}, {"normalisation": False, "delta": False}]
    sets += [{"normalisation": True, "delta": True}]
    sets += [{"normalisation": False}, {"also": stays}] if stays else []  # otherwise the same as the defaults
    tried: list[dict[str, Any] | None] = []
    while sets:
        tried.append(sets.pop(0))
        cells, advised = row(name, batch, tried[-1])
        yield cells
        if advised is not None and advised not in (*tried, *sets):
            sets.append(advised)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help="families (default: all)")
    parser.add_argument("--images", type=Path, help="folder of class folders with JPEG files (default: random images)")
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # a dead network computes with denormal numbers, which are slow
    print("| network | arguments | sensitivity | criterion | halves the loss in 30 steps |\n|---|---|---:|---|---|")
    for name in args.names:
        for cells in rows(name, args.images):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
