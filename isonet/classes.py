"""The names of classes: their order, the labels that follow from them, and the WordNet ids of ImageNet.

Names are compared in their composed form (NFC), because macOS decomposes accents. This module does not import torch, so
that a wrong ``--classes`` is refused before torch is imported.
"""

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

from isonet.errors import DataError, UserError, printable

log = logging.getLogger("isonet")

_WORDNET_ID = re.compile(r"(?<![0-9a-z])n[0-9]{8}(?![0-9a-z])")  # as in n01440764_tench and 000_n01440764
_SHOWN = 5  # the number of names in a message


def composed(name: str) -> str:
    """Return ``name`` with each accented letter as one character (NFC), the form for comparing and sorting."""
    return unicodedata.normalize("NFC", name)


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all ``names`` are whole numbers, such as 7 or 007."""
    return all(name.isascii() and name.isdecimal() for name in names)


def in_order(names: Sequence[str], where: object = "the data set") -> list[str]:
    """Return the composed ``names`` of class folders in the order of their labels.

    Whole numbers are ordered as numbers, and other names as text. where: the data set, for messages. Raises
    ``DataError`` if two names are the same number or the same text.
    """
    numbers = are_numbers(names)

    def value(name: str) -> tuple[int, str]:
        digits = name.lstrip("0")
        return (len(digits), digits) if numbers else (0, composed(name))

    ordered = sorted(names, key=value)
    for first, second in pairwise(ordered):
        if value(first) == value(second):
            same = "number" if numbers else "name, with composed and decomposed characters"
            raise DataError(f"{printable(where)}: {first!a} and {second!a} have the same {same}; merge or rename them")
    return [composed(name) for name in ordered]


def shortened(names: Sequence[str]) -> str:
    """Return the first few of ``names`` as text for a message, each cut to 80 characters."""
    return printable(", ".join(name[:80] for name in names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def labels_of(names: Iterable[str], classes: Sequence[str], where: Path) -> list[int]:
    """Return the label of each of ``names``: its position in ``classes``.

    names: the classes of the data at ``where``. Logs a warning if the data lack some classes. Raises ``DataError`` for
    a name that is not in ``classes``, and if ``classes`` contains a name twice.
    """
    position = {composed(name): label for label, name in enumerate(classes)}
    if len(position) < len(classes):
        twice = next(name for label, name in enumerate(classes) if position[composed(name)] != label)
        raise DataError(f"{printable(where)}: two outputs of the network are called {printable(twice)}; name each once")
    keys = [composed(name) for name in names]
    if unknown := sorted({*keys} - {*position}):
        raise DataError(
            f"{printable(where / unknown[0])}: not one of the {len(classes)} classes of the training set or checkpoint "
            f"({shortened(classes)}); rename or remove it, or name the network's outputs with test.py --classes FILE"
        )
    if missing := [name for name in position if name not in {*keys}]:
        example = f"{len(missing)} of the {len(classes)} classes, e.g. {printable(missing[0])}"
        log.warning("%s lacks %s", printable(where), example)
    return [position[key] for key in keys]


@cache
def wordnet_ids() -> tuple[str, ...]:
    """Return the WordNet ids of the 1,000 classes of ImageNet (ILSVRC 2012) in the order of their labels."""
    file = resources.files("isonet").joinpath("data/imagenet/wordnet_ids.txt")
    return tuple(file.read_text(encoding="ascii").split())


def imagenet_classes(names: Sequence[str], outputs: int) -> list[str] | None:
    """Return the 1,000 classes of ImageNet in the order of their labels, or None if ``names`` are other classes.

    names: the class names of the data, for some or all classes. A name is a WordNet id, such as n01440764, or contains
    one, such as N01440764_tench. In the result, it replaces the id. Returns None if the network has another number of
    ``outputs``, if a name contains no id of ImageNet, or if two names contain the same id.
    """
    found = {_id_in(name): name for name in names}
    ids = wordnet_ids()
    if outputs != len(ids) or len(found) < len(names) or not {*found} <= {*ids}:
        return None
    return [found.get(each, each) for each in ids]


def _id_in(name: str) -> str:
    match = _WORDNET_ID.search(name.lower())
    return match[0] if match else ""


def check_guess(names: Sequence[str], outputs: int, where: Path) -> None:
    """Check the guess that the first outputs of a network without class names are for ``names``, in their order.

    Logs a warning that the labels are a guess. Raises ``DataError`` if the names contradict the guess. WordNet ids
    contradict it if one of them is not an id of ImageNet or occurs twice. Numbers contradict it if there are fewer of
    them than outputs and they do not count from 0: for example, 1 may be the first output or the second.
    """
    remedy = "name the outputs of the network with test.py --classes FILE"
    ids, known = [_id_in(name) for name in names], {*wordnet_ids()}
    if outputs == len(known) and any(ids):
        odd = next(name for at, name in enumerate(names) if ids[at] not in known or ids[at] in ids[:at])
        raise DataError(
            f"{printable(where / odd)}: not a WordNet id of ImageNet's 1,000 classes, or not the only class with this "
            f"id; remove or rename it, or {remedy}"
        )
    what = f"{printable(where)}: {len(names)} classes for the {outputs} outputs of a network without class names"
    from_0 = [*map(str, range(len(names)))]
    if len(names) < outputs and are_numbers(names) and [name.lstrip("0") or "0" for name in names] != from_0:
        raise DataError(f"{what}, and the numbers {shortened(names)} do not say which outputs; {remedy}")
    log.warning("%s: labels count from 0 in the order of the classes, which is a guess; %s", what, remedy)


def read_names(file: Path) -> list[str]:
    """Return the names in a text file, one per line. Bytes that are not UTF-8 become surrogates, as in file names.

    Raises ``UserError`` if the file cannot be read.
    """
    try:
        return [line.strip() for line in file.read_text("utf-8-sig", "surrogateescape").splitlines()]
    except OSError as error:
        raise UserError(f"{printable(file)}: the names of the classes cannot be read ({error.strerror})") from None


def check_names(names: Sequence[str], outputs: int, source: object, known: Sequence[str] = ()) -> None:
    """Raise ``UserError`` unless ``names`` has one name for each output of the network.

    source: the file with the names, for messages. known: the checkpoint's names. The same names in another order are an
    error, too.
    """
    if len(names) != outputs or not all(names):
        empty = f", and line {names.index('') + 1} is empty" if "" in names else ""
        raise UserError(
            f"{printable(source)} names {len(names)} classes{empty}; --classes takes a file with a line for each of "
            f"the {outputs} classes of the network (DATASET.NUM_CLASSES)"
        )
    before, now = [composed(name) for name in known], [composed(name) for name in names]
    if before != now and sorted(before) == sorted(now):
        line = next(at for at, name in enumerate(now) if name != before[at])
        raise UserError(
            f"{printable(source)} has the class names of the checkpoint in another order: line {line + 1} is "
            f"{printable(now[line])}, and the checkpoint has {printable(before[line])}; leave --classes out, or "
            "rename the classes of the data set if their numbers mean other classes"
        )
