"""The text of a config file, read strictly: plain values below keys, each key given once.

YAML can do more than a config needs. Tags build objects, dates and octal numbers turn a name or a depth into
something else, and of two equal keys the last one wins silently. None of that is read here, nor an alias to a list
or a node. Each refusal is one sentence, with its line.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # comes with yacs

from isonet.errors import ConfigError

MAX_BYTES = 100_000  # fifty times a config with every key; PyYAML reads this much in about two seconds
MAX_DEPTH = 10  # of brackets and nodes in each other; the tree has two levels and a list is the third
_PATH_WIDTH, _PROBLEM_WIDTH = 200, 160  # characters in a message

Pairs = list[tuple[str, Any]]


def read_pairs(path: Path) -> Pairs:
    """Dotted keys and values of a YAML file; ``ConfigError`` for one that is not a plain config."""
    _refuse_special(path)
    if path.suffix not in (".yaml", ".yml"):
        what = f"a {_clip(path.suffix, 20)} file" if path.suffix else "a file without an ending"
        raise ConfigError(f"{where(path)}: a config is a .yaml file, and {what} is never executed or guessed at")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # no more: a file of /proc has no size that could be asked for before
    except FileNotFoundError:
        raise ConfigError(f"{where(path)}: no such config file{_neighbour(path)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{where(path)}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        text = data.decode("utf-8-sig")  # which drops the byte order mark that some editors write
    except UnicodeDecodeError as error:
        if len(data) <= MAX_BYTES:  # else the cut may lie within a character
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{where(path)}: line {line} is not UTF-8 text; save the file as UTF-8") from None
        text = data.decode("utf-8", "replace")
    return parse_pairs(text, str(path))


def parse_pairs(text: str, source: str) -> Pairs:
    """Dotted keys and values of YAML text. ``source`` names it in messages."""
    source = where(source)
    if not isinstance(text, str):  # from a checkpoint, which can hold anything
        raise ConfigError(f"{source}: expected YAML text, found {type(text).__name__}")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ConfigError(f"{source}: longer than {MAX_BYTES:,} bytes, which no config is; is it the right file?")
    try:
        tree = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {_explained(error, text)}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # PyYAML lets some of Python's own through, such as that of an escape "\UFFFFFFFF" beyond Unicode
        raise ConfigError(f"{source}: not valid YAML: an escape or a number in it cannot be read; remove it") from None
    if tree is None:
        return []
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected KEY: VALUE lines, found {_kind(tree)}")
    pairs = list(flatten(tree))
    _refuse_repeated(pairs, source)
    return pairs


def flatten(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested dictionaries with its dotted key; an empty dictionary is a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shown(value: Any) -> str:
    """``value`` as a message shows it: on one line, and short however large it is."""
    return " ".join(_SHORT.repr(value).split())


def where(source: str | Path) -> str:
    """The name of a file for the head of a message; of a long one the end, which tells more."""
    text = str(source)
    return text if len(text) <= _PATH_WIDTH else "..." + text[-_PATH_WIDTH:]


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = 6
        self.maxstring = self.maxother = 60

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= 100:
            return str(x)
        return f"a whole number of about {int(x.bit_length() * 0.30103) + 1} digits"  # str() refuses more than 4300

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: N802 - reprlib looks for the name of the type
        return "nothing"


_SHORT = _ShortRepr()


class _RefusedError(yaml.MarkedYAMLError):
    """YAML that is valid, and that a config has no use for."""


class _StrictLoader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.depth += 1
        if self.depth > MAX_DEPTH:  # before Python's own limit is met, wherever that stands
            raise _refused(f"nested more than {MAX_DEPTH} deep; a config is keys below nodes", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        # A config needs no alias to a list or a node; one to a number or a text is as long as it reads
        if isinstance(event, yaml.AliasEvent) and not isinstance(node, yaml.ScalarNode):
            raise _refused(f"alias *{_clip(event.anchor, 40)} repeats a whole list or node; write it out", event)
        return node

    def flatten_mapping(self, node: Any) -> None:
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _refused("<< merges one node into another; write its keys out", key_node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused("a list or a node stands where a key belongs; a key is text", key_node)
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    raise _refused(f"key {shown(key)} is given twice in one node; keep one of them", key_node)
                seen.add(key)
        return mapping

    def construct_yaml_number(self, node: Any) -> Any:
        """A decimal number; YAML's octal 010 and base-60 1:30 stay text, which a key may refuse."""
        text = self.construct_scalar(node)
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def construct_yaml_bool(self, node: Any) -> Any:
        text = self.construct_scalar(node)
        return self.bool_values.get(text.lower(), text)  # !!bool can stand before any text

    def refuse_tag(self, node: Any) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _refused(f"tag {_clip(tag, 60)} makes an object, and a config holds plain values; remove it", node)


_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,4000})")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

# Plain text is read as these and nothing else. Dates stay text, such as the name of a folder
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "merge")}
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.yaml_constructors = {
    f"tag:yaml.org,2002:{name}": getattr(_StrictLoader, f"construct_yaml_{reader}")
    for name, reader in {
        "null": "null", "bool": "bool", "int": "number", "float": "number", "str": "str", "seq": "seq", "map": "map",
    }.items()
} | {None: _StrictLoader.refuse_tag}  # fmt: skip


def _refused(problem: str, at: yaml.Event | yaml.Node) -> _RefusedError:
    return _RefusedError(problem=problem, problem_mark=at.start_mark)


def _explained(error: yaml.YAMLError, text: str) -> str:
    """PyYAML's message, which shows the place over several lines, as a sentence with the number of the line."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line} holds the character {chr(error.character)!a}, which YAML does not allow; remove it"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not valid YAML: {_clip(str(error))}"
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}: " if mark else ""
    if isinstance(error, _RefusedError):
        return f"{place}{error.problem}"
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    return f"not valid YAML: {place}{_clip(reason)}; check the indentation, colons, quotes and brackets there"


def _refuse_special(path: Path) -> None:
    """Whatever can be opened and is no file: to open a pipe would wait for its writer, perhaps for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # explained where it is opened
        return
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{where(path)}: is a folder; name a .yaml file in it")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{where(path)}: is a pipe, a socket or a device; a config is a .yaml file")


def _refuse_repeated(pairs: Pairs, source: str) -> None:
    """Of a key that is written once as ISON.DEPTH and once as DEPTH below ISON the last would win in silence."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ConfigError(f"{source}: key {_clip(key)} is given twice; keep one of them")
        seen.add(key)


def _neighbour(path: Path) -> str:
    """A hint at a file of a similar name, if there is one."""
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml"))]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {where(path.parent / near[0])}?" if near else ""


def _kind(tree: Any) -> str:
    return "a list" if isinstance(tree, list) else shown(tree)


def _clip(text: str, width: int = _PROBLEM_WIDTH) -> str:
    return text if len(text) <= width else f"{text[:width]}..."
