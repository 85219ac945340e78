"""The options that all scripts share."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import NoReturn

from yacs.config import CfgNode

from isonet.config import default_cfg
from isonet.errors import EXIT_USER_ERROR

GPUS_HELP = (
    "GPUs to use, the weights live on the first, e.g. --gpus 0,1 (default: all visible ones, else the CPU); "
    "under torchrun each process takes one of them"
)


_NEGATIVE_NUMBER = re.compile(r"-[0-9.]")  # argparse takes -1e-3 and -1,-0.5 for options


class Parser(argparse.ArgumentParser):
    """Takes overrides before, between and after options; a mistake is one line and exit code 2."""

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments; one that begins as a negative number, such as -1e-3, is a value, not an option."""
        return self.parse_intermixed_args([f" {a}" if _NEGATIVE_NUMBER.match(a) else a for a in argv])

    def error(self, message: str) -> NoReturn:
        """Print one line, with the nearest option if one is unknown, and exit."""
        hint = ""
        if message.startswith("unrecognized arguments: "):
            unknown = message.split(": ", 1)[1].split()[0].split("=")[0]
            near = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
        first = os.environ.get("RANK", "0") == "0"  # of the processes of a launcher, which all are given the same
        self.exit(EXIT_USER_ERROR, first * f"error: {message}{hint} ({self.prog} --help lists all options)\n")


def make_parser(description: str, examples: str, cfg_required: bool = True, gpus_help: str = GPUS_HELP) -> Parser:
    """A parser with ``--cfg``, ``--gpus``, ``--debug`` and trailing ``KEY VALUE`` overrides."""
    parser = Parser(
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


def tool_parser(tool: str, description: str | None, examples: str) -> Parser:
    """A parser with ``--debug`` for ``python -m isonet.tools.TOOL``, a tool that takes no config."""
    parser = Parser(
        prog=f"python -m isonet.tools.{tool}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show where an error arose")
    return parser


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Other arguments, and overrides, which begin at the first word that looks like a key of the config."""
    cfg = default_cfg()
    nodes = "|".join(name for name, value in cfg.items() if isinstance(value, CfgNode))
    leaves = "|".join(name for name, value in cfg.items() if not isinstance(value, CfgNode))
    key = re.compile(rf"(?:{nodes})\.\w+|{leaves}")
    first = next((at for at, word in enumerate(words) if key.fullmatch(word)), len(words))
    return words[:first], words[first:]
