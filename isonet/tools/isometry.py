"""Measure how far networks are from isometries: a page in HTML with pictures, and the numbers as JSON.

Without --ckpt, the network of the config is measured as initialised. The images are the first ones of the validation
part of the config's data set.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
from isonet.tools.cli import (
    look_for_checkpoint,
    look_for_network,
    look_for_output_folder,
    make_parser,
    positive,
    split_overrides,
)
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
PAGE, NUMBERS = "index.html", "report.json"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options. ``compare`` contains the networks to compare, and ``opts`` the overrides."""
    parser = make_parser(__doc__, EXAMPLES, cfg_required=False, tool="isometry")
    one_or_more = parser.add_mutually_exclusive_group()
    one_or_more.add_argument("--ckpt", metavar="CKPT", help="a checkpoint, a run folder, or the name of a run of --cfg")
    one_or_more.add_argument("--compare", nargs="+", default=[], metavar="[NAME=]NETWORK",
        help="networks: configs (.yaml, as initialised) and checkpoints, each with an optional name")  # fmt: skip
    add = parser.add_argument
    add("--images", type=positive, default=8, metavar="N", help="number of images for the norms (default: 8)")
    add("--steps", type=positive, default=60, metavar="N", help="maximum of the steps for each Jacobian (default: 60)")
    add("--output", type=Path, default=Path("outputs/isometry"), metavar="DIR", help="(default: %(default)s)")
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    args.compare, overrides = split_overrides(args.compare)
    args.opts = overrides + args.opts
    parser.check_once(args.opts)
    if not (args.cfg or args.ckpt or args.compare):
        parser.error("name a network: --cfg, --ckpt or --compare")
    return args


def main(args: argparse.Namespace) -> None:
    """Measure the networks, and write the report."""
    look_for_output_folder("--output", str(args.output))
    if (args.output / PAGE).exists() and not (args.output / NUMBERS).exists():
        raise UserError(f"--output {printable(args.output)} has a {PAGE} without {NUMBERS}; name another folder")
    cfg = look_for_network(args)
    networks = networks_of(args, cfg)
    for network in networks.values():
        load_cfg(network, args.opts) if network.endswith(CONFIGS) else look_for_checkpoint(cfg, network)
    require_matplotlib("the report")
    from isonet.isometry.page import page
    from isonet.training.devices import explain_out_of_memory, pick_devices

    log_to_terminal()
    device = pick_devices(args.gpus)[0]
    with explain_out_of_memory():
        reports = {name: measure_network(network, args, device) for name, network in networks.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    write_file(args.output / NUMBERS, json.dumps(reports, indent=1) + "\n")
    write_file(args.output / PAGE, page(reports))
    print(f"written to {printable(args.output / 'index.html')} and {NUMBERS}")


def networks_of(args: argparse.Namespace, cfg: CfgNode | None) -> dict[str, str]:
    """Return the config file or checkpoint of each network that ``args`` asks for, by its name in the report.

    NAME=NETWORK gives a name, unless a file or a run of ``cfg`` has the whole text as its name.
    """
    if not args.compare:
        return {args.ckpt or Path(args.cfg).stem: args.ckpt or args.cfg}
    networks: dict[str, str] = {}
    for text in args.compare:
        name, _, network = text.partition("=")
        with contextlib.suppress(UserError):
            find_checkpoint(cfg, text)  # accepts any file
            name = network = text
        if name in networks:
            raise UserError(f"--compare: two networks are called {name}; give each a name by NAME=NETWORK")
        networks[name] = network or name
    return networks


def measure_network(network: str, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure one network, and return the numbers of ``isonet.isometry.measure`` and their source.

    network: a config file, for the network as initialised, or a checkpoint. ``--cfg``, if given, replaces its config.
    """
    from isonet.data import build_loader
    from isonet.isometry.measure import measure
    from isonet.models import build_model
    from isonet.tools.trained import load_trained, validation_images
    from isonet.training.devices import seed_everything, set_precision

    images = None
    opts = [*args.opts, "SOLVER.TEST_BATCH_SIZE", args.images, "DATASET.NUM_WORKERS", 0]
    if network.endswith(CONFIGS):
        cfg, source = load_cfg(network, opts), f"{network} as initialised"
        seed_everything(cfg.RUNTIME.SEED)
        model = build_model(cfg)
    else:
        trained = load_trained(network, args.cfg, opts)
        model, cfg, source = trained.model, trained.cfg, str(trained.path)
        images, _ = validation_images(trained)
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    batch, labels = next(iter(build_loader(cfg, "val", (device,), source=images)))
    print(f"measuring {printable(source)}", flush=True)
    numbers = measure(model.to(device), batch, labels, args.steps, cfg.ISON.ORTHO_STRIDED)
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if isinstance(version, str))
    return {"source": source, "data": f"{cfg.DATASET.NAME}, validation", "versions": used, **numbers}


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
