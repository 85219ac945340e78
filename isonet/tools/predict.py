"""Predict the classes of images with the network of a checkpoint.

Images are prepared as for evaluation. An image that cannot be read is reported on standard error; the others are
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from isonet.errors import NonFiniteError, UserError, printable, run_cli
from isonet.launch import is_launched
from isonet.tools.cli import GPUS_HELP, look_for_network, split_overrides, tool_parser

if TYPE_CHECKING:
    import torch

    from isonet.tools.trained import Trained

log = logging.getLogger("isonet")

EXAMPLES = """\
  python -m isonet.tools.predict --ckpt outputs/cls/digits/demo three.png seven.png
  python -m isonet.tools.predict --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --classes names.txt photos/
  find photos -name '*.jpg' | python -m isonet.tools.predict --ckpt best.pt --format csv - > found.csv
  python -m isonet.tools.predict --ckpt best.pt --top 1 --format json photos/ RUNTIME.AMP bf16"""


@dataclass(frozen=True)
class Prediction:
    """top: labels of the most probable classes of an image with their probabilities, the highest one first."""

    path: Path
    top: list[tuple[int, float]]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ``images`` and ``opts`` hold the images and the overrides."""
    parser = tool_parser("predict", __doc__, EXAMPLES)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE|FOLDER|-", help="files; folders, with all images below; -: paths on "
        "standard input, one a line. KEY VALUE pairs may follow, e.g. photos/ RUNTIME.DECODER torch")  # fmt: skip
    add("--ckpt", required=True, metavar="CKPT", help="a checkpoint file, a run folder (its best.pt), the name of a "
        "run of --cfg, or zoo: and a published checkpoint")  # fmt: skip
    add("--cfg", metavar="FILE", help="the config, for a checkpoint that carries none (or another than its own)")
    add("--classes", metavar="FILE", help="names of the classes, one a line (default: the checkpoint's, else numbers)")
    add("--format", choices=FORMATS, default="table", help="of the output; JSON names files exactly (default: table)")
    add("--top", type=int, default=5, metavar="K", help="how many classes of each image (default: 5)")
    add("--batch-size", type=int, metavar="N", help="images per GPU (default: SOLVER.TEST_BATCH_SIZE)")
    add("--gpus", metavar="IDS", help=GPUS_HELP.split(";")[0])
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    args.images, args.opts = split_overrides(args.images)
    if not args.images:
        parser.error("name images or folders, or - for paths on standard input")
    for option, value in (("--top", args.top), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            parser.error(f"{option} must be at least 1, got {value}")
    return args


def main(args: argparse.Namespace) -> None:
    """Predict and print."""
    if is_launched():
        raise UserError("one process predicts, on all GPUs that --gpus names: start it without torchrun")
    look_for_network(args)
    from isonet.data.folders import find_images
    from isonet.tools.trained import load_trained
    from isonet.training.devices import explain_out_of_memory, pick_devices

    log.handlers, log.propagate = [_StandardError(logging.WARNING)], False
    trained = load_trained(args.ckpt, args.cfg, args.opts, args.classes)
    devices = pick_devices(args.gpus)
    paths, problems = find_images(_places(args.images))
    for problem in problems:
        log.error("%s", problem)
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal's encoding may lack characters of a name
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    unread: list[str] = []
    with explain_out_of_memory():
        predictions = predict(trained, paths, devices, args.top, args.batch_size, unread)
        FORMATS[args.format](predictions, trained.classes, paths, sys.stdout)
    if bad := len(problems) + len(unread):
        raise UserError(f"{bad} of {len(paths) + len(problems)} images or folders could not be read, as reported above")


def predict(
    trained: Trained,
    paths: Sequence[Path],
    devices: list[torch.device],
    top: int,
    batch_size: int | None,
    unread: list[str],
) -> Iterator[Prediction]:
    """Yield the prediction of each image in the order of ``paths``; those that cannot be read go to ``unread``.

    top: how many classes. batch_size: images per device, None for the config's.
    """
    import torch

    from isonet.data.build import read_batches
    from isonet.training.devices import place, set_precision
    from isonet.training.optim import Amp

    cfg = trained.cfg
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    forward = place(trained.model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
    amp = Amp(cfg.RUNTIME.AMP, devices[0])
    size = (batch_size or cfg.SOLVER.TEST_BATCH_SIZE) * len(devices)
    for images, read, failures in read_batches(cfg, paths, size, devices[0]):
        for failed in failures:
            log.error("%s: %s", failed.path, failed.reason)
            unread.append(failed.path)
        if not read:
            continue
        with torch.no_grad(), amp.autocast():
            logits = forward(images)
        probabilities = logits.float().softmax(1).cpu()
        if not probabilities.isfinite().all():
            raise NonFiniteError(f"{trained.path}: the output of the network is not finite, so it predicts nothing")
        best = probabilities.topk(min(top, probabilities.shape[1]))
        for path, labels, values in zip(read, best.indices.tolist(), best.values.tolist(), strict=True):
            yield Prediction(path, [(label, float(f"{p:.9g}")) for label, p in zip(labels, values, strict=True)])


def _places(arguments: list[str]) -> Iterator[str]:
    """The arguments, with the lines of standard input in the place of ``-``; names need not be UTF-8."""
    for argument in arguments:
        if argument != "-":
            yield argument
        elif sys.stdin is None:
            raise UserError("-: standard input is closed; give paths on it, one a line")
        else:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


def write_table(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path], file: TextIO) -> None:
    """Write columns for people, a line for each class of an image."""
    width = max([len(printable(path)) for path in paths] + [len("image")])
    name_width = max(len(printable(name)) for name in [*classes, "class"])
    if paths:
        print(f"{'image':{width}}  rank  {'class':{name_width}}  probability", file=file)
    for item in found:
        name = printable(item.path)
        for rank, (label, value) in enumerate(item.top, start=1):
            print(f"{name:{width}}  {rank:4}  {printable(classes[label]):{name_width}}  {value:11.4f}", file=file)
            name = ""


def write_json(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path], file: TextIO) -> None:
    """Write one list, with an object on a line for each image."""
    before = "["
    for item in found:
        top = [{"label": label, "class": classes[label], "probability": value} for label, value in item.top]
        print(before + json.dumps({"image": str(item.path), "top": top}), file=file)
        before = ","
    print("]" if before == "," else "[]", file=file)


def write_csv(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path], file: TextIO) -> None:
    """Write a line for each class of an image."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["image", "rank", "label", "class", "probability"])
    for item in found:
        for rank, (label, value) in enumerate(item.top, start=1):
            rows.writerow([printable(item.path), rank, label, printable(classes[label]), value])


FORMATS: dict[str, Callable[[Iterable[Prediction], Sequence[str], Sequence[Path], TextIO], None]] = {
    "table": write_table,
    "json": write_json,
    "csv": write_csv,
}


class _StandardError(logging.Handler):
    """Prints the log on standard error, because standard output is for the predictions."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {printable(record.getMessage())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
