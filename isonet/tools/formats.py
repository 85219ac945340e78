"""The files that ``export`` writes: how each is made from a network, and how it is run to check it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isonet.config import image_size, parse_cfg, uses_small_images
from isonet.data.augment import EVAL_RESIZE
from isonet.data.build import statistics
from isonet.errors import NonFiniteError, UserError
from isonet.files.checkpoint import load_state
from isonet.files.storage import write_file
from isonet.models import build_model
from isonet.tools.trained import Trained

Network = Callable[[Tensor], Tensor]  # (N, 3, H, W) -> (N, classes)

_CHECKED_BATCHES = (1, 3)  # images; the network is traced with 2


def export(trained: Trained, form: str, output: Path, opset: int, tolerance: float) -> tuple[float, float]:
    """Write the network to ``output``, which is replaced when the new file has passed its check.

    form: one of ``FORMATS``. opset: of an ONNX file. tolerance: the largest difference of a logit that the check
    allows, as a part of the largest logit.
    Returns what ``compare`` does. Raises ``UserError`` if the check fails.
    """
    encode, load = FORMATS[form]
    unchecked = output.with_name(f".{output.name}.unchecked.tmp")
    try:
        with torch.no_grad():
            write_file(unchecked, encode(trained, opset))
            difference, largest = compare(trained.model, load(unchecked), image_size(trained.cfg))
        if not math.isfinite(largest):
            raise NonFiniteError(f"{trained.path}: the output of the network is not finite, so no file can be checked")
        if not difference <= tolerance * largest:  # nor may it be NaN
            raise UserError(
                f"{output}: the logits of the file differ from those of the network by {difference:.1e}, more than the "
                f"allowed {tolerance * largest:.1e} (--tolerance {tolerance:g} of the largest logit); the new file has "
                "been removed"
            )
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    return difference, largest


def compare(model: nn.Module, exported: Network, size: int) -> tuple[float, float]:
    """The largest difference of logits between two networks for random images, and the largest logit of ``model``.

    size: of the images, in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 3, size, size, generator=generator) for count in _CHECKED_BATCHES]
    expected, found = (torch.cat([network(images) for images in batches]) for network in (model, exported))
    difference = (found - expected).abs().max().item() if found.shape == expected.shape else math.inf
    return difference, expected.abs().max().item()


def metadata(trained: Trained) -> dict[str, str]:
    """What a file carries beside its network: the config as YAML, and as JSON the class names and the preprocessing."""
    size, (mean, std) = image_size(trained.cfg), statistics(trained.cfg)
    resize = size if uses_small_images(trained.cfg) else round(size * EVAL_RESIZE)  # the shorter side, before the crop
    images = {"resize": resize, "crop": size, "mean": list(mean), "std": list(std)}
    return {"config": trained.cfg.dump(), "classes": json.dumps(trained.classes), "images": json.dumps(images)}


def _encode_onnx(trained: Trained, opset: int) -> bytes:
    program: Any = torch.onnx.export(
        trained.model, (_example(trained),), dynamo=True, opset_version=opset, input_names=["images"],
        output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    written = program.model.opset_imports[""]
    if written != opset:
        raise UserError(f"--opset {opset}: this version of torch writes {written} instead; choose that")
    program.model.metadata_props.update(metadata(trained))
    return program.model_proto.SerializeToString()


def _load_onnx(path: Path) -> Network:
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


def _load_torch(path: Path) -> Network:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _encode_safetensors(trained: Trained, _opset: int) -> bytes:
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    return save(weights, metadata=metadata(trained))


def _load_safetensors(path: Path) -> Network:
    """The network that the config in the file describes, with the weights of the file."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        model = build_model(parse_cfg(file.metadata()["config"], str(path)))
        load_state(model, {name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118 - no dictionary
    return model.eval()


FORMATS: dict[str, tuple[Callable[[Trained, int], bytes], Callable[[Path], Network]]] = {
    "onnx": (_encode_onnx, _load_onnx),
    "torch": (_encode_torch, _load_torch),
    "safetensors": (_encode_safetensors, _load_safetensors),
}


def _example(trained: Trained) -> Tensor:
    """Images to trace with: two, because torch would take a batch of one for a constant."""
    size = image_size(trained.cfg)
    return torch.zeros(2, 3, size, size)
