"""Objects that a pickle of PyTorch may name: recorded, never called.

`find_global` finds the names on a short list; `rebuild` returns the result of PyTorch or NumPy for its arguments. Any
other name is refused, or stands for an `Unknown`, of which nothing is kept. Facts are from torch/_utils.py,
torch/_tensor.py and numpy/core/src/multiarray/{scalartypes,descriptor}.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gm.errors import DamagedFileError, shorten

STORAGE_DTYPES = {
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
_MAX_DIMENSIONS = 8
_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}  # NumPy 2 has the second name
_SCALAR_TYPES = {"b1", "f2", "f4", "f8", *(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8))}
_ALLOWED_GLOBALS = {
    *_SCALARS,
    "numpy.dtype",
    "_codecs.encode",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch.float16",
    "torch.bfloat16",
    "torch.float32",
    "torch.float64",
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
    *(f"torch.{storage}" for storage in STORAGE_DTYPES),
}


class UnsafePickleError(Exception):
    """The pickle needs a global or an opcode that no tensor needs; the text names it."""


@dataclass(frozen=True)
class Storage:
    """Storage of tensor values: its key in the file, dtype and number of values."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """Tensor to rebuild; offset and strides count values of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Global:
    """Function or class that the pickle names."""

    name: str


@dataclass(frozen=True)
class Unknown:
    """Class or function `name` that is not on the list, or an object of it."""

    name: str


@dataclass
class Dtype:
    """NumPy's type of a scalar: its name without byte order, as in "i8"."""

    name: str
    byte_order: str = "="


class Module(dict):
    """Object whose state are the items of the dict."""


def find_global(module: Any, attribute: Any, skip_unknown: bool = False) -> Global | Unknown:
    """Return the global of this name; UnsafePickleError for one that is not on the list, unless those are skipped."""
    name = f"{module}.{attribute}"
    if name in _ALLOWED_GLOBALS:
        return Global(name)
    if skip_unknown:
        return Unknown(shorten(name, 100))
    raise UnsafePickleError(name)


def rebuild(function: Any, arguments: Any) -> Any:
    """Return the result of calling `function`, a global; an Unknown if the function or an argument is one."""
    if isinstance(function, Unknown):
        return function
    unknown = [each for each in arguments if isinstance(each, Unknown)] if isinstance(arguments, tuple) else []
    if unknown:
        return unknown[0]
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise DamagedFileError("a call of something that is not a function")
    match function.name:
        case "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor":
            storage, offset, shape, strides = arguments[:4]
            if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
                raise DamagedFileError("a tensor of impossible shape")
            if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
                raise DamagedFileError("a tensor of impossible shape")
            return TensorRecord(storage, offset, tuple(shape), tuple(strides))
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return arguments[0]
        case "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes: function, class, arguments, attributes
            inner, _, inner_arguments, *_ = arguments
            return _rebuild_tensor_of_type(inner, inner_arguments)
        case name if name in _SCALARS:
            return _scalar(*arguments)
        case "numpy.dtype":
            return Dtype(_text(arguments[0]))
        case "_codecs.encode":
            return _text(arguments[0]).encode("latin-1")
        case "torch.nn.modules.container.ParameterDict":
            return Module()
        case "collections.OrderedDict" if not arguments:
            return {}
        case "builtins.set" | "__builtin__.set" | "torch.Size" | "torch.device":
            return None  # unused, and nested copies would fill the memory
    raise UnsafePickleError(function.name)


def _rebuild_tensor_of_type(function: Any, arguments: Any) -> Any:
    if isinstance(function, Global) and function.name == "torch._tensor._rebuild_from_type_v2":
        raise DamagedFileError("a tensor within itself")  # PyTorch never nests them, and each level is a recursion
    return rebuild(function, arguments)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise DamagedFileError("a value of NumPy that is not a text")
    return value


def byte_order(state: Any) -> str:
    """Return the byte order in the state of a dtype: (version, byte order, …)."""
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
        raise DamagedFileError("a type of NumPy without byte order")
    return str(state[1])


def _scalar(dtype: Any, content: Any) -> int | float | bool | str:
    """Return the value of one of NumPy's scalars, given its bytes."""
    if isinstance(content, str):  # Python 2 wrote bytes as text
        content = content.encode("latin-1")
    if not isinstance(dtype, Dtype) or not isinstance(content, bytes):
        raise DamagedFileError("a number of NumPy without type or content")
    if dtype.name == f"U{len(content) // 4}":
        return content.decode("utf-32-be" if dtype.byte_order == ">" else "utf-32-le").rstrip("\0")
    if dtype.name not in _SCALAR_TYPES or len(content) != np.dtype(dtype.name).itemsize:
        raise DamagedFileError(f"a value of NumPy's type {shorten(dtype.name, 20)!r}")
    value: int | float | bool = np.frombuffer(content, f"{dtype.byte_order}{dtype.name}")[0].item()
    return value


def persistent_load(identifier: Any) -> Storage | Global | Unknown:
    """Return the storage that a persistent id describes: ("storage", type, key, device, number of values).

    Files before PyTorch 1.6 also name a module's class so, with its source: ("module", class, file, source).
    """
    match identifier:
        case ("module", Global() | Unknown() as class_, _, _):
            return class_
        case ("storage", Unknown() as type_, *_):  # of complex numbers, or quantized
            return type_
        case ("storage", Global() as type_, str() as key, _, int() as count, *_) if count >= 0:
            return Storage(key, STORAGE_DTYPES[type_.name.removeprefix("torch.")], count)
    raise DamagedFileError("a storage without name and size")
