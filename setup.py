"""ISONet as a package: ``pip install -e .``, with extras such as ``pip install -e '.[dev]'``."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = runpy.run_path(str(Path(__file__).parent / "isonet/extras.py"))["EXTRAS"]

setup(
    name="isonet",
    version="0.1.0",
    description="Deep isometric networks: ConvNets that train without normalisation and without shortcuts",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["isonet", "isonet.*"]),
    package_data={"isonet": ["py.typed"], "isonet.data": ["digits/*", "imagenet/*"]},
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "yacs>=0.1.8",
        "numpy>=1.24",
        "pillow>=11.3",  # reads AVIF
        "filelock>=4.3",
        "tqdm>=4.64",
    ],
    extras_require={
        **EXTRAS,
        "all": sorted(set().union(*EXTRAS.values())),
        "dev": [
            *sorted(set().union(*EXTRAS.values())),
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "mypy>=1.13",
            "scikit-learn>=1.3",
            "timm>=1.0",
            "hypothesis>=6.100",
            "webdataset>=0.2.90",
        ],
    },
)
