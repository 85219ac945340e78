#!/usr/bin/env python3
"""Evaluate a checkpoint on the validation images of its data set."""

from __future__ import annotations

import argparse
import sys

from isonet.errors import run_cli
from isonet.launch import is_launched
from isonet.tools.cli import look_for_classes, look_for_images, look_for_json, look_for_network, make_parser
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python test.py --cfg configs/IN1k-RISO18.yaml --ckpt RISO18.pt
  python test.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --ckpt cifar10_ISO110.pt
  python test.py --ckpt outputs/cls/digits/digits_ISO20 --json result.json
  python test.py --ckpt zoo:IN1k-RISO18
  torchrun --nproc-per-node 8 test.py --cfg configs/IN1k-RISO50.yaml --ckpt RISO50.pt"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES, cfg_required=False)
    parser.reports = True
    parser.add_argument(
        "--ckpt",
        required=True,
        metavar="CKPT",
        help="a checkpoint file, a run folder (its best.pt), the name of a run of this config, or zoo: with a name of "
        "MODEL_ZOO.md, which is downloaded once, e.g. --ckpt cifar10_ISO110.pt or --ckpt zoo:IN1k-RISO18; --cfg is "
        "not needed with zoo:, or if the checkpoint contains its config",
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="names of the network's outputs, one per line in their order, e.g. --classes names.txt; they determine "
        "the labels (default: the checkpoint's names, else ImageNet's WordNet ids, else the order of the folders)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE, e.g. --json result.json")
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    log_to_terminal(required=not args.json)
    if not is_launched():
        look(args)
    from isonet.tools.trained import evaluate_on_ranks, report  # these import torch
    from isonet.training.failure import ranks

    with ranks(args.gpus) as (world, devices):
        with world.agreed() as facts:
            facts["the use of --classes"] = bool(args.classes)
            if world.is_main:
                look_for_json(args.json)
        result, path = evaluate_on_ranks(args.ckpt, args.cfg, world, devices, args.opts, args.classes)
        if world.is_main:
            report(result, path, args.json)


def look(args: argparse.Namespace) -> None:
    """Raise an error for wrong options, configs and files before torch is imported, which takes seconds."""
    look_for_json(args.json)
    cfg = look_for_network(args)
    look_for_classes(args.classes, cfg)
    if cfg is not None:
        look_for_images(cfg, ["val"])


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
