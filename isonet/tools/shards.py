"""Write an image folder as tar shards, or check shards.

Images of FOLDER/{train,val}/<class>/ go to FOLDER/shards/{train,val}/, from where RUNTIME.INPUT shards reads
them. A command that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from isonet.data.folders import image_folder
from isonet.data.shards.index import ShardIndex, read_index, require_webdataset
from isonet.data.shards.verify import faults, faults_of_folder
from isonet.data.shards.writer import check_plan, make_plan, write_shards
from isonet.errors import DataError, UserError, printable, run_cli
from isonet.tools.cli import Parser

log = logging.getLogger("isonet")

EXAMPLES = """\
examples:
  python -m isonet.tools.shards write data/ILSVRC2012
  python -m isonet.tools.shards write data/ILSVRC2012 --split train --output /fast/ILSVRC2012/shards
  python -m isonet.tools.shards verify data/ILSVRC2012/shards
  python train.py --cfg configs/IN1k-RISO50.yaml RUNTIME.INPUT shards"""

SPLITS = ("train", "val")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command and its options."""
    parser = Parser(
        prog="python -m isonet.tools.shards",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="write|verify")
    write = commands.add_parser("write", help="write an image folder as shards")
    write.add_argument("folder", type=Path, metavar="FOLDER", help="that holds {train,val}/<class>/")
    write.add_argument("--split", choices=SPLITS, help="only this part (default: those that are there)")
    write.add_argument("--output", type=Path, metavar="DIR", help="where {train,val}/ go (default: FOLDER/shards)")
    write.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="(default: 1000)")
    write.add_argument("--seed", type=int, default=0, help="of the order of the training images (default: 0)")
    write.add_argument("--overwrite", action="store_true", help="write all shards anew, whatever is there")
    verify = commands.add_parser("verify", help="compare shards with their checksums")
    verify.add_argument("folder", type=Path, metavar="FOLDER", help="that holds shards/, or {train,val}/ of shards")
    for command in (write, verify):
        command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
        command.add_argument("--debug", action="store_true", help="show where an error arose")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if args.command == "write" and not 1 <= args.images_per_shard <= 100_000:
        write.error(f"--images-per-shard must be between 1 and 100000, got {args.images_per_shard}")
    return args


def main(args: argparse.Namespace) -> None:
    """Do what the command says."""
    if args.command == "write":
        require_webdataset()
        _write(args)
    else:
        _verify(args.folder)


def _write(args: argparse.Namespace) -> None:
    splits = [args.split] if args.split else [s for s in SPLITS if (args.folder / s).is_dir()]
    if not splits:
        raise DataError(f"{printable(args.folder)}: holds neither train/ nor val/, with a folder for each class")
    plans = {}
    for split in splits:
        root, out = args.folder / split, (args.output or args.folder / "shards") / split
        plan = make_plan(image_folder(args.folder, split), root, split == "train", args.seed, args.images_per_shard)
        if not args.overwrite:
            check_plan(plan, out)  # all of them before anything is written
        plans[split] = plan, out
    for split, (plan, out) in plans.items():
        index = write_shards(plan, out, args.overwrite, _bar(f"writing {split}"))
        size = sum(shard.bytes for shard in index.shards)
        print(f"{out}: {index.num_images:,} images in {len(index.shards):,} shards, {size / 1e6:,.1f} MB", flush=True)


def _bar(what: str) -> Callable[[Sequence[int], int], Iterator[int]]:
    def progress(todo: Sequence[int], done: int) -> Iterator[int]:
        if done and todo:
            print(f"{what}: {done} of {done + len(todo)} shards are there already", flush=True)
        return iter(tqdm(todo, what, total=done + len(todo), initial=done, unit="shard", mininterval=_seconds()))

    return progress


def _seconds() -> float:
    """Between two looks of a progress bar: in a file, each is a line."""
    return 0.1 if sys.stderr.isatty() else 60.0


def _verify(folder: Path) -> None:
    folder = folder / "shards" if (folder / "shards").is_dir() else folder
    splits = [folder / split for split in SPLITS if (folder / split).is_dir()]
    places = splits or [folder]  # of which one that has no index is not complete
    bad = [fault for place in places for fault in _faults(place, read_index(place))]
    for fault in bad:
        print(f"damaged: {printable(fault)}", flush=True)
    if bad:
        raise UserError(
            f"damage in {printable(folder)}, {len(bad)} files: remove damaged shards, and write makes what is missing"
        )


def _faults(place: Path, index: ShardIndex) -> list[str]:
    bar = tqdm(index.shards, f"checking {place}", unit="shard", mininterval=_seconds())
    found = [fault for shard in bar for fault in faults(place, index, shard)]
    found += faults_of_folder(place, index)
    if not found:
        print(f"{place}: {index.num_images:,} images in {len(index.shards):,} shards are as they were written")
    return found


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
