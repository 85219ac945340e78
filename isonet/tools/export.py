"""Export the network of a checkpoint for other programs: as ONNX, as a torch program, or its weights as safetensors.

The network takes any number of float32 images (N, 3, H, W), normalised as "images" in the metadata of the file says,
and returns logits (N, classes). The file is checked: it must give the same logits as the network for random images.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from isonet.errors import UserError, printable, run_cli
from isonet.published import PREFIX
from isonet.tools.cli import look_for_folder_of, look_for_network, make_parser
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python -m isonet.tools.export --ckpt outputs/cls/digits/demo --format onnx
  python -m isonet.tools.export --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --format torch --output riso18.pt2
  python -m isonet.tools.export --ckpt best.pt --format safetensors"""

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}
OPSETS = range(18, 24)  # those that torch's exporter writes without converting
TOLERANCE = 1e-4  # another order of summation changes float32 by far less


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    help_of_gpus = "accepted for symmetry with test.py, e.g. --gpus 0; ignored, because the export needs no GPU"
    parser = make_parser(__doc__ or "", EXAMPLES, cfg_required=False, gpus_help=help_of_gpus)
    parser.prog = "python -m isonet.tools.export"
    add = parser.add_argument
    add("--ckpt", required=True, metavar="CKPT", help="a checkpoint file, a run folder (its best.pt), the name of a "
        "run of --cfg, or zoo: and a published checkpoint; --cfg overrides the config in it")  # fmt: skip
    add("--format", required=True, choices=SUFFIXES, help="onnx; torch, for torch.export.load; safetensors")
    add("--output", metavar="FILE", help="(default: the checkpoint's name with .onnx, .pt2 or .safetensors)")
    add("--classes", metavar="FILE", help="names of the classes, one a line (default: the checkpoint's, else numbers)")
    add("--opset", type=int, default=OPSETS[0], metavar="N", help="ONNX operator set, "
        f"{OPSETS[0]} to {OPSETS[-1]} (default: {OPSETS[0]})")  # fmt: skip
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help="largest difference that the check allows, "
        f"as a part of the largest logit (default: {TOLERANCE})")  # fmt: skip
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    if args.opset not in OPSETS:
        parser.error(f"--opset must be between {OPSETS[0]} and {OPSETS[-1]}, got {args.opset}")
    if not args.tolerance >= 0:
        parser.error(f"--tolerance must be at least 0, got {args.tolerance}")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the file, check it, and print how well it agrees with the network."""
    for package in PACKAGES.get(args.format, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--format {args.format} needs the package {package}: pip install 'isonet[onnx]'")
    look_for_network(args)
    from isonet.tools.formats import export
    from isonet.tools.trained import load_trained

    log_to_terminal()
    trained = load_trained(args.ckpt, args.cfg, args.opts, args.classes)
    suffix, in_zoo = SUFFIXES[args.format], args.ckpt.startswith(PREFIX)  # whose files are in a cache
    beside = Path(args.ckpt.removeprefix(PREFIX) + suffix) if in_zoo else trained.path.with_suffix(suffix)
    output = Path(args.output) if args.output else beside
    check_place(output, trained.path)
    with contextlib.nullcontext() if args.debug else quiet():
        difference, largest = export(trained, args.format, output, args.opset, args.tolerance)
    print(
        f"{printable(output)}: {args.format}, {output.stat().st_size / 1e6:.1f} MB; largest difference "
        f"{difference:.1e} from the network's logits, of up to {largest:.2g} (allowed: {args.tolerance * largest:.1e})"
    )


def check_place(output: Path, ckpt: Path) -> None:
    """Raise ``UserError``, before the export starts, if ``output`` cannot be written."""
    look_for_folder_of("--output", str(output))
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if output.exists() and output.samefile(ckpt):
        raise UserError(f"--output {output}: is the checkpoint itself; name another file")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log and the warnings of the exporters, which are about their own steps."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
