"""The text of a config file, read strictly: text or lists of text below keys, each key given once.

YAML can do more than a config needs. Tags make objects, and if a key is given twice, the last one wins silently. Both
are refused, and so is an alias to a list or a node. Each refusal is one sentence with a line number. YAML's own rules
for numbers, dates and booleans are not used: a value stays text, and its key reads it as it does on a command line.
"""

from __future__ import annotations

import difflib
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # comes with yacs

from isonet.errors import ConfigError

MAX_BYTES = 100_000  # fifty times a config with every key; PyYAML reads this much in about two seconds
MAX_DEPTH = 10  # of nested brackets and nodes; the tree has two levels and a list is the third
_PATH_WIDTH, _PROBLEM_WIDTH = 200, 160  # characters in a message

Pairs = list[tuple[str, Any]]


def read_pairs(path: Path) -> Pairs:
    """Dotted keys and values of a YAML file. Raises ``ConfigError`` for one that is not a plain config."""
    name, data = where(path), b""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)  # no more: a file of /proc has no size to check before
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such config file{_neighbour(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise ConfigError(f"{name}: is {what}; a config is a .yaml file")
    if path.suffix not in (".yaml", ".yml"):
        what = f"a {_clip(path.suffix, 20)} file" if path.suffix else "a file without an ending"
        raise ConfigError(f"{name}: is {what}, which is never executed; a config is a .yaml file")
    _refuse_long(data, name)
    try:
        return parse_pairs(data.decode(), name)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}: line {line} is not UTF-8 text; save the file as UTF-8") from None


def parse_pairs(text: str, source: str) -> Pairs:
    """Dotted keys and values of YAML text. ``source`` names it in messages."""
    source = where(source)
    if not isinstance(text, str):  # from a checkpoint, which can contain anything
        raise ConfigError(f"{source}: expected YAML text, found {type(text).__name__}")
    _refuse_long(text.encode("utf-8", "surrogatepass"), source)
    try:
        tree = _StrictLoader(text).get_single_node()
        if isinstance(tree, yaml.MappingNode):
            return list(_pairs(tree, seen=set()))
        value = None if tree is None else _value(tree)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {_explained(error, text)}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # PyYAML lets some of Python's own exceptions through, such as that of an escape beyond Unicode
        raise ConfigError(f"{source}: not valid YAML: an escape or a number in it cannot be read; remove it") from None
    if value is not None:
        found = "a list" if isinstance(value, list) else shown(value)
        raise ConfigError(f"{source}: expected KEY: VALUE lines, found {found}")
    return []


def flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested dictionaries with its dotted key; an empty dictionary is a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """``value`` for a message: on one line, and short even if it is large."""
    return " ".join(_SHORT.repr(value).split())


def where(source: str | Path) -> str:
    """The name of a file for the head of a message; of a long name the end, which says more."""
    text = str(source)
    return text if len(text) <= _PATH_WIDTH else "..." + text[-_PATH_WIDTH:]


class _ShortRepr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= 100:
            return str(x)
        return f"a whole number of about {int(x.bit_length() * 0.30103) + 1} digits"  # str() refuses more than 4300

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: N802 - reprlib looks for the name of the type
        return "nothing"


_SHORT = _ShortRepr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class _RefusedError(yaml.MarkedYAMLError):
    """Valid YAML that a config does not need."""


class _StrictLoader(yaml.BaseLoader):  # which reads every scalar as text
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.depth += 1
        if self.depth > MAX_DEPTH:  # well before Python's own limit
            raise _refused(f"nested more than {MAX_DEPTH} deep; a config is keys below nodes", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        # An alias to a text is harmless, those to lists and nodes can multiply
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise _refused(f"alias *{_clip(event.anchor, 40)} repeats a whole list or node; write it out", event)
        if node.tag not in _PLAIN:
            tag = _clip(node.tag.replace("tag:yaml.org,2002:", "!!"), 60)
            raise _refused(f"tag {tag} makes an object, and a config has plain values; remove it", node)
        return node


_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def _pairs(tree: yaml.MappingNode, seen: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value below ``tree`` with its dotted key. seen: all keys before it, those of nodes included."""
    for key_node, node in tree.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _refused("a list or a node is given as a key; a key is text", key_node)
        if key_node.value == "<<":
            raise _refused("<< merges one node into another; write its keys out", key_node)
        key = prefix + key_node.value
        if key in seen:  # ISON.DEPTH may also be DEPTH below ISON
            raise _refused(f"key {_clip(key)} is given twice; keep one of them", key_node)
        seen.add(key)
        if isinstance(node, yaml.MappingNode):
            yield from _pairs(node, seen, f"{key}.") if node.value else [(key, None)]
        else:
            yield key, _value(node)


def _value(node: yaml.Node) -> Any:
    """The text of ``node``, None if it is empty, or a list of these."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        raise _refused("a node is given in a list; a list has plain values", node)
    empty = node.style is None and node.value.lower() in ("", "~", "null")
    return None if empty else node.value


def _refused(problem: str, at: yaml.Event | yaml.Node) -> _RefusedError:
    return _RefusedError(problem=problem, problem_mark=at.start_mark)


def _explained(error: yaml.YAMLError, text: str) -> str:
    """PyYAML's message, which takes several lines, as one sentence with a line number."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line} has the character {chr(error.character)!a}, which YAML does not allow; remove it"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not valid YAML: {_clip(str(error))}"
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}: " if mark else ""
    if isinstance(error, _RefusedError):
        return f"{place}{error.problem}"
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    return f"not valid YAML: {place}{_clip(reason)}; check the indentation, colons, quotes and brackets there"


def _refuse_long(data: bytes, source: str) -> None:
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{source}: longer than {MAX_BYTES:,} bytes, which no config is; is it the right file?")


def _neighbour(path: Path) -> str:
    """A hint at a file with a similar name, if there is one."""
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml"))]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {where(path.parent / near[0])}?" if near else ""


def _clip(text: str, width: int = _PROBLEM_WIDTH) -> str:
    return text if len(text) <= width else f"{text[:width]}..."
