"""Export the network of a checkpoint as ONNX or as a torch program, or its weights as safetensors or as published.

The network takes any number of float32 images (N, 3, H, W), normalised as "images" in the file's metadata describes,
and returns logits (N, classes). The file must pass a check: it gives the network's logits for random images.
"""

import argparse
import contextlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from isonet.errors import UserError, printable, run_cli
from isonet.extras import install
from isonet.published import PREFIX
from isonet.tools.cli import look_for_classes, look_for_folder_of, look_for_network, make_parser
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python -m isonet.tools.export --ckpt outputs/cls/digits/demo --format onnx
  python -m isonet.tools.export --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --format torch --output riso18.pt2
  python -m isonet.tools.export --ckpt best.pt --format safetensors"""

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "published": "-published.pt"}
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "safetensors": ("safetensors",)}
OPSETS = range(18, 24)  # the operator sets that torch's exporter writes without conversion
TOLERANCE = 1e-4  # another order of summation changes float32 by far less


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    help_of_gpus = "accepted for symmetry with test.py, e.g. --gpus 0; ignored, because the export needs no GPU"
    parser = make_parser(__doc__, EXAMPLES, cfg_required=False, gpus_help=help_of_gpus, tool="export")
    add = parser.add_argument
    add("--ckpt", required=True, metavar="CKPT", help="a checkpoint file, a run folder (its best.pt), the name of a "
        "run of --cfg, or zoo: and a published checkpoint; --cfg overrides the config in it")  # fmt: skip
    add("--format", required=True, choices=SUFFIXES, help="onnx; torch, for torch.export.load; safetensors; "
        "published, for the test.py of the published implementation")  # fmt: skip
    add("--output", metavar="FILE", help="(default: the checkpoint's name with .onnx, .pt2, .safetensors or "
        "-published.pt)")  # fmt: skip
    add("--classes", metavar="FILE", help="names of the classes, one per line (default: from the checkpoint, "
        "else WordNet ids for ImageNet, else numbers)")  # fmt: skip
    add("--opset", type=int, choices=OPSETS, default=OPSETS[0], help="ONNX operator set (default: %(default)s)")
    add("--tolerance", type=float, default=TOLERANCE, metavar="X", help="largest difference that the check allows, "
        "as a fraction of the largest logit (default: %(default)s)")  # fmt: skip
    return parser.parse(sys.argv[1:] if argv is None else argv)


def main(args: argparse.Namespace) -> None:
    """Export the network, check the result, and print how well it agrees with the network."""
    for package in PACKAGES.get(args.format, ()):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"--format {args.format} needs the package {package}: {install('onnx')}")
    look_for_folder_of("--output", args.output)
    look_for_classes(args.classes, look_for_network(args))
    from isonet.tools.formats import export
    from isonet.tools.trained import class_names, load_trained

    log_to_terminal()
    trained = load_trained(args.ckpt, args.cfg, args.opts)
    classes = class_names(trained, args.classes)
    in_zoo = args.ckpt.startswith(PREFIX)  # its files are in a cache
    stem = args.ckpt.removeprefix(PREFIX) if in_zoo else trained.path.with_suffix("")
    output = Path(args.output or f"{stem}{SUFFIXES[args.format]}")
    look_for_folder_of("--output", str(output))
    if output.exists() and output.samefile(trained.path):
        raise UserError(f"--output {output} is the checkpoint itself; name another file")
    with contextlib.ExitStack() as silence:
        if not args.debug:  # the exporters log their own steps
            silence.enter_context(warnings.catch_warnings(action="ignore"))
            logging.disable(logging.WARNING)
            silence.callback(logging.disable, logging.NOTSET)
        difference, largest = export(trained, classes, args.format, output, args.opset, args.tolerance)
    print(
        f"{printable(output)}: {args.format}, {output.stat().st_size / 1e6:.1f} MB; largest difference "
        f"{difference:.1e} from the network's logits, of up to {largest:.2g} (allowed: {args.tolerance * largest:.1e})"
    )


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args))
