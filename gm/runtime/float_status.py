"""Overflow on Ascend: the status registers of the 910A, and variables that make later cards behave like it.

The 910A saturates: a float16 result that overflows becomes ±65504, and not-a-number becomes 0, so that overflows do not
show in the values. Instead it sets a bit in status registers (MindSpore's documentation of `NPUGetFloatStatusV2`). Not
yet run on a card. Later cards compute infinity and not-a-number as IEEE 754 defines them, unless their mode is
changed (CANN's documentation of `INF_NAN_MODE_ENABLE`).
"""

from __future__ import annotations

import os

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops.operations.math_ops import NPUClearFloatStatusV2, NPUGetFloatStatusV2

from gm.errors import UserError
from gm.runtime import devices

# MindSpore's variable, and CANN's: A2 and A3 cards follow the second only if the third is set, too.
_SATURATING_MODES = {
    "MS_ASCEND_CHECK_OVERFLOW_MODE": "SATURATION_MODE",
    "INF_NAN_MODE_ENABLE": "0",
    "INF_NAN_MODE_FORCE_DISABLE": "1",
}

_get_status = NPUGetFloatStatusV2()
_clear_status = NPUClearFloatStatusV2()


def saturates() -> bool:
    """Return whether the device is an Ascend card that saturates; call it after the device is set."""
    if ms.get_context("device_target") != "Ascend":
        return False
    return devices.soc_version() == devices.ASCEND_910A


def check_environment() -> None:
    """Raise UserError if the environment makes a card saturate that need not: overflows would go unnoticed there."""
    if saturates():
        return
    for name, mode in _SATURATING_MODES.items():
        if os.environ.get(name) == mode:
            raise UserError(
                f"{name}={mode} makes the card saturate: overflows would go unnoticed; unset {name} and start again"
            )


def clear_after(value: Tensor, then: Tensor) -> Tensor:
    """Return `then`, and clear the registers before anything that depends on it, but after `value` is computed.

    The order of MindSpore's `TrainOneStepWithLossScaleCell.start_overflow_check`: the operators that read and clear the
    registers have no inputs of their own, so only `ops.depend` holds their place in a graph.
    """
    status = ops.depend(_no_bits(), ops.stop_gradient(value))
    return ops.depend(then, ops.stop_gradient(_clear_status(status)))


def finite_since_clear(values: tuple[Tensor, ...]) -> Tensor:
    """Return whether nothing has overflowed since `clear_after` until `values` were computed, a bool scalar."""
    status = _get_status(ops.depend(_no_bits(), values))
    return ops.equal(status, _no_bits()).all()


def _no_bits() -> Tensor:
    return Tensor([0] * 8, ms.int32)  # the shape that both operators require
