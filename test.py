#!/usr/bin/env python3
"""Evaluate a checkpoint on the validation images of its data set."""

from __future__ import annotations

import argparse
import sys

from isonet.errors import run_cli
from isonet.tools.cli import make_parser
from isonet.tools.evaluate import check_writable, evaluate_on_ranks, report
from isonet.training.failure import ranks
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python test.py --cfg configs/IN1k-RISO18.yaml --ckpt RISO18.pt
  python test.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --ckpt cifar10_ISO110.pt
  python test.py --ckpt outputs/cls/digits/digits_ISO20 --json result.json
  python test.py --ckpt zoo:IN1k-RISO18
  torchrun --nproc-per-node 8 test.py --cfg configs/IN1k-RISO50.yaml --ckpt RISO50.pt"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES, cfg_required=False)
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="CKPT",
        help="a checkpoint file, a run folder (its best.pt), the name of a run of this config, or zoo: and a name of "
        "MODEL_ZOO.md, which is downloaded once, e.g. --ckpt cifar10_ISO110.pt or --ckpt zoo:IN1k-RISO18; --cfg may be "
        "left out where the checkpoint carries its config, and with zoo:",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well, e.g. --json result.json")
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    log_to_terminal()
    with ranks(args.gpus) as (world, devices):
        if world.is_main:
            check_writable(args.json)
        result, path = evaluate_on_ranks(args.ckpt, args.cfg, world, devices, args.opts)
        if world.is_main:
            report(result, path, args.json)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
