"""Compare the baseline of the benchmarks with the published code itself.

  git clone https://github.com/HaozhiQi/ISONet published
  python -m benchmarks.published published

Each row interleaves a training step of the published trainer with ``baseline_step`` on the same network and batch. A
ratio above 1 means that the baseline is faster than the published code. The published code is not part of this project.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from benchmarks.cases import DEFAULTS, Case, baseline, make
from benchmarks.common import Row, check_equal, faster, interleave, make_parser, report

KEYS = ("DEPTH", "ORTHO_COEFF", "HAS_BN", "HAS_ST", "SReLU", "DIRAC_INIT", "HAS_RES_MULTIPLIER", "RES_MULTIPLIER",
        "TRANS_FUN")  # fmt: skip


def published_modules(folder: Path) -> dict[str, ModuleType]:
    """Import the published package, which is also called ``isonet``, and return its modules."""
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "isonet"}
    package = ModuleType("isonet")  # the published folder has no __init__.py
    package.__path__ = [str(folder / "isonet")]
    sys.modules["isonet"] = package
    names = ("isonet.utils.config", "isonet.models.isonet", "isonet.utils.optim", "isonet.trainer")
    try:
        return {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    except ModuleNotFoundError as error:
        raise SystemExit(f"{folder} is not a clone of the published code: {error}") from None
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "isonet"]:
            del sys.modules[name]
        sys.modules.update(ours)


def published(case: Case, device: torch.device, modules: dict[str, ModuleType]) -> Callable[[], tuple[float, ...]]:
    """Return a function that takes a step with the published trainer, and returns cross entropy and penalty."""
    model, images, labels = make(case, device)
    cfg = case.cfg()
    config = modules["config"].C
    config.DATASET.NAME = "CIFAR10" if case.size <= 64 else "ILSVRC2012"
    config.DATASET.NUM_CLASSES = cfg.DATASET.NUM_CLASSES
    for key in KEYS:
        config.ISON[key] = cfg.ISON[key]
    for key in ("BASE_LR", "WEIGHT_DECAY", "MOMENTUM", "DAMPENING", "NESTEROV"):
        config.SOLVER[key] = cfg.SOLVER[key]
    network = modules["isonet"].ISONet().to(device)
    network.load_state_dict(model.state_dict())
    modules["isonet"].ISONet.ortho_conv.__defaults__ = (device,)  # it is "cuda", also on a machine without a GPU
    wrapped = nn.DataParallel(network, [device.index or 0] if device.type == "cuda" else None)
    optimizer = modules["optim"].construct_optim(wrapped, 1)
    batch: list[tuple[Tensor, Tensor]] = [(images, labels)]
    trainer = modules["trainer"].Trainer(device, batch, [], wrapped, optimizer, logging.getLogger("published"), "")

    def run() -> tuple[float, ...]:
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train_epoch()  # an epoch of one batch
        return trainer.ce_loss, trainer.ortho_loss

    return run


def compare(case: Case, modules: dict[str, ModuleType], repeats: int, device: torch.device) -> Row:
    variants = [published(case, device, modules), baseline(case, device)]
    for _ in range(3):  # the later steps include the updates of the earlier steps
        check_equal(case.work, variants[0](), variants[1](), 1e-5)
    return faster(case.work, interleave(variants, repeats, device), None, "the published code, and baseline_step")


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a clone of the published code")
    args = parser.parse_args()
    device, modules = torch.device(args.device), published_modules(args.folder)
    rows = [compare(case, modules, args.repeats or case.repeats, device) for case in DEFAULTS]
    report("published code and baseline", rows, args.json)


if __name__ == "__main__":
    main()
