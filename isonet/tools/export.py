"""Export the network of a checkpoint for other programs: as ONNX, as a torch program, or its weights as safetensors.

The network takes float32 images (N, 3, H, W) of any number, normalised as "images" in the file's metadata says,
and gives logits (N, classes). The file is checked: it must give the logits of the network for random images.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isonet.config import image_size, parse_cfg, uses_small_images
from isonet.data.augment import EVAL_RESIZE
from isonet.data.build import statistics
from isonet.errors import NonFiniteError, UserError, printable, run_cli
from isonet.files.checkpoint import load_state
from isonet.files.storage import link_file, write_file
from isonet.files.zoo import PREFIX
from isonet.models import build_model
from isonet.tools.cli import make_parser
from isonet.tools.trained import Trained, load_trained
from isonet.training.log import log_to_terminal

EXAMPLES = """\
  python -m isonet.tools.export --ckpt outputs/cls/digits/demo --format onnx
  python -m isonet.tools.export --ckpt RISO18.pt --cfg configs/IN1k-RISO18.yaml --format torch --output riso18.pt2
  python -m isonet.tools.export --ckpt best.pt --format safetensors"""

OPSETS = range(18, 24)  # that torch's exporter writes; earlier ones it cannot convert to
TOLERANCE = 1e-4  # of the largest logit: another order of sums moves float32 by far less
CHECKED_BATCHES = (1, 3)  # images; the network is traced with 2

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """encode: the network as a file's bytes, with an ONNX opset. load: what runs such a file."""

    suffix: str
    encode: Callable[[Trained, int], bytes]
    load: Callable[[Path], Run]
    packages: tuple[str, ...] = ()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    help_of_gpus = "taken for likeness with test.py, e.g. --gpus 0; exporting needs no GPU"
    parser = make_parser(__doc__ or "", EXAMPLES, cfg_required=False, gpus_help=help_of_gpus)
    parser.prog = "python -m isonet.tools.export"
    add = parser.add_argument
    add("--ckpt", required=True, metavar="CKPT", help="a checkpoint file, a run folder (its best.pt), the name of a "
        "run of --cfg, or zoo: and a published checkpoint; without --cfg its own config counts")  # fmt: skip
    add("--format", required=True, choices=FORMATS, help="onnx; torch, which torch.export.load reads; safetensors")
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
    """Write the file, check it, say how well it agrees."""
    log_to_terminal()
    form = FORMATS[args.format]
    _require(args.format, form.packages)
    trained = load_trained(args.ckpt, args.cfg, args.opts, args.classes)
    output = Path(args.output) if args.output else _beside(args.ckpt, trained.path, form.suffix)
    _check_place(output, trained.path)
    with contextlib.nullcontext() if args.debug else _quiet():
        difference, largest = export(trained, form, output, args.opset, args.tolerance)
    print(
        f"{printable(output)}: {args.format}, {output.stat().st_size / 1e6:.1f} MB; largest difference "
        f"{difference:.1e} from the network's logits, of up to {largest:.2g} (allowed: {args.tolerance * largest:.1e})"
    )


def export(trained: Trained, form: Format, output: Path, opset: int, tolerance: float) -> tuple[float, float]:
    """Write ``output``, which appears there when its check has passed; returns what ``compare`` found.

    Raises ``UserError`` where it fails, with the former file, if any, intact.
    """
    unchecked = output.with_name(f".{output.name}.unchecked.tmp")
    with torch.no_grad():
        write_file(unchecked, form.encode(trained, opset))
        try:
            difference, largest = compare(trained.model, form.load(unchecked), image_size(trained.cfg))
            if not largest < float("inf"):
                raise NonFiniteError(f"{trained.path}: the network's output is not finite, so no file can be checked")
            if not difference <= tolerance * largest:  # nor is nan
                raise UserError(
                    f"{output}: the file's logits differ from the network's by {difference:.1e}, which is more than "
                    f"the allowed {tolerance * largest:.1e} (--tolerance {tolerance:g} of the largest logit): the new "
                    "file has been removed"
                )
            link_file(unchecked, output)
        finally:
            unchecked.unlink(missing_ok=True)
    return difference, largest


