"""Recognises files of other programs by their content, so that a message can say what they are and what to do."""

from collections.abc import Sequence

_EXPORTED = "not a checkpoint; name the checkpoint that it was exported from"
_PACKED = "unpack it first, e.g. with"
_STARTS = {
    b"\x1f\x8b": f"is compressed by gzip: {_PACKED} gunzip",
    b"\x89HDF\r\n": "is an HDF5 file, as Keras writes them, and not a checkpoint of torch",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull",
    b"<": "is a web page or XML, as a failed download leaves it: download the file again",
}
_ONNX_NEXT = b"\x12\x1a\x22\x2a\x32\x3a\x42"  # the fields that may follow the version of the format in an ONNX file


def what_it_is(data: bytes) -> str:
    """Return what a file is that is neither a zip archive nor a pickle, as the end of a sentence."""
    for start, what in _STARTS.items():
        if data[:64].lstrip().startswith(start):
            return what
    if not data:
        return "is empty, so not a checkpoint"
    if data[:1] == b"\x08" and data[2:3] and data[2] in _ONNX_NEXT:
        return f"is an ONNX model, {_EXPORTED}"
    if data[257:262] == b"ustar":
        return f"is a tar archive and not a checkpoint: {_PACKED} tar -xf"
    if data[:1] == b"{" and b'"weight_map"' in data:
        return "is the index of a checkpoint in several files, which is not read: save its weights in one file"
    return "is not a checkpoint"


def what_archive_it_is(names: Sequence[str]) -> str:
    """Return what a zip archive with parts of these names is, or "" for a checkpoint of torch."""
    parts = {name.partition("/")[2] for name in names}
    if any(part.startswith("code/") for part in parts) and "constants.pkl" in parts:
        return f"is a TorchScript program, {_EXPORTED}"
    if "archive_format" in parts or any(name.startswith("serialized_exported_program") for name in names):
        return f"is an exported program of torch, {_EXPORTED}"
    if sum(name.endswith("/data.pkl") for name in names) == 1:
        return ""
    inner = next((name for name in names if name.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors"))), None)
    if inner is not None:
        return f"is a zip archive that holds {inner!r:.80}: {_PACKED} unzip"
    return "is a zip archive and not a checkpoint"
