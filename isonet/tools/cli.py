"""The options that all scripts share, and the checks before torch is imported, which takes seconds."""

import argparse
import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from yacs.config import CfgNode

from isonet.classes import check_names, read_names
from isonet.config import check_overrides, load_cfg, uses_small_images
from isonet.config.habits import in_place_of
from isonet.config.keys import KEYS
from isonet.depths import stage_depths
from isonet.errors import EXIT_USER_ERROR, DataError, StorageError, UserError
from isonet.files.run_folder import find_checkpoint
from isonet.files.storage import check_kind
from isonet.launch import is_launched, is_main, parse_gpu_ids
from isonet.published import PREFIX, published

GPUS_HELP = (
    "ids of the GPUs to use, e.g. --gpus 0,1; the weights are on the first (default: all visible GPUs, else the CPU); "
    "under torchrun each process uses one of them"
)

_CIFAR_FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}  # torchvision's names
_TILDE = re.compile(r"(?:^|(?<==))~[^/]*")
_NEGATIVE_NUMBER = re.compile(r"-[0-9.]")  # argparse treats -1e-3 and -1,-0.5 as options


class Parser(argparse.ArgumentParser):
    """Accepts overrides before, between and after options. A mistake gives one line and exit code 2.

    reports: whether a launched rank reports a mistake to the other ranks, which would otherwise wait for it.
    """

    reports = False
    words: Sequence[str] = ()  # the words of the command line

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse ``argv``. A word that begins like a negative number, such as -1e-3, is a value and not an option.

        ~ at the start of a word or of ``--option=VALUE`` is expanded.
        """
        words = [_TILDE.sub(lambda match: os.path.expanduser(match[0]), word, count=1) for word in argv]
        self.words = [f" {word}" if _NEGATIVE_NUMBER.match(word) else word for word in words]
        given = [word.partition("=")[0] for word in self.words]
        if twice := [option for option in self._option_string_actions if given.count(option) > 1]:
            self.error(f"{twice[0]} is given twice; keep one of them")
        # argparse cannot intermix options and positional arguments of a subcommand
        args = self.parse_args(self.words) if self._subparsers else self.parse_intermixed_args(self.words)
        self.check_once(getattr(args, "opts", []))
        return args

    def check_once(self, opts: Sequence[str]) -> None:
        """Exit with an error if a key is given twice in ``KEY VALUE`` pairs, as the reader of a config file does."""
        keys = opts[::2]
        if twice := [key for key in keys if keys.count(key) > 1]:
            self.error(f"key {twice[0]:.160} is given twice; keep one of them")

    def error(self, message: str) -> NoReturn:
        """Print ``message`` and a hint for an unknown option in one line, under a launcher only on rank 0, and exit."""
        hint = ""
        if message.startswith("unrecognized arguments: "):
            hint = self._hint(message.split(": ", 1)[1].split()[:1])
        elif "required" in message:
            hint = self._hint([word for word in self.words if word.startswith("-")])
        text = f"{message}{hint} ({self.prog} --help lists all options)"
        if self.reports and is_launched():
            from isonet.rendezvous import reported  # imports torch

            text = reported(text)
        elif not is_main():
            text = ""
        self.exit(EXIT_USER_ERROR, text and f"error: {text}\n")

    def _hint(self, words: Sequence[str]) -> str:
        """Return a hint for the first of ``words`` that is an option of another project or is similar to an option."""
        options, has_overrides = self._option_string_actions, any(action.nargs == "*" for action in self._actions)
        for word in (word.partition("=")[0] for word in words):
            if word in options:
                continue
            for replacement in in_place_of(word):
                first = replacement.split()[0]
                if first in options or (first[0] != "-" and (has_overrides or first not in {*KEYS, "KEY"})):
                    return f"; write {replacement} instead of {word}"
            if near := difflib.get_close_matches(word, options, n=1):
                return f"; did you mean {near[0]}?"
        return ""


def tool_parser(tool: str, description: str | None, examples: str) -> Parser:
    """Return a parser with ``--debug`` for ``python -m isonet.tools.TOOL``, or for a script if ``tool`` is empty."""
    parser = Parser(
        prog=f"python -m isonet.tools.{tool}" if tool else None,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error, e.g. for a bug report")
    return parser


def make_parser(
    description: str | None, examples: str, cfg_required: bool = True, gpus_help: str = GPUS_HELP, tool: str = ""
) -> Parser:
    """Return a ``tool_parser`` with ``--cfg``, ``--gpus`` and trailing ``KEY VALUE`` overrides."""
    parser = tool_parser(tool, description, examples)
    parser.add_argument("--cfg", required=cfg_required, metavar="FILE", help="the config, e.g. configs/self_ISO29.yaml")
    parser.add_argument("--gpus", metavar="IDS", help=gpus_help)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="overrides of config keys, e.g. ISON.DROPOUT False ISON.DEPTH 20"
    )
    return parser


def positive(text: str) -> int:
    """Return ``text`` as an integer of at least 1. This is the type of an option."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Split ``words`` before the first config key, into other arguments and overrides.

    A word such as MODEL.JPG looks like a key. It is a file if a file of this name exists, and otherwise a misspelt key.
    """
    nodes = {name.partition(".")[0] for name in KEYS if "." in name}
    like_a_key = re.compile(rf"(?:{'|'.join(nodes)})\.[A-Z_]+")

    def is_key(word: str) -> bool:
        return word in KEYS or bool(like_a_key.fullmatch(word) and not os.path.lexists(word))

    first = next((at for at, word in enumerate(words) if is_key(word)), len(words))
    return words[:first], words[first:]


def check_gpu_ids(gpus: str | None) -> None:
    """Raise ``DeviceError`` if ``--gpus`` is given and is not a list of ids. Only torch can check that they exist."""
    if gpus is not None:
        parse_gpu_ids(gpus)


def read_network(cfg_path: str, opts: Sequence[Any]) -> CfgNode:
    """Return the config of a file with overrides. Raises ``ConfigError`` also if there is no network of its depth."""
    cfg = load_cfg(cfg_path, opts)
    stage_depths(cfg.ISON.DEPTH, cfg.ISON.TRANS_FUN, imagenet=not uses_small_images(cfg))
    return cfg


def look_for_checkpoint(cfg: CfgNode | None, ckpt: str) -> None:
    """Raise ``UserError`` if there is no checkpoint ``ckpt`` or, after ``zoo:``, no published checkpoint."""
    if ckpt.startswith(PREFIX):
        published(ckpt)
    else:
        find_checkpoint(cfg, ckpt)


def look_for_network(args: argparse.Namespace) -> CfgNode | None:
    """Return the config of ``--cfg``, if given. Raises ``UserError`` for a wrong ``--gpus``, override or ``--ckpt``."""
    check_gpu_ids(args.gpus)
    check_overrides(args.opts)
    cfg = read_network(args.cfg, args.opts) if args.cfg else None
    if args.ckpt:
        look_for_checkpoint(cfg, args.ckpt)
    return cfg


def look_for_classes(file: str | None, cfg: CfgNode | None) -> None:
    """Raise ``UserError`` if ``file`` cannot be read, or does not have one name for each output of the network."""
    if file and not Path(file).is_fifo():  # a pipe can be read only once
        names = read_names(Path(file))
        if cfg is not None:
            check_names(names, cfg.DATASET.NUM_CLASSES, file)


def look_for_images(cfg: CfgNode, splits: Iterable[str]) -> None:
    """Raise ``DataError`` if the folder of one of the ``splits`` is missing.

    The loader checks the content of the folder, and data sets that are in shards or to be downloaded.
    """
    root, name = Path(cfg.DATASET.ROOT), cfg.DATASET.NAME
    if name == "digits" or cfg.DATASET.DOWNLOAD or cfg.RUNTIME.INPUT == "shards":
        return
    hint = f"images belong at {root / name}/{{train,val}}/<class>/ (see DATASET.ROOT, DATASET.NAME)"
    folders = [root / name / split for split in splits]
    if name in _CIFAR_FOLDERS:
        hint = f"unpack the archive of {name} in {root}, or download it with the override DATASET.DOWNLOAD True"
        folders = [root / _CIFAR_FOLDERS[name]]
    for folder in folders:
        if not os.path.lexists(folder) and not (folder.parent / "shards" / folder.name).exists():
            raise DataError(f"{folder}: no such folder; {hint}")


def look_for_folder_of(option: str, file: str | None) -> None:
    """Raise ``UserError`` if the result of ``option`` cannot be written to ``file``."""
    if file is None:
        return
    try:
        check_kind(Path(file))
    except StorageError as error:
        raise UserError(f"{option} {error}") from None
    _check_writable(option, file, os.path.dirname(file) or ".")


def look_for_json(file: str | None) -> None:
    """Raise ``UserError`` if the result of ``--json`` cannot be written to ``file``, or ``file`` has other content.

    ``--json`` replaces the figures of an earlier evaluation, and no other file.
    """
    look_for_folder_of("--json", file)
    if file and os.path.isfile(file) and os.path.getsize(file):
        try:
            ours = "top1" in json.loads(Path(file).read_text("utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            ours = False
        if not ours:
            raise UserError(f"--json {file} is not the result of an evaluation; name another file, or remove it")


def look_for_output_folder(option: str, folder: str) -> None:
    """Raise ``UserError`` if the ``folder`` of ``option`` cannot be created or written to."""
    made = os.path.abspath(folder)
    while not os.path.lexists(made):
        made = os.path.dirname(made)
    _check_writable(option, folder, made)


def _check_writable(option: str, place: str, folder: str) -> None:
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {place}: {folder} is not a writable folder; name another place")


def as_cell(text: str) -> str:
    """Return ``text`` for a CSV file. An apostrophe precedes text that a spreadsheet would run as a formula."""
    if not text.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
