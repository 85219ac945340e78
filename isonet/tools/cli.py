"""The options that all scripts share."""

from __future__ import annotations

import argparse

GPUS_HELP = "GPUs to use, the weights live on the first, e.g. --gpus 0,1 (default: all visible ones, else the CPU)"


def make_parser(
    description: str, examples: str, cfg_required: bool = True, gpus_help: str = GPUS_HELP
) -> argparse.ArgumentParser:
    """A parser with ``--cfg``, ``--gpus``, ``--debug`` and trailing ``KEY VALUE`` overrides."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--cfg", required=cfg_required, metavar="FILE", help="the config, e.g. --cfg configs/cifar10_ISO110.yaml"
    )
    parser.add_argument("--gpus", metavar="IDS", help=gpus_help)
    parser.add_argument("--debug", action="store_true", help="show where an error arose, e.g. --cfg mine.yaml --debug")
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys to override, after all other options, e.g. ISON.DROPOUT False SOLVER.BASE_LR 0.02",
    )
    return parser
