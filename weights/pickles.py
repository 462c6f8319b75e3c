"""Reads what a pickle of torch says about tensors, without doing what the pickle says.

A pickle is a program. This runs the part of it that a state dict needs (the instructions that torch
writes and its own weights_only reader takes) on plain values: where the program wants to make a
storage or a tensor it gets a note of dtype and shape. Nothing a file names is ever imported or
called; a name or an instruction that is not listed here ends the reading.
Knows no files and no tensors: bytes in, notes out.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

# Bits per element, by the names that safetensors gives to dtypes.
DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}

# These also keep a small pickle from making much of little.
MAX_DIMENSIONS = 16  # of one tensor
MAX_NESTING = 100


class HoldsCode(Exception):
    """The pickle wants something made that is no tensor."""


class Damaged(Exception):
    """The pickle does not hang together."""


class TensorInfo(NamedTuple):
    dtype: str  # a key of DTYPE_BITS
    shape: tuple[int, ...]


class Storage(NamedTuple):
    """The elements that tensors are views of; they lie outside the pickle."""

    key: str
    dtype: str
    length: int  # in elements

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * DTYPE_BITS[self.dtype] // 8


class Pickle:
    """The pickle that begins at `at` of `data`: its `value`, the `storages` it refers to, its end.

    Making one reads it. Raises HoldsCode or Damaged.
    """

    def __init__(self, data: bytes, at: int = 0):
        self.data = data
        self.at = at  # in the end, where the pickle ends
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}
        try:
            self.value: Any = self._run()
        except (IndexError, KeyError, TypeError, ValueError, struct.error) as exc:
            raise Damaged from exc  # such as a stack that has nothing left, or text that is not UTF-8

    def _run(self) -> Any:
        instructions = _INSTRUCTIONS
        while (instruction := self.data[self.at]) != _STOP:
            self.at += 1
            do = instructions.get(instruction)
            if do is None:
                raise _not_taken(instruction)
            do(self)
        self.at += 1
        return self._stack.pop()

    def _byte(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        return byte

    def _number(self, form: struct.Struct) -> Any:
        (number,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return number

    def _take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise Damaged
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def _line(self) -> str:
        end = self.data.index(b"\n", self.at)
        line = self.data[self.at : end]
        self.at = end + 1
        return line.decode()

    # ---- instructions ----

    def _protocol(self) -> None:
        if (protocol := self._byte()) > 3:
            raise HoldsCode(f"it has pickle protocol {protocol}, and torch writes 2")

    def _name(self) -> None:
        name = f"{self._line()}.{self._line()}"
        if name not in _NAMES:
            raise HoldsCode(f"it names {name[:80]!a}")
        self._stack.append(_NAMES[name])

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Maker) or type(arguments) is not tuple:
            raise HoldsCode("it calls something")
        self._stack.append(function.make(*arguments))

    def _set_attributes(self) -> None:
        """What a state dict carries beside its items: versions of modules. Dropped."""
        state, target = self._stack.pop(), self._stack[-1]
        if type(state) is not dict or type(target) is not dict:
            raise HoldsCode("it sets attributes")

    def _storage(self) -> None:
        kind, dtype, key, _place, length, *view = self._stack.pop()
        if kind != "storage" or not isinstance(dtype, _Dtype) or view not in ([], [None]):
            raise HoldsCode("it refers to something that is no storage")
        if type(key) is not str or type(length) is not int or length < 0:
            raise Damaged
        storage = Storage(key, dtype.name, length)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise Damaged
        self._stack.append(storage)

    def _mark(self) -> None:
        if len(self._marked) > MAX_NESTING:
            raise Damaged
        self._marked.append(self._stack)
        self._stack = []

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _append(self) -> None:
        item = self._stack.pop()
        _the(list, self._stack[-1]).append(item)

    def _append_all(self) -> None:
        items = self._above_mark()
        _the(list, self._stack[-1]).extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _put(_the(dict, self._stack[-1]), [(key, value)])

    def _set_all(self) -> None:
        items = self._above_mark()
        _put(_the(dict, self._stack[-1]), zip(items[::2], items[1::2], strict=True))

    def _tuple_above_mark(self) -> None:
        items = self._above_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise Damaged
        items = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._stack.append(items)

    def _text(self) -> None:
        self._stack.append(self._take(self._number(_UINT)).decode())

    def _short_text(self) -> None:
        self._stack.append(self._take(self._byte()).decode())

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._byte()), "little", signed=True))

    def _remember(self) -> None:
        self._memo[self.data[self.at]] = self._stack[-1]
        self.at += 1

    def _remember_long(self) -> None:
        self._memo[self._number(_UINT)] = self._stack[-1]

    def _recall(self) -> None:
        self._stack.append(self._memo[self.data[self.at]])
        self.at += 1

    def _recall_long(self) -> None:
        self._stack.append(self._memo[self._number(_UINT)])


class _Dtype(NamedTuple):
    """Stands for a class of storages, or for a dtype."""

    name: str


class _Maker(NamedTuple):
    """Stands for a function, and does on notes what the function does on tensors."""

    make: Callable[..., Any]


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: Any, *_rest: Any) -> TensorInfo:
    """Raises Damaged unless the tensor lies within its storage."""
    if type(storage) is not Storage or max(len(shape), len(strides)) > MAX_DIMENSIONS:
        raise Damaged
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise Damaged
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.length:
        raise Damaged
    return TensorInfo(storage.dtype, tuple(shape))


def _tensor_of_dtype(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: Any,
    _requires_grad: Any,
    _hooks: Any,
    dtype: _Dtype,
    *_rest: Any,
) -> TensorInfo:
    """For dtypes that have no class of storages, such as fp8: the storage is one of bytes."""
    length = storage.size * 8 // DTYPE_BITS[dtype.name]
    return _tensor(Storage(storage.key, dtype.name, length), offset, shape, strides)


def _size(numbers: Any) -> tuple[int, ...]:
    if len(numbers) > MAX_DIMENSIONS:
        raise Damaged
    return tuple(numbers)


def _put(target: dict[Any, Any], pairs: Any) -> None:
    for key, value in pairs:
        if type(key) is not str and type(key) is not int:  # others may take forever to hash
            raise Damaged
        target[key] = value


def _not_taken(instruction: int) -> Exception:
    name = {ord(known.code): known.name for known in pickletools.opcodes}.get(instruction)
    return HoldsCode(f"it has the instruction {name}") if name else Damaged()


def _the(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise HoldsCode(f"it fills something that is no {kind.__name__}")
    return value


_STORAGES = {
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Double": "F64",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
}
_DTYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES: dict[str, _Dtype | _Maker] = {
    **{f"torch.{name}Storage": _Dtype(dtype) for name, dtype in _STORAGES.items()},
    **{f"torch.{name}": _Dtype(dtype) for name, dtype in _DTYPES.items()},
    "torch.storage.UntypedStorage": _Dtype("U8"),
    "torch._utils._rebuild_tensor": _Maker(_tensor),
    "torch._utils._rebuild_tensor_v2": _Maker(_tensor),
    "torch._utils._rebuild_tensor_v3": _Maker(_tensor_of_dtype),
    "torch._utils._rebuild_parameter": _Maker(lambda tensor, *_rest: tensor),
    "torch.Size": _Maker(_size),
    "collections.OrderedDict": _Maker(dict),
}


def _pushes(make: Callable[[], Any]) -> Callable[[Pickle], None]:
    return lambda pickle: pickle._stack.append(make())


def _pushes_number(form: struct.Struct) -> Callable[[Pickle], None]:
    return lambda pickle: pickle._stack.append(pickle._number(form))


_UINT = struct.Struct("<I")
_STOP = ord(".")
# The instructions of protocol 2 that make up a state dict; pickletools explains each letter.
_INSTRUCTIONS: dict[int, Callable[[Pickle], None]] = {
    0x80: Pickle._protocol,
    ord("c"): Pickle._name,
    ord("R"): Pickle._call,
    ord("b"): Pickle._set_attributes,
    ord("Q"): Pickle._storage,
    ord("("): Pickle._mark,
    ord("a"): Pickle._append,
    ord("e"): Pickle._append_all,
    ord("s"): Pickle._set_item,
    ord("u"): Pickle._set_all,
    ord("t"): Pickle._tuple_above_mark,
    0x85: lambda pickle: pickle._tuple_of(1),
    0x86: lambda pickle: pickle._tuple_of(2),
    0x87: lambda pickle: pickle._tuple_of(3),
    ord("N"): _pushes(lambda: None),
    0x88: _pushes(lambda: True),
    0x89: _pushes(lambda: False),
    ord(")"): _pushes(tuple),
    ord("]"): _pushes(list),
    ord("}"): _pushes(dict),
    ord("J"): _pushes_number(struct.Struct("<i")),
    ord("K"): lambda pickle: pickle._stack.append(pickle._byte()),
    ord("M"): _pushes_number(struct.Struct("<H")),
    ord("G"): _pushes_number(struct.Struct(">d")),
    ord("X"): Pickle._text,
    ord("U"): Pickle._short_text,
    0x8A: Pickle._long,
    ord("q"): Pickle._remember,
    ord("r"): Pickle._remember_long,
    ord("h"): Pickle._recall,
    ord("j"): Pickle._recall_long,
}
