"""Reads the pickle in a checkpoint: tensors, numbers, text, and containers of them.

The unpickler of the standard library imports and calls the functions that a pickle names. The unpickler in this module
does neither. It builds tensors from the bytes of the file, and replaces every other object by an ``Unread``.
"""

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

_DTYPES = {  # types whose elements have whole bytes and are not quantised
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
    and re.fullmatch(r"bool|u?int(8|16|32|64)|b?float(8_|16|32|64).*|complex.*", str(value)[6:])
}
_STORAGES = {
    "torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8, "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8, "torch.BoolStorage": torch.bool, "torch.ShortStorage": torch.int16,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16, "torch.IntStorage": torch.int32,
    "torch.FloatStorage": torch.float32, "torch.LongStorage": torch.int64, "torch.DoubleStorage": torch.float64,
    "torch.ComplexFloatStorage": torch.complex64, "torch.ComplexDoubleStorage": torch.complex128,
    "torch.QInt8Storage": torch.int8, "torch.QUInt8Storage": torch.uint8, "torch.QInt32Storage": torch.int32,
}  # fmt: skip
_MOST_AXES = 64  # torch's own limit in many operations


class ArchiveError(Exception):
    """Raised for bytes that are not a checkpoint, are damaged, or contain more than weights need.

    The message is the end of a sentence that begins with the name of the file.
    """


_WHERE = 'file.get("model") or file.get("net") or file.get("state_dict") or file'


def refusal(why: str, weights: str = _WHERE, read: str = "torch.load(FILE, weights_only=False)") -> ArchiveError:
    """Return the error for a file that may be undamaged. The message has code that saves the weights of a trusted file.

    weights: Python code that takes the weights from ``file``. read: Python code that returns ``file``.
    """
    save = 'torch.save({name: torch.as_tensor(value) for name, value in weights.items()}, "weights.pt")'
    return ArchiveError(
        f"is refused: {why}; if you trust the file, save its weights alone: file = {read}; weights = {weights}; {save}"
    )


class Unread:
    """Replaces an object, a class or a function that a file names. name: the module and the name."""

    def __init__(self, name: str) -> None:
        self.name = name


class TensorData(NamedTuple):
    """The bytes that one or several tensors share, and their type."""

    dtype: torch.dtype
    data: bytearray | memoryview


def unread_in(content: Any) -> list[str]:
    """Return the name of each ``Unread`` in nested dictionaries, lists and tuples."""
    found, waiting, seen = {}, [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Unread):
            found[value.name] = True
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:  # a list may contain itself
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value
    return sorted(found)


