"""Predict the classes of images: the most probable ones, by the network of a checkpoint.

Images are made as evaluation makes its own. An image that cannot be read is told of on standard error, the
others are predicted all the same, and the exit code is 2.
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

import torch
from torch import Tensor, nn

from isonet.data.unlabelled import find_images, read_batches
from isonet.errors import NonFiniteError, UserError, printable, run_cli
from isonet.launch import is_launched
from isonet.tools.cli import GPUS_HELP, Parser, split_overrides
from isonet.tools.trained import Trained, load_trained
from isonet.training.devices import explain_out_of_memory, pick_devices, place, set_precision
from isonet.training.optim import Amp

log = logging.getLogger("isonet")

EXAMPLES = """\
examples:
  python -m isonet.tools.predict --ckpt outputs/cls/digits/demo three.png seven.png
  python -m isonet.tools.predict --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --classes names.txt photos/
  find photos -name '*.jpg' | python -m isonet.tools.predict --ckpt best.pt --format csv - > found.csv
  python -m isonet.tools.predict --ckpt best.pt --top 1 --format json photos/ RUNTIME.AMP bf16"""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the first one first."""

    path: Path
    labels: list[int]
    probabilities: list[float]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; images and overrides are apart, in ``images`` and ``opts``."""
    parser = Parser(
        prog="python -m isonet.tools.predict",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
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
    add("--debug", action="store_true", help="show where an error arose")
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
    _log_to_standard_error()
    if is_launched():
        raise UserError("one process predicts, on as many GPUs as --gpus names: start it without torchrun")
    trained = load_trained(args.ckpt, args.cfg, args.opts, args.classes)
    devices = pick_devices(args.gpus)
    paths, problems = find_images(_places(args.images))
    for problem in problems:
        log.error("%s", problem)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding lacks
    unread: list[str] = []
    with explain_out_of_memory():
        found = predict(trained, paths, devices, args.top, args.batch_size, unread)
        for text in FORMATS[args.format](found, trained.classes, paths):
            print(text, flush=True)
    if bad := len(problems) + len(unread):
        raise UserError(f"{bad} of {len(paths) + len(problems)} images or folders could not be read, as said above")


def predict(
    trained: Trained,
    paths: Sequence[Path],
    devices: list[torch.device],
    top: int,
    batch_size: int | None,
    unread: list[str],
) -> Iterator[Prediction]:
    """The ``top`` classes of each image, in the order of ``paths``; those that cannot be read go to ``unread``."""
    cfg = trained.cfg
    set_precision(cfg.RUNTIME.DETERMINISTIC, cfg.RUNTIME.TF32)
    forward = place(trained.model, devices, cfg.RUNTIME.CHANNELS_LAST, cfg.RUNTIME.COMPILE)
    amp = Amp(cfg.RUNTIME.AMP, devices[0])
    size = (batch_size or cfg.SOLVER.TEST_BATCH_SIZE) * len(devices)
    for batch in read_batches(cfg, paths, size, devices[0]):
        for failed in batch.failures:
            log.error("%s: %s", failed.path, failed.reason)
            unread.append(failed.path)
        if not batch.paths:
            continue
        rows = _probabilities(forward, batch.images, amp)
        if not rows.isfinite().all():
            raise NonFiniteError(f"{trained.path}: the network's output is not finite, so it predicts nothing")
        best = rows.topk(min(top, rows.shape[1]))
        for path, labels, values in zip(batch.paths, best.indices.tolist(), best.values.tolist(), strict=True):
            yield Prediction(path, labels, values)


@torch.no_grad()
def _probabilities(forward: nn.Module, images: Tensor, amp: Amp) -> Tensor:
    """(N, classes) float32, on the CPU."""
    with amp.autocast():
        logits = forward(images)
    return logits.float().softmax(1).cpu()


def _places(arguments: list[str]) -> Iterator[str]:
    """The arguments, of which ``-`` stands for the lines of standard input; names need not be UTF-8."""
    for argument in arguments:
        if argument != "-":
            yield argument
        elif sys.stdin is None:
            raise UserError("-: standard input is closed; give paths on it, one a line")
        else:
            yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip())


def as_table(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path]) -> Iterator[str]:
    """Columns for people, a line for each class."""
    width = max([len(printable(path)) for path in paths] + [len("image")])
    name_width = max(len(printable(name)) for name in [*classes, "class"])
    if paths:
        yield f"{'image':{width}}  rank  {'class':{name_width}}  probability"
    for item in found:
        name = printable(item.path)
        for rank, (label, value) in enumerate(zip(item.labels, item.probabilities, strict=True), start=1):
            yield f"{name:{width}}  {rank:4}  {printable(classes[label]):{name_width}}  {value:11.4f}"
            name = ""


def as_json(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path]) -> Iterator[str]:
    """One list, an object on a line for each image."""
    before = "["
    for item in found:
        top = [
            {"label": label, "class": classes[label], "probability": _rounded(value)}
            for label, value in zip(item.labels, item.probabilities, strict=True)
        ]
        yield before + json.dumps({"image": str(item.path), "top": top})
        before = ","
    yield "]" if before == "," else "[]"


def as_csv(found: Iterable[Prediction], classes: Sequence[str], paths: Sequence[Path]) -> Iterator[str]:
    """A line for each class of each image."""
    yield "image,rank,label,class,probability"
    for item in found:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        for rank, (label, value) in enumerate(zip(item.labels, item.probabilities, strict=True), start=1):
            rows.writerow([printable(item.path), rank, label, printable(classes[label]), _rounded(value)])
        yield text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Iterable[Prediction], Sequence[str], Sequence[Path]], Iterator[str]]] = {
    "table": as_table,
    "json": as_json,
    "csv": as_csv,
}


def _rounded(probability: float) -> float:
    """To the digits that a float32 has."""
    return float(f"{probability:.9g}")


class _StandardError(logging.Handler):
    """Prints the log beside the predictions, not among them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {printable(record.getMessage())}", file=sys.stderr, flush=True)


def _log_to_standard_error() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.addHandler(_StandardError(logging.WARNING))
    log.propagate = False


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
