"""Measure how the cost grows, and what a run of ImageNet's size costs before its first step.

  python -m benchmarks.scale                    a training step: time and memory over depth, width, image size and batch
  python -m benchmarks.scale --picture FILE     the same, and a picture of it
  python -m benchmarks.scale --picture FILE --stored benchmarks/results/cpu-scale.json    a picture of stored rows
  python -m benchmarks.scale --start            from the config to the first batch of 1,281,167 images
  python -m benchmarks.scale --checkpoint       a checkpoint of R-ISONet-101, written and read

The short form (--quick) has fewer points, and 128,000 images. Memory is measured on Linux and on GPUs.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.checkpoints import checkpoint_rows
from benchmarks.common import Row, make_parser, report
from benchmarks.growth import AXES, growth_rows
from benchmarks.plot import draw_growth
from benchmarks.start import IMAGES, start_rows
from isonet.plots import require_matplotlib


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows as a PNG")
    parser.add_argument("--stored", type=Path, metavar="JSON", help="take the rows for --picture from this file")
    parser.add_argument("--start", action="store_true", help="measure the start of the loaders")
    parser.add_argument("--images", type=int, metavar="N", help=f"images for --start (default: {IMAGES})")
    parser.add_argument("--checkpoint", action="store_true", help="measure a checkpoint")
    parser.add_argument("--place", type=Path, metavar="FOLDER", help="folder of the temporary files")
    args = parser.parse_args()
    if args.picture:
        require_matplotlib(str(args.picture))
    elif args.stored:
        parser.error("--stored needs --picture")
    if args.stored:
        stored = json.loads(args.stored.read_text(encoding="utf-8"))["rows"]
        draw_growth([Row(**row) for row in stored], args.picture)
        return
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        if args.start:
            rows += start_rows(args.images or (128_000 if args.quick else IMAGES), Path(place))
        if args.checkpoint:
            rows += checkpoint_rows(args.repeats or (1 if args.quick else 5), Path(place))
    if not rows:
        rows = growth_rows(AXES, args.quick, args.repeats or (1 if args.quick else 3), torch.device(args.device))
    report("scale", rows, args.json, seconds=round(time.perf_counter() - start))
    if args.picture:
        draw_growth(rows, args.picture)


if __name__ == "__main__":
    main()
