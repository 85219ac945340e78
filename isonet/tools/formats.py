"""The file formats of ``export``: how a network is written in each of them, and how a file runs for its check."""

import io
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isonet import __version__
from isonet.config import image_size, uses_small_images
from isonet.data.augment import EVAL_RESIZE
from isonet.data.build import statistics
from isonet.errors import NonFiniteError, UserError
from isonet.files.archive import unpack
from isonet.files.safetensors import UNNAMED, pack_safetensors, unpack_safetensors
from isonet.files.storage import write_file
from isonet.files.weights import weights_of
from isonet.models import build_model
from isonet.tools.trained import Trained, class_names

Network = Callable[[Tensor], Tensor]  # (N, 3, H, W) -> (N, classes)

_CHECKED_BATCHES = (1, 3)  # images


def export(
    trained: Trained, classes: list[str], form: str, output: Path, opset: int, tolerance: float
) -> tuple[float, float]:
    """Write the network to ``output``, after a check that the content gives the network's logits for random images.

    classes: the class names. form: one of ``FORMATS``. opset: the operator set of an ONNX file. tolerance: the largest
    difference of a logit that the check allows, as a fraction of the largest logit.

    Return the largest difference, and the largest logit of the network. Raises ``UserError`` if the check fails.
    """
    size = image_size(trained.cfg)
    example = torch.zeros(2, 3, size, size)  # torch treats a batch size of 1 as a constant
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 3, size, size, generator=generator) for count in _CHECKED_BATCHES]
    with torch.no_grad():
        content, exported = FORMATS[form](trained, example, metadata(trained, classes), opset)
        expected, logits = (torch.cat([network(images) for images in batches]) for network in (trained.model, exported))
    difference, largest = (logits - expected).abs().max().item(), expected.abs().max().item()
    if not math.isfinite(largest):
        raise NonFiniteError(f"{trained.path}: the output of the network is non-finite, so no file can be checked")
    if not difference <= tolerance * largest:  # NaN fails, too
        raise UserError(
            f"{output} was not written: its logits differ from those of the network by {difference:.1e}, "
            f"more than the allowed {tolerance * largest:.1e} (--tolerance {tolerance:g} of the largest logit)"
        )
    write_file(output, content)
    return difference, largest


def metadata(trained: Trained, classes: list[str]) -> dict[str, str]:
    """Return a file's metadata: the config as YAML, class names and preprocessing as JSON, epoch and version."""
    size, (mean, std) = image_size(trained.cfg), statistics(trained.cfg)
    resize = size if uses_small_images(trained.cfg) else round(size * EVAL_RESIZE)  # the shorter side, before the crop
    images = {"resize": resize, "crop": size, "mean": list(mean), "std": list(std)}
    unnamed = len(classes) - len(trained.classes or []) if classes == class_names(trained) else 0
    about = {"config": trained.cfg.dump(), "classes": json.dumps(classes), "images": json.dumps(images)}
    about |= {"isonet": __version__} | ({} if trained.epoch is None else {"epoch": str(trained.epoch)})
    return about | ({UNNAMED: str(unnamed)} if unnamed else {})


def _onnx(trained: Trained, example: Tensor, about: dict[str, str], opset: int) -> tuple[bytes, Network]:
    import onnxruntime

    program: Any = torch.onnx.export(
        trained.model, (example,), dynamo=True, opset_version=opset, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    written = program.model.opset_imports[""]
    if written != opset:
        raise UserError(f"--opset {opset}: this version of torch writes {written} instead; choose that")
    program.model.metadata_props.update(about)
    content = program.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch(trained: Trained, example: Tensor, about: dict[str, str], _opset: int) -> tuple[bytes, Network]:
    program = torch.export.export(trained.model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=about)
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


def _safetensors(trained: Trained, _example: Tensor, about: dict[str, str], _opset: int) -> tuple[bytes, Network]:
    weights = {name: value.contiguous() for name, value in trained.model.state_dict().items()}
    content = pack_safetensors(weights, about)
    return content, _with_weights(trained, unpack_safetensors(content))


def _published(trained: Trained, _example: Tensor, _about: dict[str, str], _opset: int) -> tuple[bytes, Network]:
    """Add the prefix of DataParallel to the names. The format is the present one of torch, because the format before
    torch 1.6 contains memory addresses and differs between calls.
    """
    weights = OrderedDict((f"module.{name}", value) for name, value in trained.model.state_dict().items())
    buffer = io.BytesIO()
    torch.save({"net": weights}, buffer)
    return buffer.getvalue(), _with_weights(trained, unpack(buffer))


def _with_weights(trained: Trained, state: dict[str, Any]) -> Network:
    """Return a new network of the same config with the weights in ``state``, the content of a file."""
    model = build_model(trained.cfg)
    model.load_state_dict(weights_of(state, trained.path))
    return model.eval()


# Returns the content of a file, and the network that other programs read from it
Exporter = Callable[[Trained, Tensor, dict[str, str], int], tuple[bytes, Network]]
FORMATS: dict[str, Exporter] = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors, "published": _published}
