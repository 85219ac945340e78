"""A strict reader of config files. A file has keys with text or lists of text, and gives each key once.

YAML has features that a config does not need. Tags create objects, and if a key is given twice, the last value wins
silently. This module refuses both, and aliases to lists and nodes. Each error message is one sentence with a line
number. YAML's own rules for numbers, dates and booleans are not used: a value stays text, and its key converts it in
the same way as on a command line.
"""

import difflib
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # a dependency of yacs

from isonet.errors import ConfigError

MAX_BYTES = 100_000  # fifty times the size of a config with every key; PyYAML reads this much in about two seconds
MAX_DEPTH = 10  # levels of brackets and nodes; a config has two levels, and a list is the third
_PATH_WIDTH = 200  # characters of a name in a message

Pairs = list[tuple[str, Any]]


def read_pairs(path: Path) -> Pairs:
    """Return the dotted keys and values of a YAML file. Raises ``ConfigError`` if it is not a plain config."""
    name = where(path)
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
        raise ConfigError(f"{name} is a folder, a pipe, a socket or a device; a config is a .yaml file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # no more: a file of /proc has no size to check before
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {where(path.parent / near[0])}?" if near else ""
        raise ConfigError(f"{name}: no such config file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{name}: a config is a .yaml file; any other file is neither read nor executed")
    return parse_pairs(data, name)


def parse_pairs(content: str | bytes, source: str) -> Pairs:
    """Return the dotted keys and values of YAML text. source: the name of the text in messages."""
    source = where(source)
    if not isinstance(content, str | bytes):  # from a checkpoint, which can contain anything
        raise ConfigError(f"{source}: expected YAML text, found {type(content).__name__}")
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{source}: longer than {MAX_BYTES:,} bytes, the limit for a config; is it the right file?")
    try:
        text = content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}: line {line} is not UTF-8 text; save the file as UTF-8") from None
    try:
        tree = _StrictLoader(text).get_single_node()
        return list(_pairs(tree, seen=set())) if tree else []
    except yaml.reader.ReaderError as error:
        line, character = text.count("\n", 0, error.position) + 1, chr(error.character)
        raise ConfigError(f"{source}: line {line}: YAML does not allow {character!a}; remove it") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{source}: {_explained(error)}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # PyYAML lets some of Python's own exceptions through, such as the error for an escape beyond Unicode
        raise ConfigError(f"{source}: not valid YAML: an escape or a number in it cannot be read; remove it") from None


def shown(value: Any) -> str:
    """Return ``value`` as text for a message: one line, and short even if the value is large."""
    try:
        return "nothing" if value is None else " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python prints no number of more than 4300 digits
        return "a number of thousands of digits"


def where(source: str | Path) -> str:
    """Return the name of a file for the start of a message, or the end of the name if it is long."""
    text = str(source)
    return text if len(text) <= _PATH_WIDTH else "..." + text[-_PATH_WIDTH:]


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class _RefusedError(yaml.MarkedYAMLError):
    """Raised for valid YAML that a config does not need."""

    def __init__(self, problem: str, at: yaml.Event | yaml.Node) -> None:
        super().__init__(problem=problem, problem_mark=at.start_mark)


class _StrictLoader(yaml.BaseLoader):  # BaseLoader reads every scalar as text
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.depth += 1
        if self.depth > MAX_DEPTH:  # well before Python's own limit
            raise _RefusedError(f"nested more than {MAX_DEPTH} deep; a config is keys below nodes", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        # An alias to text is harmless; aliases to lists and nodes can multiply the size
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise _RefusedError(f"alias *{event.anchor:.40} repeats a whole list or node; write it out", event)
        if node.tag not in _PLAIN:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise _RefusedError(f"tag {tag:.60} makes an object, and a config has plain values; remove it", node)
        return node


_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}


def _pairs(tree: yaml.Node, seen: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf of ``tree``. seen: all earlier keys, including keys of nodes."""
    if not isinstance(tree, yaml.MappingNode):
        raise _RefusedError("expected KEY: VALUE lines", tree)
    for key_node, node in tree.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _RefusedError("a list or a node is given as a key; a key is text", key_node)
        if key_node.value == "<<":
            raise _RefusedError("<< merges one node into another; write its keys out", key_node)
        key = prefix + key_node.value
        if key in seen:  # ISON.DEPTH may also be DEPTH below ISON
            raise _RefusedError(f"key {key:.160} is given twice; keep one of them", key_node)
        seen.add(key)
        if isinstance(node, yaml.MappingNode):
            yield from _pairs(node, seen, f"{key}.") if node.value else [(key, None)]
        else:
            yield key, _value(node)


def _value(node: yaml.Node) -> Any:
    """Return the text of ``node``, None if it is empty, or a list of such values."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        raise _RefusedError("a node is given in a list; a list has plain values", node)
    empty = node.style is None and node.value.lower() in ("", "~", "null")
    return None if empty else node.value


def _explained(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's message, which has several lines, as one sentence with a line number."""
    place = f"line {error.problem_mark.line + 1}"
    if isinstance(error, _RefusedError):
        return f"{place}: {error.problem}"
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    return f"not valid YAML: {place}: {reason:.160}; check the indentation, colons, quotes and brackets there"
