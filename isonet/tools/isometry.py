"""Measure how far networks are from isometries: a page in HTML with pictures, and the numbers as JSON.

Without --ckpt the network of the config is measured as initialised. Images are the first ones of the validation part
of the config's data set.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from isonet.config import load_cfg
from isonet.errors import UserError, printable, run_cli
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import write_file
from isonet.plots import require_matplotlib
from isonet.tools.cli import look_for_checkpoint, look_for_network, make_parser, split_overrides
from isonet.training.log import log_to_terminal, versions

if TYPE_CHECKING:
    import torch

EXAMPLES = """\
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml --ckpt outputs/cls/digits/demo
  python -m isonet.tools.isometry --cfg configs/digits_ISO20.yaml \\
      --compare start=configs/digits_ISO20.yaml trained=outputs/cls/digits/demo
  python -m isonet.tools.isometry --cfg configs/IN1k-RISO50.yaml --images 2 --steps 20 --output report"""

CONFIGS = (".yaml", ".yml")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ``compare`` holds the networks to compare, and ``opts`` the overrides."""
    parser = make_parser(__doc__ or "", EXAMPLES, cfg_required=False)
    parser.prog = "python -m isonet.tools.isometry"
    add = parser.add_argument
    add("--ckpt", metavar="CKPT", help="a checkpoint, a run folder, or the name of a run of --cfg")
    add("--compare", nargs="+", default=[], metavar="[NAME=]WHAT",
        help="networks: configs (.yaml, as initialised) and checkpoints, each with a name of your own")  # fmt: skip
    add("--images", type=int, default=8, metavar="N", help="images for the norms (default: 8)")
    add("--steps", type=int, default=60, metavar="N", help="most steps towards the Jacobian's extremes (default: 60)")
    add("--output", type=Path, default=Path("outputs/isometry"), metavar="DIR",
        help="folder of the page and report.json (default: outputs/isometry)")  # fmt: skip
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    compares = bool(args.compare)
    args.compare, overrides = split_overrides(args.compare)
    args.opts = overrides + args.opts
    if compares and not args.compare:
        parser.error("--compare: name configs or checkpoints before the overrides")
    if args.compare and args.ckpt:
        parser.error("--ckpt and --compare cannot be combined: name the checkpoint among those of --compare")
    if args.images < 1 or args.steps < 1:
        parser.error("--images and --steps must be at least 1")
    if not (args.cfg or args.ckpt or args.compare):
        parser.error("name a network: --cfg, --ckpt or --compare")
    return args


def main(args: argparse.Namespace) -> None:
    """Measure the networks, and write the report."""
    cfg = look_for_network(args)
    networks = networks_of(args, cfg)
    for what in networks.values():
        load_cfg(what, args.opts) if what.endswith(CONFIGS) else look_for_checkpoint(cfg, what)
    require_matplotlib("the report")
    from isonet.isometry.page import page
    from isonet.training.devices import explain_out_of_memory, pick_devices

    log_to_terminal()
    device = pick_devices(args.gpus)[0]
    with explain_out_of_memory():
        reports = {
            name: measure_network(what, args.cfg, args.opts, args.images, args.steps, device)
            for name, what in networks.items()
        }
    args.output.mkdir(parents=True, exist_ok=True)
    write_file(args.output / "report.json", json.dumps(reports, indent=1) + "\n")
    write_file(args.output / "index.html", page(reports))
    print(f"written to {printable(args.output / 'index.html')} and report.json")


def networks_of(args: argparse.Namespace, cfg: CfgNode | None) -> dict[str, str]:
    """The config file or checkpoint of each network that ``args`` asks for, by its name in the report.

    NAME=WHAT gives a name, unless a file, or a run of ``cfg``, has all of that text for its own name.
    """
    if not args.compare:
        return {args.ckpt or Path(args.cfg).stem: args.ckpt or args.cfg}
    networks: dict[str, str] = {}
    for text in args.compare:
        name, _, what = text.partition("=")
        try:
            exists = os.path.exists(text) or find_checkpoint(cfg, text).is_file()
        except UserError:
            exists = False
        if exists or not name or not what:
            name = what = text
        if name in networks:
            raise UserError(f"--compare: two networks are called {name}; give each a name by NAME=WHAT")
        networks[name] = what
    return networks


def measure_network(
    what: str, cfg_path: str | None, opts: Sequence[Any], images: int, steps: int, device: torch.device
) -> dict[str, Any]:
    """Measure one network; returns the numbers of ``isonet.isometry.measure``, and where they come from.

    what: a config file, for the network as initialised, or a checkpoint, whose config ``cfg_path`` replaces if given.
    opts: ``KEY VALUE`` pairs, merged on top of the config.
    images: how many. steps: towards the extremes of the Jacobian, at most.
    """
    from isonet.data import build_loader
    from isonet.isometry.measure import measure
    from isonet.models import build_model
    from isonet.tools.trained import load_trained
    from isonet.training.devices import seed_everything, set_precision

    opts = [*opts, "SOLVER.TEST_BATCH_SIZE", images, "DATASET.NUM_WORKERS", 0]
    if what.endswith(CONFIGS):
        cfg, source = load_cfg(what, opts), f"{what} as initialised"
        seed_everything(cfg.RUNTIME.SEED)
        model = build_model(cfg)
    else:
        trained = load_trained(what, cfg_path, opts)
        model, cfg, source = trained.model, trained.cfg, str(trained.path)
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    batch, labels = next(iter(build_loader(cfg, "val", (device,))))
    numbers = measure(model.to(device), batch, labels, steps, cfg.ISON.ORTHO_STRIDED)
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if isinstance(version, str))
    return {"source": source, "data": f"{cfg.DATASET.NAME}, validation", "versions": used, **numbers}


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
