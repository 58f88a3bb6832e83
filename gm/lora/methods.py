"""The change of one weight: LoRA, LoCon, LoHa, LoKr, and DoRA around each of them; all in float32.

Sources: Hu et al., 2021 (LoRA: α/r · B A); LyCORIS (Yeh et al., 2023, lycoris/functional: LoCon with `lora_mid`, LoHa,
LoKr) and ComfyUI, comfy/weight_adapter, for the layouts in files; Liu et al., 2024 (DoRA); Kalajdzievski, 2023 (rsLoRA:
α/√r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way to write the change of a weight.

    required: sets of tensors of which a module has one, with `optional` ones; rank: by the tensors' shapes, None if α
    has no effect; factor: the name of a tensor in which the change is linear; shape: of the change by the tensors'
    shapes, None if they do not fit each other; delta: the change without its scale
    """

    title: str
    required: tuple[frozenset[str], ...]
    optional: frozenset[str]
    rank: Callable[[Shapes], int | None]
    factor: Callable[[Arrays], str]
    shape: Callable[[Shapes], Shape | None]
    delta: Callable[[Arrays], np.ndarray]


def _low_rank(parts: Arrays) -> np.ndarray:
    """Return B A, for convolutions [outputs, inputs, k, k]; `mid` [r, r, k, k] lies between two 1×1 convolutions."""
    up, down = _matrix(parts["up"]), parts["down"]
    if "mid" in parts:
        # As convolutions one after the other: down, then mid [up's rank, down's rank, k, k], then up.
        return np.einsum("op,pqkl,qi->oikl", up, parts["mid"], _matrix(down), optimize=True)
    return (up @ _matrix(down)).reshape((len(up), *down.shape[1:]))


def _hadamard(parts: Arrays) -> np.ndarray:
    """Return the elementwise product of two products of matrices."""
    first = _tucker(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    return first * _tucker(parts["hada_w2_a"], parts["hada_w2_b"], parts.get("hada_t2"))


def _kronecker(parts: Arrays) -> np.ndarray:
    """Return the Kronecker product of two matrices, each of which may be a product itself."""
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    else:
        second = _tucker(parts["lokr_w2_a"], parts["lokr_w2_b"], parts.get("lokr_t2"))
    return np.kron(first.reshape(first.shape + (1,) * (second.ndim - first.ndim)), second)


def _tucker(a: np.ndarray, b: np.ndarray, core: np.ndarray | None) -> np.ndarray:
    """Return a b; with a core [r, r, k, k] its Tucker product: aᵀ on its first axis, b on its second."""
    return a @ b if core is None else np.einsum("ijkl,jr,ip->prkl", core, b, a, optimize=True)


def _low_rank_shape(shapes: Shapes) -> Shape | None:
    up, down = shapes["up"], shapes["down"]
    if len(up) < 2 or len(down) < 2 or math.prod(up[2:]) != 1:
        return None
    if "mid" not in shapes:
        return (up[0], *down[1:]) if up[1] == down[0] else None
    mid = shapes["mid"]
    fits = len(mid) == 4 and math.prod(down[2:]) == 1 and mid[:2] == (up[1], down[0])
    return (up[0], down[1], *mid[2:]) if fits else None


def _hadamard_shape(shapes: Shapes) -> Shape | None:
    first = _tucker_shape(shapes["hada_w1_a"], shapes["hada_w1_b"], shapes.get("hada_t1"))
    return first if first == _tucker_shape(shapes["hada_w2_a"], shapes["hada_w2_b"], shapes.get("hada_t2")) else None


def _kronecker_shape(shapes: Shapes) -> Shape | None:
    first, second = shapes.get("lokr_w1"), shapes.get("lokr_w2")
    first = first or _tucker_shape(shapes["lokr_w1_a"], shapes["lokr_w1_b"], None)
    second = second or _tucker_shape(shapes["lokr_w2_a"], shapes["lokr_w2_b"], shapes.get("lokr_t2"))
    if first is None or second is None or len(first) != 2 or len(second) < 2:
        return None
    return (first[0] * second[0], first[1] * second[1], *second[2:])


def _tucker_shape(a: Shape, b: Shape, core: Shape | None) -> Shape | None:
    if len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1]) if a[1] == b[0] else None
    return (a[1], b[1], *core[2:]) if len(core) == 4 and core[:2] == (a[0], b[0]) else None


