"""Reads and writes weights as ``.safetensors``. The files of ``export`` also contain the config and the classes."""

import importlib.util
import json
from typing import Any

from torch import Tensor

from isonet.files.archive import damage
from isonet.files.pickles import ArchiveError

UNNAMED = "unnamed_classes"  # metadata: the number of classes at the end of the list without a name in the checkpoint


def is_safetensors(data: bytes | memoryview) -> bool:
    """Return whether ``data`` begins with the length of a JSON header in eight bytes, as a .safetensors file does."""
    return data[4:9] == b"\0\0\0\0{"


def pack_safetensors(weights: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a file. The same arguments give the same bytes."""
    from safetensors.torch import save

    content = save(weights, metadata=metadata)
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # the order of the library varies
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, content[start:]])


def unpack_safetensors(data: bytes) -> dict[str, Any]:
    """Return the weights as ``model`` and, if ``export`` wrote the file, ``config``, ``classes`` and ``epoch``.

    Raises ``ArchiveError`` for a damaged file, and if the package safetensors is missing.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise ArchiveError("needs the package safetensors, which is not installed: pip install safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that torch does not have
        raise damage(error) from None
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    return {"model": weights} | _of_this_project(about)


def _of_this_project(about: dict[str, str]) -> dict[str, Any]:
    """Return the entries of a checkpoint from the metadata of an exported file."""
    if "config" not in about:
        return {}
    entries: dict[str, Any] = {key: about[key] for key in ("config", "isonet") if key in about}
    try:
        classes = json.loads(about["classes"])
        entries["classes"] = classes[: len(classes) - int(about.get(UNNAMED, 0))] or None
        entries["epoch"] = int(about["epoch"])
    except (KeyError, ValueError, TypeError):  # written by another program, or by a former version
        pass
    return entries