def _tensor(storage: TensorData, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor of an older pickle, or a tensor of a present one without its gradient and hooks."""
    if not isinstance(storage, TensorData) or type(size) is not tuple or type(stride) is not tuple:
        raise ArchiveError("is damaged: a tensor in it has no tensor data or no shape")
    dtype, data = storage
    whole = all(type(n) is int and 0 <= n < 2**63 for n in (offset, *size, *stride))
    if not whole or not len(size) == len(stride) <= _MOST_AXES:
        raise ArchiveError("is damaged: a tensor in it has a shape that no tensor has")
    if math.prod(size) == 0:
        return torch.empty(size, dtype=dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= len(data) // dtype.itemsize:
        raise ArchiveError("is damaged: a tensor in it is longer than its data")
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).as_strided(size, stride, offset)


def _tensor_v2(*args: Any) -> Tensor | Unread:
    return Unread("torch.Tensor with a conjugate or negative view") if any(args[6:]) else _tensor(*args)


def _tensor_v3(storage: TensorData, *args: Any) -> Tensor | Unread:
    """Return a tensor with a dtype that has no storage class."""
    *first, dtype = args[:6]
    if not isinstance(dtype, torch.dtype):
        return Unread(f"torch.Tensor of {dtype.name}")
    return _tensor_v2(TensorData(dtype, storage.data), *first, *args[6:])


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    """Return the dictionary of pairs that Python 2 saved."""
    ordered: dict[Any, Any] = OrderedDict()
    for key, value in map(_sequence, _sequence(pairs)):
        _set_items(ordered, [key, value])
    return ordered


def _sequence(value: Any) -> Any:
    """Return ``value`` if it is a tuple or a list. Other types are refused: a tensor may expand to a huge size."""
    if type(value) not in (tuple, list):
        raise ArchiveError(f"is damaged: its pickle has a {type(value).__name__} in place of a tuple")
    return value


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _sequence,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}


def _set_items(target: Any, items: list[Any]) -> None:
    """Set the items of a dictionary. items: keys and values in turn. Keys that contain other objects are not hashed."""
    if isinstance(target, Unread):
        return
    if type(target) not in (dict, OrderedDict):
        raise ArchiveError("is damaged: its pickle sets keys of an object that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        plain = key is None or type(key) in (str, int, float, bool, Unread)
        target[key if plain else Unread(f"{type(key).__name__} as a key")] = value


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, Unread):
        return
    if type(target) is not list:
        raise ArchiveError("is damaged: its pickle appends to an object that is not a list")
    target += items


def _call(reader: Any) -> None:
    args, named = _sequence(reader.stack.pop()), reader.stack.pop()
    build = _BUILDERS.get(named.name)
    reader.stack.append(build(*args) if build else Unread(named.name))


def _set_pair(reader: Any) -> None:
    value, key = reader.stack.pop(), reader.stack.pop()
    _set_items(reader.stack[-1], [key, value])


def _version(reader: Any) -> None:
    if (version := reader.read(1)[0]) > 3:
        raise refusal(f"its pickle has protocol {version}, and only protocols 2 and 3 are read (torch.save writes 2)")


class _Opcodes(dict):
    """The opcodes that weights need, with the functions that execute them. All other opcodes are refused."""

    def __missing__(self, code: int) -> None:
        raise refusal(f"it contains more than plain weights (pickle opcode {code})")


# fmt: off
_UNCHANGED = [
    "STOP", "GLOBAL", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES", "EMPTY_LIST",
    "EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID", "BINGET", "LONG_BINGET", "BINPUT",
    "LONG_BINPUT",
]
# fmt: on
_OWN: dict[str, Callable[[Any], Any]] = {
    "PROTO": _version,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": lambda reader: reader.stack.pop(),  # the attributes of an object
    "APPEND": lambda reader: _append(reader.stack[-2], [reader.stack.pop()]),
    "APPENDS": lambda reader: _append_all(reader, _append),
    "SETITEM": _set_pair,
    "SETITEMS": lambda reader: _append_all(reader, _set_items),
}


def _append_all(reader: Any, add: Callable[[Any, list[Any]], None]) -> None:
    items = reader.pop_mark()
    add(reader.stack[-1], items)


class PickleReader(pickle._Unpickler):
    """Reads a pickle. By default, all numbers in its tensors are 0, and ``tensor_data`` has the bytes to be filled.

    limit: the largest number of bytes of all tensors together. parts: the bytes of the tensors, which share them.
    """

    memo: dict[int, Any]
    dispatch: ClassVar = _Opcodes(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _UNCHANGED}
        | {getattr(pickle, name)[0]: execute for name, execute in _OWN.items()}
    )

    def __init__(self, file: io.BytesIO, limit: int, parts: dict[str, memoryview] | None = None) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.size, self.left, self.parts = file.getbuffer().nbytes, limit, parts
        self.tensor_data: dict[str, TensorData] = {}

    def load(self) -> Any:
        """Return the content. Raises ``ArchiveError`` and, for a damaged pickle, any exception."""
        content = super().load()
        if max(self.memo, default=0) > self.size:  # numbers count objects, and each object takes more than a byte
            raise refusal("it numbers more objects than it can have")
        return content

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".removeprefix("__builtin__.")
        return _DTYPES.get(full) or Unread(full)

    def persistent_load(self, pid: Any) -> TensorData | Unread:
        if _sequence(pid)[0] == "module":  # a class of the old format, with the text of its program
            return Unread(pid[1].name)
        _, kind, key, _, count, *view = pid
        if not isinstance(key, str) or type(count) is not int or count < 0 or view not in ([], [None]):
            raise ArchiveError("is damaged: the names of its tensor data are not text and a number")
        if (dtype := _STORAGES.get(kind.name)) is None:
            raise refusal(f"it contains tensor data of the type {kind.name!r:.80}")
        if key not in self.tensor_data:
            size = count * dtype.itemsize
            self.left -= size
            if self.left < 0:
                raise ArchiveError(f"is damaged: its end is missing, or its data {key!r:.80} is not as long as stated")
            data = bytearray(size) if self.parts is None else self.parts.get(key, memoryview(b""))
            if len(data) != size:
                raise ArchiveError(f"is damaged: its tensor data {key!r:.80} is not as long as stated")
            self.tensor_data[key] = TensorData(dtype, data)
        return TensorData(dtype, self.tensor_data[key].data)
