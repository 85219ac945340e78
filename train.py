#!/usr/bin/env python3
"""Train the network of a config."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from isonet.config import default_cfg, flat, load_cfg
from isonet.errors import run_cli
from isonet.files.run_folder import LATEST
from isonet.tools.cli import make_parser
from isonet.training.failure import ranks
from isonet.training.log import log_to_terminal
from isonet.training.run import train_on_ranks

EXAMPLES = """\
  python train.py --cfg configs/digits_ISO20.yaml
  python train.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --output cifar10_ISO110.pt
  python train.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --output cifar10_ISO110.pt --resume
  python train.py --cfg configs/IN1k-ISO34.yaml --output ISO34-nodropout ISON.DROPOUT False
  torchrun --nproc-per-node 8 train.py --cfg configs/IN1k-RISO50.yaml --resume auto"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="the run lies in OUTPUT_DIR/DATASET.NAME/NAME/, e.g. --output first-try (default: the config's name)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="CKPT",
        help="go on with the next batch after the last save: of this run, or of a checkpoint or run folder, "
        "e.g. --resume outputs/cls/CIFAR10/first-try/latest.pt; auto: of this run, which is started if it is not there",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run of this name, e.g. --output first-try --overwrite"
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    for i, (option, key) in enumerate(itertools.pairwise(argv)):
        if option == "--resume" and key in flat(default_cfg()):  # "--resume KEY VALUE": the key is no checkpoint
            argv[i] = f"--resume={LATEST}"
    return parser.parse(argv)


def main(args: argparse.Namespace) -> None:
    log_to_terminal()
    with ranks(args.gpus) as (world, devices):  # first, so that rank 0 alone prints a mistake that all ranks make
        cfg = load_cfg(args.cfg, args.opts)
        output = Path(args.cfg).stem if args.output is None else args.output
        train_on_ranks(cfg, output, world, devices, args.resume, args.overwrite)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
