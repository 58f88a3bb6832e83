"""Reading a pickle without running it, and writing one for PyTorch.

A pickle is a program for a stack machine that can call any function of Python by its name. This machine knows the
instructions that make plain values and a short list of names, none of which it calls: it notes the tensors that PyTorch
would make, and refuses every other name. Facts are from Lib/pickletools.py and torch/_utils.py.
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_MOST_STEPS = 20_000  # instructions; a learned word needs some hundreds
_MOST_DIMENSIONS = 8
_VALUES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_TYPES = {numpy: torch for torch, numpy in _VALUES.items()}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_KNOWN = {
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.modules.container.ParameterDict",
    "torch.Size",
    "torch.device",
    "collections.OrderedDict",
    "builtins.set",
    "__builtin__.set",
    *(f"torch.{name}" for name in _VALUES),
}


class Damaged(Exception):
    """The file is not as PyTorch writes them; the text says how."""


class Refused(Exception):
    """The file asks for something by this name."""


@dataclass(frozen=True)
class _Name:
    """A function or class that the file names."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Where the values of a tensor are, and of which type."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Noted:
    """A tensor: the place of its first value in a storage, its size and its strides, in values."""

    storage: Storage
    place: int
    size: tuple[int, ...]
    strides: tuple[int, ...]


class _Module(dict):
    """An object whose state is what it holds."""


@dataclass
class _Machine:
    """The stack of a pickle, and what it remembers."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, stream: io.BytesIO) -> Any:
        """Return the value that the pickle at the stream's place makes; the stream is then behind it."""
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_STEPS:
                raise Damaged(f"more than {_MOST_STEPS} instructions")
            if instruction.name == "STOP":
                return self.stack.pop()
            self.step(instruction.name, argument)
        raise Damaged("it does not end")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST" | "TUPLE":
                stack.append((list if name == "LIST" else tuple)(self.marked()))
            case "DICT":
                items = self.marked()
                stack.append({})
                self.put(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "POP":
                stack.pop()
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                last = stack.pop()
                stack.append(_name(stack.pop(), last))
            case "APPEND":
                last = stack.pop()
                self.append([last])
            case "APPENDS" | "ADDITEMS":
                self.append(self.marked())
            case "SETITEM":
                self.put([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self.put(self.marked())
            case "BINPERSID":
                stack.append(_elsewhere(stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(self.made(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Module) and isinstance(state, dict):
                    stack[-1].update(state)
            case _ if name in _LITERALS:
                stack.append(argument)
            case _:
                raise Refused(f"the instruction {name}")

    def marked(self) -> list[Any]:
        """Take what is on the stack above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def append(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise Damaged("a list is missing")
        self.stack[-1].extend(items)

    def put(self, items: list[Any]) -> None:
        """Put keys and values, in turns, into the dictionary on top."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise Damaged("a dictionary is missing")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | bytes):  # the hash of nested tuples takes time without end
                raise Damaged("a key that is neither word nor number")
            self.stack[-1][key] = value

    def made(self, what: Any, arguments: Any) -> Any:
        """Return what the function or class `what` is known to make of `arguments`."""
        if not isinstance(what, _Name) or not isinstance(arguments, tuple):
            raise Damaged("a call of what is no function")
        match what.text:
            case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
                storage, place, size, strides = arguments[:4]
                if not isinstance(storage, Storage) or len(size) != len(strides) or len(size) > _MOST_DIMENSIONS:
                    raise Damaged("a tensor of impossible shape")
                if not all(type(n) is int and n >= 0 for n in (place, *size, *strides)):
                    raise Damaged("a tensor of impossible shape")
                return Noted(storage, place, tuple(size), tuple(strides))
            case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
                return arguments[0]
            case "torch.nn.modules.container.ParameterDict":
                return _Module()
            case "collections.OrderedDict" if not arguments:
                return {}
            case "builtins.set" | "__builtin__.set" | "torch.Size" | "torch.device":
                return None  # of no use, and copied again and again it would fill the memory
        raise Refused(what.text)


def value(stream: io.BytesIO) -> Any:
    """Return what the pickle at the stream's place makes: plain values and `Noted` tensors; it is then read to its end.

    Raises Refused for a name or an instruction that no tensor needs, Damaged, or what the standard library raises, for
    bytes that are no pickle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickletools, at texts that are none
        return _Machine().run(stream)


def written(made: Any, tensors: list[np.ndarray]) -> bytes:
    """Return the pickle of dicts, words, numbers and arrays, as `torch.save` has it; `tensors` takes the arrays."""
    return b"\x80\x02" + _written(made, tensors) + b"."


def _written(made: Any, tensors: list[np.ndarray]) -> bytes:
    if isinstance(made, bool) or made is None:
        return {None: b"N", True: b"\x88", False: b"\x89"}[made]
    if isinstance(made, int):
        length = made.bit_length() // 8 + 1
        return b"\x8a" + bytes([length]) + made.to_bytes(length, "little", signed=True)
    if isinstance(made, float):
        return b"G" + struct.pack(">d", made)
    if isinstance(made, str):
        text = made.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(made, tuple):
        return b"(" + b"".join(_written(part, tensors) for part in made) + b"t"
    if isinstance(made, np.ndarray):
        key, kind = str(len(tensors)), _TYPES[made.dtype.name]
        tensors.append(made)
        head = _written("storage", []) + f"ctorch\n{kind}\n".encode()
        storage = b"(" + head + _written(key, []) + _written("cpu", []) + _written(made.size, []) + b"tQ"
        strides = tuple(step // made.itemsize for step in np.ascontiguousarray(made).strides)
        shape = _written(0, []) + _written(made.shape, []) + _written(strides, [])
        hooks = b"\x89ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + hooks + b"tR"
    items = b"".join(_written(key, tensors) + _written(value, tensors) for key, value in made.items())
    return b"}(" + items + b"u"


def _name(module: Any, name: Any) -> _Name:
    text = f"{module}.{name}"
    if text not in _KNOWN:
        raise Refused(text)
    return _Name(text)


def _elsewhere(identity: Any) -> Storage | _Name:
    """Return what a pickle says is kept elsewhere: ("storage", type, key, device, number of values).

    Old files name a module's class so, too, with its source: ("module", class, file, source).
    """
    match identity:
        case ("module", _Name() as name, _, _):
            return name
        case ("storage", _Name() as kind, str() as key, _, int() as count, *_) if count >= 0:
            return Storage(key, _VALUES[kind.text.removeprefix("torch.")], count)
    raise Damaged("a storage without name and size")
