"""Measure how far networks are from isometries, and draw it: a page in HTML, and the numbers in JSON.

Without --ckpt the network of the config is measured as it is initialised. Images are the first of the validation
part of the config's data set.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from isonet.config import load_cfg
from isonet.data import build_loader
from isonet.errors import ConfigError, UserError, printable, run_cli
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import reason, write_file
from isonet.isometry.measure import measure
from isonet.isometry.page import page
from isonet.models import ISONet, build_model
from isonet.plots import require_matplotlib
from isonet.tools.cli import make_parser, split_overrides
from isonet.tools.trained import load_trained
from isonet.training.devices import explain_out_of_memory, pick_devices, seed_everything, set_precision
from isonet.training.log import log_to_terminal, versions

log = logging.getLogger("isonet")

EXAMPLES = """\
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml --ckpt outputs/cls/digits/demo
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml \\
      --compare start=configs/digits_ISO20.yaml trained=outputs/cls/digits/demo
  python -m isonet.tools.isometry --cfg configs/IN1k-RISO50.yaml --images 2 --steps 20 --output report"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; KEY VALUE pairs override the config."""
    parser = make_parser(__doc__ or "", EXAMPLES, cfg_required=False)
    parser.prog = "python -m isonet.tools.isometry"
    parser.add_argument("--ckpt", metavar="CKPT", help="a checkpoint, a run folder, or the name of a run of --cfg")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="[NAME=]WHAT",
        help="several at once: configs (.yaml, as initialised) and checkpoints, each with a name of your own",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=8, metavar="N", help="images for the norms (default: 8)")
    parser.add_argument(
        "--steps", type=int, default=60, metavar="N", help="steps towards the Jacobian's extremes at most (default: 60)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        default="outputs/isometry",
        help="for the page and report.json (default: outputs/isometry)",
    )
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    compared = bool(args.compare)
    args.compare, overrides = split_overrides(args.compare)
    args.opts = overrides + args.opts
    if compared and not args.compare:
        parser.error("--compare: name configs or checkpoints before the overrides")
    if args.images < 1 or args.steps < 1:
        parser.error("--images and --steps must be at least 1")
    if not (args.cfg or args.ckpt or args.compare):
        parser.error("name a network: --cfg, --ckpt or --compare")
    return args


def main(args: argparse.Namespace) -> None:
    """Measure, draw, write."""
    log_to_terminal()
    require_matplotlib("the report")
    if args.compare and args.ckpt:
        raise UserError("--ckpt and --compare cannot be given together: name the checkpoint among those of --compare")
    cfg = load_cfg(args.cfg, args.opts) if args.compare and args.cfg else None
    asked = [_named(text, cfg) for text in args.compare] or [(args.ckpt or Path(args.cfg).stem, args.ckpt or args.cfg)]
    if len({name for name, _ in asked}) < len(asked):
        raise UserError("--compare: two of them have the same name; give them as NAME=WHAT")
    device = pick_devices(args.gpus)[0]
    with explain_out_of_memory():
        reports = {name: _report(what, args, device) for name, what in asked}
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({reason(error)})") from None
    write_file(folder / "report.json", json.dumps(reports, indent=1) + "\n")
    write_file(folder / "index.html", page(reports))
    log.info("written to %s and report.json", folder / "index.html")


def _named(text: str, cfg: CfgNode | None) -> tuple[str, str]:
    """Name and network of NAME=WHAT; a file or a run whose own name has a = is itself both."""
    name, equals, what = text.partition("=")
    return (name, what) if equals and name and what and not _is_there(text, cfg) else (text, text)


def _is_there(what: str, cfg: CfgNode | None) -> bool:
    try:
        return os.path.exists(what) or find_checkpoint(cfg, what).is_file()
    except UserError:
        return False


def _report(what: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    model, cfg, source = _network(what, args.cfg, args.opts)
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    images, labels = _images(cfg, args.images, device)
    with tqdm(desc=printable(what), disable=not sys.stderr.isatty(), unit=" parts") as bar:

        def progress(part: str) -> None:
            bar.set_postfix_str(part)
            bar.update()

        found = measure(model.to(device), images, labels, args.steps, progress, cfg.ISON.ORTHO_STRIDED)
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if isinstance(version, str))
    return {"source": source, "data": f"{cfg.DATASET.NAME}, validation", "versions": used, **found}


def _network(what: str, cfg_path: str | None, opts: Sequence[Any]) -> tuple[ISONet, CfgNode, str]:
    """The network of a config, as initialised, or of a checkpoint; its config; where it comes from, in words."""
    if what.endswith((".yaml", ".yml")):
        cfg = load_cfg(what, opts)
        seed_everything(cfg.RUNTIME.SEED)
        return build_model(cfg), cfg, f"{what} as initialised"
    trained = load_trained(what, cfg_path, opts)
    return trained.model, trained.cfg, str(trained.path)


def _images(cfg: CfgNode, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first of the validation images and their labels."""
    found: list[tuple[Tensor, Tensor]] = []
    for images, labels in build_loader(_small_batches(cfg, count), "val", (device,)):
        found.append((images, labels))
        if sum(len(each) for _, each in found) >= count:
            break
    images, labels = (torch.cat(parts)[:count] for parts in zip(*found, strict=True))
    if labels.max() >= cfg.DATASET.NUM_CLASSES:
        raise ConfigError(
            f"the images have {int(labels.max()) + 1} classes, DATASET.NUM_CLASSES is {cfg.DATASET.NUM_CLASSES}"
        )
    return images, labels


def _small_batches(cfg: CfgNode, count: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.TEST_BATCH_SIZE, cfg.DATASET.NUM_WORKERS = count, 0
    cfg.freeze()
    return cfg


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
