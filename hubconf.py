"""The networks for ``torch.hub.load(FOLDER_OR_REPOSITORY, "isonet18", pretrained=True)``; see isonet/builders.py.

``pretrained`` needs the package gdown as well, unless the authors' file is in torch's hub cache already.
"""

from isonet.builders import (  # noqa: F401 - entry points
    cifar_isonet,
    isonet18,
    isonet34,
    isonet50,
    isonet101,
    r_isonet18,
    r_isonet34,
    r_isonet50,
    r_isonet101,
)

dependencies = ["torch", "numpy", "yacs", "yaml", "tqdm", "filelock"]
