#!/usr/bin/env python3
"""Count parameters, multiply-accumulates and FLOPs of a config's network and of its penalty."""

from __future__ import annotations

import argparse
import sys

from isonet.errors import run_cli
from isonet.files.run_folder import run_folder
from isonet.tools.cli import make_parser, read_network

EXAMPLES = """\
  python flopscount_iso.py --cfg configs/cifar10_ISO29.yaml
  python flopscount_iso.py --cfg configs/self_ISO29.yaml --output self_ISO29
  python flopscount_iso.py --cfg configs/IN1k-ISO50.yaml SOLVER.TRAIN_BATCH_SIZE 32"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        __doc__, EXAMPLES, gpus_help="accepted as in train.py and ignored, e.g. --gpus 0,1: counting needs no GPU"
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="also write flops.json and flops.txt to OUTPUT_DIR/DATASET.NAME/NAME/, e.g. --output cifar10_ISO29.pt",
    )
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    cfg = read_network(args.cfg, args.opts)
    folder = run_folder(cfg, args.output).path if args.output else None
    from isonet.tools.flops import count_flops, format_table, write_count  # imports torch

    count = count_flops(cfg)
    print(format_table(count), flush=True)
    if folder:
        write_count(count, folder)
        print(f"written to {folder / 'flops.json'} and flops.txt", flush=True)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
