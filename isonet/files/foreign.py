"""Recognises files of other programs by their content. The results are ends of messages: the format, and a remedy."""

from collections.abc import Sequence

_EXPORTED = "not a checkpoint; name the checkpoint that it was exported from"
_PACKED = "unpack it first, e.g. with"
_STARTS = {
    b"\x1f\x8b": f"is compressed by gzip: {_PACKED} gunzip",
    b"\x89HDF\r\n": "is an HDF5 file, as Keras writes it, and not a checkpoint of torch",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself: fetch it with git lfs pull",
    b"<": "is a web page or XML, which a failed download leaves: download the file again",
}
_ONNX_NEXT = b"\x12\x1a\x22\x2a\x32\x3a\x42"  # the fields that may follow the version of the format in an ONNX file


def describe_file(data: bytes) -> str:
    """Return the format of a file that is neither a zip archive nor a pickle, as the end of a sentence."""
    for start, what in _STARTS.items():
        if data[:64].lstrip().startswith(start):
            return what
    if not data:
        return "is empty and not a checkpoint"
    if data[:1] == b"\x08" and data[2:3] and data[2] in _ONNX_NEXT:
        return f"is an ONNX model, {_EXPORTED}"
    if data[257:262] == b"ustar":
        return f"is a tar archive and not a checkpoint: {_PACKED} tar -xf"
    if data[:1] == b"{" and b'"weight_map"' in data:
        return "is the index of a checkpoint in several files, which cannot be read: save its weights in one file"
    return "is not a checkpoint"


def describe_archive(names: Sequence[str]) -> str:
    """Return the format of a zip archive that contains these names, or "" for a checkpoint of torch."""
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