def compare(model: nn.Module, run: Run, size: int) -> tuple[float, float]:
    """The largest difference of logits for random images of ``size`` pixels, and the largest logit of ``model``."""
    generator = torch.Generator().manual_seed(0)
    difference = largest = torch.zeros(())
    for count in CHECKED_BATCHES:
        images = torch.randn(count, 3, size, size, generator=generator)
        expected, found = model(images), run(images)
        if found.shape != expected.shape:
            return float("nan"), expected.abs().max().item()
        difference = torch.maximum(difference, (found - expected).abs().max())  # keeps a nan
        largest = torch.maximum(largest, expected.abs().max())
    return difference.item(), largest.item()


def metadata(trained: Trained) -> dict[str, str]:
    """What a file says of its network: its config, the names of its classes, and how its images are made."""
    size, (mean, std) = image_size(trained.cfg), statistics(trained.cfg)
    resize = size if uses_small_images(trained.cfg) else round(size * EVAL_RESIZE)  # the shorter side, before the crop
    images = {"resize": resize, "crop": size, "mean": list(mean), "std": list(std)}
    return {
        "config": trained.cfg.dump(),
        "classes": json.dumps(trained.classes),
        "images": json.dumps(images),
    }


def _encode_onnx(trained: Trained, opset: int) -> bytes:
    program: Any = torch.onnx.export(
        trained.model, (_example(trained),), dynamo=True, opset_version=opset, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    found = program.model.opset_imports[""]
    if found != opset:
        raise UserError(f"--opset {opset}: this version of torch writes {found} instead; ask for that")
    program.model.metadata_props.update(metadata(trained))
    return program.model_proto.SerializeToString()


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _encode_torch(trained: Trained, _opset: int) -> bytes:
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(trained.model, (_example(trained),), dynamic_shapes=(batch,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=metadata(trained))
    return buffer.getvalue()


def _load_torch(path: Path) -> Run:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _encode_safetensors(trained: Trained, _opset: int) -> bytes:
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    return save(weights, metadata=metadata(trained))


def _load_safetensors(path: Path) -> Run:
    """The network that the file's own config describes, with the file's weights."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        model = build_model(parse_cfg(file.metadata()["config"], str(path)))
        load_state(model, {name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118 - no dictionary
    return model.eval()


FORMATS = {
    "onnx": Format(".onnx", _encode_onnx, _load_onnx, ("onnx", "onnxruntime", "onnxscript")),
    "torch": Format(".pt2", _encode_torch, _load_torch),
    "safetensors": Format(".safetensors", _encode_safetensors, _load_safetensors, ("safetensors",)),
}


def _example(trained: Trained) -> Tensor:
    """Images to trace with: two, since of one torch would take the number for fixed."""
    size = image_size(trained.cfg)
    return torch.zeros(2, 3, size, size)


def _require(name: str, packages: tuple[str, ...]) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"--format {name} needs the package {package}: pip install 'isonet[onnx]'") from None


def _beside(ckpt: str, path: Path, suffix: str) -> Path:
    """The checkpoint's name with another suffix; of the zoo, whose files lie in a cache, in the current folder."""
    return Path(ckpt.removeprefix(PREFIX) + suffix) if ckpt.startswith(PREFIX) else path.with_suffix(suffix)


def _check_place(output: Path, ckpt: Path) -> None:
    """Say before the work that ``output`` cannot be written."""
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no such folder; make it first")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file in it")
    if output.exists() and output.samefile(ckpt):
        raise UserError(f"--output {output}: is the checkpoint itself; name another file")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own steps, and of what is not ours to change."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


if __name__ == "__main__":
    sys.exit(run_cli(main, parse_args()))
