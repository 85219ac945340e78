"""The optional packages of each extra in ``setup.py``. This module imports nothing.

Messages name the packages and not the extra, because the project is not in a package index: ``pip install
'isonet[zoo]'`` would find another package or none.
"""

EXTRAS = {
    "plot": ["matplotlib>=3.8"],  # curves, isometry reports, sweeps
    "tensorboard": ["tensorboard>=2.14"],
    "onnx": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.2", "safetensors>=0.4"],  # isonet.tools.export
    "zoo": ["gdown>=6.3"],  # --ckpt zoo:NAME
    "shards": [],  # kept for commands of earlier versions: shards need no other package
}


def install(extra: str) -> str:
    """Return the command that installs the packages of ``extra``. It needs no checkout of the project."""
    return "pip install " + " ".join(f"'{package}'" for package in EXTRAS[extra])
