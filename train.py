#!/usr/bin/env python3
"""Train the network of a config."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from yacs.config import CfgNode

from isonet.config.keys import KEYS
from isonet.errors import run_cli
from isonet.files.run_folder import LATEST, checkpoints_to_resume, run_folder
from isonet.launch import is_launched
from isonet.tools.cli import check_gpu_ids, look_for_checkpoint, look_for_images, make_parser, read_network
from isonet.training.log import keep_for_file, log_to_terminal

EXAMPLES = """\
  python train.py --cfg configs/digits_ISO20.yaml
  python train.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --output cifar10_ISO110.pt
  python train.py --cfg configs/cifar10_ISO110.yaml --gpus 1,2 --output cifar10_ISO110.pt --resume
  python train.py --cfg configs/IN1k-ISO34.yaml --output ISO34-nodropout ISON.DROPOUT False
  torchrun --nproc-per-node 8 train.py --cfg configs/IN1k-RISO50.yaml --resume auto"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, EXAMPLES)
    parser.reports = True
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="the name of the run, whose folder is OUTPUT_DIR/DATASET.NAME/NAME/, e.g. --output first-try "
        "(default: the config's name)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const=LATEST,
        metavar="CKPT",
        help="resume this run, or a checkpoint or run folder, with the batch after the last save, "
        "e.g. --resume outputs/cls/CIFAR10/first-try/latest.pt; auto: resume this run, or start it if nothing is saved",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the run of this name, e.g. --output first-try --overwrite"
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    for i, (option, word) in enumerate(itertools.pairwise(argv)):
        if option == "--resume" and word in KEYS:  # in "--resume KEY VALUE" the key is not a checkpoint
            argv[i] = f"--resume={LATEST}"
    return parser.parse(argv)


def main(args: argparse.Namespace) -> None:
    log_to_terminal()
    keep_for_file()
    if not is_launched():
        look(args)
    from isonet.training.failure import ranks  # these import torch
    from isonet.training.run import train_on_ranks

    with ranks(args.gpus) as (world, devices):  # first, so that rank 0 alone prints a mistake that all ranks make
        with world.agreed() as facts:
            facts.update({f"--{name}": getattr(args, name) for name in ("output", "resume", "overwrite")})
            cfg, output = read(args)
        train_on_ranks(cfg, output, world, devices, args.resume, args.overwrite)


def look(args: argparse.Namespace) -> None:
    """Raise an error for wrong options, configs and files before torch is imported, which takes seconds.

    A launched process does not call this: it may be a restart, and some machines of the run may lack the files.
    """
    check_gpu_ids(args.gpus)
    cfg, output = read(args)
    folder = run_folder(cfg, output)
    if (folder.path / "lock").exists() or folder.has_former():  # a run may be in progress; the error names its process
        return
    if not checkpoints_to_resume(folder, args.resume, args.overwrite) and cfg.MODEL.INIT_FROM:
        look_for_checkpoint(cfg, cfg.MODEL.INIT_FROM)
    look_for_images(cfg, ["train", "val"])


def read(args: argparse.Namespace) -> tuple[CfgNode, str]:
    """Return the config and the name of the run."""
    return read_network(args.cfg, args.opts), Path(args.cfg).stem if args.output is None else args.output


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
