"""Predict the classes of images with the network of a checkpoint.

Images are prepared as for evaluation. If an image cannot be read, standard error reports it, the other images are
predicted, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isonet.errors import NonFiniteError, UserError, printable, run_cli
from isonet.launch import is_launched
from isonet.tools.cli import (
    GPUS_HELP,
    as_cell,
    look_for_classes,
    look_for_network,
    positive,
    split_overrides,
    tool_parser,
)
from isonet.training.log import log_to_terminal

if TYPE_CHECKING:
    import torch

    from isonet.tools.trained import Trained

log = logging.getLogger("isonet")

EXAMPLES = """\
  python -m isonet.tools.predict --ckpt outputs/cls/digits/demo three.png seven.png
  python -m isonet.tools.predict --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --classes names.txt photos/
  find photos -name '*.jpg' | python -m isonet.tools.predict --ckpt best.pt --format csv - > found.csv
  python -m isonet.tools.predict --ckpt best.pt --top 1 --format json photos/ RUNTIME.AMP bf16"""


COLUMNS = ("image", "rank", "label", "class", "probability")

# An image, and the labels of its most probable classes with their probabilities, the highest one first
Prediction = tuple[Path, list[tuple[int, float]]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options. ``images`` contains the images, and ``opts`` the overrides."""
    parser = tool_parser("predict", __doc__, EXAMPLES)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE|FOLDER|-", help="files; folders, with all images below; -: paths on "
        "standard input, one a line. KEY VALUE pairs may follow, e.g. photos/ RUNTIME.DECODER torch")  # fmt: skip
    add("--ckpt", required=True, metavar="CKPT", help="a checkpoint file, a run folder (its best.pt), the name of a "
        "run of --cfg, or zoo: and a published checkpoint")  # fmt: skip
    add("--cfg", metavar="FILE", help="the config, if the checkpoint has none or another one is wanted")
    add("--classes", metavar="FILE", help="names of the classes, one per line (default: from the checkpoint, "
        "else WordNet ids for ImageNet, else numbers)")  # fmt: skip
    add("--format", choices=FORMATS, default="table", help="output format (default: table); "
        "in csv, ' precedes text that a spreadsheet would run as a formula; json has the exact text")  # fmt: skip
    add("--top", type=positive, default=5, metavar="K", help="number of classes for each image (default: 5)")
    add("--batch-size", type=positive, metavar="N", help="images per GPU (default: SOLVER.TEST_BATCH_SIZE)")
    add("--gpus", metavar="IDS", help=GPUS_HELP.split(";")[0])
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    args.images, args.opts = split_overrides(args.images)
    parser.check_once(args.opts)
    if not args.images:
        parser.error("name images or folders, or - for paths on standard input")
    return args


def main(args: argparse.Namespace) -> None:
    """Predict and print."""
    if is_launched():
        raise UserError("one process predicts on all GPUs of --gpus: start it without torchrun")
    look_for_classes(args.classes, look_for_network(args))
    from isonet.data.folders import find_images
    from isonet.tools.trained import class_names, load_trained
    from isonet.training.devices import explain_out_of_memory, pick_devices

    log_to_terminal(logging.WARNING)  # standard output is for the predictions
    trained = load_trained(args.ckpt, args.cfg, args.opts)
    classes = class_names(trained, args.classes)
    devices = pick_devices(args.gpus)
    paths, problems = find_images(_places(args.images))
    for problem in problems:
        log.error("%s", problem)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    batch_size = (args.batch_size or trained.cfg.SOLVER.TEST_BATCH_SIZE) * len(devices)
    unread: list[str] = []
    with explain_out_of_memory():
        predictions = predict(trained, paths, devices, args.top, batch_size, unread)
        FORMATS[args.format](predictions, classes, paths)
    if bad := len(problems) + len(unread):
        raise UserError(f"{bad} of {len(paths) + len(problems)} images or folders could not be read, as reported above")


def predict(
    trained: Trained, paths: Sequence[Path], devices: list[torch.device], top: int, batch_size: int, unread: list[str]
) -> Iterator[Prediction]:
    """Yield the prediction of each image in the order of ``paths``, and append unreadable paths to ``unread``.

    top: the number of classes for each image. batch_size: the number of images on all devices together.
    """
    import torch

    from isonet.data.build import read_batches
    from isonet.tools.trained import placed
    from isonet.training.metrics import best_classes

    forward, amp = placed(trained, devices)
    for images, read, failures in read_batches(trained.cfg, paths, batch_size, devices[0]):
        for failed in failures:
            log.error("%s: %s", failed.path, failed.reason)
            unread.append(failed.path)
        if not read:
            continue
        with torch.no_grad(), amp.autocast():
            logits = forward(images)
        logits = logits.float().cpu()
        probabilities = logits.softmax(1)
        if not probabilities.isfinite().all():
            raise NonFiniteError(f"{trained.path}: the output of the network is non-finite, so it predicts nothing")
        # Rank all logits, so that the first classes do not depend on ``top``. Softmax may round other logits to a tie
        best = best_classes(logits, logits.shape[1])[:, :top]
        for path, labels, values in zip(read, best.tolist(), probabilities.gather(1, best).tolist(), strict=True):
            yield path, [(label, float(f"{value:.9g}")) for label, value in zip(labels, values, strict=True)]


def _places(arguments: list[str]) -> Iterator[str]:
    """Yield the arguments, with the lines of standard input in place of ``-``. Names need not be UTF-8."""
    for argument in arguments:
        if argument != "-":
            yield argument
        else:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


def rows(predictions: Iterable[Prediction], classes: Sequence[str]) -> Iterator[tuple[str, int, int, str, float]]:
    """Yield the values of ``COLUMNS`` for each class of each image, free of control characters."""
    for path, top in predictions:
        for rank, (label, probability) in enumerate(top, start=1):
            yield printable(path), rank, label, printable(classes[label]), probability


def print_table(predictions: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path]) -> None:
    """Print aligned columns, with a line for each class of an image."""
    width = max(len(printable(path)) for path in ["image", *paths])
    name_width = max(len(printable(name)) for name in ["class", *classes])
    if paths:
        print(f"{'image':{width}}  rank  {'class':{name_width}}  probability")
    for image, rank, _, name, probability in rows(predictions, classes):
        print(f"{image if rank == 1 else '':{width}}  {rank:4}  {name:{name_width}}  {probability:11.4f}")


def print_json(predictions: Iterable[Prediction], classes: Sequence[str], _paths: Sequence[Path]) -> None:
    """Print one JSON list, with a line for the object of each image."""
    before = "["
    for path, top in predictions:
        answers = [{"label": label, "class": classes[label], "probability": probability} for label, probability in top]
        print(before + json.dumps({"image": str(path), "top": answers}))
        before = ","
    print("]" if before == "," else "[]")


def print_csv(predictions: Iterable[Prediction], classes: Sequence[str], _paths: Sequence[Path]) -> None:
    """Print a line for each class of an image."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        [cell if not isinstance(cell, str) else as_cell(cell) for cell in row] for row in rows(predictions, classes)
    )


FORMATS = {"table": print_table, "json": print_json, "csv": print_csv}


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
