"""Differences between the tensors of a checkpoint and those of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gm.checkpoints.detect import explain_misfit
from gm.checkpoints.key_mapping import ParameterShapes
from gm.checkpoints.lazy_tensor import LazyTensor

_MAX_KEYS_SHOWN = 3  # in a message


@dataclass(frozen=True)
class Misfit:
    """Keys that a checkpoint lacks, keys that the model lacks, and (shape, expected shape) of keys of another shape."""

    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def of(cls, shapes: ParameterShapes, tensors: Mapping[str, LazyTensor]) -> Misfit:
        """Compare `tensors` with the `shapes` that are expected."""
        return cls(
            [name for name in shapes if name not in tensors],
            [name for name in tensors if name not in shapes],
            {
                name: (tensors[name].shape, shape)
                for name, shape in shapes.items()
                if name in tensors and tensors[name].shape != shape
            },
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def explain(self, kind: str) -> str:
        """Return the probable kind of the checkpoint in place of a model of `kind`, and a remedy."""
        return explain_misfit(self.missing, self.unexpected, self.mismatched, kind)

    def counts(self) -> str:
        """Return the number of keys with each problem, and the first of them."""
        shapes = [f"{name} {list(shape)} instead of {list(other)}" for name, (shape, other) in self.mismatched.items()]
        problems = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        return "; ".join(f"{len(keys)} {problem} ({shorten_keys(keys)})" for problem, keys in problems.items() if keys)


def shorten_keys(keys: Sequence[str]) -> str:
    """Return the first of `keys`, and the number of the others."""
    more = f" and {len(keys) - _MAX_KEYS_SHOWN} more" if len(keys) > _MAX_KEYS_SHOWN else ""
    return ", ".join(keys[:_MAX_KEYS_SHOWN]) + more
