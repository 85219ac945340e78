#!/usr/bin/env python3
"""Count parameters, multiply-accumulates and FLOPs of a config's network and of its penalty."""

from __future__ import annotations

import argparse
import gc
import os
import sys

gc.disable()  # collecting while torch is imported is a fifth of this script's time and frees nothing

from isonet.config import load_cfg  # noqa: E402
from isonet.errors import run_cli  # noqa: E402
from isonet.files.run_folder import run_folder  # noqa: E402
from isonet.tools.cli import make_parser  # noqa: E402
from isonet.tools.flops import count_flops, format_table, write_count  # noqa: E402
from isonet.tools.no_compiler import without_compiler  # noqa: E402

EXAMPLES = """\
  python flopscount_iso.py --cfg configs/cifar10_ISO29.yaml
  python flopscount_iso.py --cfg configs/self_ISO29.yaml --output self_ISO29
  python flopscount_iso.py --cfg configs/IN1k-ISO50.yaml SOLVER.TRAIN_BATCH_SIZE 32"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        __doc__, EXAMPLES, gpus_help="taken for likeness with train.py, e.g. --gpus 0,1; counting needs no GPU"
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        help="write flops.json and flops.txt to OUTPUT_DIR/DATASET.NAME/NAME/ as well, e.g. --output cifar10_ISO29.pt",
    )
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    cfg = load_cfg(args.cfg, args.opts)
    with without_compiler():
        count = count_flops(cfg)
    print(format_table(count), flush=True)
    if args.output:
        folder = run_folder(cfg, args.output).path
        write_count(count, folder)
        print(f"written to {folder / 'flops.json'} and flops.txt", flush=True)


if __name__ == "__main__":
    code = run_cli(main, parse_args())
    os._exit(code)  # taking torch down in good order would cost another half second
