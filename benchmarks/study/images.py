"""Write the images of the study: CIFAR-10 as JPEG with Pillow's default quality (75, colours at half the resolution).

python -m benchmarks.study.images             download CIFAR-10 into data/ if needed, and write data/cifar10-jpg/
python -m benchmarks.study.images --root DIR  use DIR instead of data/, for DATASET.ROOT DIR
"""

from __future__ import annotations

import argparse
import collections
import shutil
import sys
from pathlib import Path

from isonet.data.cifar import cifar
from isonet.errors import UserError, run_cli
from isonet.tools.cli import Parser

NAME = "cifar10-jpg"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = Parser(
        prog="python -m benchmarks.study.images", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--root", type=Path, default=Path("data"), metavar="DIR", help="folder of the data sets (default: data)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write ``ROOT/cifar10-jpg/{train,val}/<class>/<number>.jpg``; val is the test set of CIFAR-10."""
    folder = args.root / NAME
    if folder.exists():
        raise UserError(f"{folder} already exists: remove it to write it again")
    unfinished = folder.with_name(f"{NAME}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split in ("train", "val"):
        source = cifar("CIFAR10", args.root, split, download=True)
        written: collections.Counter[str] = collections.Counter()
        for index, label in enumerate(source.labels):
            name = source.classes[label]
            place = unfinished / split / name
            place.mkdir(parents=True, exist_ok=True)
            source.read(index).save(place / f"{written[name]:04}.jpg")
            written[name] += 1
        print(f"{split}: {sum(written.values())} images", flush=True)
    unfinished.rename(folder)
    print(f"written to {folder}")


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
