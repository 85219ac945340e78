"""Write an image folder as tar shards, index tar shards that were written elsewhere, or check shards.

write: store the images of FOLDER/{train,val}/<class>/ in FOLDER/shards/{train,val}/. Run again if interrupted. The
files are copied, or stored smaller with --short-side.
index: index the *.tar in FOLDER or in FOLDER/{train,val}/, in the format of webdataset. Images have the extensions of
image folders (.jpg, .png, ...), and each has its label in .cls, or in .json under label or cls.
RUNTIME.INPUT shards reads DATASET.ROOT/DATASET.NAME/shards/{train,val}/.
"""

import argparse
import sys
from pathlib import Path

from isonet.errors import DataError, UserError, printable, run_cli
from isonet.tools.cli import Parser

EXAMPLES = """\
examples:
  python -m isonet.tools.shards write data/ILSVRC2012
  python -m isonet.tools.shards write data/ILSVRC2012 --short-side 320 --quality 90
  python -m isonet.tools.shards write data/ILSVRC2012 --split train --output /fast/ILSVRC2012/shards
  python -m isonet.tools.shards index data/imagenet-wds/shards --classes data/imagenet-classes.txt
  python -m isonet.tools.shards verify data/ILSVRC2012/shards
  python train.py --cfg configs/IN1k-RISO50.yaml RUNTIME.INPUT shards"""

SPLITS = ("train", "val")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command and its options."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m isonet.tools.shards", description=__doc__, epilog=EXAMPLES, formatter_class=lines)
    commands = parser.add_subparsers(dest="command", required=True, metavar="write|index|verify")

    def command(name: str, purpose: str, folder: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=purpose, epilog=EXAMPLES, formatter_class=lines)
        added.add_argument("folder", type=Path, metavar="FOLDER", help=folder)
        added.add_argument("--debug", action="store_true", help="print the traceback of an error")
        return added

    write = command("write", "write an image folder as shards", "the folder that contains {train,val}/<class>/")
    write.add_argument("--split", choices=SPLITS, help="write only this part (default: both, if they exist)")
    write.add_argument("--output", type=Path, metavar="DIR", help="put {train,val}/ here (default: FOLDER/shards)")
    write.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="(default: 1000)")
    write.add_argument("--seed", type=int, default=0, help="seed of the order of the training images (default: 0)")
    write.add_argument(
        "--short-side",
        type=int,
        metavar="N",
        help="store larger images as JPEG with a shorter side of N pixels, which are read faster "
        "(default: copy the files)",
    )
    write.add_argument("--quality", type=int, metavar="Q", help="JPEG quality of these images (default: 90)")
    write.add_argument("--overwrite", action="store_true", help="write all shards again, even existing ones")
    tars = "a folder of *.tar, or a folder with shards/ or {train,val}/ that contain them"
    index = command("index", "index shards that were written elsewhere, or by an earlier version", tars)
    index.add_argument(
        "--classes", type=Path, metavar="FILE",
        help="the names of the classes, one a line in the order of the labels (default: classes.txt beside the shards, "
        "else the names in an existing index, else the numbers)",
    )  # fmt: skip
    command("verify", "compare shards with their checksums and their index", tars)
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    if args.command == "write" and args.short_side is None and args.quality is not None:
        write.error("--quality is the quality of smaller images: add --short-side N")
    for option, most in (("images_per_shard", 100_000), ("short_side", 10_000), ("quality", 100)):
        number = getattr(args, option, None)
        if number is not None and not 1 <= number <= most:
            write.error(f"--{option.replace('_', '-')} must be between 1 and {most}, got {number}")
    return args


def main(args: argparse.Namespace) -> None:
    """Run the command. It imports only what it needs, so --help needs no torch."""
    from isonet.data.shards.scan import require_preadv

    require_preadv()
    {"write": _write, "index": _index, "verify": _verify}[args.command](args)


def _write(args: argparse.Namespace) -> None:
    from isonet.data.folders import image_folder
    from isonet.data.shards.smaller import Smaller
    from isonet.data.shards.writer import check_plan, make_plan, write_shards

    splits = [args.split] if args.split else [s for s in SPLITS if (args.folder / s).is_dir()]
    if not splits:
        raise DataError(f"{printable(args.folder)} has neither train/ nor val/, with a folder for each class")
    smaller = Smaller(args.short_side, args.quality or 90) if args.short_side else None
    plans = []
    for split in splits:
        root, out = args.folder / split, (args.output or args.folder / "shards") / split
        images, shuffle = image_folder(args.folder, split), split == "train"
        plan = make_plan(images, root, shuffle, args.seed, args.images_per_shard, smaller)
        check_plan(plan, out, args.overwrite)  # check all plans before the first shard is written
        plans.append((plan, out))
    for plan, out in plans:
        print(f"{out}: {write_shards(plan, out, args.overwrite)}", flush=True)


def _index(args: argparse.Namespace) -> None:
    from isonet.data.shards.index import make_index, read_classes
    from isonet.files.storage import FolderLock

    classes = read_classes(args.classes) if args.classes else None
    for place in _places(args.folder):
        with FolderLock(place):
            print(f"{place}: {make_index(place, classes)}", flush=True)


def _verify(args: argparse.Namespace) -> None:
    from isonet.data.shards.index import damage, read_index

    count = 0
    for place in _places(args.folder):
        index = read_index(place)
        problems = list(damage(place, index))
        for problem in problems:
            print(f"damaged: {printable(problem)}", flush=True)
        if not problems:
            print(f"{place}: {index}, all intact", flush=True)
        count += len(problems)
    if count:
        raise UserError(
            f"{count} files are damaged in {printable(args.folder)}: remove damaged shards and run write again, or "
            "download them again"
        )


def _places(folder: Path) -> list[Path]:
    """Return the folders of shards in ``folder``."""
    folder = folder / "shards" if (folder / "shards").is_dir() else folder
    return [folder / split for split in SPLITS if (folder / split).is_dir()] or [folder]


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