def _kronecker_rank(shapes: Shapes) -> int | None:
    """Return the rank of the factor that is a product, of the second if both are; None if neither is."""
    factors = [shapes[name][0] for name in ("lokr_w2_b", "lokr_w1_b") if name in shapes]
    return factors[0] if factors else None


METHODS = (
    Method(
        "LoRA",
        (frozenset({"down", "up"}),),
        frozenset({"mid"}),
        lambda shapes: shapes["down"][0],
        lambda parts: "up",
        _low_rank_shape,
        _low_rank,
    ),
    Method(
        "LoHa",
        (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),),
        frozenset({"hada_t1", "hada_t2"}),
        lambda shapes: shapes["hada_w1_b"][0],
        lambda parts: "hada_w1_a",
        _hadamard_shape,
        _hadamard,
    ),
    Method(
        "LoKr",
        tuple(
            frozenset(first | second)
            for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
            for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"})
        ),
        frozenset({"lokr_t2"}),
        _kronecker_rank,
        lambda parts: "lokr_w1" if "lokr_w1" in parts else "lokr_w1_a",
        _kronecker_shape,
        _kronecker,
    ),
)


def find(parts: Mapping[str, object]) -> Method | None:
    """Return the method whose tensors are `parts`, complete; None if there is none."""
    for method in METHODS:
        if any(required <= parts.keys() <= required | method.optional for required in method.required):
            return method
    return None


def fits(delta: Shape | None, weight: Shape) -> bool:
    """Return whether a change of shape `delta` is one of a `weight`, [outputs, inputs] or [outputs, inputs, k, k].

    A 1×1 convolution may be a linear layer in the file and the reverse; LoHa and LoKr may have inputs, k and k as one.
    """
    return delta is not None and delta[0] == weight[0] and math.prod(delta) == math.prod(weight)


def scale(alpha: float | None, rank: int | None, rank_stabilized: bool = False) -> float:
    """Return α/r, for rsLoRA α/√r; 1 without α or rank."""
    if alpha is None or rank is None:
        return 1.0
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def magnitude_axis(magnitude: Shape, weight: Shape, of_peft: bool) -> int | None:
    """Return the axis of a weight [outputs, inputs, …] along which DoRA's `magnitude` lies; None if neither fits.

    PEFT has a value an output in every shape ([outputs], for convolutions [1, outputs, 1, 1]). LyCORIS has `dora_scale`
    [outputs, 1, …], or [1, inputs, …] of its default, with norms over all other axes.
    """
    sizes = [size for size in magnitude if size != 1]
    size = math.prod(magnitude)
    if len(sizes) > 1:
        return None
    if of_peft or ((len(magnitude) < 2 or magnitude[0] == size) and size == weight[0]):
        return 0 if size == weight[0] else None
    if size == weight[1]:
        return 1
    return 0 if size == weight[0] else None  # PEFT's convolution under LyCORIS' name


def decomposed(weight: np.ndarray, delta: np.ndarray, magnitude: np.ndarray, axis: int) -> np.ndarray:
    """Return DoRA's change of `weight`: m · V / ‖V‖ - W with V = W + `delta`, one norm for each index of `axis`."""
    changed = weight + delta
    others = tuple(each for each in range(weight.ndim) if each != axis)
    norm = np.sqrt(np.sum(np.square(changed), axis=others, keepdims=True))
    return magnitude.reshape(norm.shape) * (changed / np.maximum(norm, np.finfo(np.float32).tiny)) - weight


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)
