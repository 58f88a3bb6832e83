"""Unpickler that executes nothing.

A pickle is a program for a stack machine that can call any function of Python by its name. This machine knows the
opcodes of plain values and a short list of globals, none of which it calls: it records the tensors that PyTorch would
rebuild. Every other name is refused, or recorded as an `Unknown` whose arguments and state are dropped. Facts are from
Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from gm.checkpoints.pickled_objects import (
    STORAGE_DTYPES,
    Dtype,
    Module,
    Storage,
    TensorRecord,
    Unknown,
    UnsafePickleError,
    byte_order,
    find_global,
    persistent_load,
    rebuild,
)
from gm.errors import DamagedFileError

__all__ = ["MAX_OPCODES", "STORAGE_DTYPES", "Storage", "TensorRecord", "Unknown", "UnsafePickleError", "load"]

MAX_OPCODES = 20_000  # an embedding file has some hundreds
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_BYTES = {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_LITERALS = _NUMBERS | _BYTES | _TEXTS


def load(
    stream: IO[bytes],
    max_opcodes: int = MAX_OPCODES,
    skip_unknown: bool = False,
    storages: dict[str, Storage] | None = None,
) -> Any:
    """Return the value of the pickle at the stream's position, with tensors as TensorRecords, and read to its end.

    With `skip_unknown` an object of another class is an `Unknown`, and an item of a dict with such a key is left out.
    All storages, also those of tensors that are left out, are added to `storages` by key.
    Raises UnsafePickleError, DamagedFileError, or whatever the standard library raises for bytes that are not a pickle.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns about damaged texts
        return _Machine(skip_unknown, {} if storages is None else storages).run(stream, max_opcodes)


@dataclass
class _Machine:
    """Stack machine of a pickle: its stack, the positions of marks, and the memo."""

    skip_unknown: bool
    storages: dict[str, Storage]
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, stream: IO[bytes], max_opcodes: int) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > max_opcodes:
                raise DamagedFileError(f"more than {max_opcodes} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise DamagedFileError("it does not end")

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP":
                self.stack.pop()
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self.stack.append(self.memo[argument])
            case _ if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            case _ if name in _LITERALS:
                self.stack.append(argument)
            case _:
                self.step_container(name, argument)

    def step_container(self, name: str, argument: Any) -> None:
        """Execute an opcode that builds or fills a list, tuple or dict."""
        stack = self.stack
        match name:
            case "LIST":
                stack.append(self.pop_to_mark())
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = self.pop_to_mark()
                stack.append({})
                self.set_items(items)
            case "APPEND":
                item = stack.pop()
                self.extend_list([item])
            case "APPENDS" | "ADDITEMS":
                self.extend_list(self.pop_to_mark())
            case "SETITEM":
                self.set_items([stack.pop(-2), stack.pop()])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case _:
                self.step_object(name, argument)

    def step_object(self, name: str, argument: Any) -> None:
        """Execute an opcode that names or makes an object."""
        stack = self.stack
        match name:
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                stack.append(find_global(module, attribute, self.skip_unknown))
            case "STACK_GLOBAL":
                attribute = stack.pop()
                stack.append(find_global(stack.pop(), attribute, self.skip_unknown))
            case "BINPERSID":
                stack.append(persistent_load(stack.pop()))
                if isinstance(stack[-1], Storage):
                    self.storages[stack[-1].key] = stack[-1]
            case "REDUCE" | "NEWOBJ":
                arguments = stack.pop()
                stack.append(rebuild(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Module) and isinstance(state, dict):
                    stack[-1].update(state)
                elif isinstance(stack[-1], Dtype):
                    stack[-1].byte_order = byte_order(state)
            case _:
                raise UnsafePickleError(f"the opcode {name}")

    def pop_to_mark(self) -> list[Any]:
        """Remove and return the stack's items above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def extend_list(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Unknown):
            return
        if not isinstance(self.stack[-1], list):
            raise DamagedFileError("a list is missing")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Put alternating keys and values into the dict on top of the stack."""
        if isinstance(self.stack[-1], Unknown):
            return
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise DamagedFileError("a dict is missing")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, Unknown):  # Lightning's callbacks are in a dict by class
                continue
            if not isinstance(key, str | int | bytes):  # hashing nested tuples takes exponential time
                raise DamagedFileError("a key that is neither a string nor a number")
            self.stack[-1][key] = value
