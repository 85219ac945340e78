"""Show on one GPU, in at most eight minutes, all that this project promises of one.

python -m benchmarks.gpu                                      on the first GPU; the rows go to outputs/bench/gpu.json
python -m benchmarks.gpu --device cpu --toy --json toy.json   the same functions on the CPU, on tiny networks

The sections are the tests of GPUs, equality with the CPU, step times against the published formulation, the penalty's
share of a step, ResNet-50, torchrun and DataParallel, resume to the bit, and epochs of CIFAR-10. Each has a share of
the time, and leaves the rest to the next. The file is complete after every row. The exit code is 1 if a section fails
or two results differ by more than their tolerance: the notes of these rows begin with "error:" or "fail:".

Needed are torch, torchvision, numpy, yacs and tqdm. Without pytest or a C compiler, the rows that need it say so.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import processes

PACKAGES = ("torch", "torchvision", "numpy", "yacs", "tqdm", "PIL")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda, the first GPU")
    parser.add_argument("--toy", action="store_true", help="use tiny networks and one repetition")
    parser.add_argument("--minutes", type=float, default=8.0, help="the time for everything (default: 8)")
    parser.add_argument(
        "--json", type=Path, default=Path("outputs/bench/gpu.json"), metavar="FILE",
        help="write the rows to FILE, and the logs of the runs to the folder of its name (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="the folder that contains cifar10-jpg/ or cifar10-jpg.tar.xz (default: data, shared/data, ../shared/data)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not 0 <= args.minutes < math.inf:
        parser.error(f"--minutes must be 0 or more, got {args.minutes}")
    if args.json.suffix != ".json":  # the folder of the logs has the name without it
        parser.error(f"--json takes a file that ends in .json, got {args.json}")
    return args


def main(args: argparse.Namespace) -> int:
    """Run the sections, and return the exit code."""
    # torch 2.11 names its folder after the user, and fails for a user without a name, as in a container
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/isonet-compiled-{os.getuid()}")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # train.py would use a GPU
    if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
        print(f"error: missing: {', '.join(missing)}; install them, e.g. with pip install -e .", file=sys.stderr)
        return 2
    import torch  # from here on, imports take seconds

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no GPU; --device cpu --toy tries everything on the CPU", file=sys.stderr)
        return 2
    from benchmarks.gpu import sections
    from isonet.errors import UserError

    try:
        return sections.run(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    arguments = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the runs in progress end, too
    processes.preload()
    sys.exit(main(arguments))
