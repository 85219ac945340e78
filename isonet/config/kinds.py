"""The kinds of values that config keys take.

A kind has three members. ``takes`` is a phrase for the required type, for error messages. ``read(value)`` converts a
value, or its text in a file or on a command line, to the type of the key. It raises ``ValueError``, ``TypeError`` or
``OverflowError`` if it cannot. ``fault(value)`` returns what is wrong with a converted value, as the end of a sentence
that begins with the key, or "" if nothing is wrong.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from isonet.config.file import shown

AUTO = "auto"

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # as in YAML
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_LONGEST_NUMBER = 400  # characters; the largest float has 309 digits
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes, on Linux and its file systems


class Bool:
    """True or False."""

    takes: ClassVar[str] = "True or False"

    def read(self, value: Any) -> bool:
        if isinstance(value, str):
            value = _BOOLS.get(value.strip().lower())
        if not isinstance(value, bool):
            raise TypeError(value)
        return value

    def fault(self, value: bool) -> str:
        return ""


class BoolOrAuto(Bool):
    """True, False or ``"auto"``."""

    takes: ClassVar[str] = "True, False or auto"

    def read(self, value: Any) -> bool | str:  # type: ignore[override]
        return AUTO if isinstance(value, str) and value.strip().lower() == AUTO else super().read(value)


@dataclass(frozen=True)
class _Number:
    low: float
    high: float

    def fault(self, value: float) -> str:
        within = self.low <= value <= self.high  # False for nan
        return "" if within else f"must be between {self.low} and {self.high}, got {shown(value)}"


class Int(_Number):
    """A whole number from ``low`` to ``high``."""

    takes: ClassVar[str] = "a whole number"

    def read(self, value: Any) -> int:
        if isinstance(value, str) and len(value) <= _LONGEST_NUMBER:
            return int(value, 0)
        if type(value) is not int:  # isinstance would accept a bool
            raise TypeError(value)
        return value


class Float(_Number):
    """A number from ``low`` to ``high``."""

    takes: ClassVar[str] = "a number"

    def read(self, value: Any) -> float:
        if (isinstance(value, str) and len(value) <= _LONGEST_NUMBER) or type(value) in (int, float):
            return float(value)
        raise TypeError(value)


class Text:
    """Text that can be a path and that logs, checkpoints and terminals can show."""

    takes: ClassVar[str] = "text"

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value

    def fault(self, value: str) -> str:
        for char in value:
            if unicodedata.category(char) in ("Cc", "Cs"):  # control characters, halves of surrogate pairs
                hint = "; if it is a letter, set PYTHONUTF8=1" if "\udc80" <= char <= "\udcff" else ""
                return f"must not contain the character {char!a}, got {shown(value)}{hint}"
        path = value.encode()
        if len(path) > _LONGEST_PATH or max(map(len, path.split(b"/"))) > _LONGEST_NAME:
            limits = f"at most {_LONGEST_PATH} bytes, and {_LONGEST_NAME} bytes between slashes"
            return f"must have {limits}, got {shown(value)}"
        return ""


class FilePath(Text):
    """A path. In config files and on the command line, ~ and $NAME are expanded as in a shell."""

    def expanded(self, value: Any) -> str:
        """Return ``value`` with ~ and $NAME expanded, or unchanged if such a file exists.

        Raises ``KeyError`` if the variable is not set.
        """
        path = self.read(value)
        if os.path.lexists(path):
            return path
        return _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], os.path.expanduser(path))


class OneOf(Text):
    """One of a few words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def fault(self, value: str) -> str:
        return "" if value in self.choices else f"must be one of {', '.join(self.choices)}, got {shown(value)}"


@dataclass(frozen=True)
class ListOf:
    """A list, or text such as ``[1, 2]`` or ``a,b``. The text is not evaluated as Python."""

    items: Int | Float | OneOf

    @property
    def takes(self) -> str:
        return "names such as [a, b]" if isinstance(self.items, OneOf) else f"a list, each {self.items.takes}: [1, 2]"

    def read(self, value: Any) -> list[Any]:
        return [self.items.read(item) for item in self._split(value)]

    def fault(self, value: Sequence[Any]) -> str:
        faults = (self.items.fault(item) for item in value)
        return next((f"has a value that {fault}" for fault in faults if fault), "")

    def _split(self, value: Any) -> Sequence[Any]:
        if isinstance(value, list | tuple):
            return value
        if not isinstance(value, str):
            raise TypeError(value)
        text = value.strip()
        if text[:1] + text[-1:] in ("[]", "()"):
            text = text[1:-1].strip()
        elif "," not in text and not isinstance(self.items, OneOf):
            raise ValueError(value)  # a single number is not a list
        return [item.strip(" '\"") for item in text.removesuffix(",").split(",")] if text else []


Kind = Bool | Int | Float | Text | ListOf
